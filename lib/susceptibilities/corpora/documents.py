"""Documents and the folder format that every corpus is brought to.

A corpus on disk is a folder of ``<domain>.jsonl.gz`` files, one JSON object with a ``text``
field a line, and a ``manifest.json`` that says where each file came from. Where the training
distribution is a dataset of its own (and not all domains together) it is one more such file,
``_training.jsonl.gz``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..store import atomic_path, read_json, write_json

MANIFEST = "manifest.json"
# Text that was itself sampled by its hash, as datasets often are, would otherwise all fall into
# the same splits.
SPLIT_SALT = "susceptibilities"
SUFFIX = ".jsonl.gz"
TRAINING = "_training"
_UNPAIRED = re.compile(r"[\ud800-\udfff]")


class CorpusError(Exception):
    """A corpus cannot be read or fetched; the message says what, where and what to do."""


@dataclass(frozen=True)
class Document:
    """One document: the unit that a train/probe split never divides."""

    domain: str
    id: str
    text: str
    salt: str = ""

    @property
    def position(self) -> float:
        """A number in [0, 1) that decides the document's split: it depends on the text and the
        corpus's salt alone.
        """
        digest = hashlib.sha256((self.salt + self.text).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


def domains(folder: Path) -> list[str]:
    """Names of the domains in a corpus folder, sorted; the training file is not a domain."""
    found = sorted(path.name.removesuffix(SUFFIX) for path in folder.glob("*" + SUFFIX))
    found = [name for name in found if name and name != TRAINING]
    if not found:
        raise CorpusError(
            f"no <domain>{SUFFIX} files in {folder}: expected one gzip file of JSON lines with a "
            "`text` field for each domain"
        )
    return found


def read_domain(folder: Path, domain: str, field: str = "text") -> Iterator[Document]:
    """Stream the documents of one domain, in file order.

    Raises:
        CorpusError: the file is absent, empty, cut short, not UTF-8, or not JSON lines with
            a text field; the message names the file and the line.
    """
    path = folder / f"{domain}{SUFFIX}"
    if not path.exists():
        raise CorpusError(
            f"domain {domain!r} is not in {folder}: expected {path.name}; "
            f"found {', '.join(p.name for p in sorted(folder.glob('*' + SUFFIX))) or 'nothing'}"
        )
    number = 0
    try:
        with gzip.open(path, "rb") as lines:
            for number, raw in enumerate(lines, 1):
                line = raw.decode("utf-8")
                record = json.loads(line)
                text = record.get(field) if isinstance(record, dict) else None
                if not isinstance(text, str):
                    raise CorpusError(
                        f"{path}, line {number}: expected a JSON object with a string field "
                        f"{field!r}, found {line[:60]!r}"
                    )
                if _UNPAIRED.search(text):
                    raise CorpusError(
                        f"{path}, line {number}: half of a surrogate pair (\\ud800 to \\udfff), "
                        "which is not text; write the character whole"
                    )
                if text:
                    yield Document(domain, str(record.get("id", number - 1)), text)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(
            f"{path} is cut short or damaged after line {number} ({error}); "
            "delete it and fetch it again"
        ) from error
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}, line {number}: not UTF-8 (byte {error.object[error.start]:#04x} at "
            f"{error.start}); re-encode the text as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path}, line {number}: not JSON ({error.msg})") from error
    if number == 0:
        raise CorpusError(f"{path} is empty: expected at least one document")


def read_checked(folder: Path, domain: str) -> Iterator[Document]:
    """Stream a domain of a corpus built here, holding its text against the manifest's hash.

    Raises:
        CorpusError: as `read_domain`; there is no manifest; or, after the last document, the
            text is not the one that the manifest was written for.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise CorpusError(f"no {MANIFEST} in {folder}: the corpus is not complete; build it again")
    manifest = read_json(path)
    entry = manifest["training"] if domain == TRAINING else manifest["domains"].get(domain)
    if entry is None:
        raise CorpusError(f"domain {domain!r} is not in {path}; build the corpus again")
    text_hash = hashlib.sha256()
    salt = manifest.get("split_salt", "")
    for document in read_domain(folder, domain):
        text_hash.update(document.text.encode() + b"\0")
        yield replace(document, salt=salt)
    if text_hash.hexdigest() != entry["text_sha256"]:
        raise CorpusError(
            f"{folder / (domain + SUFFIX)} is altered: expected text with sha256 "
            f"{entry['text_sha256']} ({MANIFEST}), found {text_hash.hexdigest()}; "
            "delete the corpus folder and build it again"
        )


def write_domain(folder: Path, domain: str, documents: Iterable[Document]) -> dict[str, object]:
    """Write one domain's file (atomically, with no time stamp) and return its manifest entry."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{domain}{SUFFIX}"
    count = size = 0
    text_hash = hashlib.sha256()
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=6) as packed,
    ):
        for document in documents:
            encoded = document.text.encode()
            line = json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False)
            packed.write(line.encode() + b"\n")
            text_hash.update(encoded + b"\0")
            count += 1
            size += len(encoded)
        if count == 0:
            raise CorpusError(f"domain {domain!r} has no documents; nothing was written")
    # The hash of the text, not of the file: gzip's bytes depend on the zlib it was built with.
    return {"documents": count, "bytes": size, "text_sha256": text_hash.hexdigest()}


def write_manifest(
    folder: Path,
    kind: str,
    entries: dict[str, dict[str, object]],
    training: dict[str, object] | None = None,
    split_salt: str = SPLIT_SALT,
) -> None:
    """Write the corpus manifest beside the domain files: the last step of a build.

    ``training`` is the entry of the training distribution where it is a dataset of its own,
    null where it is all domains together. ``split_salt`` enters every document's position.
    """
    manifest = {"kind": kind, "split_salt": split_salt, "domains": entries, "training": training}
    write_json(folder / MANIFEST, manifest)
