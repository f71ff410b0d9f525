"""One pass over a susceptibility matrix: what its spectrum, its noise and its parts follow from."""

from __future__ import annotations

from jaxtyping import Int
from numpy.typing import NDArray

from .column_moments import ColumnMoments
from .grouped import Grouped
from .matrix import SusceptibilityMatrix
from .version_moments import VersionMoments
from .whitening import Transform

Groups = Int[NDArray, " token"]


def column_groups(
    matrix: SusceptibilityMatrix, groups: Groups, form: str = "chi", half: int | None = None
) -> Grouped[ColumnMoments]:
    """Moments of the columns of one form, for `matrix_spectrum` and `whitening`.

    Args:
        groups: of every token (`token_errors.context_blocks`).
        half: 0 or 1: of the estimates from that half of the chains.
    """
    names = matrix.components
    blocks = matrix.blocks(form, half)
    return Grouped.over(lambda rows: ColumnMoments.of(rows, names), blocks, groups)


def version_groups(
    matrix: SusceptibilityMatrix, groups: Groups, transform: Transform, *names: str
) -> Grouped[VersionMoments]:
    """Moments of several arrays of a matrix after a transform.

    ``"chi", "chi_half"`` is for `split_half`; ``*estimators.FORMS`` for
    `version_moments.shares_of_parts`.

    Args:
        transform: fitted on the first array. It is affine, so that what it makes of a sum is, but
            for a constant, the sum of what it makes of the parts.
    """
    blocks = (transform.apply(versions) for versions in matrix.versions(*names))
    return Grouped.over(VersionMoments.of, blocks, groups)
