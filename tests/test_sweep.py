"""The sweep names settings that cannot serve."""

from __future__ import annotations

from susceptibilities.sweep import judge, one_at_a_time, summary, sweep
from test_sampling import SAMPLER, small_model, texts


def test_a_sweep_finds_wild_settings() -> None:
    text = texts()
    sampler = SAMPLER.model_copy(update={"burn_in": 4, "draws": 8, "thinning": 2})
    table = sweep(
        small_model(),
        ["0:0", "1:1"],
        text.base,
        text.pool,
        one_at_a_time(sampler, {"step_size": (1e-3, 1.0)}),
    )
    assert table.height == 4
    wild = table.filter(step_size=1.0)
    assert wild["fault"].str.contains("diverged").all()
    assert not table.filter(step_size=1e-3)["fault"].str.contains("diverged").any()
    best = summary(table).row(0, named=True)
    assert best["step_size"] == 1e-3
    assert best["components"] == 2


def test_each_criterion_is_named() -> None:
    good = dict(lost=0.0, rhat=1.0, trend=0.0, acceptance=0.9, spike=3.0, signal=10.0)
    assert judge(good) == ""
    for name, value, fault in (
        ("lost", 2.0, "2 chains diverged"),
        ("rhat", 1.3, "chains disagree"),
        ("rhat", float("nan"), "chains disagree"),
        ("trend", -5.0, "not level"),
        ("acceptance", 0.1, "step too large"),
        ("spike", 20.0, "spikes"),
        ("signal", 0.5, "no rise"),
    ):
        assert fault in judge({**good, name: value})


def test_one_setting_at_a_time() -> None:
    found = one_at_a_time(SAMPLER, {"n_beta": (0.0, 10.0), "step_size": (1e-3, 1e-2)})
    assert found[0] == SAMPLER
    assert [(c.n_beta, c.step_size) for c in found] == [(10, 1e-3), (0, 1e-3), (10, 1e-2)]
