"""Tokenizer, splits, packing and Algorithm 1."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from susceptibilities.corpora import Document
from susceptibilities.tokens import (
    BOS,
    SPLITS,
    Contexts,
    bos_id,
    encode,
    in_split,
    load_tokenizer,
    mix,
    pack,
    probe_positions,
    token_strings,
    train_tokenizer,
)

TEXTS = [
    "The cat sat on the mat. " * 20,
    "def f(x):\n    return x + 1\n" * 20,
    "ünïcödé 日本 " * 10,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


def documents(*texts: str) -> list[Document]:
    return [Document("domain", str(number), text) for number, text in enumerate(texts)]


# --- tokenizer


def test_size_and_separator(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.token_to_id(BOS) == 0 == bos_id(tokenizer)


def test_training_is_deterministic(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(TEXTS, 300).to_str() == train_tokenizer(TEXTS, 300).to_str()


@given(text=st.text(max_size=60))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = encode(tokenizer, documents(text))
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert 0 not in ids


@given(text=st.text(alphabet=st.characters(max_codepoint=126), max_size=60))
def test_strings_of_tokens_spell_the_text(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = encode(tokenizer, documents(text))
    strings = token_strings(tokenizer)
    assert "".join(strings[number] for number in ids) == text


def test_strings_of_all_tokens(tokenizer: Tokenizer) -> None:
    strings = token_strings(tokenizer)
    assert len(strings) == 300 and strings[0] == BOS
    assert len(set(strings)) == 300, "two tokens never look the same"
    vocabulary = tokenizer.get_vocab()
    assert strings[vocabulary["Ġ"]] == " "
    assert strings[vocabulary["Ã"]] == "\\xc3", "half a character shows its byte"
    "".join(strings).encode("utf-8")  # no lone surrogates


@given(before=st.text(max_size=5), after=st.text(max_size=5))
def test_text_cannot_spell_the_separator(tokenizer: Tokenizer, before: str, after: str) -> None:
    (ids,) = encode(tokenizer, documents(before + BOS + after))
    assert 0 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == before + BOS + after


def test_encoding_does_not_depend_on_batches(tokenizer: Tokenizer) -> None:
    many = documents(*(f"text {i} the mat" for i in range(9)))
    alone = [tokenizer.encode(d.text, add_special_tokens=False).ids for d in many]
    for batch in (1, 4, 9, 100):
        assert list(encode(tokenizer, many, batch)) == alone
    assert list(encode(tokenizer, [])) == []


def test_loading(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        (ids,) = encode(load_tokenizer(path), documents(TEXTS[0]))
        assert [ids] == list(encode(tokenizer, documents(TEXTS[0])))
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "none")


def test_a_tokenizer_without_beginning_token() -> None:
    with pytest.raises(ValueError, match="has no beginning token"):
        bos_id(Tokenizer.from_str('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'))


# --- splits


@given(text=st.text())
def test_every_document_has_one_split(text: str) -> None:
    assert sum(in_split(Document("a", "0", text), split) for split in SPLITS) == 1


def test_proportions() -> None:
    many = documents(*(f"document {i}" for i in range(4000)))
    for split, (low, high) in SPLITS.items():
        share = sum(in_split(document, split) for document in many) / len(many)
        assert abs(share - (high - low)) < 4 * math.sqrt(0.25 / len(many))


def test_the_same_text_has_the_same_split_in_any_domain() -> None:
    copies = [Document("a", "0", "text"), Document("b", "17", "text")]
    assert [{in_split(copy, split) for copy in copies} for split in SPLITS].count({True}) == 1


# --- packing


@given(
    encoded=st.lists(st.lists(st.integers(1, 300), max_size=12), max_size=8),
    context=st.integers(2, 9),
)
def test_packing_loses_nothing_but_the_tail(encoded: list[list[int]], context: int) -> None:
    rows = pack(encoded, context, bos=0)
    assert rows.dtype == np.uint16
    assert rows.shape[1] == context
    assert (rows[:, 0] == 0).all()
    stream = [token for ids in encoded for token in [*ids, 0]]
    kept = rows[:, 1:].flatten().tolist()
    assert kept == stream[: len(kept)]
    assert 0 <= len(stream) - len(kept) < context - 1


def test_packing_stops_at_the_limit() -> None:
    def endless():
        while True:
            yield [1, 2, 3]

    assert pack(endless(), 5, 0, limit=7).shape == (7, 5)


def test_packing_refuses() -> None:
    with pytest.raises(ValueError, match="token id 65536 does not fit"):
        pack([[65536]], 4, 0)
    with pytest.raises(ValueError, match="at least one token, got 1"):
        pack([[1, 2]], 1, 0)


# --- Algorithm 1 (Baker C.4)

shares = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)
lengths = st.integers(0, 300)


def contexts(length: int, first: int, width: int = 4) -> Contexts:
    return (first + np.arange(length * width, dtype=np.uint16)).reshape(length, width)


def algorithm_1(base: Contexts, probe: Contexts, delta_h: float) -> list[tuple[str, int]]:
    """The pseudocode as printed, in exact arithmetic: which sample each position takes."""
    share = Fraction(delta_h).limit_denominator(10**6)
    mixed = []
    probe_count = 0
    j = 0
    while j < len(base) and j < len(probe):
        target_probe_count = math.floor((j + 1) * share)
        if probe_count < target_probe_count:
            mixed.append(("probe", j))
            probe_count += 1
        else:
            mixed.append(("base", j))
        j += 1
    return mixed


@given(n=lengths, m=lengths, delta_h=shares)
def test_mixing_is_algorithm_1(n: int, m: int, delta_h: float) -> None:
    base, probe = contexts(n, 0), contexts(m, 30_000)
    mixed = mix(base, probe, delta_h)
    expected = algorithm_1(base, probe, delta_h)
    assert len(mixed) == len(expected)
    for row, (source, j) in zip(mixed, expected, strict=True):
        np.testing.assert_array_equal(row, (probe if source == "probe" else base)[j])


@given(n=lengths, delta_h=shares)
def test_mixing_with_itself_is_the_identity(n: int, delta_h: float) -> None:
    np.testing.assert_array_equal(mix(contexts(n, 7), contexts(n, 7), delta_h), contexts(n, 7))


@given(n=lengths, delta_h=shares)
def test_count_and_spacing(n: int, delta_h: float) -> None:
    positions = probe_positions(n, delta_h)
    share = Fraction(delta_h).limit_denominator(1000)
    assert len(positions) == math.floor(n * share)
    # Evenly spread: every beginning has its share, so gaps are 1 / delta_h rounded either way.
    for k, position in enumerate(positions, 1):
        assert position + 1 == math.ceil(k / share)
    assert set(np.diff(positions)) <= (
        {math.floor(1 / share), math.ceil(1 / share)} if share else set()
    )


@given(n=lengths, m=lengths, delta_h=shares)
def test_a_longer_dataset_begins_the_same(n: int, m: int, delta_h: float) -> None:
    short, long = sorted((n, m))
    positions = probe_positions(long, delta_h)
    np.testing.assert_array_equal(positions[positions < short], probe_positions(short, delta_h))


@pytest.mark.parametrize("delta_h", [0.1, 0.3, 0.7, 0.9, 1 / 3])
def test_binary_fractions_do_not_lose_a_sample(delta_h: float) -> None:
    share = Fraction(delta_h).limit_denominator(1000)
    assert len(probe_positions(100_000, delta_h)) == math.floor(100_000 * share)


def test_the_ends() -> None:
    base, probe = contexts(9, 0), contexts(9, 500)
    np.testing.assert_array_equal(mix(base, probe, 0.0), base)
    np.testing.assert_array_equal(mix(base, probe, 1.0), probe)
    np.testing.assert_array_equal(base, contexts(9, 0))


def test_mixing_refuses() -> None:
    base = contexts(9, 0)
    for delta_h in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            mix(base, base, delta_h)
    with pytest.raises(ValueError, match="contexts of 4 tokens with contexts of 3"):
        mix(base, contexts(9, 0, 3), 0.1)
