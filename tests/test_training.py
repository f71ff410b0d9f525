"""Training: bitwise resume, schedule, checkpoints, refusals. Models of a few hundred weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file

from susceptibilities.models import (
    AttentionOnly,
    AttentionOnlyConfig,
    GPTNeoX,
    GPTNeoXConfig,
    Shape,
)
from susceptibilities.models.loading import available_steps, checkpoint_path
from susceptibilities.store import read_json
from susceptibilities.training import (
    PAPER_STEPS,
    TrainingConfig,
    batch_rows,
    mean_loss,
    train,
)

SHAPE = AttentionOnlyConfig(n_layers=2, n_heads=2, d_model=8, d_head=4, n_ctx=8, d_vocab=16)
SETTINGS = TrainingConfig(
    steps=60,
    batch=4,
    learning_rate=1e-2,
    warmup_steps=5,
    decay_share=0.4,
    sinusoidal_start=True,
    log_every=5,
    save_every=10,
    seed=3,
)
NEOX = GPTNeoXConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=8, d_vocab=16, rotary_pct=0.5)
NEOX_SETTINGS = SETTINGS.model_copy(update={"sinusoidal_start": False})
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads wait for each other far longer than these sizes take to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def contexts(rows: int, seed: int = 0) -> np.ndarray:
    """Counting upwards from a random token: learned in a few steps."""
    start = np.random.default_rng(seed).integers(1, 16, (rows, 1))
    tokens = (start + np.arange(8)) % 15 + 1
    tokens[:, 0] = 0
    return tokens.astype(np.uint16)


def run(
    folder: Path,
    settings: TrainingConfig = SETTINGS,
    rows: int = 30,
    seed: int = 0,
    shape: Shape = SHAPE,
) -> list[str]:
    messages: list[str] = []
    train(shape, settings, contexts(rows, seed), contexts(8, 9), folder, CPU, messages.append)
    return messages


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_leaves_its_checkpoints(tmp_path: Path) -> None:
    run(tmp_path)
    assert available_steps(tmp_path) == SETTINGS.checkpoint_steps()
    held_out = {e["step"]: e["held_out_loss"] for e in log(tmp_path) if "held_out_loss" in e}
    assert sorted(held_out) == SETTINGS.checkpoint_steps()
    assert held_out[0] > 2.5
    assert held_out[60] < 1.5
    assert [e["step"] for e in log(tmp_path) if "train_loss" in e] == list(range(5, 61, 5))
    # The logged loss is the checkpoint's own.
    model = AttentionOnly(SHAPE)
    model.load_state_dict(load_file(checkpoint_path(tmp_path, 60)))
    test = torch.from_numpy(contexts(8, 9).astype(np.int64))
    assert mean_loss(model, test) == held_out[60]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "log.jsonl",
        "run.json",
    ]


CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
import test_training as t
def slowly(message):
    print(message, flush=True)
    time.sleep(0.05)
t.train(t.SHAPE, t.SETTINGS, t.contexts(30), t.contexts(8, 9), Path(sys.argv[1]), t.CPU, slowly)
"""


def test_kill_9_and_again_gives_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole)
    path = [str(Path(__file__).parent), *sys.path]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(path=path), str(killed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    # In the middle: after the states of steps 10 to 30 and some checkpoints.
    for line in child.stdout:
        if line.startswith("step 36"):
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert (killed / "state.safetensors").exists()
    assert not (killed / "log.jsonl").exists()
    messages = run(killed)
    assert messages[0] == "going on from step 30"
    assert files(killed) == files(whole)


def ending(stop: int) -> np.ndarray:
    """The contexts of a run, which end it by raising at step ``stop``."""

    class Ending(np.ndarray):
        reads = 0

        def __getitem__(self, rows):
            Ending.reads += 1
            if Ending.reads > stop:
                raise KeyboardInterrupt
            return np.asarray(super().__getitem__(rows))

    return contexts(30).view(Ending)


@pytest.mark.parametrize("stop", [1, 10, 11, 24, 59])
def test_stopped_at_any_step_gives_the_same_bytes(tmp_path: Path, stop: int) -> None:
    """As above in one process."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(whole)

    with pytest.raises(KeyboardInterrupt):
        train(SHAPE, SETTINGS, ending(stop), contexts(8, 9), stopped, CPU, lambda _: None)
    run(stopped)
    assert files(stopped) == files(whole)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gpt_neox_learns_and_goes_on_with_the_same_bytes(tmp_path: Path, precision: str) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = NEOX_SETTINGS.model_copy(update={"precision": precision})
    run(whole, settings, shape=NEOX)
    losses = {e["step"]: e["held_out_loss"] for e in log(whole) if "held_out_loss" in e}
    assert losses[0] > 2.5
    assert losses[60] < 1.8
    model = GPTNeoX(NEOX)
    model.load_state_dict(load_file(checkpoint_path(whole, 60)))
    assert mean_loss(model, torch.from_numpy(contexts(8, 9).astype(np.int64))) == losses[60]
    with pytest.raises(KeyboardInterrupt):
        train(NEOX, settings, ending(24), contexts(8, 9), stopped, CPU, lambda _: None)
    run(stopped, settings, shape=NEOX)
    assert files(stopped) == files(whole)
    assert read_json(whole / "run.json")["shape"]["kind"] == "gpt_neox"


def test_rotary_positions_do_not_start_from_sinusoids(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sinusoidal_start must be false"):
        run(tmp_path, SETTINGS, shape=NEOX)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path)
    before, written = files(tmp_path), checkpoint_path(tmp_path, 60).stat().st_mtime_ns
    time.sleep(0.01)
    assert run(tmp_path) == [f"{tmp_path} holds this run, finished"]
    assert files(tmp_path) == before
    assert checkpoint_path(tmp_path, 60).stat().st_mtime_ns == written


@pytest.mark.parametrize("finished", [True, False])
def test_another_run_is_refused(tmp_path: Path, finished: bool) -> None:
    if finished:
        run(tmp_path)
    else:
        with pytest.raises(ValueError, match="loss"):
            run(tmp_path, SETTINGS.model_copy(update={"learning_rate": 1e30}))
    before = files(tmp_path)
    slower = SETTINGS.model_copy(update={"learning_rate": 9e-3})
    with pytest.raises(ValueError, match="holds a run with other settings or data"):
        run(tmp_path, slower)
    with pytest.raises(ValueError, match="holds a run with other settings or data"):
        run(tmp_path, seed=1)
    assert files(tmp_path) == before


def test_unknown_checkpoints_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="checkpoints of an unknown run"):
        run(tmp_path)


def test_how_often_it_logs_does_not_change_the_weights(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", SETTINGS.model_copy(update={"log_every": 20, "save_every": 20}))
    for step in SETTINGS.checkpoint_steps():
        a, b = (checkpoint_path(tmp_path / name, step).read_bytes() for name in "ab")
        assert a == b


def test_a_loss_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss is (nan|inf) at step \d+: lower the learning rate"):
        run(tmp_path, SETTINGS.model_copy(update={"learning_rate": 1e30}))
    for step in available_steps(tmp_path):
        state = load_file(checkpoint_path(tmp_path, step))
        assert all(value.isfinite().all() for value in state.values())
    assert not (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ({}, {"batch": 31}, "a batch takes 31 contexts, the training text has 30"),
        ({"n_ctx": 7}, {}, "contexts of 8 tokens, the model has 7"),
        ({"d_vocab": 15}, {}, "token 15 in the training text, but the model's vocabulary has 15"),
    ],
)
def test_data_that_do_not_fit(
    tmp_path: Path, shape: dict[str, int], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(
            SHAPE.model_copy(update=shape),
            SETTINGS.model_copy(update=settings),
            contexts(30),
            contexts(8, 9),
            tmp_path,
            CPU,
        )
    assert list(tmp_path.iterdir()) == []


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError, match="save_every must be a multiple of log_every"):
        TrainingConfig(steps=10, batch=1, learning_rate=1e-3, log_every=50, save_every=75)
    with pytest.raises(ValidationError, match="decay_share"):
        TrainingConfig(steps=10, batch=1, learning_rate=1e-3, decay_share=1.5)
    with pytest.raises(ValidationError, match="Extra inputs"):
        TrainingConfig.model_validate(
            {"steps": 10, "batch": 1, "learning_rate": 1e-3, "momentum": 0.9}
        )


def test_the_papers_checkpoints() -> None:
    """Baker C.1 names 29 steps for its run of 50,000."""
    paper = TrainingConfig(steps=50_000, batch=100, learning_rate=1e-3)
    assert tuple(paper.checkpoint_steps()) == PAPER_STEPS
    assert len(PAPER_STEPS) == 29
    assert {paper.rate(step) for step in (0, 1, 25_000, 49_999)} == {1e-3}
    half = paper.model_copy(update={"steps": 25_000})
    assert half.checkpoint_steps() == [step // 2 for step in PAPER_STEPS]


@given(
    steps=st.integers(1, 500),
    warmup=st.integers(0, 100),
    decay=st.integers(0, 10).map(lambda tenths: tenths / 10),
)
def test_rate_in_closed_form(steps: int, warmup: int, decay: float) -> None:
    settings = TrainingConfig(
        steps=steps, batch=1, learning_rate=0.5, warmup_steps=warmup, decay_share=decay
    )
    for step in range(steps):
        up = 1.0 if step + 1 >= warmup else (step + 1) / warmup
        flat = steps * (1 - decay)
        down = 1.0 if step <= flat or decay == 0 else (steps - step) / (steps - flat)
        assert settings.rate(step) == pytest.approx(0.5 * up * down, rel=1e-6)
        assert settings.rate(step) > 0


@given(batch=st.integers(1, 7), rows=st.integers(7, 40), seed=st.integers(0, 5))
def test_an_epoch_takes_every_row_at_most_once(batch: int, rows: int, seed: int) -> None:
    per_epoch = rows // batch
    first = np.concatenate([batch_rows(step, batch, rows, seed) for step in range(per_epoch)])
    assert len(set(first.tolist())) == len(first) == per_epoch * batch
    assert first.max() < rows
    np.testing.assert_array_equal(batch_rows(0, batch, rows, seed), first[:batch])


def test_epochs_have_their_own_order() -> None:
    one, two, other = batch_rows(0, 30, 30, 0), batch_rows(1, 30, 30, 0), batch_rows(0, 30, 30, 1)
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert sorted(two) == list(range(30))


def test_the_record_of_a_run(tmp_path: Path) -> None:
    run(tmp_path)
    record = read_json(tmp_path / "run.json")
    assert TrainingConfig.model_validate(record["settings"]) == SETTINGS
    assert AttentionOnlyConfig.model_validate(record["shape"]) == SHAPE
