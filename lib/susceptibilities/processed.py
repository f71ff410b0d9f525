"""The post-processed matrix on disk: what is clustered, with the transform that made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray

from .column_moments import ColumnMoments
from .matrix import RowWriter, SusceptibilityMatrix, chunk_rows
from .moments import Array
from .store import atomic_path, open_zarr
from .whitening import PostProcessing, Transform

# Attributes of the raw matrix that go with it.
_KEPT = ("model", "step", "n_beta", "run", "blocks", "tokens_sha256")


@dataclass(frozen=True)
class ProcessedMatrix:
    """A post-processed matrix, opened: ``x`` (token, feature), float32, rows as in the raw one."""

    data: xr.Dataset

    @classmethod
    def open(cls, path: Path) -> ProcessedMatrix:
        """
        Raises:
            FileNotFoundError: there is none.
        """
        if not path.exists():
            raise FileNotFoundError(f"no post-processed matrix at {path}: `processed.process` it")
        return cls(open_zarr(path))

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens, features."""
        return self.data.sizes["token"], self.data.sizes["feature"]

    @property
    def transform(self) -> Transform:
        """What made it of the raw matrix."""
        attrs = self.data.attrs
        return Transform(
            tuple(attrs["component"]),
            tuple(attrs["feature"]),
            self.data["mean"].values,
            self.data["matrix"].values,
        )

    def load(self) -> NDArray[np.float32]:
        """All of it."""
        return self.data["x"].values

    def blocks(self) -> Iterator[Float[Array, "token feature"]]:
        """The rows in order, some at a time."""
        rows, columns = self.shape
        step = chunk_rows(columns)
        for first in range(0, rows, step):
            yield self.data["x"].isel(token=slice(first, first + step)).values.astype(np.float64)


def process(
    matrix: SusceptibilityMatrix,
    out: Path,
    settings: PostProcessing | None = None,
    form: str = "chi",
    half: int | None = None,
) -> Transform:
    """Fit a pipeline on a raw matrix and write what it makes of it to the Zarr store ``out``.

    Two passes over the rows, a chunk of them at a time.

    Args:
        form: chi or one of its parts.
        half: 0 or 1: the estimates from that half of the chains, with a pipeline of their own.

    Raises:
        ValueError: see `PostProcessing.fit`; the matrix has no such array.
    """
    settings = settings or PostProcessing()
    moments = ColumnMoments.over(matrix.blocks(form, half), matrix.components)
    transform = settings.fit(moments)
    rows = matrix.shape[0]
    attributes = {
        **{name: matrix.data.attrs[name] for name in _KEPT if name in matrix.data.attrs},
        **settings.model_dump(),
        "form": form,
        "half": half,
        "component": list(transform.components),
        "feature": list(transform.features),
    }
    units = "nats squared" if settings.pipeline == "none" else "standard deviations"
    with atomic_path(out) as temporary:
        sizes = {"token": rows, "feature": len(transform.features)}
        writer = RowWriter(temporary, sizes, {"x": ("token", "feature")}, attributes, units)
        first = 0
        for block in matrix.blocks(form, half):
            writer.write(first, {"x": transform.apply(block)})
            first += len(block)
        fitted = {
            "mean": (("component",), transform.mean),
            "matrix": (("component", "feature"), transform.matrix),
        }
        xr.Dataset(fitted, attrs=attributes).to_zarr(
            temporary, zarr_format=3, consolidated=False, mode="a"
        )
    return transform
