"""Categories of a predicted token in its context, on decoded strings.

The papers name the categories and do not define them; the definitions are those below. They are
for byte-level BPE, where a space belongs to the word after it, and they look at three tokens: the
one before, the predicted one (y), and the one after.

A *word* is a run of letters (Unicode letters and combining marks). A leading space, and an
apostrophe directly before a letter in the same token ("'s"), belong to the letters after them.
A token whose bytes are no whole characters by themselves is shown as ``\\xNN``; whether it is part
of a letter is not known, so it decides nothing: next to it no word starts or ends, and it is
itself in ``others``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import category as unicode_category

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .per_token import PerToken
from .store import read_json
from .tokens import load_tokenizer, token_strings

Mask = NDArray[np.bool_]

# The exclusive category is the first of these that applies. Only a word's end, which is a word
# part too, ever meets two; the order of the rest changes nothing.
KINDS = ("spacing", "numeric", "delimiter", "word_end", "word_part", "word_start", "others")
# May apply beside any kind.
FLAGS = ("induction", "newline", "left_bracket", "right_bracket")
CATEGORIES = (*KINDS[:-1], *FLAGS, "others")

TITLES = {
    "spacing": "spacing",
    "numeric": "numeric",
    "delimiter": "delimiter",
    "word_end": "word end",
    "word_part": "word part",
    "word_start": "word start",
    "others": "others",
    "induction": "induction pattern",
    "newline": "newline",
    "left_bracket": "left bracket",
    "right_bracket": "right bracket",
}

LEFT_BRACKETS = "([{"
RIGHT_BRACKETS = ")]}"
QUOTES = "\"'`“”‘’«»„"
SEPARATORS = ",;:.!?…"
DELIMITERS = frozenset(LEFT_BRACKETS + RIGHT_BRACKETS + QUOTES + SEPARATORS)
_APOSTROPHES = "'’"
_BYTE = re.compile(r"\\x[0-9a-f]{2}")
_BYTE_AT_END = re.compile(r"\\x[0-9a-f]{2}$")

# What a token shows at one of its edges.
_OTHER, _LETTER, _UNKNOWN = 0, 1, 2


def _is_letter(character: str) -> bool:
    return unicode_category(character)[0] in "LM"


def _first(string: str) -> int:
    """What a token begins with, its leading space included in a following word's letters."""
    if _BYTE.match(string):
        return _UNKNOWN
    if string[:1] in (*_APOSTROPHES,) and len(string) > 1 and _is_letter(string[1]):
        return _LETTER
    return _LETTER if string and _is_letter(string[0]) else _OTHER


def _last(string: str) -> int:
    if _BYTE_AT_END.search(string):
        return _UNKNOWN
    return _LETTER if string and _is_letter(string[-1]) else _OTHER


def _form(string: str) -> dict[str, bool]:
    """What is known from the token alone."""
    bare = string.strip()
    fragment = bool(_BYTE.search(string))
    letters = any(_is_letter(c) for c in bare)
    digits = any(c.isdecimal() for c in bare)
    return {
        "spacing": bool(string) and not bare,
        "newline": "\n" in string or "\r" in string,
        "numeric": digits and not letters and not fragment,
        "delimiter": not (letters or digits or fragment) and not DELIMITERS.isdisjoint(bare),
        "left_bracket": any(c in LEFT_BRACKETS for c in string),
        "right_bracket": any(c in RIGHT_BRACKETS for c in string),
        "spaced_word": not fragment and string[:1].isspace() and _first(bare) == _LETTER,
        "word": not fragment and _first(string) == _LETTER,
    }


def repeated_bigrams(ids: NDArray[np.integer]) -> Mask:
    """Whether a token ends a bigram that occurred before in the same context.

    The induction pattern A B ... A B of the papers, at its second B: y at position t counts if
    x_{k-1} = x_{t-1} and x_k = y for some k <= t - 2, so that the two occurrences share no token
    ("A A A" is none, "A A A A" is one at its end).

    Args:
        ids: token ids, (context, T).

    Returns:
        (context, T - 1), of the tokens from position 1 on.
    """
    wide = ids.astype(np.int64)
    pairs = wide[:, :-1] * (int(wide.max(initial=0)) + 1) + wide[:, 1:]
    order = np.argsort(pairs, axis=1, kind="stable")
    ranked = np.take_along_axis(pairs, order, 1)
    fresh = np.ones(ranked.shape, dtype=bool)
    fresh[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    # The sort is stable: the first of equal pairs is the earliest in the context.
    start = np.maximum.accumulate(np.where(fresh, np.arange(ranked.shape[1]), 0), axis=1)
    earliest = np.empty_like(order)
    np.put_along_axis(earliest, order, np.take_along_axis(order, start, 1), 1)
    return earliest <= np.arange(pairs.shape[1]) - 2


def categorize(
    ids: NDArray[np.integer], strings: Sequence[str], special: Sequence[int] = ()
) -> dict[str, Mask]:
    """Categories of every predicted token.

    Args:
        ids: token ids of whole contexts, (context, T), the beginning token included.
        strings: the vocabulary, each token decoded by itself.
        special: ids of tokens that are no text (the beginning token, which also separates
            documents). They have the category ``others`` and end a word.

    Returns:
        Name in `CATEGORIES` -> (context, T - 1), of the tokens from position 1 on:

        - ``spacing``: white space only (spaces, tabs, newlines).
        - ``numeric``: a digit and no letter.
        - ``delimiter``: a bracket ``()[]{}``, a quote or one of ``,;:.!?…``, perhaps with other
          punctuation, and no letter or digit. Angle brackets compare as often as they enclose,
          and are not among them.
        - ``word_start``: y begins with a letter (after a leading space), and no letter comes
          directly before it: a leading space, or a token before it that ends in something else.
          A word of one token is a word start.
        - ``word_part``: y begins with a letter and the token before it ends with one, without a
          space between them: y continues a word.
        - ``word_end``: the word part with which the word ends: y ends with a letter, and the
          token after it begins with none. At the last position of a context, where the next
          token is not known, it is false.
        - ``induction``: see `repeated_bigrams`.
        - ``newline``, ``left_bracket``, ``right_bracket``: y contains one.
        - ``others``: none of `KINDS` before it: operators and other symbols, fragments of
          characters, special tokens.
    """
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(f"expected token ids (context, position >= 2), found shape {ids.shape}")
    texts = ["" if i in set(special) else text for i, text in enumerate(strings)]
    rows = [_form(text) for text in texts]
    form = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    first, last = (np.array([edge(text) for text in texts]) for edge in (_first, _last))
    before, y = ids[:, :-1], ids[:, 1:]
    found = {
        name: form[name][y]
        for name in ("spacing", "numeric", "delimiter", "newline", "left_bracket", "right_bracket")
    }
    starts = form["word"][y]
    found["word_start"] = form["spaced_word"][y] | (starts & (last[before] == _OTHER))
    found["word_part"] = starts & (last[before] == _LETTER)
    ended = np.zeros(y.shape, dtype=bool)
    ended[:, :-1] = first[y[:, 1:]] == _OTHER
    found["word_end"] = found["word_part"] & (last[y] == _LETTER) & ended
    found["induction"] = repeated_bigrams(ids)
    known = np.any([found[kind] for kind in KINDS[:-1]], axis=0)
    return {name: found[name] if name != "others" else ~known for name in CATEGORIES}


def kinds(found: Mapping[str, Mask]) -> NDArray[np.str_]:
    """The exclusive category: the first of `KINDS` that applies."""
    return np.select([found[kind] for kind in KINDS], KINDS, default="others")


def category_table(data: PerToken, results: Path) -> pl.DataFrame:
    """Categories of the tokens of a run, row by row as in ``data.tokens``.

    Args:
        results: folder of one scale.

    Returns:
        ``index``, a boolean column for every name in `CATEGORIES`, and ``category``, the
        exclusive one (of `KINDS`).
    """
    tokenizer = load_tokenizer(Path(read_json(results / "model" / "model.json")["path"]))
    strings = token_strings(tokenizer)
    columns: dict[str, list[NDArray]] = {name: [] for name in (*CATEGORIES, "category", "token")}
    for probe in data.probes:
        ids = data.context_ids(results, probe)
        found = categorize(ids, strings, special=np.unique(ids[:, 0]).tolist())
        for name, mask in found.items():
            columns[name].append(mask.ravel())
        columns["category"].append(kinds(found).ravel())
        columns["token"].append(ids[:, 1:].ravel())
    table = pl.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()})
    if not np.array_equal(table["token"].to_numpy(), data.tokens["token"].to_numpy()):
        raise ValueError(
            f"{results}: the contexts in tokens/ are not those of the per-token susceptibilities; "
            "build the latter again"
        )
    return table.drop("token").select(data.tokens["index"], pl.all())
