"""Joint trajectory PCA: closed forms, an independent implementation, invariances, errors."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from susceptibilities.cubes import CONTROL_PROBE, FORMS, Axes, full_cube, long, replicate_cubes
from susceptibilities.pca import jackknife_pca, joint_pca, match, orient, part_shares
from susceptibilities.trajectories import Roles, analyse
from synthetic_results import HEADS, ROLES, STEPS, long_tables

seeds = st.integers(0, 10_000)


def random_cube(seed: int, probes: int = 4, steps: int = 6, heads: int = 5) -> np.ndarray:
    """Values with clearly different variances along random directions."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(probes, steps, heads)) * 3.0 ** -np.arange(heads)
    return scores @ np.linalg.qr(rng.normal(size=(heads, heads)))[0]


def test_equals_scikit_learn():
    values = random_cube(0)
    rows = StandardScaler().fit_transform(values.reshape(24, 5))
    reference = PCA().fit(rows)
    found = joint_pca(values)
    np.testing.assert_allclose(found.share, reference.explained_variance_ratio_, rtol=1e-10)
    signs = np.sign((found.loadings * reference.components_.T).sum(0))
    np.testing.assert_allclose(found.loadings, reference.components_.T * signs, atol=1e-10)
    scores = reference.transform(rows) * signs
    np.testing.assert_allclose(found.scores.reshape(24, 5), scores, atol=1e-10)


def test_planted_rank_one_is_a_uniform_mode():
    rng = np.random.default_rng(0)
    pattern, sizes = rng.normal(size=(4, 6)), np.array([0.1, 2.0, 30.0])
    found = joint_pca(pattern[..., None] * sizes)
    assert found.share[0] == pytest.approx(1.0)
    # Standardization removes the sizes: every head loads the same.
    np.testing.assert_allclose(found.loadings[:, 0], np.full(3, 1 / np.sqrt(3)))
    means = pattern.mean(1) - pattern.mean()
    np.testing.assert_allclose(found.contributions[:, 0], means / np.linalg.norm(means))


def test_planted_pair_of_correlated_heads():
    # Correlation r between two columns: variances 1 + r and 1 - r of 2.
    rng = np.random.default_rng(0)
    a, b = StandardScaler().fit_transform(np.linalg.qr(rng.normal(size=(40, 2)))[0]).T
    b = b - a * (a @ b) / (a @ a)
    b = b / b.std()
    r = 0.6
    found = joint_pca(np.column_stack([a, r * a + np.sqrt(1 - r * r) * b]).reshape(4, 10, 2))
    np.testing.assert_allclose(found.share, [(1 + r) / 2, (1 - r) / 2])
    np.testing.assert_allclose(found.loadings[:, 0], np.full(2, np.sqrt(0.5)))


@settings(deadline=None)
@given(seeds)
def test_invariances(seed: int):
    rng = np.random.default_rng(seed)
    values = random_cube(seed)
    found = joint_pca(values)
    assert np.all(np.diff(found.singular_values) <= 1e-12)
    np.testing.assert_allclose(found.loadings.T @ found.loadings, np.eye(5), atol=1e-10)
    np.testing.assert_allclose(found.share.sum(), 1.0)
    np.testing.assert_allclose(np.linalg.norm(found.contributions, axis=0), np.ones(5))
    rebuilt = found.scores @ found.loadings.T * found.scale + found.mean
    np.testing.assert_allclose(rebuilt, values, atol=1e-9)
    # Each column's unit and origin are without effect.
    moved = joint_pca(values * rng.uniform(0.1, 10, 5) + rng.normal(size=5))
    np.testing.assert_allclose(moved.scores, found.scores, atol=1e-7)
    # So is the order of probes, steps and heads.
    probes, steps, heads = rng.permutation(4), rng.permutation(6), rng.permutation(5)
    shuffled = joint_pca(values[probes][:, steps][..., heads])
    np.testing.assert_allclose(shuffled.scores, found.scores[probes][:, steps], atol=1e-7)
    np.testing.assert_allclose(shuffled.loadings, found.loadings[heads], atol=1e-7)


@settings(deadline=None)
@given(seeds)
def test_matching_undoes_any_order_and_signs(seed: int):
    rng = np.random.default_rng(seed)
    found = joint_pca(random_cube(seed))
    turned = found.select(rng.permutation(5), rng.choice([-1.0, 1.0], 5))
    back = match(turned, found)
    np.testing.assert_allclose(back.loadings, found.loadings, atol=1e-12)
    np.testing.assert_allclose(back.scores, found.scores, atol=1e-12)


@settings(deadline=None)
@given(seeds, st.sampled_from([-1, 1]))
def test_orientation_follows_the_anchor(seed: int, sign: int):
    found = joint_pca(random_cube(seed))
    assume(abs(found.loadings[[0, 2], 1].mean()) > 1e-6)
    turned = orient(found, {1: ([0, 2], sign), 3: ([], 1), 99: ([0], 1)})
    assert sign * turned.loadings[[0, 2], 1].mean() > 0
    np.testing.assert_array_equal(turned.loadings[:, 3], found.loadings[:, 3])


@settings(deadline=None)
@given(seeds)
def test_shares_of_the_parts_add_up(seed: int):
    parts = [random_cube(seed), 0.3 * random_cube(seed + 1), random_cube(seed + 2)]
    found = joint_pca(sum(parts))
    total = sum(part_shares(found, part) for part in parts)
    np.testing.assert_allclose(total, np.ones(5), atol=1e-8)
    np.testing.assert_allclose(part_shares(found, sum(parts)), np.ones(5), atol=1e-8)


def test_bad_input_is_named():
    values = random_cube(0)
    with pytest.raises(ValueError, match="at least 2 rows"):
        joint_pca(values[:1, :1])
    with pytest.raises(ValueError, match=r"columns \[2\] are constant"):
        joint_pca(np.where(np.arange(5) == 2, 0.1, values))
    with pytest.raises(ValueError, match="1 values are not finite"):
        joint_pca(np.where(np.arange(120).reshape(4, 6, 5) == 7, np.nan, values))
    with pytest.raises(ValueError, match="expected \\(chains"):
        jackknife_pca(values, np.stack([values[:2]] * 3))


def chains_of(values: np.ndarray, count: int, noise: float, rng: np.random.Generator):
    """Mean over noisy chains, and the means with each left out."""
    chains = values + noise * np.sqrt(count) * rng.normal(size=(count, *values.shape))
    return chains.mean(0), (chains.sum(0) - chains) / (count - 1)


def test_standard_errors_are_right():
    """Predicted errors of loadings, shares and scores against their scatter over runs."""
    truth = random_cube(3)
    rng = np.random.default_rng(0)
    found = [jackknife_pca(*chains_of(truth, 8, 0.01, rng)) for _ in range(200)]
    reference = joint_pca(truth)
    for name, error in (("loadings", "loadings_se"), ("scores", "scores_se")):
        values = np.stack([getattr(match(f.pca, reference), name) for f in found])[..., :2]
        predicted = np.stack([getattr(f, error) for f in found])[..., :2]
        ratio = np.sqrt((predicted**2).mean(0)) / values.std(0)
        assert np.median(ratio) == pytest.approx(1.0, abs=0.15), name
    shares = np.stack([f.pca.share for f in found])[:, :2]
    predicted = np.stack([f.share_se for f in found])[:, :2]
    ratio = np.sqrt((predicted**2).mean(0)) / shares.std(0)
    assert np.median(ratio) == pytest.approx(1.0, abs=0.2)


def test_near_equal_components_are_flagged_and_distinct_ones_are_not():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(30, 4))
    white = np.linalg.qr(scores - scores.mean(0))[0] * np.sqrt(30)
    # With these directions every column has variance 1, so these are the PCA's own eigenvalues.
    signs = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    values = (white * np.sqrt([2.4, 0.75, 0.75, 0.1]) @ signs.T / 2).reshape(5, 6, 4)
    noise = 0.05
    found = jackknife_pca(*chains_of(values, 6, noise, rng))
    assert found.identified.tolist() == [True, False, False, True]


def test_replicates_take_their_signs_from_the_reference():
    values, replicates = chains_of(random_cube(1), 4, 0.01, np.random.default_rng(0))
    found = jackknife_pca(values, replicates, {0: ([0], -1)})
    assert found.pca.loadings[0, 0] < 0
    for replicate in found.replicates:
        assert (replicate.loadings * found.pca.loadings).sum(0).min() > 0.9


# ---- from tables -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    return long_tables(chains=4, noise=0.1, seed=0)


def test_the_control_probe_and_the_full_model_stay_out(tables):
    table, replicates = tables
    full = table.filter(pl.col("component") == "0:0").with_columns(component=pl.lit("full"))
    axes = Axes.of(pl.concat([table, full.with_columns(value=pl.lit(1e9))]))
    assert CONTROL_PROBE in table["probe"]
    assert CONTROL_PROBE not in axes.probes
    assert axes.heads == tuple(HEADS)
    assert axes.steps == tuple(STEPS)
    found = analyse(pl.concat([table, full]), replicates, ROLES, "chi")
    expected = joint_pca(full_cube(table, axes, "chi"))
    np.testing.assert_allclose(found.found.pca.share, expected.share)


def test_cube_and_long_are_inverse(tables):
    table, _ = tables
    axes = Axes.of(table)
    values = full_cube(table, axes, "chi")
    labels = [("probe", axes.probes), ("step", axes.steps), ("component", axes.heads)]
    again = long(labels, value=values).with_columns(form=pl.lit("chi"))
    np.testing.assert_array_equal(
        full_cube(again.sample(fraction=1.0, shuffle=True), axes, "chi"), values
    )


def test_a_gap_in_the_table_is_named(tables):
    table, _ = tables
    gap = (pl.col("step") == 80) & (pl.col("probe") == "python") & (pl.col("component") == "1:3")
    with pytest.raises(ValueError, match="probe python, step 80, head 1:3"):
        full_cube(table.filter(~gap), Axes.of(table), "chi")


def test_a_chain_left_out_as_unhealthy_keeps_the_value_of_all(tables):
    table, replicates = tables
    axes = Axes.of(table)
    values = full_cube(table, axes, "chi")
    gap = (pl.col("replicate") == 2) & (pl.col("component") == "0:3")
    cubes = replicate_cubes(replicates.filter(~gap), axes, "chi", values)
    np.testing.assert_array_equal(cubes[2, :, :, 3], values[:, :, 3])
    assert not np.array_equal(cubes[1, :, :, 3], values[:, :, 3])


def test_planted_patterns_are_found_with_the_papers_signs(tables):
    found = analyse(*tables, ROLES, "chi")
    loadings = found.found.pca.loadings
    roles = found.roles
    assert np.ptp(loadings[:, 0]) < 0.05
    assert loadings[:, 0].mean() > 0
    assert loadings[list(roles.previous), 1].min() > 0.3
    assert loadings[list(roles.multigram), 1].max() < -0.2
    assert loadings[list(roles.induction), 2].max() < -0.4
    assert found.found.identified[:3].all()
    shares = {name: part_shares(found.found.pca, part) for name, part in found.parts.items()}
    assert shares["rank_one"][0] > 0.9
    assert shares["mean_shift"][1] > 0.9


def test_tables_have_the_promised_columns(tables):
    made = analyse(*tables, ROLES, "mean_shift").tables("mean_shift")
    assert made["loadings"].columns == ["form", "component", "pc", "value", "se"]
    assert made["contributions"].columns == ["form", "probe", "pc", "value", "se"]
    assert made["scores"].columns == ["form", "probe", "step", "pc", "value", "se"]
    assert made["variance"].columns[:4] == ["form", "pc", "share", "se"]
    assert made["variance"]["pc"].to_list() == list(range(1, 17))
    assert all((t["form"] == "mean_shift").all() for t in made.values())
    assert set(FORMS) >= {"mean_shift"}


def test_roles_are_read_layer_by_layer():
    roles = Roles.of(HEADS, ROLES | {"1:0": "previous-token", "0:7": "induction"})
    assert roles.previous == (1, 4)
    assert roles.current == (5,)
    assert roles.induction == (14, 15)
    assert roles.multigram == (9, 10, 11, 12, 13)
    assert roles.others(roles.induction) == (8, 9, 10, 11, 12, 13)
