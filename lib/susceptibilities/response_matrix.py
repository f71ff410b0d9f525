"""The per-token response matrix and its PCA, of chi and of its parts.

A row is a token, a column a head (Arditi 4.3). Rows of all domains are pooled, the control probe
left out. Columns are centered, and with ``standardize`` also divided by their standard
deviations, as the papers do for their other PCA (Baker 3.3) and before clustering (Gordon,
post-processing); for this PCA none of them says.

The rank-one part of chi is E_C[g] times one vector over tokens, v = E_full[l_xy - L], the same
for every head: its matrix is an outer product, and so is the centered one. Whatever the model
does, its PCA has one component with all the variance, whose loadings have one sign. `remainder`
is what is left of chi without it, covariance + mean shift.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student

from .estimators import FORMS
from .jackknife import Array
from .naming import head_of
from .per_token import PerToken
from .token_errors import context_blocks, measure_array
from .tokens import CONTROL_PROBE

Mask = NDArray[np.bool_]

REMAINDER = "remainder"
RESPONSE_FORMS = (*FORMS, REMAINDER)


@dataclass(frozen=True)
class Response:
    """The response matrix of some heads, in every form.

    Attributes:
        value: form -> (head, token), of `RESPONSE_FORMS`.
        replicates: form -> (chain, head, token), each with one chain left out.
        rows: places of the tokens in ``PerToken.tokens``, (token,).
        blocks: block of contexts of every token, (token,).
        probes: name of the domain of every token, (token,).
    """

    heads: tuple[str, ...]
    value: dict[str, Array]
    replicates: dict[str, NDArray]
    rows: NDArray[np.int64]
    blocks: NDArray[np.int64]
    probes: NDArray[np.str_]

    @property
    def df(self) -> int:
        """Degrees of freedom of the errors: the smaller number of replicates, less one."""
        return min(len(self.replicates["chi"]), len(np.unique(self.blocks))) - 1

    def stacked(self, forms: Sequence[str], factor: float = 1.0) -> tuple[Array, Array]:
        """Values (form, head, token) and replicates (chain, form, head, token), times a factor."""
        values = np.stack([self.value[form] for form in forms])
        replicates = np.stack([self.replicates[form] for form in forms], 1)
        return factor * values, factor * replicates

    def layer(self, number: int) -> Response:
        """The same tokens, heads of one layer only."""
        chosen = [i for i, h in enumerate(self.heads) if (head_of(h) or (-1,))[0] == number]
        return replace(
            self,
            heads=tuple(self.heads[i] for i in chosen),
            value={form: v[chosen] for form, v in self.value.items()},
            replicates={form: r[:, chosen] for form, r in self.replicates.items()},
        )

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({(head_of(head) or (-1,))[0] for head in self.heads}))


def response_of(data: PerToken, control_probe: bool = False) -> Response:
    """All heads and the tokens of all domains.

    Args:
        control_probe: also the tokens of the sample of the training distribution.
    """
    kept = (data.tokens["probe"] != CONTROL_PROBE).to_numpy()
    rows = np.arange(len(kept)) if control_probe or not kept.any() else np.flatnonzero(kept)
    # A run's components are in the order in which its jobs measured them.
    heads = tuple(sorted(data.heads, key=lambda head: head_of(head) or (-1, -1)))
    places = [data.components.index(head) for head in heads]
    value = {form: data.value[form][places][:, rows] for form in FORMS}
    replicates = {form: data.replicates[form][:, places][:, :, rows] for form in FORMS}
    # Not chi - rank_one: the difference of large numbers would lose digits in single precision.
    value[REMAINDER] = value["covariance"] + value["mean_shift"]
    replicates[REMAINDER] = replicates["covariance"] + replicates["mean_shift"]
    return Response(
        heads=heads,
        value=value,
        replicates=replicates,
        rows=rows,
        blocks=context_blocks(data.tokens)[rows],
        probes=data.tokens["probe"].to_numpy()[rows].astype(np.str_),
    )


@dataclass(frozen=True)
class ResponsePCA:
    """Result of `response_pca`; as many components as heads (or tokens - 1, if fewer).

    Attributes:
        mean, scale: of each column before centering and scaling, (head,).
        loadings: (head, K), orthonormal columns.
        variance: of each component's scores over tokens (n - 1), (K,), decreasing unless the
            components were matched to another PCA.
    """

    mean: Array
    scale: Array
    loadings: Array
    variance: Array

    @property
    def share(self) -> Array:
        """Share of the variance that each component explains, (K,)."""
        return self.variance / self.variance.sum()

    def scores(self, values: Array) -> Array:
        """Values (head, token) on the components, (token, K)."""
        return ((values - self.mean[:, None]) / self.scale[:, None]).T @ self.loadings

    def select(self, order: Sequence[int] | NDArray[np.int64], signs: Array) -> ResponsePCA:
        """Components in another order and with other signs."""
        return replace(
            self, loadings=self.loadings[:, order] * signs, variance=self.variance[order]
        )


def response_pca(values: Array, standardize: bool = True) -> ResponsePCA:
    """PCA over tokens.

    The sum of the cubes of each component's loadings is positive, as in `pca.joint_pca`.

    Args:
        values: (head, token).

    Raises:
        ValueError: fewer than two tokens, a value that is not finite, or (standardized) a head
            with the same value at every token.
    """
    values = np.asarray(values, dtype=np.float64)
    heads, tokens = values.shape
    if tokens < 2:
        raise ValueError(f"a PCA over tokens needs at least 2 of them, found {tokens}")
    if not np.isfinite(values).all():
        raise ValueError(f"PCA over tokens: {np.sum(~np.isfinite(values))} values are not finite")
    mean = values.mean(1)
    centered = values - mean[:, None]
    scale = np.ones(heads)
    if standardize:
        scale = centered.std(1, ddof=1)
        constant = np.flatnonzero(scale <= 1e-12 * np.abs(values).max(1))
        if len(constant):
            raise ValueError(
                f"PCA over tokens: columns {constant.tolist()} are constant over all tokens"
            )
        centered = centered / scale[:, None]
    variance, vectors = np.linalg.eigh(centered @ centered.T / (tokens - 1))
    kept = min(heads, tokens - 1)
    order = np.argsort(variance)[::-1][:kept]
    # Rounding leaves tiny negative variances where there are none.
    pca = ResponsePCA(mean, scale, vectors[:, order], np.maximum(variance[order], 0.0))
    return pca.select(np.arange(kept), _signs(np.power(pca.loadings, 3).sum(0)))


def _signs(values: Array) -> Array:
    return np.where(values < 0, -1.0, 1.0)


def match(pca: ResponsePCA, reference: ResponsePCA) -> ResponsePCA:
    """The components in the order and with the signs that fit ``reference`` best.

    A signed permutation, as in `pca.match`: no rotation, which would hide that two components
    of nearly equal variance are not told apart.
    """
    overlap = reference.loadings.T @ pca.loadings
    order = linear_sum_assignment(-np.abs(overlap))[1]
    return pca.select(order, _signs(overlap[np.arange(len(order)), order]))


def orient(pca: ResponsePCA, anchors: Mapping[int, tuple[Sequence[int], int]]) -> ResponsePCA:
    """Turn components so that the mean loading over some heads has a given sign.

    Args:
        anchors: component (from 0) -> (columns of the heads, +1 or -1); the others stay.
    """
    signs = np.ones(len(pca.variance))
    for k, (columns, sign) in anchors.items():
        if k < len(signs) and len(columns):
            signs[k] = sign * _signs(pca.loadings[list(columns), k].mean())
    return pca.select(np.arange(len(signs)), signs)


# PCA, values (form, head, token) of the kept tokens, which were kept -> a number or an array.
PCAStatistic = Callable[[ResponsePCA, Array, Mask], ArrayLike]


def measure_on_pca(
    statistic: PCAStatistic,
    values: Array,
    replicates: Array,
    blocks: NDArray[np.int64],
    reference: ResponsePCA,
    standardize: bool = True,
) -> tuple[Array, Array]:
    """A statistic of the PCA and its error over chains and blocks of contexts.

    The PCA is repeated for every replicate and matched to the reference.

    Args:
        values: (form, head, token); the PCA is that of the first form.
        replicates: (chain, form, head, token).
        blocks: (token,).
        reference: PCA of the first form with all chains and tokens, oriented.
    """

    def found(repeated: Array, keep: Mask) -> ArrayLike:
        kept = repeated[..., keep]
        return statistic(match(response_pca(kept[0], standardize), reference), kept, keep)

    return measure_array(found, values, replicates, blocks)


@dataclass(frozen=True)
class MeasuredPCA:
    """A PCA with errors over chains and contexts.

    Attributes:
        identified: (K,), whether the component's variance differs from both neighbors' by more
            than the error of the difference. If not, only the span of the two has a meaning.
        share_se, cumulative_se: (K,), of the k-th largest share and of the sum of the first k.
        loadings_se: (head, K).
        more, more_se: the further statistic that was asked for, flat.
    """

    pca: ResponsePCA
    identified: Mask
    share_se: Array
    cumulative_se: Array
    loadings_se: Array
    more: Array
    more_se: Array


def measure_pca(
    values: Array,
    replicates: Array,
    blocks: NDArray[np.int64],
    standardize: bool = True,
    anchors: Mapping[int, tuple[Sequence[int], int]] | None = None,
    level: float = 0.95,
    more: PCAStatistic | None = None,
) -> MeasuredPCA:
    """PCA over tokens with errors.

    Args:
        values: (head, token); ``replicates`` (chain, head, token); ``blocks`` (token,).
        anchors: signs, as in `orient`.
        level: confidence of the test behind ``identified`` (Student t).
        more: a further statistic to measure by the way.
    """
    reference = orient(response_pca(values, standardize), anchors or {})
    count = len(reference.variance)

    def everything(pca: ResponsePCA, kept: Array, keep: Mask) -> Array:
        share = np.sort(pca.share)[::-1]
        further = np.ravel(more(pca, kept, keep)) if more else np.zeros(0)
        return np.concatenate(
            [share, share.cumsum(), -np.diff(share), pca.loadings.ravel(), further]
        )

    value, error = measure_on_pca(
        everything, values[None], replicates[:, None], blocks, reference, standardize
    )
    places = np.cumsum([count, count, count - 1, reference.loadings.size])
    share_se, cumulative_se, gap_se, loadings_se, more_se = np.split(error, places)
    df = min(len(replicates), len(np.unique(blocks))) - 1
    gap = value[places[1] : places[2]]
    # Components without variance are apart by rounding errors, whose scatter is as small.
    clear = gap > np.maximum(student.ppf(0.5 + level / 2, df) * gap_se, 1e-12)
    return MeasuredPCA(
        pca=reference,
        identified=np.append(True, clear) & np.append(clear, True),
        share_se=share_se,
        cumulative_se=cumulative_se,
        loadings_se=loadings_se.reshape(reference.loadings.shape),
        more=value[places[3] :],
        more_se=more_se,
    )


def part_shares(pca: ResponsePCA, whole: Array, part: Array) -> Array:
    """Share of the variance that comes from one summand of the values.

    Scores are linear in the values, so they are sums of parts too, and cov(score of the part,
    score) / var(score) adds up to one over the parts.

    Args:
        pca: of ``whole``.
        whole, part: (head, token).

    Returns:
        (K + 1,): first of the variance of all components together, then of each.
    """
    own = pca.scores(whole)
    other = pca.scores(part)
    joint = np.sum(own * (other - other.mean(0)), axis=0)
    variance = np.square(own).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.append(joint.sum() / variance.sum(), joint / variance)


def uniformity(pca: ResponsePCA) -> tuple[float, float]:
    """Cosine of PC1's loadings to the vector of equal entries, and its smallest loading.

    PC1 is turned to be positive on average.
    """
    loadings = pca.loadings[:, 0]
    loadings = loadings * _signs(loadings.mean())
    return float(loadings.sum() / np.sqrt(len(loadings))), float(loadings.min())


def one_vector(pca: ResponsePCA, whole: Array, rank_one: Array) -> tuple[float, float, float]:
    """How PC1 of chi stands to the rank-one part, which has one direction over heads.

    Args:
        pca: of ``whole``, (head, token), which holds ``rank_one``.

    Returns:
        - the share of the variance along that direction. PC1 is the direction with the largest
          share, so its share is at least this, whatever else there is;
        - the cosine of PC1's loadings to that direction;
        - the correlation over tokens of PC1's scores with the rank-one part's token vector.
    """
    centered = (rank_one - rank_one.mean(1, keepdims=True)) / pca.scale[:, None]
    vectors, sizes, tokens = np.linalg.svd(centered, full_matrices=False)
    if sizes[0] == 0:
        return 0.0, 0.0, 0.0
    along = vectors[:, 0] @ ((whole - pca.mean[:, None]) / pca.scale[:, None])
    share = along.var(ddof=1) / pca.variance.sum()
    cosine = abs(float(vectors[:, 0] @ pca.loadings[:, 0]))
    scores = pca.scores(whole)[:, 0]
    norm = float(np.linalg.norm(scores))
    return float(share), cosine, abs(float(scores @ tokens[0])) / norm if norm else 0.0


def mean_correlation(values: Array) -> float:
    """Mean Pearson r over tokens of all pairs of heads, (head, token)."""
    if len(values) < 2:
        return float("nan")
    r = np.atleast_2d(np.corrcoef(values))
    return float(r[np.triu_indices(len(r), 1)].mean())
