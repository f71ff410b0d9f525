"""Model folders: a trajectory of checkpoints on disk, and the published ones from the hub.

A model folder holds ``config.json`` (`ModelFolder`), ``tokenizer.json`` and
``checkpoints/step_*.safetensors``; weights are never read from a pickle.
"""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
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
)
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..store import atomic_path, write_json
from .attention_only import AttentionOnly, AttentionOnlyConfig

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
# TransformerLens keeps these two constants of its attention code among the weights.
_CONSTANTS = re.compile(r"blocks\.\d+\.attn\.(mask|IGNORE)")
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
    shape: AttentionOnlyConfig
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


def load_checkpoint(folder: Path, step: int, dtype: torch.dtype = torch.float32) -> AttentionOnly:
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
    shape: AttentionOnlyConfig,
    state: Mapping[str, Tensor],
    origin: str,
    dtype: torch.dtype = torch.float32,
) -> AttentionOnly:
    """A model of this shape with these weights, in eval mode.

    Raises:
        ModelError: a tensor is missing, unknown, of another shape or not finite; ``origin``
            is named.
    """
    with torch.device("meta"):
        model = AttentionOnly(shape)
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
    folder: Path, step: int, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """Write one checkpoint, its weights stored as ``dtype``."""
    with atomic_path(checkpoint_path(folder, step)) as temporary:
        save_file({k: v.detach().to(dtype).contiguous() for k, v in state.items()}, temporary)


def save_model_folder(
    out: Path,
    config: ModelFolder,
    tokenizer: Path,
    checkpoints: Iterable[tuple[int, Mapping[str, Tensor]]],
    dtype: torch.dtype = torch.float32,
    documents: Iterable[Path] = (),
) -> None:
    """Write a model folder: all of it, or nothing.

    Args:
        tokenizer: a ``tokenizer.json``.
        checkpoints: (step, weights by name), read one at a time.
        dtype: of the stored weights; half precision halves the folder.
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
    shape: AttentionOnlyConfig,
    steps: Iterable[int],
    out: Path,
    revision: str = "main",
    report: Callable[[str], None] = print,
) -> None:
    """Fetch checkpoints of a published two-layer model and write them as a model folder.

    The repositories hold ``checkpoints/checkpoint_0001700.pth``, one for every hundred
    training steps: pickles of TransformerLens state dicts, of which only tensors are read.

    Args:
        repo: for example ``timaeus/L2W256-s-2``.
        tokenizer: repository with the ``tokenizer.json``.

    Raises:
        ModelError: no network, no such repository or step, a file that is more than tensors,
            or tensors of another shape. Nothing is left at ``out``.
    """

    def checkpoints() -> Iterable[tuple[int, dict[str, Tensor]]]:
        for step in steps:
            name = f"checkpoints/checkpoint_{step:07d}.pth"
            path = _download(repo, name, revision, f"; step {step} may not have been kept")
            report(f"{repo}: step {step}")
            yield step, read_published(path, f"{repo}/{name}")

    config = ModelFolder(
        label=repo, shape=shape, source={"hub": repo, "revision": revision, "tokenizer": tokenizer}
    )
    vocabulary = _download(tokenizer, TOKENIZER, "main", "")
    save_model_folder(out, config, vocabulary, checkpoints())


def _download(repo: str, name: str, revision: str, hint: str) -> Path:
    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"the hub has no model {repo!r} that is open to you: check the name in the scale's "
            "configuration, or log in where it is private"
        ) from error
    except LocalEntryNotFoundError as error:  # before its parent class EntryNotFoundError
        raise ModelError(
            f"could not fetch {name} of {repo!r}: no connection to the hub, and it is not in "
            "the local cache; run the same command again when there is a network"
        ) from error
    except EntryNotFoundError as error:
        raise ModelError(f"the hub's model {repo!r} has no file {name}{hint}") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"could not fetch {name} of {repo!r}: {reason}") from error


def read_published(path: Path, origin: str) -> dict[str, Tensor]:
    """Weights by name out of a published ``.pth`` file; nothing in it is executed.

    Raises:
        ModelError: it holds anything but tensors, or no weights.
    """
    try:
        # weights_only: an unpickler that can make tensors and containers, and nothing else.
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"{origin} is damaged or holds more than weights; it was not run. {error}"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
    if not isinstance(value, Mapping) or not all(isinstance(v, Tensor) for v in value.values()):
        raise ModelError(f"{origin}: expected tensors by name, found {type(value).__name__}")
    return {name: tensor for name, tensor in value.items() if not _CONSTANTS.fullmatch(name)}
