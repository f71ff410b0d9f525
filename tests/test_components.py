"""Components of both kinds of model: what belongs to them, and putting weights in their place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from susceptibilities.components import (
    Component,
    Slice,
    component,
    component_names,
    head_names,
    unassigned,
)
from susceptibilities.models import (
    PYTHIA,
    AttentionOnlyConfig,
    GPTNeoXConfig,
    Shape,
    new_model,
)
from susceptibilities.naming import component_order

LENS = AttentionOnlyConfig(n_layers=2, n_heads=3, d_model=6, d_head=5, n_ctx=4, d_vocab=7)
NEOX = GPTNeoXConfig(n_layers=2, n_heads=3, d_model=12, n_ctx=4, d_vocab=7, d_mlp=9, rotary_pct=0.5)
SHAPES: dict[str, Shape] = {"attention_only": LENS, "gpt_neox": NEOX}
EVERY = [(kind, name) for kind in SHAPES for name in [*component_names(SHAPES[kind]), "full"]]


def weights_of(shape: Shape) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for name, parameter in new_model(shape).named_parameters()
    }


def on_meta(shape: Shape) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(new_model(shape).named_parameters())


def test_names_in_order() -> None:
    heads = ["0:0", "0:1", "0:2", "1:0", "1:1", "1:2"]
    assert head_names(LENS) == head_names(NEOX) == heads
    assert component_names(LENS) == ["embed", *heads, "unembed"]
    assert component_names(NEOX) == ["embed", *heads[:3], "mlp:0", *heads[3:], "mlp:1", "unembed"]


@pytest.mark.parametrize("shape", [*SHAPES.values(), PYTHIA["1.4b"]])
def test_any_order_of_names_is_sorted_as_in_the_model(shape: Shape) -> None:
    names = ["full", *component_names(shape)]
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    assert shuffled != names and sorted(shuffled, key=component_order) == names


@pytest.mark.parametrize(
    "name", ["", "0", "0:", ":1", "mlp", "mlp:", "mlp:x", "0:1:2", "norm", "all"]
)
def test_what_is_no_name_has_no_order(name: str) -> None:
    with pytest.raises(ValueError, match="no component's name"):
        component_order(name)


# Gordon et al. 2026, section 1: 32 components of Pythia-14M, 410 of Pythia-1.4B.
@pytest.mark.parametrize(("name", "count"), [("14m", 32), ("1.4b", 410)])
def test_numbers_of_components_of_pythia(name: str, count: int) -> None:
    shape = PYTHIA[name]
    names = component_names(shape)
    assert len(set(names)) == len(names) == count
    parameters = on_meta(shape)
    parts = [component(name, shape, parameters) for name in names]
    norms = shape.n_layers * (4 + 1) * shape.d_model + 2 * shape.d_model
    everything = component("full", shape, parameters).size
    assert sum(part.size for part in parts) + norms == everything


@pytest.mark.parametrize(
    ("name", "head", "layer", "kind"),
    [
        ("1:2", (1, 2), 1, "head"),
        ("10:0", (10, 0), 10, "head"),
        ("mlp:3", None, 3, "mlp"),
        ("embed", None, None, "embed"),
        ("unembed", None, None, "unembed"),
        ("full", None, None, "full"),
    ],
)
def test_what_a_name_says(
    name: str, head: tuple[int, int] | None, layer: int | None, kind: str
) -> None:
    part = Component(name, ())
    assert (part.head, part.layer, part.kind) == (head, layer, kind)


@pytest.mark.parametrize("kind", SHAPES)
def test_every_weight_is_in_one_component_or_left_over(kind: str) -> None:
    shape, counts = SHAPES[kind], weights_of(SHAPES[kind])
    counts = {name: torch.zeros_like(value) for name, value in counts.items()}
    for name in component_names(shape):
        for piece in component(name, shape, counts).slices:
            assert counts[piece.parameter][piece.place].shape == piece.shape
            counts[piece.parameter][piece.place] += 1
    left = unassigned(shape, counts)
    assert left == [name for name, count in counts.items() if (count == 0).all()]
    assert all((count == (name not in left)).all() for name, count in counts.items())
    shared = {
        "attention_only": ("pos_embed.W_pos", "ln1.w", "ln1.b", "b_O", "ln_final.w", "ln_final.b"),
        "gpt_neox": ("norm.weight", "norm.bias", "attention.dense.bias"),
    }
    assert all(name.endswith(shared[kind]) for name in left)
    assert len(left) == {"attention_only": 1 + 2 * 3 + 2, "gpt_neox": 2 * 5 + 2}[kind]


def test_what_is_left_of_a_parameter() -> None:
    """A model with more heads than its shape says: the rest belongs to nobody."""
    wide = NEOX.model_copy(update={"n_heads": 4, "d_model": 16})
    name = "gpt_neox.layers.0.attention.dense.weight"
    assert f"{name} (64 of 256 weights)" in unassigned(NEOX, on_meta(wide))


def test_heads_of_the_attention_only_model() -> None:
    parameters = weights_of(LENS)
    part = component("1:2", LENS, parameters)
    names = [piece.parameter.rsplit(".", 1)[1] for piece in part.slices]
    assert names == ["W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O"]
    expected = [parameters[f"blocks.1.attn.{name}"][2].flatten() for name in names]
    assert torch.equal(part.read(parameters), torch.cat(expected))


def test_heads_of_gpt_neox() -> None:
    """Head h has the rows of Q, K and V that lie together, and its columns of the output."""
    parameters = weights_of(NEOX)
    part = component("1:2", NEOX, parameters)
    attention = "gpt_neox.layers.1.attention"
    expected = [
        parameters[f"{attention}.query_key_value.weight"].view(3, 3, 4, 12)[2].flatten(),
        parameters[f"{attention}.query_key_value.bias"].view(3, 12)[2],
        parameters[f"{attention}.dense.weight"].view(12, 3, 4)[:, 2].flatten(),
    ]
    assert torch.equal(part.read(parameters), torch.cat(expected))
    mlp = component("mlp:1", NEOX, parameters)
    assert mlp.size == 2 * 12 * 9 + 12 + 9


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_weights_are_put_where_they_are_read(kind: str, name: str) -> None:
    parameters = weights_of(SHAPES[kind])
    before = {key: value.clone() for key, value in parameters.items()}
    part = component(name, SHAPES[kind], parameters)
    assert part.read(parameters).shape == (part.size,)
    weights = torch.arange(part.size, dtype=torch.float64).requires_grad_()
    changed = part.substitute(parameters, weights)
    assert list(changed) == list(parameters)
    assert torch.equal(part.read(changed), weights)
    assert all(torch.equal(parameters[key], before[key]) for key in before)
    # Nothing else has changed.
    again = part.substitute(changed, part.read(before))
    assert all(torch.equal(again[key], before[key]) for key in before)
    # The derivative of what is put in is one at its place.
    slope = torch.linspace(1, 2, part.size, dtype=torch.float64)
    places = {key: torch.zeros_like(value) for key, value in before.items()}
    marked = part.substitute(places, slope)
    total = sum((changed[key] * marked[key]).sum() for key in changed)
    assert isinstance(total, Tensor)
    assert torch.equal(torch.autograd.grad(total, weights)[0], slope)


@given(st.data())
def test_any_place_of_a_parameter(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    place: list[int | slice] = []
    for size in shape[: data.draw(st.integers(0, len(shape)))]:
        start = data.draw(st.integers(0, size - 1))
        stop = data.draw(st.integers(start + 1, size))
        place.append(data.draw(st.sampled_from([start, slice(start, stop), slice(None)])))
    whole = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    part = whole[tuple(place)]
    some = Component("some", (Slice("w", tuple(place), tuple(part.shape)),))
    assert torch.equal(some.read({"w": whole}), part.flatten())
    expected = whole.clone()
    expected[tuple(place)] = -part
    found = some.substitute({"w": whole}, -part.flatten())["w"]
    assert torch.equal(found, expected)


def test_stacks_of_weights_are_split_without_copies() -> None:
    part = component("0:1", NEOX, weights_of(NEOX))
    weights = torch.zeros(2, 5, part.size)
    pieces = part.split(weights)
    assert {name: tuple(p.shape) for name, p in pieces.items()} == {
        piece.parameter: (2, 5, *piece.shape) for piece in part.slices
    }
    weights += 1
    assert all((piece == 1).all() for piece in pieces.values())


@pytest.mark.parametrize("name", ["2:0", "0:3", "mlp:2", "mlp", "everything", "0:-1", "0:01"])
@pytest.mark.parametrize("kind", SHAPES)
def test_an_unknown_component(kind: str, name: str) -> None:
    with pytest.raises(ValueError, match="expected a head from 0:0 to 1:2") as error:
        component(name, SHAPES[kind], weights_of(SHAPES[kind]))
    assert f"no component {name!r}" in str(error.value)
    assert ("an MLP from mlp:0 to mlp:1" in str(error.value)) == (kind == "gpt_neox")


def test_an_attention_only_model_has_no_mlp() -> None:
    with pytest.raises(ValueError, match="no component 'mlp:0'"):
        component("mlp:0", LENS, weights_of(LENS))
