"""Sequences of tokens that come again in their context: where they are, found without choosing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from susceptibilities.jackknife import Array

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

# A predicted token with the two before it: what an induction head has to see again.
NGRAM = 3
# For the highlighted example: instances wanted, and fewer where no sequence has so many.
INSTANCES = (3, 2)


@dataclass(frozen=True)
class Repeats:
    """Tokens that end an n-gram which their context has had before.

    Attributes:
        first: token index of the first instance's last token, (pair,).
        again: that of a later instance's, which does not overlap the one before, (pair,).
        number: which instance the later one is, from 2, (pair,).
        seen: tokens that end an n-gram seen before, overlapping ones too, (token,).
    """

    first: Ids
    again: Ids
    number: Ids
    seen: Mask


def find_repeats(ids: Ids, size: int = NGRAM) -> Repeats:
    """All repeats of n-grams within the contexts (context, length) of predicted tokens.

    Token index = context * lengths + place in the context. An n-gram of one token repeated
    is left out: a run of spaces is no sequence.
    """
    contexts, lengths = ids.shape
    pairs: list[tuple[int, int, int]] = []
    seen = np.zeros(ids.size, dtype=bool)
    for context in range(contexts):
        row = ids[context].tolist()
        start = context * lengths
        known: dict[tuple[int, ...], list[int]] = {}  # n-gram -> first end, last end, instances
        for end in range(size - 1, lengths):
            gram = tuple(row[end - size + 1 : end + 1])
            if len(set(gram)) == 1:
                continue
            before = known.setdefault(gram, [end, end, 1])
            if before[0] == end:
                continue
            seen[start + end] = True
            if end - before[1] >= size:
                before[1:] = [end, before[2] + 1]
                pairs.append((start + before[0], start + end, before[2]))
    table = np.array(pairs, dtype=np.int64).reshape(-1, 3)
    return Repeats(table[:, 0], table[:, 1], table[:, 2], seen)


def mean_difference(values: Array, repeats: Repeats, chosen: Mask, keep: Mask) -> Array:
    """Mean of later minus first over the chosen pairs in the contexts kept, (...,).

    NaN where no pair is left.
    """
    kept = chosen & keep[repeats.again]
    if not kept.any():
        return np.full(values.shape[:-1], np.nan)
    return (values[..., repeats.again[kept]] - values[..., repeats.first[kept]]).mean(-1)


def without_length(values: Array, cells: Ids, fresh: Mask, keep: Mask) -> Array:
    """Values minus the mean of the tokens in the same cell that repeat nothing, (..., token).

    Args:
        cells: probe and bin of length as one number, (token,).
        fresh: tokens that end no n-gram seen before.
    """
    used = fresh & keep
    count = np.bincount(cells[used], minlength=int(cells.max()) + 1)
    flat = values.reshape(-1, values.shape[-1])
    result = np.empty_like(flat)
    for row, out in zip(flat, result, strict=True):
        total = np.bincount(cells[used], row[used], len(count))
        # A cell without such tokens (tiny samples only) takes the mean of all.
        mean = np.where(count > 0, total / np.maximum(count, 1), row[used].mean())
        out[:] = row - mean[cells]
    return result.reshape(values.shape)


@dataclass(frozen=True)
class Example:
    """The sequence that is shown: in which context, where it begins each time, how long it is.

    Attributes:
        starts: places of the first tokens among the context's predicted tokens, from 0.
    """

    context: int
    starts: tuple[int, ...]
    length: int


def longest_repeat(ids: Ids, least: int = NGRAM) -> Example | None:
    """The longest sequence that comes three times without overlap in one context.

    At least half of its tokens are distinct, so that runs and tables of dashes do not win. Of
    equally long ones that with the most instances, then the first in the order of the contexts.
    If no sequence of ``least`` tokens comes three times, the longest that comes twice; None if
    there is none.

    Args:
        ids: (context, length) of predicted tokens.
    """
    for times in INSTANCES:
        if not _instances(ids, least, times, distinct=False):
            continue
        # A part of a repeat repeats too, so the longest length can be found by halving ...
        low, high = least, ids.shape[1] // times
        while low < high:
            middle = (low + high + 1) // 2
            if _instances(ids, middle, times, distinct=False):
                low = middle
            else:
                high = middle - 1
        # ... but a part of it may have fewer distinct tokens: those are sought one by one.
        for length in range(low, least - 1, -1):
            found = _instances(ids, length, times, distinct=True)
            if found:
                return max(found, key=lambda example: (len(example.starts), -example.context))
    return None


def _instances(ids: Ids, length: int, times: int, distinct: bool) -> list[Example]:
    """Sequences of a length with at least so many instances, in order; the first of a context."""
    width = ids.dtype.itemsize
    found = []
    for context, row in enumerate(ids):
        text = row.tobytes()
        starts: dict[bytes, list[int]] = {}
        for start in range(len(row) - length + 1):
            places = starts.setdefault(text[start * width : (start + length) * width], [])
            if not places or start - places[-1] >= length:
                places.append(start)
        found += [
            Example(context, tuple(places), length)
            for places in starts.values()
            if len(places) >= times and (not distinct or _varied(row[places[0] :][:length]))
        ]
    return found


def _varied(sequence: Sequence[int] | Ids) -> bool:
    return 2 * len(set(np.asarray(sequence).tolist())) >= len(sequence)
