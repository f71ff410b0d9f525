"""Scale files (``config/<scale>.yaml``): read, checked before anything runs, and normalised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..components import component_names, head_names
from ..corpora.documents import CorpusError
from ..models.shapes import Shape
from ..tokens import CONTROL_PROBE
from .explain import explain
from .ground_truth import GroundTruthConfig
from .parts import ConfigError, Name, Part, listed, read_yaml
from .sources import (
    CorpusConfig,
    ModelConfig,
    domain_names,
    known_steps,
    last_step,
    model_shape,
)
from .two_layer import TwoLayerConfig


class ScaleConfig(Part):
    """One scale file."""

    scale: Name
    corpus: CorpusConfig
    two_layer: TwoLayerConfig
    ground_truth: GroundTruthConfig | None = None
    """The GPT-NeoX models' susceptibility matrices; their sections are left out without it."""

    def normalised(self, root: Path = Path()) -> dict[str, Any]:
        """The settings as JSON, every default written out and ``last`` resolved."""
        value = self.model_dump(mode="json")
        two_layer, named = self.two_layer, value["two_layer"]
        named["control_checkpoints"] = two_layer.steps(two_layer.control_checkpoints)
        for key in ("checkpoints", "control_checkpoints"):
            named["per_token"][key] = two_layer.steps(getattr(two_layer.per_token, key))
        for role, found in self.ground_truth.models.items() if self.ground_truth else ():
            if found.checkpoint == "last":
                step = last_step(found.model, root)
                value["ground_truth"]["models"][role]["checkpoint"] = step
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
    try:
        if CONTROL_PROBE in (names := domain_names(scale.corpus, root)):
            raise ConfigError(
                f"corpus: a domain must not be called {CONTROL_PROBE!r}; found {names}"
            )
        _check_two_layer(scale.two_layer, root)
        if scale.ground_truth:
            _check_ground_truth(scale.ground_truth, root)
    except (ConfigError, CorpusError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _check_two_layer(settings: TwoLayerConfig, root: Path) -> None:
    shape = model_shape(settings.model, root, "two_layer.model")
    per_token, heads = settings.per_token, head_names(shape)
    _check_context("two_layer", settings.model, settings.context, shape)
    _check_shards("two_layer.per_token", per_token.shards, len(heads) + 1)
    _check_steps("two_layer.checkpoints", settings.model, settings.checkpoints, root)
    if per_token.spectral:
        try:
            per_token.spectral.names(heads, [*component_names(shape), "full"])
        except ValueError as error:
            raise ConfigError(f"two_layer.per_token.spectral: {error}") from None


def _check_ground_truth(settings: GroundTruthConfig, root: Path) -> None:
    for role, found in settings.models.items():
        key, model = f"ground_truth.models.{role}", found.model
        shape = model_shape(model, root, f"{key}.model")
        _check_context("ground_truth", model, settings.context, shape)
        _check_shards(key, found.shards, len(component_names(shape)) + 1)
        step = last_step(model, root) if found.checkpoint == "last" else found.checkpoint
        _check_steps(f"{key}.checkpoint", model, [step], root)


def _check_context(key: str, model: ModelConfig, context: int, shape: Shape) -> None:
    if context > shape.n_ctx:
        raise ConfigError(
            f"{key}.context: {context}; allowed: 2 to {shape.n_ctx}, the context of {model.folder}"
        )


def _check_shards(key: str, shards: int, parts: int) -> None:
    if shards > parts:
        raise ConfigError(f"{key}.shards: {shards}; allowed: 1 to {parts}, the model's components")


def _check_steps(key: str, model: ModelConfig, steps: list[int], root: Path) -> None:
    known = known_steps(model, root)
    if known is not None and (unknown := set(steps) - set(known)):
        have = listed(known) or "none, the folder has no checkpoints"
        raise ConfigError(
            f"{key}: {model.folder} has no checkpoint at step {listed(unknown)}; allowed: {have}"
        )


def setting(config: dict[str, Any], key: str) -> Any:
    """The part of a normalised config under a dotted key, such as ``two_layer.sampler``."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ConfigError(f"no setting {key!r}: {part!r} is not in the scale's config")
        value = value[part]
    return value
