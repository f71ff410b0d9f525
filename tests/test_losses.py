"""The fast path against the plain one, and both against autograd on the whole model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from susceptibilities.components import component, head_names
from susceptibilities.losses import (
    HeadLosses,
    PlainLosses,
    component_losses,
    context_losses,
    linear_loss_sum,
    linear_losses,
)
from susceptibilities.models.attention_only import AttentionOnly, AttentionOnlyConfig, token_losses

SHAPE = AttentionOnlyConfig(n_layers=3, n_heads=2, d_model=12, d_head=5, n_ctx=9, d_vocab=700)


@pytest.fixture(scope="module")
def model() -> AttentionOnly:
    made = AttentionOnly(SHAPE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return made.double().eval()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, SHAPE.d_vocab, (7, 9), generator=torch.Generator().manual_seed(1))


def perturbed(base: Tensor, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return base + 0.2 * torch.randn(count, len(base), generator=generator, dtype=base.dtype)


@pytest.mark.parametrize("name", [*head_names(SHAPE), "embed", "unembed", "full"])
def test_losses_are_those_of_the_model_with_the_weights_put_in(
    model: AttentionOnly, tokens: Tensor, name: str
) -> None:
    part = component(name, SHAPE, dict(model.named_parameters()))
    losses = component_losses(model, part)
    weights = perturbed(losses.w_star, 3)
    found = losses.losses(weights, losses.prepare(tokens))
    for vector, values in zip(weights, found, strict=True):
        parameters = part.substitute(dict(model.named_parameters()), vector)
        logits = torch.func.functional_call(model, parameters, (tokens,))
        assert torch.allclose(values, token_losses(logits, tokens), rtol=1e-10, atol=1e-10)
    star = losses.losses(losses.w_star[None], losses.prepare(tokens))[0]
    assert torch.allclose(star, token_losses(model(tokens), tokens), rtol=1e-10)
    assert torch.allclose(star.mean(-1), context_losses(model, tokens, block=3), rtol=1e-10)


@pytest.mark.parametrize("name", [*head_names(SHAPE), "embed", "unembed", "full"])
def test_gradients_are_autograds(model: AttentionOnly, tokens: Tensor, name: str) -> None:
    part = component(name, SHAPE, dict(model.named_parameters()))
    losses = component_losses(model, part)
    weights = perturbed(losses.w_star, 2)
    rows = torch.tensor([[0, 1, 2], [6, 2, 3]])
    for keep in (True, False):
        prepared = losses.prepare(tokens, keep)
        loss, gradient = losses.loss_and_gradient(weights, prepared, rows)
        for i, vector in enumerate(weights):
            leaf = vector.clone().requires_grad_()
            parameters = part.substitute(dict(model.named_parameters()), leaf)
            logits = torch.func.functional_call(model, parameters, (tokens[rows[i]],))
            plain = token_losses(logits, tokens[rows[i]]).mean()
            assert torch.allclose(loss[i], plain, rtol=1e-10)
            exact = torch.autograd.grad(plain, leaf)[0]
            assert torch.allclose(gradient[i], exact, rtol=1e-8, atol=1e-12)


def test_heads_take_the_fast_path_and_agree_with_the_plain_one_in_float32(
    model: AttentionOnly, tokens: Tensor
) -> None:
    single = AttentionOnly(SHAPE).float()
    single.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    part = component("1:0", SHAPE, dict(single.named_parameters()))
    fast, plain = component_losses(single, part), PlainLosses(single, part)
    assert isinstance(fast, HeadLosses)
    weights = perturbed(fast.w_star, 4)
    a = fast.losses(weights, fast.prepare(tokens))
    b = plain.losses(weights, plain.prepare(tokens))
    assert torch.allclose(a, b, atol=2e-5)


def test_linear_losses_and_their_fused_gradient(tokens: Tensor) -> None:
    generator = torch.Generator().manual_seed(3)
    final = torch.randn(1100, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 50, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(50, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (1100,), generator=generator)
    plain = F.cross_entropy(final @ weight + bias, targets, reduction="none")
    assert torch.allclose(
        linear_losses(final.detach(), weight.detach(), bias.detach(), targets), plain
    )
    fused = linear_loss_sum(final, weight, bias, targets)
    assert torch.allclose(fused, plain.sum())
    for a, b in zip(
        torch.autograd.grad(3 * fused.sum(), (final, weight, bias)),
        torch.autograd.grad(3 * plain.sum(), (final, weight, bias)),
        strict=True,
    ):
        assert torch.allclose(a, b)


def test_a_head_is_its_rows_and_columns(model: AttentionOnly) -> None:
    parameters = dict(model.named_parameters())
    part = component("2:1", SHAPE, parameters)
    assert part.size == 4 * 12 * 5 + 3 * 5
    changed = part.substitute(parameters, torch.zeros(part.size, dtype=torch.float64))
    for name, value in changed.items():
        if name.startswith("blocks.2.attn") and not name.endswith("b_O"):
            assert torch.equal(value[0], parameters[name][0])
            assert (value[1] == 0).all()
        else:
            assert torch.equal(value, parameters[name])
    assert torch.equal(part.read(changed), torch.zeros(part.size, dtype=torch.float64))


def test_the_papers_head_has_32768_weights_and_96_biases() -> None:
    shape = AttentionOnlyConfig(n_layers=1, n_heads=8, d_model=256, d_head=32, n_ctx=4, d_vocab=10)
    part = component("0:7", shape, dict(AttentionOnly(shape).named_parameters()))
    assert part.size == 32768 + 96


def test_an_unknown_component_is_named(model: AttentionOnly) -> None:
    with pytest.raises(ValueError, match=r"no component '3:0': expected a head from 0:0 to 2:1"):
        component("3:0", SHAPE, dict(model.named_parameters()))
