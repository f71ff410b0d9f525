"""Model folders and the published checkpoints of a pretended hub."""

from __future__ import annotations

import json
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
    GPTNeoX,
    GPTNeoXConfig,
    ModelError,
    ModelFolder,
    Shape,
    available_steps,
    fetch_hub_model,
    load_checkpoint,
    load_config,
    loading,
    new_model,
    save_model_folder,
)

SHAPE = AttentionOnlyConfig(n_layers=2, n_heads=2, d_model=8, d_head=4, n_ctx=6, d_vocab=11)
TOKENS = torch.tensor([[0, 3, 5, 7, 2, 10]])
REPO, TOKENIZER = "someone/two-layer", "someone/tokenizer"
NEOX = GPTNeoXConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=6, d_vocab=11, rotary_pct=0.5)
PYTHIA_REPO = "someone/pythia-tiny"
NEOX_CONFIG = {
    "hidden_act": "gelu",
    "hidden_size": 8,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 6,
    "model_type": "gpt_neox",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.5,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 11,
}


def weights(seed: int, shape: Shape = SHAPE) -> dict[str, torch.Tensor]:
    model = new_model(shape)
    model.initialise(torch.Generator().manual_seed(seed), sinusoids=shape.kind == "attention_only")
    return dict(model.state_dict())


def logits(state: dict[str, torch.Tensor], shape: Shape = SHAPE) -> torch.Tensor:
    model = new_model(shape)
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


def test_a_folder_of_gpt_neox(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    config = ModelFolder(label="tiny", shape=NEOX)
    state = weights(3, NEOX)
    save_model_folder(tmp_path / "model", config, tmp_path / "tokenizer.json", [(7, state)])
    assert load_config(tmp_path / "model") == config
    assert json.loads((tmp_path / "model/config.json").read_text())["shape"]["kind"] == "gpt_neox"
    model = load_checkpoint(tmp_path / "model", 7)
    assert isinstance(model, GPTNeoX)
    assert not model.training
    torch.testing.assert_close(model(TOKENS), logits(state, NEOX))


def test_a_shape_without_a_kind_is_attention_only(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    assert described["shape"].pop("kind") == "attention_only"
    (folder / "config.json").write_text(json.dumps(described))
    assert isinstance(load_checkpoint(folder, 0), AttentionOnly)
    described["shape"]["kind"] = "recurrent"
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="'attention_only', 'gpt_neox'"):
        load_checkpoint(folder, 0)


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
        if repo == PYTHIA_REPO and not (root / repo / revision).exists():
            raise errors.RevisionNotFoundError("404", response=response(404))
        path = root / repo / (revision if repo == PYTHIA_REPO else "") / name
        if not path.exists():
            raise errors.EntryNotFoundError("404")
        return str(path)

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


def neox_state(step: int) -> dict[str, torch.Tensor]:
    """As published: half precision, with constants of the attention code among the weights."""
    state = {name: value.half() for name, value in weights(step, NEOX).items()}
    for layer in range(NEOX.n_layers):
        prefix = f"gpt_neox.layers.{layer}.attention"
        state[f"{prefix}.bias"] = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
        state[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
        state[f"{prefix}.rotary_emb.inv_freq"] = torch.ones(1)
    return state


def put_neox(hub: SimpleNamespace, step: int, kind: str) -> Path:
    """Publish a step as one file, or as two with an index; returns the revision's folder."""
    folder = hub.root / PYTHIA_REPO / f"step{step}"
    for revision in (folder, hub.root / PYTHIA_REPO / "main"):
        revision.mkdir(parents=True, exist_ok=True)
        (revision / "config.json").write_text(json.dumps(NEOX_CONFIG))
    write, suffix = (torch.save, "bin") if "bin" in kind else (save_file, "safetensors")
    stem = "pytorch_model" if "bin" in kind else "model"
    names = list(state := neox_state(step))
    if not kind.startswith("sharded"):
        write(state, folder / f"{stem}.{suffix}")
        return folder
    shards = {f"{stem}-{i}-of-2.{suffix}": names[i::2] for i in (0, 1)}
    for shard, members in shards.items():
        write({name: state[name] for name in members}, folder / shard)
    places = {name: shard for shard, members in shards.items() for name in members}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def fetch_neox(tmp_path: Path, steps: tuple[int, ...], shape: GPTNeoXConfig = NEOX) -> Path:
    out = tmp_path / "fetched"
    fetch_hub_model(PYTHIA_REPO, TOKENIZER, shape, steps, out, report=lambda _: None)
    return out


@pytest.mark.parametrize("kind", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
def test_pythia_by_step(hub: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    for step in (0, 512):
        put_neox(hub, step, kind)
    out = fetch_neox(tmp_path, (0, 512))
    assert available_steps(out) == [0, 512]
    assert load_config(out) == ModelFolder(
        label=PYTHIA_REPO,
        shape=NEOX,
        source={"hub": PYTHIA_REPO, "revision": "main", "tokenizer": TOKENIZER},
    )
    stored = load_file(loading.checkpoint_path(out, 512))
    expected = {k: v.half() for k, v in weights(512, NEOX).items()}
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
    model = load_checkpoint(out, 512)
    wide = {name: value.float() for name, value in expected.items()}
    torch.testing.assert_close(model(TOKENS), logits(wide, NEOX))


def test_safetensors_are_preferred(hub: SimpleNamespace, tmp_path: Path) -> None:
    put_neox(hub, 4, "safetensors")
    folder = put_neox(hub, 4, "bin")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    fetch_neox(tmp_path, (4,))
    assert not [name for _, name, _ in hub.asked if name.startswith("pytorch_model")]


def test_a_malicious_pickle_of_pythia_is_not_run(hub: SimpleNamespace, tmp_path: Path) -> None:
    folder, marker = put_neox(hub, 4, "bin"), tmp_path / "was_run"
    torch.save({**neox_state(4), "extra": Malicious(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin at step4 .* it was not run"):
        fetch_neox(tmp_path, (4,))
    assert not marker.exists()
    assert not (tmp_path / "fetched").exists()


def test_pythia_of_another_shape(hub: SimpleNamespace, tmp_path: Path) -> None:
    put_neox(hub, 4, "safetensors")
    wrong = NEOX.model_copy(update={"rotary_pct": 1.0})
    with pytest.raises(ModelError, match=r"has rotary_pct 0\.5, the shape .* asked for 1\.0"):
        fetch_neox(tmp_path, (4,), wrong)
    path = hub.root / PYTHIA_REPO / "main/config.json"
    path.write_text(json.dumps({**NEOX_CONFIG, "use_parallel_residual": False}))
    with pytest.raises(ModelError, match="expected use_parallel_residual True, found False"):
        fetch_neox(tmp_path, (4,))
    path.write_text("not JSON")
    with pytest.raises(ModelError, match=r"pythia-tiny/config\.json at main"):
        fetch_neox(tmp_path, (4,))
    assert not (tmp_path / "fetched").exists()


def test_what_pythia_has_not_published(hub: SimpleNamespace, tmp_path: Path) -> None:
    folder = put_neox(hub, 4, "safetensors")
    with pytest.raises(ModelError, match="no revision 'step5'; Pythia's are step0, step1"):
        fetch_neox(tmp_path, (4, 5))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no file pytorch_model.* nor model\.safetensors"):
        fetch_neox(tmp_path, (4,))
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ModelError, match=r"model\.safetensors at step4 is damaged"):
        fetch_neox(tmp_path, (4,))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"index\.json at step4 is damaged"):
        fetch_neox(tmp_path, (4,))
    assert not (tmp_path / "fetched").exists()


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
