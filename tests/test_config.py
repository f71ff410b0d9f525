"""Scale files: the shipped ones, and what a user is told about a wrong one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from susceptibilities.config import ConfigError, load_scale, setting
from susceptibilities.models.attention_only import AttentionOnly, AttentionOnlyConfig
from susceptibilities.models.loading import ModelFolder, save_checkpoint
from susceptibilities.store import write_json

ROOT = Path(__file__).parents[1]
SHAPE = {"n_layers": 1, "n_heads": 2, "d_model": 8, "d_head": 4, "n_ctx": 16, "d_vocab": 300}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of two scale files, a corpus definition and a small model."""
    (tmp_path / "config").mkdir()
    shutil.copytree(ROOT / "config/corpora", tmp_path / "config/corpora")
    for name in ("smoke", "mini"):
        shutil.copy(ROOT / f"config/{name}.yaml", tmp_path / "config")
    folder = tmp_path / "models/two-layer-10d"
    config = ModelFolder(label="small", shape=AttentionOnlyConfig.model_validate(SHAPE))
    write_json(folder / "config.json", config.model_dump())
    for step in (0, 10, 20):
        save_checkpoint(folder, step, AttentionOnly(config.shape).state_dict())
    return tmp_path


def own(root: Path, changes: dict[str, Any]) -> str:
    """A valid scale file of the user's own, with some dotted keys changed (None: removed)."""
    value = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    value["scale"] = "mine"
    value["two_layer"].update(checkpoints=[0, 20], context=16)
    value["two_layer"]["per_token"]["spectral"]["components"] = ["0:1"]
    for key, new in changes.items():
        *path, last = key.split(".")
        part = value
        for name in path:
            part = part[name]
        if new is None:
            del part[last]
        else:
            part[last] = new
    (root / "mine.yaml").write_text(yaml.safe_dump(value))
    return "mine.yaml"


def test_own_file(root: Path) -> None:
    scale = load_scale(file=own(root, {}), root=root)
    normalised = scale.normalised()
    assert scale.scale == "mine"
    assert setting(normalised, "two_layer.control_checkpoints") == [20]
    assert setting(normalised, "two_layer.per_token.checkpoints") == [20]
    assert setting(normalised, "two_layer.sampler.damping") == 0.1, "defaults are written out"
    assert type(scale).model_validate(normalised).normalised() == normalised


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"two_layer.sampler.stepsize": 1}, ["two_layer.sampler.stepsize", "step_size", "draws"]),
        ({"corpos": 1}, ["corpos", "did you mean corpus", "two_layer"]),
        ({"two_layer.sampler.method": "hmc"}, ["two_layer.sampler.method", "'hmc'", "rmsprop"]),
        ({"two_layer.sampler.chains": 1}, ["two_layer.sampler.chains", "1", "2"]),
        ({"two_layer.sampler.step_size": -1}, ["two_layer.sampler.step_size", "-1", "greater"]),
        ({"two_layer.context": "long"}, ["two_layer.context", "'long'", "integer"]),
        ({"two_layer.context": 128}, ["two_layer.context", "128", "2 to 16"]),
        ({"two_layer.delta_h": 1.5}, ["two_layer.delta_h", "1.5"]),
        ({"two_layer.delta_h": 0.01}, ["base_contexts * delta_h", "20 * 0.01"]),
        ({"two_layer.base_contexts": None}, ["two_layer.base_contexts", "missing"]),
        ({"two_layer.checkpoints": [0, 15]}, ["two_layer.checkpoints", "15", "0, 10, 20"]),
        ({"two_layer.checkpoints": [20, 0]}, ["two_layer.checkpoints", "rise"]),
        ({"two_layer.control_checkpoints": [10]}, ["control_checkpoints", "10", "0, 20"]),
        ({"two_layer.sampler.batch": 65}, ["sampler.batch", "65", "64"]),
        ({"two_layer.per_token": None}, ["two_layer.per_token", "missing"]),
        ({"two_layer.per_token.contexts": 1}, ["per_token.contexts", "1", "2"]),
        ({"two_layer.per_token.checkpoints": [10]}, ["per_token.checkpoints", "10", "0, 20"]),
        ({"two_layer.per_token.sampler.batch": 65}, ["per_token.sampler.batch", "65", "64"]),
        ({"two_layer.per_token.shards": 6}, ["per_token.shards", "6", "1 to 3"]),
        (
            {"two_layer.evaluation.precision": "half"},
            ["evaluation.precision", "'half'", "bfloat16"],
        ),
        ({"two_layer.evaluation.variate": 1}, ["evaluation.variate", "control_variate"]),
        (
            {"two_layer.per_token.sampler.method": "rmsprop"},
            ["evaluation.control_variate", "'linear'", "per_token.sampler.method", "none"],
        ),
        ({"corpus.kind": "web"}, ["corpus.kind", "web", "packages", "folder", "hub"]),
        ({"corpus.kind": None}, ["corpus.kind", "missing", "packages"]),
        ({"corpus.domains": ["poetry"]}, ["poetry", "mathematics", "biomedical"]),
        ({"corpus.definition": "no.yaml"}, ["corpus.definition", "no.yaml", "does not exist"]),
        ({"corpus.name": "../up"}, ["corpus.name", "../up"]),
        ({"two_layer.model.path": "models/none"}, ["two_layer.model.path", "models/none"]),
        ({"two_layer.model.repo": "a/b"}, ["two_layer.model.repo", "allowed: kind, path"]),
        ({"two_layer.model": {"kind": "hub", "repo": "b"}}, ["two_layer.model.repo", "'b'"]),
        ({"scale": "mini"}, ["scale", "mini", "name of its own"]),
    ],
)
def test_wrong_setting(root: Path, changes: dict[str, Any], words: list[str]) -> None:
    file = own(root, changes)
    before = sorted(root.rglob("*"))
    with pytest.raises(ConfigError) as error:
        load_scale(file=file, root=root)
    message = str(error.value)
    assert all(word in message for word in ["mine.yaml", *words]), message
    assert "pydantic" not in message
    assert sorted(root.rglob("*")) == before, "nothing is left behind"


def test_several_mistakes_are_all_named(root: Path) -> None:
    file = own(root, {"two_layer.seed": -1, "two_layer.sampler.draws": 0})
    with pytest.raises(ConfigError, match=r"(?s)two_layer\.seed.*two_layer\.sampler\.draws"):
        load_scale(file=file, root=root)


def test_unknown_scale(root: Path) -> None:
    with pytest.raises(ConfigError, match="'nano' is unknown; allowed: mini, smoke"):
        load_scale("nano", root=root)
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        load_scale(file="none.yaml", root=root)


def test_not_yaml(root: Path) -> None:
    (root / "mine.yaml").write_text("scale: [")
    with pytest.raises(ConfigError, match=r"mine\.yaml is not YAML.*line 1"):
        load_scale(file="mine.yaml", root=root)
    (root / "mine.yaml").write_text("")
    with pytest.raises(ConfigError, match="expected keys and values"):
        load_scale(file="mine.yaml", root=root)


def test_empty_corpus_folder(root: Path) -> None:
    (root / "text").mkdir()
    file = own(root, {"corpus": {"kind": "folder", "name": "text", "path": "text"}})
    with pytest.raises(ConfigError, match=r"no <domain>\.jsonl\.gz files"):
        load_scale(file=file, root=root)


def test_model_to_train_has_its_own_checkpoints(root: Path) -> None:
    model = {
        "kind": "train",
        "name": "new",
        "shape": SHAPE,
        "training": {"steps": 500, "batch": 4, "learning_rate": 1e-3},
    }
    scale = load_scale(
        file=own(root, {"two_layer.model": model, "two_layer.checkpoints": [0, 1]}), root=root
    )
    assert scale.two_layer.model.folder == Path("data/models/new")
    with pytest.raises(ConfigError, match="no checkpoint at step 13; allowed: 0, 1, 2"):
        load_scale(
            file=own(root, {"two_layer.model": model, "two_layer.checkpoints": [0, 13]}), root=root
        )


def test_kinds_of_model(root: Path) -> None:
    training = {"steps": 500, "batch": 4, "learning_rate": 1e-3}
    shape = {"kind": "gpt_neox", "n_layers": 2, "n_heads": 2, "d_model": 16, "n_ctx": 128}

    def made(shape: Any, **changes: Any) -> Any:
        model = {"kind": "train", "name": "new", "shape": shape, "training": training | changes}
        file = own(root, {"two_layer.model": model, "two_layer.checkpoints": [0, 1]})
        return load_scale(file=file, root=root).two_layer.model

    assert made(SHAPE).shape.kind == "attention_only"
    assert made({**shape, "d_vocab": 99}).shape.d_head == 8
    with pytest.raises(ConfigError, match=r"shape\.d_vocab: missing; this part needs: d_model, d_"):
        made(shape)
    with pytest.raises(ConfigError, match="3 heads of 5 do not make 16"):
        made({**shape, "d_vocab": 99, "n_heads": 3})
    with pytest.raises(ConfigError, match=r"shape\.kind: 'mamba'; allowed: 'attention_only', 'gpt"):
        made({**shape, "kind": "mamba"})
    with pytest.raises(ConfigError, match=r"two_layer\.model\.shape: 3 is not allowed"):
        made(3)
    with pytest.raises(ConfigError, match=r"sinusoidal_start must be false for a gpt_neox model"):
        made({**shape, "d_vocab": 99}, sinusoidal_start=True)


SAMPLER = {
    "n_beta": 30,
    "localization": 300,
    "step_size": 1.0e-3,
    "chains": 4,
    "burn_in": 1,
    "draws": 2,
    "batch": 4,
}
HUB = {
    "kind": "hub",
    "repo": "EleutherAI/pythia-14m",
    "tokenizer": "EleutherAI/pythia-14m",
    "shape": {
        "kind": "gpt_neox",
        "n_layers": 6,
        "n_heads": 4,
        "d_model": 128,
        "n_ctx": 2048,
        "d_vocab": 50304,
    },
}


def ground_truth(changes: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    """A part ground_truth with one model, the fixture's, and some keys changed."""
    folder = {"kind": "folder", "path": "models/two-layer-10d"}
    sizes = {"context": 16, "contexts": 4, "base_contexts": 8, "sgld_contexts": 64}
    models = {"pythia-small": {"model": folder, "sampler": SAMPLER, **model}}
    return {"ground_truth": {"models": models, **sizes, **(changes or {})}}


def test_ground_truth(root: Path) -> None:
    scale = load_scale(file=own(root, ground_truth()), root=root)
    found = setting(scale.normalised(root), "ground_truth.models.pythia-small")
    assert found["checkpoint"] == 20 and found["control"] and found["shards"] == 1
    later = ground_truth(model=HUB, checkpoint=143000)
    hub = load_scale(file=own(root, later), root=root).normalised(root)
    assert setting(hub, "ground_truth.models.pythia-small.checkpoint") == 143000
    nothing = load_scale(file=own(root, {}), root=root).normalised(root)
    assert nothing["ground_truth"] is None


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (ground_truth(shards=6), ["pythia-small.shards", "6", "1 to 5"]),
        (ground_truth(checkpoint=13), ["pythia-small.checkpoint", "13", "0, 10, 20"]),
        (ground_truth({"context": 17}), ["ground_truth.context", "17", "2 to 16"]),
        (ground_truth(model=HUB), ["checkpoint", "'last'", "give the training step"]),
        (ground_truth(sampler={**SAMPLER, "batch": 65}), ["pythia-small.sampler.batch", "65"]),
        (ground_truth({"models": {"gpt2": {}}}), ["ground_truth.models", "pythia-small"]),
        (
            ground_truth(
                {"evaluation": {"control_variate": "linear"}},
                sampler={**SAMPLER, "method": "rmsprop"},
            ),
            ["evaluation.control_variate", "pythia-small.sampler.method", "none"],
        ),
    ],
)
def test_wrong_ground_truth(root: Path, part: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_scale(file=own(root, part), root=root)
    assert not [word for word in words if word not in str(error.value)]


@pytest.mark.parametrize("name", ["smoke", "mini", "desk", "paper", "training"])
def test_shipped_scales(name: str) -> None:
    assert load_scale(name, root=ROOT).scale == name


def test_paper_scale_is_the_papers() -> None:
    scale = load_scale("paper", root=ROOT)
    published = yaml.safe_load((ROOT / "published/baker2025.yaml").read_text())
    values = {claim["id"]: claim.get("value") for claim in published["claims"]}
    two_layer, sampler = scale.two_layer, scale.two_layer.sampler
    assert two_layer.checkpoints == values["baker2025.C1.steps"]
    assert two_layer.delta_h == values["baker2025.C1.delta_h"]
    assert two_layer.base_contexts == values["baker2025.C1.batch_n"]
    assert sampler.method == "sgld"
    assert sampler.localization == values["baker2025.C3.gamma"]
    assert sampler.n_beta == values["baker2025.C3.n_beta"]
    assert sampler.step_size == values["baker2025.C3.epsilon"]
    assert sampler.chains == values["baker2025.C3.chains"]
    assert sampler.draws == values["baker2025.C3.draws"]
    assert sampler.batch == values["baker2025.C3.batch"]
    per_token = two_layer.per_token
    assert per_token.contexts == values["baker2025.C2.contexts"]
    assert per_token.sampler.draws == values["baker2025.C3.per_token_draws"]
    assert per_token.sampler.batch == values["baker2025.C3.per_token_batch"]
    same = {"draws", "batch"}
    assert per_token.sampler.model_dump(exclude=same) == sampler.model_dump(exclude=same)
    assert scale.corpus.kind == "hub"
    assert set(values["baker2025.tableA.subsets"]) <= set(scale.corpus.domains)
    assert scale.corpus.train.repo == "timaeus/dsir-pile-1m-2"
    assert len(two_layer.checkpoints) == 29
