"""Token contexts out of a corpus folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from susceptibilities.contexts import CorpusContexts
from susceptibilities.corpora.documents import (
    TRAINING,
    CorpusError,
    Document,
    write_domain,
    write_manifest,
)
from susceptibilities.tokens import train_tokenizer

CONTEXT = 16


def documents(domain: str, count: int) -> list[Document]:
    """Documents whose every word begins with the domain's letter."""
    letter = domain.strip("_")[0]
    return [
        Document(domain, str(i), " ".join(f"{letter}{(i * 31 + j) % 97}" for j in range(60)))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([d.text for n in "xyz" for d in documents(n, 20)], 400)


def corpus(folder: Path, sizes: dict[str, int], training: int = 0) -> Path:
    entries = {name: write_domain(folder, name, documents(name, n)) for name, n in sizes.items()}
    extra = write_domain(folder, TRAINING, documents(TRAINING, training)) if training else None
    write_manifest(folder, "folder", entries, extra)
    return folder


def reader(folder: Path, tokenizer: Tokenizer, seed: int = 0) -> CorpusContexts:
    return CorpusContexts(folder, tokenizer, CONTEXT, seed, report=lambda line: None)


def share(contexts: CorpusContexts, rows: np.ndarray, letter: str) -> float:
    texts = [contexts.tokenizer.decode(row.tolist()) for row in rows]
    return sum(letter in text for text in texts) / len(texts)


def test_distribution_is_all_domains_in_proportion(tmp_path: Path, tokenizer: Tokenizer) -> None:
    contexts = reader(corpus(tmp_path, {"xen": 600, "yak": 200}), tokenizer)
    rows = contexts.distribution("base", 300)
    assert rows.shape == (300, CONTEXT)
    assert rows.dtype == np.uint16
    assert share(contexts, rows, "x") == pytest.approx(0.75, abs=0.12)


def test_own_training_dataset_is_the_distribution(tmp_path: Path, tokenizer: Tokenizer) -> None:
    contexts = reader(corpus(tmp_path, {"xen": 100}, training=300), tokenizer)
    assert share(contexts, contexts.distribution("base", 50), "x") == 0
    assert share(contexts, contexts.domain("xen", "probe", 10), "x") == 1


def test_splits_share_nothing_and_the_seed_decides(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = corpus(tmp_path, {"xen": 600, "yak": 200})
    first = reader(folder, tokenizer).distribution("base", 50)
    assert np.array_equal(first, reader(folder, tokenizer).distribution("base", 50))
    assert not np.array_equal(first, reader(folder, tokenizer, seed=1).distribution("base", 50))
    # More rows are the same rows and others: a larger n extends a run's sample.
    assert np.array_equal(first, reader(folder, tokenizer).distribution("base", 80)[:50])


def test_pool_is_capped_and_may_be_smaller(tmp_path: Path, tokenizer: Tokenizer) -> None:
    contexts = reader(corpus(tmp_path, {"xen": 300}), tokenizer)
    assert len(contexts.distribution("sgld", 4, most=10)) == 10
    assert 4 <= len(contexts.distribution("sgld", 4, most=10**6)) < 10**6


def test_too_small(tmp_path: Path, tokenizer: Tokenizer) -> None:
    contexts = reader(corpus(tmp_path, {"xen": 40, "yak": 40}), tokenizer)
    with pytest.raises(CorpusError, match=r"domain 'yak' is too small.*has \d+ .*needed 5000"):
        contexts.domain("yak", "probe", 5000)
    with pytest.raises(CorpusError, match=r"the training distribution is too small"):
        contexts.distribution("base", 5000)


def test_unknown_domain(tmp_path: Path, tokenizer: Tokenizer) -> None:
    contexts = reader(corpus(tmp_path, {"xen": 40}), tokenizer)
    with pytest.raises(CorpusError, match=r"unknown domain 'zoo' .* it has xen"):
        contexts.domain("zoo", "probe", 1)


def test_no_corpus(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(CorpusError, match="build the corpus first"):
        reader(tmp_path, tokenizer)
