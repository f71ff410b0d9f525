"""Text out of each kind of file."""

from __future__ import annotations

import bz2
import gzip
import json

import pytest

from susceptibilities.corpora.extract import EXTRACTORS

LONG = "Words of a paragraph that goes on for a while. " * 12


def run(kind: str, data: bytes, name: str = "file") -> list[tuple[str, str]]:
    return list(EXTRACTORS[kind](name, data))


def test_plain() -> None:
    assert run("plain", f"\r\n{LONG}\n\n\n\nend".encode()) == [("file", f"{LONG}\n\nend\n")]
    assert run("plain", b"short") == []
    assert run("plain", b"\xff" + LONG.encode()) == []


def test_jats() -> None:
    article = f"""<article><front><article-meta><title-group>
    <article-title>On <italic>cells</italic></article-title></title-group>
    <abstract><p>Abstract  text.</p></abstract></article-meta></front>
    <body><sec><title>Methods</title><p>{LONG}</p></sec></body>
    <back><ref-list><p>left out</p></ref-list></back></article>"""
    ((_, text),) = run("jats", article.encode())
    assert text == f"On cells\n\nAbstract text.\n\nMethods\n\n{LONG.strip()}\n"


def test_mediawiki() -> None:
    def page(title: str, text: str, space: int = 0) -> str:
        return (
            f"<page><title>{title}</title><ns>{space}</ns>"
            f"<revision><text>{text}</text></revision></page>"
        )

    dump = (
        "<mediawiki>"
        + page("Atom", f"'''Atom''' is [[matter|small matter]].&lt;ref&gt;x&lt;/ref&gt; {LONG}")
        + page("Atoms", "#REDIRECT [[Atom]] " + LONG)
        + page("Talk:Atom", LONG, 1)
        + "<page><title>cut short"
    )
    ((title, text),) = run("mediawiki", bz2.compress(dump.encode()))
    assert title == "Atom"
    assert text.startswith("Atom\n\nAtom is small matter.")
    assert "[[" not in text
    assert "'''" not in text


def test_docstrings() -> None:
    module = f'"""{LONG}"""\n\ndef f():\n    """Short."""\n\nclass C:\n    """{LONG}"""\n'
    assert run("docstrings", module.encode()) == [
        ("file", f"file\n\n{LONG}\n\nC\n\n{LONG.strip()}\n")
    ]
    assert run("docstrings", b"def (:") == []


@pytest.mark.parametrize("packed", [True, False])
def test_service_model(packed: bool) -> None:
    model = {
        "documentation": f"<p>Stores &lt;objects&gt;. {LONG}</p>",
        "shapes": [{"a": {"documentation": f"<b>Bucket</b> {LONG}"}}, {"documentation": "short"}],
        "again": {"documentation": f"<b>Bucket</b> {LONG}"},
    }
    data = json.dumps(model).encode()
    name = "service-2.json.gz" if packed else "service-2.json"
    ((_, text),) = run("service_model", gzip.compress(data) if packed else data, name)
    assert text == f"Stores <objects>. {LONG.strip()}\nBucket {LONG.strip()}\n"


def test_scripture() -> None:
    chapters = [f"1. Begin {i}.\n" + "\n".join(f"{v}. {LONG}" for v in range(2, 6)) for i in (1, 2)]
    module = f'TITLE = "x"\nTEXT = """{chr(10).join(chapters)}"""\n'
    found = run("scripture", module.encode())
    assert [name for name, _ in found] == ["file:0", "file:1"]
    assert [text.splitlines()[0] for _, text in found] == ["1. Begin 1.", "1. Begin 2."]
    assert sum(text.count(LONG.strip()) for _, text in found) == 8


def catalogue(target: str) -> bytes:
    entry = f'msgid ""\n"{LONG}"\n"and \\"more\\""\nmsgstr ""\n"{target}"\n'
    return f'msgid "untranslated"\nmsgstr ""\n\n{entry}'.encode()


def test_translations() -> None:
    ((_, text),) = run("translations", catalogue("Wörter eines Absatzes\\n" + LONG))
    assert text == f'{LONG}and "more"\nWörter eines Absatzes\n{LONG.strip()}\n'
    assert run("translations", catalogue("Слова абзаца " * 40)) == []
