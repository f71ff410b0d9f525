"""The papers' own text: datasets of the Hugging Face hub, streamed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of the client's HTTP library)
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from ..store import atomic_path
from .documents import TRAINING, CorpusError, Document, write_domain, write_manifest

DomainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class HubSource(BaseModel):
    """One dataset; a plain string is short for a dataset with its text in column ``text``."""

    model_config = ConfigDict(extra="forbid")
    repo: str
    column: str = "text"
    split: str = "train"
    revision: str = "main"

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"repo": value} if isinstance(value, str) else value


class HubCorpus(BaseModel):
    """A corpus of hub datasets.

    Attributes:
        train: the training distribution, a dataset of its own.
        domains: one dataset a domain, named by the Pile subset it is.
        documents: how many documents are taken from each, from its beginning.
    """

    model_config = ConfigDict(extra="forbid")
    train: HubSource
    domains: dict[DomainName, HubSource] = Field(min_length=1)
    documents: PositiveInt


def build_hub_corpus(spec: HubCorpus, out: Path) -> None:
    """Stream every dataset into the corpus folder ``out``: the whole folder, or nothing.

    The manifest holds the commit of each dataset, so that the text can be had again.

    Raises:
        CorpusError: no network, no such dataset, revision, split or column, or no text.
    """
    entries: dict[str, dict[str, object]] = {}
    training: dict[str, object] = {}
    # All names are resolved before anything large is fetched.
    commits = {name: _commit(source) for name, source in _sources(spec)}
    with atomic_path(out) as folder:
        for name, source in _sources(spec):
            documents = _stream(name, source, commits[name], spec.documents)
            entry = write_domain(folder, name, documents)
            entry["sources"] = [{**source.model_dump(), "commit": commits[name]}]
            if name == TRAINING:
                training = entry
            else:
                entry["stands_in_for"] = name
                entries[name] = entry
            print(f"{name}: {entry['documents']} documents, {entry['bytes']} bytes", flush=True)
        write_manifest(folder, "hub", entries, training)


def _sources(spec: HubCorpus) -> list[tuple[str, HubSource]]:
    return [(TRAINING, spec.train), *spec.domains.items()]


def _commit(source: HubSource) -> str:
    """The dataset's commit at the wanted revision; the cheapest question that needs the hub."""
    try:
        commit = HfApi().dataset_info(source.repo, revision=source.revision, timeout=30).sha
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CorpusError(
            f"the hub has no dataset {source.repo!r} that is open to you: check the name in the "
            "corpus's definition, or log in where it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise CorpusError(
            f"the hub's dataset {source.repo!r} has no revision {source.revision!r}"
        ) from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise _unreachable(source, error) from error
    assert commit is not None
    return commit


def _unreachable(source: HubSource, error: Exception) -> CorpusError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CorpusError(
        f"could not fetch dataset {source.repo!r} from the hub: {reason}. Is there a network? "
        "Nothing was kept; run the same command again."
    )


def _stream(domain: str, source: HubSource, commit: str, limit: int) -> Iterator[Document]:
    try:
        import datasets  # seconds to import, and an extra: only where it is used
    except ImportError as error:
        raise CorpusError(
            "corpora of kind `hub` need the package `datasets`: install this package's extra `hub`"
        ) from error
    try:
        stream = datasets.load_dataset(
            source.repo, split=source.split, revision=commit, streaming=True
        )
        for number, record in enumerate(itertools.islice(stream, limit)):
            text = record.get(source.column)
            if not isinstance(text, str):
                raise CorpusError(
                    f"dataset {source.repo!r}, record {number}: expected text in column "
                    f"{source.column!r}, found columns {', '.join(record)}; "
                    "name the right one as `column`"
                )
            # Half a surrogate pair is not text, and cannot be written as UTF-8.
            text = text.encode("utf-8", errors="replace").decode()
            if text:
                yield Document(domain, str(number), text)
    except ValueError as error:
        # An unknown split; the message lists those that exist.
        raise CorpusError(f"dataset {source.repo!r}, split {source.split!r}: {error}") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise _unreachable(source, error) from error
