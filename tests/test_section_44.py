"""Section 4.4: curves by context length, repeats, the example and the claims, on planted data."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from per_token_results import GROWTH, planted
from susceptibilities.claims import Measured, load_declared, load_measured, load_published
from susceptibilities.highlight import load_highlight
from susceptibilities.jackknife import pseudo_values
from susceptibilities.per_token import folder_of, load_per_token
from susceptibilities.store import read_json, write_json
from susceptibilities.token_errors import measure_array
from synthetic_results import HEADS, ROLES

ROOT = Path(__file__).parents[1]
SECTION = "baker2025/s4_4_context_length"
sys.path.insert(0, str(ROOT / "figures"))

import matplotlib.pyplot as plt  # noqa: E402

import common  # noqa: E402
import context_length as figures  # noqa: E402
import context_length_heads as by_head  # noqa: E402

MULTIGRAM = [h for h in HEADS if h.startswith("1") and ROLES[h] == "multigram"]
INDUCTION = [h for h in HEADS if ROLES[h] == "induction"]


def load(name: str) -> ModuleType:
    """A script of the section; the ones it imports have to be loaded before."""
    path = ROOT / "experiments" / SECTION / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


statistics = load("length_statistics")
sequences = load("repeated_sequences")
curves = load("length_curves")
repeats = load("repeats")
claims = load("context_length_claims")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted run on which all scripts of the section have run."""
    folder = planted(tmp_path_factory.mktemp("planted") / "results" / "mini")
    run_all(folder)
    return folder


def run_all(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (curves, repeats, claims):
            patch.setattr("sys.argv", ["script", "--results", str(folder)])
            module.main()


@pytest.fixture(scope="module")
def tables(results: Path) -> dict[str, pl.DataFrame]:
    return {
        name: pl.read_parquet(results / SECTION / f"{name}.parquet")
        for name in ("curves", "heads", "shared", "repeats", "example")
    }


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


# ---- statistics --------------------------------------------------------------------------------


def test_bins_cover_every_length_once():
    for longest in (1, 2, 31, 127, 1023):
        bins = statistics.Bins.up_to(longest)
        covered = [n for a, b in zip(bins.low, bins.high, strict=True) for n in range(a, b + 1)]
        assert covered == list(range(1, longest + 1))
        assert [bins.low[b] <= n <= bins.high[b] for n, b in enumerate(bins.of, 1)] == [
            True
        ] * longest
    assert statistics.Bins.up_to(31).low.tolist() == [1, 2, 3, 4, 6, 8, 11, 16, 23]
    values = np.arange(1.0, 32.0)
    np.testing.assert_allclose(statistics.Bins.up_to(31).average(values)[:4], [1, 2, 3, 4.5])


def test_rise_of_a_logarithm_is_its_range_and_of_a_constant_nothing():
    weights = statistics.rise_weights(127)
    assert weights @ np.log2(np.arange(1, 128)) == pytest.approx(np.log2(127))
    assert weights @ np.ones(127) == pytest.approx(0.0, abs=1e-12)
    quarters = statistics.quarter_weights(127)
    assert quarters @ np.arange(127.0) == pytest.approx(127 - 31)
    assert statistics.quarter_weights(3) @ np.arange(3.0) == pytest.approx(2.0)


def test_signal_variance_leaves_out_the_noise_of_the_chains():
    rng = np.random.default_rng(0)
    layout = statistics.Layout(("a", "b"), contexts=400, lengths=4)
    signal = 0.1 * rng.normal(size=2 * 400 * 4)
    chains = signal + rng.normal(size=(6, len(signal)))
    keep = np.ones(len(signal), dtype=bool)
    found = statistics.signal_variances(layout, chains, keep).mean()
    plain = layout.variances(chains.mean(0), keep).mean()
    assert found == pytest.approx(0.01, abs=0.01)
    assert plain == pytest.approx(0.01 + 1 / 6, rel=0.1)
    # A size common to all tokens is a scale and has its noise too.
    scales = 1 + 0.5 * rng.normal(size=(6, 1))
    scaled = statistics.signal_variances(layout, scales * signal, keep).mean()
    pairs = scales @ scales.T
    expected = (pairs.sum() - np.trace(pairs)) / 30 * layout.variances(signal, keep).mean()
    assert scaled == pytest.approx(expected)


def test_pseudo_values_of_a_mean_are_the_chains():
    chains = np.random.default_rng(0).normal(size=(5, 7))
    left_out = np.stack([np.delete(chains, c, 0).mean(0) for c in range(5)])
    np.testing.assert_allclose(pseudo_values(chains.mean(0), left_out), chains)


def test_two_chains_give_a_value_and_no_error():
    rng = np.random.default_rng(0)
    layout = statistics.Layout(("a",), contexts=8, lengths=2)
    chains = rng.normal(size=(2, 16))

    def statistic(values, keep):
        return statistics.signal_variances(layout, values, keep).mean()

    blocks = np.repeat(np.arange(8), 2)
    value, se = statistics.measure_signal(statistic, chains.mean(0), chains[::-1], blocks)
    assert np.isfinite(value) and np.isnan(se)


def test_one_curve_is_told_from_two():
    rng = np.random.default_rng(0)
    layout = statistics.Layout(("a",), contexts=10, lengths=31)
    octave = np.tile(np.log2(np.arange(1, 32)), 10)
    other = np.tile(np.cos(np.arange(31)), 10)
    keep = np.ones(310, dtype=bool)
    noise = 0.01 * rng.normal(size=(4, 3, 310))
    same = np.stack([octave, -2 * octave, 0.5 * octave])
    share, trace = statistics.shared_curve(layout, same + noise, keep)
    assert share == pytest.approx(1.0, abs=1e-3) and trace > 0
    mixed = np.stack([octave, other * 3, octave + other])
    assert statistics.shared_curve(layout, mixed + noise, keep)[0] < 0.9


def test_tokens_in_another_order_are_refused():
    tokens = pl.DataFrame({"probe": ["a"] * 4, "position": [1, 2, 2, 1]})
    with pytest.raises(ValueError, match="positions 1 to 2 in every context"):
        statistics.Layout.of(tokens)


# ---- curves ------------------------------------------------------------------------------------


def test_planted_growth_is_the_rise_of_multigram_heads(tables):
    rows = tables["heads"].filter(
        (pl.col("source") == "run")
        & (pl.col("form") == "mean_shift")
        & (pl.col("probe") == "all domains")
        & (pl.col("quantity") == "rise")
    )
    found = dict(zip(rows["component"], zip(rows["value"], rows["se"], strict=True), strict=True))
    for head in MULTIGRAM:
        value, se = found[head]
        assert value == pytest.approx(GROWTH * np.log(31), abs=4 * se) and se < 0.05
    for head in (h for h in HEADS if h.startswith("0") and h != "0:0"):
        assert found[head][0] == pytest.approx(0.0, abs=4 * found[head][1])


def test_curves_are_means_and_variances_of_their_tokens(results, tables):
    data = load_per_token(results)
    value = data.of("1:2")[0]
    chosen = data.where("python") & data.tokens["position"].is_in([4, 5]).to_numpy()
    row = tables["curves"].filter(
        (pl.col("source") == "run")
        & (pl.col("form") == "chi")
        & (pl.col("probe") == "python")
        & (pl.col("component") == "1:2")
        & (pl.col("low") == 4)
    )
    assert row["high"].item() == 5 and row["tokens"].item() == chosen.sum()
    assert row["mean"].item() == pytest.approx(value[chosen].mean())
    by_length = [
        value[chosen & (data.tokens["position"] == p).to_numpy()].var(ddof=1) for p in (4, 5)
    ]
    assert row["variance"].item() == pytest.approx(np.mean(by_length))
    assert row["role"].item() == "multigram" and row["layer"].item() == 1


def test_noise_has_variance_but_no_signal(tables):
    rows = tables["heads"].filter(
        (pl.col("source") == "run")
        & (pl.col("form") == "covariance")
        & (pl.col("probe") == "all domains")
    )
    signal = rows.filter(pl.col("quantity") == "signal")
    plain = rows.filter(pl.col("quantity") == "variance")
    assert (signal["value"].abs() < 5 * signal["se"]).all()
    assert (plain["value"] > 5 * signal["se"]).all()


def test_rank_one_curves_are_one_curve_and_noise_has_none(tables):
    shared = {(r["source"], r["form"]): r["share"] for r in tables["shared"].iter_rows(named=True)}
    assert shared["run", "rank_one"] == pytest.approx(1.0, abs=1e-6)
    assert shared["run", "covariance"] is None
    assert shared["run", "chi"] < 0.9  # the mean shift has a curve of its own
    assert set(tables["curves"]["source"]) == {"run", "control"}


# ---- repeats -----------------------------------------------------------------------------------


def test_repeats_are_counted_without_overlap():
    row = np.array([[1, 2, 3, 9, 1, 2, 3, 1, 2, 3, 7]])
    found = sequences.find_repeats(row)
    pairs = list(zip(found.first, found.again, found.number, strict=True))
    assert (2, 6, 2) in pairs and (2, 9, 3) in pairs
    # 2 3 1 and 3 1 2 come once; and 5 5 5 5 is no sequence.
    assert len(pairs) == 2
    assert found.seen.sum() == 2
    assert len(sequences.find_repeats(np.full((1, 9), 5)).again) == 0
    periodic = sequences.find_repeats(np.array([[1, 2, 1, 2, 1, 2, 1]]))
    # 1 2 1 ends at 2, 4 and 6; the one at 4 overlaps the first.
    assert list(zip(periodic.first, periodic.again, strict=True)) == [(2, 6)]
    assert periodic.seen.sum() == 3


def test_contexts_do_not_repeat_each_other():
    assert len(sequences.find_repeats(np.array([[1, 2, 3], [1, 2, 3]])).again) == 0


def test_planted_repeats_lower_induction_heads_and_no_others(results, tables):
    data = load_per_token(results)
    layout = statistics.Layout.of(data.tokens)
    found = sequences.find_repeats(repeats.ids_of(data, layout))
    inside = ~data.where("mixture")[found.again] & (found.number == 2)
    rows = tables["repeats"].filter(
        (pl.col("source") == "run")
        & (pl.col("form") == "mean_shift")
        & (pl.col("probe") == "all domains")
        & (pl.col("instance") == "second")
        & (pl.col("measure") == "difference")
    )
    assert rows["pairs"].unique().to_list() == [inside.sum()]
    for row in rows.iter_rows(named=True):
        value = data.of(row["component"], "mean_shift")[0]
        by_hand = (value[found.again[inside]] - value[found.first[inside]]).mean()
        assert row["value"] == pytest.approx(by_hand)
        if row["component"] in INDUCTION:
            assert row["value"] < -0.2 and row["value"] < -5 * row["se"]
    beyond = tables["repeats"].filter(
        (pl.col("source") == "run")
        & (pl.col("form") == "mean_shift")
        & (pl.col("probe") == "all domains")
        & (pl.col("instance") == "second")
        & (pl.col("measure") == "beyond_length")
    )
    # Their growth with the length is no effect of repeats.
    for row in beyond.iter_rows(named=True):
        if row["component"] in MULTIGRAM:
            assert row["value"] == pytest.approx(0.0, abs=max(4 * row["se"], 0.02))


def test_a_cell_without_fresh_tokens_takes_the_mean_of_all():
    values = np.array([[1.0, 3.0, 10.0, 20.0]])
    cells = np.array([0, 0, 1, 1])
    fresh = np.array([True, True, False, False])
    rest = sequences.without_length(values, cells, fresh, np.ones(4, dtype=bool))
    np.testing.assert_allclose(rest, [[-1, 1, 8, 18]])


def test_the_example_is_the_longest_that_comes_three_times():
    rng = np.random.default_rng(0)
    ids = rng.integers(100, 10_000, (4, 60))
    twice, thrice = np.arange(12), np.arange(20, 27)
    for start in (3, 40):
        ids[1, start : start + 12] = twice
    for start in (5, 20, 44):
        ids[2, start : start + 7] = thrice
    ids[3, 10:55] = 1  # a run is no sequence
    assert sequences.longest_repeat(ids) == sequences.Example(2, (5, 20, 44), 7)
    assert sequences.longest_repeat(ids[:2]) == sequences.Example(1, (3, 40), 12)
    assert sequences.longest_repeat(ids[:1]) is None
    ids[3, :7] = ids[3, 20:27] = ids[3, 50:57] = thrice  # as long: the first context wins
    assert sequences.longest_repeat(ids) == sequences.Example(2, (5, 20, 44), 7)


def test_head_groups_are_columns_of_layers():
    groups = repeats.head_groups(HEADS)
    assert groups[:3] == [["0:0", "0:1"], ["1:0", "1:1"], ["0:2", "0:3"]]
    assert len(groups) == 8
    six = [f"{layer}:{head}" for layer in range(2) for head in range(6)]
    assert repeats.head_groups(six)[1] == ["1:0", "1:1", "1:2"]
    deep = [f"{layer}:{head}" for layer in range(6) for head in range(4)]
    assert [group[0] for group in repeats.head_groups(deep)[:3]] == ["0:0", "0:2", "1:0"]


def test_figure_8_shows_the_instances_of_the_example(results, tables):
    spec = load_highlight(results / SECTION / "fig8.highlight.json")
    example = tables["example"]
    assert len(spec.panels) == 8 and spec.columns == 2
    limits = {track.limit for panel in spec.panels for track in panel.tracks}
    assert limits == {example["value"].abs().max()}
    first = spec.panels[0]
    assert "0:0" in first.label and "0:1" in first.label
    text = [t for t, v in zip(first.tokens, first.tracks[0].values, strict=True) if v is not None]
    again = example.filter(pl.col("component") == "0:0").sort("instance", "offset")
    assert text == again["text"].to_list()
    shown = [v for v in first.tracks[1].values if v is not None]
    expected = example.filter(pl.col("component") == "0:1").sort("instance", "offset")
    assert shown == expected["value"].to_list()
    assert str(example["position"].min()) in spec.subtitle


def test_deep_models_have_two_columns(tables):
    example = tables["example"]
    heads = [f"{layer}:{head}" for layer in range(6) for head in range(2)]
    renamed = dict(zip(HEADS[:12], heads, strict=True))
    kept = example.filter(pl.col("component").is_in(HEADS[:12]))
    deep = kept.with_columns(pl.col("component").replace_strict(renamed))
    spec = repeats.highlight(deep, heads, {}, "python")
    assert spec.columns == 2 and len(spec.panels) == 6


def test_without_a_repeat_figure_8_says_so(results):
    data = load_per_token(results)
    unique = data.tokens.with_columns(token=pl.int_range(pl.len()))
    alone = replace(data, tokens=unique)
    assert repeats.find_example(alone) is None and not len(repeats.example_table(alone))
    assert not len(repeats.repeat_table(alone, "chi"))
    assert "comes twice" in repeats.nothing_repeats(alone).subtitle


# ---- claims ------------------------------------------------------------------------------------


def test_measured_files_satisfy_the_comparison(results):
    published = load_published(ROOT / "published")
    declared = load_declared(ROOT / "experiments", published)
    measured = load_measured(results, published, {SECTION: declared[SECTION]})
    assert set(measured) == {claims.GROWTH, claims.VARIANCE}
    assert all(isinstance(entry, Measured) for entry in measured.values())
    rows = pl.read_parquet(results / SECTION / "sensitivity.parquet")
    assert rows.columns == ["claim", "convention", "value", "se", "holds"]


def test_planted_growth_holds_and_its_part_is_named(results):
    measured = read_json(results / SECTION / "measured.json")
    growth = measured[claims.GROWTH]
    assert growth["holds"] is True and growth["carried_by"] == "mean shift"
    assert "6 of 6 layer-1 multigram and 0 of 8 layer-0" in growth["note"]
    assert "Control at n_beta = 0" in growth["note"] and "Caution" not in growth["note"]
    assert "heads differ in shape" in growth["note"]
    assert "same random numbers, correlate 0." in growth["note"]


def test_planted_variance_is_that_of_layer_0(results):
    variance = read_json(results / SECTION / "measured.json")[claims.VARIANCE]
    assert variance["holds"] is False and variance["carried_by"] == "no part alone"
    assert "0 of 7 layer-1 heads above every layer-0 head" in variance["note"]


def test_larger_layer_1_heads_have_the_higher_variance(results):
    data = load_per_token(results)
    factor = np.array([1.0 if name.startswith("1") else 0.1 for name in data.components])
    larger = replace(
        data,
        value={form: factor[:, None] * v for form, v in data.value.items()},
        replicates={form: factor[:, None] * v for form, v in data.replicates.items()},
    )
    found = claims.variance(claims.Data.of(larger, ROLES), "chi")
    assert found.holds is True and found.value > 0
    assert "left out: 1:" in found.note


def test_noise_and_flipped_signs_decide_nothing_in_favor(results):
    data = claims.Data.of(load_per_token(results), ROLES)
    assert not claims.growth(data, "covariance").holds
    assert not claims.variance(data, "covariance").holds
    assert claims.growth(data, "chi", factor=-1.0).holds is False


def test_without_two_layers_or_roles_a_claim_is_not_tested(results):
    data = load_per_token(results)
    one = claims.Data.of(data, dict.fromkeys(HEADS, "induction"))
    for found in (claims.growth(one, "chi"), claims.variance(one, "chi")):
        assert found.n == 0 and "two multigram heads" in found.note


def test_errors_cover_the_scatter_between_runs():
    """The stated error of a rise is the scatter of rises over independent chains and contexts."""
    rng = np.random.default_rng(0)
    layout = statistics.Layout(("a",), contexts=20, lengths=31)
    blocks = np.repeat(np.arange(20) % 10, 31)
    weights = statistics.rise_weights(31)

    def statistic(values, keep):
        return layout.means(values, keep)[..., 0, :] @ weights

    values, errors = [], []
    for _ in range(200):
        chains = rng.normal(size=620) + rng.normal(size=(6, 620))
        left_out = np.stack([np.delete(chains, c, 0).mean(0) for c in range(6)])
        value, se = measure_array(statistic, chains.mean(0), left_out, blocks)
        values.append(value)
        errors.append(se**2)
    # Chain noise is in both jackknives, so the error is somewhat large, never small.
    ratio = np.sqrt(np.mean(errors)) / np.std(values)
    assert 0.9 < ratio < 1.3


# ---- other sizes, figures ----------------------------------------------------------------------


def test_small_run_without_control_builds(tmp_path):
    folder = planted(tmp_path / "results" / "mini", chains=4, contexts=4, length=12)
    config = read_json(folder / "config.json")
    config["two_layer"]["per_token"]["control_checkpoints"] = []
    write_json(folder / "config.json", config)
    assert folder_of(folder, 39920, True).exists()  # there, but not of this run
    run_all(folder)
    found = pl.read_parquet(folder / SECTION / "curves.parquet")
    assert set(found["source"]) == {"run"}
    run = common.load_run(folder)
    tables = {n: pl.read_parquet(folder / SECTION / f"{n}.parquet") for n in NAMES}
    for draw in DRAWN.values():
        draw(tables, run)


NAMES = ("curves", "heads", "shared", "repeats")
DRAWN = {**figures.FIGURES, **by_head.FIGURES}


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(plt.Text) if t.get_text())


@pytest.mark.parametrize("name", list(DRAWN))
def test_figures_are_drawn_and_name_the_model(name, results, tables):
    figure, rows = DRAWN[name](tables, common.load_run(results))
    assert len(rows)
    assert "two-layer-10d" in texts(figure)
    assert "layer 1, induction (1:6, 1:7)" in texts(figure)


def test_figure_33_has_a_panel_a_probe_and_the_papers_colors(results, tables):
    run = common.load_run(results)
    figure, rows = figures.draw_means(tables, run)
    probes = rows["probe"].unique(maintain_order=True).to_list()
    assert len(figure.axes) == len(probes) == 12
    ax = figure.axes[probes.index("python")]
    assert "python (for github)" in ax.get_title(loc="left")
    expected = {
        head: rows.filter((pl.col("probe") == "python") & (pl.col("component") == head))["mean"]
        for head in HEADS
    }
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == len(expected["0:0"])]
    assert len(lines) == len(HEADS)
    for head, color in (("0:3", "layer 0"), ("1:7", "layer 1, induction"), ("1:2", None)):
        same = [x for x in lines if np.array_equal(x.get_ydata(), expected[head])]
        kind = color or "layer 1, others"
        assert [x.get_color() for x in same] == [figures.KINDS[kind][0]]


def test_no_repeats_give_a_page_that_says_so(results, tables):
    empty = {**tables, "repeats": tables["repeats"].clear()}
    figure, _ = by_head.draw_repeats(empty, common.load_run(results))
    assert "repeats often enough" in texts(figure)
