"""The kinds of model, told apart by ``kind`` in their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Discriminator, Tag

from .attention_only import AttentionOnly, AttentionOnlyConfig
from .gpt_neox import GPTNeoX, GPTNeoXConfig
from .transformer import Transformer


def _kind(shape: Any) -> Any:
    if isinstance(shape, Mapping):
        return shape.get("kind", "attention_only")
    return getattr(shape, "kind", "attention_only")


Shape = Annotated[
    Annotated[AttentionOnlyConfig, Tag("attention_only")]
    | Annotated[GPTNeoXConfig, Tag("gpt_neox")],
    Discriminator(_kind),
]
"""Shape of a model of any kind; without ``kind`` it is an attention-only one."""


def new_model(shape: Shape) -> Transformer:
    """A model of this shape; its weights are still to be set."""
    return GPTNeoX(shape) if isinstance(shape, GPTNeoXConfig) else AttentionOnly(shape)


def parameter_count(shape: Shape) -> int:
    """Number of weights of a model of this shape."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in new_model(shape).parameters())


def mlp_width(shape: Shape) -> int:
    """Hidden units of a layer's MLP; 0 where there is none."""
    return shape.d_mlp if isinstance(shape, GPTNeoXConfig) else 0


def inner_width(shape: Shape) -> int:
    """Width of all heads of a layer together."""
    return shape.n_heads * shape.d_head
