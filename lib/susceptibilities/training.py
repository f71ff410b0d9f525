"""Training of the models: AdamW, resumable to the bit, no pickles."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .models.loading import available_steps, save_checkpoint
from .models.shapes import Shape, new_model
from .models.transformer import Transformer
from .store import atomic_path, fingerprint, read_json, write_json
from .tokens import Contexts

# Baker C.1, in steps of a run of 50,000.
PAPER_STEPS = (
    *(0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1500, 2000, 3000, 4000, 5000),
    *(6000, 7000, 8000, 9000, 10000, 12500, 15000, 17500, 20000, 25000, 30000, 40000, 49900),
)
PAPER_RUN = 50_000

LOG = "log.jsonl"
FINISHED = "run.json"


class TrainingConfig(BaseModel):
    """Settings of a training run."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    steps: PositiveInt
    batch: PositiveInt
    learning_rate: PositiveFloat
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.05
    warmup_steps: NonNegativeInt = 0
    decay_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the run, at its end, over which the rate falls linearly to zero."""
    sinusoidal_start: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    seed: int = 0
    log_every: PositiveInt = 50
    save_every: PositiveInt = 1000

    @model_validator(mode="after")
    def _logs_are_whole(self) -> TrainingConfig:
        # The mean loss since the last log line is not part of the saved state.
        if self.save_every % self.log_every:
            raise ValueError(
                f"save_every must be a multiple of log_every, got {self.save_every} and "
                f"{self.log_every}"
            )
        return self

    def rate(self, step: int) -> float:
        """Learning rate of step ``step`` (from 0)."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decay_steps = self.decay_share * self.steps
        left = min(1.0, (self.steps - step) / decay_steps) if decay_steps else 1.0
        return self.learning_rate * warm * left

    def checkpoint_steps(self) -> list[int]:
        """The paper's checkpoint steps, scaled to this run's length."""
        return sorted({round(step * self.steps / PAPER_RUN) for step in PAPER_STEPS})


def batch_rows(step: int, batch: int, rows: int, seed: int) -> np.ndarray:
    """Row numbers of a step's batch: each epoch is one seeded permutation, nothing is stored."""
    per_epoch = rows // batch
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(rows)
    return order[place * batch : (place + 1) * batch]


def mean_loss(model: Transformer, contexts: Tensor, batch: int = 64) -> float:
    """Mean loss per token over ``contexts`` (row, position), without gradients."""
    total = 0.0
    with torch.inference_mode():
        for rows in contexts.split(batch):
            logits = model(rows)[:, :-1].flatten(0, 1).float()
            total += F.cross_entropy(logits, rows[:, 1:].flatten()).item() * len(rows)
    return total / len(contexts)


class _Run:
    """Model, optimiser and log of a run: what its state file holds."""

    def __init__(
        self,
        shape: Shape,
        settings: TrainingConfig,
        identity: str,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.identity, self.device = identity, device
        self.state_path = folder / "state.safetensors"
        self.model = new_model(shape)
        generator = torch.Generator().manual_seed(settings.seed)
        self.model.initialise(generator, settings.sinusoidal_start)
        self.model.to(device)
        self.parameters = dict(self.model.named_parameters())
        self.optimiser = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.log: list[dict[str, float]] = []

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def save(self, step: int) -> None:
        """Write the state before step ``step``."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"weight/{name}"] = parameter.detach()
            if step:
                tensors[f"mean/{name}"] = self.optimiser.state[parameter]["exp_avg"]
                tensors[f"square/{name}"] = self.optimiser.state[parameter]["exp_avg_sq"]
        meta = {"identity": self.identity, "step": str(step), "log": json.dumps(self.log)}
        with atomic_path(self.state_path) as temporary:
            save_file(tensors, temporary, meta)

    def restore(self) -> int:
        """Read the state file; returns the step to go on with."""
        with safe_open(self.state_path, "pt") as file:
            meta = file.metadata()
        _refuse_other(meta["identity"], self.identity, self.state_path.parent)
        step, self.log = int(meta["step"]), json.loads(meta["log"])
        state = load_file(self.state_path)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[f"weight/{name}"])
                if step:
                    self.optimiser.state[parameter] = {
                        "step": torch.tensor(float(step), device=self.device),
                        "exp_avg": state[f"mean/{name}"].to(self.device),
                        "exp_avg_sq": state[f"square/{name}"].to(self.device),
                    }
        return step


def _refuse_other(found: str, expected: str, folder: Path) -> None:
    if found != expected:
        raise ValueError(
            f"{folder} holds a run with other settings or data; "
            "train into another folder, or delete this one"
        )


def _check_data(shape: Shape, batch: int, contexts: Contexts) -> None:
    if len(contexts) < batch:
        raise ValueError(f"a batch takes {batch} contexts, the training text has {len(contexts)}")
    if contexts.shape[1] > shape.n_ctx:
        raise ValueError(f"contexts of {contexts.shape[1]} tokens, the model has {shape.n_ctx}")
    if int(contexts.max()) >= shape.d_vocab:
        raise ValueError(
            f"token {int(contexts.max())} in the training text, but the model's vocabulary has "
            f"{shape.d_vocab}: the text was made with another tokenizer"
        )


def train(
    shape: Shape,
    settings: TrainingConfig,
    contexts: Contexts,
    held_out: Contexts,
    folder: Path,
    device: torch.device,
    report: Callable[[str], None] = print,
) -> None:
    """Train, writing ``checkpoints/step_*.safetensors`` and ``log.jsonl`` into ``folder``.

    ``run.json``, with the settings, is written last: it says that the run is finished.

    An interrupted run goes on from ``state.safetensors`` and gives the same bits on the same
    machine, since batches follow from the seed and the step alone. (With several threads on a
    busy machine two runs, interrupted or not, have been seen to part in the last bits once in
    ten; with one thread never.) A finished run is left as it is.

    Args:
        contexts: training contexts (row, position); ``held_out`` likewise, for the log.

    Raises:
        ValueError: the folder holds a run with other settings or data, the data do not fit
            the model, or the loss is not finite.
    """
    _check_data(shape, settings.batch, contexts)
    identity = fingerprint(
        {
            "shape": shape.model_dump(),
            "settings": settings.model_dump(exclude={"log_every", "save_every", "compile"}),
            "data": [list(contexts.shape), hashlib.sha256(contexts.tobytes()).hexdigest()],
        }
    )
    finished = folder / FINISHED
    if finished.exists():
        _refuse_other(read_json(finished)["identity"], identity, folder)
        report(f"{folder} holds this run, finished")
        return
    run = _Run(shape, settings, identity, folder, device)
    start = 0
    if run.state_path.exists():
        start = run.restore()
        report(f"going on from step {start}")
    elif available_steps(folder):
        raise ValueError(f"{folder} holds checkpoints of an unknown run; train elsewhere")
    else:
        # From here on the folder says which run it belongs to.
        run.save(0)
    model, log = run.model, run.log

    def loss_of(tokens: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            final = model.final(model.residual(tokens))
            weight, bias = model.unembedding()
            logits = F.linear(final[:, :-1], weight.T, bias)
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    step_loss = torch.compile(loss_of) if settings.compile else loss_of
    test = torch.from_numpy(held_out.astype(np.int64)).to(device)
    wanted = set(settings.checkpoint_steps())
    clock, running = time.perf_counter(), torch.zeros((), device=device)
    for step in range(start, settings.steps + 1):
        if step in wanted and not any(e["step"] == step and "held_out_loss" in e for e in log):
            loss = _finite(mean_loss(model, test), "held-out", step)
            save_checkpoint(folder, step, run.weights())
            log.append({"step": step, "held_out_loss": loss})
            report(f"step {step}: held-out loss {loss:.4f}")
        if step == settings.steps:
            break
        if step > start and step % settings.save_every == 0:
            run.save(step)
        rows = contexts[batch_rows(step, settings.batch, len(contexts), settings.seed)]
        tokens = torch.from_numpy(rows.astype(np.int64)).to(device)
        for group in run.optimiser.param_groups:
            group["lr"] = settings.rate(step)
        run.optimiser.zero_grad()
        loss = step_loss(tokens)
        loss.backward()
        run.optimiser.step()
        running += loss.detach()
        if (step + 1) % settings.log_every == 0:
            value = _finite(running.item() / settings.log_every, "training", step + 1)
            log.append({"step": step + 1, "train_loss": value})
            running.zero_()
        if (step + 1) % (settings.log_every * 20) == 0:
            pace = (time.perf_counter() - clock) / (step + 1 - start)
            speed = settings.batch * contexts.shape[1] / pace
            left = pace * (settings.steps - step - 1) / 60
            report(
                f"step {step + 1}/{settings.steps}: loss {log[-1]['train_loss']:.4f}, "
                f"{speed:.0f} tokens/s, about {left:.0f} min left"
            )
    with atomic_path(folder / LOG) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in log))
    settings_used = {"shape": shape.model_dump(), "settings": settings.model_dump()}
    write_json(finished, {"identity": identity, **settings_used})
    run.state_path.unlink(missing_ok=True)


def _finite(value: float, name: str, step: int) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} loss is {value} at step {step}: lower the learning rate")
    return value
