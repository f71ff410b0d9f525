"""Which code a result depends on: a hash of scripts and of every module they import.

Snakemake does not notice a change in an imported module. Rules therefore carry this hash as a
parameter, so that a change in one module reruns what depends on it, and nothing else.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


def code_hash(names: Iterable[str], root: Path = Path(), package: Path = PACKAGE) -> str:
    """Hash of the named code and of everything in the package that it imports.

    Args:
        names: scripts relative to ``root`` ("workflow/tokens.py"), modules of the package
            ("pca", "corpora.packages"), or folders of the package ("templates").

    Raises:
        FileNotFoundError: a name is none of these.
    """
    found: set[Path] = set()
    for name in names:
        found |= _closure(_locate(name, root, package), package)
    digest = hashlib.sha256()
    # Labels instead of paths: a clone in another folder has the same hash.
    for label, path in sorted((_label(path, root, package), path) for path in found):
        digest.update(f"{label}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _label(path: Path, root: Path, package: Path) -> str:
    base = package.parent if path.is_relative_to(package) else root
    return path.relative_to(base).as_posix()


def _locate(name: str, root: Path, package: Path) -> Path:
    if name.endswith(".py"):
        candidates = [root / name]
    else:
        module = package.joinpath(*name.split("."))
        candidates = [module.with_suffix(".py"), module / "__init__.py", module]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"no code called {name!r}: expected a script under {root.resolve()} or a module or "
        f"folder of {package}"
    )


def _closure(start: Path, package: Path) -> set[Path]:
    if start.is_dir():
        return {path for path in start.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    seen: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += _imports(path, path.stat().st_mtime_ns, package)
    return seen


@cache
def _imports(path: Path, _modified: int, package: Path) -> tuple[Path, ...]:
    """Files of the package, or beside a script, that the file imports."""
    return tuple(_targets(ast.parse(path.read_bytes()), path, package))


def _targets(tree: ast.AST, path: Path, package: Path) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _resolve(alias.name.split("."), None, path, package)
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level:
                # Level 1 is the folder of the file itself.
                parts = [*path.parents[node.level - 1].relative_to(package.parent).parts, *parts]
            for alias in node.names:
                yield from _resolve(parts, alias.name, path, package)


def _resolve(parts: list[str], name: str | None, path: Path, package: Path) -> Iterator[Path]:
    """Files behind ``import a.b`` or ``from a.b import name``.

    The ``__init__`` of a package that is only passed through does not count: it gathers names
    from everywhere, and would make everything depend on everything.
    """
    if not parts:
        return
    inside = parts[0] == package.name
    base = package.parent if inside else path.parent
    target = base.joinpath(*parts)
    options = [target / f"{name}.py", target / str(name) / "__init__.py"] if name else []
    for candidate in (*options, target.with_suffix(".py"), target / "__init__.py"):
        if candidate.is_file():
            yield candidate
            return
