"""Counted operations against PyTorch's own counter, part by part and for whole evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from susceptibilities.components import Component, component, component_names
from susceptibilities.losses import component_losses
from susceptibilities.models.attention_only import AttentionOnlyConfig
from susceptibilities.models.gpt_neox import PYTHIA, GPTNeoXConfig
from susceptibilities.models.shapes import Shape, new_model
from susceptibilities.models.transformer import Transformer
from susceptibilities.planning import operations as count
from susceptibilities.planning import work

ATTENTION_ONLY = AttentionOnlyConfig(
    n_layers=3, n_heads=2, d_model=12, d_head=5, n_ctx=9, d_vocab=40
)
NEOX = GPTNeoXConfig(n_layers=3, n_heads=2, d_model=16, n_ctx=9, d_vocab=40, d_mlp=24)
SHAPES = [ATTENTION_ONLY, NEOX]
LENGTH, CONTEXTS, DRAWS = 7, 3, 4
# Whole evaluations: a component of every kind and place.
CASES = [
    (shape, name)
    for shape in SHAPES
    for name in ("0:1", "1:0", "2:1", "embed", "unembed", "full", "mlp:0", "mlp:2")
    if not (name.startswith("mlp") and shape is ATTENTION_ONLY)
]


def _added_product(total: Any, a: Any, b: Any, **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def counted(run: Callable[[], Any]) -> int:
    """Operations of a call; attention as products, which the counter knows on a CPU."""
    # The counter does not know the product that adds to its own argument.
    mapping = {torch.ops.aten.addmm_: _added_product}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return counter.get_total_flops()


def random_model(shape: Shape) -> Transformer:
    model = new_model(shape)
    model.initialise(torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(False)


def part_of(model: Transformer, name: str) -> Component:
    return component(name, model.config, dict(model.named_parameters()))  # type: ignore[arg-type]


def tokens(count_: int = CONTEXTS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 40, (count_, LENGTH), generator=generator)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.kind)
def test_forward(shape: Shape) -> None:
    model = random_model(shape)
    expected = count.layer(CONTEXTS, LENGTH, shape, fused=False) * shape.n_layers
    expected += count.logits(CONTEXTS * LENGTH, shape)
    assert counted(lambda: model(tokens())) == expected.operations
    assert work.plain_evaluation(shape, 1, CONTEXTS, LENGTH, False).operations == (
        expected.operations
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.kind)
def test_parts(shape: Shape) -> None:
    model = random_model(shape)
    stream = model.residual(tokens(), 1)
    source = model.attention_source(1, stream)
    part = part_of(model, "1:1")
    pieces = part.split(part.read(dict(model.named_parameters())).repeat(DRAWS, 1))

    def head() -> None:
        mixed, output = model.head(1, pieces, source)
        torch.bmm(mixed.flatten(1, 2), output)

    expected = count.layer(CONTEXTS, LENGTH, shape, fused=False).operations
    assert counted(lambda: model.layer(1, stream)) == expected
    expected = count.head(DRAWS, CONTEXTS, LENGTH, shape, fused=False).operations
    assert counted(head) == expected
    if isinstance(shape, GPTNeoXConfig):
        part = part_of(model, "mlp:1")
        weights = part.read(dict(model.named_parameters())).repeat(DRAWS, 1)
        expected = count.mlp(CONTEXTS * LENGTH, shape, DRAWS).operations
        assert counted(lambda: model.mlp(1, part.split(weights), source)) == expected


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.kind)
@pytest.mark.parametrize("weights", [False, True])
def test_layer_backward(shape: Shape, weights: bool) -> None:
    model = random_model(shape).requires_grad_(weights)
    stream = model.residual(tokens(), 1).detach().requires_grad_()
    forward = count.layer(CONTEXTS, LENGTH, shape, fused=False)
    both = forward + count.layer_backward(CONTEXTS, LENGTH, shape, False, weights)
    assert counted(lambda: model.layer(1, stream).sum().backward()) == both.operations


@pytest.mark.parametrize(("shape", "name"), CASES, ids=lambda v: getattr(v, "kind", v))
def test_evaluation(shape: Shape, name: str) -> None:
    model = random_model(shape)
    part = part_of(model, name)
    losses = component_losses(model, part)
    weights = losses.w_star.repeat(DRAWS, 1)
    expected = (
        work.evaluation(part, shape, DRAWS, CONTEXTS, LENGTH, fused=False)
        + work.shared(part, shape, CONTEXTS, LENGTH, fused=False)
        + work.projected_outputs(part, shape, DRAWS)
    )
    prepared = losses.prepare(tokens(), keep=False)
    found = counted(lambda: losses.shifts(weights, prepared))
    assert found == expected.operations


@pytest.mark.parametrize(("shape", "name"), CASES, ids=lambda v: getattr(v, "kind", v))
def test_gradient(shape: Shape, name: str) -> None:
    model = random_model(shape)
    part = part_of(model, name)
    losses = component_losses(model, part)
    chains, batch = 3, 2
    weights = losses.w_star.repeat(chains, 1)
    rows = torch.arange(chains * batch).view(chains, batch)
    prepared = losses.prepare(tokens(chains * batch))
    expected = work.gradient(part, shape, chains, batch, LENGTH, fused=False)
    found = counted(lambda: losses.loss_and_gradient(weights, prepared, rows))
    assert found == expected.operations


@pytest.mark.parametrize(("shape", "name"), CASES, ids=lambda v: getattr(v, "kind", v))
def test_plain_gradient(shape: Shape, name: str) -> None:
    model = random_model(shape)
    part = part_of(model, name)
    losses = component_losses(model, part, plain=True)
    rows = torch.arange(6).view(3, 2)
    prepared = losses.prepare(tokens(6))
    weights = losses.w_star.repeat(3, 1)
    expected = work.plain_gradient(part, shape, 3, 2, LENGTH, fused=False)
    found = counted(lambda: losses.loss_and_gradient(weights, prepared, rows))
    assert found == expected.operations


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.kind)
def test_streams_below(shape: Shape) -> None:
    model = random_model(shape)
    for name in ("0:0", "2:0", "embed", "unembed"):
        part = part_of(model, name)
        losses = component_losses(model, part)
        below = work.streams_below(part, shape, 2, LENGTH)
        # A fused kernel's half of the scores, instead of the counter's whole.
        fused = count.attention(2, LENGTH, shape, shape.n_heads, True).operations
        whole = count.attention(2, LENGTH, shape, shape.n_heads, False).operations
        layers = below.operations / count.layer(2, LENGTH, shape).operations
        expected = below.operations + layers * (whole - fused)
        assert counted(lambda losses=losses: losses.prepare(tokens(2))) == expected


class _Traffic(TorchDispatchMode):
    """Adds up the numbers in the inputs and outputs of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func)
        if name.startswith(("aten.mm", "aten.bmm")):
            self.numbers += args[0].numel() + args[1].numel() + result.numel()
        elif name.startswith(("aten.addmm", "aten.baddbmm")):
            self.numbers += args[1].numel() + args[2].numel() + result.numel()
        return result


def test_traffic_of_products() -> None:
    model = random_model(NEOX)
    stream = model.residual(tokens(), 1)
    with sdpa_kernel(SDPBackend.MATH), _Traffic() as traffic:
        model.layer(1, stream)
    assert traffic.numbers == count.layer(CONTEXTS, LENGTH, NEOX, fused=False).traffic
    with _Traffic() as traffic:
        torch.addmm(torch.zeros(40), torch.zeros(6, 16), torch.zeros(16, 40))
    assert traffic.numbers == count.logits(6, NEOX).traffic
    # On the chip, logits are not written.
    assert count.logits(6, NEOX, in_memory=False).traffic == traffic.numbers - 6 * 40


def test_fused_attention_is_the_causal_half() -> None:
    square = count.attention(2, 9, NEOX, 2, fused=False).operations
    causal = count.attention(2, 9, NEOX, 2, fused=True).operations
    assert causal / square == pytest.approx((9 + 1) / (2 * 9))


def test_last_layer_head_is_cheaper_by_about_the_ratio_of_widths() -> None:
    shape = PYTHIA["1.4b"]
    parts = dict(zip(["last", "before"], work.components_of(shape, ("23:0", "22:0")), strict=True))
    last = work.evaluation(parts["last"], shape, 400, 1, 1024)
    full = count.logits(1023, shape, 400)
    assert set(last.costs) == {"layers", "head", "low_rank_logits"}
    assert last.costs["layers"].operations == 0
    ratio = last.costs["low_rank_logits"].operations / full.operations
    assert ratio == pytest.approx((shape.d_head + 1) / shape.d_model)
    before = work.evaluation(parts["before"], shape, 400, 1, 1024)
    assert "low_rank_logits" not in before.costs
    wide = AttentionOnlyConfig(n_layers=1, n_heads=2, d_model=8, d_head=5, n_ctx=4, d_vocab=9)
    assert not work.is_low_rank(work.components_of(wide, ("0:0",))[0], wide)


def test_components_of_the_papers() -> None:
    for name, expected, weights in (("14m", 32, 14_067_712), ("1.4b", 410, 1_414_647_808)):
        shape = PYTHIA[name]
        names = component_names(shape)
        assert len(names) == expected
        (full,) = work.components_of(shape, ("full",))
        assert full.size == weights
