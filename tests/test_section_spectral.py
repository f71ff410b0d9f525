"""The section on the covariance part without sampling: tables, table, page and figure."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from susceptibilities.config import load_scale
from susceptibilities.jackknife import Estimate
from susceptibilities.models.gpt_neox import GPTNeoX
from susceptibilities.per_token import folder_of, save_tokens
from susceptibilities.reliability import times_to
from susceptibilities.report.embedded import load_fragment
from susceptibilities.spectral_sets import spectral_sets
from susceptibilities.store import write_json
from susceptibilities.token_estimates import TokenMoments, load_shards
from susceptibilities.token_sampling import sample_tokens, token_table
from test_spectral_sets import CONFIG, SAMPLER, SHAPE, STEP, model, texts

ROOT = Path(__file__).parents[1]
SECTION = ROOT / "experiments/estimators/spectral_covariance"
sys.path.insert(0, str(SECTION))
sys.path.insert(0, str(ROOT / "figures"))

beside, spectral_costs, spectral_page, spectral_tables = (
    import_module(name) for name in ("beside", "spectral_costs", "spectral_page", "spectral_tables")
)

NAMES = ["0:1", "mlp:1"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model: chains and spectral estimates of two components."""
    folder = tmp_path_factory.mktemp("results")
    device, text, made = torch.device("cpu"), texts(), model().float()
    assert isinstance(made, GPTNeoX)
    for control in (False, True):
        place = folder_of(folder, STEP, control)
        place.mkdir(parents=True)
        sampler = SAMPLER.model_copy(update={"n_beta": 0.0}) if control else SAMPLER
        arguments = (made, ["full", *NAMES], text, sampler, 1, STEP, "m")
        sample_tokens(*arguments, place / "moments.0.zarr", device, lambda told: None)
        shards = load_shards(place)
        strings = [str(number) for number in range(SHAPE.d_vocab)]
        tokens = token_table(text.probes, strings, shards[0]["star"].values)
        save_tokens(place, TokenMoments.of(shards), tokens, 0)
    out = folder_of(folder, STEP) / "spectral.0.zarr"
    arguments = (made, NAMES, text, SAMPLER, CONFIG, True, 1, STEP, "m")
    spectral_sets(*arguments, out, device, lambda told: None)
    config = load_scale("smoke", root=ROOT).normalised()
    config["two_layer"] |= {"context": SHAPE.n_ctx, "base_contexts": len(text.base)}
    config["two_layer"]["per_token"] |= {"checkpoints": [STEP], "spectral": CONFIG.model_dump()}
    write_json(folder / "config.json", config)
    write_json(folder / "model" / "model.json", {"label": "a model"})
    write_json(folder / "tokens" / "manifest.json", {"domains": {}})
    return folder


@pytest.fixture(scope="module")
def components(results: Path) -> list[Any]:
    return beside.load(results)


def row_of(table: pl.DataFrame, **values: str) -> dict:
    return table.filter(pl.all_horizontal(pl.col(k) == v for k, v in values.items())).row(
        0, named=True
    )


def test_the_tokens_are_those_of_both(components: list[Any]) -> None:
    for one in components:
        count = 2 * 3 * 5
        assert one.best.shape == (4, count) and one.contexts == 6
        assert one.sampled["posterior"].shape == (count,) == one.blocks.shape
        assert one.left_out["control"].shape == (SAMPLER.chains, count)
        assert list(one.sets) == ["posterior", "control", "averaged"]
        np.testing.assert_array_equal(one.best, one.sets["averaged"])
        # Two base sets, whose larger sets are all base contexts.
        assert len(one.of_base(one.best)) == 2


def test_what_a_draw_costs(components: list[Any]) -> None:
    one = components[0]
    costs = replace(
        one.costs, seconds={"sampling": 8.0, "draws": 12.0, "control": 0.0}, tokens=27 * 5
    )
    changed = replace(one, costs=costs)
    # 4 chains of 2 + 3 steps and 3 gradients for their acceptance; 12 draws on 27 of 27 contexts.
    gradient = 8.0 / (4 * 8)
    assert changed.draw_seconds() == pytest.approx(12.0 / 12 + gradient)
    half = replace(costs, tokens=2 * 27 * 5)
    assert replace(one, costs=half).draw_seconds() == pytest.approx(0.5 + gradient)


def test_slope_and_possible_correlation(components: list[Any]) -> None:
    """Chains that hold half of the spectral estimate, and nothing else."""
    one = components[0]
    value = 0.5 * one.of_base(one.best).mean(0) + 3.0
    same = replace(
        one,
        sampled=dict.fromkeys(one.sampled, value),
        left_out=dict.fromkeys(one.sampled, np.stack([value] * 4)),
    )
    rows = {row["estimate"]: row for row in spectral_tables.agreement_rows(same)}
    assert rows["averaged"]["slope"] == pytest.approx(0.5)
    assert rows["averaged"]["correlation"] == pytest.approx(1.0)
    assert rows["averaged"]["possible"] == pytest.approx(2.0)
    # What is left is the error of the loss sets.
    assert 0 < rows["averaged"]["slope_se"] < 2


def test_costs_follow_from_reliability_and_time(components: list[Any]) -> None:
    one = components[0]
    # Sets with a signal and independent noise of the same size.
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=30), rng.normal(size=(4, 30))
    planted = replace(one, sets={**one.sets, "averaged": signal + 0.3 * noise})
    measured = pl.DataFrame(spectral_tables.reliability_rows(planted))
    cost = pl.DataFrame(spectral_costs.cost_rows(planted, measured))
    other = row_of(cost, estimator="spectral", target="another L_n")
    known = row_of(measured, term="covariance", between="sets of other documents")
    assert other["reliability"] == known["value"] > 0.7
    assert other["half"] == pytest.approx(other["seconds"] * times_to(0.5, known["value"]))
    assert other["half_low"] <= other["half"] <= other["half_high"]
    spent = one.data["seconds"].drop_sel(stage="control").sum("stage").values
    assert other["seconds"] == pytest.approx(spent.mean())
    whole = row_of(cost, estimator="spectral", target="the run's L_n")
    assert whole["seconds"] == pytest.approx(spent[one.source == "base"].sum())
    linear = row_of(cost, estimator="linear term alone")
    assert 0 < linear["seconds"] < whole["seconds"] and 0 <= linear["reliability"] <= 1
    chains = row_of(cost, estimator="sampling, from its agreement")
    assert chains["seconds"] == pytest.approx(3 * one.draw_seconds())


def test_tables_page_and_figure(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    figures = import_module("spectral")
    for script in (spectral_tables, spectral_page, figures):
        monkeypatch.setattr(sys, "argv", ["x", "--results", str(results)])
        script.main()
    folder = results / spectral_tables.FOLDER
    scaling = pl.read_parquet(folder / "scaling.parquet")
    assert scaling.group_by("model").agg(pl.col("components").sum()).sort("model")[
        "components"
    ].to_list() == [410, 32]
    departure = pl.read_parquet(folder / "departure.parquet")
    assert (departure["chains_se"] > 0).all() and departure["component"].to_list() == NAMES
    assert set(pl.read_parquet(folder / "terms.parquet")["run"]) == {"posterior", "control"}
    page = (results / "pages/spectral.html").read_text()
    assert page.startswith("<!doctype html>") and "<script" not in page
    for name in (*NAMES, "pythia-1.4b", "control", "Range of validity"):
        assert name in page
    load_fragment(results / "tables/spectral.html")
    assert (results / "figures/spectral.png").read_bytes().startswith(b"\x89PNG")


def test_without_what_is_optional(results: Path, components: list[Any]) -> None:
    """No control, no averaged derivatives, no larger sets, no other pairs."""
    bare = []
    for one in components:
        names = [n for n in one.data if str(n).startswith(("wide", "rest", "averaged", "here"))]
        data = one.data.drop_vars(names).sel(run=["posterior"])
        data.attrs = one.data.attrs
        sets = {"posterior": one.sets["posterior"]}
        sampled = {"posterior": one.sampled["posterior"]}
        bare.append(replace(one, data=data, sets=sets, sampled=sampled))
    tables = spectral_tables.tables(bare)
    assert tables["control"].is_empty()
    facts = spectral_page.facts_view(tables)
    assert not facts["averaged"] and not facts["linear"] and not facts["control"]
    assert spectral_page.headline_frame(tables).height == 2
    assert spectral_page.departure_frame(tables["departure"]).height == 2


def test_times_in_words() -> None:
    assert spectral_page.seconds(1234.5) == "1,200 s"
    assert spectral_page.seconds(0.0456) == "0.046 s"
    assert spectral_page.seconds(3.21) == "3.2 s"
    bounds = {"half": 3.0, "half_low": 1.0, "half_high": np.inf}
    assert spectral_page.half(bounds) == "3.0 s (1.0 s or more)"
    assert spectral_page.half({**bounds, "half": np.inf}) == "over 1.0 s"
    assert isinstance(Estimate(0.0, 1.0, 3).interval(), tuple)
