"""The machine that a benchmark ran on: what it is, how fast its matrix products are, memory."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

# Sides of the square products that are tried: from the first cache to well past the last.
_SIDES = (512, 1024, 2048)
_GPU_SIDES = (4096, 8192)


def fastest_seconds(run: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Least wall time of a call, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def synchronize(device: str) -> None:
    """Wait for the device to finish what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def matmul_peak(dtype: torch.dtype, device: str = "cpu", quick: bool = False) -> float:
    """Best rate of a square matrix product, floating-point operations a second."""
    sides = _SIDES if device == "cpu" else _GPU_SIDES
    best = 0.0
    for side in sides[:1] if quick else sides:
        a = torch.randn(side, side, device=device).to(dtype)
        b = torch.randn(side, side, device=device).to(dtype)
        out = torch.empty_like(a)

        def product(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
            torch.mm(a, b, out=out)

        seconds = fastest_seconds(product, 3 if quick else 7, device)
        best = max(best, 2 * side**3 / seconds)
    return best


def description(device: str = "cpu") -> dict[str, Any]:
    """Processor or GPU and versions; nothing that names the computer or its files."""
    found = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.startswith("cuda"):
        found["memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    else:
        found["vector_instructions"] = torch.backends.cpu.get_cpu_capability()
    for package in ("devinterp", "transformers"):
        try:
            found[package] = version(package)
        except ImportError:
            found[package] = None
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.M)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> int:
    """Most memory that this process has held, bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux that of a new process starts at its parent's.
        match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.M)
        if match:
            return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def folder_bytes(folder: Path) -> int:
    """Sizes of all files below a folder, added up."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
