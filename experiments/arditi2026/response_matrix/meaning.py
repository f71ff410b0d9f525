"""What the first three components of the response matrix are said to mean (Arditi 4.3), tested.

PC1: all heads load alike, and word boundaries lie at its ends. PC2: multigram heads of the last
layer against the induction circuit (previous-token and induction heads). PC3: one induction head
against the other, code against natural language. Heads are this model's own, by their roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from response_ends import enrichment, tail_masks

from susceptibilities.findings import NAMES, Finding
from susceptibilities.jackknife import (
    Array,
    Condition,
    Estimate,
    all_hold,
    decide,
    met,
    permutation_p,
)
from susceptibilities.naming import head_of
from susceptibilities.response_matrix import (
    Mask,
    Response,
    ResponsePCA,
    measure_on_pca,
    measure_pca,
)
from susceptibilities.subsets import place_of

LEVEL = 0.05  # of the permutation test
# Components of a part among which a pattern is looked for: without a uniform mode it has the same
# pattern in an earlier one.
SEARCHED = 4
CODE = ("github", "github-all")
LANGUAGE = ("wikipedia_en", "freelaw", "gutenberg", "pubmed_central", "philpapers", "pile-cc")

COSINE = "cosine to the uniform vector"
SMALLEST = "smallest loading"
WORD_END = "word ends, log2 of top over bottom 5 %"
WORD_START = "word starts, log2 of top over bottom 5 %"
CIRCUIT = "mean loading of the induction circuit"
MULTIGRAM = "mean loading of last-layer multigram heads"
ONE_HEAD = "loading of the first induction head"
OTHER_HEAD = "loading of the last induction head"
CODE_LANGUAGE = "distance of code and natural language, in standard deviations"


@dataclass(frozen=True)
class Test:
    """The pattern of one component: bounds on quantities, or why it cannot be tested.

    Attributes:
        pc: from 0.
        anchor: heads on which the component is turned to be positive on average.
    """

    pc: int
    anchor: tuple[int, ...]
    conditions: tuple[Condition, ...]
    skipped: str = ""


@dataclass(frozen=True)
class Meaning:
    """The tests, ready for a model's roles and a corpus's domains.

    Attributes:
        circuit, multigram, induction: columns of the heads of each kind.
        word_end, word_start, code, language: masks of tokens, (token,).
    """

    response: Response
    circuit: tuple[int, ...]
    multigram: tuple[int, ...]
    induction: tuple[int, ...]
    word_end: Mask
    word_start: Mask
    code: Mask
    language: Mask

    @classmethod
    def of(
        cls,
        response: Response,
        roles: Mapping[str, str],
        word_end: Mask,
        word_start: Mask,
        domains: Mapping[str, Any],
    ) -> Meaning:
        last = max(response.layers)

        def columns(*names: str, layer: int | None = None) -> tuple[int, ...]:
            return tuple(
                i
                for i, head in enumerate(response.heads)
                if roles.get(head) in names and layer in (None, (head_of(head) or (-1,))[0])
            )

        def tokens(subsets: Sequence[str]) -> Mask:
            places = [place_of(subset, domains) for subset in subsets]
            return np.isin(response.probes, [p.probe for p in places if p is not None])

        return cls(
            response=response,
            circuit=columns("previous-token", "induction"),
            multigram=columns("multigram", layer=last),
            induction=columns("induction"),
            word_end=word_end,
            word_start=word_start,
            code=tokens(CODE),
            language=tokens(LANGUAGE),
        )

    @property
    def tests(self) -> tuple[Test, ...]:
        lacking = [
            name
            for name, columns in (
                ("previous-token or induction head", self.circuit),
                ("multigram head in its last layer", self.multigram),
            )
            if not columns
        ]
        third = ""
        if len(self.induction) < 2:
            third = f"needs two induction heads, this model has {len(self.induction)}"
        elif not (self.code.any() and self.language.any()):
            third = "needs domains of code and of natural language, this corpus lacks one"
        return (
            Test(
                0,
                tuple(range(len(self.response.heads))),
                (
                    Condition(COSINE, ">", 0.9),
                    Condition(SMALLEST, ">", 0.0),
                    Condition(WORD_END, ">", 0.0),
                    Condition(WORD_START, "<", 0.0),
                ),
            ),
            Test(
                1,
                self.circuit,
                (Condition(CIRCUIT, ">", 0.0), Condition(MULTIGRAM, "<", 0.0)),
                f"the model has no {lacking[0]}" if lacking else "",
            ),
            Test(
                2,
                self.induction[:1],
                (
                    Condition(ONE_HEAD, ">", 0.0),
                    Condition(OTHER_HEAD, "<", 0.0),
                    Condition(CODE_LANGUAGE, ">", 0.0),
                ),
                third,
            ),
        )

    def measure(self, test: Test, loadings: Array, scores: Array, keep: Mask) -> list[float]:
        """The quantities of a test, in the order of its conditions.

        Args:
            loadings, scores: of one component, turned, (head,) and (kept token,).
        """
        if test.pc == 0:
            low, high = tail_masks(scores, self.response.probes[keep], within=False)
            words = np.stack([self.word_end[keep], self.word_start[keep]])
            ends, starts = enrichment(high, words) - enrichment(low, words)
            cosine = loadings.sum() / np.sqrt(len(loadings))
            return [float(cosine), float(loadings.min()), float(ends), float(starts)]
        if test.pc == 1:
            groups = (self.circuit, self.multigram)
            return [float(loadings[list(columns)].mean()) for columns in groups]
        code, language = scores[self.code[keep]], scores[self.language[keep]]
        distance = abs(float(code.mean() - language.mean()))
        deviation = float(scores.std())
        heads = [float(loadings[self.induction[place]]) for place in (0, -1)]
        return [*heads, distance / deviation if deviation else 0.0]

    def chance(self, loadings: Array) -> float:
        """One-sided permutation p: are heads drawn at random as far apart as on PC2?"""
        return permutation_p(loadings[list(self.multigram)], loadings[list(self.circuit)])


@dataclass(frozen=True)
class Result:
    """One test on one component: values met, the verdict, and what to say."""

    estimates: dict[str, Estimate]
    verdict: bool | None
    met: bool
    note: str


def results(
    meaning: Meaning, form: str, factor: float = 1.0, searched: int = SEARCHED
) -> dict[tuple[int, int], Result]:
    """Every test on every one of the first components: (test, component) -> result.

    Args:
        factor: what the susceptibilities are multiplied by.
    """
    response = meaning.response
    values, replicates = response.stacked((form,), factor)
    found = measure_pca(values[0], replicates[:, 0], response.blocks)
    tests = [test for test in meaning.tests if not test.skipped]
    count = min(searched, len(found.pca.variance))
    cases = [(test, k) for test in tests for k in {test.pc, *range(count)} if k < count]
    sign = {
        (test.pc, k): -1.0 if found.pca.loadings[list(test.anchor), k].mean() < 0 else 1.0
        for test, k in cases
    }

    def statistic(pca: ResponsePCA, kept: Array, keep: Mask) -> list[float]:
        scores = pca.scores(kept[0])
        quantities: list[float] = []
        for test, k in cases:
            turn = sign[test.pc, k]
            quantities += meaning.measure(
                test, turn * pca.loadings[:, k], turn * scores[:, k], keep
            )
        return quantities

    value, se = measure_on_pca(statistic, values, replicates, response.blocks, found.pca)
    done: dict[tuple[int, int], Result] = {}
    start = 0
    for test, k in cases:
        estimates = {}
        for condition in test.conditions:
            estimates[condition.quantity] = Estimate(
                float(value[start]), float(se[start]), response.df
            )
            start += 1
        loadings = sign[test.pc, k] * found.pca.loadings[:, k]
        done[test.pc, k] = judged(meaning, test, estimates, loadings, bool(found.identified[k]), k)
    return done


def judged(
    meaning: Meaning,
    test: Test,
    estimates: dict[str, Estimate],
    loadings: Array,
    identified: bool,
    k: int,
) -> Result:
    """The verdict of one test on component k from its quantities."""
    verdict = decide(estimates, test.conditions)
    point = met({name: e.value for name, e in estimates.items()}, test.conditions)
    spelled = "; ".join(f"{name} {e.value:.3g} ± {e.se:.2g}" for name, e in estimates.items())
    note = f"PC{k + 1}: {spelled}."
    if test.pc == 1:
        p = meaning.chance(loadings)
        note += f" Permutation p = {p:.3f}."
        point = point and p <= LEVEL
        if verdict and p > LEVEL:
            verdict = None
    if not identified:
        # Any rotation within the pair is as good a component as this one.
        note += f" PC{k + 1} is not separated from a neighbor within the errors."
        verdict = None
    return Result(estimates, verdict, point, note)


def finding(meaning: Meaning, done: Mapping[tuple[int, int], Result]) -> Finding:
    """The claim as a whole: every test on the component that the paper names."""
    own = [(test, None if test.skipped else done.get((test.pc, test.pc))) for test in meaning.tests]
    notes = [
        f"PC{test.pc + 1} not tested: {test.skipped or 'there is none'}."
        if result is None
        else result.note
        for test, result in own
    ]
    tested = [result for _, result in own if result is not None]
    cosine = tested[0].estimates[COSINE]
    return Finding(
        cosine.value,
        cosine.se,
        meaning.response.value["chi"].shape[1],
        all_hold(None if result is None else result.verdict for _, result in own),
        all(result.met for result in tested),
        " ".join(notes),
    )


def carriers(meaning: Meaning, by_part: Mapping[str, Mapping[tuple[int, int], Result]]) -> str:
    """Which parts show each component's pattern by themselves, and in which of their own."""
    spelled = []
    for test in meaning.tests:
        if test.skipped:
            continue
        names = []
        for part, done in by_part.items():
            places = [k for (pc, k), result in done.items() if pc == test.pc and result.verdict]
            if places:
                place = min(places, key=lambda k: (k != test.pc, k))
                where = "" if place == test.pc else f" (its PC{place + 1})"
                names.append(NAMES[part] + where)
        spelled.append(f"PC{test.pc + 1}: {', '.join(names) if names else 'no part alone'}")
    return "; ".join(spelled)


def bound(tests: Sequence[Test]) -> str:
    """The bounds in words."""
    parts = [
        f"PC{test.pc + 1}: "
        + (", ".join(map(str, test.conditions)) if not test.skipped else "not tested")
        for test in tests
    ]
    return "; ".join(parts) + f"; permutation p <= {LEVEL} for PC2"
