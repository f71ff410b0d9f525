"""Cost of the main loop: gradient and evaluation apart, beside the arithmetic floor.

    python benchmarks/main_loop.py [--model models/two-layer-10d] [--threads 1]

Times are medians over repeats. The floor is the least number of floating-point operations of
the method that is timed (the head, the layers above it, the logits; twice that again for the
gradient with respect to activations) over the matrix-product peak measured in the same run.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from susceptibilities.components import component
from susceptibilities.losses import ComponentLosses, PlainLosses, component_losses
from susceptibilities.models.attention_only import AttentionOnlyConfig
from susceptibilities.models.loading import available_steps, load_checkpoint


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall time after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_flops() -> float:
    """Best rate of a float32 matrix product of a size that fits the cache."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    fastest = min(median_seconds(lambda: a @ b, 3) for _ in range(5))
    return 2 * 1024**3 / fastest


def forward_flops(shape: AttentionOnlyConfig, context: int, layer: int | None) -> float:
    """Operations a token of one evaluation: all of the model, or from one head upwards."""
    width, inner = shape.d_model, shape.n_heads * shape.d_head
    # Causal attention needs half of the score matrix, twice (scores and mixing).
    full_layer = 2 * 4 * width * inner + 2 * context * inner
    logits = 2 * width * shape.d_vocab
    if layer is None:
        return shape.n_layers * full_layer + logits
    return full_layer / shape.n_heads + (shape.n_layers - 1 - layer) * full_layer + logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/two-layer-10d"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--contexts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model = load_checkpoint(args.model, available_steps(args.model)[-1])
    shape = model.config
    parameters = dict(model.named_parameters())
    context = shape.n_ctx
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, shape.d_vocab, (args.contexts, context), generator=generator)
    rows = torch.randint(0, args.contexts, (args.draws, args.batch), generator=generator)
    peak = peak_flops()
    print(f"matrix-product peak: {peak / 1e9:.0f} GFLOP/s on {args.threads} thread(s)")
    print(f"{args.draws} draws stacked, context {context}; microseconds per token and draw")
    header = f"{'component':<10}{'path':<7}{'evaluate':>10}{'floor':>8}{'gradient':>10}{'floor':>8}"
    print(header)
    names = [f"{layer}:0" for layer in range(shape.n_layers)] + ["full"]
    for name in names:
        part = component(name, shape, parameters)
        paths: list[tuple[str, ComponentLosses]] = [("plain", PlainLosses(model, part))]
        if part.head is not None:
            paths.append(("fast", component_losses(model, part)))
        for label, losses in paths:
            weights = losses.w_star.repeat(args.draws, 1)
            weights = weights + 0.01 * torch.randn(weights.shape, generator=generator)
            prepared = losses.prepare(tokens)

            def evaluate(
                losses: ComponentLosses = losses,
                weights: torch.Tensor = weights,
                prepared: object = prepared,
            ) -> None:
                losses.losses(weights, prepared)  # type: ignore[arg-type]

            def gradient(
                losses: ComponentLosses = losses,
                weights: torch.Tensor = weights,
                prepared: object = prepared,
            ) -> None:
                losses.loss_and_gradient(weights, prepared, rows)  # type: ignore[arg-type]

            evaluated = median_seconds(evaluate, args.repeats)
            stepped = median_seconds(gradient, args.repeats)
            layer = part.head[0] if part.head and label == "fast" else None
            flops = forward_flops(shape, context, layer)
            # Activations need as much again; the weights of the unrestricted chain too.
            backward = 3 if name == "full" else 2
            per_eval = 1e6 / (args.draws * tokens.numel())
            per_step = 1e6 / (rows.numel() * context)
            print(
                f"{name:<10}{label:<7}{evaluated * per_eval:>10.2f}{flops / peak * 1e6:>8.2f}"
                f"{stepped * per_step:>10.2f}{backward * flops / peak * 1e6:>8.2f}"
            )
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
