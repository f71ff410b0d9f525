"""What a scale fetches and computes, and what that would cost, before anything is started."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..components import head_names
from ..config import (
    HubCorpusConfig,
    HubModelConfig,
    PackagesCorpusConfig,
    ScaleConfig,
    TrainModelConfig,
    domain_names,
    model_shape,
    package_corpus,
)
from ..models.shapes import Shape, parameter_count
from ..tokens import CONTROL_PROBE, probe_positions
from .forecast import Planner
from .ground_truth import ground_truth
from .rates import DEVICES, MEASUREMENTS
from .runs import Run
from .tables import Options, duration, estimate, size


def scale_runs(scale: ScaleConfig, shape: Shape, probes: int) -> list[tuple[str, Run, int, int]]:
    """(title, run, how often it is run, jobs of each) of a scale."""
    two_layer, per_token = scale.two_layer, scale.two_layer.per_token
    names = ("full", *head_names(shape))
    run = Run(
        shape,
        names,
        two_layer.context,
        two_layer.base_contexts,
        probes * len(probe_positions(two_layer.base_contexts, two_layer.delta_h)),
        two_layer.sgld_contexts,
        two_layer.sampler,
        two_layer.evaluation.control_variate,
        per_token=False,
    )
    tokens = replace(
        run, probes=probes * per_token.contexts, sampler=per_token.sampler, per_token=True
    )
    controls = len(two_layer.steps(two_layer.control_checkpoints))
    token_controls = len(two_layer.steps(per_token.control_checkpoints))
    token_steps = len(two_layer.steps(per_token.checkpoints))
    return [
        ("dataset susceptibilities", run, len(two_layer.checkpoints) + controls, 1),
        ("per-token susceptibilities", tokens, token_steps + token_controls, per_token.shards),
    ]


def plan(scale: ScaleConfig, root: Path = Path(), options: Options | None = None) -> str:
    """What a scale fetches and computes, and what that costs. Needs no network."""
    options = options or Options(folder=root / MEASUREMENTS)
    two_layer = scale.two_layer
    shape = model_shape(two_layer.model, root)
    names = domain_names(scale.corpus, root)
    probes = len(names) + 1
    lines = [f"scale {scale.scale}: results in results/{scale.scale}", ""]
    lines += _downloads(scale, shape, root)
    runs = scale_runs(scale, shape, probes)
    for (title, run, _, jobs), (steps, controls) in zip(
        runs,
        [
            (two_layer.checkpoints, two_layer.control_checkpoints),
            (two_layer.per_token.checkpoints, two_layer.per_token.control_checkpoints),
        ],
        strict=True,
    ):
        where = f", in {jobs} shards" if run.per_token else ""
        lines += _sampling(title + where, run, len(steps), len(controls), probes)
    lines += ["", f"probes: {', '.join(names)}, {CONTROL_PROBE}", ""]
    lines += _costs(runs, options)
    lines += ["", *ground_truth(options)]
    return "\n".join(lines)


def _downloads(scale: ScaleConfig, shape: Shape, root: Path) -> list[str]:
    corpus, model = scale.corpus, scale.two_layer.model
    lines = ["downloads"]
    if isinstance(corpus, PackagesCorpusConfig):
        sources = [s for d in package_corpus(corpus, root).domains.values() for s in d.sources]
        releases = sorted({f"{source.package} {source.version}" for source in sources})
        lines.append(f"  {len(releases)} package releases, once: {', '.join(releases)}")
    elif isinstance(corpus, HubCorpusConfig):
        lines.append(f"  datasets, {corpus.documents} documents of each:")
        sources = [corpus.train, *corpus.domains.values()]
        lines += [f"    {repo}" for repo in dict.fromkeys(source.repo for source in sources)]
    else:
        lines.append(f"  no text: {corpus.path} is read")
    if isinstance(model, HubModelConfig):
        lines.append(f"  tokenizer {model.tokenizer}")
        lines.append(
            f"  {len(scale.two_layer.checkpoints)} checkpoints of {model.repo}, "
            f"{4 * parameter_count(shape) / 1e6:.0f} MB each"
        )
    elif isinstance(model, TrainModelConfig):
        tokens = model.training.steps * model.training.batch * shape.n_ctx
        lines += [f"  no weights: {model.name} is trained here", "", "training"]
        lines.append(f"  {model.training.steps} steps, {tokens / 1e6:.0f}M tokens")
    else:
        lines.append(f"  no weights: {model.path} is used")
    return lines


def _sampling(title: str, run: Run, steps: int, controls: int, probes: int) -> list[str]:
    """Lines about what one kind of chains is."""
    c, often = run.sampler, (steps + controls) * run.sampler.chains
    each = [c.of(name) for name in run.names]
    gradient = often * sum(own.gradients for own in each) * c.batch * run.context
    draws = sum(own.draws + run.controls for own in each)
    evaluated = often * draws * run.contexts * run.context
    controlled = f" and {run.controls} controls" if run.controls else ""
    full = c.of("full")
    more = f"; {full.steps} steps, {full.draws} draws of the whole model" if full != c else ""
    return [
        "",
        f"sampling, {title}",
        f"  {steps} checkpoints, {controls} controls at n_beta = 0",
        f"  each: {len(run.names)} components (heads and the whole model) x {c.chains} chains x "
        f"{c.steps} steps, {c.draws} draws{controlled} evaluated{more}",
        f"  a draw: {run.contexts} contexts of {run.context} tokens ({run.base} base, "
        f"{run.probes // probes} for each of {probes} probes)",
        f"  tokens: {gradient:.2e} with gradient, {evaluated:.2e} without",
    ]


def _costs(runs: list[tuple[str, Run, int, int]], options: Options) -> list[str]:
    """Time, memory and disk of a scale's runs on the chosen device, and in short on others."""
    first = runs[0][1]
    rates = options.rates(first.shape, first.context)
    lines = [f"cost of the sampling: {rates.device}", f"  rates {rates.source}"]
    seconds, memory, disk = 0.0, 0.0, 0.0
    for title, run, times, shards in runs:
        found, totals = estimate(f"{title}, each of {times}", run, options, rates)
        jobs = shard_seconds(options.planner(run, rates), shards)
        lines += [f"  {line}" for line in found]
        lines.append(
            f"    as the workflow deals it: {times * shards} jobs, the longest "
            f"{duration(max(jobs))}"
        )
        seconds, disk = seconds + times * sum(jobs), disk + times * totals.disk
        memory = max(memory, totals.memory)
    cores = os.cpu_count() or 1
    side = f", {duration(seconds / cores)} on {cores} cores" if options.kind == "cpu" else ""
    lines.append(
        f"  together {duration(seconds)}, one job after another{side}; memory {size(memory)} a "
        f"job, disk {size(disk)}"
    )
    for name in DEVICES:
        if name == options.device:
            continue
        other = replace(options, device=name, memory=None)
        rates = other.rates(first.shape, first.context)
        seconds = sum(
            times * sum(shard_seconds(other.planner(run, rates), shards))
            for _, run, times, shards in runs
        )
        lines.append(f"  on one {rates.device}, products in {other.precision}: {duration(seconds)}")
    return lines


def shard_seconds(planner: Planner, shards: int) -> list[float]:
    """Time of every job of a run whose components are dealt to so many."""
    plans = planner.components()
    return [planner.start + sum(p.seconds for p in plans[i::shards]) for i in range(shards)]
