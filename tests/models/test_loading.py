"""Model folders and the published checkpoints of a pretended hub."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from susceptibilities.models import (
    AttentionOnly,
    AttentionOnlyConfig,
    ModelError,
    ModelFolder,
    available_steps,
    fetch_hub_model,
    load_checkpoint,
    load_config,
    loading,
    save_model_folder,
)

SHAPE = AttentionOnlyConfig(n_layers=2, n_heads=2, d_model=8, d_head=4, n_ctx=6, d_vocab=11)
TOKENS = torch.tensor([[0, 3, 5, 7, 2, 10]])
REPO, TOKENIZER = "someone/two-layer", "someone/tokenizer"


def weights(seed: int, shape: AttentionOnlyConfig = SHAPE) -> dict[str, torch.Tensor]:
    model = AttentionOnly(shape)
    model.initialise(torch.Generator().manual_seed(seed), sinusoids=True)
    return dict(model.state_dict())


def logits(state: dict[str, torch.Tensor]) -> torch.Tensor:
    model = AttentionOnly(SHAPE)
    model.load_state_dict(state)
    return model(TOKENS).detach()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text("{}")
    out = tmp_path / "model"
    save_model_folder(
        out,
        ModelFolder(label="tiny", shape=SHAPE),
        tmp_path / "tokenizer.json",
        ((step, weights(step)) for step in (0, 100, 1700)),
    )
    return out


def test_round_trip(folder: Path) -> None:
    assert available_steps(folder) == [0, 100, 1700]
    assert load_config(folder) == ModelFolder(label="tiny", shape=SHAPE)
    model = load_checkpoint(folder, 1700)
    assert not model.training
    assert model.config == SHAPE
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights(1700)[name]), name
    torch.testing.assert_close(model(TOKENS), logits(weights(1700)))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float64])
def test_narrow_weights_are_widened(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    out = tmp_path / "model"
    config = ModelFolder(label="tiny", shape=SHAPE)
    save_model_folder(out, config, tmp_path / "tokenizer.json", [(5, weights(5))], stored)
    assert load_file(loading.checkpoint_path(out, 5))["embed.W_E"].dtype == stored
    model = load_checkpoint(out, 5, wanted)
    for name, value in model.state_dict().items():
        assert value.dtype == wanted
        assert torch.equal(value, weights(5)[name].to(stored).to(wanted)), name


def test_a_step_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ModelError, match="no checkpoint of step 200: it has 0, 100, 1700"):
        load_checkpoint(folder, 200)


def test_not_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a model folder: expected config\.json"):
        load_checkpoint(tmp_path, 0)
    (tmp_path / "config.json").write_text('{"label": "x", "shape": {"n_layers": "two"}}')
    with pytest.raises(ModelError, match="n_layers"):
        load_checkpoint(tmp_path, 0)


def change(folder: Path, name: str, value: torch.Tensor | None) -> None:
    path = loading.checkpoint_path(folder, 100)
    state = load_file(path)
    state.pop(name, None)
    if value is not None:
        state[name] = value
    save_file(state, path)


def test_a_checkpoint_of_another_shape(folder: Path) -> None:
    change(folder, "unembed.W_U", torch.zeros(8, 12))
    expected = r"unembed\.W_U of shape \(8, 11\), found \(8, 12\)"
    with pytest.raises(ModelError, match=expected) as error:
        load_checkpoint(folder, 100)
    assert "step_000100" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ln_final.b", None, r"ln_final\.b of shape \(8,\), found none"),
        ("blocks.2.ln1.w", torch.zeros(8), r"unknown tensor blocks\.2\.ln1\.w"),
        ("embed.W_E", torch.full((11, 8), torch.nan), r"embed\.W_E .* not finite"),
        ("embed.W_E", torch.zeros(11, 8, dtype=torch.int64), r"embed\.W_E .* not finite"),
    ],
)
def test_wrong_tensors(folder: Path, name: str, value: torch.Tensor | None, message: str) -> None:
    change(folder, name, value)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(folder, 100)


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_checkpoint_cut_short(folder: Path, kept: float) -> None:
    path = loading.checkpoint_path(folder, 100)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ModelError, match="is damaged"):
        load_checkpoint(folder, 100)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    wide = SHAPE.model_copy(update={"d_vocab": 12})
    with pytest.raises(ModelError, match=r"step 7: expected tensor embed\.W_E"):
        save_model_folder(
            tmp_path / "model",
            ModelFolder(label="tiny", shape=SHAPE),
            tmp_path / "tokenizer.json",
            [(0, weights(0)), (7, weights(7, wide))],
        )
    with pytest.raises(ModelError, match="no checkpoints"):
        save_model_folder(
            tmp_path / "model",
            ModelFolder(label="tiny", shape=SHAPE),
            tmp_path / "tokenizer.json",
            [],
        )
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


class Malicious:
    """Runs a command when it is unpickled the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A folder that stands for the hub; ``failure`` is raised where it is set."""
    root = tmp_path / "hub"
    pretended = SimpleNamespace(root=root, failure=None, asked=[])

    def download(repo: str, name: str, revision: str) -> str:
        pretended.asked.append((repo, name, revision))
        if pretended.failure is not None:
            raise pretended.failure
        if not (root / repo).exists():
            raise errors.RepositoryNotFoundError("401", response=response(401))
        if not (root / repo / name).exists():
            raise errors.EntryNotFoundError("404")
        return str(root / repo / name)

    monkeypatch.setattr(loading, "hf_hub_download", download)
    (root / TOKENIZER).mkdir(parents=True)
    (root / TOKENIZER / "tokenizer.json").write_text('{"a": 1}')
    (root / REPO / "checkpoints").mkdir(parents=True)
    for step in (0, 1700):
        put(pretended, step, with_constants(weights(step)))
    return pretended


def response(status: int) -> Any:
    # Which HTTP library the hub's client stands on depends on its version.
    library = __import__(loading.HTTPError.__module__.split(".")[0])
    return library.Response(status, request=library.Request("GET", "https://hub.example"))


def put(hub: SimpleNamespace, step: int, value: object) -> None:
    torch.save(value, hub.root / REPO / "checkpoints" / f"checkpoint_{step:07d}.pth")


def with_constants(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for layer in range(SHAPE.n_layers):
        state[f"blocks.{layer}.attn.mask"] = torch.ones(6, 6, dtype=torch.bool).tril()
        state[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-torch.inf)
    return state


def fetch(tmp_path: Path, steps: tuple[int, ...], repo: str = REPO) -> Path:
    out = tmp_path / "fetched"
    fetch_hub_model(repo, TOKENIZER, SHAPE, steps, out, report=lambda _: None)
    return out


def test_published_checkpoints_by_step(hub: SimpleNamespace, tmp_path: Path) -> None:
    out = fetch(tmp_path, (0, 1700))
    assert (REPO, "checkpoints/checkpoint_0001700.pth", "main") in hub.asked
    assert available_steps(out) == [0, 1700]
    assert (out / "tokenizer.json").read_text() == '{"a": 1}'
    assert load_config(out).label == REPO
    torch.testing.assert_close(load_checkpoint(out, 1700)(TOKENS), logits(weights(1700)))
    assert not list(out.rglob("*.pth"))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict"])
def test_wrapped_state_dicts(hub: SimpleNamespace, tmp_path: Path, key: str) -> None:
    put(hub, 1700, {key: with_constants(weights(9)), "step": 1700})
    out = fetch(tmp_path, (1700,))
    torch.testing.assert_close(load_checkpoint(out, 1700)(TOKENS), logits(weights(9)))


def test_a_malicious_pickle_is_not_run(hub: SimpleNamespace, tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    put(hub, 1700, {**weights(0), "extra": Malicious(marker)})
    # It is a real one: an ordinary load would run it.
    torch.load(hub.root / REPO / "checkpoints" / "checkpoint_0001700.pth", weights_only=False)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(ModelError, match="more than weights; it was not run"):
        fetch(tmp_path, (0, 1700))
    assert not marker.exists()
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(3)], "expected tensors by name, found list"),
        ({"a": 1}, "expected tensors by name, found dict"),
        ({"embed.W_E": torch.zeros(12, 8)}, r"embed\.W_E of shape \(11, 8\), found \(12, 8\)"),
    ],
)
def test_other_contents(hub: SimpleNamespace, tmp_path: Path, value: object, message: str) -> None:
    put(hub, 1700, value)
    with pytest.raises(ModelError, match=message):
        fetch(tmp_path, (1700,))
    assert not (tmp_path / "fetched").exists()


def test_a_download_cut_short(hub: SimpleNamespace, tmp_path: Path) -> None:
    path = hub.root / REPO / "checkpoints" / "checkpoint_0001700.pth"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ModelError, match="is damaged"):
        fetch(tmp_path, (1700,))


def test_a_step_that_was_not_published(hub: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no file checkpoints/checkpoint_0001750\.pth; step 1750"):
        fetch(tmp_path, (0, 1750))
    assert not (tmp_path / "fetched").exists()


def test_a_name_that_does_not_exist(hub: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model 'someone/else'"):
        fetch(tmp_path, (0,), "someone/else")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (errors.LocalEntryNotFoundError("not in the cache"), "no connection to the hub"),
        (errors.OfflineModeIsEnabled("offline mode"), "offline mode"),
        (loading.HTTPError("name resolution failed"), "name resolution failed"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (errors.HFValidationError("bad name"), "no model"),
    ],
)
def test_no_network(hub: SimpleNamespace, tmp_path: Path, failure: Exception, message: str) -> None:
    hub.failure = failure
    with pytest.raises(ModelError, match=message):
        fetch(tmp_path, (0,))
    assert not (tmp_path / "fetched").exists()
