"""The hash of code changes with everything that is imported, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from susceptibilities.codehash import code_hash

FILES = {
    "lib/pack/__init__.py": "from .a import x",
    "lib/pack/a.py": "x = 1",
    "lib/pack/b.py": "from .a import x",
    "lib/pack/c.py": "import numpy",
    "lib/pack/room/__init__.py": "",
    "lib/pack/room/d.py": "from ..b import x\nfrom . import e",
    "lib/pack/room/e.py": "",
    "lib/pack/templates/page.html": "<p>",
    "work/run.py": "def f():\n    from pack.room.d import x\n",
    "work/whole.py": "from pack import x",
    "work/other.py": "import helper, pack.c",
    "work/helper.py": "",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


NAMES = ["work/run.py", "work/whole.py", "work/other.py", "b", "room.d", "templates"]


@pytest.mark.parametrize(
    ("changed", "affected"),
    [
        ("lib/pack/a.py", {"work/run.py", "work/whole.py", "b", "room.d"}),
        ("lib/pack/b.py", {"work/run.py", "b", "room.d"}),
        ("lib/pack/c.py", {"work/other.py"}),
        ("lib/pack/__init__.py", {"work/whole.py"}),
        ("lib/pack/room/e.py", {"work/run.py", "room.d"}),
        ("lib/pack/templates/page.html", {"templates"}),
        ("work/run.py", {"work/run.py"}),
        ("work/helper.py", {"work/other.py"}),
    ],
)
def test_change_reaches_what_depends_on_it(root: Path, changed: str, affected: set[str]) -> None:
    def hashes() -> dict[str, str]:
        return {name: code_hash([name], root, root / "lib/pack") for name in NAMES}

    before = hashes()
    path = root / changed
    path.write_text(path.read_text() + "\n# more\n")
    after = hashes()
    assert {name for name in NAMES if before[name] != after[name]} == affected


def test_the_place_of_the_clone_does_not_matter(root: Path, tmp_path: Path) -> None:
    twin = tmp_path / "elsewhere"
    for name, text in FILES.items():
        path = twin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert code_hash(NAMES, root, root / "lib/pack") == code_hash(NAMES, twin, twin / "lib/pack")


def test_unknown_name(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no code called 'work/gone\.py'"):
        code_hash(["work/gone.py"], root, root / "lib/pack")
