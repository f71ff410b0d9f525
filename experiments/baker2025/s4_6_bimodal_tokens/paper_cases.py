"""The tokens that Baker 4.6 and Appendix G show, and where their occurrences are in a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from mode_statistics import Mask, Sample
from numpy.typing import NDArray

from susceptibilities.occurrences import LATEX, NO_URL, PART, URL, WORD, Texts, kinds, spellings
from susceptibilities.per_token import PerToken
from susceptibilities.subsets import absent, place_of
from susceptibilities.visible import visible

# Fewer occurrences are not put to any test, or not even drawn; nor are those of fewer contexts.
MIN_COUNT, MIN_DRAWN, MIN_CONTEXTS = 20, 10, 5


@dataclass(frozen=True)
class Case:
    """A token of the paper, for one head and one subset of the Pile.

    Attributes:
        of: which kinds its contexts are told apart by, see `occurrences.kinds`.
        high, low: the kinds that the paper finds in the mode with the larger values, and in the
            other.
    """

    name: str
    word: str
    head: str
    subset: str
    of: str = ""
    high: str = ""
    low: str = ""

    @property
    def tested(self) -> bool:
        """Whether the paper says that it is bimodal."""
        return bool(self.of)


CASES = (
    Case("to_arxiv", "to", "0:0", "arxiv", "word", WORD, LATEX),
    Case("slash_hackernews", "/", "1:7", "hackernews", "slash", URL, NO_URL),
    Case("to_github", "to", "0:0", "github-all", "word", WORD, PART),
    Case("slash_enron", "/", "1:7", "enron_emails", "slash", URL, NO_URL),
    Case("space_00", " ", "0:0", "github-all"),
    Case("space_01", " ", "0:1", "github-all"),
)


@dataclass(frozen=True)
class Found:
    """A case in a run.

    Attributes:
        probe: the domain; empty where there is none.
        place: "paper" (the subset itself), "stand-in", or "other": a domain that does not stand
            in for the subset, where the same token is frequent. No verdict is given on that.
        indices: rows of the token table, (n,); ``kinds`` of each.
        reason: why nothing is measured, or why this is not the paper's subset; else empty.
    """

    case: Case
    probe: str
    place: str
    spelled: tuple[str, ...]
    indices: NDArray[np.int64]
    kinds: NDArray[np.str_]
    reason: str

    @property
    def enough(self) -> bool:
        return bool(self.probe)

    @property
    def judged(self) -> bool:
        """Whether this is the subset of the claim, or its stand-in."""
        return self.enough and self.place != "other"

    def is_kind(self, kind: str) -> Mask:
        return self.kinds == kind


def locate(case: Case, data: PerToken, texts: Texts, domains: Mapping[str, Any]) -> Found:
    """Find a case's token in the domain that takes the subset's place, or in another one."""
    ids = spellings(case.word, texts.strings)
    spelled = tuple(visible(texts.strings[number]) for number in ids)
    nothing = Found(case, "", "", spelled, np.zeros(0, np.int64), np.zeros(0, np.str_), "")
    name = visible(case.word)
    if not ids:
        return _because(nothing, f"the tokenizer has no token ‘{name}’")
    if case.head not in data.components:
        return _because(nothing, f"the model has no head {case.head}")
    rows = data.tokens.with_row_index("row").filter(pl.col("token").is_in(ids))
    place = place_of(case.subset, domains)
    if place is None or place.probe not in data.probes:
        return _elsewhere(case, nothing, rows, texts)
    mine = rows.filter(pl.col("probe") == place.probe)
    needed = MIN_COUNT if case.tested else MIN_DRAWN
    if not _frequent(mine, needed):
        return _because(
            nothing,
            f"‘{name}’ occurs {len(mine)} times in {mine['context'].n_unique()} contexts of "
            f"{place}; {needed} in {MIN_CONTEXTS} are needed",
        )
    indices = mine["row"].to_numpy().astype(np.int64)
    where = "stand-in" if place.is_stand_in else "paper"
    found = kinds(texts, indices.tolist(), case.of)
    return Found(case, place.probe, where, spelled, indices, found, "")


def _frequent(rows: pl.DataFrame, needed: int) -> bool:
    return len(rows) >= needed and rows["context"].n_unique() >= MIN_CONTEXTS


def _elsewhere(case: Case, nothing: Found, rows: pl.DataFrame, texts: Texts) -> Found:
    """The domain with the most occurrences of the rarer kind, or else of the token."""
    reason = absent(case.subset)
    # A token without kinds of context is shown for its subset's sake alone.
    probes = rows["probe"].unique(maintain_order=True).to_list() if case.of else []
    best, most = _because(nothing, reason), (-1, -1)
    for probe in probes:
        mine = rows.filter(pl.col("probe") == probe)
        if not _frequent(mine, MIN_COUNT):
            continue
        indices = mine["row"].to_numpy().astype(np.int64)
        found = kinds(texts, indices.tolist(), case.of)
        rarer = int(min((found == case.high).sum(), (found == case.low).sum()))
        if (rarer, len(mine)) > most:
            most = (rarer, len(mine))
            best = Found(case, str(probe), "other", nothing.spelled, indices, found, reason)
    return best


def _because(nothing: Found, reason: str) -> Found:
    return Found(nothing.case, "", "", nothing.spelled, nothing.indices, nothing.kinds, reason)


def sample_of(
    found: Found, data: PerToken, blocks: NDArray[np.int64], factor: float = 1.0
) -> Sample:
    return Sample.of(data, found.case.head, found.indices, blocks, factor)
