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

from .components import head_names
from .corpora.documents import CorpusError, domains
from .corpora.hub import HubCorpus
from .corpora.packages import PackageCorpus
from .models.attention_only import AttentionOnlyConfig
from .models.loading import ModelError, available_steps, load_config
from .posterior import SamplerConfig
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
    shape: AttentionOnlyConfig
    training: TrainingConfig

    @property
    def folder(self) -> Path:
        return Path("data/models") / self.name


class HubModelConfig(_Part):
    """Checkpoints of a model repository on the Hugging Face hub."""

    kind: Literal["hub"]
    repo: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
    tokenizer: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
    shape: AttentionOnlyConfig

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
        if per_token.sampler.batch > self.sgld_contexts:
            raise ValueError(
                f"per_token.sampler.batch ({per_token.sampler.batch}) must not exceed "
                f"sgld_contexts ({self.sgld_contexts})"
            )
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
        lines = [_explain(dict(problem)) for problem in error.errors()]
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


def model_shape(model: ModelConfig, root: Path = Path()) -> AttentionOnlyConfig:
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


def plan(scale: ScaleConfig, root: Path = Path()) -> str:
    """What a scale fetches and computes, approximately, as text. Needs no network."""
    two_layer, corpus = scale.two_layer, scale.corpus
    shape = model_shape(scale.two_layer.model, root)
    lines = [f"scale {scale.scale}: results in results/{scale.scale}", "", "downloads"]
    if isinstance(corpus, PackagesCorpusConfig):
        sources = [s for d in package_corpus(corpus, root).domains.values() for s in d.sources]
        releases = sorted({f"{source.package} {source.version}" for source in sources})
        lines.append(f"  {len(releases)} package releases, once: {', '.join(releases)}")
    elif isinstance(corpus, HubCorpusConfig):
        lines.append(f"  datasets, {corpus.documents} documents of each:")
        sources = [corpus.train, *corpus.domains.values()]
        lines += [f"    {repo}" for repo in dict.fromkeys(source.repo for source in sources)]
    else:
        lines.append(f"  no text: {corpus.path} is read")
    model = two_layer.model
    if isinstance(model, HubModelConfig):
        lines.append(f"  tokenizer {model.tokenizer}")
        lines.append(
            f"  {len(two_layer.checkpoints)} checkpoints of {model.repo}, "
            f"{4 * parameters(shape) / 1e6:.0f} MB each"
        )
    elif isinstance(model, TrainModelConfig):
        tokens = model.training.steps * model.training.batch * shape.n_ctx
        lines += [f"  no weights: {model.name} is trained here", "", "training"]
        lines.append(f"  {model.training.steps} steps, {tokens / 1e6:.0f}M tokens")
    else:
        lines.append(f"  no weights: {model.path} is used")
    names = domain_names(corpus, root)
    probes = len(names) + 1
    parts = len(head_names(shape)) + 1
    replaced = len(probe_positions(two_layer.base_contexts, two_layer.delta_h))
    per_token = two_layer.per_token
    lines += _sampling_plan(
        "dataset susceptibilities",
        two_layer.checkpoints,
        two_layer.steps(two_layer.control_checkpoints),
        two_layer.sampler,
        parts,
        (two_layer.base_contexts, replaced, probes, two_layer.context),
        parameters(shape),
    )
    lines += _sampling_plan(
        f"per-token susceptibilities, in {per_token.shards} shards",
        two_layer.steps(per_token.checkpoints),
        two_layer.steps(per_token.control_checkpoints),
        per_token.sampler,
        parts,
        (two_layer.base_contexts, per_token.contexts, probes, two_layer.context),
        parameters(shape),
    )
    lines += ["", f"probes: {', '.join(names)}, {CONTROL_PROBE}"]
    return "\n".join(lines)


def _sampling_plan(
    title: str,
    steps: list[int],
    controls: list[int],
    sampler: SamplerConfig,
    parts: int,
    sizes: tuple[int, int, int, int],
    weights: int,
) -> list[str]:
    """Lines about one kind of chains; ``sizes``: base contexts, a probe's, probes, context."""
    base, each, probes, context = sizes
    contexts = base + probes * each
    runs = (len(steps) + len(controls)) * parts * sampler.chains
    gradient = runs * sampler.steps * sampler.batch * context
    evaluated = runs * sampler.draws * contexts * context
    work = 2 * weights * (3 * gradient + evaluated)
    return [
        "",
        f"sampling, {title}",
        f"  {len(steps)} checkpoints, {len(controls)} controls at n_beta = 0",
        f"  each: {parts} components (heads and the whole model) x {sampler.chains} chains x "
        f"{sampler.steps} steps, {sampler.draws} draws kept",
        f"  a draw: {contexts} contexts of {context} tokens ({base} base, {each} for each of "
        f"{probes} probes)",
        f"  tokens: {gradient:.2e} with gradient, {evaluated:.2e} without; about {work:.1e} "
        "floating-point operations, before what the fast path saves",
    ]


def parameters(shape: AttentionOnlyConfig) -> int:
    """Number of weights of a model of this shape."""
    head = 4 * shape.d_model * shape.d_head + 3 * shape.d_head
    layer = shape.n_heads * head + 3 * shape.d_model
    ends = shape.d_vocab * (2 * shape.d_model + 1) + shape.n_ctx * shape.d_model
    return shape.n_layers * layer + ends + 2 * shape.d_model
