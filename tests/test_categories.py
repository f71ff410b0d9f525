"""Token categories on text made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from susceptibilities.categories import CATEGORIES, KINDS, categorize, kinds, repeated_bigrams


def of(*texts: str) -> list[dict[str, bool | str]]:
    """Categories of every token after the first, which stands for the beginning token."""
    strings = sorted(set(texts))
    ids = np.array([[strings.index(text) for text in texts]])
    found = categorize(ids, strings)
    names = kinds(found)[0].tolist()
    return [
        {**{c: bool(found[c][0, t]) for c in CATEGORIES}, "category": names[t]}
        for t in range(len(texts) - 1)
    ]


def names(*texts: str) -> list[str]:
    return [str(row["category"]) for row in of("", *texts)]


def test_parts_of_words():
    assert names(" sus", "cept", "ible", " heads", ".") == [
        "word_start",
        "word_part",
        "word_end",
        "word_start",
        "delimiter",
    ]


def test_a_word_starts_without_a_space_where_no_letter_comes_before():
    text = ("The", "\n", "Re", "turn", "(", "x", ")", "_", "y", "1", "st", " ")
    assert names(*text) == [
        *("word_start", "spacing", "word_start", "word_end", "delimiter", "word_start"),
        *("delimiter", "others", "word_start", "numeric", "word_start", "spacing"),
    ]


def test_a_word_of_one_token_starts_and_does_not_end():
    (row,) = (r for r in of("", "(", "word", ")") if r["category"] == "word_start")
    assert row["word_start"] and not row["word_part"] and not row["word_end"]


def test_the_end_of_a_word_needs_the_next_token():
    assert names(" hou", "se") == ["word_start", "word_part"]
    assert names(" hou", "se", "s") == ["word_start", "word_part", "word_part"]
    assert names(" hou", "se", "2") == ["word_start", "word_end", "numeric"]
    assert of("", " hou", "se", ",")[1]["word_part"] is True


def test_an_apostrophe_belongs_to_the_letters_after_it():
    assert names(" dog", "'s", " tail") == ["word_start", "word_end", "word_start"]
    assert names(" dog", "s", "'", " ") == ["word_start", "word_end", "delimiter", "spacing"]
    assert names("(", "'s", "elect") == ["delimiter", "word_start", "word_part"]


def test_bytes_that_are_no_character_decide_nothing():
    # "são" in bytes: whether the fragments are letters cannot be told from one token.
    assert names(" s", "\\xc3", "\\xa3", "o", ".") == [
        *("word_start", "others", "others", "others", "delimiter"),
    ]
    assert names(" caf", "\\xc3", "x")[2] == "others"
    assert names(" \\xe2\\x80", "a") == ["others", "others"]
    # A combining mark is part of its letter.
    assert names(" e", "\u0301t", " ") == ["word_start", "word_end", "spacing"]


def test_spacing_delimiters_numbers_and_flags():
    assert names("\t", "   ", "\n    ", "12", " 7", ")]", '"', ",", "->", " +", "==") == [
        *("spacing", "spacing", "spacing", "numeric", "numeric", "delimiter", "delimiter"),
        *("delimiter", "others", "others", "others"),
    ]
    rows = of("", "\n    ", "()", " ([", "};", "<", "²", "٣", "–")
    assert [r["newline"] for r in rows] == [True, *[False] * 7]
    assert [r["left_bracket"] for r in rows] == [False, True, True, *[False] * 5]
    assert [r["right_bracket"] for r in rows] == [False, True, False, True, *[False] * 4]
    assert [r["category"] for r in rows[4:]] == ["others", "others", "numeric", "others"]


def test_special_tokens_are_others_and_end_a_word():
    strings = ["<|endoftext|>", " a", "b"]
    found = categorize(np.array([[0, 1, 2, 0, 2]]), strings, special=[0])
    assert kinds(found)[0].tolist() == ["word_start", "word_end", "others", "word_start"]


def test_induction_patterns():
    ids = np.array([[9, 1, 2, 3, 1, 2, 1, 3, 1, 2], [9, 9, 9, 9, 9, 1, 9, 1, 2, 1]])
    found = repeated_bigrams(ids)
    # 1 2 comes back at positions 5 and 9, 3 1 at 8; a run of equal tokens from its fourth on.
    assert np.flatnonzero(found[0] + 0).tolist() == [4, 7, 8]
    assert np.flatnonzero(found[1]).tolist() == [2, 3, 6]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=14))
def test_induction_patterns_are_found_as_by_looking(ids):
    looked = [
        any(ids[k - 1] == ids[t - 1] and ids[k] == ids[t] for k in range(1, t - 1))
        for t in range(1, len(ids))
    ]
    assert repeated_bigrams(np.array([ids]))[0].tolist() == looked


@given(st.lists(st.text(max_size=4), min_size=2, max_size=10))
def test_every_token_has_exactly_one_kind(texts):
    for row in of(*texts):
        held = [kind for kind in KINDS if row[kind]]
        assert row["category"] == held[0]
        # A word's end is a word part too; nothing else overlaps.
        assert len(held) == 1 or held == ["word_end", "word_part"]


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected token ids \(context, position >= 2\)"):
        categorize(np.array([1, 2, 3]), ["a", "b", "c", "d"])
