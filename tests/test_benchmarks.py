"""The benchmarks run, at sizes that say nothing about speed, and count what they say they count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from susceptibilities.planning.rates import DeviceResult, measurements

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
needs_devinterp = pytest.mark.skipif(
    find_spec("devinterp") is None, reason="devinterp is not installed (extra `benchmarks`)"
)


def run(script: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def compare(out: Path, name: str, *paths: str) -> tuple[dict, str]:
    printed = run("compare.py", "--tiny", "--cases", name, "--out", out, "--paths", *paths)
    (case,) = json.loads(out.read_text())["cases"]
    return case, printed


def test_compare(tmp_path: Path) -> None:
    case, printed = compare(tmp_path / "compare.json", "two-layer", "plain", "variate")
    plain, variate = case["paths"]["plain"], case["paths"]["variate"]
    # The same numbers by both ways, in float32, against float64.
    assert plain["chi_difference"]["max"] < 1e-3
    for found in (plain, variate):
        phases = found["phase_seconds"]
        assert sum(phases.values()) == pytest.approx(found["processor_seconds"], rel=0.05)
        assert {"evaluation", "gradient"} <= set(phases)
        assert sum(found["component_seconds"].values()) < found["processor_seconds"]
        assert 0 < found["useful_share"] < 1 and found["bytes_written"] > 0
        assert found["peak_bytes"] >= found["before_bytes"]
    assert case["operations"]["useful"] < case["operations"]["whole_model"]
    assert set(map(tuple, plain["variance"].values())) == {(1.0, 1.0)}
    assert all(ratio != 1 and np.isfinite(ratio) for ratio, _ in variate["variance"].values())
    assert "fast path, control variate" in printed


@needs_devinterp
def test_devinterp_beside_the_fast_path(tmp_path: Path) -> None:
    case, _ = compare(tmp_path / "compare.json", "gpt-neox-14m", "devinterp", "fast")
    found = case["paths"]
    # Its own losses of our draws, and ours of them.
    assert found["devinterp"]["chi_difference"]["max"] < 1e-3
    assert found["fast"]["chi_difference"]["max"] < 1e-3
    assert found["fast"]["times_bytes_written"] > 1
    assert case["agreement"]["rms_z"] < 20


def test_scaling(tmp_path: Path) -> None:
    run("scaling.py", "--tiny", "--out", tmp_path)
    rows = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert {row["along"] for row in rows} == {"tokens", "draws", "layers", "chains", "components"}
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_gpu_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "device.json"
    small = ("--draws", "2", "--contexts", "2", "--batch", "1", "--context", "8")
    run("gpu.py", "--shape", "tiny", "--device", "cpu", *small, "--out", out)
    found = json.loads(out.read_text())
    assert {row["precision"] for row in found["measurements"]} == {"float32", "tf32", "bfloat16"}
    for row in found["measurements"]:
        assert row["token_draws_per_second"] > 0 and row["gradient_tokens_per_second"] > 0
    # What the planner reads.
    (result,) = measurements(tmp_path).values()
    assert result == DeviceResult.model_validate(found)
    assert all(rates.evaluation and rates.gradient for rates in result.achieved_rates)


def test_gpu_refuses_a_large_shape_on_the_cpu() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "expected --shape tiny" in done.stderr


def test_prediction() -> None:
    """How well it predicts is no matter of a test: other work on the machine decides it."""
    lines = run("prediction.py").splitlines()
    assert lines[0].startswith("rates measured now: matrix products")
    assert len(lines) == 5 and all(
        "evaluation" in line and "gradient" in line for line in lines[1:]
    )
