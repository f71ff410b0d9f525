"""Text out of package files: one small function a format, each yielding (id, text)."""

from __future__ import annotations

import ast
import bz2
import gzip
import html
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator

import mwparserfromhell

Extractor = Callable[[str, bytes], Iterator[tuple[str, str]]]

_BLANK_LINES = re.compile(r"\n{3,}")
_TAG = re.compile(r"<[^>]*>")
# Shorter files are package plumbing (empty __init__.py and the like), not text.
_MIN_CHARS = 400


def _tidy(text: str) -> str:
    return _BLANK_LINES.sub("\n\n", text.replace("\r\n", "\n")).strip() + "\n"


def plain(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """The file's text as it is (prose, source code)."""
    try:
        text = _tidy(data.decode("utf-8"))
    except UnicodeDecodeError:
        return
    if len(text) >= _MIN_CHARS:
        yield name, text


def jats(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Title, abstract and body paragraphs of a JATS (PLOS) article."""
    root = ElementTree.fromstring(data)
    parts = []
    for path in ("front//article-title", "front//abstract//p"):
        parts += ["".join(node.itertext()) for node in root.findall(f"./{path}")]
    body = root.find("./body")
    if body is not None:
        for node in body.iter():
            if node.tag in ("title", "p"):
                parts.append("".join(node.itertext()))
    text = _tidy("\n\n".join(re.sub(r"\s+", " ", part).strip() for part in parts if part.strip()))
    if len(text) >= _MIN_CHARS:
        yield name, text


def mediawiki(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Articles of a bz2 MediaWiki dump, markup removed; redirects are left out."""
    # A shortened dump ends in the middle of the file, so pages are cut out before parsing.
    dump = bz2.decompress(data).decode("utf-8", errors="replace")
    for page in re.findall(r"<page>.*?</page>", dump, flags=re.DOTALL):
        node = ElementTree.fromstring(page)
        title = node.findtext("title") or ""
        source = node.findtext("revision/text") or ""
        if node.findtext("ns", "0") != "0" or source[:9].upper() == "#REDIRECT":
            continue
        body = str(mwparserfromhell.parse(source).strip_code())
        kept = [
            line.strip()
            for line in body.splitlines()
            if not re.match(r"\s*(Category:|thumb\||[a-z]{2,3}(-[a-z]+)?:|\||!)", line)
        ]
        text = _tidy(f"{title}\n\n" + "\n".join(kept))
        if len(text) >= _MIN_CHARS:
            yield title, text


def docstrings(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Docstrings of one Python module: prose, references and worked examples."""
    try:
        tree = ast.parse(data)
    except SyntaxError:
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) > 80:
                found.append(f"{getattr(node, 'name', name)}\n\n{docstring}")
    text = _tidy("\n\n".join(found))
    if len(text) >= _MIN_CHARS:
        yield name, text


def service_model(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """The documentation strings of one web service's machine-readable description."""
    model = json.loads(gzip.decompress(data) if name.endswith(".gz") else data)
    found: list[str] = []

    def visit(value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "documentation" and isinstance(inner, str):
                    found.append(html.unescape(_TAG.sub("", inner)).strip())
                else:
                    visit(inner)
        elif isinstance(value, list):
            for inner in value:
                visit(inner)

    visit(model)
    text = _tidy("\n".join(dict.fromkeys(part for part in found if len(part) > 60)))
    # The largest services would be most of the domain; their first part stands for them.
    if len(text) >= _MIN_CHARS:
        yield name, text[:24_000]


def scripture(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Numbered verses in paragraphs, cut into documents of about a chapter's length."""
    module = ast.parse(data)
    strings = [
        node.value
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    block: list[str] = []
    number = 0
    for line in max(strings, key=len).splitlines():
        # Verse 1 begins a chapter.
        if line.startswith("1. ") and sum(map(len, block)) > 2000:
            yield f"{name}:{number}", _tidy("\n".join(block))
            block, number = [], number + 1
        block.append(line)
    if block:
        yield f"{name}:{number}", _tidy("\n".join(block))


def translations(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Source and translated message pairs of one gettext catalogue in Latin script."""
    text = data.decode("utf-8")
    entry = re.compile(r'^msgid ((?:".*"\n)+)msgstr ((?:".*"\n)+)', flags=re.MULTILINE)

    def join(quoted: str) -> str:
        # gettext strings use C escapes; JSON's are the same for those that occur.
        pieces = []
        for line in quoted.splitlines():
            try:
                pieces.append(json.loads(line, strict=False))
            except json.JSONDecodeError:
                pieces.append(line[1:-1])
        return "".join(pieces).strip()

    pairs = []
    for source, target in entry.findall(text + "\n"):
        original, translated = join(source), join(target)
        if original and translated and original != translated:
            pairs.append(f"{original}\n{translated}")
    result = _tidy("\n\n".join(pairs))
    letters = [c for c in result if c.isalpha()]
    latin = sum(c < "\u0250" for c in letters)
    if len(result) >= _MIN_CHARS and latin > 0.97 * len(letters):
        yield name, result


EXTRACTORS: dict[str, Extractor] = {
    "plain": plain,
    "jats": jats,
    "mediawiki": mediawiki,
    "docstrings": docstrings,
    "service_model": service_model,
    "scripture": scripture,
    "translations": translations,
}
