"""GPT-NeoX against Hugging Face's GPTNeoXForCausalLM, and the published shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from susceptibilities.models import (
    PYTHIA,
    GPTNeoX,
    GPTNeoXConfig,
    from_published,
    parameter_count,
    token_losses,
)
from susceptibilities.models.loading import build_model

SHAPE = GPTNeoXConfig(n_layers=2, n_heads=3, d_model=24, n_ctx=11, d_vocab=19)
# Every setting away from its default at least once.
SHAPES = {
    "pythia": SHAPE,
    "all_rotary": SHAPE.model_copy(update={"rotary_pct": 1.0, "rotary_base": 50.0}),
    "no_rotary": SHAPE.model_copy(update={"rotary_pct": 0.0}),
    "narrow": SHAPE.model_copy(update={"d_mlp": 40, "layer_norm_eps": 0.01, "rotary_pct": 0.5}),
}
# EleutherAI/pythia-14m's config.json.
PUBLISHED_14M: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}


def reference(shape: GPTNeoXConfig, dtype: torch.dtype = torch.float64) -> Any:
    """Hugging Face's model of this shape, with weights that leave no parameter without effect."""
    import transformers  # takes seconds

    config = transformers.GPTNeoXConfig(
        vocab_size=shape.d_vocab,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        intermediate_size=shape.d_mlp,
        max_position_embeddings=shape.n_ctx,
        layer_norm_eps=shape.layer_norm_eps,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": shape.rotary_base,
            "partial_rotary_factor": shape.rotary_pct,
        },
        attn_implementation="sdpa",
    )
    model = transformers.GPTNeoXForCausalLM(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return model


def published_names(named: Any) -> dict[str, Tensor]:
    """The class calls the unembedding otherwise than its own files do."""
    return {name.replace("lm_head.", "embed_out."): tensor for name, tensor in named}


def random_tokens(shape: GPTNeoXConfig, length: int) -> Tensor:
    return torch.randint(shape.d_vocab, (3, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("length", [11, 6])
def test_logits_and_gradients_equal_hugging_faces(name: str, length: int) -> None:
    shape = SHAPES[name]
    if shape.rotary_dims == 0:
        # Hugging Face's class does not take it; without it the model cannot tell positions.
        model = GPTNeoX(shape).eval()
        model.initialise(torch.Generator().manual_seed(0))
        same = torch.full((1, length), 3)
        torch.testing.assert_close(model(same)[:, 1:], model(same)[:, :-1])
        return
    theirs, tokens = reference(shape), random_tokens(shape, length)
    ours = build_model(shape, published_names(theirs.state_dict().items()), "test", torch.float64)
    expected = theirs(tokens).logits
    logits = ours(tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    token_losses(logits, tokens).mean().backward()
    token_losses(expected, tokens).mean().backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in published_names(theirs.named_parameters()).items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, name
        torch.testing.assert_close(gradients.pop(name), parameter.grad, rtol=1e-8, atol=1e-11)
    assert not gradients


def test_files_written_by_hugging_face_are_read(tmp_path: Path) -> None:
    theirs, tokens = reference(SHAPE, torch.float32), random_tokens(SHAPE, 11)
    theirs.save_pretrained(tmp_path)
    shape = from_published(json.loads((tmp_path / "config.json").read_bytes()))
    assert shape == SHAPE
    ours = build_model(shape, load_file(tmp_path / "model.safetensors"), "test")
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rotary_tables_are_float32_whatever_the_weights_are(dtype: torch.dtype) -> None:
    model = GPTNeoX(SHAPES["all_rotary"])
    state = {k: torch.zeros_like(v) for k, v in model.named_parameters()}
    built = build_model(SHAPES["all_rotary"], state, "test", dtype)
    assert isinstance(built, GPTNeoX)
    assert built.cos.dtype == torch.float32 and built.cos.device.type == "cpu"
    assert built(random_tokens(SHAPE, 5)).dtype == dtype
    assert set(built.state_dict()) == set(state)


# https://github.com/EleutherAI/pythia: all weights, and those that are not embeddings.
@pytest.mark.parametrize(
    ("name", "total", "inner"),
    [
        ("14m", 14_067_712, 1_189_888),
        ("31m", 30_494_720, 4_739_072),
        ("70m", 70_426_624, 18_915_328),
        ("160m", 162_322_944, 85_056_000),
        ("410m", 405_334_016, 302_311_424),
        ("1b", 1_011_781_632, 805_736_448),
        ("1.4b", 1_414_647_808, 1_208_602_624),
        ("2.8b", 2_775_208_960, 2_517_652_480),
        ("6.9b", 6_857_302_016, 6_444_163_072),
        ("12b", 11_846_072_320, 11_327_027_200),
    ],
)
def test_sizes_of_the_published_models(name: str, total: int, inner: int) -> None:
    shape = PYTHIA[name]
    assert parameter_count(shape) == total
    assert parameter_count(shape) - 2 * shape.d_vocab * shape.d_model == inner
    assert len(PYTHIA) == 10


def test_a_published_config() -> None:
    assert from_published(PUBLISHED_14M) == PYTHIA["14m"]
    assert from_published({**PUBLISHED_14M, "rotary_pct": 0.5}).rotary_dims == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_parallel_residual": False}, "expected use_parallel_residual True, found False"),
        ({"hidden_act": "gelu_new"}, "expected hidden_act 'gelu', found 'gelu_new'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"attention_bias": False}, "attention_bias"),
        ({"model_type": "llama"}, "model_type"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"rope_parameters\.rope_type"),
    ],
)
def test_other_architectures_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_published({**PUBLISHED_14M, **change})


def test_a_published_config_without_a_size() -> None:
    rest = {k: v for k, v in PUBLISHED_14M.items() if k != "hidden_size"}
    with pytest.raises(ValueError, match="expected a value of hidden_size, found none"):
        from_published(rest)


def test_sizes_that_follow_from_others() -> None:
    assert (SHAPE.d_head, SHAPE.d_mlp, SHAPE.rotary_dims) == (8, 96, 2)
    sizes = {"n_layers": 1, "n_heads": 3, "d_model": 24, "n_ctx": 4, "d_vocab": 5}
    assert GPTNeoXConfig(**sizes, d_head=8, d_mlp=96).d_head == 8
    with pytest.raises(ValidationError, match="3 heads of 7 do not make 24"):
        GPTNeoXConfig(**sizes, d_head=7)
    with pytest.raises(ValidationError, match="3 heads of 6 do not make 20"):
        GPTNeoXConfig.model_validate({**sizes, "d_model": 20})
    with pytest.raises(ValidationError, match="gives 3 rotary dimensions; they turn in pairs"):
        GPTNeoXConfig(**sizes, rotary_pct=0.4)


def test_initial_weights() -> None:
    shape = GPTNeoXConfig(n_layers=4, n_heads=2, d_model=64, n_ctx=8, d_vocab=300)

    def made(seed: int) -> dict[str, Tensor]:
        model = GPTNeoX(shape)
        model.initialise(torch.Generator().manual_seed(seed))
        return model.state_dict()

    one, same, other = made(3), made(3), made(4)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embed_out.weight"], other["embed_out.weight"])
    small, wang = (2 / (5 * 64)) ** 0.5, 2 / (4 * 64**0.5)
    for name, value in one.items():
        if name.endswith("norm.weight"):
            assert (value == 1).all()
        elif name.endswith("bias"):
            assert (value == 0).all()
        else:
            writes = name.endswith(("dense.weight", "4h_to_h.weight"))
            # The standard error of a standard deviation of n draws is 1 / sqrt(2 n) of it.
            expected = wang if writes else small
            assert value.std() == pytest.approx(expected, rel=4 / (2 * value.numel()) ** 0.5), name
    with pytest.raises(ValueError, match="sinusoidal_start must be false"):
        GPTNeoX(shape).initialise(torch.Generator(), sinusoids=True)
