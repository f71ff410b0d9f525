"""The modes of one token for one head: everything that is reported of them, with errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from susceptibilities.bimodality import (
    DipTest,
    Halves,
    auc,
    dip_test,
    halves,
)
from susceptibilities.cubes import FORMS, PARTS
from susceptibilities.jackknife import Estimate, jackknife_se, pseudo_values
from susceptibilities.mixture import Modes, two_modes
from susceptibilities.per_token import PerToken
from susceptibilities.token_errors import measure, measure_array

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Stated before any data was looked at. Ashman, Bird and Zepf (1994) call D > 2 a clean
# separation; a kappa of 0.5 is half of the agreement beyond chance that is possible.
LEVEL, DISTANCE, KAPPA = 0.05, 2.0, 0.5


@dataclass(frozen=True)
class Sample:
    """Occurrences of a token, with their susceptibilities for one head.

    Attributes:
        indices: rows of the token table, (n,).
        contexts, blocks: of every occurrence, (n,).
        values: form -> (n,).
        replicates: form -> (chain, n).
    """

    indices: NDArray[np.int64]
    contexts: NDArray[np.int64]
    blocks: NDArray[np.int64]
    values: Mapping[str, Array]
    replicates: Mapping[str, Array]

    @classmethod
    def of(
        cls,
        data: PerToken,
        component: str,
        indices: NDArray[np.int64],
        blocks: NDArray[np.int64],
        factor: float = 1.0,
    ) -> Sample:
        """Take a head's values at some rows of ``data.tokens``, times ``factor``.

        Args:
            blocks: of all tokens, from `token_errors.context_blocks`.
        """
        place = data.components.index(component)
        return cls(
            indices,
            data.tokens["context"].to_numpy()[indices],
            blocks[indices],
            {form: factor * data.value[form][place, indices] for form in FORMS},
            {
                form: factor * data.replicates[form][:, place, indices].astype(np.float64)
                for form in FORMS
            },
        )

    def varies(self, form: str) -> bool:
        return bool(np.ptp(self.values[form]) > 0)

    def test(self, form: str) -> DipTest:
        return dip_test(self.values[form], self.contexts)


def modes_with_errors(sample: Sample, form: str, modes: Modes) -> dict[str, Estimate]:
    """Center of either mode and Ashman's D, with the error over chains and contexts."""

    def statistic(values: Array, keep: Mask) -> list[float]:
        found = two_modes(values[keep], start=modes)
        return [found.lower, found.upper, found.distance]

    value, se = measure_array(
        statistic, sample.values[form], sample.replicates[form], sample.blocks
    )
    df = min(len(sample.replicates[form]), len(np.unique(sample.blocks))) - 1
    names = ("lower", "upper", "distance")
    return {name: Estimate(float(value[k]), float(se[k]), df) for k, name in enumerate(names)}


def kappa_with_error(sample: Sample, split: Halves) -> Estimate:
    """Agreement of the halves of the chains beyond chance; the error is over contexts."""
    numbers = np.unique(sample.blocks)
    left_out = np.array([split.kappa(sample.blocks != number) for number in numbers])
    se = float(jackknife_se(left_out)) if len(numbers) > 1 else math.nan
    return Estimate(split.kappa(), se, len(numbers) - 1)


def auc_with_error(sample: Sample, form: str, positive: Mask) -> Estimate:
    """Chance that an occurrence of one kind has a larger value than one of the other."""

    def statistic(values: Array, keep: Mask) -> float:
        return auc(values[keep], positive[keep])

    return measure(statistic, sample.values[form], sample.replicates[form], sample.blocks)


def gap_shares(sample: Sample, split: Halves) -> dict[str, float]:
    """What each part of chi adds to the gap between the modes of chi; the shares add up to one.

    Occurrences are put in a mode by one half of the chains and the gap is measured in the other,
    so noise that chi shares with its parts does not count.
    """
    gaps = {
        form: split.gap(pseudo_values(sample.values[form], sample.replicates[form]))
        for form in FORMS
    }
    whole = gaps["chi"]
    return {part: gaps[part] / whole if whole else math.nan for part in PARTS}


def describe(
    sample: Sample, form: str, covariates: Mapping[str, Array], errors: bool = True
) -> dict[str, Any]:
    """Everything that is reported of the modes of one form, except p-values.

    Args:
        covariates: name -> (n,) numbers that may tell the modes apart by themselves, such as the
            loss; reported as ``auc_<name>``, the AUC for the upper mode.
        errors: with standard errors of the centers and of D, which take 16 more fits.
    """
    values = sample.values[form]
    test = sample.test(form)
    modes = two_modes(values, size=max(test.effective, 2.0))
    split = halves(values, sample.replicates[form], modes)
    kappa = kappa_with_error(sample, split)
    same, chance = split.agreement()
    upper = modes.is_upper(values)
    row: dict[str, Any] = {
        "share": float(upper.mean()),
        "lower": modes.lower,
        "upper": modes.upper,
        "lower_sd": modes.lower_sd,
        "upper_sd": modes.upper_sd,
        "distance": modes.distance,
        "gain": modes.gain,
        "split": modes.split,
        "same": same,
        "chance": chance,
        "kappa": kappa.value,
        "kappa_se": kappa.se,
        "gap": split.gap(pseudo_values(values, sample.replicates[form])),
    }
    found = modes_with_errors(sample, form, modes) if errors else {}
    for name in ("lower", "upper", "distance"):
        row[f"{name}_se"] = found[name].se if name in found else None
    shares = gap_shares(sample, split) if form == "chi" else {}
    for part in PARTS:
        row[f"gap_{part}"] = shares.get(part)
    for name, values_of in covariates.items():
        row[f"auc_{name}"] = auc(values_of, upper)
    return row


def covariates_of(data: PerToken, repeated: Mask, indices: NDArray[np.int64]) -> dict[str, Array]:
    """What might tell the modes apart without any sampling: the loss at w*, the position in the
    context, and whether the token repeats a bigram of its context."""
    return {
        "loss": data.tokens["loss"].to_numpy()[indices],
        "position": data.tokens["position"].to_numpy()[indices].astype(np.float64),
        "repeat": repeated[indices].astype(np.float64),
    }


def are_two_modes(p_adjusted: float, row: Mapping[str, Any]) -> bool:
    """The criterion of the search, errors of D and kappa aside."""
    return p_adjusted <= LEVEL and row["distance"] > DISTANCE and row["kappa"] > KAPPA
