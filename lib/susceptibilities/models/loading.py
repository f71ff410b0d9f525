"""Model folders: a trajectory of checkpoints on disk, and the published ones from the hub.

A model folder holds ``config.json`` (`ModelFolder`), ``tokenizer.json`` and
``checkpoints/step_*.safetensors``; weights are never read from a pickle.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of the client's HTTP library)
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..store import atomic_path, write_json
from .gpt_neox import GPTNeoXConfig, from_published
from .shapes import Shape, new_model
from .transformer import Transformer

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
SAFE, PICKLED, INDEX = "model.safetensors", "pytorch_model.bin", ".index.json"
# Constants of the attention code that TransformerLens and Hugging Face (older releases of the
# Pythia models) keep among the weights.
_CONSTANTS = re.compile(
    r"blocks\.\d+\.attn\.(mask|IGNORE)"
    r"|gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
    r"|gpt_neox\.rotary_emb\.inv_freq"
)
_WRAPPERS = ("state_dict", "model_state_dict", "model")


class ModelError(Exception):
    """A model cannot be read or fetched; the message says what, where and what to do."""


class ModelFolder(BaseModel):
    """``config.json`` of a model folder.

    Attributes:
        label: the name of the model in figures and tables.
        source: how the weights came about: the hub repository, or the settings of training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str
    shape: Shape
    source: dict[str, Any] = {}


def checkpoint_path(folder: Path, step: int) -> Path:
    """File of the weights after ``step`` training steps."""
    return folder / "checkpoints" / f"step_{step:06d}.safetensors"


def available_steps(folder: Path) -> list[int]:
    """Training steps of which the folder holds a checkpoint, in order."""
    found = (
        re.fullmatch(r"step_(\d+)\.safetensors", path.name)
        for path in (folder / "checkpoints").glob("*.safetensors")
    )
    return sorted(int(match[1]) for match in found if match)


def load_config(folder: Path) -> ModelFolder:
    """Read a model folder's ``config.json``.

    Raises:
        ModelError: it is not there or does not describe a model of this kind.
    """
    path = folder / CONFIG
    if not path.exists():
        raise ModelError(f"{folder} is not a model folder: expected {CONFIG} in it")
    try:
        return ModelFolder.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelError(f"{path} does not describe a model: {error}") from error


def load_checkpoint(folder: Path, step: int, dtype: torch.dtype = torch.float32) -> Transformer:
    """The model after ``step`` training steps, in eval mode, on the CPU.

    Weights stored with fewer bits are widened to ``dtype``.

    Raises:
        ModelError: there is no such checkpoint, it is damaged, or its tensors are not those
            of the shape in ``config.json``.
    """
    config = load_config(folder)
    path = checkpoint_path(folder, step)
    if not path.exists():
        steps = available_steps(folder)
        raise ModelError(
            f"{folder} has no checkpoint of step {step}: "
            + (f"it has {', '.join(map(str, steps))}" if steps else "it has no checkpoints")
        )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged ({error}); fetch or train it again") from error
    return build_model(config.shape, state, str(path), dtype)


def build_model(
    shape: Shape,
    state: Mapping[str, Tensor],
    origin: str,
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """A model of this shape with these weights, in eval mode.

    Raises:
        ModelError: a tensor is missing, unknown, of another shape or not finite; ``origin``
            is named.
    """
    with torch.device("meta"):
        model = new_model(shape)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, size in expected.items():
        if name not in state:
            raise ModelError(f"{origin}: expected tensor {name} of shape {size}, found none")
        found = tuple(state[name].shape)
        if found != size:
            raise ModelError(
                f"{origin}: expected tensor {name} of shape {size}, found {found}; "
                f"the shape in {CONFIG} is another model's"
            )
        if not state[name].is_floating_point() or not state[name].isfinite().all():
            raise ModelError(f"{origin}: tensor {name} has values that are not finite numbers")
    unknown = sorted(set(state) - set(expected))
    if unknown:
        raise ModelError(f"{origin}: unknown tensor {unknown[0]}; expected {', '.join(expected)}")
    weights = {name: state[name].to(dtype).clone() for name in expected}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_().eval()


def save_checkpoint(
    folder: Path, step: int, state: Mapping[str, Tensor], dtype: torch.dtype | None = torch.float32
) -> None:
    """Write one checkpoint, its weights stored as ``dtype`` (None: as they are)."""
    with atomic_path(checkpoint_path(folder, step)) as temporary:
        save_file({k: v.detach().to(dtype).contiguous() for k, v in state.items()}, temporary)


def save_model_folder(
    out: Path,
    config: ModelFolder,
    tokenizer: Path,
    checkpoints: Iterable[tuple[int, Mapping[str, Tensor]]],
    dtype: torch.dtype | None = torch.float32,
    documents: Iterable[Path] = (),
) -> None:
    """Write a model folder: all of it, or nothing.

    Args:
        tokenizer: a ``tokenizer.json``.
        checkpoints: (step, weights by name), read one at a time.
        dtype: of the stored weights; half precision halves the folder, None leaves it as it is.
        documents: further files that are copied in (card, training log).

    Raises:
        ModelError: the weights are not of the configuration's shape, or there are none.
    """
    with atomic_path(out) as folder:
        folder.mkdir()
        write_json(folder / CONFIG, config.model_dump(mode="json"))
        shutil.copyfile(tokenizer, folder / TOKENIZER)
        for document in documents:
            shutil.copyfile(document, folder / document.name)
        for step, state in checkpoints:
            build_model(config.shape, state, f"checkpoint of step {step}")
            save_checkpoint(folder, step, state, dtype)
        if not available_steps(folder):
            raise ModelError(f"no checkpoints to write to {out}")


def fetch_hub_model(
    repo: str,
    tokenizer: str,
    shape: Shape,
    steps: Iterable[int],
    out: Path,
    revision: str = "main",
    report: Callable[[str], None] = print,
) -> None:
    """Fetch checkpoints of a published model and write them as a model folder.

    The two-layer models' repositories hold ``checkpoints/checkpoint_0001700.pth``, one for every
    hundred training steps: pickles of TransformerLens state dicts. Pythia's hold one set of
    weights in each of the revisions ``step0``, ``step1``, ..., as safetensors or, where there
    are none, as a pickle; they are stored with the bits they were published with. Of pickles
    only tensors are read.

    Args:
        repo: for example ``timaeus/L2W256-s-2`` or ``EleutherAI/pythia-14m``.
        tokenizer: repository with the ``tokenizer.json``.
        revision: of the two-layer models' repository, and of Pythia's ``config.json``.

    Raises:
        ModelError: no network, no such repository or step, a file that is more than tensors,
            or tensors or a ``config.json`` of another shape. Nothing is left at ``out``.
    """
    neox = isinstance(shape, GPTNeoXConfig)

    def checkpoints() -> Iterator[tuple[int, dict[str, Tensor]]]:
        for step in steps:
            if neox:
                state = _pythia_weights(repo, f"step{step}")
            else:
                name = f"checkpoints/checkpoint_{step:07d}.pth"
                path = _download(repo, name, revision, f"; step {step} may not have been kept")
                state = read_published(path, f"{repo}/{name}")
            report(f"{repo}: step {step}")
            yield step, state

    config = ModelFolder(
        label=repo, shape=shape, source={"hub": repo, "revision": revision, "tokenizer": tokenizer}
    )
    if neox:
        _check_published(repo, revision, shape)
    vocabulary = _download(tokenizer, TOKENIZER, "main", "")
    save_model_folder(out, config, vocabulary, checkpoints(), None if neox else torch.float32)


def _check_published(repo: str, revision: str, shape: GPTNeoXConfig) -> None:
    path = _download(repo, CONFIG, revision, "")
    try:
        published = from_published(json.loads(path.read_bytes()))
    except ValueError as error:
        raise ModelError(f"{repo}/{CONFIG} at {revision}: {error}") from error
    for name, value in published.model_dump().items():
        if value != (asked := getattr(shape, name)):
            raise ModelError(f"{repo} has {name} {value}, the shape that was asked for {asked}")


def _pythia_weights(repo: str, revision: str) -> dict[str, Tensor]:
    """Weights by name, out of one file or, for the largest models, several."""
    name, path = _first_of(repo, (SAFE, SAFE + INDEX, PICKLED, PICKLED + INDEX), revision)
    if not name.endswith(INDEX):
        return read_published(path, f"{repo}/{name} at {revision}")
    try:
        shards = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError) as error:
        raise ModelError(f"{repo}/{name} at {revision} is damaged: {error!r}") from error
    state: dict[str, Tensor] = {}
    for shard in shards:
        path = _download(repo, shard, revision, "")
        state.update(read_published(path, f"{repo}/{shard} at {revision}"))
    return state


def _first_of(repo: str, names: tuple[str, ...], revision: str) -> tuple[str, Path]:
    """The first of these files that the repository has, and where it lies now."""
    for name in names[:-1]:
        with contextlib.suppress(_NoSuchFileError):
            return name, _download(repo, name, revision, "")
    hint = f" at {revision}, nor {', '.join(names[:-1])}"
    return names[-1], _download(repo, names[-1], revision, hint)


class _NoSuchFileError(ModelError):
    """The repository is there, the file is not."""


def _download(repo: str, name: str, revision: str, hint: str) -> Path:
    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"the hub has no model {repo!r} that is open to you: check the name in the scale's "
            "configuration, or log in where it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"the hub's model {repo!r} has no revision {revision!r}; Pythia's are step0, step1, "
            "step2, step4, ... step512, step1000, step2000, ... step143000"
        ) from error
    except LocalEntryNotFoundError as error:  # before its parent class EntryNotFoundError
        raise ModelError(
            f"could not fetch {name} of {repo!r}: no connection to the hub, and it is not in "
            "the local cache; run the same command again when there is a network"
        ) from error
    except EntryNotFoundError as error:
        raise _NoSuchFileError(f"the hub's model {repo!r} has no file {name}{hint}") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"could not fetch {name} of {repo!r}: {reason}") from error


def read_published(path: Path, origin: str) -> dict[str, Tensor]:
    """Weights by name out of a published safetensors or pickle file; nothing in it is executed.

    Raises:
        ModelError: it holds anything but tensors, or no weights.
    """
    try:
        if path.suffix == ".safetensors":
            return _weights(load_file(path))
        # weights_only: an unpickler that can make tensors and containers, and nothing else.
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"{origin} is damaged or holds more than weights; it was not run. {error}"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
    if not isinstance(value, Mapping) or not all(isinstance(v, Tensor) for v in value.values()):
        raise ModelError(f"{origin}: expected tensors by name, found {type(value).__name__}")
    return _weights(value)


def _weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not _CONSTANTS.fullmatch(name)}
