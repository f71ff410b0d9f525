"""Scale files (``config/<scale>.yaml``): read, checked before anything runs, and normalised."""

from .parts import ConfigError
from .scale import ScaleConfig, load_scale, setting
from .sources import (
    FolderCorpusConfig,
    FolderModelConfig,
    HubCorpusConfig,
    HubModelConfig,
    PackagesCorpusConfig,
    TrainModelConfig,
    domain_names,
    model_shape,
    package_corpus,
)
from .two_layer import PerTokenConfig, TwoLayerConfig

__all__ = [
    "ConfigError",
    "FolderCorpusConfig",
    "FolderModelConfig",
    "HubCorpusConfig",
    "HubModelConfig",
    "PackagesCorpusConfig",
    "PerTokenConfig",
    "ScaleConfig",
    "TrainModelConfig",
    "TwoLayerConfig",
    "domain_names",
    "load_scale",
    "model_shape",
    "package_corpus",
    "setting",
]
