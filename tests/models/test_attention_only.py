"""The model's own parts: attention patterns, causality, initialisation, losses."""

from __future__ import annotations

import pytest
import torch

from susceptibilities.models.attention_only import (
    AttentionOnly,
    AttentionOnlyConfig,
    attention_pattern,
    causal_attention,
    token_losses,
)

SHAPE = AttentionOnlyConfig(n_layers=2, n_heads=3, d_model=12, d_head=5, n_ctx=9, d_vocab=17)


@pytest.fixture
def model() -> AttentionOnly:
    built = AttentionOnly(SHAPE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return built.requires_grad_(False).eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(
        SHAPE.d_vocab, (4, SHAPE.n_ctx), generator=torch.Generator().manual_seed(2)
    )


def test_patterns_are_causal_distributions(model: AttentionOnly, tokens: torch.Tensor) -> None:
    patterns = model.attention_patterns(tokens)
    assert patterns.shape == (2, 4, 3, 9, 9)
    assert (patterns >= 0).all()
    assert (patterns.triu(1) == 0).all()
    torch.testing.assert_close(patterns.sum(-1), torch.ones(2, 4, 3, 9))


def test_patterns_are_those_of_forward(model: AttentionOnly, tokens: torch.Tensor) -> None:
    """The whole model written out once more from its patterns, head by head."""
    patterns = model.attention_patterns(tokens)
    x = model.embed.W_E[tokens]
    for layer, block in enumerate(model.blocks):
        source, a = block.ln1(x), block.attn
        for head in range(SHAPE.n_heads):
            values = source @ a.W_V[head] + a.b_V[head]
            x = x + patterns[layer, :, head] @ values @ a.W_O[head]
        x = x + a.b_O
    logits = model.ln_final(x) @ model.unembed.W_U + model.unembed.b_U
    torch.testing.assert_close(logits, model(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_two_ways_of_attention_agree(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 4, generator=generator).to(dtype) for _ in range(3))
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    close = 3e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(attention_pattern(q, k) @ v, fused, atol=close, rtol=close)
    torch.testing.assert_close(causal_attention(q, k, v), fused, atol=close, rtol=close)


def test_autocast_takes_the_products() -> None:
    """The fused kernel's backward pass is slow in bfloat16, and autocast leaves q float32."""
    q, k, v = (torch.randn(2, 3, 7, 4, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = causal_attention(q, k, v)
    names, waiting = set(), [mixed.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.add(node.name())
            waiting += [inner for inner, _ in node.next_functions]
    assert "SoftmaxBackward0" in names
    assert not any("ScaledDotProduct" in name for name in names)


def test_a_later_token_changes_nothing_before_it(
    model: AttentionOnly, tokens: torch.Tensor
) -> None:
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % SHAPE.d_vocab
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


def test_shorter_contexts_are_a_prefix(model: AttentionOnly, tokens: torch.Tensor) -> None:
    torch.testing.assert_close(model(tokens[:, :4]), model(tokens)[:, :4])


def test_too_long_a_context(model: AttentionOnly) -> None:
    with pytest.raises(ValueError, match="context of 10 tokens, model has 9"):
        model(torch.zeros(1, 10, dtype=torch.int64))


def test_residual_by_layers(model: AttentionOnly, tokens: torch.Tensor) -> None:
    torch.testing.assert_close(model.residual(tokens, 0), model.embed.W_E[tokens])
    half = model.residual(tokens, 1)
    torch.testing.assert_close(model.blocks[1](half, model.pos_embed.W_pos), model.residual(tokens))


def test_token_losses_are_float32_for_half_precision_logits() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    tokens = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(1))
    losses = token_losses(logits, tokens)
    assert losses.dtype == torch.float32
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].double().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(losses.flatten().double(), expected, atol=1e-5, rtol=1e-5)


def test_initial_weights_follow_from_the_seed() -> None:
    def made(seed: int, sinusoids: bool) -> dict[str, torch.Tensor]:
        model = AttentionOnly(SHAPE)
        model.initialise(torch.Generator().manual_seed(seed), sinusoids)
        return model.state_dict()

    one, same, other = made(3, True), made(3, True), made(4, True)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embed.W_E"], other["embed.W_E"])
    waves = one["pos_embed.W_pos"].view(SHAPE.n_ctx, -1, 2)
    torch.testing.assert_close(waves.square().sum(-1), torch.ones(SHAPE.n_ctx, 6))
    assert not torch.equal(made(3, False)["pos_embed.W_pos"], one["pos_embed.W_pos"])
    # All other weights are the same draws with and without the sinusoids.
    assert torch.equal(made(3, False)["unembed.W_U"], one["unembed.W_U"])
