"""Rankings of tokens by susceptibility, and how much of a ranking is noise.

A ranking of noisy values selects noise: the token that tops the list is there because its value
is large and because its error happens to be. So every list is made again from each half of the
chains, and the share that both halves agree on is reported beside the chance level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from susceptibilities.jackknife import Array, pseudo_values
from susceptibilities.per_token import PerToken, load_per_token
from susceptibilities.store import read_json
from susceptibilities.subsets import Place, place_of
from susceptibilities.tokens import CONTROL_PROBE, load_tokenizer, token_strings

FOLDER = "baker2025/d_top_tokens"

# Appendix E counts the top 1,000 of 160 contexts of 1,023 predicted tokens; Appendix D lists
# distinct tokens among the top hundred "of a sample of contexts", whose size it does not give.
PAPER_TOKENS = 160 * 1023
PAPER_K = 1000
PAPER_LIST_K = 100
PAPER_HEADS = ("0:0", "1:2", "1:7")
FIG30_DATASETS = ("arxiv", "dm_mathematics", "github", "philpapers", "wikipedia_en")

SIGNS = (1, -1)
DISTINCT = 3
# Ways to split the chains in halves that are averaged over; they share the chains, so that many
# more would tell little more.
MAX_SPLITS = 6


@dataclass(frozen=True)
class Inputs:
    """What every script of this section reads.

    Attributes:
        control: the n_beta = 0 chains; None where the scale asks for none.
        strings: the vocabulary, each token decoded by itself.
        roles: head -> role at the last step.
    """

    results: Path
    data: PerToken
    control: PerToken | None
    strings: list[str]
    roles: Mapping[str, str]
    domains: Mapping[str, Any]

    @property
    def probes(self) -> list[str]:
        """The domains' probes, without the control probe."""
        return [probe for probe in self.data.probes if probe != CONTROL_PROBE]

    @property
    def runs(self) -> dict[str, PerToken]:
        """The runs that are analyzed: the posterior, and the control where there is one."""
        return {"posterior": self.data} | ({"control": self.control} if self.control else {})

    def place(self, subset: str) -> Place | None:
        """The probe in the place of a subset of the Pile, if it was measured."""
        place = place_of(subset, self.domains)
        return place if place is not None and place.probe in self.data.probes else None


def load_inputs(results: Path) -> Inputs:
    """Read per-token susceptibilities, their control, the vocabulary and the heads' roles.

    Raises:
        ValueError: the control was measured on other tokens than the susceptibilities.
    """
    data = load_per_token(results)
    asked = read_json(results / "config.json")["two_layer"]["per_token"]["control_checkpoints"]
    control = load_per_token(results, control=True, step=data.step) if data.step in asked else None
    if control is not None and not control.tokens["token"].equals(data.tokens["token"]):
        raise ValueError(
            f"{results}: the n_beta = 0 control was measured on other tokens than the "
            "susceptibilities; build both again"
        )
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    model = Path(read_json(results / "model" / "model.json")["path"])
    return Inputs(
        results,
        data,
        control,
        token_strings(load_tokenizer(model)),
        dict(zip(final["head"], final["role"], strict=True)),
        read_json(results / "tokens" / "manifest.json")["domains"],
    )


def three_heads(heads: Sequence[str], roles: Mapping[str, str]) -> tuple[str, ...]:
    """The heads of Figures 1 and 30: 0:0, a last-layer multigram head, an induction head.

    The paper's own head (0:0, 1:2, 1:7) where it has that role here, else the first head of the
    role in the last layer, else the paper's name, else the last head not yet chosen. 0:0 is taken
    by its name: the paper's is a multigram head.
    """
    last = heads[-1].split(":")[0]
    chosen: list[str] = []
    for name, role in zip(PAPER_HEADS, ("", "multigram", "induction"), strict=True):
        same = [h for h in heads if role and roles.get(h) == role and h.split(":")[0] == last]
        named = [name] if name in heads and (not role or name in same) else []
        options = [*named, *same, *([name] if name in heads else []), *reversed(heads)]
        chosen += [h for h in options if h not in chosen][:1]
    return tuple(chosen)


def fig30_probes(inputs: Inputs) -> list[str]:
    """Probes of Figure 30: those in the place of the paper's five datasets, filled up to five
    with the first other domains of the corpus."""
    places = [inputs.place(subset) for subset in FIG30_DATASETS]
    found = list(dict.fromkeys(place.probe for place in places if place is not None))
    rest = [probe for probe in inputs.probes if probe not in found]
    return [*found, *rest][: len(FIG30_DATASETS)]


def scaled_k(tokens: int) -> int:
    """The k of Figure 30 for so many tokens: the paper's share, 1,000 of 163,680."""
    return max(1, round(tokens * PAPER_K / PAPER_TOKENS))


def list_k(tokens: int) -> int:
    """From how many top tokens the lists are drawn: the paper's hundred, at most a tenth."""
    return max(1, min(PAPER_LIST_K, tokens // 10))


def ranked(values: Array, k: int, sign: int) -> NDArray[np.int64]:
    """Places of the ``k`` most positive (sign 1) or most negative (-1) values, in order."""
    return np.argsort(-sign * values, kind="stable")[:k]


def distinct(tokens: Sequence[int], count: int = DISTINCT) -> list[int]:
    """Places of the first ``count`` different tokens of a ranking."""
    first: dict[int, int] = {}
    for place, token in enumerate(tokens):
        first.setdefault(token, place)
    return list(first.values())[:count]


def halves(values: Array, replicates: Array) -> Iterator[tuple[Array, Array]]:
    """Estimates from disjoint halves of the chains, for up to `MAX_SPLITS` ways to halve them.

    The estimate of a set of chains is the mean of their `jackknife.pseudo_values`.

    Args:
        values: (..., token); ``replicates``: (chain, ..., token).
    """
    chains = len(replicates)
    if chains < 2:
        raise ValueError(f"halves need at least 2 chains, found {chains}")
    splits = [
        chosen
        for chosen in combinations(range(chains), chains // 2)
        # Of an even number of chains every split would otherwise come twice.
        if chains % 2 or 0 in chosen
    ]
    step = max(1, -(-len(splits) // MAX_SPLITS))
    pseudo = pseudo_values(values, replicates)
    for chosen in splits[::step]:
        rest = [c for c in range(chains) if c not in chosen]
        yield pseudo[list(chosen)].mean(0), pseudo[rest].mean(0)


def top_masks(values: Array, k: int) -> dict[int, NDArray[np.bool_]]:
    """Which tokens are among the ``k`` most positive (key 1) and most negative (-1).

    Args:
        values: (..., token).
    """
    # Sorting values and comparing is several times faster than sorting places.
    ordered = np.sort(values, axis=-1)
    found = {1: values >= ordered[..., -k, None], -1: values <= ordered[..., k - 1, None]}
    for sign, mask in found.items():
        if mask.sum() != k * mask.size // mask.shape[-1]:  # ties: the first ones count
            order = np.argsort(-sign * values, axis=-1, kind="stable")[..., :k]
            found[sign] = np.zeros(values.shape, dtype=bool)
            np.put_along_axis(found[sign], order, True, -1)
    return found


def shared(one: NDArray[np.bool_], two: NDArray[np.bool_], k: int) -> Array:
    """Share of the top ``k`` of each row of ``one`` in the top ``k`` of each row of ``two``."""
    return one.astype(np.float32) @ two.astype(np.float32).T / k


@dataclass(frozen=True)
class Agreement:
    """Shares of a head's top k from one half of the chains, each (head,).

    Attributes:
        own: that the other half has too.
        opposite: that the other half has at the opposite end, among its top k of the other sign.
            Noise whose size differs from token to token puts the same noisy tokens at both ends:
            where nothing but noise is ranked, ``own`` is as large as this, and not k over the
            number of tokens.
        others: that the other half of another head has, mean over the other heads.
        control: that the other half of the control's chains has; None without a control.
    """

    own: Array
    opposite: Array
    others: Array
    control: Array | None


def overlaps(
    values: Array, replicates: Array, k: int, control: tuple[Array, Array] | None = None
) -> dict[int, Agreement]:
    """How far the top ``k`` from one half of the chains is that from other halves.

    The control is compared with the half that it has no chain number in common with: chains of
    one number have the same random numbers in both runs, and so agree in their noise too.

    Args:
        values: (head, token) of one probe; ``replicates``: (chain, head, token).
        control: the same of the n_beta = 0 control.

    Returns:
        sign -> agreement of that end of the ranking.
    """
    found: dict[int, list[tuple[Array, ...]]] = {sign: [] for sign in SIGNS}
    pairs = halves(values, replicates)
    against = halves(*control) if control is not None else None
    for one, two in pairs:
        masks = top_masks(one, k), top_masks(two, k)
        none = [top_masks(half, k) for half in next(against)] if against is not None else []
        for sign in SIGNS:
            table = shared(masks[0][sign], masks[1][sign], k)
            same = np.diag(table)
            others = (table.sum(0) + table.sum(1) - 2 * same) / (2 * max(len(table) - 1, 1))
            ends = np.diag(shared(masks[0][sign], masks[1][-sign], k))
            row = [same, ends, others]
            if none:
                crossed = [
                    np.diag(shared(masks[0][sign], none[1][sign], k)),
                    np.diag(shared(masks[1][sign], none[0][sign], k)),
                ]
                row.append(np.mean(crossed, axis=0))
            found[sign].append(tuple(row))
    result = {}
    for sign, rows in found.items():
        means = np.mean(rows, axis=0)
        result[sign] = Agreement(means[0], means[1], means[2], means[3] if len(means) > 3 else None)
    return result
