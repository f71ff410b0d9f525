"""What the planner predicts beside what is measured, on this machine, now.

    python benchmarks/prediction.py    # seconds

The shipped two-layer model: one evaluation of all draws and one gradient step, by the fast path and
the plain one. Prints predicted over measured processor time.
"""

from __future__ import annotations

from functools import partial

import torch

from cases import SHIPPED
from susceptibilities.components import component
from susceptibilities.losses import component_losses
from susceptibilities.models.loading import available_steps, load_checkpoint
from susceptibilities.planning import work
from susceptibilities.planning.calibration import Clock, measured_rates

CONTEXT, CONTEXTS, DRAWS, CHAINS, BATCH = 128, 8, 6, 4, 2


def main() -> None:
    torch.set_num_threads(1)
    model = load_checkpoint(SHIPPED, available_steps(SHIPPED)[-1])
    shape, parameters = model.config, dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, shape.d_vocab, (CONTEXTS, CONTEXT), generator=generator)
    rows = torch.randint(0, CONTEXTS, (CHAINS, BATCH), generator=generator)
    rates, clock = measured_rates(shape, CONTEXT), Clock(torch.device("cpu"))
    print(f"rates {rates.source}")
    for name, plain in (("0:0", False), ("1:0", False), ("0:0", True), ("full", True)):
        part = component(name, shape, parameters)
        losses = component_losses(model, part, plain=plain)
        prepared = losses.prepare(tokens, keep=False)
        weights = losses.w_star.repeat(DRAWS, 1)
        if plain:
            evaluated = work.plain_evaluation(shape, DRAWS + 1, CONTEXTS, CONTEXT)
            stepped = work.plain_gradient(part, shape, CHAINS, BATCH, CONTEXT)
        else:
            evaluated = work.evaluation(part, shape, DRAWS, CONTEXTS, CONTEXT)
            evaluated += work.shared(part, shape, CONTEXTS, CONTEXT)
            stepped = work.gradient(part, shape, CHAINS, BATCH, CONTEXT)
            stepped += work.streams_below(part, shape, CHAINS * BATCH, CONTEXT)
        evaluate = partial(losses.shifts, weights, prepared)
        step = partial(losses.loss_and_gradient, weights[:CHAINS], prepared, rows)
        ratios = (
            rates.seconds("evaluation", evaluated) / clock(evaluate),
            rates.seconds("gradient", stepped) / clock(step),
        )
        path = "plain" if plain else "fast"
        print(f"{name}, {path} path: evaluation {ratios[0]:.2f}, gradient {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
