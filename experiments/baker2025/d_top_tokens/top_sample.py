"""Figure 1: one context with the susceptibilities of three heads.

The paper's sample was found "manually for representative examples"; here it is the context that
is in the middle of all contexts of its domain by the size of its susceptibilities.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from top_ranking import Inputs, three_heads

from susceptibilities.cubes import PARTS
from susceptibilities.findings import NAMES
from susceptibilities.highlight import Highlight, Panel, Track
from susceptibilities.jackknife import Array
from susceptibilities.per_token import PerToken

SUBSET = "arxiv"
# Where there is no text from arxiv: other prose of science, then any.
SUBSTITUTES = ("pubmed_central", "philpapers", "wikipedia_en")


def sample_probe(inputs: Inputs) -> tuple[str, str]:
    """The probe of Figure 1, and what to say of it."""
    place = inputs.place(SUBSET)
    if place is not None:
        return place.probe, str(place)
    for subset in SUBSTITUTES:
        place = inputs.place(subset)
        if place is not None:
            return place.probe, f"{place}, in the place of {SUBSET}, which this corpus has not"
    probe = inputs.probes[0]
    return probe, f"{probe}, in the place of {SUBSET}, which this corpus has not"


def middle_context(values: Array, context: NDArray[np.int64]) -> int:
    """The context whose mean |chi| is the median (of an even number, the lower of the two).

    Args:
        values: (head, token) of one probe; every head counts in units of its own standard
            deviation over the tokens.
        context: number of each token's context, (token,).
    """
    size = np.abs(values / values.std(1, keepdims=True)).mean(0)
    numbers, place = np.unique(context, return_inverse=True)
    means = np.bincount(place, size) / np.bincount(place)
    order = np.argsort(means, kind="stable")
    return int(numbers[order[(len(order) - 1) // 2]])


def sample(inputs: Inputs) -> tuple[Highlight, Highlight]:
    """The highlighted sample: for the figure, and with all parts of chi for the page."""
    data = inputs.data
    heads = three_heads(data.heads, inputs.roles)
    probe, where = sample_probe(inputs)
    mask = data.where(probe)
    chi = np.stack([data.of(head)[0][mask] for head in heads])
    contexts = data.tokens["context"].to_numpy()[mask]
    chosen = middle_context(chi, contexts)
    inside = contexts == chosen
    row = np.unique(contexts).tolist().index(chosen)
    ids = data.context_ids(inputs.results, probe)[row]
    tokens = [inputs.strings[i] for i in ids]

    def panel(label: str, source: PerToken, form: str) -> Panel:
        tracks = []
        for head in heads:
            values = source.of(head, form)[0][mask]
            role = inputs.roles.get(head, "")
            tracks.append(
                Track(
                    name=f"{head} {role}".rstrip(),
                    limit=float(np.abs(values).max()),
                    values=[None, *values[inside].tolist()],
                )
            )
        return Panel(label=label, tokens=tokens, tracks=tracks)

    chi_panel = panel(f"χ, {NAMES['chi']}", data, "chi")
    parts = {part: panel(f"{NAMES[part]} part", data, part) for part in reversed(PARTS)}
    last = []
    if inputs.control is not None:
        label = "χ of the n_beta = 0 control: no loss, and the random numbers of the chains above"
        last = [panel(label, inputs.control, "chi")]
    count = len(np.unique(contexts))

    def highlight(panels: list[Panel]) -> Highlight:
        return Highlight(
            title="Per-token susceptibilities of three heads on one context",
            subtitle=(
                f"Domain {where}. Of its {count} contexts, the one in the middle by mean |χ| of "
                "the three heads, each in its own standard deviations. Full color: the largest "
                "|χ| of the head on the domain, as in the paper."
            ),
            opacity="linear",
            columns=1,
            panels=panels,
        )

    # The rank-one part looks like chi, the covariance part like noise: they are on the page.
    shown = highlight([chi_panel, parts["mean_shift"], *last])
    return shown, highlight([chi_panel, *parts.values(), *last])
