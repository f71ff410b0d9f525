"""Corpora of a pretended hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from huggingface_hub import errors
from pydantic import ValidationError

from susceptibilities.corpora import (
    TRAINING,
    CorpusError,
    HubCorpus,
    HubSource,
    build_hub_corpus,
    domains,
    hub,
    read_checked,
)
from susceptibilities.store import read_json

SPEC = HubCorpus.model_validate(
    {
        "train": {"repo": "lab/sample", "column": "contents"},
        "domains": {"github": "lab/pile-github", "pile-cc": {"repo": "lab/pile-cc"}},
        "documents": 3,
    }
)


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    # Which HTTP library the hub's client stands on depends on its version.
    library = __import__(hub.HTTPError.__module__.split(".")[0])
    request = library.Request("GET", "https://hub.example")
    return kind(f"{status} from the hub", response=library.Response(status, request=request))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Datasets by name; a stream that holds an exception raises it there."""
    state = SimpleNamespace(
        data={
            "lab/sample": [{"contents": f"training {i}"} for i in range(9)],
            "lab/pile-github": [{"text": f"code {i}", "meta": 0} for i in range(9)],
            "lab/pile-cc": [{"text": "web \ud800"}, {"text": ""}, {"text": "page"}],
        },
        failure=None,
    )

    class Api:
        def dataset_info(self, repo: str, revision: str, timeout: float) -> SimpleNamespace:
            if state.failure is not None:
                raise state.failure
            if repo not in state.data:
                raise http_error(errors.RepositoryNotFoundError, 401)
            if revision != "main":
                raise http_error(errors.RevisionNotFoundError, 404)
            return SimpleNamespace(sha=f"commit of {repo}")

    def load_dataset(repo: str, split: str, revision: str, streaming: bool) -> Iterator[Any]:
        assert streaming
        assert revision == f"commit of {repo}"
        if split != "train":
            raise ValueError(f'Bad split: {split}. Available splits: ["train"]')

        def stream() -> Iterator[Any]:
            for record in state.data[repo]:
                if isinstance(record, Exception):
                    raise record
                yield record

        return stream()

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def test_a_hub_corpus(pretended: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "pile"
    build_hub_corpus(SPEC, out)
    assert domains(out) == ["github", "pile-cc"]
    assert [d.text for d in read_checked(out, TRAINING)] == [f"training {i}" for i in range(3)]
    assert [d.text for d in read_checked(out, "github")] == ["code 0", "code 1", "code 2"]
    assert [d.text for d in read_checked(out, "pile-cc")] == ["web ?", "page"]
    manifest = read_json(out / "manifest.json")
    assert manifest["kind"] == "hub"
    assert manifest["domains"]["github"]["stands_in_for"] == "github"
    (source,) = manifest["training"]["sources"]
    assert source["repo"] == "lab/sample"
    assert source["commit"] == "commit of lab/sample"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repo": "lab/none"}, "no dataset 'lab/none'"),
        ({"repo": "lab/pile-cc", "revision": "v9"}, "'lab/pile-cc' has no revision 'v9'"),
        ({"repo": "lab/pile-cc", "split": "test"}, "split 'test': .*Available splits"),
        (
            {"repo": "lab/pile-github", "column": "contents"},
            "expected text in column 'contents', found columns text, meta",
        ),
        ({"repo": "lab/pile-github", "column": "meta"}, "expected text in column 'meta'"),
    ],
)
def test_a_wrong_definition(
    pretended: SimpleNamespace, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    wrong = SPEC.model_copy(
        update={"domains": {**SPEC.domains, "wrong": HubSource.model_validate(change)}}
    )
    with pytest.raises(CorpusError, match=message):
        build_hub_corpus(wrong, tmp_path / "pile")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "failure",
    [
        hub.HTTPError("Name or service not known"),
        errors.OfflineModeIsEnabled("offline mode is enabled"),
        ConnectionError("connection refused"),
        http_error(errors.HfHubHTTPError, 503),
    ],
)
@pytest.mark.parametrize("when", ["before", "within"])
def test_no_network(
    pretended: SimpleNamespace, tmp_path: Path, failure: Exception, when: str
) -> None:
    if when == "before":
        pretended.failure = failure
    else:
        pretended.data["lab/pile-cc"].append(failure)
        pretended.data["lab/pile-cc"].pop(1)
    with pytest.raises(CorpusError, match=r"could not fetch dataset .*Is there a network\?"):
        build_hub_corpus(SPEC, tmp_path / "pile")
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_text(pretended: SimpleNamespace, tmp_path: Path) -> None:
    pretended.data["lab/pile-cc"] = [{"text": ""}]
    with pytest.raises(CorpusError, match="domain 'pile-cc' has no documents"):
        build_hub_corpus(SPEC, tmp_path / "pile")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"domains": {}},
        {"domains": {"../github": "lab/pile-github"}},
        {"domains": {TRAINING: "lab/pile-github"}},
        {"documents": 0},
        {"unknown": 1},
        {"train": {"repo": "x", "colum": "text"}},
    ],
)
def test_definitions_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HubCorpus.model_validate({**SPEC.model_dump(), **change})
