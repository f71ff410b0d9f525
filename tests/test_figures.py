"""Figures: what they draw, from saved tables; never pixels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthetic_results import HEADS, ROLES, SECTION_41, STAND_INS, STEPS, write_results

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "figures"))

import matplotlib.pyplot as plt  # noqa: E402

import common  # noqa: E402
import structure  # noqa: E402
import susceptibility_over_training as curves  # noqa: E402
import training  # noqa: E402
import trajectory_pca as pca_figures  # noqa: E402
from susceptibilities.cubes import FORMS  # noqa: E402
from susceptibilities.trajectories import analyse  # noqa: E402


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results") / "mini")


@pytest.fixture(scope="module")
def run(results: Path) -> common.Run:
    return common.load_run(results)


@pytest.fixture(scope="module")
def susceptibility(results: Path) -> pl.DataFrame:
    return pl.read_parquet(results / SECTION_41 / "susceptibility.parquet")


@pytest.fixture(scope="module")
def tables(results: Path, susceptibility: pl.DataFrame) -> dict[str, pl.DataFrame]:
    replicates = pl.read_parquet(results / SECTION_41 / "replicates.parquet")
    found = [analyse(susceptibility, replicates, ROLES, form).tables(form) for form in FORMS]
    return {name: pl.concat(t[name] for t in found) for name in found[0]}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def texts(figure) -> str:
    """Everything that is written in a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(plt.Text) if t.get_text())


def overlaps(figure, size: float) -> list[tuple[str, str]]:
    """Pairs of texts of one font size that cover each other."""
    figure.canvas.draw()
    boxes = [
        (t.get_text(), plt.Text.get_window_extent(t))  # without an annotation's arrow
        for t in figure.findobj(plt.Text)
        if t.get_text() and t.get_visible() and t.get_fontsize() == size
    ]
    return [
        (a, b)
        for i, (a, one) in enumerate(boxes)
        for b, two in boxes[i + 1 :]
        if one.shrunk(1, 0.8).overlaps(two.shrunk(1, 0.8))
    ]


def test_curves_draw_every_head_of_the_stand_in(run, susceptibility):
    figure, rows = curves.draw(susceptibility, run, "github")
    assert rows["probe"].unique().to_list() == ["python"]
    first, second = figure.axes[:2]
    for ax, layer, style in ((first, 0, "-"), (second, 1, "--")):
        lines = [line for line in ax.get_lines() if len(line.get_xdata()) == len(STEPS)]
        assert len(lines) == 8
        for head, line in enumerate(lines):
            expected = rows.filter(
                (pl.col("component") == f"{layer}:{head}") & (pl.col("form") == "chi")
            )
            np.testing.assert_array_equal(line.get_xdata(), expected["step"])
            np.testing.assert_array_equal(line.get_ydata(), expected["value"])
            assert line.get_linestyle() == style
            assert line.get_color() == common.HEAD_COLORS[head]
    written = texts(figure)
    assert "python, standing in for github" in written
    assert "two-layer-10d" in written
    assert "0:1 prev" in written and "1:6 induct" in written
    assert not overlaps(figure, 7.0)


def test_a_subset_without_a_domain_gets_a_page_that_says_so(run, susceptibility):
    figure, rows = curves.draw(susceptibility, run, "hackernews")
    assert len(rows) == 0
    assert "no domain named hackernews and none that stands in for it" in texts(figure)


def test_a_domain_of_the_subsets_own_name_needs_no_stand_in(run, susceptibility):
    own = susceptibility.with_columns(pl.col("probe").replace("python", "github"))
    domains = {("github" if name == "python" else name): {} for name in STAND_INS}
    figure, _ = curves.draw(own, common.Run(run.label, domains, run.roles), "github")
    assert "Susceptibility to github" in texts(figure)
    assert "standing in" not in texts(figure)


@pytest.mark.parametrize("name", list(pca_figures.FIGURES))
@pytest.mark.parametrize("form", FORMS)
def test_every_pca_figure_is_drawn_for_every_form(name, form, tables, run):
    figure, rows = pca_figures.FIGURES[name](tables, run, form)
    assert len(rows)
    assert "two-layer-10d" in texts(figure)


def test_loadings_are_the_bars(tables, run):
    figure, _ = pca_figures.draw_loadings(tables, run)
    expected = pca_figures.of_form(tables["loadings"], "chi", 1)["value"].to_list()
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == expected
    colors = [common.ROLE_COLORS[ROLES[head]] for head in HEADS]
    found = [plt.matplotlib.colors.to_hex(bar.get_facecolor()) for bar in bars]
    assert [c.lower() for c in colors] == found


def test_unidentified_components_are_faint_and_starred(tables, run):
    variance = tables["variance"].with_columns(identified=pl.col("pc") != 2)
    figure, _ = pca_figures.draw_loadings({**tables, "variance": variance}, run)
    alphas = [figure.axes[i].patches[0].get_alpha() for i in (0, 4, 8)]
    assert alphas == [1.0, 0.4, 1.0]
    assert texts(figure).count("% *") == 4


def test_contributions_and_scree_draw_the_tables(tables, run):
    figure, rows = pca_figures.draw_contributions(tables, run)
    found = [p.get_width() for p in figure.axes[1].patches[: len(STAND_INS)]]
    assert found == rows.filter(pl.col("pc") == 2)["value"].to_list()
    figure, rows = pca_figures.draw_scree(tables, run)
    shares = rows.filter(pl.col("form") == "chi")["share"].to_numpy()
    drawn = [line.get_ydata() for line in figure.axes[0].get_lines()]
    assert any(len(y) == len(shares) and np.allclose(y, shares) for y in drawn)
    assert "98" in texts(figure)


def test_trajectories_end_where_training_ends(tables, run):
    paths = pca_figures.trajectories(pca_figures.of_form(tables["scores"], "chi"), (1, 2))
    assert list(paths) == list(STAND_INS)
    for path in paths.values():
        assert path[:, 0].tolist() == STEPS
    figure, _ = pca_figures.draw_trajectories(tables, run)
    markers = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 1]
    ends = [(line.get_xdata()[0], line.get_ydata()[0]) for line in markers]
    np.testing.assert_allclose(ends, [path[-1, 1:3] for path in paths.values()])


def test_series_labels_do_not_cover_each_other(tables, run):
    figure, _ = pca_figures.draw_series(tables, run)
    assert not overlaps(figure, 6.5)


def test_structure_names_heads_where_a_score_gives_their_role(results, run):
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    repeats = pl.read_parquet(results / "structure" / "repeats.parquet")
    figure = structure.draw(heads, repeats, run)
    named = [{t.get_text() for t in ax.texts if ":" in t.get_text()} for ax in figure.axes[:3]]
    assert named == [{"0:1", "0:4"}, {"1:6", "1:7"}, {"0:5"}]


def test_training_log_is_read_in_every_format_and_drawn(tmp_path):
    log = pl.DataFrame(
        {
            "step": [0, 50, 80, 100],
            "train_loss": [None, 5.0, None, 4.0],
            "held_out_loss": [7.6, None, 4.6, None],
        }
    )
    log.write_ndjson(tmp_path / "log.jsonl")
    log.write_csv(tmp_path / "log.csv")
    log.write_parquet(tmp_path / "log.parquet")
    for name in training.NAMES:
        figure, read = training.draw(training.read_log(tmp_path / name), "my-model")
        assert read.select(log.columns).equals(log)
        assert "4.60 at the end" in texts(figure)
        plt.close(figure)
    with pytest.raises(ValueError, match=r"expected one of \.jsonl"):
        training.read_log(tmp_path / "log.txt")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.3))
def test_labels_are_spread_within_the_panel_and_keep_their_order(places, gap):
    moved = common.spread(places, gap, 0.0, 1.0)
    gap = min(gap, 1.0 / max(len(places) - 1, 1))
    assert moved.min() >= -1e-9 and moved.max() <= 1 + 1e-9
    assert np.diff(np.sort(moved)).min(initial=1.0) >= gap - 1e-9
    order = np.argsort(places, kind="stable")
    assert (np.diff(moved[order]) > 0).all()


def test_labels_with_room_stay_where_they_are():
    np.testing.assert_allclose(common.spread([0.9, 0.1, 0.5], 0.1, 0.0, 1.0), [0.9, 0.1, 0.5])


def test_scripts_write_both_formats_and_nothing_else(results, tmp_path):
    script = ROOT / "figures" / "susceptibility_over_training.py"
    command = [sys.executable, str(script), "--results", str(results), "--figure", "fig5"]
    done = subprocess.run([*command, "--out", str(tmp_path / "a")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pdf", "a.png"]


def test_a_missing_table_is_one_line_and_leaves_nothing(results, tmp_path):
    script = ROOT / "figures" / "trajectory_pca.py"
    command = [sys.executable, str(script), "--results", str(results), "--figure", "fig6"]
    done = subprocess.run([*command, "--out", str(tmp_path / "a")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "loadings.parquet" in done.stderr
    assert not list(tmp_path.iterdir())
