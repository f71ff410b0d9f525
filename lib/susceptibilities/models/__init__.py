"""The models, and their weights on disk and on the hub."""

from .attention_only import AttentionOnly, AttentionOnlyConfig, token_losses
from .loading import (
    ModelError,
    ModelFolder,
    available_steps,
    fetch_hub_model,
    load_checkpoint,
    load_config,
    save_model_folder,
)

__all__ = [
    "AttentionOnly",
    "AttentionOnlyConfig",
    "ModelError",
    "ModelFolder",
    "available_steps",
    "fetch_hub_model",
    "load_checkpoint",
    "load_config",
    "save_model_folder",
    "token_losses",
]
