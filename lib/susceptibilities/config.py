"""Scale files (``config/<scale>.yaml``): read, checked before anything runs, and normalised."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from .components import component_names, head_names
from .corpora.documents import CorpusError, domains
from .corpora.hub import HubCorpus
from .corpora.packages import PackageCorpus
from .evaluation import Evaluation
from .models.loading import ModelError, available_steps, load_config
from .models.shapes import Shape
from .posterior import SamplerConfig
from .spectral_config import SpectralConfig
from .tokens import CONTROL_PROBE, probe_positions
from .training import TrainingConfig

# Names become folders, so they are kept to what every file system takes.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class ConfigError(ValueError):
    """A scale file is wrong; the message names the key, the value and what is allowed."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PackagesCorpusConfig(_Part):
    """Text out of pinned package releases; ``domains`` restricts the definition's."""

    kind: Literal["packages"]
    name: Name
    definition: Path
    domains: list[str] | None = None


class FolderCorpusConfig(_Part):
    """A folder of ``<domain>.jsonl.gz`` files with ``field`` in every line."""

    kind: Literal["folder"]
    name: Name
    path: Path
    field: str = "text"


class HubCorpusConfig(HubCorpus):
    """Datasets of the Hugging Face hub: one for the training distribution, one a domain."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["hub"]
    name: Name


CorpusConfig = Annotated[
    PackagesCorpusConfig | FolderCorpusConfig | HubCorpusConfig, Field(discriminator="kind")
]


class FolderModelConfig(_Part):
    """A folder with config.json, tokenizer.json and checkpoints/step_*.safetensors."""

    kind: Literal["folder"]
    path: Path

    @property
    def folder(self) -> Path:
        return self.path


class TrainModelConfig(_Part):
    """A model trained here, on the corpus's training split, with a tokenizer of its own."""

    kind: Literal["train"]
    name: Name
    shape: Shape
    training: TrainingConfig

    @model_validator(mode="after")
    def _positions_are_learned(self) -> TrainModelConfig:
        if self.training.sinusoidal_start and self.shape.kind == "gpt_neox":
            raise ValueError(
                "training.sinusoidal_start must be false for a gpt_neox model: its positions are "
                "rotary and not learned"
            )
        return self

    @property
    def folder(self) -> Path:
        return Path("data/models") / self.name


class HubModelConfig(_Part):
    """Checkpoints of a model repository on the Hugging Face hub."""

    kind: Literal["hub"]
    repo: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
    tokenizer: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
    shape: Shape

    @property
    def folder(self) -> Path:
        return Path("data/models") / self.repo.replace("/", "__")


ModelConfig = Annotated[
    FolderModelConfig | TrainModelConfig | HubModelConfig, Field(discriminator="kind")
]


Checkpoint = NonNegativeInt | Literal["last"]


class PerTokenConfig(_Part):
    """Per-token susceptibilities: every token of some contexts, at few checkpoints."""

    checkpoints: list[Checkpoint] = Field(default=["last"], min_length=1)
    """Checkpoints at which they are measured."""
    control_checkpoints: list[Checkpoint] = ["last"]
    """Checkpoints at which the n_beta = 0 control is run."""
    contexts: int = Field(ge=2)
    """Contexts of every probe; all their tokens are evaluated."""
    sampler: SamplerConfig
    shards: PositiveInt = 1
    """Jobs that the components of a checkpoint are dealt to."""
    spectral: SpectralConfig | None = None
    """The covariance part without sampling, at the last of the checkpoints; none if left out."""


class TwoLayerConfig(_Part):
    """Everything about the two-layer model's susceptibilities."""

    model: ModelConfig
    checkpoints: list[NonNegativeInt] = Field(min_length=2)
    """Training steps at which susceptibilities are measured."""
    context: int = Field(ge=2)
    """Tokens of a context, the beginning token included."""
    base_contexts: PositiveInt
    """n: contexts of the training distribution on which losses are measured."""
    sgld_contexts: PositiveInt = 2000
    """Contexts that minibatches are drawn from."""
    delta_h: float = Field(gt=0, le=1)
    seed: NonNegativeInt = 0
    sampler: SamplerConfig
    evaluation: Evaluation = Evaluation()
    """How losses along the chains are evaluated, the per-token ones too."""
    control_checkpoints: list[Checkpoint] = ["last"]
    """Checkpoints at which the n_beta = 0 control is run."""
    per_token: PerTokenConfig

    @field_validator("checkpoints")
    @classmethod
    def _ordered(cls, steps: list[int]) -> list[int]:
        if sorted(set(steps)) != steps:
            raise ValueError("the steps must rise, each once")
        return steps

    @model_validator(mode="after")
    def _consistent(self) -> TwoLayerConfig:
        if not len(probe_positions(self.base_contexts, self.delta_h)):
            raise ValueError(
                f"base_contexts * delta_h must be 1 at least, so that a probe has a place in the "
                f"mixture; found {self.base_contexts} * {self.delta_h}"
            )
        if self.sampler.batch > self.sgld_contexts:
            raise ValueError(
                f"sampler.batch ({self.sampler.batch}) must not exceed sgld_contexts "
                f"({self.sgld_contexts})"
            )
        per_token = self.per_token
        for key, steps in (
            ("control_checkpoints", self.control_checkpoints),
            ("per_token.checkpoints", per_token.checkpoints),
            ("per_token.control_checkpoints", per_token.control_checkpoints),
        ):
            if unknown := set(steps) - set(self.checkpoints) - {"last"}:
                raise ValueError(
                    f"{key} has {_listed(unknown)}, which checkpoints has not; allowed: last, "
                    f"{_listed(self.checkpoints)}"
                )
        for key, sampler in (("sampler", self.sampler), ("per_token.sampler", per_token.sampler)):
            if self.evaluation.control_variate != "none" and sampler.method != "sgld":
                raise ValueError(
                    f"evaluation.control_variate: {self.evaluation.control_variate!r} needs "
                    f"{key}.method: sgld, whose mean drift is zero; found {sampler.method!r}. "
                    "Allowed with it: none"
                )
        if per_token.sampler.batch > self.sgld_contexts:
            raise ValueError(
                f"per_token.sampler.batch ({per_token.sampler.batch}) must not exceed "
                f"sgld_contexts ({self.sgld_contexts})"
            )
        if per_token.spectral and (
            problems := per_token.spectral.problems(
                self.base_contexts,
                self.sgld_contexts,
                per_token.contexts,
                per_token.sampler.method,
            )
        ):
            raise ValueError("; ".join(f"per_token.spectral: {text}" for text in problems))
        return self

    def steps(self, checkpoints: list[Checkpoint]) -> list[int]:
        """Checkpoints with ``last`` as a number."""
        last = self.checkpoints[-1]
        return sorted({last if s == "last" else s for s in checkpoints})


class ScaleConfig(_Part):
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
            f"scale: {name!r} is unknown; allowed: {_listed(shipped)}, or a file of your own with "
            "--config config_file=PATH"
        )
    if not path.is_file():
        raise ConfigError(f"config_file: {path} does not exist")
    scale = _parse(_read_yaml(path), path)
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


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in sorted(values, key=lambda v: (isinstance(v, str), v)))


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _parse(value: Any, path: Path) -> ScaleConfig:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected keys and values, found {value!r:.60}")
    try:
        return ScaleConfig.model_validate(value)
    except ValidationError as error:
        # What could not be derived is the consequence of another error.
        problems = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
        lines = [_explain(dict(problem)) for problem in problems]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None


def _explain(problem: dict[str, Any]) -> str:
    """One of pydantic's errors as: key, value, what is allowed."""
    keys, owner = _walk(problem["loc"])
    key, found, context = ".".join(keys), problem["input"], problem.get("ctx", {})
    allowed = sorted(owner.model_fields) if owner else []
    match problem["type"]:
        case "extra_forbidden":
            close = difflib.get_close_matches(keys[-1], allowed, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            return f"{key}: unknown key, value {found!r}{hint}; allowed: {_listed(allowed)}"
        case "missing":
            return f"{key}: missing; this part needs: {_listed(_required(owner))}"
        case "literal_error":
            return f"{key}: {found!r} is not allowed; allowed: {context['expected']}"
        case "union_tag_invalid":
            return f"{key}.kind: {context['tag']!r}; allowed: {context['expected_tags']}"
        case "union_tag_not_found":
            kinds = "packages, folder, hub" if key == "corpus" else "folder, train, hub"
            return f"{key}.kind: missing; allowed: {kinds}"
        case "value_error":
            return f"{key or 'top level'}: {context['error']}"
        case _:
            return f"{key}: {found!r} is not allowed; {problem['msg']}"


def _required(owner: type[BaseModel] | None) -> list[str]:
    return [n for n, f in owner.model_fields.items() if f.is_required()] if owner else []


def _walk(location: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """The keys of an error's location without pydantic's union tags, and the last one's model."""
    keys: list[str] = []
    options: list[type[BaseModel]] = [ScaleConfig]
    owner: type[BaseModel] | None = ScaleConfig
    for part in location:
        tagged = [m for m in options if len(options) > 1 and part in _tags(m)]
        if tagged:
            options = tagged
            continue
        keys.append(str(part))
        owner = options[0] if options else None
        if owner is not None and part in owner.model_fields:
            options = list(_models(owner.model_fields[str(part)].annotation))
    return keys, owner


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not None:
        for inner in get_args(annotation):
            yield from _models(inner)


def domain_names(corpus: CorpusConfig, root: Path = Path()) -> list[str]:
    """Names of the corpus's domains, sorted, without fetching anything."""
    if isinstance(corpus, HubCorpusConfig):
        return sorted(corpus.domains)
    if isinstance(corpus, FolderCorpusConfig):
        return domains(root / corpus.path)
    known = package_corpus(corpus, root).domains
    return sorted(known)


def package_corpus(corpus: PackagesCorpusConfig, root: Path = Path()) -> PackageCorpus:
    """The definition file of a packages corpus, restricted to the chosen domains."""
    path = root / corpus.definition
    if not path.is_file():
        raise ConfigError(f"corpus.definition: {path} does not exist")
    try:
        whole = PackageCorpus.model_validate(_read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: {place}: {first['msg']}, found {first['input']!r:.60}"
        ) from None
    chosen = whole.domains if corpus.domains is None else corpus.domains
    if unknown := set(chosen) - set(whole.domains):
        raise ConfigError(
            f"corpus.domains: unknown domain {_listed(unknown)}; allowed: {_listed(whole.domains)}"
        )
    return whole.model_copy(update={"domains": {name: whole.domains[name] for name in chosen}})


def model_shape(model: ModelConfig, root: Path = Path()) -> Shape:
    """Shape of the model; for a folder, what its config.json says."""
    if not isinstance(model, FolderModelConfig):
        return model.shape
    try:
        return load_config(root / model.path).shape
    except ModelError as error:
        raise ConfigError(f"two_layer.model.path: {' '.join(str(error).split())}") from None


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
        have = _listed(known) or "none, the folder has no checkpoints"
        raise ConfigError(
            f"{path}: two_layer.checkpoints: {two_layer.model.folder} has no checkpoint at step "
            f"{_listed(unknown)}; allowed: {have}"
        )


def setting(config: dict[str, Any], key: str) -> Any:
    """The part of a normalised config under a dotted key, such as ``two_layer.sampler``."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ConfigError(f"no setting {key!r}: {part!r} is not in the scale's config")
        value = value[part]
    return value
