"""The loss over training, from the model's training log."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from common import WIDTH, arguments, empty_page, header, save, short_step
from susceptibilities.console import run as run_script
from susceptibilities.store import read_json

NAMES = ("log.jsonl", "log.parquet", "log.csv")


def read_log(path: Path) -> pl.DataFrame:
    """A training log with columns step, train_loss and held_out_loss (either may be empty)."""
    readers = {
        ".jsonl": lambda file: pl.read_ndjson(file, infer_schema_length=None),
        ".parquet": pl.read_parquet,
        ".csv": pl.read_csv,
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected one of {', '.join(readers)}")
    table = readers[path.suffix](path)
    if "step" not in table.columns:
        raise ValueError(f"{path}: expected a column 'step', found {table.columns}")
    missing = [c for c in ("train_loss", "held_out_loss") if c not in table.columns]
    return table.with_columns(pl.lit(None, pl.Float64).alias(c) for c in missing)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over the window, shortened at the ends."""
    sums = np.concatenate([[0.0], values.cumsum()])
    index = np.arange(len(values))
    low, high = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def draw(log: pl.DataFrame, label: str) -> tuple[Figure, pl.DataFrame]:
    """Training loss (points and running mean) and held-out loss on a logarithmic step axis."""
    figure = plt.figure(figsize=(WIDTH, 2.9))
    ax = figure.add_axes((0.07, 0.14, 0.92, 0.7))
    train = log.filter(pl.col("train_loss").is_not_null() & (pl.col("step") > 0)).sort("step")
    held = log.filter(pl.col("held_out_loss").is_not_null() & (pl.col("step") > 0)).sort("step")
    if len(train):
        x, y = train["step"].to_numpy(), train["train_loss"].to_numpy()
        ax.plot(x, y, color="#9EC3DD", linewidth=0.5, label="training batch")
        window = max(1, len(y) // 60)
        # The first means, over a shortened window, lie far from the curve on a logarithmic axis.
        inner = slice(window // 2, None)
        ax.plot(
            x[inner],
            smoothed(y, window)[inner],
            color="#0072B2",
            linewidth=1.4,
            label="running mean",
        )
    if len(held):
        ax.plot(
            held["step"],
            held["held_out_loss"],
            "o-",
            color="#D55E00",
            markersize=2.6,
            linewidth=1.0,
            label=f"held-out text ({held['held_out_loss'][-1]:.2f} at the end)",
        )
    ax.set_xscale("log")
    ax.grid(axis="y", color="#EEEEEE", linewidth=0.6)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_step(value)))
    ax.set_xlabel("training step")
    ax.set_ylabel("loss (nats per token)")
    ax.legend(loc="upper right")
    header(figure, "Loss over training", f"model {label}", top=0.03)
    return figure, log


def find_log(results: Path, given: Path | None) -> Path | None:
    """The log that was given, or the one in the model's folder."""
    if given is not None:
        return given
    folder = Path(read_json(results / "model" / "model.json").get("path", ""))
    return next((folder / name for name in NAMES if (folder / name).exists()), None)


def main() -> None:
    parser = arguments(__doc__, "training")
    parser.add_argument("--log", type=Path, help="training log [log.jsonl of the model's folder]")
    given = parser.parse_args()
    label = read_json(given.results / "model" / "model.json")["label"]
    path = find_log(given.results, given.log)
    if path is None:
        figure = empty_page("Loss over training", f"Model {label} comes without a training log.")
    else:
        figure, _ = draw(read_log(path), label)
    save(figure, given.out or given.results / "figures" / "training")


if __name__ == "__main__":
    run_script(main)
