"""Plans: texts of the scales, forecasts against what a run counts, jobs, rates, block sizes."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from susceptibilities.blocks import (
    FLOAT,
    gradient_rows,
    losses_blocks,
    memory_limits,
    row_bytes,
    saved_numbers,
)
from susceptibilities.components import component, component_names, head_names
from susceptibilities.config import load_scale
from susceptibilities.evaluation import Evaluation
from susceptibilities.models.attention_only import AttentionOnlyConfig
from susceptibilities.models.gpt_neox import PYTHIA, GPTNeoXConfig
from susceptibilities.models.loading import available_steps, load_checkpoint
from susceptibilities.models.shapes import Shape, new_model
from susceptibilities.planning import work
from susceptibilities.planning.forecast import ComponentPlan, Planner
from susceptibilities.planning.ground_truth import ground_truth, ground_truth_run
from susceptibilities.planning.jobs import split
from susceptibilities.planning.operations import Cost
from susceptibilities.planning.plan import plan
from susceptibilities.planning.rates import (
    DEVICES,
    Rates,
    RatesError,
    Shares,
    measurements,
    published_rates,
)
from susceptibilities.planning.runs import PlanError, Run
from susceptibilities.planning.tables import Options, duration, estimate, size, table
from susceptibilities.posterior import SamplerConfig
from susceptibilities.token_sampling import TokenTexts, sample_tokens

ROOT = Path(__file__).parents[1]
ATTENTION_ONLY = AttentionOnlyConfig(
    n_layers=2, n_heads=2, d_model=32, d_head=16, n_ctx=16, d_vocab=64
)
NEOX = GPTNeoXConfig(n_layers=2, n_heads=2, d_model=32, n_ctx=16, d_vocab=64, d_mlp=64)
SHIPPED = ROOT / "models" / "two-layer-10d"


def sampler(**changes: Any) -> SamplerConfig:
    given_ = {"method": "sgld", "n_beta": 1, "localization": 100, "step_size": 1e-3}
    sizes = {"chains": 2, "burn_in": 1, "draws": 3, "thinning": 2, "batch": 2}
    return SamplerConfig.model_validate({**given_, **sizes, **changes})


def unit_rates(memory: float = 1e12, step: float = 0.0) -> Rates:
    """One operation a second: seconds are operations."""
    return Rates("unit", "float32", memory, "made up", 1.0, float("inf"), step, 0.0)


def fixed(shape: Shape, context: int, kind: str) -> Rates:
    """This machine without measuring it."""
    return replace(unit_rates(8e9), peak=1e11, device="this machine")


@pytest.fixture
def run() -> Run:
    return Run(NEOX, component_names(NEOX), 8, 4, 6, 10, sampler())


# ---- texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoke", "mini", "desk", "paper"])
def test_plan_of_shipped_scales(name: str) -> None:
    scale = load_scale(name, root=ROOT)
    text = plan(scale, ROOT, Options(measured=fixed, folder=ROOT / "none"))
    assert f"scale {name}" in text
    assert f"{len(scale.two_layer.checkpoints)} checkpoints" in text
    for expected in ("downloads", "heads of layer 0", "on one NVIDIA H200 SXM", "4,800 H200-hours"):
        assert expected in text
    assert "Pythia-1.4B" in text and "Pythia-14M" in text
    if name == "paper":
        assert "timaeus/dsir-pile-1m-2" in text and "timaeus/pile-freelaw" in text
        assert "29 checkpoints of georgeyw/L2W256-3m-rr, 13 MB each" in text
    else:
        assert "package releases, once:" in text and "no weights: models/two-layer-10d" in text


def test_a_job_longer_than_asked_for_is_cut(run: Run) -> None:
    lines, totals = estimate("title", run, Options(job_hours=1 / 3600), unit_rates())
    text = "\n".join(lines)
    assert f"{len(run.names)} components have a job for their chains" in text
    assert f"and {totals.jobs - len(run.names)} in all for the losses" in text
    assert "jobs of at most about 1.0 s" in text
    lines, totals = estimate("title", run, Options(job_hours=1e9), unit_rates())
    assert totals.jobs == 1 and "have a job for their chains" not in "\n".join(lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (42, "42 s"), (700, "12 min"), (7200, "2.0 h"), (4e6, "1,111 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_size_and_table() -> None:
    assert [size(n) for n in (2e3, 5e6, 1.26e9, 3e12)] == ["2 kB", "5.0 MB", "1.3 GB", "3.0 TB"]
    assert table([["a", "bcd"], ["long", "e"]], "") == ["a     bcd", "long    e"]


def command_line(*words: str) -> Callable[[pytest.MonkeyPatch], None]:
    def call(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["plan.py", *words])
        threads = torch.get_num_threads()
        try:
            runpy.run_path(str(ROOT / "workflow" / "plan.py"), run_name="__main__")
        finally:
            torch.set_num_threads(threads)

    return call


def test_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    command_line(
        *("--shape", "pythia-14m", "--device", "h200", "--precision", "bfloat16"),
        *("--tokens", "1e5", "--components", "0:0,mlp:5", "--memory-gb", "60"),
    )(monkeypatch)
    text = capsys.readouterr().out
    assert "pythia-14m, 2 components, 100,254 tokens: NVIDIA H200 SXM" in text
    assert "MLP of layer 5" in text and "assumed: 40%" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shape", "pythia-9b", "--device", "h100"), "expected the folder of a model, or one of"),
        (("--job-hours", "0"), "--job-hours: expected more than 0"),
        (("--share", "1.5"), "share of products: expected more than 0, at most 1"),
        (
            ("--shape", "pythia-1.4b", "--device", "h100", "--memory-gb", "2"),
            "2.00 GB of memory; the process and the model take 6.66 GB",
        ),
        (
            ("--shape", "pythia-14m", "--device", "h100", "--context", "4096"),
            "a context of 4096 tokens; expected 2 to 2048",
        ),
        (
            ("--shape", "pythia-14m", "--device", "h100", "--components", "9:9"),
            "no component '9:9'",
        ),
    ],
)
def test_command_line_errors(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        command_line(*words)(monkeypatch)
    assert message in str(stopped.value)


# ---- forecasts --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [ATTENTION_ONLY, NEOX], ids=lambda s: s.kind)
@pytest.mark.parametrize("control", ["none", "linear"])
def test_operations_are_those_of_a_real_run(shape: Shape, control: Any, tmp_path: Path) -> None:
    model = new_model(shape)
    model.initialise(torch.Generator().manual_seed(0))
    names = ["full", *component_names(shape)]
    planned = Run(shape, names, 6, 4, 8, 10, sampler(), control)
    rng = np.random.default_rng(0)
    base, probe, pool = (rng.integers(0, 64, (n, 6)) for n in (4, 8, 10))
    mapping = {torch.ops.aten.addmm_: lambda t, a, b, **_: 2 * a[0] * a[1] * b[1]}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with sdpa_kernel(SDPBackend.MATH), counter:
        sample_tokens(
            model.eval(),
            names,
            TokenTexts(base, {"probe": probe}, pool),
            planned.sampler,
            seed=0,
            step=0,
            model_hash="",
            out=tmp_path / "out.zarr",
            device=torch.device("cpu"),
            report=lambda _: None,
            evaluation=Evaluation(control_variate=control),
        )
    planner = Planner(planned, unit_rates())
    stored = work.plain_evaluation(shape, 1, planned.probes, planned.context).operations
    expected = sum(p.operations for p in planner.components()) + planner.start + stored
    # The counter has the whole square of the scores, the plan the causal half; and blocks here
    # are of all contexts at once, where the plan has full ones.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def test_seconds_are_operations_over_rates(run: Run) -> None:
    plans = Planner(run, unit_rates(step=7.0)).components()
    for p in plans:
        steps = run.sampler.steps * 7.0
        assert p.seconds == pytest.approx(p.operations + steps)
        twice = replace(unit_rates(step=7.0), peak=2.0)
    halved = Planner(run, twice).components()
    for p, half in zip(plans, halved, strict=True):
        assert half.seconds - steps == pytest.approx((p.seconds - steps) / 2)


def test_work_grows_as_it_should(run: Run) -> None:
    def plans(**changes: Any) -> list[ComponentPlan]:
        return Planner(replace(run, **changes), unit_rates()).components()

    ones, more = plans(), plans(probes=16)
    for one, two in zip(ones, more, strict=True):
        # Ten evaluated contexts, then twenty; but products of weights alone are made once.
        once = work.projected_outputs(one.part, run.shape, 6).operations
        assert two.evaluation == pytest.approx(2 * one.evaluation - once)
        assert two.sampling == one.sampling
        # Of the contexts that are stored, 6 and 16.
        trace = 8 * run.sampler.chains * run.sampler.steps
        assert (two.disk - trace) * 6 == (one.disk - trace) * 16
    longer = plans(sampler=sampler(thinning=4))
    gradients = [run.sampler.gradients, sampler(thinning=4).gradients]
    assert gradients == [1 + 3 * 2 + 3, 1 + 3 * 4 + 3]
    for one, two in zip(ones, longer, strict=True):
        assert two.evaluation == one.evaluation
        assert two.sampling > one.sampling
    controlled = plans(control_variate="linear")
    for one, two in zip(ones, controlled, strict=True):
        # Two evaluations a chain beside three of draws.
        assert 1.2 < two.evaluation / one.evaluation <= 5 / 3 + 1e-9


def test_heads_of_a_layer_share_the_streams_below(run: Run) -> None:
    alone = Planner(replace(run, names=("1:0",)), unit_rates()).components()[0]
    both = Planner(replace(run, names=("1:0", "1:1")), unit_rates()).components()
    assert both[0].operations == both[1].operations < alone.operations
    below = work.streams_below(alone.part, run.shape, 1, run.context).operations
    saved = alone.operations - both[0].operations
    assert saved == pytest.approx(below * (run.contexts + run.pool) / 2)


def test_memory_decides_what_is_held() -> None:
    reported = ground_truth_run("1.4b")
    some = replace(reported, names=("embed", "0:0", "12:0", "23:0", "mlp:3", "unembed"))
    by_memory = {}
    for gigabytes in (80, 141):
        rates = published_rates("h200", some.shape, "bfloat16", folder=ROOT / "none")
        planner = Planner(some, rates, "cuda", gigabytes * 1e9)
        by_memory[gigabytes] = planner.components()
        for p in by_memory[gigabytes]:
            assert p.memory <= gigabytes * 1e9
            assert p.held * p.turns >= some.sampler.draws
            limit = memory_limits("cuda", int(gigabytes * 1e9)).draws
            assert p.held == 1 or 4 * p.held * p.part.size * FLOAT <= limit
    small, large = by_memory[80], by_memory[141]
    assert small[0].held < large[0].held  # the embedding's draws are 0.4 GB each
    assert small[1].chains_together < large[2].chains_together == 4
    assert small[0].evaluation > large[0].evaluation
    with pytest.raises(PlanError, match=r"component full needs .* GB beside the model"):
        Planner(replace(some, names=("full",)), rates, "cuda").components()


def test_kept_streams_save_the_prefix() -> None:
    reported = replace(ground_truth_run("1.4b"), names=("20:0",))
    rates = published_rates("h200", reported.shape, "bfloat16", folder=ROOT / "none")
    planner = Planner(reported, rates, "cuda")
    small = replace(reported, pool=planner.kept_contexts)
    kept, again = (Planner(r, rates, "cuda").components()[0] for r in (small, reported))
    one_more = Planner(replace(small, pool=small.pool + 1), rates, "cuda").components()[0]
    assert kept.sampling < 0.5 * again.sampling
    assert one_more.sampling == again.sampling


def test_forecast_of_the_papers_run() -> None:
    reported = ground_truth_run("1.4b")
    (part,) = work.components_of(reported.shape, ("0:0",))
    token = work.plain_evaluation(reported.shape, 1, 1, 1024).operations / 1024
    assert 2.6e9 < token < 2.9e9  # twice its 1.3e9 weights beside the embedding, and attention
    sum_ = sum(
        work.evaluation(p, reported.shape, 400, 1, 1024).operations
        for p in work.components_of(reported.shape, reported.names)
    )
    # From the perturbed layer on: about half of the whole model.
    whole = work.plain_evaluation(reported.shape, 400 * 410, 1, 1024).operations
    assert 0.45 < sum_ / whole < 0.56
    lines = ground_truth(Options(folder=ROOT / "none"))
    rows = {tuple(x.split()[:4]): x.split() for x in lines if x.startswith("  Pythia-")}
    assert len(rows) == 12
    evaluated = rows["Pythia-1.4B", "410", "H200", "bfloat16"]
    hours = float(evaluated[6].replace(",", ""))
    # 4.25e6 tokens, 400 draws, half of 2.75e9 operations each, at 0.4 of 989e12 a second.
    assert hours == pytest.approx(410 * 4.25e6 * 400 * token / 2 / 0.4 / 989.4e12 / 3600, rel=0.3)
    assert part.size == 4 * 2048 * 128 + 3 * 128


# ---- jobs -------------------------------------------------------------------------------------


def made_plan(name: str, sampling: float, evaluation: float) -> ComponentPlan:
    part = component(name, NEOX, dict(new_model(NEOX).named_parameters()))
    return ComponentPlan(part, sampling, evaluation, 1, 1, 1, 1, 1, 1, 1, 1)


@settings(max_examples=50, deadline=None)
@given(
    times=st.lists(st.tuples(st.floats(0.01, 30), st.floats(0.01, 30)), min_size=1, max_size=8),
    contexts=st.integers(1, 40),
    start=st.floats(0, 1),
)
def test_jobs_do_everything_once(
    times: list[tuple[float, float]], contexts: int, start: float
) -> None:
    names = component_names(NEOX)[: len(times)]
    plans = [made_plan(n, *t) for n, t in zip(names, times, strict=False)]
    jobs = split(plans, contexts, 10.0, start)
    for p in plans:
        own = [job for job in jobs if p.part.name in job.names]
        covered = [i for job in own for i in range(*job.contexts)]
        assert covered == list(range(contexts))
        if len(own) > 1:
            assert own[0].does == "sampling" and {job.does for job in own[1:]} == {"evaluation"}
    chains = sum(job.does != "evaluation" for job in jobs)
    total = sum(p.seconds for p in plans) + start * chains
    assert sum(job.seconds for job in jobs) == pytest.approx(total)
    for job in jobs:
        if job.does == "all":
            assert job.seconds <= 10.0
        if job.does == "evaluation":
            # Contexts are not cut, so a block may have one more than its share.
            (p,) = (p for p in plans if p.part.name in job.names)
            assert job.seconds <= 10.0 + p.evaluation / contexts


# ---- rates ------------------------------------------------------------------------------------


def test_roofline() -> None:
    rates = published_rates("h100", NEOX, "bfloat16", Shares(0.5, 0.25), ROOT / "none")
    flops, bytes_ = 0.5 * 989.4e12, 0.25 * 3.35e12

    def seconds(quantity: Any, **cost: float) -> float:
        return rates.seconds("evaluation", work.Work({quantity: Cost(**cost)}))

    assert seconds("layers", operations=1e15) == pytest.approx(1e15 / flops)
    assert seconds("layers", operations=1.0, traffic=1e12) == pytest.approx(2e12 / bytes_)
    both = seconds("layers", operations=1e15, traffic=1e9, passes=1e12)
    assert both == pytest.approx(1e15 / flops + 2e12 / bytes_)
    # Losses are taken in float32.
    assert seconds("logits", passes=1e12) == pytest.approx(4e12 / bytes_)
    wide = published_rates("h100", NEOX, "float32", Shares(0.5, 0.25), ROOT / "none")
    assert wide.seconds("gradient", work.Work({"layers": Cost(passes=1e12)})) == pytest.approx(
        4e12 / bytes_
    )
    assert "assumed: 50% of the published bfloat16 peak (989 TFLOP/s)" in rates.source


def measurement(shape: Shape = NEOX, **changes: Any) -> dict[str, Any]:
    return {
        "shape": shape.model_dump(),
        "context": 8,
        "precision": "bfloat16",
        "evaluation": {"layers": 5e14},
        "gradient": {"logits": 3e14},
        "something_else": 1,
        **changes,
    }


def test_measurements_replace_assumptions(tmp_path: Path) -> None:
    result = {"device": "NVIDIA H200", "achieved_rates": [measurement(step_seconds=0.01)]}
    (tmp_path / "h200.json").write_text(json.dumps(result))
    (tmp_path / "other.json").write_text(json.dumps({"table": [1, 2]}))
    assert len(measurements(tmp_path)) == 1
    found = published_rates("h200", NEOX, "bfloat16", folder=tmp_path)
    assert found.source == "measured: h200.json"
    assert found.step_seconds == 0.01
    layers, last = work.Work({"layers": Cost(1e15)}), work.Work({"logits": Cost(1e15)})
    assert found.seconds("evaluation", layers) == pytest.approx(2.0)
    assert found.seconds("gradient", last) == pytest.approx(10 / 3)
    # What is not measured is assumed still.
    assert found.seconds("evaluation", last) == pytest.approx(1e15 / (0.4 * 989.4e12))
    # More layers of the same widths are served; other widths, precisions and devices are not.
    deeper = NEOX.model_copy(update={"n_layers": 9})
    assert published_rates("h200", deeper, "bfloat16", folder=tmp_path).achieved
    assert not published_rates("h200", PYTHIA["14m"], "bfloat16", folder=tmp_path).achieved
    assert not published_rates("h200", NEOX, "tf32", folder=tmp_path).achieved
    assert not published_rates("h100", NEOX, "bfloat16", folder=tmp_path).achieved


@pytest.mark.parametrize(
    ("change", "place"),
    [({"evaluation": {"layers": -1}}, "evaluation.layers"), ({"precision": "fp8"}, "precision")],
)
def test_wrong_measurements_are_named(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    result = {"device": "NVIDIA H200", "achieved_rates": [measurement(**change)]}
    (tmp_path / "bad.json").write_text(json.dumps(result))
    with pytest.raises(RatesError, match=rf"bad\.json: achieved_rates\.0\.{place}: .*gpu\.py"):
        published_rates("h200", NEOX, "bfloat16", folder=tmp_path)


def test_unknown_device() -> None:
    with pytest.raises(RatesError, match="device 'b300' is unknown; expected one of h100, h200"):
        published_rates("b300", NEOX, "bfloat16")


# ---- blocks -----------------------------------------------------------------------------------


def test_blocks_of_a_cpu() -> None:
    shape = load_checkpoint(SHIPPED, available_steps(SHIPPED)[-1]).config
    blocks = losses_blocks("cpu", shape, 48)  # type: ignore[arg-type]
    assert (blocks.rows_of_logits, blocks.rows_of_stream) == (512, 4096)
    assert blocks.rows_of_logits * 2048 * FLOAT == 4 << 20
    # A large vocabulary is taken in parts, of rows enough for a fast product.
    assert losses_blocks("cpu", PYTHIA["1.4b"], 1).rows_of_logits == 256
    with pytest.raises(ValueError, match="at least one draw, found 0"):
        losses_blocks("cpu", NEOX, 0)


@pytest.mark.parametrize("model", ["14m", "1.4b", "12b"])
@pytest.mark.parametrize("gigabytes", [12, 80, 141])
def test_blocks_of_a_gpu_fit(model: str, gigabytes: int) -> None:
    shape, memory = PYTHIA[model], int(gigabytes * 1e9)
    few, many = (losses_blocks("cuda", shape, draws, memory) for draws in (1, 400))
    assert few.rows_of_stream <= few.rows_of_logits == many.rows_of_logits
    assert few.rows_of_stream <= many.rows_of_stream
    half = losses_blocks("cuda", shape, 400, memory // 2)
    assert half.rows_of_logits <= many.rows_of_logits
    assert half.rows_of_stream <= many.rows_of_stream
    limits = memory_limits("cuda", memory)
    kept = limits.draws + limits.activations + limits.projected + limits.losses
    logits = 3 * FLOAT * shape.d_vocab * many.rows_of_logits
    stream = FLOAT * (8 * shape.d_model + 2 * shape.d_mlp) * many.rows_of_stream
    assert kept + logits + stream <= 0.95 * memory
    rows = gradient_rows("cuda", shape, shape.n_layers, memory)
    assert rows >= 1 and (rows + 1) * row_bytes(shape, shape.n_layers) > memory // 2


def test_too_little_memory_is_said() -> None:
    with pytest.raises(ValueError, match=r"0\.10 GB of memory on cuda hold \d+ rows"):
        losses_blocks("cuda", PYTHIA["12b"], 4, int(1e8))


@pytest.mark.parametrize("shape", [ATTENTION_ONLY, NEOX], ids=lambda s: s.kind)
def test_saved_numbers_are_what_autograd_saves(shape: Shape) -> None:
    model = new_model(shape)
    model.initialise(torch.Generator().manual_seed(0))
    model.requires_grad_(False)
    stream = torch.randn(16, 16, shape.d_model, requires_grad=True)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model.layer(1, stream)
    assert out.requires_grad
    found = sum(storages.values()) / FLOAT / (16 * 16)
    # Beside them, a number or two a row and head, and the rotation's table.
    assert saved_numbers(shape) <= found <= 1.25 * saved_numbers(shape)


def test_devices_have_every_precision() -> None:
    for device in DEVICES.values():
        peaks = device.peaks
        assert peaks["bfloat16"] > peaks["tf32"] > peaks["float32"] > 1e12
    assert head_names(NEOX) == ["0:0", "0:1", "1:0", "1:1"]


def test_more_draws_of_the_unrestricted_chains_cost_what_they_do(run: Run) -> None:
    more = run.sampler.model_copy(update={"unrestricted_draws": 2 * run.sampler.draws})
    twice = run.sampler.model_copy(update={"draws": 2 * run.sampler.draws})
    found, short, long = (
        Planner(replace(run, names=("full", "0:0"), sampler=given), unit_rates()).components()
        for given in (more, run.sampler, twice)
    )
    for mine, other in ((found[0], long[0]), (found[1], short[1])):
        assert (mine.sampling, mine.evaluation) == (other.sampling, other.evaluation)
