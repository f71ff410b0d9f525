"""Signal and noise of a matrix by column and by principal component; post-processed matrices."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from planted_shards import COMPONENTS, planted_moments
from susceptibilities.column_moments import ColumnMoments
from susceptibilities.estimators import FORMS
from susceptibilities.grouped import Grouped
from susceptibilities.matrix import MATRIX, RowWriter, SusceptibilityMatrix, matrix_arrays
from susceptibilities.matrix import TOKENS as TABLE
from susceptibilities.matrix_moments import column_groups, version_groups
from susceptibilities.matrix_spectrum import uniform_mode
from susceptibilities.processed import ProcessedMatrix, process
from susceptibilities.reliability import agreement, spearman_brown
from susceptibilities.split_half import split_half
from susceptibilities.token_errors import context_blocks
from susceptibilities.version_moments import VersionMoments, shares_of_parts
from susceptibilities.whitening import PostProcessing, identity, whiten
from test_merge import merged

TOKENS, LENGTH, GROUPS = 4000, 10, 20
GROUP_OF = np.arange(TOKENS) // LENGTH % GROUPS


def versions(noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Signal of variance one in every column, and noise of variance ``noise`` in each half."""
    signal = rng.normal(size=(TOKENS, len(noise)))
    halves = signal + np.sqrt(noise) * rng.normal(size=(2, TOKENS, len(noise)))
    return np.stack([halves.mean(0), *halves])


def grouped(rows: np.ndarray, block: int = 777) -> Grouped[VersionMoments]:
    blocks = np.split(rows, range(block, TOKENS, block), axis=1)
    return Grouped.over(VersionMoments.of, blocks, GROUP_OF)


def test_planted_noise_is_measured_and_intervals_cover() -> None:
    noise = np.array([0.01, 0.3, 1.0, 9.0])
    rng = np.random.default_rng(0)
    inside, reliability = [], []
    for _ in range(100):
        found = split_half(grouped(versions(noise, rng)))
        expected = {"correlation": 1 / (1 + noise), "noise_share": noise / 2 / (1 + noise / 2)}
        for name, truth in expected.items():
            error = getattr(found, f"{name}_se")
            inside.append(np.abs(getattr(found, name) - truth) < 2.093 * error)
        reliability.append((found.reliability, found.ceiling**2))
    np.testing.assert_allclose(np.mean(reliability, 0), [1 / (1 + noise / 2)] * 2, atol=0.01)
    assert 0.91 < np.mean(inside) < 0.98


def test_equals_agreement_of_whole_columns() -> None:
    """`reliability.agreement`, which holds all tokens, is the oracle for value and error."""
    rows = versions(np.array([0.3, 2.0]), np.random.default_rng(1))
    found = split_half(grouped(rows))
    for column in range(2):
        value, se = agreement(rows[1:, :, column], GROUP_OF)
        assert found.correlation[column] == pytest.approx(value, rel=1e-9)
        assert found.correlation_se[column] == pytest.approx(se, rel=1e-9)
    np.testing.assert_allclose(found.reliability, spearman_brown(found.correlation, 2))


def test_a_component_of_noise_alone_is_seen_for_what_it_is() -> None:
    """One factor that all columns share, and noise of their own: PC1 is signal, the rest noise."""
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(TOKENS, 1)) * np.ones(6)
    halves = factor + 0.7 * rng.normal(size=(2, TOKENS, 6))
    rows = np.stack([halves.mean(0), *halves])
    transform = whiten(ColumnMoments.of(rows[0], COMPONENTS[:6]))
    found = split_half(grouped(transform.apply(rows)))
    assert found.noise_share[0] < 0.06 and found.correlation[0] > 0.9
    np.testing.assert_allclose(found.noise_share[1:], 1.0, atol=0.1)
    np.testing.assert_allclose(found.correlation[1:], 0.0, atol=0.1)


def test_shares_of_parts_are_regressions_on_the_whole_and_add_up() -> None:
    rng = np.random.default_rng(3)
    parts = rng.normal(size=(3, TOKENS, 4)) * np.array([1.0, 2.0, 0.1])[:, None, None]
    rows = np.stack([parts.sum(0), *parts])
    share, se = shares_of_parts(grouped(rows))
    np.testing.assert_allclose(share.sum(0), 1.0)
    assert (np.abs(share - np.array([1.0, 4.0, 0.01])[:, None] / 5.01) < 5 * se + 1e-3).all()
    slope = [np.polyfit(rows[0, :, 1], rows[k + 1, :, 1], 1)[0] for k in range(3)]
    np.testing.assert_allclose(share[:, 1], slope, rtol=1e-8)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> SusceptibilityMatrix:
    return merged(planted_moments(720), tmp_path_factory.mktemp("raw"))


def test_from_a_merged_matrix(raw: SusceptibilityMatrix) -> None:
    groups = context_blocks(raw.tokens(), 12)
    moments = ColumnMoments.over(raw.blocks(), raw.components)
    found = split_half(version_groups(raw, groups, identity(moments), "chi", "chi_half"))
    assert found.df == 11
    halves = raw.load("chi_half").astype(np.float64)
    for column in (0, 7):
        value, se = agreement(halves[..., column], groups)
        assert found.correlation[column] == pytest.approx(value, rel=1e-6)
        assert found.correlation_se[column] == pytest.approx(se, rel=1e-6)
    share, _ = shares_of_parts(version_groups(raw, groups, whiten(moments), *FORMS))
    np.testing.assert_allclose(share.sum(0), 1.0, atol=1e-5)
    with pytest.raises(ValueError, match=r"no array covarience; found chi, chi_half, chi_se, cov"):
        version_groups(raw, groups, whiten(moments), "covarience")


def test_the_uniform_mode_of_a_merged_matrix_by_parts(raw: SusceptibilityMatrix) -> None:
    groups = context_blocks(raw.tokens(), 12)
    found = {form: uniform_mode(column_groups(raw, groups, form)) for form in FORMS}
    # By construction; single precision keeps it.
    assert found["rank_one"].leading_share.value == pytest.approx(1.0, abs=1e-9)
    assert found["rank_one"].cosine.value == pytest.approx(1.0, abs=1e-9)
    assert found["covariance"].leading_share.value < 0.3
    whole = np.corrcoef(raw.load("mean_shift").astype(np.float64).T)
    expected = np.linalg.eigvalsh(whole)[-1] / 8
    assert found["mean_shift"].leading_share.value == pytest.approx(expected, rel=1e-9)
    halves = [uniform_mode(column_groups(raw, groups, half=half)) for half in range(2)]
    assert halves[0].cosine.value != halves[1].cosine.value


@pytest.mark.parametrize("form", FORMS)
def test_a_processed_matrix_is_the_pipeline_of_the_whole(
    raw: SusceptibilityMatrix, tmp_path: Path, form: str
) -> None:
    settings = PostProcessing(near_null="drop" if form == "rank_one" else "error")
    values = raw.load(form).astype(np.float64)
    transform = process(raw, tmp_path / "x.zarr", settings, form)
    found = ProcessedMatrix.open(tmp_path / "x.zarr")
    x = found.load()
    # The rank-one part has one direction.
    columns = 1 if form == "rank_one" else 8
    assert x.shape == found.shape == (720, columns) and x.dtype == np.float32
    np.testing.assert_allclose(x.T.astype(float) @ x, 719 * np.eye(columns), atol=1e-2)
    np.testing.assert_allclose(x, transform.apply(values), atol=1e-5)
    np.testing.assert_allclose(found.transform.apply(values), transform.apply(values))
    assert np.array_equal(np.concatenate(list(found.blocks())), x)
    attrs = found.data.attrs
    assert (attrs["pipeline"], attrs["form"], attrs["half"]) == ("whitened", form, None)
    assert attrs["tokens_sha256"] == raw.data.attrs["tokens_sha256"]


def test_halves_are_processed_by_themselves(raw: SusceptibilityMatrix, tmp_path: Path) -> None:
    settings = PostProcessing(pipeline="standardised+row_centred")
    for half in range(2):
        process(raw, tmp_path / "x.zarr", settings, half=half)
        values = raw.load("chi_half")[half].astype(np.float64)
        scores = (values - values.mean(0)) / values.std(0)
        expected = scores - scores.mean(1, keepdims=True)
        np.testing.assert_allclose(
            ProcessedMatrix.open(tmp_path / "x.zarr").load(), expected, atol=1e-5
        )


def test_what_cannot_be_processed_leaves_nothing(raw: SusceptibilityMatrix, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="directions of the z-scored matrix"):
        process(raw, tmp_path / "x.zarr", form="rank_one")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="no post-processed matrix"):
        ProcessedMatrix.open(tmp_path / "x.zarr")


def peak(folder: Path, tokens: int) -> int:
    """Bytes that two passes over a matrix take at their peak."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = ("chi", "chi_half")
    axes = {name: matrix_arrays(["chi"])[name] for name in names}
    sizes = {"half": 2, "token": tokens, "component": 8}
    attributes = {"component": list(COMPONENTS)}
    writer = RowWriter(folder / MATRIX, sizes, axes, attributes, "nats squared")
    values = rng.normal(size=(3, tokens, 8))
    writer.write(0, {"chi": values[0], "chi_half": values[1:]})
    pl.DataFrame({"index": np.arange(tokens)}).write_parquet(folder / TABLE)
    del values
    matrix, groups = SusceptibilityMatrix.open(folder), np.arange(tokens) // LENGTH % 5
    tracemalloc.start()
    transform = process(matrix, folder / "x.zarr")
    split_half(version_groups(matrix, groups, transform, *names))
    uniform_mode(column_groups(matrix, groups))
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("susceptibilities.matrix._CHUNK", 1)
    peak(tmp_path / "warm", 512)
    few, many = peak(tmp_path / "few", 1024), peak(tmp_path / "many", 16384)
    # How many chunks are read at a time varies; the three arrays would be 3 MB in float64.
    assert many < few + 5e5, (few, many)
