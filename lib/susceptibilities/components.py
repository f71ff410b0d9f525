"""Components: named sets of parameter slices of a model, and their weights as flat vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .models.attention_only import HEAD_PARAMETERS
from .models.gpt_neox import GPTNeoXConfig
from .models.shapes import Shape
from .naming import head_of, layer_of

Place = tuple[int | slice, ...]


@dataclass(frozen=True)
class Slice:
    """A part of one parameter.

    Attributes:
        place: index of the part, one entry for each of the first axes; ``()`` is all of it.
        shape: of the part.
    """

    parameter: str
    place: Place
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class Component:
    """A part of the model whose weights are sampled while all others stay at w*.

    Attributes:
        name: ``0:1`` (layer:head), ``mlp:3`` (layer), ``embed``, ``unembed`` or ``full``
            (unrestricted).
        slices: its parameter slices, of different parameters, in the order of the flat weight
            vector.
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
        return head_of(self.name)

    @property
    def layer(self) -> int | None:
        """Layer of a head or an MLP; None for what is in no layer."""
        return layer_of(self.name)

    @property
    def kind(self) -> Literal["head", "mlp", "embed", "unembed", "full"]:
        if self.head is not None:
            return "head"
        if self.layer is not None:
            return "mlp"
        return "full" if self.name not in ("embed", "unembed") else self.name

    def read(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The component's weights as one vector of shape (P,), a copy."""
        return torch.cat(
            [parameters[piece.parameter].detach()[piece.place].reshape(-1) for piece in self.slices]
        )

    def split(self, weights: Tensor) -> dict[str, Tensor]:
        """Views of ``weights`` (..., P) as parameters (..., *shape), keyed by parameter name."""
        pieces = weights.split([piece.size for piece in self.slices], dim=-1)
        return {
            piece.parameter: part.view((*part.shape[:-1], *piece.shape))
            for piece, part in zip(self.slices, pieces, strict=True)
        }

    def substitute(self, parameters: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        """All parameters with this component's replaced by one weight vector of shape (P,)."""
        replaced = dict(parameters)
        for piece, value in zip(self.slices, self.split(weights).values(), strict=True):
            replaced[piece.parameter] = _put(parameters[piece.parameter], piece.place, value)
        return replaced


def _put(whole: Tensor, place: Place, part: Tensor, axis: int = 0) -> Tensor:
    """A copy of ``whole`` with ``part`` at ``place``; differentiable, and nothing is written to."""
    if not place:
        return part
    first, rest = place[0], place[1:]
    if isinstance(first, int):
        inner = _put(whole.select(axis, first), rest, part, axis)
        return torch.select_scatter(whole, inner, axis, first)
    if first == slice(None):
        return _put(whole, rest, part, axis + 1)
    start, stop, _ = first.indices(whole.shape[axis])
    inner = _put(whole.narrow(axis, start, stop - start), rest, part, axis + 1)
    return torch.slice_scatter(whole, inner, axis, start, stop)


def head_names(config: Shape) -> list[str]:
    """All heads, layer by layer."""
    return [f"{layer}:{head}" for layer in range(config.n_layers) for head in range(config.n_heads)]


def component_names(config: Shape) -> list[str]:
    """The parts of the model: embed, each layer's heads and its MLP if it has one, unembed."""
    names = ["embed"]
    for layer in range(config.n_layers):
        names += [f"{layer}:{head}" for head in range(config.n_heads)]
        if isinstance(config, GPTNeoXConfig):
            names.append(f"mlp:{layer}")
    return [*names, "unembed"]


def component(name: str, config: Shape, parameters: Mapping[str, Tensor]) -> Component:
    """The component called ``name``.

    A head is its rows of Q, K and V with their biases and what it has of the output matrix; the
    output bias is shared by the layer and belongs to no head. An MLP is its two matrices with
    their biases. LayerNorms and learned positions are part of ``full`` only.

    Raises:
        ValueError: there is no such component; the message lists those that exist.
    """
    if name == "full":
        places: dict[str, Place] = {parameter: () for parameter in parameters}
    elif name in component_names(config):
        places = _places(name, config)
    else:
        mlps = f", an MLP from mlp:0 to mlp:{config.n_layers - 1}"
        raise ValueError(
            f"no component {name!r}: expected a head from 0:0 to {head_names(config)[-1]} "
            f"(layer:head){mlps if isinstance(config, GPTNeoXConfig) else ''}, or one of "
            "embed, unembed, full"
        )
    return Component(
        name,
        tuple(
            Slice(parameter, place, tuple(parameters[parameter][place].shape))
            for parameter, place in places.items()
        ),
    )


def _places(name: str, config: Shape) -> dict[str, Place]:
    """Parameters of a component, and which part of each is the component's."""
    neox = isinstance(config, GPTNeoXConfig)
    if name == "embed":
        return {"gpt_neox.embed_in.weight" if neox else "embed.W_E": ()}
    if name == "unembed":
        return {"embed_out.weight": ()} if neox else {"unembed.W_U": (), "unembed.b_U": ()}
    first, second = name.split(":")
    if first == "mlp":
        prefix = f"gpt_neox.layers.{second}.mlp"
        matrices = ("dense_h_to_4h", "dense_4h_to_h")
        return {f"{prefix}.{m}.{part}": () for m in matrices for part in ("weight", "bias")}
    head = int(second)
    if not neox:
        return {f"blocks.{first}.attn.{parameter}": (head,) for parameter in HEAD_PARAMETERS}
    prefix, size = f"gpt_neox.layers.{first}.attention", config.d_head
    rows = slice(3 * size * head, 3 * size * (head + 1))
    return {
        f"{prefix}.query_key_value.weight": (rows,),
        f"{prefix}.query_key_value.bias": (rows,),
        f"{prefix}.dense.weight": (slice(None), slice(size * head, size * (head + 1))),
    }


def unassigned(config: Shape, parameters: Mapping[str, Tensor]) -> list[str]:
    """Parameters of which no component but ``full`` has anything, or not all.

    Those of which a part is assigned are followed by how much is left over.
    """
    taken: dict[str, list[Place]] = {name: [] for name in parameters}
    for name in component_names(config):
        for parameter, place in _places(name, config).items():
            taken[parameter].append(place)
    left = []
    for name, places in taken.items():
        if () in places:
            continue
        if not places:
            left.append(name)
            continue
        free = torch.ones(parameters[name].shape, dtype=torch.bool)
        for place in places:
            free[place] = False
        if count := int(free.sum()):
            left.append(f"{name} ({count} of {free.numel()} weights)")
    return left
