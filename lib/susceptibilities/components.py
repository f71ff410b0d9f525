"""Components: named sets of parameter slices of a model, and their weights as flat vectors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .models.attention_only import AttentionOnlyConfig

HEAD_PARAMETERS = ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O")


@dataclass(frozen=True)
class Slice:
    """One parameter, or one entry along its first axis (a head)."""

    parameter: str
    index: int | None
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class Component:
    """A part of the model whose weights are sampled while all others stay at w*.

    Attributes:
        name: ``0:1`` (layer:head), ``embed``, ``unembed`` or ``full`` (unrestricted).
        slices: its parameter slices, in the order of the flat weight vector.
    """

    name: str
    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """Number of weights, P."""
        return sum(piece.size for piece in self.slices)

    @property
    def head(self) -> tuple[int, int] | None:
        """(layer, head), or None for a component that is not a head."""
        match = re.fullmatch(r"(\d+):(\d+)", self.name)
        return (int(match[1]), int(match[2])) if match else None

    def read(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The component's weights as one vector of shape (P,), a copy."""
        flat = []
        for piece in self.slices:
            value = parameters[piece.parameter].detach()
            flat.append((value if piece.index is None else value[piece.index]).reshape(-1))
        return torch.cat(flat)

    def split(self, weights: Tensor) -> dict[str, Tensor]:
        """Views of ``weights`` (..., P) as parameters (..., *shape), keyed by parameter name."""
        pieces = weights.split([piece.size for piece in self.slices], dim=-1)
        return {
            piece.parameter: part.unflatten(-1, piece.shape)
            for piece, part in zip(self.slices, pieces, strict=True)
        }

    def substitute(self, parameters: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        """All parameters with this component's replaced by one weight vector of shape (P,)."""
        replaced = dict(parameters)
        for piece, value in zip(self.slices, self.split(weights).values(), strict=True):
            if piece.index is None:
                replaced[piece.parameter] = value
            else:
                rows = list(parameters[piece.parameter].unbind(0))
                rows[piece.index] = value
                replaced[piece.parameter] = torch.stack(rows)
        return replaced


def head_names(config: AttentionOnlyConfig) -> list[str]:
    """All heads, layer by layer."""
    return [f"{layer}:{head}" for layer in range(config.n_layers) for head in range(config.n_heads)]


def component(
    name: str, config: AttentionOnlyConfig, parameters: Mapping[str, Tensor]
) -> Component:
    """The component called ``name``.

    A head is its rows of Q, K and V with their biases and its rows of the output matrix; the
    output bias is shared by the layer and belongs to no head.

    Raises:
        ValueError: there is no such component; the message lists those that exist.
    """
    if name in head_names(config):
        layer, head = map(int, name.split(":"))
        slices = []
        for parameter in HEAD_PARAMETERS:
            full = f"blocks.{layer}.attn.{parameter}"
            slices.append(Slice(full, head, tuple(parameters[full].shape[1:])))
        return Component(name, tuple(slices))
    whole = {
        "embed": ("embed.W_E",),
        "unembed": ("unembed.W_U", "unembed.b_U"),
        "full": tuple(parameters),
    }
    if name not in whole:
        raise ValueError(
            f"no component {name!r}: expected a head from 0:0 to {head_names(config)[-1]} "
            f"(layer:head), or one of {', '.join(whole)}"
        )
    return Component(name, tuple(Slice(p, None, tuple(parameters[p].shape)) for p in whole[name]))
