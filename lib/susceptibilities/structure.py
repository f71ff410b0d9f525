"""What the heads do: attention scores, roles, and the loss on repeated sequences.

The scores are those of Olsson et al. 2022 ("In-context learning and induction heads") and
the roles those of Wang et al. 2024 ("Differentiation and specialization of attention heads
via the refined local learning coefficient").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from .models.transformer import Transformer, token_losses
from .tokens import Contexts

Role = Literal["previous-token", "induction", "current-token", "multigram"]

# A head has the role whose score reaches its threshold, and by the largest factor where two
# do; the rest are multigram heads. In the shipped model each threshold lies in a gap of the
# scores. For comparison: attention that is even over earlier positions scores 0.01 to 0.04.
THRESHOLDS: dict[Role, float] = {
    "previous-token": 0.4,
    "induction": 0.1,
    "current-token": 0.4,
}


@dataclass(frozen=True)
class Scores:
    """Attention scores of every head, each of shape (layer, head), with standard errors.

    Attributes:
        previous_token: mean attention from a token of real text to the one before it.
        current_token: mean attention from a token of real text to itself.
        prefix_matching: mean attention, in the second copy of a random sequence, to the
            token that followed the same token in the first copy.
    """

    previous_token: NDArray[np.float64]
    previous_token_se: NDArray[np.float64]
    current_token: NDArray[np.float64]
    current_token_se: NDArray[np.float64]
    prefix_matching: NDArray[np.float64]
    prefix_matching_se: NDArray[np.float64]


def repeated_sequences(text: Contexts, count: int, seed: int) -> Int[Tensor, "sequence position"]:
    """Random token sequences, each twice in a row, after one beginning token.

    Tokens are drawn evenly from the kinds that occur in ``text``, the beginning token
    excepted, so that no token is one the model has never seen. The length is the longest
    odd number that fits the context of ``text``: 1 + 2 * period.
    """
    period = (text.shape[1] - 1) // 2
    if period < 2:
        raise ValueError(f"contexts of {text.shape[1]} tokens are too short to repeat a sequence")
    begin = int(text[0, 0])
    kinds = np.unique(text)
    kinds = kinds[kinds != begin]
    half = np.random.default_rng(seed).choice(kinds, (count, period)).astype(np.int64)
    front = np.full((count, 1), begin, np.int64)
    return torch.from_numpy(np.concatenate((front, half, half), axis=1))


def diagonal_attention(
    model: Transformer,
    tokens: Int[Tensor, "sequence position"],
    distances: Sequence[int],
    start: int,
    block: int = 16,
) -> list[Float[np.ndarray, "sequence layer head"]]:
    """For each distance, the mean attention of positions ``start`` and later to the position
    that far before them."""
    parts: list[list[Tensor]] = [[] for _ in distances]
    with torch.inference_mode():
        for rows in tokens.split(block):
            patterns = model.attention_patterns(rows)
            for part, distance in zip(parts, distances, strict=True):
                # Entry [t, t - distance] is on a diagonal below the main one.
                diagonal = patterns.diagonal(-distance, dim1=-2, dim2=-1)
                part.append(diagonal[..., start - distance :].mean(-1).movedim(1, 0))
    return [torch.cat(part).double().numpy(force=True) for part in parts]


def _mean_and_error(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the first axis (sequences) and its standard error."""
    if len(values) < 2:
        raise ValueError("a standard error over sequences needs at least two of them")
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def head_scores(
    model: Transformer,
    text: Int[Tensor, "context position"],
    repeats: Int[Tensor, "sequence position"],
) -> Scores:
    """Scores of every head of one checkpoint.

    Args:
        text: contexts of real text, beginning token first.
        repeats: from `repeated_sequences`.
    """
    period = (repeats.shape[1] - 1) // 2
    # Position 1 sees only the beginning token and itself: the scores start at 2.
    previous, current = diagonal_attention(model, text, distances=(1, 0), start=2)
    (matching,) = diagonal_attention(model, repeats, distances=(period - 1,), start=period + 1)
    return Scores(*_mean_and_error(previous), *_mean_and_error(current), *_mean_and_error(matching))


def repeat_losses(
    model: Transformer, repeats: Int[Tensor, "sequence position"], block: int = 16
) -> tuple[Float[np.ndarray, " position-1"], Float[np.ndarray, " position-1"]]:
    """Mean loss of the token at every position from 1 on, and its standard error."""
    parts = []
    with torch.inference_mode():
        for rows in repeats.split(block):
            parts.append(token_losses(model(rows), rows))
    return _mean_and_error(torch.cat(parts).double().numpy(force=True))


def role(scores: Mapping[Role, float]) -> Role:
    """The role of a head with these scores, by `THRESHOLDS`."""
    best: Role = "multigram"
    factor = 1.0
    for name, threshold in THRESHOLDS.items():
        if scores[name] / threshold >= factor:
            best, factor = name, scores[name] / threshold
    return best


def roles(scores: Scores) -> list[list[Role]]:
    """The role of every head, indexed [layer][head]."""
    layers, heads = scores.previous_token.shape
    return [
        [
            role(
                {
                    "previous-token": float(scores.previous_token[layer, head]),
                    "induction": float(scores.prefix_matching[layer, head]),
                    "current-token": float(scores.current_token[layer, head]),
                }
            )
            for head in range(heads)
        ]
        for layer in range(layers)
    ]


def heads_table(scores: Mapping[int, Scores]) -> pl.DataFrame:
    """One row a training step and head: scores, standard errors, and the head's role.

    The role is that of the last step, the same in all rows of a head.
    """
    final = roles(scores[max(scores)])
    rows = []
    for step in sorted(scores):
        for layer, row in enumerate(final):
            for head, name in enumerate(row):
                values = {
                    key: float(value[layer, head]) for key, value in vars(scores[step]).items()
                }
                rows.append({"step": step, "head": f"{layer}:{head}", **values, "role": name})
    return pl.DataFrame(rows)


def repeats_table(
    losses: Mapping[int, tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> pl.DataFrame:
    """One row a training step and position (from 1): mean loss and its standard error."""
    return pl.concat(
        pl.DataFrame(
            {
                "step": np.full(len(mean), step),
                "position": np.arange(1, len(mean) + 1),
                "loss": mean,
                "se": error,
            }
        )
        for step, (mean, error) in sorted(losses.items())
    )
