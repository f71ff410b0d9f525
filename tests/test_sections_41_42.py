"""Claims of sections 4.1 and 4.2 on invented results whose answers are known."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from susceptibilities.claims import Measured, load_declared, load_measured, load_published
from susceptibilities.subsets import place_of
from synthetic_results import HEADS, ROLES, STAND_INS, long_tables, write_results

ROOT = Path(__file__).parents[1]
DOMAINS = {name: {"stands_in_for": subset} for name, subset in STAND_INS.items()}


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "experiments" / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


s41 = load("baker2025/s4_1_dataset_susceptibilities/susceptibility_claims.py")
s42 = load("baker2025/s4_2_trajectory_pca/trajectory_pca_claims.py")


@pytest.fixture(scope="module")
def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    return long_tables(chains=4, noise=0.1, seed=0)


def pca_claims(tables, roles=ROLES, domains=DOMAINS, control=None, reliability=0.9):
    control = pl.DataFrame() if control is None else control
    return s42.claims(*tables, control, roles, domains, 30.0, reliability)


def run_of(table: pl.DataFrame, domains=DOMAINS, roles=ROLES):
    return s41.Run(table, pl.DataFrame(), domains, roles, 12, 30.0)


def test_planted_patterns_hold_and_their_part_is_named(tables):
    measured, _ = pca_claims(tables)
    for claim in s42.CLAIMS:
        assert measured[claim]["holds"] is True, claim
        assert "Caution" not in measured[claim]["note"]
    assert measured["baker2025.fig6.pc1_uniform"]["carried_by"] == "rank-one"
    # Without the uniform mode the mean shift has the pattern one component earlier.
    assert measured["baker2025.fig6.pc2_loadings"]["carried_by"] == "mean shift (its PC1)"
    assert "mean shift 0.9" in measured["baker2025.fig6.pc2_loadings"]["note"]
    top = measured["baker2025.fig13.top3"]
    assert top["value"] > 0.98 and 0 < top["se"] < 0.01 and "holds" not in top


def test_noise_decides_nothing_in_its_favor(tables):
    rng = np.random.default_rng(0)

    def noisy(table: pl.DataFrame) -> pl.DataFrame:
        return table.with_columns(value=pl.Series(rng.normal(size=len(table))))

    measured, _ = pca_claims((noisy(tables[0]), noisy(tables[1])), reliability=0.02)
    assert not any(measured[claim]["holds"] for claim in s42.CLAIMS)
    assert "reliability of chi between halves of the chains is 0.02" in str(measured)


def test_without_the_roles_or_domains_a_claim_is_undecided_and_says_why(tables):
    measured, _ = pca_claims(tables, roles=dict.fromkeys(HEADS, "multigram"), domains={})
    for claim, why in (
        ("baker2025.fig6.pc2_loadings", "needs a previous-token head"),
        ("baker2025.fig6.pc3_loadings", "needs an induction head"),
        ("baker2025.fig12.pc2_datasets", "no domain named wikipedia_en"),
    ):
        assert measured[claim]["holds"] is None
        assert measured[claim]["value"] is None
        assert why in measured[claim]["note"]


def test_heads_of_other_roles_do_not_pass_for_the_papers(tables):
    wrong = dict.fromkeys(HEADS, "multigram") | {"0:2": "previous-token", "1:1": "induction"}
    measured, _ = pca_claims(tables, roles=wrong)
    assert not measured["baker2025.fig6.pc2_loadings"]["holds"]
    assert not measured["baker2025.fig6.pc3_loadings"]["holds"]


def test_a_control_with_the_same_pattern_is_reported(tables):
    measured, _ = pca_claims(tables, control=tables[0])
    assert "n_beta = 0 control" in measured["baker2025.fig6.pc1_uniform"]["note"]


def test_flipping_the_sign_flips_datasets_and_not_heads(tables):
    _, rows = pca_claims(tables)
    found = {(r["claim"], r["convention"]): r for r in rows}
    assert found["baker2025.fig6.pc2_loadings", "sign=plus"]["holds"] == "holds"
    assert found["baker2025.fig12.pc2_datasets", "sign=plus"]["holds"] == "fails"
    for claim in s42.CLAIMS:
        assert found[claim, "scale=n_beta"]["holds"] == "holds"


def with_signs(table: pl.DataFrame, code: list[float], law: list[float]) -> pl.DataFrame:
    """chi of python and speeches at the last step, head by head, with small errors."""
    last = int(table["step"].max())
    chosen = (pl.col("step") == last) & (pl.col("form") == "chi")
    for probe, values in (("python", code), ("speeches", law)):
        for head, value in zip(HEADS, values, strict=True):
            cell = chosen & (pl.col("probe") == probe) & (pl.col("component") == head)
            table = table.with_columns(
                value=pl.when(cell).then(pl.lit(value)).otherwise("value"),
                se=pl.when(cell).then(pl.lit(0.01)).otherwise("se"),
            )
    return table


@pytest.mark.parametrize(
    ("positive", "exception", "holds"),
    [(15, -1.0, True), (15, 1.0, None), (4, -1.0, False), (15, 0.005, None)],
)
def test_signs_of_section_41(tables, positive, exception, holds):
    code = [1.0 if i < positive else -1.0 for i in range(16)]
    code[1] = exception
    code[4] = 0.001  # the other previous-token head: within its error of zero
    found = s41.signs_claim(run_of(with_signs(tables[0], code, [1.0] * 16)), *args(tables, code))
    assert found.holds is holds


def args(tables, code):
    return with_signs(tables[0], code, [1.0] * 16), "chi", 1.0, int(tables[0]["step"].max())


def test_hackernews_is_tested_where_there_is_such_a_domain(tables):
    table = with_signs(tables[0], [-1.0] * 16, [1.0] * 16)
    last = int(table["step"].max())
    assert s41.hackernews_claim(run_of(table), table, "chi", 1.0, last).holds is None
    domains = {**DOMAINS, "python": {"stands_in_for": "hackernews"}}
    found = s41.hackernews_claim(run_of(table, domains), table, "chi", 1.0, last)
    assert found.holds is True and found.value == 1.0
    table = with_signs(tables[0], [-1.0] * 15 + [1.0], [1.0] * 16)
    assert s41.hackernews_claim(run_of(table, domains), table, "chi", 1.0, last).holds is False


def test_control_probe_is_zero_only_if_the_run_could_have_shown_otherwise(tables):
    table = tables[0]
    assert s41.zero_claim(run_of(table), table, "chi", 1.0).holds is True
    control = pl.col("probe") == "mixture"
    shifted = table.with_columns(value=pl.when(control).then(0.05).otherwise("value"))
    assert s41.zero_claim(run_of(shifted), shifted, "chi", 1.0).holds is False
    noisy = table.with_columns(pl.col("se", "se_chain", "se_data") * 1000)
    assert s41.zero_claim(run_of(noisy), noisy, "chi", 1.0).holds is None


def test_p_values_are_uniform_for_a_true_zero():
    rng = np.random.default_rng(0)
    chains = rng.normal(size=(4000, 4))
    data = rng.normal(size=(4000, 12))
    se_chain = chains.std(1, ddof=1) / 2
    se_data = data.std(1, ddof=1) / np.sqrt(12)
    rows = pl.DataFrame(
        {
            "value": chains.mean(1) + data.mean(1),
            "se": np.hypot(se_chain, se_data),
            "se_chain": se_chain,
            "se_data": se_data,
            "n_chains": np.full(4000, 4),
        }
    )
    p = s41.p_values(rows, 12)
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.02)


def test_exact_claims():
    base = np.random.default_rng(0).integers(0, 99, (120, 16)).astype(np.uint16)
    assert s41.identity_claim(base, 0.1)["holds"] is True
    found = s41.lemma1_claim()
    assert found["holds"] is True and found["value"] < 1e-8


def test_the_domain_itself_goes_before_a_stand_in():
    domains = {"python": {"stands_in_for": "github"}, "github": {}}
    place = place_of("github", domains)
    assert place is not None and place.probe == "github" and not place.is_stand_in
    assert str(place_of("github", {"python": domains["python"]})) == "python (for github)"
    assert place_of("arxiv", domains) is None
    # The paper's second code set has the first in its place, unless there is a nearer one.
    assert str(place_of("github-all", {"github": {}})) == "github (for github-all)"
    assert str(place_of("github-all", {"github": {}, "github-all": {}})) == "github-all"
    assert place_of("github-all", {"arxiv": {}}) is None


def test_measured_files_satisfy_the_comparison(tmp_path, monkeypatch):
    results = write_results(tmp_path / "mini")
    for module in (s41, s42):
        monkeypatch.setattr("sys.argv", ["script", "--results", str(results)])
        module.main()
    published = load_published(ROOT / "published")
    declared = load_declared(ROOT / "experiments", published)
    measured = load_measured(results, published, declared)
    expected = {
        c
        for folder in declared
        if "/s4_1_" in folder or "/s4_2_" in folder
        for c in declared[folder]
    }
    assert set(measured) == expected
    assert all(isinstance(entry, Measured) for entry in measured.values())
    for section in ("s4_1_dataset_susceptibilities", "s4_2_trajectory_pca"):
        rows = pl.read_parquet(results / "baker2025" / section / "sensitivity.parquet")
        assert rows.columns == ["claim", "convention", "value", "se", "holds"]
        assert set(rows["claim"]) <= expected
