"""The user's own folder as a corpus."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from susceptibilities.corpora import (
    TRAINING,
    CorpusError,
    domains,
    read_checked,
    use_folder_corpus,
)
from susceptibilities.store import file_sha256, read_json
from susceptibilities.tokens import SPLITS, in_split

Writer = Callable[..., Path]


def test_a_folder_becomes_a_corpus(write: Writer, tmp_path: Path) -> None:
    source = write("github", ["def f(): ...", "x = 1"], field="contents")
    write("freelaw", ["the court"], field="contents")
    out = tmp_path / "corpus"
    use_folder_corpus(source.parent, out, "contents")
    assert domains(out) == ["freelaw", "github"]
    assert [d.text for d in read_checked(out, "github")] == ["def f(): ...", "x = 1"]
    manifest = read_json(out / "manifest.json")
    assert manifest["kind"] == "folder"
    assert manifest["training"] is None
    assert manifest["domains"]["github"] == {
        "documents": 2,
        "bytes": 17,
        "text_sha256": manifest["domains"]["github"]["text_sha256"],
        "sources": [{"file": "github.jsonl.gz", "sha256": file_sha256(source)}],
        "stands_in_for": "github",
    }


def test_a_training_file(write: Writer, tmp_path: Path) -> None:
    source = write("github", ["x"])
    write(TRAINING, ["y"])
    use_folder_corpus(source.parent, tmp_path / "corpus")
    assert [d.text for d in read_checked(tmp_path / "corpus", TRAINING)] == ["y"]
    assert read_json(tmp_path / "corpus" / "manifest.json")["training"]["documents"] == 1


def test_again_replaces_what_was_there(write: Writer, tmp_path: Path) -> None:
    first, out = write("old", ["x"], folder="first"), tmp_path / "corpus"
    use_folder_corpus(first.parent, out)
    use_folder_corpus(write("new", ["y"], folder="second").parent, out)
    assert domains(out) == ["new"]


def test_a_bad_file_leaves_nothing(write: Writer, tmp_path: Path) -> None:
    good = write("a", ["x" * 100])
    bad = write("b", ["y" * 100])
    bad.write_bytes(bad.read_bytes()[:20])
    with pytest.raises(CorpusError, match=r"b\.jsonl\.gz is cut short"):
        use_folder_corpus(good.parent, tmp_path / "corpus")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    assert sorted(path.name for path in good.parent.iterdir()) == [good.name, bad.name]


def test_a_failed_rebuild_keeps_the_old(write: Writer, tmp_path: Path) -> None:
    source, out = write("a", ["x"]), tmp_path / "corpus"
    use_folder_corpus(source.parent, out)
    source.write_bytes(b"")
    with pytest.raises(CorpusError, match="is empty"):
        use_folder_corpus(source.parent, out)
    assert [d.text for d in read_checked(out, "a")] == ["x"]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="does not exist"):
        use_folder_corpus(tmp_path / "none", tmp_path / "corpus")
    (tmp_path / "bare").mkdir()
    with pytest.raises(CorpusError, match=r"no <domain>\.jsonl\.gz files"):
        use_folder_corpus(tmp_path / "bare", tmp_path / "corpus")


def test_not_onto_itself(write: Writer) -> None:
    folder = write("a", ["x"]).parent
    with pytest.raises(CorpusError, match="overwrite itself"):
        use_folder_corpus(folder, folder / ".." / folder.name)


@pytest.mark.parametrize("name", ["manifest.json", "MANIFEST.json"])
@pytest.mark.parametrize("nested", [True, False])
def test_promised_hashes(write: Writer, tmp_path: Path, name: str, nested: bool) -> None:
    source, out = write("a", ["x"]), tmp_path / "corpus"

    def promise(entries: dict[str, dict[str, str]]) -> None:
        value = {"domains": entries} if nested else entries
        (source.parent / name).write_text(json.dumps(value))

    promise({"a": {"sha256": file_sha256(source)}})
    use_folder_corpus(source.parent, out)
    promise({"a": {"sha256": "0" * 64}})
    with pytest.raises(CorpusError, match=r"a\.jsonl\.gz is altered: .* sha256 0{64}, found"):
        use_folder_corpus(source.parent, out)
    promise({"b": {"sha256": "0" * 64}})
    with pytest.raises(CorpusError, match=r"the manifest names b, but there is no b\.jsonl\.gz"):
        use_folder_corpus(source.parent, out)
    (source.parent / name).write_text("{")
    with pytest.raises(CorpusError, match="is not JSON"):
        use_folder_corpus(source.parent, out)


def test_text_that_was_sampled_by_its_hash_still_reaches_every_split(tmp_path: Path) -> None:
    texts = [f"document number {i} of a sample" for i in range(2000)]
    sampled = [t for t in texts if hashlib.sha256(t.encode()).digest()[0] < 128][:400]
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    with gzip.open(source / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in sampled)
    use_folder_corpus(source, out)
    counts = {
        split: sum(in_split(document, split) for document in read_checked(out, "a"))
        for split in SPLITS
    }
    assert sum(counts.values()) == 400
    assert all(counts[split] > 20 for split in ("sgld", "base", "probe"))
