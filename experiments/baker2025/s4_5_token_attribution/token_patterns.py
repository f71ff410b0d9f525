"""The patterns that section 4.5 and appendix D.9 claim, each as a function from a run to a finding.

A pattern holds when the 95 % interval of each of its quantities lies within its bound. "An order
of magnitude" means nearer to ten than to one on a logarithmic scale: a factor of at least the
square root of ten.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from token_findings import CC, CODE, HEADS, Run, negative_by_token, spelled, untested

from susceptibilities.cubes import CONTROL_PROBE, Array
from susceptibilities.findings import Finding
from susceptibilities.jackknife import Condition, Estimate, decide, met
from susceptibilities.token_errors import context_blocks, measure_array
from susceptibilities.visible import visible

ORDER = 10**0.5  # the least factor that is "an order of magnitude"
# The space is one token in four of the paper's github-all. Where the tokenizer writes nearly all
# spaces as part of other tokens, no ranking of the few left can bear on the claim.
COMMON_SPACE = 0.05

SPACE_TOP = [Condition(f"{head}: space over the next token", ">", ORDER) for head in HEADS]


def space_top(run: Run, form: str, factor: float, control: bool) -> list[Finding]:
    """The space's negative total over the largest of another token, for both heads."""
    if reason := run.lacks(CODE, HEADS):
        return untested(reason)
    s = run.sample(CODE, HEADS, form, factor, control)
    negative, space = negative_by_token(s)
    distinct = np.unique(s.ids)

    def ratio(values: Array, keep: NDArray[np.bool_]) -> Array:
        sums = negative(values, keep)
        others = np.delete(sums, space, axis=1).min(1, initial=0.0)
        own = sums[:, space].sum(1)
        return np.divide(own, others, out=np.zeros_like(own), where=others < 0)

    value, se = measure_array(ratio, s.values, s.replicates, s.blocks)
    estimates = {
        condition.quantity: Estimate(float(v), float(e), s.df)
        for condition, v, e in zip(SPACE_TOP, value, se, strict=True)
    }
    notes = []
    for name, sums in zip(estimates, negative(s.values, np.ones(s.tokens, bool)), strict=True):
        first = s.texts[int(np.argmax(s.ids == distinct[sums.argmin()]))]
        part = sums.min() / sums.sum() if sums.sum() < 0 else 0.0
        size = spelled(estimates[name])
        notes.append(f"{name} {size}, first “{visible(first)}” with {part:.1%}")
    note = f"{run.named(CODE, HEADS)} {'; '.join(notes)} of the head's negative total."
    least = min(estimates.values(), key=lambda e: e.value)
    share = float(s.is_space.mean())
    if share < COMMON_SPACE:
        note += (
            f" Not decided: the space by itself is {share:.1%} of the tokens, as this tokenizer "
            f"writes spaces as part of other tokens; at least {COMMON_SPACE:.0%} is asked for."
        )
        return [Finding(least.value, least.se, s.tokens, None, None, note)]
    values = {name: e.value for name, e in estimates.items()}
    verdict = decide(estimates, SPACE_TOP)
    return [Finding(least.value, least.se, s.tokens, verdict, met(values, SPACE_TOP), note)]


IMBALANCE = "imbalance over the median size of the others'"
MASS = "mass over the median of the others'"
CANCELLATION = [
    Condition(IMBALANCE, "<", 1 / ORDER),
    Condition(IMBALANCE, ">", -1 / ORDER),
    Condition(MASS, ">", 1 / ORDER),
    Condition(MASS, "<", ORDER),
]


def cancellation(run: Run, form: str, factor: float, control: bool) -> list[Finding]:
    """Totals of usual size that nearly cancel, on the probe nearest to the training text."""
    if reason := run.lacks(CC, HEADS[:1]):
        return untested(reason)
    place, data = run.place(CC), run.sides[control].data
    assert place is not None
    others = [p for p in data.probes if p not in (place.probe, CONTROL_PROBE)]
    if len(others) < 2:
        return untested("fewer than two other domains to compare with")
    masks = [data.where(p) for p in (place.probe, *others)]
    heads = [data.components.index(head) for head in data.heads]

    def quantities(values: Array, keep: NDArray[np.bool_]) -> Array:
        """(2, head): the imbalance and the mass of the first mask, over the others'."""
        kept = [values[:, m & keep] for m in masks]
        mass = np.stack([np.abs(k).mean(1, dtype=np.float64) for k in kept])
        signed = np.stack([k.mean(1, dtype=np.float64) for k in kept]) / mass
        usual = np.stack([np.median(np.abs(signed[1:]), 0), np.median(mass[1:], 0)])
        return np.stack([signed[0], mass[0]]) / usual

    blocks = context_blocks(data.tokens)
    values = factor * data.value[form][heads]
    replicates = factor * data.replicates[form][:, heads].astype(np.float64)
    value, se = measure_array(quantities, values, replicates, blocks)
    df = min(data.chains, len(np.unique(blocks))) - 1
    of_heads: list[dict[str, float]] = [{IMBALANCE: float(a), MASS: float(b)} for a, b in value.T]
    alike = sum(met(of_head, CANCELLATION) for of_head in of_heads)
    own = data.heads.index(HEADS[0])
    found = {
        name: Estimate(float(v), float(e), df)
        for name, v, e in zip((IMBALANCE, MASS), value[:, own], se[:, own], strict=True)
    }
    # The mean size of a value that is noise alone, over the mean size found.
    sizes = np.abs(data.value[form][heads[own]])
    noises = np.sqrt(2 / np.pi) * data.se[form][heads[own]]
    noise = [float(noises[m].mean() / sizes[m].mean()) for m in masks]
    note = (
        f"{run.named(CC, HEADS[:1])} {'; '.join(f'{n} {spelled(e)}' for n, e in found.items())}. "
        f"The values alone meet the bounds for {alike} of {len(heads)} heads. Noise alone would "
        f"give {noise[0]:.0%} of the mass there and {min(noise[1:]):.0%} to {max(noise[1:]):.0%} "
        "of that on the other domains, and noise cancels too."
    )
    first = found[IMBALANCE]
    verdict = decide(found, CANCELLATION)
    fulfilled = met(of_heads[own], CANCELLATION)
    return [Finding(first.value, first.se, len(masks), verdict, fulfilled, note)]
