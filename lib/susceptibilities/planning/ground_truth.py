"""What the papers' largest run, the ground truth of Pythia models, would cost on one GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..components import component_names
from ..models.gpt_neox import PYTHIA
from ..posterior import SamplerConfig
from .rates import DEVICES
from .runs import PlanError, Run
from .tables import HOUR, Options, duration, size, table, totals_of

# Gordon et al. 2026, and what they leave open.
_PAPER_TOKENS, _PAPER_HOURS = 4_250_000, 4800
_OPEN_CONTEXT, _OPEN_BASE, _OPEN_POOL = 1024, 64, 20_000


def ground_truth_run(model: str, draws: int = 100, thinning: int = 160) -> Run:
    """The run of Gordon et al. 2026 (2601.12703 Table 5, second-hand) on a Pythia model."""
    shape = PYTHIA[model]
    sampler = SamplerConfig.model_validate(
        {
            "method": "rmsprop",
            "n_beta": 10,
            "localization": 300,
            "step_size": 1e-5,
            "chains": 4,
            "burn_in": 0,
            "draws": draws,
            "thinning": thinning,
            "batch": 16,
        }
    )
    contexts = -(-_PAPER_TOKENS // (_OPEN_CONTEXT - 1))
    names = component_names(shape)
    return Run(shape, names, _OPEN_CONTEXT, _OPEN_BASE, contexts, _OPEN_POOL, sampler)


def ground_truth(options: Options) -> list[str]:
    """What the papers' ground truth would cost on one GPU, and what other settings would."""
    lines = [
        "the ground truth of Gordon et al. (2026), on one GPU",
        f"  {_PAPER_TOKENS:,} tokens, 4 chains, 100 draws, 160 steps apart, batch 16, RMSProp. "
        f"Not reported and assumed: contexts of {_OPEN_CONTEXT} tokens, {_OPEN_BASE} base "
        f"contexts, minibatches from {_OPEN_POOL:,} contexts",
        "  The unrestricted chains, 1 part in 400 of the work, come to it: at 1.4B four of them "
        "side by side, as they are run here, hold more than one GPU's memory",
    ]
    columns = ("model", "components", "GPU", "products", "sampling", "evaluation", "total")
    rows = [[*columns, "memory", "disk", f"jobs of {duration(options.job_hours * HOUR)}"]]
    measured: list[str] = []
    for model in ("14m", "1.4b"):
        run = ground_truth_run(model)
        for device in ("h100", "h200"):
            for precision in ("bfloat16", "tf32", "float32"):
                found = replace(options, device=device, precision=precision, memory=None)
                rates = found.rates(run.shape, run.context)
                planner = found.planner(run, rates)
                _, jobs, totals = totals_of(planner, options.job_hours)
                if rates.achieved:
                    measured.append(
                        f"  rates of {device.upper()}, Pythia-{model.upper()}, {precision}: "
                        f"{rates.source}"
                    )
                times = (totals.sampling, totals.evaluation, totals.seconds)
                rows.append(
                    [
                        f"Pythia-{model.upper()}",
                        str(len(run.names)),
                        device.upper(),
                        precision,
                        *map(duration, times),
                        size(totals.memory),
                        size(totals.disk),
                        f"{len(jobs):,}",
                    ]
                )
    lines += table(rows)
    lines += measured
    lines.append(
        f"  rates {'of the others ' if measured else ''}are assumed: "
        f"{options.shares.products:.0%} of the published peak of dense products, "
        f"{options.shares.bandwidth:.0%} of the memory's bandwidth; benchmarks/gpu.py measures them"
    )
    return [*lines, "", *_alternatives(options)]


def _alternatives(options: Options) -> list[str]:
    """Pythia-1.4B on one H200 in bfloat16, with other settings than the reported ones."""
    found = replace(options, device="h200", precision="bfloat16", memory=None)
    reported = ground_truth_run("1.4b")
    rates = found.rates(reported.shape, reported.context)
    planner = found.planner(reported, rates)
    _, _, first = totals_of(planner, options.job_hours)
    # As many contexts as keep the streams below and above a layer.
    pool = planner.kept_contexts
    small = replace(reported, pool=pool)

    def drawn(draws: int, thinning: int, base: Run = reported) -> Run:
        return replace(base, sampler=ground_truth_run("1.4b", draws, thinning).sampler)

    cases = [
        ("as reported", reported),
        (f"minibatches from {pool:,} contexts, whose streams are kept", small),
        ("every fifth draw: 20, 800 steps apart", drawn(20, 800)),
        ("20 draws, 160 steps apart", drawn(20, 160)),
        ("100 draws, 32 steps apart", drawn(100, 32)),
        ("100 draws, 10 steps apart", drawn(100, 10)),
        ("20 draws, 160 steps apart, streams kept", drawn(20, 160, small)),
    ]
    rows: list[Sequence[str]] = [("settings", "sampling", "evaluation", "total")]
    for title, run in cases:
        _, _, totals = totals_of(found.planner(run, rates), options.job_hours)
        times = (totals.sampling, totals.evaluation, totals.seconds)
        rows.append((title, *map(duration, times)))
    share = first.plain_operations / (_PAPER_HOURS * HOUR * DEVICES["h200"].peaks["bfloat16"])
    lines = [
        "Pythia-1.4B on one H200, products in bfloat16, with other settings",
        *table(rows),
        f"  the papers' own run: {_PAPER_HOURS:,} H200-hours; the whole model's operations for "
        f"every step and draw would be {share:.0%} of the bfloat16 peak for so long",
    ]
    try:
        (whole,) = found.planner(replace(reported, names=("full",)), rates).components()
    except PlanError as error:
        lines.append(
            f"  the unrestricted chain, which the second factor needs, comes to it: {error}"
        )
    else:
        lines.append(
            "  the unrestricted chain, which the second factor needs, comes to it: "
            f"{duration(whole.seconds)}"
        )
    return lines
