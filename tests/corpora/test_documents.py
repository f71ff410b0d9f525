"""Reading and writing the folder format, and every way in which a file can be bad."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from susceptibilities.corpora.documents import (
    TRAINING,
    CorpusError,
    Document,
    domains,
    read_checked,
    read_domain,
    write_domain,
    write_manifest,
)

Writer = Callable[..., Path]
TEXTS = ["one\n", "two \u2028 lines", "  ", 'with "quotes" and \\ and \x00', "日本語 😀"]


def read(path: Path) -> list[str]:
    return [document.text for document in read_domain(path.parent, path.name.split(".")[0])]


def test_round_trip(tmp_path: Path) -> None:
    documents = [Document("prose", f"id-{i}", text) for i, text in enumerate(TEXTS)]
    entry = write_domain(tmp_path, "prose", documents)
    assert list(read_domain(tmp_path, "prose")) == documents
    assert entry["documents"] == 5
    assert entry["bytes"] == sum(len(text.encode()) for text in TEXTS)
    joined = b"".join(text.encode() + b"\0" for text in TEXTS)
    assert entry["text_sha256"] == hashlib.sha256(joined).hexdigest()


def test_the_same_text_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_domain(tmp_path / folder, "prose", [Document("prose", "0", "text")])
    files = [tmp_path / folder / "prose.jsonl.gz" for folder in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_domains_leave_out_the_training_file(write: Writer) -> None:
    folder = write("b", ["x"]).parent
    write("a", ["x"])
    write(TRAINING, ["x"])
    assert domains(folder) == ["a", "b"]


def test_no_domain_files(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no <domain>\.jsonl\.gz files in .*expected"):
        domains(tmp_path)


def test_empty_texts_are_left_out(write: Writer) -> None:
    assert read(write("a", ["", "x", ""])) == ["x"]


def test_a_domain_that_is_not_there(write: Writer) -> None:
    folder = write("prose", ["x"]).parent
    with pytest.raises(CorpusError, match=r"'code' is not in .*found prose\.jsonl\.gz"):
        list(read_domain(folder, "code"))


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.99])
def test_cut_short(write: Writer, kept: float) -> None:
    path = write("a", [f"{i} {hashlib.sha256(str(i).encode()).hexdigest()}" for i in range(500)])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CorpusError, match=r"a\.jsonl\.gz is cut short or damaged after line \d+"):
        read(path)


def test_not_gzip(write: Writer) -> None:
    path = write("a", ["x"])
    path.write_bytes(b'{"text": "plain"}\n')
    with pytest.raises(CorpusError, match="cut short or damaged"):
        read(path)


@pytest.mark.parametrize("content", [b"", gzip.compress(b"")])
def test_empty(write: Writer, content: bytes) -> None:
    path = write("a", ["x"])
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=r"a\.jsonl\.gz is empty"):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "caf\xe9"}'.encode("latin-1"), r"line 2: not UTF-8 \(byte 0xe9 at 13\)"),
        (b"{'text': 1}", "line 2: not JSON"),
        (b"", "line 2: not JSON"),
        (b'{"contents": "x"}', "line 2: expected a JSON object with a string field 'text'"),
        (b'{"text": 3}', "line 2: expected a JSON object with a string field 'text'"),
        (b'["x"]', "line 2: expected a JSON object with a string field 'text'"),
        (b'{"text": "\\ud83d"}', "line 2: half of a surrogate pair"),
    ],
)
def test_bad_lines(write: Writer, line: bytes, message: str) -> None:
    path = write("a", ["x"])
    path.write_bytes(gzip.compress(b'{"text": "good"}\n' + line + b"\n"))
    with pytest.raises(CorpusError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_nothing_is_written_for_no_documents(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="has no documents"):
        write_domain(tmp_path, "a", [])
    assert list(tmp_path.iterdir()) == []


def test_checked_reading(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no manifest\.json in .*not complete"):
        list(read_checked(tmp_path, "a"))
    entries = {"a": write_domain(tmp_path, "a", [Document("a", "0", "one")])}
    training = write_domain(tmp_path, TRAINING, [Document(TRAINING, "0", "two")])
    write_manifest(tmp_path, "folder", entries, training)
    assert [d.text for d in read_checked(tmp_path, "a")] == ["one"]
    assert [d.text for d in read_checked(tmp_path, TRAINING)] == ["two"]
    with pytest.raises(CorpusError, match="'b' is not in"):
        list(read_checked(tmp_path, "b"))
    write_domain(tmp_path, "a", [Document("a", "0", "another")])
    with pytest.raises(CorpusError, match=r"a\.jsonl\.gz is altered: expected text with sha256"):
        list(read_checked(tmp_path, "a"))
