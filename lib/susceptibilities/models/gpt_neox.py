"""GPT-NeoX, the architecture of the Pythia models: weight for weight the published ones.

Parameter names and shapes are those of the released safetensors (Hugging Face's
``GPTNeoXForCausalLM``): attention and MLP in parallel, Q, K and V in one matrix whose rows are
sorted by head, rotary positions on the first ``rotary_pct`` of each head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from .transformer import (
    Transformer,
    causal_attention,
    look_up,
    normalise,
    own_linear,
    stacked_linear,
)


class GPTNeoXConfig(BaseModel):
    """Shape of the model; ``d_head`` and ``d_mlp`` follow from the others where left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["gpt_neox"] = "gpt_neox"
    n_layers: PositiveInt
    n_heads: PositiveInt
    d_model: PositiveInt
    n_ctx: PositiveInt
    d_vocab: PositiveInt
    d_head: PositiveInt = Field(default_factory=lambda known: known["d_model"] // known["n_heads"])
    d_mlp: PositiveInt = Field(default_factory=lambda known: 4 * known["d_model"])
    rotary_pct: float = Field(default=0.25, ge=0.0, le=1.0)
    rotary_base: PositiveFloat = 10_000.0
    layer_norm_eps: float = 1e-5

    @model_validator(mode="after")
    def _fits(self) -> GPTNeoXConfig:
        if self.d_head * self.n_heads != self.d_model:
            raise ValueError(
                f"d_head must be d_model / n_heads: {self.n_heads} heads of {self.d_head} do not "
                f"make {self.d_model}"
            )
        if self.rotary_dims % 2:
            raise ValueError(
                f"rotary_pct {self.rotary_pct} of {self.d_head} gives {self.rotary_dims} rotary "
                "dimensions; they turn in pairs"
            )
        return self

    @property
    def rotary_dims(self) -> int:
        """Dimensions of each head that carry the position."""
        return int(self.d_head * self.rotary_pct)


def from_published(published: Mapping[str, Any]) -> GPTNeoXConfig:
    """Shape out of the ``config.json`` of a Pythia release on the Hugging Face hub.

    Raises:
        ValueError: a value is missing, or it describes a model that `GPTNeoX` is not.
    """
    rope = published.get("rope_parameters") or {}  # where newer files keep the rotary settings
    fixed = {
        "model_type": (published.get("model_type"), "gpt_neox"),
        "hidden_act": (published.get("hidden_act", "gelu"), "gelu"),
        "use_parallel_residual": (published.get("use_parallel_residual", True), True),
        "attention_bias": (published.get("attention_bias", True), True),
        "tie_word_embeddings": (published.get("tie_word_embeddings", False), False),
        "rope_scaling": (published.get("rope_scaling"), None),
        "rope_parameters.rope_type": (rope.get("rope_type", "default"), "default"),
    }
    for key, (found, expected) in fixed.items():
        if found != expected:
            raise ValueError(
                f"expected {key} {expected!r}, found {found!r}: other kinds of model are not known"
            )
    names = {
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "d_model": "hidden_size",
        "n_ctx": "max_position_embeddings",
        "d_vocab": "vocab_size",
        "d_mlp": "intermediate_size",
        "layer_norm_eps": "layer_norm_eps",
    }
    if missing := [theirs for theirs in names.values() if theirs not in published]:
        raise ValueError(f"expected a value of {missing[0]}, found none")
    sizes = {ours: published[theirs] for ours, theirs in names.items()}
    return GPTNeoXConfig(
        **sizes,
        rotary_pct=rope.get("partial_rotary_factor", published.get("rotary_pct", 0.25)),
        rotary_base=rope.get("rope_theta", published.get("rotary_emb_base", 10_000)),
    )


def _pythia(n_layers: int, n_heads: int, d_model: int, d_vocab: int = 50_304) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        n_layers=n_layers, n_heads=n_heads, d_model=d_model, n_ctx=2048, d_vocab=d_vocab
    )


# The vocabularies differ because the tokenizer's 50,277 tokens were padded for parallel training.
PYTHIA = {
    "14m": _pythia(6, 4, 128),
    "31m": _pythia(6, 8, 256),
    "70m": _pythia(6, 8, 512),
    "160m": _pythia(12, 12, 768),
    "410m": _pythia(24, 16, 1024),
    "1b": _pythia(16, 8, 2048),
    "1.4b": _pythia(24, 16, 2048),
    "2.8b": _pythia(32, 32, 2560),
    "6.9b": _pythia(32, 32, 4096, 50_432),
    "12b": _pythia(36, 40, 5120, 50_688),
}


class _Affine(nn.Module):
    """Weight and bias under the published names."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, *shape: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))
        if bias:
            self.bias = nn.Parameter(torch.zeros(shape[0]))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class _LayerNorm(nn.Module):
    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.bias = nn.Parameter(torch.zeros(config.d_model))
        self.eps = config.layer_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return normalise(x, self.weight, self.bias, self.eps)


class _Attention(nn.Module):
    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.query_key_value = _Affine(3 * config.d_model, config.d_model)
        self.dense = _Affine(config.d_model, config.d_model)


class _MLP(nn.Module):
    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = _Affine(config.d_mlp, config.d_model)
        self.dense_4h_to_h = _Affine(config.d_model, config.d_mlp)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x)))


class _Layer(nn.Module):
    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.input_layernorm = _LayerNorm(config)
        self.post_attention_layernorm = _LayerNorm(config)
        self.attention = _Attention(config)
        self.mlp = _MLP(config)


class _Body(nn.Module):
    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.embed_in = _Affine(config.d_vocab, config.d_model, bias=False)
        self.layers = cast(
            "list[_Layer]", nn.ModuleList(_Layer(config) for _ in range(config.n_layers))
        )
        self.final_layer_norm = _LayerNorm(config)


class GPTNeoX(Transformer):
    """GPT-NeoX with parallel residual; see `Transformer` for its parts."""

    config: GPTNeoXConfig
    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.config = config
        self.gpt_neox = _Body(config)
        self.embed_out = _Affine(config.d_vocab, config.d_model, bias=False)
        # Made on the CPU also where the weights are not made at all (the meta device). In
        # float32 throughout, as in the published code, whatever the precision of the weights.
        dims = config.rotary_dims
        steps = torch.arange(0, dims, 2, dtype=torch.float32, device="cpu")
        rates = 1.0 / config.rotary_base ** (steps / max(dims, 1))
        angle = torch.arange(config.n_ctx, dtype=torch.float32, device="cpu")[:, None] * rates
        self.register_buffer("cos", angle.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angle.sin().repeat(1, 2), persistent=False)

    def embedded(self, tokens: Tensor, table: Tensor | None = None) -> Tensor:
        self._check_length(tokens)
        if table is None:
            return F.embedding(tokens, self.gpt_neox.embed_in.weight)
        return look_up(tokens, table)

    def layer(self, index: int, stream: Tensor) -> Tensor:
        here = self.gpt_neox.layers[index]
        mixed = causal_attention(*self._project(index, here.input_layernorm(stream)))
        attention = here.attention.dense(mixed.transpose(-2, -3).flatten(-2))
        return here.mlp(here.post_attention_layernorm(stream)) + attention + stream

    def attention_source(self, index: int, stream: Tensor) -> Tensor:
        return self.gpt_neox.layers[index].input_layernorm(stream)

    def mlp_source(self, index: int, stream: Tensor) -> Tensor:
        return self.gpt_neox.layers[index].post_attention_layernorm(stream)

    def head(
        self, index: int, pieces: Mapping[str, Tensor], source: Tensor
    ) -> tuple[Tensor, Tensor]:
        prefix = f"gpt_neox.layers.{index}.attention"
        flat = stacked_linear(
            source,
            pieces[f"{prefix}.query_key_value.weight"],
            pieces[f"{prefix}.query_key_value.bias"],
        )
        q, k, v = self._turned(flat.unflatten(-1, (3, -1)), position=-3)
        return causal_attention(q, k, v), pieces[f"{prefix}.dense.weight"].transpose(1, 2)

    def mlp(self, index: int, pieces: Mapping[str, Tensor], source: Tensor) -> Tensor:
        prefix = f"gpt_neox.layers.{index}.mlp"
        up, down = (
            (pieces[f"{prefix}.{name}.weight"], pieces[f"{prefix}.{name}.bias"])
            for name in ("dense_h_to_4h", "dense_4h_to_h")
        )
        return own_linear(F.gelu(stacked_linear(source, *up)), *down)

    def final_norm(self) -> tuple[Tensor, Tensor, float]:
        norm = self.gpt_neox.final_layer_norm
        return norm.weight, norm.bias, norm.eps

    def unembedding(self, pieces: Mapping[str, Tensor] | None = None) -> tuple[Tensor, None]:
        weight = self.embed_out.weight if pieces is None else pieces["embed_out.weight"]
        return weight.transpose(-1, -2), None

    def _project(self, index: int, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = self.gpt_neox.layers[index].attention.query_key_value(source)
        q, k, v = self._turned(flat.unflatten(-1, (self.config.n_heads, 3, -1)), position=-4)
        return q.transpose(-2, -3), k.transpose(-2, -3), v.transpose(-2, -3)

    def _turned(self, qkv: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K and V out of (..., 3, d_head), Q and K turned by their positions.

        Args:
            position: the axis of ``qkv`` that is the position, counted from the end.
        """
        dims, length = self.config.rotary_dims, qkv.shape[position]
        qk, v = qkv[..., :2, :], qkv[..., 2, :]
        axes = (slice(length), *(None,) * (-position - 2))
        # Axes: position, those between it and the last, dimension.
        cos, sin = (table[:length].to(qkv.dtype)[axes] for table in (self.cos, self.sin))
        turning, rest = qk[..., :dims], qk[..., dims:]
        one, two = turning.chunk(2, -1)
        turned = turning * cos + torch.cat((-two, one), -1) * sin
        q, k = torch.cat((turned, rest), -1).unbind(-2)
        return q, k, v

    def initialise(self, generator: torch.Generator, sinusoids: bool = False) -> None:
        """Draw initial weights as GPT-NeoX did for Pythia; biases are zero.

        "Small init" (Nguyen & Salazar 2019), normal with standard deviation
        sqrt(2 / (5 d_model)), and for the two matrices that write to the residual stream "Wang
        init", 2 / (n_layers sqrt(d_model)).
        """
        if sinusoids:
            raise ValueError(
                "the positions of a gpt_neox model are rotary and not learned: "
                "sinusoidal_start must be false"
            )
        width = self.config.d_model
        small = math.sqrt(2 / (5 * width))
        wang = 2 / (self.config.n_layers * math.sqrt(width))
        writes = ("attention.dense.weight", "mlp.dense_4h_to_h.weight")
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    scale = wang if name.endswith(writes) else small
                    parameter.normal_(0.0, scale, generator=generator)
