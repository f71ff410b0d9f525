"""Table 3: is the susceptibility of one token constant while its loss varies?

The paper shows ten occurrences of ``://`` on enron_emails for head 0:0, and they are the ten with
the largest susceptibility. The ten largest of a hundred values lie close together whatever the
values are, so the rows by themselves show nothing; the claim is decided on all occurrences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from top_ranking import Inputs

from susceptibilities.cubes import PARTS
from susceptibilities.findings import Finding
from susceptibilities.jackknife import Array, Condition, Estimate, decide, met
from susceptibilities.per_token import PerToken
from susceptibilities.subsets import absent
from susceptibilities.token_errors import Statistic, context_blocks, measure

HEAD = "0:0"
SUBSET = "enron_emails"
TEXT = "://"
ROWS = 10
# An interval over contexts needs the token in several of them.
MIN_CONTEXTS = 5

CV = "coefficient of variation of chi over all occurrences"
DECADES = "decades between the 10th and 90th percentile of the loss"
CONDITIONS = (Condition(CV, "<", 0.1), Condition(DECADES, ">", 2.0))
EXPLAINED = "Share of the variance of chi that the token's identity explains"


@dataclass(frozen=True)
class Chosen:
    """The token of Table 3, or why there is none.

    Attributes:
        mask: its occurrences, (token,); those with a predicted token before them in the context.
        rule: how it was found, in words.
        candidates: every token that could have been chosen: probe, token, text, n, contexts, mean
            and cv of chi, decades between the deciles of the loss.
    """

    head: str
    probe: str
    text: str
    mask: NDArray[np.bool_]
    rule: str
    candidates: pl.DataFrame
    missing: str = ""

    @property
    def count(self) -> int:
        return int(self.mask.sum())


def eligible(data: PerToken, values: Array, probes: Sequence[str]) -> pl.DataFrame:
    """Tokens of some probes with enough occurrences after a predicted token."""
    return (
        data.tokens.with_columns(chi=values)
        # Of the token at position 1, the one before it is the beginning token: it has no loss.
        .filter(pl.col("position") > 1, pl.col("probe").is_in(probes))
        .group_by("probe", "token", maintain_order=True)
        .agg(
            pl.col("text").first(),
            n=pl.len(),
            contexts=pl.col("context").n_unique(),
            mean=pl.col("chi").mean(),
            cv=pl.col("chi").std() / pl.col("chi").mean().abs(),
            decades=pl.col("loss").log10().quantile(0.9, "linear")
            - pl.col("loss").log10().quantile(0.1, "linear"),
        )
        .filter(pl.col("n") >= ROWS, pl.col("contexts") >= MIN_CONTEXTS)
        .sort("mean", descending=True, maintain_order=True)
    )


def choose(inputs: Inputs) -> Chosen:
    """The token whose occurrences are tabled.

    ``://`` on the domain in the place of enron_emails where it occurs often enough; else, of the
    tokens that do, the one with the largest mean susceptibility for the head: on that domain if
    there is one, else over all domains.
    """
    data = inputs.data
    head = HEAD if HEAD in data.heads else data.heads[0]
    values, _ = data.of(head)
    place = inputs.place(SUBSET)
    found = eligible(data, values, [place.probe] if place else inputs.probes)
    where = str(place) if place else f"all domains ({absent(SUBSET)})"
    enough = f"at least {ROWS} occurrences in at least {MIN_CONTEXTS} contexts"
    if found.is_empty():
        nothing = np.zeros(len(data.tokens), dtype=bool)
        missing = f"no token has {enough} in {where}"
        return Chosen(head, "", "", nothing, "", found, missing)
    own = found.filter(pl.col("text") == TEXT) if place else found.clear()
    row = (own if len(own) else found).row(0, named=True)
    rule = (
        f"{TEXT} on {where}"
        if len(own)
        else (
            f"the token with the largest mean chi of head {head} among the {len(found)} pairs of "
            f"domain and token with {enough}, over {where}"
        )
    )
    mask = data.tokens.select(
        (pl.col("probe") == row["probe"])
        & (pl.col("token") == row["token"])
        & (pl.col("position") > 1)
    ).to_series()
    return Chosen(head, row["probe"], row["text"], mask.to_numpy(), rule, found)


def occurrences(inputs: Inputs, chosen: Chosen) -> pl.DataFrame:
    """Every occurrence of the token, the largest susceptibility first; ``rank`` from 1."""
    data, control = inputs.data, inputs.control
    place = data.components.index(chosen.head)
    index = np.flatnonzero(chosen.mask)
    tokens = data.tokens
    columns = {form: data.value[form][place, index] for form in ("chi", *PARTS)}
    table = tokens[index].with_columns(
        # Positions of a context follow one another, so the row before is the token before.
        text_before=tokens["text"].gather(index - 1),
        loss_before=tokens["loss"].gather(index - 1),
        se=data.se["chi"][place, index],
        control=pl.Series(
            control.value["chi"][place, index] if control else [None] * len(index),
            dtype=pl.Float64,
        ),
        component=pl.lit(chosen.head),
        **{name: pl.Series(values) for name, values in columns.items()},
    )
    return table.sort("chi", descending=True, maintain_order=True).with_row_index("rank", 1)


def spread(mask: NDArray[np.bool_]) -> Statistic:
    """Coefficient of variation over the occurrences: standard deviation over |mean|."""

    def statistic(values: Array, keep: NDArray[np.bool_]) -> float:
        own = values[mask & keep]
        return float(own.std(ddof=1) / abs(own.mean()))

    return statistic


def decades(mask: NDArray[np.bool_]) -> Statistic:
    """Decades between the 10th and 90th percentile over the occurrences of positive values."""

    def statistic(values: Array, keep: NDArray[np.bool_]) -> float:
        low, high = np.quantile(np.log10(np.maximum(values[mask & keep], 1e-12)), [0.1, 0.9])
        return float(high - low)

    return statistic


def explained(data: PerToken, probe: str) -> Statistic:
    """Share of the variance over a probe's tokens that the token's identity explains.

    Adjusted for the number of different tokens (epsilon squared), so that it is zero on average
    where the identity says nothing: 1 - (n - 1) / (n - m) * SS_within / SS_total.
    """
    inside = data.where(probe)
    number = np.unique(data.tokens["token"].to_numpy(), return_inverse=True)[1]

    def statistic(values: Array, keep: NDArray[np.bool_]) -> float:
        chosen = inside & keep
        label, own = number[chosen], values[chosen]
        count = np.bincount(label)
        mean = np.bincount(label, own) / np.maximum(count, 1)
        n, m = len(own), int((count > 0).sum())
        if n == m:
            return float("nan")
        within = np.square(own - mean[label]).sum()
        total = np.square(own - own.mean()).sum()
        return float(1 - (n - 1) / (n - m) * within / total)

    return statistic


@dataclass(frozen=True)
class Constancy:
    """How constant one form of the susceptibility of the token is."""

    cv: Estimate
    explained: Estimate
    noise_cv: float  # what the errors over chains alone would give
    rows_cv: float  # over the ten largest
    normal_rows_cv: float  # what the ten largest of as many normal values of this spread have


def constancy(source: PerToken, chosen: Chosen, form: str) -> Constancy:
    """Measure it with errors over chains and contexts."""
    values, replicates = source.of(chosen.head, form)
    blocks = context_blocks(source.tokens)
    own, left_out = values[chosen.mask], replicates[:, chosen.mask]
    chains = len(replicates)
    # Noise that all occurrences share moves their mean, and does not set them apart.
    apart = left_out - left_out.mean(1, keepdims=True)
    noise = (chains - 1) * apart.var(0).mean()
    top = np.sort(own)[::-1][:ROWS]
    rng = np.random.default_rng(0)
    normal = np.sort(rng.normal(own.mean(), own.std(ddof=1), (2000, len(own))))[:, -ROWS:]
    return Constancy(
        measure(spread(chosen.mask), values, replicates, blocks),
        measure(explained(source, chosen.probe), values, replicates, blocks),
        float(np.sqrt(noise) / abs(own.mean())),
        float(top.std(ddof=1) / abs(top.mean())),
        float((normal.std(1, ddof=1) / np.abs(normal.mean(1))).mean()),
    )


def of_loss(data: PerToken, chosen: Chosen, statistic: Statistic) -> Estimate:
    """A statistic of the losses at w*: no chain enters, so only contexts make its error."""
    losses = data.tokens["loss"].to_numpy()
    same = np.broadcast_to(losses, (data.chains, len(losses)))
    return measure(statistic, losses, same, context_blocks(data.tokens))


def constant_finding(found: Constancy, loss: Estimate, n: int) -> Finding:
    """Verdict on one form: constant over all occurrences, while the loss is not."""
    together = {CV: found.cv, DECADES: loss}
    holds = decide(together, CONDITIONS)
    values = {name: estimate.value for name, estimate in together.items()}
    signal = np.sqrt(max(found.cv.value**2 - found.noise_cv**2, 0.0))
    if holds is False and CONDITIONS[1].verdict(loss) is not False and CONDITIONS[0].met(signal):
        holds = None  # the noise of the estimate alone may be what makes it vary
    return Finding(found.cv.value, found.cv.se, n, holds, met(values, CONDITIONS))


def bounds_in_words(found: Constancy, loss: Estimate) -> str:
    """Which of the two bounds decides."""
    words = {True: "within", False: "beyond", None: "not separated from"}
    verdicts = [
        f"{name} {words[condition.verdict(estimate)]} its bound"
        for name, condition, estimate in zip(
            ("coefficient", "loss"), CONDITIONS, (found.cv, loss), strict=True
        )
    ]
    return f"By themselves: {', '.join(verdicts)}."


def others_in_words(chosen: Chosen) -> str:
    """The other tokens that could have been chosen: whether any is constant."""
    cv, least = CONDITIONS[0].value, CONDITIONS[1].value
    found = chosen.candidates
    wide = found.filter(pl.col("decades") > least)
    text = (
        f"Of all {len(found)} tokens that could have been chosen, {(found['cv'] < cv).sum()} have "
        f"a coefficient below {cv:g}"
    )
    if wide.is_empty():
        return f"{text}; the loss of none ranges over {least:g} decades."
    return (
        f"{text}; of the {len(wide)} whose loss ranges over more than {least:g} decades, "
        f"{(wide['cv'] < cv).sum()} (smallest coefficient {wide['cv'].min():.2g})."
    )
