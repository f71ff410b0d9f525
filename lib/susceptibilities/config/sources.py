"""Where text and models come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ..corpora.documents import domains
from ..corpora.hub import HubCorpus
from ..corpora.packages import PackageCorpus
from ..models.loading import ModelError, available_steps, load_config
from ..models.shapes import Shape
from ..training import TrainingConfig
from .parts import ConfigError, Name, Part, listed, read_yaml


class PackagesCorpusConfig(Part):
    """Text out of pinned package releases; ``domains`` restricts the definition's."""

    kind: Literal["packages"]
    name: Name
    definition: Path
    domains: list[str] | None = None


class FolderCorpusConfig(Part):
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


class FolderModelConfig(Part):
    """A folder with config.json, tokenizer.json and checkpoints/step_*.safetensors."""

    kind: Literal["folder"]
    path: Path

    @property
    def folder(self) -> Path:
        return self.path


class TrainModelConfig(Part):
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


class HubModelConfig(Part):
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
        whole = PackageCorpus.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: {place}: {first['msg']}, found {first['input']!r:.60}"
        ) from None
    chosen = whole.domains if corpus.domains is None else corpus.domains
    if unknown := set(chosen) - set(whole.domains):
        raise ConfigError(
            f"corpus.domains: unknown domain {listed(unknown)}; allowed: {listed(whole.domains)}"
        )
    return whole.model_copy(update={"domains": {name: whole.domains[name] for name in chosen}})


def model_shape(model: ModelConfig, root: Path = Path(), key: str = "model") -> Shape:
    """Shape of the model; for a folder, what its config.json says. ``key``: for messages."""
    if not isinstance(model, FolderModelConfig):
        return model.shape
    try:
        return load_config(root / model.path).shape
    except ModelError as error:
        raise ConfigError(f"{key}.path: {' '.join(str(error).split())}") from None


def known_steps(model: ModelConfig, root: Path = Path()) -> list[int] | None:
    """Training steps of which there is, or will be, a checkpoint; None if only the hub knows."""
    if isinstance(model, FolderModelConfig):
        return available_steps(root / model.path)
    return model.training.checkpoint_steps() if isinstance(model, TrainModelConfig) else None


def last_step(model: ModelConfig, root: Path = Path()) -> int:
    """The last of `known_steps`.

    Raises:
        ConfigError: there is none, or only the hub knows.
    """
    if not (steps := known_steps(model, root)):
        raise ConfigError(
            f"checkpoint: 'last' of {model.folder} is not known; give the training step"
        )
    return steps[-1]
