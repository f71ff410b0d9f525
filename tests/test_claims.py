"""Claims of the papers, their verdicts and the comparison."""

from __future__ import annotations

import csv
import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from report_results import MEASURED, SECTION_1, SECTION_2, config, write_experiments, write_results
from susceptibilities.claims import (
    Bound,
    Claim,
    Declared,
    InputError,
    Measured,
    leaves,
    load_declared,
    load_measured,
    load_published,
    target_of,
)
from susceptibilities.comparison import (
    COLUMNS,
    compare,
    read_failing,
    why_not_comparable,
    write_csv,
)
from susceptibilities.store import write_json
from susceptibilities.verdicts import bound_of, compare_number, judge, rounding_se

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "published"

numbers = st.floats(-1e4, 1e4, allow_subnormal=False)
errors = st.floats(0, 1e3, allow_subnormal=False)
bounds = st.floats(1e-6, 1e3)
equal = st.sampled_from(["==", "~"])


# ---- the published values ----------------------------------------------------------------------


def test_every_claim_is_loaded_in_the_order_of_the_papers() -> None:
    published = load_published(PUBLISHED)
    names = ["baker2025", "arditi2026", "gordon2026", "murfet2026"]
    assert [paper.paper for paper in published.papers] == names
    raw = {n: yaml.safe_load((PUBLISHED / f"{n}.yaml").read_text())["claims"] for n in names}
    expected = [c["id"] for n in names for c in raw[n] if c["kind"] != "setting"]
    assert list(published.claims()) == expected


def test_printed_digits_are_kept() -> None:
    claims = load_published(PUBLISHED).claims()
    assert claims["baker2025.s46.examples"][1].value == ["4.10", "2.35", "-2.76", "-3.61", "-2.17"]
    assert claims["baker2025v3.pca_layer0"][1].value == ["0.9534", "0.0183", "0.0073"]


def test_every_claim_has_exactly_one_section() -> None:
    published = load_published(PUBLISHED)
    sections = published.sections.sections
    for name, (paper, claim) in published.claims().items():
        named = [f for f, s in sections.items() if name in s.claims]
        placed = [f for f, s in sections.items() if claim.where in s.where.get(paper.paper, ())]
        assert len(named or placed) == 1, (name, claim.where, named, placed)
    claims = {claim for section in sections.values() for claim in section.claims}
    assert claims <= set(published.claims())


@pytest.mark.parametrize(
    ("folder", "target"),
    [
        ("baker2025/s4_1_dataset_susceptibilities", "s4_1"),
        ("baker2025/d_top_tokens", "d_top_tokens"),
        ("gordon2026/clustering", "clustering"),
        ("", ""),
    ],
)
def test_target(folder: str, target: str) -> None:
    assert target_of(folder) == target


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A published/ folder with one paper, to be spoilt."""
    folder = tmp_path / "published"
    sections = {"papers": ["p"], "models": {}, "corpora": [], "sections": {}}
    write_json(folder / "sections.yaml", sections)
    claim = {"id": "p.a", "where": "1", "what": "w", "kind": "number", "value": 1.5}
    write_json(folder / "p.yaml", {"paper": "p", "title": "t", "authors": ["x"], "claims": [claim]})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "claims > p.a > colour: Extra inputs"),
        ({"kind": "guess"}, "p.a > kind: Input should be 'exact'"),
        ({"value": "many"}, "value of claim p.a is not a number: 'many'"),
        ({"relation": "!="}, "p.a > relation: Input should be"),
    ],
)
def test_a_wrong_claim_is_named(published: Path, change: dict[str, str], message: str) -> None:
    paper = json.loads((published / "p.yaml").read_text())
    paper["claims"][0] |= change
    write_json(published / "p.yaml", paper)
    with pytest.raises(InputError, match=message) as error:
        load_published(published)
    assert "p.yaml" in str(error.value)


def test_a_claim_twice_and_a_paper_without_place_are_errors(published: Path) -> None:
    paper = json.loads((published / "p.yaml").read_text())
    write_json(published / "p.yaml", paper | {"claims": paper["claims"] * 2})
    with pytest.raises(InputError, match=r"p\.a is there twice"):
        load_published(published)
    write_json(published / "q.yaml", paper | {"paper": "q"})
    with pytest.raises(InputError, match=r"do not agree with the files"):
        load_published(published)


def test_text_that_is_not_yaml(published: Path) -> None:
    (published / "p.yaml").write_text("claims: [")
    with pytest.raises(InputError, match=r"p\.yaml: not readable as YAML"):
        load_published(published)


# ---- verdicts on numbers -----------------------------------------------------------------------


@given(numbers, errors, numbers, equal, bounds)
def test_a_noisy_estimate_never_matches(value, se, published, relation, bound) -> None:
    assume(3 * se > bound)
    assert compare_number(value, se, f"{published!r}", relation, bound).verdict != "match"


@given(numbers, numbers, equal, bounds)
def test_without_an_error_nothing_is_decided(value, published, relation, bound) -> None:
    assert compare_number(value, None, f"{published!r}", relation, bound).verdict == "undecided"


@given(numbers, errors, st.integers(-999, 999), equal, bounds)
def test_a_match_is_near_in_both_senses(value, se, published, relation, bound) -> None:
    judgement = compare_number(value, se, str(published), relation, bound)
    difference = abs(value - published)
    combined = math.hypot(se, rounding_se(str(published)))
    if judgement.verdict == "match":
        assert difference <= bound
        assert difference <= 3 * combined
    if judgement.verdict == "differs":
        assert difference > 3 * combined


@given(st.lists(st.floats(0, 100), min_size=2, max_size=2), errors, bounds, st.booleans())
def test_a_larger_difference_is_never_better(differences, se, bound, below) -> None:
    order = ["match", "undecided", "differs"]
    sign = -1 if below else 1
    small, large = (
        order.index(compare_number(sign * d, se, "0", "==", bound).verdict)
        for d in sorted(differences)
    )
    assert small <= large


@given(numbers, errors, st.integers(-999, 999), st.sampled_from(["<", "<=", ">"]))
def test_a_side_is_decided_only_beyond_three_errors(value, se, published, relation) -> None:
    verdict = compare_number(value, se, str(published), relation, 1.0).verdict
    margin = value - published if relation == ">" else published - value
    if verdict == "match":
        assert margin >= 3 * se
    if verdict == "differs":
        assert margin <= -3 * se
    # The other side of the same limit has the opposite verdict.
    opposite = {"match": "differs", "differs": "match", "undecided": "undecided"}
    other = "<" if relation == ">" else ">"
    if margin:
        assert compare_number(value, se, str(published), other, 1.0).verdict == opposite[verdict]


@pytest.mark.parametrize(
    ("value", "se", "printed", "relation", "verdict"),
    [
        (0.82, 0.01, "0.817", "==", "match"),
        (0.82, 0.05, "0.817", "==", "undecided"),  # too noisy
        (0.70, 0.01, "0.817", "==", "differs"),
        (0.83, 0.001, "0.817", "==", "differs"),  # near, but clearly not the same number
        (0.0426, 0.0001, "0.04", "~", "match"),  # "0.04" is known to half a unit only
        (42764, 0, "42764", "==", "match"),
        (42765, 0, "42764", "==", "differs"),
        (0.99, 0.001, "0.98", ">", "match"),
        (0.97, 0.001, "0.98", ">", "differs"),
        (0.985, 0.01, "0.98", ">", "undecided"),
        (0.125, 0, "0.125", "<=", "match"),
        (0.125, 0, "0.125", "<", "differs"),
    ],
)
def test_examples(value, se, printed, relation, verdict) -> None:
    bound = bound_of(float(printed), relation, None)
    assert compare_number(value, se, printed, relation, bound).verdict == verdict


def test_bounds() -> None:
    assert bound_of(-2.0, "==", None) == pytest.approx(0.2)
    assert bound_of(-2.0, "~", None) == pytest.approx(0.5)
    assert bound_of(-2.0, "~", Bound(relative=0.3)) == pytest.approx(0.6)
    assert bound_of(-2.0, "~", Bound(absolute=0.01)) == 0.01
    assert rounding_se("0.04") == pytest.approx(0.005 / math.sqrt(3))
    assert rounding_se("1.0e-7") == pytest.approx(0.05e-7 / math.sqrt(3))
    with pytest.raises(ValueError, match="either relative or absolute"):
        Bound(relative=0.1, absolute=0.1)


# ---- verdicts on claims ------------------------------------------------------------------------


def claim(kind: str = "number", **fields) -> Claim:
    return Claim.model_validate({"id": "a", "where": "1", "what": "w", "kind": kind} | fields)


def verdict(claim: Claim, measured: Measured | None, declared=None, why="", decides=True) -> str:
    judgement = judge(
        claim, measured, declared, not_comparable=why, decides=decides, not_run="`snakemake x`"
    )
    assert judgement.reason
    return judgement.verdict


def stated(holds: bool | None) -> Measured:
    return Measured(holds=holds, statistic="share", bound="> 0.5")


def test_not_run_says_what_would() -> None:
    judgement = judge(claim(), None, None, not_comparable="", decides=True, not_run="type this")
    assert (judgement.verdict, judgement.reason) == ("not run", "type this")
    nothing = Measured(n=0, note="no stand-in for hackernews")
    assert verdict(claim("pattern"), nothing) == "not run"


@pytest.mark.parametrize("kind", ["exact", "pattern"])
def test_statements(kind: str) -> None:
    for holds, word in ((True, "holds"), (False, "fails"), (None, "undecided")):
        # Patterns are tested on any model.
        assert verdict(claim(kind), stated(holds), why="another model") == word


@given(st.sampled_from(["pattern", "number"]), st.sampled_from([True, False, None]), numbers)
def test_smoke_decides_nothing_but_exact_statements(kind, holds, value) -> None:
    measured = Measured(value=value, se=0.1, holds=holds, statistic="s", bound="b")
    assert verdict(claim(kind, value="1.0"), measured, decides=False) == "too small"
    word = {True: "holds", False: "fails", None: "undecided"}[holds]
    assert verdict(claim("exact"), stated(holds), decides=False) == word


def test_numbers_of_another_model_get_no_verdict() -> None:
    measured = Measured(value=1.0, se=0.001)
    assert verdict(claim(value="1.0"), measured, why="another model") == "not comparable"
    assert verdict(claim(value="1.0"), measured) == "match"
    assert verdict(claim(), measured) == "not comparable"  # the paper prints no number


def test_a_list_is_judged_by_its_worst_part() -> None:
    whole = claim(value=["0.896", "0.038", "0.013"])
    good = Measured(value=[0.896, 0.038, 0.013], se=[0.003, 0.0003, 0.0003])
    assert verdict(whole, good) == "match"
    one_off = Measured(value=[0.896, 0.048, 0.013], se=[0.003, 0.0003, 0.0003])
    assert (
        "value 2 of 3"
        in judge(whole, one_off, None, not_comparable="", decides=True, not_run="").reason
    )
    assert verdict(whole, one_off) == "differs"
    assert verdict(whole, Measured(value=[0.896, 0.038, 0.013])) == "undecided"
    with pytest.raises(ValueError, match="shape"):
        verdict(whole, Measured(value=[0.896, 0.038], se=[0.1, 0.1]))
    with pytest.raises(ValueError, match="3 values, but 1 standard errors"):
        verdict(whole, Measured(value=[0.896, 0.038, 0.013], se=0.1))


def test_a_known_mismatch_is_only_for_numbers_that_differ() -> None:
    declared = Declared(id="a", known_mismatch="the paper divides by 163840")
    assert verdict(claim(value="1.00"), Measured(value=2.0, se=0.01), declared) == "known mismatch"
    assert verdict(claim(value="1.00"), Measured(value=1.0, se=0.01), declared) == "match"


def test_a_share_of_zero_is_no_bound() -> None:
    with pytest.raises(ValueError, match=r"declare `bound: \{absolute"):
        verdict(claim(value="0"), Measured(value=0.0, se=0.1))
    declared = Declared(id="a", bound=Bound(absolute=0.5))
    assert verdict(claim(value="0"), Measured(value=0.0, se=0.1), declared) == "match"


# ---- a run beside the papers -------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_experiments(tmp_path / "experiments")
    write_results(tmp_path / "results", bare=True)
    return tmp_path


def compared(run: Path, **settings):
    return compare(run / "results", run / "experiments", PUBLISHED, config(**settings))


def test_one_row_a_claim(run: Path) -> None:
    comparison = compared(run)
    rows = {row.id: row for row in comparison.rows}
    assert list(rows) == list(load_published(PUBLISHED).claims())
    measured = {claim for entries in MEASURED.values() for claim in entries}
    assert {name for name, row in rows.items() if row.verdict != "not run"} < measured
    assert rows["baker2025.s41.hackernews"].reason.startswith("Not tested: no stand-in")
    assert rows["baker2025.s41.github_00"].verdict == "not comparable"
    assert rows["baker2025.s41.github_00"].regenerated == 0.0312
    assert rows["gordon2026.clusters_410m"].reason == "section clustering is not built yet"
    assert rows["baker2025.fig12.pc3_datasets"].target == "s4_2"
    assert [row.id for row in comparison.failing] == ["baker2025.s41.signs"]


def test_numbers_count_on_the_papers_model_and_text(run: Path) -> None:
    rows = {row.id: row for row in compared(run, hub=True).rows}
    assert rows["baker2025.s41.github_01"].verdict == "differs"
    assert rows["baker2025.fig13.top3"].verdict == "match"
    rows = {row.id: row for row in compared(run, scale="smoke").rows}
    assert rows["baker2025.s41.signs"].verdict == "too small"
    assert rows["baker2025.alg1.identity"].verdict == "holds"


def test_what_is_the_papers_own() -> None:
    published = load_published(PUBLISHED)
    hub = config(hub=True)
    assert why_not_comparable(hub, "two-layer", published) == ""
    assert why_not_comparable(hub, "", published) == ""
    assert why_not_comparable(hub, "pythia-14m", published) == "the model is not the paper's"
    assert why_not_comparable(config(), "two-layer", published) == "another model and other text"
    hub["corpus"]["domains"]["mine"] = {"repo": "me/mine"}
    assert why_not_comparable(hub, "two-layer", published) == "the text is not the paper's"
    hub["two_layer"]["model"]["repo"] = "me/two-layer"
    assert why_not_comparable(hub, "two-layer", published) == "another model and other text"


def test_the_csv_can_be_read_back(run: Path) -> None:
    comparison = compared(run)
    path = run / "comparison.csv"
    write_csv(comparison.rows, path)
    with path.open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert tuple(next(iter(rows.values()))) == COLUMNS
    assert len(rows) == len(comparison.rows)
    assert rows["baker2025.s46.examples"]["published"] == "[4.10, 2.35, -2.76, -3.61, -2.17]"
    assert json.loads(rows["baker2025.s41.signs"]["regenerated"]) == [0.81, -0.012]
    assert rows["baker2025.s41.github_00"]["se"] == "0.0041"
    assert [row["id"] for row in read_failing(path)] == ["baker2025.s41.signs"]


def spoil(run: Path, section: str, entries: dict) -> None:
    write_json(run / "results" / section / "measured.json", entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baker2025.nothing": {"value": 1.0}}, "is no claim of published"),
        ({"baker2025.C3.gamma": {"value": 1.0}}, "is a setting, not a claim"),
        ({"baker2025.fig9.slope": {"value": 1.0}}, "not listed in experiments/.*/claims.yaml"),
        ({"baker2025.fig13.top3": {"valeu": 1.0}}, "top3 > valeu: Extra inputs"),
        ({"baker2025.fig13.top3": {"value": "1"}}, "top3 > value"),
        ({"baker2025.fig13.top3": {"se": 0.1}}, "is a number, but the entry has no value"),
        ({"baker2025.fig13.top3": {"n": 0}}, "its note must say why"),
        ({"baker2025.fig13.top3": {"value": 1.0, "holds": True}}, "`holds` is for exact"),
        ({"baker2025.fig6.pc1_uniform": {"value": 1.0}}, "needs `holds`"),
        ({"baker2025.fig6.pc1_uniform": {"holds": True}}, "needs `statistic` and `bound`"),
    ],
)
def test_a_wrong_measurement_is_named(run: Path, change: dict, message: str) -> None:
    spoil(run, SECTION_2, MEASURED[SECTION_2] | change)
    with pytest.raises(InputError, match=message) as error:
        compared(run)
    assert "measured.json" in str(error.value)


def test_a_listed_claim_must_be_measured(run: Path) -> None:
    entries = dict(MEASURED[SECTION_2])
    del entries["baker2025.fig13.top3"]
    spoil(run, SECTION_2, entries)
    with pytest.raises(InputError, match=r"no entry for baker2025\.fig13\.top3"):
        compared(run)


def test_a_section_that_has_not_run_is_no_error(run: Path) -> None:
    (run / "results" / SECTION_2 / "measured.json").unlink()
    row = next(row for row in compared(run).rows if row.id == "baker2025.fig13.top3")
    assert (row.verdict, row.reason) == ("not run", "`snakemake -c2 s4_2` regenerates it")


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ([{"id": "baker2025.nothing"}], "is no claim"),
        ([{"id": "baker2025.def.zero"}], "also listed by baker2025/s4_1"),
        ([{"id": "baker2025.fig13.top3", "bound": {"relative": -1}}], "fig13.top3 > bound"),
        ([{"id": "baker2025.fig13.top3", "bounds": {}}], "bounds: Extra inputs"),
    ],
)
def test_a_wrong_declaration_is_named(run: Path, claims: list, message: str) -> None:
    write_json(run / "experiments" / SECTION_2 / "claims.yaml", {"claims": claims})
    with pytest.raises(InputError, match=message):
        compared(run)


def test_the_sections_of_this_repository_are_sound() -> None:
    published = load_published(PUBLISHED)
    declared = load_declared(ROOT / "experiments", published)
    assert SECTION_1 in declared
    assert load_measured(ROOT / "no such results", published, declared) == {}


def check(path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Exit code, or message, of workflow/check.py; None where it ends by itself."""
    monkeypatch.setattr(sys, "argv", ["check.py", "--comparison", str(path)])
    try:
        runpy.run_path(str(ROOT / "workflow" / "check.py"), run_name="__main__")
    except SystemExit as end:
        return end.code
    return None


def test_check(run: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path = run / "comparison.csv"
    assert "no such file" in str(check(path, monkeypatch))
    rows = compared(run).rows
    write_csv(rows, path)
    assert check(path, monkeypatch) == 1
    assert "fails: baker2025.s41.signs" in capsys.readouterr().out
    write_csv(tuple(row for row in rows if row.verdict != "fails"), path)
    assert check(path, monkeypatch) is None
    path.write_text("id,verdict\n")
    assert "expected the columns" in str(check(path, monkeypatch))


def test_leaves() -> None:
    assert leaves([[1, 2], [3]]) == [1, 2, 3]
    assert leaves(4) == [4]
