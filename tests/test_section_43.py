"""Section 4.3: correlations, hexagons, the sample and the claims, on planted data."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from per_token_results import planted
from susceptibilities.claims import load_declared, load_measured, load_published
from susceptibilities.highlight import load_highlight
from susceptibilities.per_token import ABLATION, PerToken, folder_of, load_per_token
from susceptibilities.store import read_json, write_json
from synthetic_results import HEADS, ROLES, STAND_INS

ROOT = Path(__file__).parents[1]
SECTION = "baker2025/s4_3_ablations"
sys.path.insert(0, str(ROOT / "figures"))

import matplotlib.pyplot as plt  # noqa: E402

import ablations as figures  # noqa: E402
import common  # noqa: E402

PATTERN, NUMBERS = "baker2025.fig7.ablation_corr", "baker2025v3.ablation_corr"


def load(name: str) -> ModuleType:
    """A script of the section; the ones it imports have to be loaded before."""
    path = ROOT / "experiments" / SECTION / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tables = load("ablation_tables")
claims = load("ablation_claims")
sample = load("highlighted_sample")


def run(results: Path, *modules: ModuleType) -> Path:
    """Run scripts of the section on a results folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["script", "--results", str(results)])
        for module in modules:
            module.main()
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ablation deltas independent of everything: nothing but noise correlates."""
    folder = planted(tmp_path_factory.mktemp("independent") / "mini", contexts=40, length=48)
    return run(folder, tables, claims, sample)


@pytest.fixture
def data(results: Path) -> PerToken:
    return load_per_token(results)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def copied(results: Path, folder: Path) -> Path:
    """A copy of the planted run without what the section made of it."""
    skip = shutil.ignore_patterns("s4_3_ablations")
    return Path(shutil.copytree(results, folder / "mini", ignore=skip))


def with_deltas(results: Path, deltas: dict[str, np.ndarray]) -> Path:
    """Replace the ablation deltas of some heads."""
    path = folder_of(results, load_per_token(results).step) / ABLATION
    table = pl.read_parquet(path)
    columns = [pl.Series(head, v.astype(np.float32)) for head, v in deltas.items()]
    table.with_columns(columns).write_parquet(path)
    return results


def read(results: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(results / SECTION / f"{name}.parquet")


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(plt.Text) if t.get_text())


def test_correlations_and_ranks_are_those_of_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50)), np.exp(rng.normal(size=(2, 50)))
    y[0, :5] = y[0, 5]  # ties
    stats = tables.stats
    for i in range(2):
        expected = stats.pearsonr(x[i], y[i]).statistic, stats.spearmanr(x[i], y[i]).statistic
        found = tables.pearson(x, y)[i], tables.spearman(x, y)[i]
        np.testing.assert_allclose(found, expected)
    assert np.isnan(tables.pearson(np.ones(5), np.arange(5.0)))


def test_independent_quantities_have_intervals_about_zero(results):
    table = read(results, "correlations").filter(pl.col("pair") == tables.PAIRS[0])
    inside = table.select(((pl.col("low") < 0) & (pl.col("high") > 0)).mean()).item()
    assert inside > 0.88  # Student intervals of jackknives over few blocks: near 95 %
    assert set(table["form"]) == set(tables.FORMS) and table["control"].any()
    assert set(table["tokens"]) == {40 * 47}


def of_forms(results: Path, deltas: dict[str, np.ndarray], forms=tables.FORMS) -> pl.DataFrame:
    """Correlations with given ablation deltas of some heads, and none of the others."""
    found = []
    for control in (False, True):
        data = load_per_token(results, control=control)
        rng = np.random.default_rng(0)
        every = np.stack([deltas.get(h, rng.normal(size=len(data.tokens))) for h in data.heads])
        for form in forms if not control else ("chi",):
            found += tables.of_form(data, every, form, control)
    table = pl.concat(found).filter(pl.col("statistic") == "pearson")
    return tables.with_intervals(table)


def test_a_planted_correlation_is_found_in_its_part_and_nowhere_else(results, data):
    rng = np.random.default_rng(1)
    shift = data.of("1:6", "mean_shift")[0]  # known: 1:6 is an induction head
    standard = (shift - shift.mean()) / shift.std()
    table = of_forms(results, {"1:6": -0.6 * standard + 0.8 * rng.normal(size=len(shift))})
    chosen = table.filter((pl.col("head") == "1:6") & (pl.col("pair") == tables.PAIRS[0]))
    for form, control, planted_r in (
        ("mean_shift", False, -0.6),
        ("rank_one", False, 0.0),
        ("covariance", False, 0.0),
        ("chi", True, 0.0),  # the control has no such part
    ):
        rows = chosen.filter((pl.col("form") == form) & (pl.col("control") == control))
        assert rows["value"].mean() == pytest.approx(planted_r, abs=0.05)
        covered = (rows["low"] < planted_r + 0.03) & (rows["high"] > planted_r - 0.03)
        assert covered.mean() > 0.7  # domains differ a little in the share of repeats


def test_a_correlation_with_the_loss_is_found(data):
    loss = data.tokens["loss"].to_numpy()
    found = pl.concat(tables.without_susceptibility(data, np.stack([2.0 * loss] * 16)))
    np.testing.assert_allclose(found["value"], 1.0, atol=1e-6)
    assert found["form"].is_null().all() and not found["control"].any()


def test_ceilings_follow_spearman_and_brown():
    table = pl.DataFrame(
        {
            "component": ["full", "0:0", "0:0", "0:1", "0:2", "mlp:0"],
            "form": "chi",
            "chains": [3, 1, 3, 3, 3, 3],
            "draws": 8,
            "reliability": [0.9, 0.2, 0.5, 0.0, -0.1, 0.7],
            "se": 0.01,
        }
    )
    found = tables.ceilings(table, 6, control=False)
    assert found["head"].to_list() == ["0:0", "0:1", "0:2"]
    assert found["reliability"][0] == pytest.approx(2 * 0.5 / 1.5)
    assert found["ceiling"].to_list() == pytest.approx([np.sqrt(2 / 3), 0.0, 0.0])
    # From twice as many chains, by a difference: the error is that of the formula.
    moved = tables.ceilings(table.with_columns(pl.col("reliability") + 1e-6), 6, False)
    slope = (moved["ceiling"][0] - found["ceiling"][0]) / 1e-6
    assert found["ceiling_se"][0] == pytest.approx(0.01 * slope, rel=1e-4)


def test_hexagons_hold_every_token_once_at_the_nearest_center():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=4000), rng.standard_cauchy(size=4000)
    found = tables.hexagons(x, y, (20, 9))
    assert found["count"].sum() + found["outside"] == 4000
    assert 0 < found["outside"] <= 4 * 0.001 * 4000 + 4
    ends = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    few = tables.hexagons(ends, ends, (2, 2))
    assert sorted(zip(few["x"], few["y"], few["count"], strict=True)) == [(0, 0, 2), (1, 1, 3)]
    # No other center of the lattice may be nearer, in units in which hexagons are regular.
    scale = np.array([found["width"], found["height"] / np.sqrt(3)])
    centers = np.stack([found["x"], found["y"]], 1) / scale
    inside = np.all(
        [
            (v >= np.quantile(v, tables.TAIL)) & (v <= np.quantile(v, 1 - tables.TAIL))
            for v in (x, y)
        ],
        axis=0,
    )
    assert inside.sum() == found["count"].sum()
    points = np.stack([x, y], 1)[inside] / scale
    distance = np.linalg.norm(points[:, None] - centers[None], axis=-1).min(1)
    assert distance.max() <= 1 / np.sqrt(3) + 1e-9


def test_constant_values_are_one_hexagon():
    found = tables.hexagons(np.zeros(10), np.ones(10), (5, 5))
    assert found["count"].tolist() == [10] and found["outside"] == 0


def test_ablations_of_other_tokens_are_refused(results, tmp_path):
    copy = copied(results, tmp_path)
    path = folder_of(copy, load_per_token(copy).step) / ABLATION
    pl.read_parquet(path).head(100).write_parquet(path)
    with pytest.raises(ValueError, match="its 100 tokens are not the"):
        run(copy, tables)


def test_without_a_control_there_are_no_rows_of_one(results, tmp_path):
    copy = copied(results, tmp_path)
    config = read_json(copy / "config.json")
    config["two_layer"]["per_token"]["control_checkpoints"] = []
    write_json(copy / "config.json", config)
    run(copy, tables, claims, sample)
    for name in ("correlations", "ceilings"):
        assert not read(copy, name)["control"].any()
    assert "control" not in read_json(copy / SECTION / "measured.json")[PATTERN]["note"]


# ---- the claims --------------------------------------------------------------------------------


def test_no_correlation_holds_and_files_satisfy_the_comparison(results):
    published = load_published(ROOT / "published")
    declared = load_declared(ROOT / "experiments", published)
    measured = load_measured(results, published, declared)
    # Independent: within the bound, or not told apart from it; never beyond.
    assert measured[PATTERN].holds is not False
    assert abs(float(measured[PATTERN].value)) < 0.1  # type: ignore[arg-type]
    assert measured[PATTERN].n == 2 * 40 * 47
    assert "0:0 (multigram) and 1:2 (multigram)" in measured[PATTERN].note
    assert "the n_beta = 0 control, sampled without any loss, meets" in measured[PATTERN].note
    four, errors = measured[NUMBERS].value, measured[NUMBERS].se
    assert isinstance(four, list) and isinstance(errors, list) and len(four) == len(errors) == 4
    assert max(four, key=abs) == measured[PATTERN].value
    rows = read(results, "sensitivity")
    assert rows.filter(pl.col("convention") == "sign=plus")["value"].item() == pytest.approx(
        -float(measured[PATTERN].value)  # type: ignore[arg-type]
    )


def test_a_correlation_of_one_pair_fails_and_the_part_is_named(results, data):
    table = of_forms(results, {"1:2": data.of("1:2", "rank_one")[0]})
    domains = read_json(results / "tokens" / "manifest.json")["domains"]
    measured, _ = claims.claims(
        claims.Tables(table, read(results, "ceilings"), domains, ROLES), 30.0
    )
    found = measured[PATTERN]
    assert found["holds"] is False
    assert found["carried_by"].startswith("fails by rank-one")
    assert "control, sampled without" not in found["note"]
    assert "without any loss (n_beta = 0): 0.0" in found["note"].replace("-", "")


def fake(values: dict[tuple[str, str], tuple[float, float]], ceiling: float) -> claims.Tables:
    """Tables with the same correlations for every form, and no control."""
    rows = [
        {
            "probe": probe,
            "head": head,
            "form": form,
            "control": False,
            "pair": claims.PAIR,
            "value": value,
            "se": se,
            "df": 5,
            "tokens": 100,
        }
        for form in tables.FORMS
        for (head, probe), (value, se) in values.items()
    ]
    heads = [
        {"head": h, "form": f, "control": False, "measured": 0.9, "ceiling": ceiling}
        for h in claims.HEADS
        for f in tables.FORMS
    ]
    domains = {name: {"stands_in_for": subset} for name, subset in STAND_INS.items()}
    return claims.Tables(pl.DataFrame(rows), pl.DataFrame(heads), domains, ROLES)


FOUR = [(h, p) for h in claims.HEADS for p in ("python", "mathematics")]


@pytest.mark.parametrize(
    ("value", "se", "ceiling", "holds"),
    [
        (0.03, 0.005, 0.9, True),
        (0.03, 0.005, 0.3, None),  # small by noise: it could be 0.1 without
        (0.03, 0.005, 0.0, None),
        (0.09, 0.02, 0.9, None),
        (0.2, 0.01, 0.9, False),
        (-0.2, 0.01, 0.9, False),
    ],
)
def test_a_small_correlation_of_an_unreliable_estimate_decides_nothing(value, se, ceiling, holds):
    values = dict.fromkeys(FOUR, (0.0, 0.001)) | {FOUR[2]: (value, se)}
    assert claims.find(fake(values, ceiling), "chi").holds is holds


def test_missing_domains_and_heads_are_said():
    values = dict.fromkeys(FOUR, (0.0, 0.001))
    without = {("0:0", p): v for (h, p), v in values.items() if h == "0:0"}
    measured, _ = claims.claims(fake(without, 0.9), 30.0)
    assert measured[PATTERN]["n"] == measured[NUMBERS]["n"] == 0
    assert "no correlation of head 1:2 on python (for github)" in measured[PATTERN]["note"]
    nowhere = claims.Tables(fake(values, 0.9).correlations, fake(values, 0.9).ceilings, {}, {})
    measured, _ = claims.claims(nowhere, 30.0)
    assert measured[PATTERN]["holds"] is None and measured[NUMBERS]["value"] is None
    assert "no domain named github" in measured[PATTERN]["note"]


# ---- the sample --------------------------------------------------------------------------------


def test_repeats_are_ends_of_n_grams_seen_before():
    tokens = np.array([0, 1, 2, 3, 4, 9, 1, 2, 3, 4, 5, 2, 3, 4, 5, 7, 7, 7, 7, 7, 7])
    found = np.flatnonzero(sample.repeated(tokens))
    # 1 2 3 4 again, 2 3 4 5 again; five sevens are no repeat, being one token.
    assert found.tolist() == [9, 14]
    assert not sample.repeated(np.array([0, 1, 2])).any()
    two = np.array([0, *[1, 2] * 8])
    assert not sample.repeated(two).any()  # two different tokens are too few


def contexts_with(best: dict[str, int]) -> dict[str, np.ndarray]:
    """Contexts without repeats, but for one in each named domain: a message so many times."""
    rng = np.random.default_rng(0)
    found = {}
    for probe in ("python", "services", "mixture"):
        rows = np.stack([rng.permutation(np.arange(1, 101))[:40] for _ in range(3)])
        rows[:, 0] = 0
        rows[1, 1 : 1 + 5 * best.get(probe, 0)] = [*range(200, 205)] * best.get(probe, 0)
        found[probe] = rows
    return found


def test_the_sample_repeats_itself_most_and_is_of_the_wanted_domain():
    contexts = contexts_with({"python": 3, "services": 5, "mixture": 7})
    chosen = sample.choose(contexts, {})
    assert (chosen.probe, chosen.row) == ("services", 1)
    assert chosen.repeats.sum() == 5 * 4 - 3 + 0 and "none for enron_emails" in chosen.among
    chosen = sample.choose(contexts, {"python": {"stands_in_for": "enron_emails"}})
    assert chosen.probe == "python" and chosen.among == "python (for enron_emails)"
    with pytest.raises(ValueError, match="no contexts"):
        sample.choose({"mixture": contexts["mixture"]}, {})


def test_the_head_is_the_papers_or_one_of_its_role():
    assert sample.head_of_sample(tuple(HEADS), ROLES) == "1:4"
    roles = {"1:0": "induction", "1:1": "multigram"}
    assert sample.head_of_sample(("0:0", "1:0", "1:1"), roles) == "1:1"
    assert sample.head_of_sample(("0:0", "0:1"), {}) == "0:1"


def test_the_highlight_has_the_values_of_the_chosen_context(results, data):
    spec = load_highlight(results / SECTION / "fig32.highlight.json")
    contexts = {p: data.context_ids(results, p) for p in data.probes}
    chosen = sample.choose(contexts, {})
    rows = data.tokens.with_columns(chi=data.of("1:4")[0]).filter(
        (pl.col("probe") == chosen.probe) & (pl.col("context") == chosen.row)
    )
    kinds = [panel.tracks[0].kind for panel in spec.panels]
    assert kinds == ["susceptibility", "ablation", "loss"]
    for panel, column in ((spec.panels[0], "chi"), (spec.panels[2], "loss")):
        track = panel.tracks[0]
        assert track.values[0] is None
        np.testing.assert_allclose(track.values[1:], rows[column])
        assert track.limit == pytest.approx(rows[column].abs().max())
        assert panel.tokens[1:] == rows["text"].to_list()
    assert spec.opacity == "squared" and spec.columns == 3
    assert f"{int(chosen.repeats.sum())} of its 47 tokens" in spec.subtitle


def test_what_repeats_share_is_measured_within_domains(results, data, tmp_path):
    contexts = {p: data.context_ids(results, p) for p in data.probes}
    flags = np.concatenate([sample.repeated(c)[1:] for p in data.probes for c in contexts[p]])
    offset = data.tokens["probe"].rank("dense").to_numpy()  # a difference between domains alone
    deltas = {"0:0": flags + 50.0 * offset, "0:1": 50.0 * offset + 0.0}
    run(with_deltas(copied(results, tmp_path), deltas), sample)
    table = read(tmp_path / "mini", "repeats").filter(pl.col("quantity") == "ablation")
    value = dict(table.select("head", "value").iter_rows())
    assert value["0:0"] == pytest.approx(1.0, abs=1e-3)
    assert value["0:1"] is None or abs(value["0:1"]) < 1e-3
    assert (read(results, "repeats")["control"]).any()


def test_a_run_with_hardly_a_repeat_still_has_a_sample(tmp_path):
    small = planted(tmp_path / "mini", contexts=3, length=12, chains=4)
    run(small, tables, claims, sample)
    spec = load_highlight(small / SECTION / "fig32.highlight.json")
    assert "too few repeats to say" in spec.subtitle


# ---- the figures -------------------------------------------------------------------------------


def saved(results: Path) -> tuple[dict[str, pl.DataFrame], common.Run]:
    return {name: read(results, name) for name in figures.TABLES}, common.load_run(results)


def test_densities_show_the_saved_numbers(results):
    found, run_ = saved(results)
    figure, cells = figures.draw_density(found, run_)
    written = texts(figure)
    for probe in ("python", "mathematics"):
        for head in figures.HEADS:
            row = figures.correlation(found, probe, head, figures.PAIRS[0])
            assert figures.spelled(row) in written
    assert "python (for github)" in written and "noise allows" in written
    assert "control nβ = 0" in written and f"{40 * 47:,} tokens" in written
    drawn = [c.get_array() for c in figure.findobj(figures.PolyCollection)]
    counts = sum(int(a.sum()) for a in drawn[:4])
    outside = cells.select("probe", "head", "outside").unique()["outside"].sum()
    assert counts + outside == 4 * 40 * 47


def test_pairs_show_every_domain(results):
    found, run_ = saved(results)
    figure, _ = figures.draw_pairs(found, run_)
    written = texts(figure)
    for probe in STAND_INS:
        assert common.probe_title(run_, probe) in written
    row = figures.correlation(found, "python", "0:0", figures.PAIRS[2])
    assert figures.spelled(row) in written


def test_correlations_are_drawn_with_and_without_a_control(results):
    found, run_ = saved(results)
    figure, _ = figures.draw_correlations(found, run_)
    assert "χ, control nβ = 0" in texts(figure)
    images = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    chosen = found["correlations"].filter(
        (pl.col("pair") == figures.PAIRS[0])
        & (pl.col("statistic") == "pearson")
        & (pl.col("form") == "chi")
        & ~pl.col("control")
        & (pl.col("probe") == "speeches")
    )
    place = list(run_.domains).index("speeches")
    expected = dict(chosen.select("head", "value").iter_rows())
    np.testing.assert_allclose(images[0][place], [expected[h] for h in HEADS])
    real = {
        name: t.filter(~pl.col("control")) if "control" in t.columns else t
        for name, t in found.items()
    }
    figure, _ = figures.draw_correlations(real, run_)
    assert "control" not in texts(figure)


def test_absent_domains_and_heads_leave_a_page_that_says_so(results):
    found, run_ = saved(results)
    only = {**found, "density": found["density"].filter(pl.col("probe") != "python")}
    run_without = common.Run(
        run_.label, {k: v for k, v in run_.domains.items() if k != "python"}, run_.roles
    )
    figure, _ = figures.draw_density(only, run_without)
    assert "no domain for github" in texts(figure)
    nothing = {**found, "density": pl.DataFrame()}
    assert "Not drawn" in texts(figures.draw_density(nothing, run_)[0])
    assert "no head 0:0" in texts(figures.draw_pairs(nothing, run_)[0])
