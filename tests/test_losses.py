"""The fast path against the plain one, and the plain one against the model itself.

Every component kind of both kinds of model; in float64, where both must agree to rounding, in
float32, and with the change of the logits in bfloat16.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from susceptibilities.components import component, component_names
from susceptibilities.losses import (
    ComponentLosses,
    PlainLosses,
    Precision,
    component_losses,
    context_losses,
    linear_loss_sum,
    linear_losses,
)
from susceptibilities.losses.logits import log_sum_exp
from susceptibilities.models.attention_only import AttentionOnlyConfig
from susceptibilities.models.gpt_neox import GPTNeoXConfig
from susceptibilities.models.shapes import Shape, new_model
from susceptibilities.models.transformer import Transformer, token_losses

SHAPES: dict[str, Shape] = {
    # d_head of at most d_model / 2: heads of the last layer take the low-rank form.
    "attention_only": AttentionOnlyConfig(
        n_layers=3, n_heads=2, d_model=12, d_head=5, n_ctx=9, d_vocab=700
    ),
    "gpt_neox": GPTNeoXConfig(
        n_layers=3, n_heads=4, d_model=16, d_head=4, n_ctx=9, d_vocab=300, d_mlp=24, rotary_pct=0.5
    ),
    # One head of the whole width: no low-rank form.
    "one_head": GPTNeoXConfig(
        n_layers=1, n_heads=1, d_model=8, d_head=8, n_ctx=9, d_vocab=60, d_mlp=8
    ),
}
CASES = [(s, n) for s, shape in SHAPES.items() for n in {*component_names(shape), "full"}]
CASES.sort()
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Transformer:
    made = new_model(SHAPES[name])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return made.to(device, dtype).eval()


def some_tokens(name: str, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, SHAPES[name].d_vocab, (7, 9), generator=generator).to(device)


def perturbed(base: Tensor, count: int, size: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(count, len(base), generator=generator, dtype=torch.float64)
    return base + size * noise.to(base)


def both(
    model: Transformer, name: str, precision: Precision = "float32"
) -> tuple[ComponentLosses, ComponentLosses]:
    part = component(name, model.config, dict(model.named_parameters()))
    plain = component_losses(model, part, plain=True)
    assert isinstance(plain, PlainLosses)
    return component_losses(model, part, precision), plain


def error(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_the_plain_path_is_the_model_with_the_weights_put_in(shape: str, name: str) -> None:
    model, tokens = make(shape), some_tokens(shape)
    part = component(name, SHAPES[shape], dict(model.named_parameters()))
    losses = PlainLosses(model, part)
    weights = perturbed(losses.w_star, 2)
    found = losses.losses(weights, losses.prepare(tokens))
    rows = torch.tensor([[0, 1, 2], [6, 2, 3]])
    loss, gradient = losses.loss_and_gradient(weights, losses.prepare(tokens), rows)
    for i, vector in enumerate(weights):
        leaf = vector.clone().requires_grad_()
        parameters = part.substitute(dict(model.named_parameters()), leaf)
        exact = token_losses(torch.func.functional_call(model, parameters, (tokens,)), tokens)
        assert error(found[i], exact.detach()) < 1e-12
        mean = exact[rows[i]].mean()
        assert torch.allclose(loss[i], mean.detach(), rtol=1e-12)
        assert error(gradient[i], torch.autograd.grad(mean, leaf)[0]) < 1e-10


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("shape", "name"), CASES)
def test_the_fast_path_is_the_plain_one(
    shape: str, name: str, dtype: torch.dtype, device: str
) -> None:
    model, tokens = make(shape, dtype, device), some_tokens(shape, device)
    fast, plain = both(model, name)
    assert not isinstance(fast, PlainLosses)
    bound = 1e-12 if dtype == torch.float64 else 3e-5
    weights = perturbed(fast.w_star, 5)
    all_tokens = plain.prepare(tokens)
    exact = plain.shifts(weights, all_tokens)
    rows = torch.tensor([[0, 1, 2], [6, 2, 3], [4, 5, 0], [1, 1, 1], [2, 0, 6]], device=device)
    loss, gradient = plain.loss_and_gradient(weights, all_tokens, rows)
    for keep in (True, False):
        prepared = fast.prepare(tokens, keep)
        assert error(fast.shifts(weights, prepared), exact) < bound
        assert error(fast.star(prepared), plain.star(all_tokens)) < bound
        assert error(fast.losses(weights, prepared), plain.losses(weights, all_tokens)) < bound
        assert error(fast.shifts(weights, prepared, slice(2, 5)), exact[:, 2:5]) < bound
        assert error(fast.star(prepared, slice(6, None)), plain.star(all_tokens)[6:]) < bound
        found = fast.loss_and_gradient(weights, prepared, rows)
        assert error(found[0], loss) < bound
        assert error(found[1], gradient) < 10 * bound


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_a_vocabulary_in_many_parts(monkeypatch: pytest.MonkeyPatch, shape: str, name: str) -> None:
    monkeypatch.setattr("susceptibilities.losses.logits._COLUMNS", 37)
    model, tokens = make(shape), some_tokens(shape)
    fast, plain = both(model, name)
    weights, all_tokens = perturbed(fast.w_star, 3), plain.prepare(tokens)
    prepared = fast.prepare(tokens)
    rows = torch.tensor([[0, 1], [6, 2], [3, 3]])
    assert error(fast.shifts(weights, prepared), plain.shifts(weights, all_tokens)) < 1e-12
    assert error(fast.star(prepared), plain.star(all_tokens)) < 1e-12
    found = fast.loss_and_gradient(weights, prepared, rows)
    exact = plain.loss_and_gradient(weights, all_tokens, rows)
    assert error(found[0], exact[0]) < 1e-12
    assert error(found[1], exact[1]) < 1e-11
    narrow, _ = both(make(shape, torch.float32), name, "bfloat16")
    small = narrow.shifts(weights.float(), narrow.prepare(tokens)).double()
    assert error(small, plain.shifts(weights, all_tokens)) < 2**-7


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_bfloat16_in_the_change_of_the_logits_costs_little(shape: str, name: str) -> None:
    # Its precision is 2^-9; the target's logit is exact, the others' errors are averaged.
    model, tokens = make(shape, torch.float32), some_tokens(shape)
    fast, plain = both(model, name, "bfloat16")
    weights = perturbed(fast.w_star, 5, 0.05)
    found = fast.shifts(weights, fast.prepare(tokens))
    exact = plain.shifts(weights, plain.prepare(tokens))
    assert float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt()) < 2**-9


@pytest.mark.parametrize("shape", list(SHAPES))
def test_losses_at_the_models_own_weights(shape: str) -> None:
    model, tokens = make(shape), some_tokens(shape)
    exact = token_losses(model(tokens), tokens).mean(-1)
    assert torch.allclose(context_losses(model, tokens, block=3), exact, rtol=1e-12)


def test_layers_share_what_is_prepared() -> None:
    model, tokens = make("gpt_neox"), some_tokens("gpt_neox")
    head, plain = both(model, "1:2")
    mlp, _ = both(model, "mlp:1")
    assert head.depth == mlp.depth == 1
    weights = perturbed(head.w_star, 2)
    exact = plain.shifts(weights, plain.prepare(tokens))
    assert error(head.shifts(weights, mlp.prepare(tokens)), exact) < 1e-12


@pytest.mark.parametrize("rows", [7, 1100])
def test_linear_losses_and_their_fused_gradient(rows: int) -> None:
    generator = torch.Generator().manual_seed(3)
    final = torch.randn(rows, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 50, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(50, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (rows,), generator=generator)
    plain = F.cross_entropy(final @ weight + bias, targets, reduction="none")
    found = linear_losses(final.detach(), weight.detach(), bias.detach(), targets)
    assert torch.allclose(found, plain)
    fused = linear_loss_sum(final, weight, bias, targets)
    assert torch.allclose(fused, plain.sum())
    for a, b in zip(
        torch.autograd.grad(3 * fused.sum(), (final, weight, bias)),
        torch.autograd.grad(3 * plain.sum(), (final, weight, bias)),
        strict=True,
    ):
        assert torch.allclose(a, b)
    with_none = linear_loss_sum(final, weight, None, targets)
    assert torch.allclose(with_none, F.cross_entropy(final @ weight, targets, reduction="sum"))


def test_log_sum_exp_of_very_different_logits() -> None:
    logits = torch.tensor([[0.0, 500.0, -500.0], [-1e4, -1e4, -1e4]])
    assert torch.allclose(log_sum_exp(logits), torch.logsumexp(logits, -1))
