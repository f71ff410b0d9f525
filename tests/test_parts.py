"""Killed at any moment, a run goes on to the same bits; damage is found and mended alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from filelock import FileLock

import test_sampling
import test_token_sampling
from susceptibilities import chains as chains_module
from susceptibilities import parts
from susceptibilities import saver as saver_module
from susceptibilities.blocks import memory_limits
from susceptibilities.chains import Chains
from susceptibilities.evaluation import Evaluation
from susceptibilities.parts import _batches
from susceptibilities.sampling import ContextMeans
from susceptibilities.saver import Saver
from test_chains import chains_of
from test_sampling import contents

NAMES = ["full", "0:1"]
EVALUATION = Evaluation(control_variate="linear", precision="bfloat16")


class KilledError(Exception):
    pass


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks and groups of draws a component, and a save after every step."""
    cut_small(monkeypatch.setattr)


def cut_small(set_value: Callable[[object, str, object], None]) -> None:
    limits = replace(memory_limits("cpu"), draws=12_000, losses=4 * 4 * 2 * 6 * 4)
    set_value(chains_module, "memory_limits", lambda device: limits)
    set_value(saver_module, "SAVE_SECONDS", 0.0)
    set_value(saver_module, "SAVE_SHARE", float("inf"))


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int, after: bool = True) -> None:
    """Die when the state is saved for the so-manieth time, before it is written or after."""
    save, count = Saver.save, 0

    def dying(self: Saver) -> None:
        nonlocal count
        count += 1
        if count == number and not after:
            raise KilledError
        save(self)
        if count == number:
            raise KilledError

    monkeypatch.setattr(Saver, "save", dying)


def run(kind: str, out: Path, **changes) -> list[str]:
    lines: list[str] = []
    sample = test_sampling.sample if kind == "datasets" else test_token_sampling.sample
    sample(out, **{"names": NAMES, "report": lines.append, "evaluation": EVALUATION, **changes})
    return lines


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["datasets", "tokens"])
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_anywhere_any_number_of_times_it_gives_the_same_bits(
    tmp_path: Path, kind: str, seed: int
) -> None:
    run(kind, tmp_path / "whole.zarr")
    out, rng, kills = tmp_path / "killed.zarr", np.random.default_rng(seed), 0
    while not out.exists():
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, int(rng.integers(1, 12)), bool(rng.integers(2)))
            try:
                run(kind, out)
            except KilledError:
                kills += 1
        assert kills < 200
    assert kills >= 3
    assert contents(out) == contents(tmp_path / "whole.zarr")
    assert hidden(tmp_path) == []


def test_a_killed_run_goes_on_where_it_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the sampling, between blocks, and in those that have the control variate."""
    saves: list[tuple[int, int]] = []
    save = Saver.save

    def noting(self: Saver) -> None:
        save(self)
        saves.append((self.chains.run.step, self.chains.place))

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "save", noting)
        run("tokens", tmp_path / "whole.zarr", names=["0:1"])
    steps, places = zip(*saves, strict=True)
    assert len(set(steps)) == test_sampling.SAMPLER.steps and len(set(places)) > 8
    for number in (2, len(saves) // 2, len(saves) - 1, len(saves)):
        out = tmp_path / f"{number}.zarr"
        with monkeypatch.context() as patch:
            kill_at(patch, number)
            with pytest.raises(KilledError):
                run("tokens", out, names=["0:1"])
        step, place = saves[number - 1]
        lines = run("tokens", out, names=["0:1"])
        assert any(f"0:1: goes on at step {step}, block {place}" in line for line in lines)
        assert contents(out) == contents(tmp_path / "whole.zarr")


def test_after_sigkill_it_gives_the_same_bits(tmp_path: Path) -> None:
    run("tokens", tmp_path / "whole.zarr")
    out = tmp_path / "killed.zarr"
    script = (
        "import sys, time; from pathlib import Path; import test_parts as t\n"
        "t.cut_small(setattr); save, count = t.Saver.save, 0\n"
        "def slow(self):\n    global count; count += 1; save(self)\n"
        "    print(count, flush=True); time.sleep(0.05)\n"
        "t.Saver.save = slow\n"
        "t.run('tokens', Path(sys.argv[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(out)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    # As if it had been killed while it put the parts together.
    (tmp_path / ".killed.zarr.abcdefgh" / "killed.zarr").mkdir(parents=True)
    lines = run("tokens", out)
    assert sum("goes on at" in line for line in lines) == 1
    assert contents(out) == contents(tmp_path / "whole.zarr")
    assert hidden(tmp_path) == []


def truncate(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[:-3])


def alter(chunk: Path) -> None:
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (truncate, "shift/c/0/0/0"),
        (alter, "shift/c/0/0/0"),
        (Path.unlink, "shift/c/0/0/0"),  # Zarr reads a missing chunk as empty
        (alter, "zarr.json"),
        (Path.unlink, "shift/zarr.json"),
    ],
)
def test_a_damaged_part_is_made_again_alone(
    tmp_path: Path, damage: Callable[[Path], None], where: str
) -> None:
    run("datasets", tmp_path / "whole.zarr")
    out = tmp_path / "s.zarr"
    with pytest.raises(ValueError, match="no component"):
        run("datasets", out, names=[*NAMES, "9:9"])
    found = sorted(tmp_path.glob(".s.zarr.parts/*.zarr"))
    assert len(found) == 2
    damage(found[0] / where)
    lines = run("datasets", out)
    assert sum("made again" in line for line in lines) == 1
    assert sum("kept from an earlier run" in line for line in lines) == 1
    assert sum("loss rises" in line for line in lines) == 1
    assert contents(out) == contents(tmp_path / "whole.zarr")


def test_a_state_that_cannot_be_used_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("datasets", tmp_path / "whole.zarr")
    out = tmp_path / "s.zarr"

    def other_blocks(path: Path) -> None:
        limits = replace(memory_limits("cpu"), draws=12_000)
        monkeypatch.setattr(chains_module, "memory_limits", lambda device: limits)

    for spoil in (truncate, lambda path: path.write_bytes(b"x"), other_blocks):
        with monkeypatch.context() as patch:
            kill_at(patch, 15)
            with pytest.raises(KilledError):
                run("datasets", out)
        (state,) = tmp_path.glob(".s.zarr.parts/*.safetensors")
        spoil(state)
        lines = run("datasets", out)
        assert sum("starts again, the state in" in line for line in lines) == 1
        assert hidden(tmp_path) == []
        if spoil is not other_blocks:
            assert contents(out) == contents(tmp_path / "whole.zarr")


@pytest.mark.parametrize("kind", ["datasets", "tokens"])
def test_parts_are_put_together_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    names = [*NAMES, "1:0", "1:1"]
    for size, batches in ((1 << 26, [4]), (10_000, None), (0, [1, 1, 1, 1])):
        found: list[int] = []

        def noted(parts: Iterable[xr.Dataset], found: list[int] = found) -> Iterator:
            for batch in _batches(parts):
                found.append(len(batch))
                yield batch

        with monkeypatch.context() as patch:
            patch.setattr(parts, "_BATCH_BYTES", size)
            patch.setattr(parts, "_batches", noted)
            run(kind, tmp_path / f"{size}.zarr", names=names)
        assert sum(found) == 4 and (batches is None or found == batches)
        assert contents(tmp_path / f"{size}.zarr") == contents(tmp_path / f"{1 << 26}.zarr")


def test_two_processes_never_write_one_store(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    with (
        FileLock(tmp_path / ".s.zarr.lock"),
        pytest.raises(RuntimeError, match="another process is writing"),
    ):
        run("datasets", out)
    assert not out.exists()
    run("datasets", out)


def test_saves_are_a_minute_apart_and_take_little_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, took = 0.0, 1.0
    monkeypatch.setattr(saver_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(saver_module, "SAVE_SECONDS", 60.0)
    monkeypatch.setattr(saver_module, "SAVE_SHARE", 0.05)
    written = saver_module.save_file

    def slow(*args: object) -> None:
        nonlocal now
        now += took
        written(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(saver_module, "save_file", slow)
    chains = chains_of()
    saver = Saver(tmp_path / "state", chains, ContextMeans(chains))
    moments = []
    for _ in range(1000):
        before = now
        saver()
        if now > before:
            moments.append(now)
            took = 10.0 if len(moments) >= 3 else 1.0
        now += 1
    gaps = np.diff(moments)
    assert gaps[:2].tolist() == [61, 61]
    # Ten seconds of writing are a twentieth of two hundred.
    assert set(gaps[3:].tolist()) == {210}


def test_activations_are_kept_within_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where they are not, the result is the same."""
    kept: list[bool] = []

    class Noting(ContextMeans):
        def __init__(self, chains: Chains) -> None:
            super().__init__(chains)
            kept.append(chains.evaluated.below is not None)

    text = test_sampling.texts()
    found = []
    for number, limit in enumerate((1 << 30, 0)):
        limits = replace(memory_limits("cpu"), activations=limit)
        monkeypatch.setattr(parts, "memory_limits", lambda device, limits=limits: limits)
        job = parts.Job(
            test_sampling.small_model(),
            text.evaluated(),
            text.pool,
            test_sampling.SAMPLER,
            0,
            "x",
            {},
            20,
        )
        out = tmp_path / f"{number}.zarr"
        with parts.component_parts(job, ["1:0"], Noting, out, torch.device("cpu"), print) as (
            path,
        ):
            found.append(parts.read_part(path)["shift"].values)
    assert kept == [True, False]
    np.testing.assert_allclose(found[0], found[1], atol=2e-7)
