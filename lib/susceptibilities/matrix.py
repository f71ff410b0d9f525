"""The raw susceptibility matrix on disk: a row for every token, a column for every component.

A matrix is a folder of its own: ``matrix.zarr`` (Zarr v3, chunks of tokens times all components,
float32) and, row for row, ``tokens.parquet``. For every form (chi and its three parts,
`estimators`) there are

- ``<form>``, (token, component), nats squared;
- ``<form>_se``, its standard error, a jackknife over chains;
- ``<form>_half``, (half, token, component), the estimates from two disjoint halves of the chains
  of the component and of the unrestricted run: for measures of noise (`split_half`).

The unrestricted chains are no column: they are the second factor of every chi (Baker eq. 41).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xarray as xr
import zarr
from jaxtyping import Float
from numpy.typing import NDArray

from .moments import Array
from .store import file_sha256, open_zarr

MATRIX = "matrix.zarr"
TOKENS = "tokens.parquet"

# Numbers in a chunk of an array, about.
_CHUNK = 1 << 20
_DIMENSIONS = {
    "": ("token", "component"),
    "_se": ("token", "component"),
    "_half": ("half", "token", "component"),
}


def chunk_rows(columns: int) -> int:
    """Rows of a chunk of a matrix with so many columns, a power of two."""
    return 1 << max(8, (_CHUNK // columns).bit_length() - 1)


class RowWriter:
    """Writes a Zarr store of matrices row by row; nothing else of it is held.

    Args:
        path: of the store, which must not exist.
        sizes: of all axes, ``token`` among them.
        arrays: dimensions of every array, by name.
        attributes: of the store.
        units: of all arrays.
    """

    def __init__(
        self,
        path: Path,
        sizes: Mapping[str, int],
        arrays: Mapping[str, tuple[str, ...]],
        attributes: Mapping[str, Any],
        units: str,
    ) -> None:
        group = zarr.create_group(path, zarr_format=3, attributes=dict(attributes))
        self._arrays: dict[str, tuple[int, zarr.Array]] = {}
        for name, dimensions in arrays.items():
            axis = dimensions.index("token")
            step = min(sizes["token"], chunk_rows(sizes[dimensions[-1]]))
            made = group.create_array(
                name,
                shape=tuple(sizes[d] for d in dimensions),
                chunks=tuple(
                    1 if d == "half" else step if d == "token" else sizes[d] for d in dimensions
                ),
                dtype="float32",
                fill_value=np.nan,
                dimension_names=dimensions,
                attributes={"units": units},
            )
            self._arrays[name] = axis, made

    def write(self, first: int, entries: Mapping[str, NDArray[Any]]) -> None:
        """Write some rows of every array, from row ``first`` on."""
        for name, (axis, array) in self._arrays.items():
            values = entries[name]
            rows = slice(first, first + values.shape[axis])
            array[(slice(None),) * axis + (rows,)] = values.astype(np.float32, copy=False)


def matrix_arrays(forms: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Names and dimensions of the arrays of a raw matrix."""
    return {f"{form}{kind}": axes for form in forms for kind, axes in _DIMENSIONS.items()}


@dataclass(frozen=True)
class SusceptibilityMatrix:
    """A raw matrix, opened; its numbers are read when they are asked for.

    Attributes:
        data: the store. Attributes: ``component`` (names of the columns), ``model`` (label),
            ``step``, ``n_beta``, ``sampler``, ``evaluation``, ``seed``, ``run`` and ``blocks``
            (identities of the run and of every block of tokens), ``block_tokens``, ``estimator``
            (of every component), ``tokens_sha256``.
    """

    folder: Path
    data: xr.Dataset

    @classmethod
    def open(cls, folder: Path) -> SusceptibilityMatrix:
        """
        Raises:
            FileNotFoundError: there is no matrix in the folder.
            ValueError: its token table has another number of rows.
        """
        if not (folder / MATRIX).exists() or not (folder / TOKENS).exists():
            raise FileNotFoundError(
                f"no susceptibility matrix in {folder}: expected {MATRIX} and {TOKENS}, as "
                "`merge.merge_shards` writes them"
            )
        matrix = cls(folder, open_zarr(folder / MATRIX))
        found = pl.scan_parquet(folder / TOKENS).select(pl.len()).collect().item()
        if found != matrix.shape[0]:
            raise ValueError(
                f"{folder}: the matrix has {matrix.shape[0]} rows and its token table {found}; "
                "merge the shards again"
            )
        return matrix

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.data.attrs["component"])

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens, components."""
        return self.data.sizes["token"], self.data.sizes["component"]

    def tokens(self) -> pl.DataFrame:
        """The token table: a row for every row of the matrix, see `token_sampling.token_table`.

        Raises:
            ValueError: it is not the table that was written with the matrix.
        """
        path = self.folder / TOKENS
        if file_sha256(path) != self.data.attrs["tokens_sha256"]:
            raise ValueError(f"{path} is not the table of this matrix; merge the shards again")
        return pl.read_parquet(path)

    def load(self, name: str = "chi") -> NDArray[np.float32]:
        """A whole array."""
        return self.data[name].values

    def blocks(
        self, form: str = "chi", half: int | None = None
    ) -> Iterator[Float[Array, "token component"]]:
        """The rows in order, some at a time; from all chains, or from one half of them."""
        for versions in self.versions(form if half is None else f"{form}_half"):
            yield versions[half or 0]

    def versions(self, *names: str) -> Iterator[Float[Array, "version token component"]]:
        """The same rows of several arrays, some at a time; ``<form>_half`` counts as two.

        Raises:
            ValueError: there is no such array.
        """
        if unknown := [name for name in names if name not in self.data]:
            raise ValueError(
                f"{self.folder}: no array {', '.join(unknown)}; found "
                f"{', '.join(sorted(str(name) for name in self.data))}"
            )
        rows, columns = self.shape
        step = chunk_rows(columns)
        for first in range(0, rows, step):
            read = [self.data[n].isel(token=slice(first, first + step)).values for n in names]
            yield np.concatenate([r.reshape(-1, *r.shape[-2:]) for r in read]).astype(np.float64)
