"""Print what a scale, or any model and settings, would fetch, compute and cost.

    python workflow/plan.py --scale paper
    python workflow/plan.py --shape pythia-1.4b --device h200 --precision bfloat16 --draws 20

Nothing is fetched or started. This machine is measured for a second or two where it is planned
for; a GPU by name is planned from its published peaks, unless benchmarks/results has a
measurement of it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from susceptibilities.components import component_names, head_names
from susceptibilities.config import load_scale
from susceptibilities.console import run
from susceptibilities.models.gpt_neox import PYTHIA
from susceptibilities.models.loading import load_config
from susceptibilities.models.shapes import Shape
from susceptibilities.planning.plan import plan
from susceptibilities.planning.rates import DEVICES, MEASUREMENTS, Shares
from susceptibilities.planning.runs import Run
from susceptibilities.planning.tables import HERE, Options, estimate
from susceptibilities.posterior import SamplerConfig


def shape_of(name: str) -> Shape:
    """Shape of a Pythia model by name, or of the model in a folder."""
    size = name.removeprefix("pythia-")
    if size in PYTHIA:
        return PYTHIA[size]
    if Path(name).is_dir():
        return load_config(Path(name)).shape
    known = ", ".join(f"pythia-{size}" for size in PYTHIA)
    raise ValueError(f"--shape {name}: expected the folder of a model, or one of {known}")


def free_run(args: argparse.Namespace) -> Run:
    """The run that the arguments describe."""
    shape = shape_of(args.shape)
    context = args.context or min(1024, shape.n_ctx)
    sampler = SamplerConfig.model_validate(
        {
            "method": args.method,
            "n_beta": 1,  # these three do not change the cost
            "localization": 1,
            "step_size": 1e-3,
            "chains": args.chains,
            "burn_in": args.burn_in,
            "draws": args.draws,
            "thinning": args.thinning,
            "batch": args.batch,
        }
    )
    sets = {"all": component_names, "heads": head_names}
    names = sets[args.components](shape) if args.components in sets else args.components.split(",")
    probes = math.ceil(args.tokens / (context - 1))
    control = args.control_variate
    return Run(shape, names, context, args.base, probes, args.pool, sampler, control)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--config-file", help="a scale file of your own")
    device = parser.add_argument_group("device")
    device.add_argument("--device", default=HERE, choices=[HERE, *DEVICES])
    device.add_argument(
        "--precision",
        default="float32",
        choices=["bfloat16", "tf32", "float32"],
        help="of all matrix products of a device by name",
    )
    device.add_argument("--memory-gb", type=float, help="memory that may be used, in 1e9 bytes")
    device.add_argument("--job-hours", type=float, default=1.0)
    device.add_argument(
        "--share", type=float, default=Shares.products, help="assumed share of a GPU's peak"
    )
    device.add_argument(
        "--bandwidth-share", type=float, default=Shares.bandwidth, help="and of its bandwidth"
    )
    device.add_argument(
        "--fused-logits", action="store_true", help="the loss's kernel never stores the logits"
    )
    free = parser.add_argument_group("a model and settings in place of a scale")
    free.add_argument("--shape", help="pythia-14m ... pythia-12b, or the folder of a model")
    free.add_argument("--components", default="all", help="all, heads, or names: 0:1,mlp:3,full")
    free.add_argument("--tokens", type=float, default=4.25e6, help="that get a susceptibility")
    free.add_argument("--context", type=int, help="tokens of a context, at most 1024 by default")
    free.add_argument("--base", type=int, default=64, help="contexts of the observable")
    free.add_argument("--pool", type=int, default=20_000, help="contexts of minibatches")
    free.add_argument("--method", default="sgld", choices=["sgld", "rmsprop"])
    free.add_argument("--chains", type=int, default=4)
    free.add_argument("--burn-in", type=int, default=0)
    free.add_argument("--draws", type=int, default=100)
    free.add_argument("--thinning", type=int, default=160)
    free.add_argument("--batch", type=int, default=16)
    free.add_argument("--control-variate", default="none", choices=["none", "linear"])
    return parser.parse_args()


def main() -> None:
    args = arguments()
    for name in ("memory_gb", "job_hours"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')}: expected more than 0, found {value}")
    torch.set_num_threads(1)  # as the workflow's jobs
    options = Options(
        device=args.device,
        precision=args.precision,
        memory=None if args.memory_gb is None else args.memory_gb * 1e9,
        job_hours=args.job_hours,
        shares=Shares(args.share, args.bandwidth_share),
        fused_logits=args.fused_logits,
        folder=MEASUREMENTS,
    )
    if args.shape is None:
        print(plan(load_scale(args.scale, args.config_file), options=options))
        return
    what = free_run(args)
    rates = options.rates(what.shape, what.context)
    title = f"{args.shape}, {len(what.names)} components, {what.tokens:,} tokens: {rates.device}"
    lines, _ = estimate(title, what, options, rates)
    print("\n".join([*lines, f"  rates {rates.source}"]))


if __name__ == "__main__":
    run(main)
