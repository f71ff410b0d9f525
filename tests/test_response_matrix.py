"""The response matrix: its PCA on planted matrices, and the section on planted results."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from per_token_results import planted
from susceptibilities.categories import CATEGORIES, KINDS, category_table
from susceptibilities.claims import load_declared, load_measured, load_published
from susceptibilities.findings import SENSITIVITY_SCHEMA
from susceptibilities.jackknife import pseudo_values
from susceptibilities.per_token import folder_of, load_per_token
from susceptibilities.response_matrix import (
    match,
    measure_pca,
    one_vector,
    part_shares,
    response_of,
    response_pca,
    uniformity,
)
from susceptibilities.store import read_json, write_json

ROOT = Path(__file__).parents[1]
SECTION = ROOT / "experiments" / "arditi2026" / "response_matrix"
FOLDER = "arditi2026/response_matrix"
sys.path[:0] = [str(SECTION), str(ROOT / "figures")]

import matplotlib.pyplot as plt  # noqa: E402

import common  # noqa: E402


def load(path: Path, name: str) -> ModuleType:
    """A script as a module; figures and sections have scripts of one name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tables_script = load(SECTION / "response_matrix.py", "response_matrix")
claims_script = load(SECTION / "response_claims.py", "response_claims")
page_script = load(SECTION / "what_chi_is_made_of.py", "what_chi_is_made_of")
figures_script = load(ROOT / "figures" / "response_matrix.py", "response_matrix_figures")

import induction  # noqa: E402
import meaning  # noqa: E402
import response_reliability  # noqa: E402
from response_ends import enrichment, tail_masks  # noqa: E402
from response_reliability import (  # noqa: E402
    chain_reliability,
    spearman_brown,
    times_to,
)

rng = np.random.default_rng(0)


def mixed(heads: int = 6, tokens: int = 400) -> np.ndarray:
    """Correlated columns of different means and sizes, (head, token)."""
    made = rng.normal(size=(heads, heads)) @ rng.normal(size=(heads, tokens))
    return made * rng.uniform(0.1, 5, (heads, 1)) + rng.normal(size=(heads, 1))


def jackknifed(chains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over chains and the replicates without each, of (chain, ...)."""
    return chains.mean(0), np.stack([np.delete(chains, c, 0).mean(0) for c in range(len(chains))])


@pytest.mark.parametrize("standardize", [True, False])
def test_pca_is_that_of_scikit_learn(standardize):
    values = mixed()
    rows = StandardScaler().fit_transform(values.T) if standardize else values.T
    theirs = PCA().fit(rows)
    ours = response_pca(values, standardize)
    np.testing.assert_allclose(ours.share, theirs.explained_variance_ratio_, rtol=1e-9)
    overlap = np.abs(np.sum(ours.loadings.T * theirs.components_, axis=1))
    np.testing.assert_allclose(overlap, 1.0, rtol=1e-9)
    scores = ours.scores(values)
    np.testing.assert_allclose(scores.var(0, ddof=1), ours.variance, rtol=1e-9)
    if not standardize:
        np.testing.assert_allclose(np.abs(scores), np.abs(theirs.transform(rows)), atol=1e-8)


def test_what_cannot_be_analyzed_is_refused():
    with pytest.raises(ValueError, match="at least 2 of them, found 1"):
        response_pca(np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"columns \[1\] are constant"):
        response_pca(np.array([[1.0, 2.0, 4.0], [5.0, 5.0, 5.0]]))
    with pytest.raises(ValueError, match="1 values are not finite"):
        response_pca(np.array([[1.0, np.nan], [1.0, 2.0]]))


def test_an_outer_product_is_a_uniform_mode_with_all_the_variance():
    rank_one = np.outer(rng.uniform(0.1, 9, 5), rng.normal(size=300))
    pca = response_pca(rank_one)
    assert pca.share[0] == pytest.approx(1.0, abs=1e-12)
    assert uniformity(pca) == (pytest.approx(1.0), pytest.approx(1 / np.sqrt(5)))
    # Only centered, it has all the variance too, with loadings of one sign.
    centered = response_pca(rank_one, standardize=False)
    assert centered.share[0] == pytest.approx(1.0, abs=1e-12)
    assert uniformity(centered)[1] > 0


def test_parts_of_the_variance_add_to_one_and_bound_the_share():
    rank_one = np.outer(rng.uniform(0.5, 2, 6), 3 * rng.normal(size=400))
    rest = mixed()
    whole = rank_one + rest
    pca = response_pca(whole)
    total = part_shares(pca, whole, rank_one) + part_shares(pca, whole, rest)
    np.testing.assert_allclose(total, 1.0, atol=1e-12)
    along, cosine, correlation = one_vector(pca, whole, rank_one)
    assert 0 < along <= pca.share[0] + 1e-12
    assert 0 < cosine <= 1 and 0 < correlation <= 1
    alone = response_pca(rank_one)
    np.testing.assert_allclose(one_vector(alone, rank_one, rank_one), 1.0, atol=1e-9)


def test_components_that_swap_or_flip_are_matched():
    pca = response_pca(mixed())
    shuffled = pca.select([2, 0, 1, 3, 5, 4], np.array([1.0, -1, 1, -1, 1, -1]))
    np.testing.assert_allclose(match(shuffled, pca).loadings, pca.loadings)


def noisy(signal: np.ndarray, noise: float, chains: int = 6) -> tuple[np.ndarray, np.ndarray]:
    return jackknifed(signal + noise * rng.normal(size=(chains, *signal.shape)))


def test_errors_cover_and_equal_variances_are_not_identified():
    directions = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    tokens = rng.normal(size=(4, 3000)) * np.array([[5.0], [2.0], [1.0], [1.0]])
    signal = directions @ tokens
    blocks = np.arange(3000) % 10
    found = measure_pca(*noisy(signal, 0.3), blocks, standardize=False)
    assert found.identified.tolist() == [True, True, False, False]
    shares = np.array([25.0, 4.0, 1.0, 1.0])
    # Noise adds its own variance to every component.
    shares += 0.3**2 / 6
    deviation = (found.pca.share - shares / shares.sum()) / found.share_se
    assert np.abs(deviation[:2]).max() < 4
    assert np.all(found.share_se[:2] < 0.02)
    near = np.abs(found.pca.loadings[:, 0]) - np.abs(directions[:, 0])
    assert np.all(np.abs(near) < 5 * found.loadings_se[:, 0] + 1e-3)


def test_tails_and_enrichment_by_hand():
    scores = np.array([3.0, 1.0, 2.0, 0.0, 30.0, 10.0, 20.0, 0.5])
    probes = np.array(["a"] * 4 + ["b"] * 4)
    low, high = tail_masks(scores, probes, within=False, share=0.25)
    assert np.flatnonzero(low).tolist() == [3, 7]
    assert np.flatnonzero(high).tolist() == [4, 6]
    low, high = tail_masks(scores, probes, within=True, share=0.25)
    assert np.flatnonzero(low).tolist() == [3, 7]
    assert np.flatnonzero(high).tolist() == [0, 4]
    categories = np.array([[True] * 4 + [False] * 4, [False] * 8])
    tail = np.array([True, True, False, False, True, False, False, False])
    expected = np.log2([(2.5 / 4) / (4.5 / 9), (0.5 / 4) / (0.5 / 9)])
    np.testing.assert_allclose(enrichment(tail, categories), expected)


def test_reliability_of_one_chain_and_its_extrapolation():
    signal, noise = rng.normal(size=(2, 8000)), 2.0
    chains = signal + noise * rng.normal(size=(6, 2, 8000))
    value, replicates = jackknifed(chains)
    single = pseudo_values(value, replicates)
    np.testing.assert_allclose(single, chains, atol=1e-9)
    found, errors = chain_reliability(single, np.arange(8000) % 10)
    true = 1 / (1 + noise**2)
    assert np.all(np.abs(found - true) < 4 * errors) and np.all(errors < 0.02)
    assert found[2] == pytest.approx(found[:2].mean())
    pair = np.corrcoef(chains[:3].mean(0)[0], chains[3:].mean(0)[0])[0, 1]
    assert spearman_brown(true, 3) == pytest.approx(pair, abs=0.03)
    assert spearman_brown(true, times_to(0.5, true)) == pytest.approx(0.5)
    assert times_to(0.5, true) == pytest.approx(noise**2)
    assert times_to(0.5, 0.0) == times_to(0.5, -0.1) == float("inf")


@pytest.mark.parametrize(
    ("one", "low", "high", "words"),
    [
        (0.2, 0.1, 0.3, r"0\.5 at 32 draws \(95 %: 19 to 72\)"),
        (0.6, 0.5, 0.7, "above 0.5 with one chain of 8 draws"),
        (0.001, -0.01, 0.012, "no clear signal; 0.5 at over 660 draws$"),
        (-0.1, -0.2, -0.05, "no clear signal$"),
    ],
)
def test_reliability_in_words(one, low, high, words):
    ends = {"draws": one, "draws_low": high, "draws_high": low}
    found = {name: 8 * times_to(0.5, r) for name, r in ends.items()}
    text = response_reliability.statement({"one_chain": one, "chain_draws": 8.0, **found})
    assert re.match(words, text)


def test_matched_differences_by_hand():
    values = np.array([1.0, 3.0, 10.0, 0.0, 4.0, 7.0])
    chosen = np.array([True, True, True, False, False, False])
    others = ~chosen
    # Stratum 0: (1 + 3) / 2 - 0, twice; stratum 1: 10 - 4; stratum 2 has no chosen token.
    strata = np.array([0, 0, 1, 0, 1, 2])
    found = induction.matched_difference(values, chosen, others, strata)
    assert found == pytest.approx((2 * 2.0 + 1 * 6.0) / 3)
    alone = induction.matched_difference(values, chosen, others, np.arange(6))
    assert np.isnan(alone)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planted(tmp_path_factory.mktemp("planted") / "mini", contexts=12)
    config = read_json(folder / "config.json")
    config |= {"scale": "mini", "corpus": {"kind": "packages", "name": "packages"}}
    config["two_layer"] |= {"model": {"kind": "folder"}, "sampler": {"n_beta": 30.0}}
    write_json(folder / "config.json", config)
    rises = {"full": 60.0, "0:0": 4.0, "1:0": 1.0}
    pl.DataFrame(
        {
            "step": [1] * len(rises),
            "component": list(rises),
            "llc": list(rises.values()),
            "se": [0.1] * len(rises),
        }
    ).write_parquet(folder / page_script.SECTION_41 / "llc.parquet")
    for module in (tables_script, claims_script):
        run_main(module, "--results", str(folder))
    return folder


def run_main(module: ModuleType, *arguments: str) -> None:
    before = sys.argv
    sys.argv = ["script", *arguments]
    try:
        module.main()
    finally:
        sys.argv = before


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def table(results: Path, name: str, **values: object) -> pl.DataFrame:
    found = pl.read_parquet(results / FOLDER / f"{name}.parquet")
    return found.filter(*(pl.col(column) == value for column, value in values.items()))


def test_heads_are_in_order_and_the_control_probe_is_left_out(results):
    data = load_per_token(results)
    order = np.random.default_rng(1).permutation(len(data.components))
    shuffled = replace(
        data,
        components=tuple(data.components[i] for i in order),
        value={form: v[order] for form, v in data.value.items()},
        replicates={form: r[:, order] for form, r in data.replicates.items()},
    )
    one, other = response_of(data), response_of(shuffled)
    assert one.heads == other.heads == tuple(f"{n}:{h}" for n in range(2) for h in range(8))
    np.testing.assert_array_equal(one.value["chi"], other.value["chi"])
    assert "mixture" not in one.probes
    assert "mixture" in response_of(data, control_probe=True).probes
    np.testing.assert_allclose(one.value["remainder"], one.value["chi"] - one.value["rank_one"])
    assert one.layer(1).heads == tuple(f"1:{h}" for h in range(8))


def test_categories_are_aligned_with_the_tokens(results):
    data = load_per_token(results)
    found = category_table(data, results)
    assert found.columns == ["index", *CATEGORIES, "category"]
    assert found["index"].equals(data.tokens["index"])
    assert set(found["category"]) <= set(KINDS)
    both = data.tokens.with_columns(found["category"], found["right_bracket"])
    assert both.filter(pl.col("text") == ")")["right_bracket"].all()
    assert set(both.filter(pl.col("text") == " the")["category"]) == {"word_start"}
    wrong = replace(data, tokens=data.tokens.with_columns(token=pl.col("token") + 1))
    with pytest.raises(ValueError, match="are not those of the per-token susceptibilities"):
        category_table(wrong, results)


def test_planted_parts_are_found(results):
    first = {"scope": "all heads", "scaling": "standardized", "pc": 1}
    share = {
        (source, form): table(results, "variance", source=source, form=form, **first)[
            "share"
        ].item()
        for source in ("run", "control")
        for form in ("chi", "rank_one", "remainder")
    }
    assert share["run", "rank_one"] == pytest.approx(1.0, abs=1e-9)
    assert share["control", "chi"] > share["run", "chi"] > 0.8
    assert share["run", "remainder"] < 0.5 and share["control", "remainder"] < 0.1
    made = table(results, "made_of", source="run", part="rank_one", **first).row(0, named=True)
    assert made["low"] > 0.9
    total = (
        table(results, "made_of", source="run")
        .group_by("scope", "scaling", "pc")
        .agg(pl.col("value").sum())
    )
    np.testing.assert_allclose(total["value"], 1.0, atol=1e-9)
    # The planted mean shift sets multigram heads against induction heads.
    role = table(results, "by_role", source="run", form="remainder", layer=1, **first)
    means = dict(zip(role["role"], role["value"], strict=True))
    assert means["multigram"] > 0.3 > means["induction"]
    grown = table(results, "half", source="run", form="covariance")
    assert all("no clear signal" in text for text in grown["statement"])


def test_claims_have_the_planted_answers(results):
    measured = read_json(results / FOLDER / "measured.json")
    pooled = measured["baker2025v2.pca_pooled"]
    assert pooled == measured["arditi2026.pca"]
    assert pooled["carried_by"].startswith("rank-one (9")
    assert len(pooled["value"]) == len(pooled["se"]) == 3
    sign = measured["arditi2026.induction_sign"]
    assert sign["holds"] is True and sign["carried_by"] == "mean shift"
    assert "Caution: the n_beta = 0 control" not in sign["note"]
    meant = measured["arditi2026.pc_meaning"]
    assert meant["holds"] is not True
    assert "PC2: mean shift (its PC1)" in meant["carried_by"]
    rows = table(results, "sensitivity")
    assert dict(rows.schema) == SENSITIVITY_SCHEMA
    turned = rows.filter(
        (pl.col("claim") == "arditi2026.induction_sign") & (pl.col("convention") == "sign=plus")
    )
    assert turned["holds"].item() == "fails"
    assert claims_script.CENTERED in set(rows["convention"])


def test_measured_files_satisfy_the_comparison(results):
    published = load_published(ROOT / "published")
    declared = load_declared(ROOT / "experiments", published)
    measured = load_measured(results, published, declared)
    assert set(measured) >= set(declared[FOLDER])


def plan(results: Path, roles: dict[str, str]) -> meaning.Meaning:
    """A meaning whose words and code lie where they should on the first and third component."""
    response = response_of(load_per_token(results))
    tokens = response.value["chi"].shape[1]
    local = np.random.default_rng(3)
    first, second, third = local.normal(size=(3, tokens)) * np.array([[9.0], [3.0], [2.0]])
    heads = len(response.heads)
    multigram = [i for i, h in enumerate(response.heads) if roles[h] == "multigram"]
    circuit = [i for i in range(heads) if i not in multigram]
    one, other = (response.heads.index(h) for h in ("1:6", "1:7"))
    split = np.zeros(heads)
    split[multigram], split[circuit] = -1.0, 1.0
    apart = np.zeros(heads)
    apart[one], apart[other] = 1.0, -1.0
    signal = first + np.outer(split, second) + np.outer(apart, third)
    signal = signal + local.normal(size=signal.shape)
    chains = signal + 0.1 * local.normal(size=(6, *signal.shape))
    value, replicates = jackknifed(chains)
    probes = np.where(third > 0, "code", "text")
    planted_response = replace(
        response, value={"chi": value}, replicates={"chi": replicates}, probes=probes
    )
    domains = {"code": {"stands_in_for": "github"}, "text": {"stands_in_for": "wikipedia_en"}}
    ends = first > np.quantile(first, 0.9)
    starts = first < np.quantile(first, 0.1)
    return meaning.Meaning.of(planted_response, roles, ends, starts, domains)


def roles(**changed: str) -> dict[str, str]:
    found = {f"{n}:{h}": "multigram" for n in range(2) for h in range(8)}
    found |= {"0:2": "previous-token", "1:6": "induction", "1:7": "induction"}
    return found | {name.replace("h", "").replace("_", ":"): role for name, role in changed.items()}


def test_the_meaning_of_the_components_holds_where_it_is_planted(results):
    planned = plan(results, roles())
    done = meaning.results(planned, "chi")
    found = meaning.finding(planned, done)
    assert found.holds is True and found.met is True, found.note
    assert meaning.carriers(planned, {"mean_shift": done}) == (
        "PC1: mean shift; PC2: mean shift; PC3: mean shift"
    )
    # The sign of chi decides which end words lie at; heads stay as they are.
    turned = meaning.finding(planned, meaning.results(planned, "chi", -1.0))
    assert turned.holds is False


def test_one_induction_head_leaves_the_third_component_undecided(results):
    # The heads' signal is that of two induction heads; the model is said to have one.
    planned = plan(results, roles(h1_7="multigram"))
    found = meaning.finding(planned, meaning.results(planned, "chi"))
    assert found.holds is not True
    assert "needs two induction heads, this model has 1" in found.note


def test_words_at_the_wrong_ends_fail(results):
    planned = plan(results, roles())
    wrong = replace(planned, word_end=planned.word_start, word_start=planned.word_end)
    assert meaning.finding(wrong, meaning.results(wrong, "chi")).holds is False


def test_without_control_or_induction_head_everything_still_builds(results, tmp_path):
    copy = tmp_path / "mini"
    shutil.copytree(results, copy)
    step = load_per_token(copy).step
    shutil.rmtree(folder_of(copy, step, control=True))
    heads = pl.read_parquet(copy / "structure" / "heads.parquet")
    heads.with_columns(role=pl.lit("multigram")).write_parquet(copy / "structure" / "heads.parquet")
    for module in (tables_script, claims_script):
        run_main(module, "--results", str(copy))
    measured = read_json(copy / FOLDER / "measured.json")
    assert measured["arditi2026.induction_sign"] == {
        "n": 0,
        "note": "Not tested: the model has no induction head.",
    }
    assert "the model has no previous-token or induction head" in str(measured)
    drawn = figures_script.load_tables(copy)
    for draw in figures_script.FIGURES.values():
        draw(drawn, common.load_run(copy))
    page = page_of(copy)
    assert "This model has no induction head" in page
    assert "n_beta = 0 control" not in page.split("</style>")[1]


def page_of(results: Path, **changed: object) -> str:
    shown = page_script.views(results, ROOT / "published")
    return page_script.render(
        {**shown, **changed}, dict.fromkeys(page_script.FIGURES, "data:image/png;base64,")
    )


def test_the_page_says_what_the_tables_say(results):
    page = page_of(results)
    facts = page_script.views(results, ROOT / "published")["facts"]
    assert facts["made_side"] == "above" and "PC1 is the rank-one part." in page
    assert facts["share"] in page and facts["control_share"] in page
    assert "its rank-one part is not clearly either, its mean shift lower" in page
    assert "arditi2026.induction_sign" in page
    # Turned round, the sentence turns.
    other = page_of(results, facts={**facts, "made_side": "below"})
    assert "PC1 is mostly something else." in other


def test_the_page_escapes_and_loads_nothing(results, tmp_path):
    copy = tmp_path / "mini"
    shutil.copytree(results, copy)
    ends = pl.read_parquet(copy / FOLDER / "ends.parquet")
    ends.with_columns(text=pl.lit("<script>alert('x')</script>\u202e")).write_parquet(
        copy / FOLDER / "ends.parquet"
    )
    page = page_of(copy)
    assert "<script" not in page and "&lt;script&gt;" in page and "\u202e" not in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)


def test_no_measured_number_is_typed_into_the_page():
    text = (SECTION / page_script.TEMPLATE).read_text(encoding="utf-8")
    words = re.sub(r"<style>.*?</style>|{[{%].*?[}%]}", "", text, flags=re.DOTALL)
    decimals = set(re.findall(r"\d+\.\d+", words))
    # Numbers of sections and definitions in the papers.
    assert decimals <= {"3.1", "3.2", "3.3", "4.1", "4.2"}


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(plt.Text) if t.get_text())


def test_figures_draw_the_tables(results):
    drawn = figures_script.load_tables(results)
    run = common.load_run(results)
    figure, variance = figures_script.draw_pca(drawn, run)
    shares = variance.filter(
        (pl.col("source") == "run") & (pl.col("scope") == "all heads") & (pl.col("form") == "chi")
    )["share"].to_numpy()
    lines = [np.asarray(line.get_ydata()) for line in figure.axes[0].get_lines()]
    assert any(len(y) == len(shares) and np.allclose(y, shares) for y in lines)
    figure, _ = figures_script.draw_reliability(drawn, run)
    for statement in table(results, "half", source="run", form="mean_shift")["statement"]:
        assert statement in texts(figure)
    figure, _ = figures_script.draw_categories(drawn, run)
    assert "induction pattern" in texts(figure) and "top 5 %" in texts(figure)
    figure, made = figures_script.draw_parts(drawn, run)
    widths = [patch.get_width() for patch in figure.axes[1].patches]
    assert sorted(widths) == pytest.approx(sorted(made["value"].to_list()))
