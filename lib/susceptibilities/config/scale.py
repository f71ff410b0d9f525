"""Scale files (``config/<scale>.yaml``): read, checked before anything runs, and normalised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..components import component_names, head_names
from ..corpora.documents import CorpusError
from ..models.loading import available_steps
from ..tokens import CONTROL_PROBE
from .explain import explain
from .parts import ConfigError, Name, Part, listed, read_yaml
from .sources import (
    CorpusConfig,
    FolderModelConfig,
    TrainModelConfig,
    domain_names,
    model_shape,
)
from .two_layer import TwoLayerConfig


class ScaleConfig(Part):
    """One scale file."""

    scale: Name
    corpus: CorpusConfig
    two_layer: TwoLayerConfig

    def normalised(self) -> dict[str, Any]:
        """The settings as JSON, every default written out and ``last`` resolved."""
        value = self.model_dump(mode="json")
        two_layer, named = self.two_layer, value["two_layer"]
        named["control_checkpoints"] = two_layer.steps(two_layer.control_checkpoints)
        for key in ("checkpoints", "control_checkpoints"):
            named["per_token"][key] = two_layer.steps(getattr(two_layer.per_token, key))
        return value


def load_scale(name: str = "mini", file: str | None = None, root: Path = Path()) -> ScaleConfig:
    """Read and check ``config/<name>.yaml``, or a file of the user's own.

    Paths in a scale file are relative to ``root``, the repository.

    Raises:
        ConfigError: no such scale, or something in it is wrong.
    """
    shipped = sorted(path.stem for path in (root / "config").glob("*.yaml"))
    path = root / (file or f"config/{name}.yaml")
    if file is None and name not in shipped:
        raise ConfigError(
            f"scale: {name!r} is unknown; allowed: {listed(shipped)}, or a file of your own with "
            "--config config_file=PATH"
        )
    if not path.is_file():
        raise ConfigError(f"config_file: {path} does not exist")
    scale = _parse(read_yaml(path), path)
    expected = name if file is None else None
    if expected and scale.scale != expected:
        raise ConfigError(f"{path}: scale: {scale.scale!r}; a shipped file must say {expected!r}")
    if file is not None and scale.scale in shipped and path.resolve().stem != scale.scale:
        raise ConfigError(
            f"{path}: scale: {scale.scale!r} is a shipped scale, whose results yours would "
            "replace; give your copy a name of its own"
        )
    _check_files(scale, path, root)
    return scale


def _parse(value: Any, path: Path) -> ScaleConfig:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected keys and values, found {value!r:.60}")
    try:
        return ScaleConfig.model_validate(value)
    except ValidationError as error:
        # What could not be derived is the consequence of another error.
        problems = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
        lines = [explain(dict(problem), ScaleConfig) for problem in problems]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None


def _check_files(scale: ScaleConfig, path: Path, root: Path) -> None:
    """What only the files that a scale names can show to be wrong. Nothing is fetched."""
    two_layer = scale.two_layer
    try:
        if CONTROL_PROBE in (names := domain_names(scale.corpus, root)):
            raise ConfigError(
                f"corpus: a domain must not be called {CONTROL_PROBE!r}; found {names}"
            )
        shape = model_shape(two_layer.model, root)
    except (ConfigError, CorpusError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if two_layer.context > shape.n_ctx:
        raise ConfigError(
            f"{path}: two_layer.context: {two_layer.context}; allowed: 2 to {shape.n_ctx}, the "
            f"context of {two_layer.model.folder}"
        )
    if two_layer.per_token.shards > (parts := len(head_names(shape)) + 1):
        raise ConfigError(
            f"{path}: two_layer.per_token.shards: {two_layer.per_token.shards}; allowed: 1 to "
            f"{parts}, the components of {two_layer.model.folder}"
        )
    if spectral := two_layer.per_token.spectral:
        try:
            spectral.names(head_names(shape), [*component_names(shape), "full"])
        except ValueError as error:
            raise ConfigError(f"{path}: two_layer.per_token.spectral: {error}") from None
    known: list[int] | None = None
    if isinstance(two_layer.model, FolderModelConfig):
        known = available_steps(root / two_layer.model.path)
    elif isinstance(two_layer.model, TrainModelConfig):
        known = two_layer.model.training.checkpoint_steps()
    unknown = set() if known is None else set(two_layer.checkpoints) - set(known)
    if known is not None and unknown:
        have = listed(known) or "none, the folder has no checkpoints"
        raise ConfigError(
            f"{path}: two_layer.checkpoints: {two_layer.model.folder} has no checkpoint at step "
            f"{listed(unknown)}; allowed: {have}"
        )


def setting(config: dict[str, Any], key: str) -> Any:
    """The part of a normalised config under a dotted key, such as ``two_layer.sampler``."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ConfigError(f"no setting {key!r}: {part!r} is not in the scale's config")
        value = value[part]
    return value
