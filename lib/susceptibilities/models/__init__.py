"""The models, and their weights on disk and on the hub."""

from .attention_only import AttentionOnly, AttentionOnlyConfig
from .gpt_neox import PYTHIA, GPTNeoX, GPTNeoXConfig, from_published
from .loading import (
    ModelError,
    ModelFolder,
    available_steps,
    fetch_hub_model,
    load_checkpoint,
    load_config,
    save_model_folder,
)
from .shapes import Shape, new_model, parameter_count
from .transformer import Transformer, token_losses

__all__ = [
    "PYTHIA",
    "AttentionOnly",
    "AttentionOnlyConfig",
    "GPTNeoX",
    "GPTNeoXConfig",
    "ModelError",
    "ModelFolder",
    "Shape",
    "Transformer",
    "available_steps",
    "fetch_hub_model",
    "from_published",
    "load_checkpoint",
    "load_config",
    "new_model",
    "parameter_count",
    "save_model_folder",
    "token_losses",
]
