"""The parts of both kinds of model: they add up to the whole, for stacks of weights too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from susceptibilities.components import Component, component
from susceptibilities.models import (
    AttentionOnlyConfig,
    GPTNeoXConfig,
    Shape,
    Transformer,
    new_model,
    token_losses,
)
from susceptibilities.models.transformer import causal_attention

SHAPES: dict[str, Shape] = {
    "attention_only": AttentionOnlyConfig(
        n_layers=2, n_heads=3, d_model=12, d_head=5, n_ctx=9, d_vocab=17
    ),
    "gpt_neox": GPTNeoXConfig(
        n_layers=2, n_heads=3, d_model=12, n_ctx=9, d_vocab=17, d_mlp=20, rotary_pct=0.5
    ),
}
DRAWS = 3


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> Transformer:
    built = new_model(SHAPES[request.param]).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return built.requires_grad_(False).eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(17, (4, 9), generator=torch.Generator().manual_seed(2))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def part_of(model: Transformer, name: str) -> tuple[Component, dict[str, Tensor]]:
    parameters = dict(model.named_parameters())
    return component(name, model.config, parameters), parameters


def drawn(model: Transformer, name: str) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Weights of a component in DRAWS draws: as pieces, and put into the model's."""
    part, parameters = part_of(model, name)
    weights = part.read(parameters) + 0.3 * normal(DRAWS, part.size)
    return part.split(weights), [part.substitute(parameters, w) for w in weights]


def silenced(model: Transformer, name: str) -> dict[str, Tensor]:
    """All weights, with those of a component zero."""
    part, parameters = part_of(model, name)
    return part.substitute(parameters, torch.zeros(part.size, dtype=torch.float64))


class Layer(torch.nn.Module):
    """One layer as a module, for functional_call."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, stream: Tensor) -> Tensor:
        return self.model.layer(1, stream)


def layer_with(model: Transformer, parameters: dict[str, Tensor], stream: Tensor) -> Tensor:
    named = {f"model.{name}": value for name, value in parameters.items()}
    return torch.func.functional_call(Layer(model), named, (stream,))


def test_the_parts_make_the_whole(model: Transformer, tokens: Tensor) -> None:
    stream = model.embedded(tokens)
    torch.testing.assert_close(stream, model.residual(tokens, 0))
    stream = model.layer(0, stream)
    torch.testing.assert_close(stream, model.residual(tokens, 1))
    stream = model.layer(1, stream)
    torch.testing.assert_close(stream, model.residual(tokens))
    final = model.final(stream)
    weight, bias = model.unembedding()
    logits = final @ weight + (0.0 if bias is None else bias)
    torch.testing.assert_close(logits, model(tokens))
    # final_norm describes the same LayerNorm.
    w, b, eps = model.final_norm()
    centred = stream - stream.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w + b
    torch.testing.assert_close(final, expected)


def test_heads_and_mlps_add_up_to_the_layer(model: Transformer, tokens: Tensor) -> None:
    parameters = dict(model.named_parameters())
    stream = model.residual(tokens, 1)
    bias = "blocks.1.attn.b_O", "gpt_neox.layers.1.attention.dense.bias"
    total = stream + next(parameters[name] for name in bias if name in parameters)
    source = model.attention_source(1, stream)
    for head in range(3):
        part, _ = part_of(model, f"1:{head}")
        mixed, output = model.head(1, part.split(part.read(parameters)[None]), source)
        assert mixed.shape == (1, 4, 9, model.config.d_head)
        assert output.shape == (1, model.config.d_head, 12)
        total = total + (mixed @ output[:, None])[0]
    if isinstance(model.config, GPTNeoXConfig):
        part, _ = part_of(model, "mlp:1")
        pieces = part.split(part.read(parameters)[None])
        total = total + model.mlp(1, pieces, model.mlp_source(1, stream))[0]
    torch.testing.assert_close(total, model.layer(1, stream))


@pytest.mark.parametrize("own", [False, True])
def test_stacked_heads_are_those_of_models_with_the_weights_put_in(
    model: Transformer, tokens: Tensor, own: bool
) -> None:
    """Of a head of layer 1, on inputs that the draws share and on each its own."""
    stream = model.residual(tokens, 1)
    streams = stream + 0.1 * normal(DRAWS, *stream.shape) if own else stream.expand(DRAWS, 4, 9, 12)
    pieces, whole = drawn(model, "1:2")
    source = model.attention_source(1, streams if own else stream)
    mixed, output = model.head(1, pieces, source)
    assert mixed.shape == (DRAWS, 4, 9, model.config.d_head)
    added = mixed @ output[:, None]
    without = silenced(model, "1:2")
    for draw in range(DRAWS):
        found = layer_with(model, without, streams[draw]) + added[draw]
        torch.testing.assert_close(found, layer_with(model, whole[draw], streams[draw]))
    if not own:
        torch.testing.assert_close(model.head(1, pieces, source[None])[0], mixed)
        torch.testing.assert_close(model.head(1, pieces, source[0])[0], mixed[:, 0])


@pytest.mark.parametrize("own", [False, True])
def test_stacked_mlps_are_those_of_models_with_the_weights_put_in(
    model: Transformer, tokens: Tensor, own: bool
) -> None:
    stream = model.residual(tokens, 1)
    if not isinstance(model.config, GPTNeoXConfig):
        with pytest.raises(ValueError, match="have no MLP"):
            model.mlp_source(1, stream)
        with pytest.raises(ValueError, match="have no MLP"):
            model.mlp(1, {}, stream)
        return
    streams = stream + 0.1 * normal(DRAWS, *stream.shape) if own else stream.expand(DRAWS, 4, 9, 12)
    pieces, whole = drawn(model, "mlp:1")
    without = silenced(model, "mlp:1")
    source = model.mlp_source(1, streams if own else stream)
    added = model.mlp(1, pieces, source)
    if not own:
        torch.testing.assert_close(model.mlp(1, pieces, source[None]), added)
        torch.testing.assert_close(model.mlp(1, pieces, source[0]), added[:, 0])
    for draw in range(DRAWS):
        found = layer_with(model, without, streams[draw]) + added[draw]
        torch.testing.assert_close(found, layer_with(model, whole[draw], streams[draw]))


def test_inputs_for_another_number_of_draws(model: Transformer, tokens: Tensor) -> None:
    pieces, _ = drawn(model, "1:0")
    with pytest.raises(ValueError, match="3 draws of the weights, but inputs for 2"):
        model.head(1, pieces, normal(2, 4, 9, 12))


def test_stacked_embeddings_and_unembeddings(model: Transformer, tokens: Tensor) -> None:
    pieces, whole = drawn(model, "embed")
    (table,) = pieces.values()
    shared = model.embedded(tokens, table)
    each = torch.stack([tokens, tokens.flip(0), tokens.roll(1, 1)])
    own = model.embedded(each, table)
    for draw in range(DRAWS):
        changed = torch.func.functional_call(model, whole[draw], (tokens,))
        stream = model.layer(1, model.layer(0, shared[draw]))
        weight, bias = model.unembedding()
        torch.testing.assert_close(F.linear(model.final(stream), weight.T, bias), changed)
        torch.testing.assert_close(own[draw], table[draw][each[draw]])
    pieces, whole = drawn(model, "unembed")
    weight, bias = model.unembedding(pieces)
    final = model.final(model.residual(tokens))
    for draw in range(DRAWS):
        logits = F.linear(final, weight[draw].T, None if bias is None else bias[draw])
        torch.testing.assert_close(
            logits, torch.func.functional_call(model, whole[draw], (tokens,))
        )
    with pytest.raises(ValueError, match="context of 10 tokens, model has 9"):
        model.embedded(torch.zeros(1, 10, dtype=torch.int64), table)


def test_gradients_of_stacked_embeddings(model: Transformer, tokens: Tensor) -> None:
    (table,) = drawn(model, "embed")[0].values()
    table.requires_grad_()
    each = torch.stack([tokens, tokens.flip(0), tokens.roll(1, 1)])
    slope = normal(DRAWS, 4, 9, 12)
    (gradient,) = torch.autograd.grad((model.embedded(each, table) * slope).sum(), table)
    for draw in range(DRAWS):
        expected = torch.zeros(17, 12, dtype=torch.float64)
        expected.index_add_(0, each[draw].flatten(), slope[draw].flatten(0, 1))
        torch.testing.assert_close(gradient[draw], expected)


def test_layers_take_any_leading_axes(model: Transformer, tokens: Tensor) -> None:
    stream = model.embedded(tokens)
    expected = model.layer(0, stream)
    torch.testing.assert_close(model.layer(0, stream[2]), expected[2])
    torch.testing.assert_close(
        model.layer(0, stream.view(2, 1, 2, 9, 12)), expected.view(2, 1, 2, 9, 12)
    )
    doubled = torch.stack((stream, 2 * stream))
    torch.testing.assert_close(model.layer(0, doubled)[0], expected)
    torch.testing.assert_close(
        model.residual(tokens.view(2, 2, 9)), model.residual(tokens).view(2, 2, 9, 12)
    )


def test_layers_leave_their_input_alone(model: Transformer, tokens: Tensor) -> None:
    stream = model.embedded(tokens)
    before = stream.clone()
    model.layer(0, stream)
    model.attention_source(0, stream)
    model.final(stream)
    assert torch.equal(stream, before)


def test_patterns_are_causal_and_weigh_the_values(model: Transformer, tokens: Tensor) -> None:
    patterns = model.attention_patterns(tokens)
    assert patterns.shape == (2, 4, 3, 9, 9)
    assert (patterns.triu(1) == 0).all()
    # ``mixed`` at the last position is its pattern times the values, which are what ``mixed``
    # is at positions that can only see themselves: the first of every context cut off there.
    part, parameters = part_of(model, "1:1")
    pieces = part.split(part.read(parameters)[None])
    source = model.attention_source(1, model.residual(tokens, 1))
    mixed, _ = model.head(1, pieces, source)
    values = torch.cat([model.head(1, pieces, source[:, [t]])[0] for t in range(9)], 2)
    torch.testing.assert_close(patterns[1][:, 1] @ values[0], mixed[0])


# PyTorch's own rules of forward-mode differentiation are made with it.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["0:1", "mlp:0", "embed", "full"])
def test_second_derivatives_and_function_transforms(
    model: Transformer, tokens: Tensor, name: str
) -> None:
    """Hessian times vector: backward twice, forward over backward, difference of gradients."""
    if name == "mlp:0" and not isinstance(model.config, GPTNeoXConfig):
        name = "unembed"
    part, parameters = part_of(model, name)
    start = part.read(parameters)
    direction = normal(part.size) / part.size**0.5

    def loss(weights: Tensor) -> Tensor:
        changed = part.substitute(parameters, weights)
        return token_losses(torch.func.functional_call(model, changed, (tokens,)), tokens).mean()

    gradient = torch.func.grad(loss)
    with sdpa_kernel(SDPBackend.MATH):
        _, forward = torch.func.jvp(gradient, (start,), (direction,))
        _, backward = torch.autograd.functional.hvp(loss, start, direction)
        losses = torch.func.vmap(loss)(torch.stack((start, start + direction)))
    torch.testing.assert_close(backward, forward, rtol=1e-8, atol=1e-12)
    step = 1e-5
    difference = (gradient(start + step * direction) - gradient(start - step * direction)) / (
        2 * step
    )
    assert difference.abs().max() > 1e-5
    torch.testing.assert_close(forward, difference, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(losses, torch.stack((loss(start), loss(start + direction))))


@pytest.mark.parametrize("axes", [(), (2,), (2, 3), (2, 1, 3)])
def test_attention_takes_any_leading_axes(axes: tuple[int, ...]) -> None:
    q, k, v = (x.to(torch.float32) for x in normal(3, *axes, 7, 4))
    flat = F.scaled_dot_product_attention(
        *(x.reshape(1, -1, 7, 4) for x in (q, k, v)), is_causal=True
    )
    torch.testing.assert_close(causal_attention(q, k, v), flat.reshape(v.shape))


def test_narrow_precision(model: Transformer, tokens: Tensor) -> None:
    exact = model(tokens)
    narrow = model.bfloat16()(tokens)
    assert narrow.dtype == torch.bfloat16
    assert (narrow - exact).abs().max() < 0.1 * exact.std()
