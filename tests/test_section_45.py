"""Section 4.5: lines, sums, gaps, claims, tables and figures on data whose answers are known."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
import xarray as xr

from per_token_results import BIMODAL, COMMON, planted
from susceptibilities.claims import Measured, load_declared, load_measured, load_published
from susceptibilities.estimators import FORMS, estimate_checkpoint
from susceptibilities.jackknife import jackknife_se
from susceptibilities.per_token import SUSCEPTIBILITY, TOKENS, PerToken, folder_of, load_per_token
from susceptibilities.store import read_json, write_json
from synthetic_results import ROLES, SECTION_41, STEPS

ROOT = Path(__file__).parents[1]
SECTION = "baker2025/s4_5_token_attribution"
sys.path.insert(0, str(ROOT / "figures"))

import matplotlib.pyplot as plt  # noqa: E402

import common  # noqa: E402
import token_attribution as figure9  # noqa: E402
import token_attribution_bars as bars  # noqa: E402


def load(name: str, module_name: str = "") -> ModuleType:
    """A script of the section; the ones it imports have to be loaded before."""
    path = ROOT / "experiments" / SECTION / f"{name}.py"
    spec = importlib.util.spec_from_file_location(module_name or name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fits = load("slope_fits")
sums = load("token_totals")
findings = load("token_findings")
patterns = load("token_patterns")
# The figure's script has the name of this one.
attribution = load("token_attribution", "section_45_attribution")
claims = load("token_attribution_claims")
tables = load("token_attribution_tables")

CONTEXTS, LENGTH, CHAINS = 10, 40, 4
WORDS = [" ", "a", "b", "c"]


def data_of(
    means: dict[str, dict[str, Sequence[float]]],
    shares: Sequence[float] = (0.25, 0.25, 0.25, 0.25),
    noise: float = 0.01,
    seed: int = 0,
) -> PerToken:
    """Per-token values: probe -> head -> mean of each of ``WORDS``, which come in given shares."""
    rng = np.random.default_rng(seed)
    heads = list(next(iter(means.values())))
    frames, columns = [], []
    for probe, by_head in means.items():
        counts = np.round(np.array(shares) * LENGTH).astype(int)
        rows = [rng.permutation(np.repeat(np.arange(4), counts)) for _ in range(CONTEXTS)]
        ids = np.concatenate(rows)
        columns.append(np.stack([np.array(by_head[h])[ids] for h in heads]))
        frames.append(
            pl.DataFrame(
                {
                    "probe": probe,
                    "context": np.repeat(np.arange(CONTEXTS), counts.sum()),
                    "position": np.tile(np.arange(counts.sum()) + 1, CONTEXTS),
                    "token": ids,
                    "text": [WORDS[i] for i in ids],
                }
            )
        )
    values = np.concatenate(columns, 1)[None] + noise * rng.normal(
        size=(CHAINS, len(heads), sum(len(f) for f in frames))
    )
    left_out = np.stack([np.delete(values, c, 0).mean(0) for c in range(CHAINS)])
    return PerToken(
        tokens=pl.concat(frames).with_row_index("index"),
        components=tuple(heads),
        value=dict.fromkeys(FORMS, values.mean(0)),
        se=dict.fromkeys(FORMS, jackknife_se(left_out)),
        replicates=dict.fromkeys(FORMS, left_out.astype(np.float32)),
        step=100,
        n_beta=30.0,
        draws=2,
    )


def run_of(data: PerToken, domains: dict, control: PerToken | None = None):
    sides = {False: findings.Side(data, pl.DataFrame(), None)}
    if control is not None:
        sides[True] = findings.Side(control, pl.DataFrame(), None)
    return findings.Run(sides, domains, dict.fromkeys(data.heads, "multigram"), {}, 0.1)


# ---- lines -------------------------------------------------------------------------------------


def test_errors_in_x_flatten_least_squares_and_not_deming():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        truth = rng.normal(size=(10, 16))
        x = truth + 0.5 * rng.normal(size=truth.shape)
        y = 10 * truth + 2.0 * rng.normal(size=truth.shape)
        found.append(fits.line(x, y, (2.0 / 0.5) ** 2))
    r, _, slope, deming, reverse, _ = np.mean(found, 0)
    assert slope == pytest.approx(10 / 1.25, rel=0.02)
    assert deming == pytest.approx(10, rel=0.02)
    assert reverse == pytest.approx(10 * 1.04, rel=0.02)
    assert r == pytest.approx(1 / np.sqrt(1.25 * 1.04), rel=0.02)


def test_a_line_without_errors_and_points_without_a_direction():
    x = np.arange(6.0).reshape(2, 3)
    r, _, slope, deming, reverse, intercept = fits.line(x, 3 - 2 * x, float("inf"))
    assert (r, slope, deming, reverse, intercept) == pytest.approx((-1, -2, -2, -2, 3))
    assert np.isnan(fits.line(x, np.ones_like(x), 1.0)).all()


def noisy_points(rng: np.random.Generator, chains: int = 6, blocks: int = 10):
    """Points on y = 10 x with errors over chains and blocks of both axes, as replicates."""
    shape = (8, 6)
    truth = rng.normal(size=shape)

    def measured(values: np.ndarray, size: float):
        every = [rng.normal(size=(n, *shape)) * size * np.sqrt(n) for n in (chains, blocks)]
        value = values + sum(e.mean(0) for e in every)
        rest = [value + (e.mean(0) - e) / (len(e) - 1) for e in every]
        return value, np.hypot(*(jackknife_se(r) for r in rest)), *rest

    x, y = measured(truth, 0.1), measured(10 * truth, 1.0)
    probes = tuple(f"p{i}" for i in range(shape[0]))
    heads = tuple(f"0:{i}" for i in range(shape[1]))
    return fits.Points(probes, heads, x[0], x[1], *x[2:], y[0], y[1], *y[2:])


def test_intervals_cover_the_slope_and_r_stays_within_one():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(150):
        found = fits.fit(noisy_points(rng))
        low, high = fits.interval_of("deming", found)
        covered.append(low < 10 < high)
        low, high = fits.interval_of("pearson", found)
        assert -1 < low < found["pearson"].value < high < 1
    assert 0.9 <= np.mean(covered) <= 1.0


def test_the_control_probe_has_no_part_in_the_line():
    p = noisy_points(np.random.default_rng(0))
    own = replace(p, probes=(*p.probes[:-1], "mixture"))
    far = replace(own, y=own.y + 100 * np.eye(8)[:, -1:])
    assert fits.fit(own)["least_squares"].value == fits.fit(far)["least_squares"].value
    assert fits.fit(p)["least_squares"].value != fits.fit(own)["least_squares"].value


def test_errors_common_to_all_points_do_not_widen_the_slope():
    p = noisy_points(np.random.default_rng(0))
    common = np.random.default_rng(1).normal(size=(10, 1, 1))
    wide = replace(p, x_blocks=p.x_blocks + common)
    assert fits.fit(wide)["deming"].se == pytest.approx(fits.fit(p)["deming"].se)
    assert fits.fit(wide)["intercept"].se > fits.fit(p)["intercept"].se


def test_replicates_from_losses_are_those_of_section_41(tmp_path):
    rng = np.random.default_rng(0)
    lead = {"component": 3, "chain": 4, "draw": 6}
    losses = xr.Dataset(
        {
            "base_shift": ((*lead, "base_context"), rng.normal(size=(3, 4, 6, 20))),
            "probe_shift": ((*lead, "probe", "probe_context"), rng.normal(size=(3, 4, 6, 2, 4))),
            "died": (("component", "chain"), np.full((3, 4), -1)),
            "distance": (("component", "chain", "draw"), np.ones((3, 4, 6))),
            "size": (("component",), np.full(3, 10)),
            "draws": (("component",), np.full(3, 6)),
        },
        coords={"probe_context": [4, 9, 14, 19]},
        attrs={
            "component": ["full", "0:0", "0:1"],
            "probe": ["b", "a"],
            "step": 100,
            "sampler": {"localization": 1.0, "n_beta": 1.0},
        },
    )
    path = fits.losses_of(tmp_path, 100, False)
    path.parent.mkdir()
    losses.to_zarr(path, zarr_format=3, consolidated=False)
    resampled = fits.resample(path)
    estimate = estimate_checkpoint(losses)
    for form in FORMS:
        chains = resampled.of(resampled.chains, form, ("a", "b"), ("0:1",))
        blocks = resampled.of(resampled.blocks, form, ("a", "b"), ("0:1",))
        np.testing.assert_allclose(jackknife_se(chains)[:, 0], estimate.se_chain[form][2, ::-1])
        np.testing.assert_allclose(jackknife_se(blocks)[:, 0], estimate.se_data[form][2, ::-1])
    assert fits.resample(fits.losses_of(tmp_path, 101, True)) is None


# ---- sums --------------------------------------------------------------------------------------


def test_totals_of_four_values():
    values = np.array([1.0, -2.0, 3.0, 100.0])
    keep = np.array([True, True, True, False])
    found = dict(zip(sums.TOTALS, sums.totals(values, keep, 0.1), strict=True))
    third = sums.PUBLISHED_TOKENS / 3
    assert found["positive"] == pytest.approx(4 * third)
    assert found["negative"] == pytest.approx(-2 * third)
    assert found["sum"] == pytest.approx(2 * third)
    assert found["scaled_sum"] == pytest.approx(0.1 * 2 / 3)
    assert found["imbalance"] == pytest.approx(2 / 6)


def test_noise_alone_has_the_total_it_is_said_to_have():
    rng = np.random.default_rng(0)
    size = rng.gamma(2.0, size=200_000)
    positive, negative = sums.totals(size * rng.normal(size=200_000), size > 0, 0.1)[:2]
    assert sums.noise_total(size) == pytest.approx(positive, rel=0.02)
    assert sums.noise_total(size) == pytest.approx(-negative, rel=0.02)


def test_the_token_that_makes_a_gap_is_named_with_its_share():
    means = {"0:0": [-1.0, 0.5, 0.2, 0.1], "0:1": [-3.0, 0.5, 0.2, 0.1]}
    data = data_of({"code": means, "prose": {h: [0.0] * 4 for h in means}})
    found = sums.all_gaps(data, ("code", "prose"))
    best = max(found, key=lambda gap: gap.ratio)
    assert (best.probe, best.a, best.b) == ("code", "0:0", "0:1")
    assert best.sum.value == pytest.approx(0.25 * 2.0 * sums.PUBLISHED_TOKENS, rel=0.01)
    assert best.p < 1e-3
    parts = sums.by_token(sums.sample(data, "code", ("0:0", "0:1")))
    assert parts["gap"].sum() == pytest.approx(best.sum.value)
    assert parts["share"].sum() == pytest.approx(1.0)
    first = parts.row(0, named=True)
    assert first["text"] == " " and first["share"] == pytest.approx(1.0, abs=0.01)
    assert first["mean_a"] == pytest.approx(-1.0, abs=0.01)
    assert first["negative_b"] == pytest.approx(-0.25 * 3.0 * sums.PUBLISHED_TOKENS, rel=0.01)
    assert 0 < first["share_se"] < 0.02


def test_space_moments_without_a_space_are_unknown():
    data = data_of({"code": {"0:0": [0.0] * 4}}, shares=(0.0, 0.5, 0.25, 0.25))
    value, se = sums.space_with_errors(sums.sample(data, "code", ("0:0",)))
    assert np.isnan(value).all() and np.isnan(se).all()


# ---- claims ------------------------------------------------------------------------------------

CODE = {"code": {"stands_in_for": "github-all"}}


@pytest.mark.parametrize(
    ("space", "shares", "holds"),
    [
        (-4.0, (0.25, 0.25, 0.25, 0.25), True),
        (-0.5, (0.25, 0.25, 0.25, 0.25), False),
        (-300.0, (0.025, 0.475, 0.25, 0.25), None),
    ],
)
def test_space_on_top(space, shares, holds):
    data = data_of({"code": {h: [space, -0.4, 0.3, 0.2] for h in ("0:0", "0:1")}}, shares)
    found = patterns.space_top(run_of(data, CODE), "chi", 1.0, False)[0]
    assert found.holds is holds
    ratio = space * shares[0] / (-0.4 * shares[1])
    assert found.value == pytest.approx(ratio, rel=0.03)
    if holds is None:
        assert found.met is None and "the space by itself is 2.5% of the tokens" in found.note
        assert "first “␣” with" in found.note
    # With the other sign the space is no longer negative.
    assert not patterns.space_top(run_of(data, CODE), "chi", -1.0, False)[0].holds


def probes(near: Sequence[float], size: float = 1.0) -> dict[str, dict[str, Sequence[float]]]:
    far = {"code": [1.0, 0.5, 0.1, -0.1], "prose": [-1.0, -0.5, 0.3, 0.2], "law": [-2.0, 0, 0, 1.0]}
    every = {**far, "mixture": [size * v for v in near]}
    return {probe: {"0:0": values, "0:1": values} for probe, values in every.items()}


@pytest.mark.parametrize(
    ("near", "size", "holds"),
    [
        ([1.0, -1.0, 0.5, -0.5], 1.0, True),
        ([1.0, 1.0, 0.5, -0.5], 1.0, False),  # does not cancel
        ([1.0, -1.0, 0.5, -0.5], 0.1, False),  # cancels, but there is little to cancel
    ],
)
def test_cancellation_needs_usual_totals_that_cancel(near, size, holds):
    run = run_of(data_of(probes(near, size)), {})
    found = patterns.cancellation(run, "chi", 1.0, False)[0]
    assert found.holds is holds
    assert "mixture, a second sample of the training distribution" in found.note
    assert f"meet the bounds for {2 if holds else 0} of 2 heads" in found.note


def test_noise_does_not_pass_for_cancellation():
    data = data_of({p: {"0:0": [0.0] * 4} for p in ("a", "b", "c", "mixture")}, noise=1.0)
    found = patterns.cancellation(run_of(data, {}), "chi", 1.0, False)[0]
    assert found.holds is None


def test_a_domain_of_ccs_own_name_goes_before_the_mixture():
    data = data_of(
        {**probes([1.0, -1.0, 0.5, -0.5]), "pile-cc": {"0:0": [0, 0, 0, 1], "0:1": [0] * 4}}
    )
    run = run_of(data, {"pile-cc": {}})
    assert str(run.place("pile-cc")) == "pile-cc"
    assert patterns.cancellation(run, "chi", 1.0, False)[0].holds is False


def test_totals_and_the_space_token_are_the_planted_ones():
    data = data_of({"code": {"0:0": [-1.0, 0.5, 0.2, 0.1], "0:1": [-2.0, 0.5, 0.2, 0.1]}})
    run = run_of(data, CODE)
    found = findings.of_totals("github-all", [("0:1", "negative"), ("0:0", "sum")])(
        run, "chi", 1.0, False
    )
    quarter = sums.PUBLISHED_TOKENS / 4
    assert found[0].value == pytest.approx(-2 * quarter, rel=0.01)
    assert found[1].value == pytest.approx(-0.2 * quarter, rel=0.05)
    assert found[0].n == CONTEXTS * LENGTH
    assert "code (for github-all)" in found[0].note
    mean = findings.of_space("0:1", False)(run, "chi", 1.0, False)[0]
    assert mean.value == pytest.approx(-2.0, abs=0.01) and 0 < mean.se < 0.01 and mean.n == 100
    share = findings.space_share("0:0")(run, "chi", 1.0, False)[0]
    assert share.value == pytest.approx(1.0, abs=0.01)


def test_what_is_missing_is_said():
    data = data_of({"prose": {"0:0": [0.0] * 4}})
    run = run_of(data, {})
    for find in (
        findings.of_totals("github-all", [("0:0", "sum")]),
        findings.of_totals("pile-cc", [("0:0", "sum")]),
        findings.of_space("0:0", False),
        patterns.space_top,
        patterns.cancellation,
    ):
        found = find(run, "chi", 1.0, False)[0]
        assert found.n == 0 and "this corpus has no domain named" in found.note
    lone = run_of(data_of({"code": {"0:0": [0.0] * 4}}), CODE)
    found = patterns.space_top(lone, "chi", 1.0, False)[0]
    assert found.n == 0 and "the model has no head 0:1" in found.note
    counts = findings.space_counts(run)
    assert counts["n"] == 0 and "hackernews" in counts["note"]


def test_space_tokens_are_counted_for_the_papers_sample():
    names = ("github-all", "freelaw", "hackernews")
    data = data_of({name: {"0:0": [0.0] * 4} for name in names}, (0.5, 0.25, 0.25, 0.0))
    found = findings.space_counts(run_of(data, {name: {} for name in names}))
    assert found["value"] == [sums.PUBLISHED_TOKENS / 2] * 3
    assert found["se"] == [0.0] * 3, "every context has as many"
    assert found["n"] == 3 * CONTEXTS * LENGTH


def test_a_control_that_meets_a_pattern_is_reported():
    data = data_of(probes([1.0, -1.0, 0.5, -0.5]))
    measured, _ = claims.claims(run_of(data, CODE, control=data), 30.0)
    entry = measured["baker2025.tab4.cancellation"]
    assert entry["holds"] is True and entry["carried_by"] == "covariance, rank-one, mean shift"
    assert "the n_beta = 0 control, sampled without any loss, meets" in entry["note"]
    assert "The n_beta = 0 control gives" in measured["baker2025.tab1.00.pos"]["note"]


# ---- the scripts on a planted run --------------------------------------------------------------


def section_41_of(folder: Path) -> None:
    """Dataset susceptibilities that are delta_h times the means, with small errors."""
    rng = np.random.default_rng(0)
    for control, name in ((False, "susceptibility"), (True, "control")):
        data = load_per_token(folder, control)
        rows = []
        for probe in data.probes:
            for form in FORMS:
                means = data.value[form][:, data.where(probe)].mean(1)
                for component, mean in zip(data.components, means, strict=True):
                    value = 0.1 * mean + 1e-3 * rng.normal()
                    rows.append((STEPS[-1], probe, component, form, value, 1e-3))
        columns = ["step", "probe", "component", "form", "value", "se"]
        frame = pl.DataFrame(rows, columns, orient="row")
        frame.write_parquet(folder / SECTION_41 / f"{name}.parquet")


def run_all(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (attribution, claims, tables):
            patch.setattr("sys.argv", ["script", "--results", str(folder)])
            module.main()
        patch.setattr("sys.argv", ["script", "--results", str(folder)])
        figure9.main()
        patch.setattr("sys.argv", [*sys.argv, "--figure", *bars.FIGURES])
        bars.main()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted run on which all scripts of the section have run."""
    folder = planted(tmp_path_factory.mktemp("planted") / "results" / "mini")
    section_41_of(folder)
    for name, seconds in (("sample_039920.0", 1800), ("sample_039920.1", 3600)):
        _benchmark(folder, name, seconds)
    _benchmark(folder, "sample_039920.control.0", 500)
    run_all(folder)
    return folder


def _benchmark(folder: Path, job: str, seconds: float) -> None:
    path = folder / "benchmarks" / f"per_token_{job}.tsv"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:00\t100\n")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def saved(results: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(results / SECTION / f"{name}.parquet")


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(plt.Text) if t.get_text())


def test_measured_file_satisfies_the_comparison(results):
    published = load_published(ROOT / "published")
    declared = load_declared(ROOT / "experiments", published)
    measured = load_measured(results, published, {SECTION: declared[SECTION]})
    assert set(measured) == set(declared[SECTION])
    assert all(isinstance(entry, Measured) for entry in measured.values())
    rows = pl.read_parquet(results / SECTION / "sensitivity.parquet")
    assert rows.columns == ["claim", "convention", "value", "se", "holds"]
    assert set(rows["claim"]) <= set(measured)
    one = measured["baker2025.tab4.cc"]
    assert isinstance(one.value, list) and isinstance(one.se, list) and len(one.value) == 4


def test_claims_of_the_planted_run(results):
    measured = read_json(results / SECTION / "measured.json")
    slope = measured["baker2025.fig9.slope"]
    assert abs(slope["value"] - 10) < 3 * slope["se"] and slope["n"] == 160
    assert measured["baker2025.fig9.pearson"]["value"] > 0.95
    assert measured["baker2025.fig9.pearson"]["carried_by"] == "rank-one (largest part)"
    space = measured["baker2025.tab1.00.space_mean"]
    assert space["value"] == pytest.approx(COMMON[" "], abs=4 * space["se"])
    cost = measured["baker2025.C2.cost"]
    assert cost["value"] == pytest.approx(1.5) and cost["n"] == 2, "the control is not counted"
    rows = pl.read_parquet(results / SECTION / "sensitivity.parquet")
    sign = rows.filter(pl.col("claim") == "baker2025.tab1.00.pos")
    found = dict(zip(sign["convention"], sign["value"], strict=True))
    assert found["sign=plus"] == pytest.approx(-measured["baker2025.tab1.00.neg"]["value"])


def test_the_planted_token_makes_the_papers_gap(results):
    gap = saved(results, "gaps").filter(pl.col("gap_name") == "paper").row(0, named=True)
    assert (gap["probe"], {gap["head_a"], gap["head_b"]}) == ("cpp", {"0:0", "0:1"})
    assert abs(gap["control_gap"]) < abs(gap["gap"]) / 5, "planted in the mean shift"
    parts = sum(gap[f"{form}_gap"] for form in FORMS if form != "chi")
    assert parts == pytest.approx(gap["gap"])
    assert abs(gap["mean_shift_gap"] / gap["gap"] - 1) < 0.1
    assert gap["positive_gap"] + gap["negative_gap"] == pytest.approx(gap["gap"])
    tokens = saved(results, "gap_tokens").filter(pl.col("gap_name") == "paper")
    first = tokens.row(0, named=True)
    assert first["text"] == BIMODAL
    assert first["share"] == pytest.approx(1.0, abs=0.1)
    assert tokens["gap"].sum() == pytest.approx(gap["gap"])


def test_tables_say_what_was_saved(results):
    folder = results / "tables"
    one = pl.read_csv(folder / "table1.csv")
    assert one["component"].to_list() == ["0:0", "0:1"] * 5
    assert one["control"].to_list() == [False] * 8 + [True] * 2
    measured = read_json(results / SECTION / "measured.json")
    assert one["negative"][1] == pytest.approx(measured["baker2025.tab1.01.neg"]["value"])
    assert one["space_std"][0] == pytest.approx(measured["baker2025.tab1.00.space_std"]["value"])
    html = (folder / "table1.html").read_text()
    assert "Two heads on cpp (for github-all)" in html and "n_beta = 0 control" in html
    four = pl.read_csv(folder / "table4.csv").filter(~pl.col("control") & (pl.col("form") == "chi"))
    assert four["probe"].to_list()[:2] == ["cpp", "mixture"] and len(four) == 11
    html = (folder / "gap_tokens.html").read_text()
    assert "␣to" in html and "the paper&#39;s pair" in html


def test_figure9_draws_the_points_and_states_the_line(results):
    run = common.load_run(results)
    both = {name: saved(results, name) for name in ("points", "fits")}
    figure, rows = figure9.draw_means(both, run, 0.1)
    assert len(figure.axes) == 5
    assert len(rows) == 5 * 11 * 16
    written = texts(figure)
    value = both["fits"].filter(
        (pl.col("form") == "chi") & ~pl.col("control") & (pl.col("statistic") == "deming")
    )["value"][0]
    assert f"errors in both axes: {value:.3g} [" in written
    assert "theory: 1/δh = 10" in written and "n_beta = 0 control" in written
    drawn = [line for line in figure.axes[0].get_lines() if line.get_marker() in ("o", "^")]
    assert sum(len(line.get_xdata()) for line in drawn) == 11 * 16
    open_ones = [line for line in drawn if line.get_markerfacecolor() == "white"]
    assert [len(line.get_xdata()) for line in open_ones] == [8, 8], "the control probe's"
    none = {name: table.head(0) for name, table in both.items()}
    assert "no dataset susceptibilities" in texts(figure9.draw_means(none, run, 0.1)[0])


def test_bars_are_the_tokens(results):
    run = common.load_run(results)
    both = {name: saved(results, name) for name in ("gaps", "gap_tokens")}
    figure, rows = bars.draw_negative(both, run)
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == rows["size"].to_list()[: len(widths)]
    assert widths == sorted(widths, reverse=True)
    assert "cpp (for github-all)" in texts(figure)
    figure, rows = bars.draw_gaps(both, run)
    assert len(figure.axes) == 3
    first = rows.filter(pl.col("gap_name") == "paper")
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == first["gap"].to_list()
    assert "␣to  ×" in texts(figure) and "corrected" in texts(figure)


def test_without_the_domain_or_the_control_everything_is_still_made(results, tmp_path):
    """Also hostile token text: it must not reach the page as markup."""
    folder = planted(tmp_path / "results" / "mini", contexts=6, length=12, chains=4)
    section_41_of(folder)
    manifest = read_json(folder / "tokens" / "manifest.json")
    write_json(folder / "tokens" / "manifest.json", {**manifest, "domains": {"cpp": {}}})
    config = read_json(folder / "config.json")
    config["two_layer"]["per_token"]["control_checkpoints"] = []
    write_json(folder / "config.json", config)
    path = folder_of(folder, STEPS[-1]) / TOKENS
    table = pl.read_parquet(path)
    hostile = pl.col("text").replace({"1": "<script>alert(1)</script>", "/": "\x00$x^{"})
    table.with_columns(hostile).write_parquet(path)
    run_all(folder)
    measured = read_json(folder / SECTION / "measured.json")
    assert measured["baker2025.tab1.00.pos"]["n"] == 0
    assert "no domain named github-all" in measured["baker2025.tab1.00.pos"]["note"]
    assert measured["baker2025.C2.cost"]["n"] == 0
    assert "Nothing to show" in (folder / "tables" / "table1.html").read_text()
    assert "<script" not in (folder / "tables" / "gap_tokens.html").read_text()
    assert saved(folder, "gaps")["gap_name"].to_list() == ["clearest", "largest"]
    figure, rows = bars.draw_negative(
        {name: saved(folder, name) for name in ("gaps", "gap_tokens")}, common.load_run(folder)
    )
    assert rows.is_empty() and "no domain named github-all" in texts(figure)


def test_a_missing_checkpoint_is_named(results):
    data = load_per_token(results)
    table = pl.read_parquet(results / SECTION_41 / "susceptibility.parquet")
    with pytest.raises(ValueError, match=r"no dataset susceptibilities at step 39920.*\[80\]"):
        fits.points(data, table.with_columns(step=pl.lit(80)), None)
    assert (folder_of(results, STEPS[-1]) / SUSCEPTIBILITY).exists()
    assert ROLES["0:1"] == "previous-token"
