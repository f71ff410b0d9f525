"""Section on estimators: tables and page from planted chains whose control variates are known."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from controlled_chains import BASE, Drawn, loss_store, sgld, token_shard
from quadratic import random_quadratic
from susceptibilities.control_variate import CONTROLLED, PLAIN
from susceptibilities.efficiency import best_thinning
from susceptibilities.per_token import ESTIMATOR, folder_of, save_tokens
from susceptibilities.posterior import TESTED, SamplerConfig
from susceptibilities.report.embedded import load_fragment
from susceptibilities.store import write_json
from susceptibilities.tables import estimate_run
from susceptibilities.token_estimates import TokenMoments

ROOT = Path(__file__).parents[1]
SECTION = "estimators/efficiency"
TOKENS, LENGTH = 60, 3
PARTS = {"full": [0, 1, 2, 3, 4], "0:0": [1, 2], "0:1": [0, 4], "1:0": [3]}
SAMPLER = SamplerConfig(
    n_beta=8,
    localization=40,
    step_size=0.01,
    chains=6,
    burn_in=0,
    draws=10,
    thinning=2,
    batch=BASE,
)


def load(name: str) -> ModuleType:
    """A script of the section."""
    path = ROOT / "experiments" / SECTION / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tables_script = load("efficiency_tables")
page_script = load("estimator_page")


def drawn(config: SamplerConfig, contexts: int, seed: int) -> dict[str, Drawn]:
    return {
        name: sgld(random_quadratic(BASE + contexts, 5, kept), config, 10 * seed + place)
        for place, (name, kept) in enumerate(PARTS.items())
    }


def write_results(results: Path, control: bool = True) -> Path:
    """Chains of two checkpoints and the n_beta = 0 control, with or without control variates."""
    evaluation = {"precision": "float32", "control_variate": "linear" if control else "none"}
    settings = {
        "context": LENGTH,
        "seed": 0,
        "checkpoints": [0, 7],
        "control_checkpoints": [7],
        "sampler": SAMPLER.model_dump(),
        "evaluation": evaluation,
        "per_token": {
            "checkpoints": [7],
            "control_checkpoints": [7],
            "sampler": SAMPLER.model_copy(update={"thinning": 4}).model_dump(),
        },
    }
    write_json(results / "config.json", {"scale": "mini", "two_layer": settings})
    write_json(results / "model" / "model.json", {"label": "a <model>"})
    (results / "tokens").mkdir()
    np.save(results / "tokens" / "base.npy", np.zeros((BASE, LENGTH), dtype=np.uint16))
    tokens = pl.DataFrame(
        {"probe": ["a"] * TOKENS, "context": [i // (LENGTH - 1) for i in range(TOKENS)]}
    )
    for nothing in (False, True):
        config = SamplerConfig.model_validate(settings["per_token"]["sampler"])
        if nothing:
            config = config.model_copy(update={"n_beta": 0.0})
        data = token_shard(drawn(config, TOKENS, seed=1 + nothing))
        if nothing:
            data["control_g"].values[1] += 50.0  # of 0:0: turned down
        if not control:
            data = data.drop_vars([str(v) for v in data.data_vars if "control" in str(v)])
            data.attrs["evaluation"] = {}
            del data.attrs["seconds"]
            data.attrs["precision"] = ["float32", "bfloat16", "float32", "bfloat16"]
        folder = folder_of(results, 7, nothing)
        save_tokens(folder, TokenMoments.of([data]), tokens, seed=0)
        for number, places in enumerate(([0, 2], [1, 3])):
            part = data.isel(component=places)
            part.attrs = {**data.attrs}
            for key in ("component", "precision", "seconds"):
                if key in data.attrs:
                    part.attrs[key] = [data.attrs[key][place] for place in places]
            part.to_zarr(folder / f"moments.{number}.zarr", zarr_format=3, consolidated=False)
    paths = []
    for step, seed in ((0, 3), (7, 4)):
        losses = loss_store(drawn(SAMPLER, 4, seed), np.array([9, 19]), probes=2)
        losses["base_star"] = (("base_context",), np.zeros(BASE))
        losses["probe_star"] = (("probe", "probe_context"), np.zeros((2, 2)))
        losses.attrs |= {"step": step, "evaluation": evaluation}
        if not control:
            losses = losses.drop_vars(["base_control", "probe_control"])
        paths.append(results / "losses" / f"step_{step:06d}.zarr")
        losses.to_zarr(paths[-1], zarr_format=3, consolidated=False)
    folder = results / "baker2025/s4_1_dataset_susceptibilities"
    folder.mkdir(parents=True)
    estimate_run(paths, paths[1:])["estimator"].write_parquet(folder / ESTIMATOR)
    return results


def run(script: ModuleType, results: Path) -> None:
    before = sys.argv
    sys.argv = ["script", "--results", str(results)]
    try:
        script.main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module", params=[True, False], ids=["controlled", "plain"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "results" / "mini"
    write_results(folder, request.param)
    run(tables_script, folder)
    run(page_script, folder)
    return folder


def table(results: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(results / SECTION / f"{name}.parquet")


def controlled(results: Path) -> bool:
    return bool(table(results, "checks")["helps"].is_not_null().any())


def test_every_component_says_which_estimator_it_has(results: Path) -> None:
    checks = table(results, "checks")
    counts = checks.group_by("source", "control").len().sort("source", "control")["len"].to_list()
    # Per-token: one checkpoint; section 4.1: two, and one.
    assert counts == [4, 4, 8, 4]
    if not controlled(results):
        assert set(checks["estimator"]) == {PLAIN}
        return
    down = checks.filter(pl.col("control") & (pl.col("source") == "per-token"))
    assert down.filter(pl.col("component") == "0:0")["estimator"].to_list() == [PLAIN]
    rest = checks.filter(~pl.col("control"))
    assert set(rest["estimator"]) == {CONTROLLED} and rest["ratio"].min() > 1  # type: ignore[operator]
    assert set(checks["group"]) == {"whole model", "layer 0", "layer 1"}


def test_where_the_noise_of_chi_is(results: Path) -> None:
    found = table(results, "allocation")
    assert found["component"].to_list() == [name for name in PARTS if name != "full"]
    assert found["share"].is_between(0, 1, closed="none").all()
    assert (found["present"] == 1.0).all() and found["best"][0] > 0
    # As many draws of either kind: the run is the one that it is compared with.
    assert found["used"][0] == pytest.approx(found["equal"][0]) and found["used"][0] < 1


def test_efficiency_is_that_of_the_estimates_and_the_measured_work(results: Path) -> None:
    found = table(results, "efficiency")
    assert found["tokens"].unique().to_list() == [BASE * (LENGTH - 1) + TOKENS]
    plain = found.filter(pl.col("estimator") == PLAIN)
    assert (plain["efficiency"] == 1.0).all() and (plain["difference"] == 0.0).all()
    assert len(plain) == len(PARTS) * 4
    assert plain["gradients"].unique().to_list() == [6 * (40 + TESTED)]
    if not controlled(results):
        assert len(found) == len(plain) and not found["measured"].any()
        each = 3 * (40 + TESTED) * BASE * (LENGTH - 1) + 10 * plain["tokens"][0]
        assert plain["work"].unique().to_list() == [6.0 * each]
        return
    both = plain.join(
        found.filter(pl.col("estimator") == CONTROLLED), on=["component", "form"], suffix="_new"
    )
    assert both["work"].unique().to_list() == [5.0] and both["work_new"].unique().to_list() == [6.0]
    # Every mean is controlled, so what the run uses is no other.
    assert found.filter(estimator="checked")["se"].to_list() == both["se_new"].to_list()
    np.testing.assert_allclose(
        both["efficiency_new"], (both["se"] / both["se_new"]) ** 2 * 5 / 6, rtol=1e-12
    )
    shift = both.filter(pl.col("form") == "mean_shift")
    assert (shift["efficiency_new"] > 1.5).all() and (shift["difference_new"] < 2.5).all()
    assert shift["reliability_new"].mean() > shift["reliability"].mean()  # type: ignore[operator]


def test_thinning_follows_the_chains_own_relaxation(results: Path) -> None:
    found = table(results, "thinning")
    assert set(found["source"]) == {"per-token", "section 4.1"}
    # The slowest and the fastest an observable linear or quadratic in the weights can be.
    step, gamma, n_beta = SAMPLER.step_size, SAMPLER.localization, SAMPLER.n_beta
    slow = -1 / np.log(1 - step * gamma / 2)
    curved = max(
        float(np.linalg.eigvalsh(random_quadratic(BASE, 5, kept).h.mean(0).numpy()).max())
        for kept in PARTS.values()
    )
    fast = -0.5 / np.log(1 - step * (gamma + n_beta * curved) / 2)
    # Means over chains of a few draws: allow for three of their standard errors.
    for row in found.iter_rows(named=True):
        assert row["relaxation_high"] > fast / 2 and row["relaxation_low"] < 2 * slow
        assert row["thinning"] == (4 if row["source"] == "per-token" else 2)
        assert 0 < row["used"] <= 1 and 0 < row["every"] <= 1
        assert row["best"] == best_thinning(row["relaxation"], 1.0, row["draw_cost"])


def test_tables_and_page_say_where_it_helps_and_where_not(results: Path) -> None:
    page = (results / "pages" / "estimators.html").read_text()
    assert page.startswith("<!doctype html>") and "<script" not in page and "http:" not in page
    assert "a &lt;model&gt;" in page
    for name in ("estimators", "standard_errors", "thinning"):
        fragment = str(load_fragment(results / "tables" / f"{name}.html"))
        assert "<caption>" in fragment and (results / "tables" / f"{name}.csv").exists()
    assert "covariance within a chain does not change when a mean is moved" in page
    caption = str(load_fragment(results / "tables" / "estimators.html"))
    if controlled(results):
        assert "Used for the means of 4 of 4 components of the per-token chains" in caption
        (reason,) = re.findall("per-token, n_beta = 0, step 7, 0:0: (.*)[.]</li>", page)
        assert "its mean is not zero (t = " in reason
        assert "for 20 % more work" in page
        assert "Standard error, plain" in page and "with control variate" in page
    else:
        assert "sampled without a control variate" in caption
        assert "sampled without a control variate" in page and "Turned down" not in page
        assert "token evaluations" in page
    assert "Which chains need draws" in page
    assert ("2 of 4 components" in page) is not controlled(results)


def test_reasons_and_groups() -> None:
    assert [tables_script.group_of(n) for n in ("full", "3:12", "mlp:2")] == [
        "whole model",
        "layer 3",
        "mlp:2",
    ]
    row = {"source": "s", "control": False, "step": 1, "chains": 6}
    found = pl.DataFrame(
        [
            {**row, "component": "0:0", "ratio": 0.5, "t": -9.0, "bound": 7.0, "helps": False},
            {**row, "component": "0:1", "ratio": 2.0, "t": 6.9, "bound": 7.0, "helps": False},
            {**row, "component": "0:2", "ratio": 2.0, "t": 6.8, "bound": 7.0, "helps": False},
        ]
    )
    together, alone = page_script.not_used(found)
    assert together["where"] == "s, step 1, all components"
    assert together["why"].startswith("their variates are not zero, all together (p = ")
    assert alone["where"] == "s, step 1, 0:0"
    assert alone["why"] == (
        "the variance is not smaller (ratio 0.5) and its mean is not zero (t = -9 of 7)"
    )
    sound = found.with_columns(t=pl.lit(0.5), helps=pl.lit(True), ratio=pl.lit(2.0))
    assert not list(page_script.not_used(sound))
    assert page_script.span(pl.Series([1.0, float("inf"), 4.0])) == "2.5 (1 to 4)"
    assert page_script.span(pl.Series([float("nan")])) == ""
