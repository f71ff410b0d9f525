"""Section 4.6 on invented text and susceptibilities whose modes are known."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import per_token_results
from per_token_results import MODEL, planted
from susceptibilities.claims import load_declared, load_measured, load_published
from susceptibilities.occurrences import (
    LATEX,
    NO_URL,
    PART,
    URL,
    WORD,
    Occurrence,
    Texts,
    kind_of_slash,
    kind_of_word,
    spellings,
)
from susceptibilities.per_token import SUSCEPTIBILITY, folder_of, load_per_token
from susceptibilities.store import read_json, write_json
from susceptibilities.token_sampling import token_table
from susceptibilities.tokens import load_tokenizer, token_strings
from synthetic_results import HEADS, STEPS, write_results

ROOT = Path(__file__).parents[1]
SECTION = "baker2025/s4_6_bimodal_tokens"
sys.path[:0] = [str(ROOT / "experiments" / SECTION), str(ROOT / "figures")]

import bimodal_cases  # noqa: E402
import bimodal_page  # noqa: E402
import bimodal_search  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402

import bimodal_tokens  # noqa: E402
from common import load_run  # noqa: E402

FIGURES = ("fig11", "fig35", "fig36", "bimodal_search")
NASTY = '<script>alert("x")</script>\u202e'
TEXTS = {
    "arxiv": (
        "we want to show that the limit is one ",
        "as $N \\to 0$ the sum is small ",
        "the map $x \\mapsto y$ is one ",
        "it has to be said of the total ",
    ),
    "hackernews": (
        "see http://npr.org/sections/news for more ",
        "saving/committing is not here ",
        "the go-to/and-or of this ",
        "read https://a.com/b and ",
    ),
    "github": ("return bytes_to_skip ", "we want to go to it ", f"{NASTY} ", "x = 3 + 4 - 5 "),
    "enron_emails": ("on 11/09/2000 he ", "www.enron.com/home and ", "Kay Mann/Corp/Enron "),
}
CONTEXTS, LENGTH, CHAINS = 30, 48, 4


def contexts_of(name: str, seed: int) -> np.ndarray:
    """Contexts of sentences in random order, (CONTEXTS, LENGTH), beginning token included."""
    rng = np.random.default_rng((seed, len(name)))
    tokenizer = load_tokenizer(MODEL)
    text = "".join(rng.choice(TEXTS[name]) for _ in range(CONTEXTS * LENGTH))
    ids = np.array(tokenizer.encode(text).ids[: CONTEXTS * (LENGTH - 1)])
    return np.insert(ids.reshape(CONTEXTS, -1), 0, 0, axis=1).astype(np.uint16)


def write_cases(results: Path, sign: float = 1.0, spread: float = 1.0, seed: int = 0) -> Path:
    """A run on Pile-named domains, its modes planted in the mean shift by the kind of context.

    Args:
        sign: -1 puts the paper's upper kind in the lower mode.
        spread: distance of the modes from zero; 0 is a single one.
    """
    write_results(results, seed=seed)
    write_json(results / "tokens" / "manifest.json", {"domains": {name: {} for name in TEXTS}})
    probes = {name: contexts_of(name, seed) for name in sorted(TEXTS)}
    for name, ids in probes.items():
        np.save(results / "tokens" / f"probe.{name}.npy", ids)
    strings = token_strings(load_tokenizer(MODEL))
    every = np.concatenate(list(probes.values()))[:, 1:]
    rng = np.random.default_rng(seed)
    table = token_table(probes, strings, rng.gamma(1.5, 1.5, every.size))
    model = read_json(results / "model" / "model.json")
    write_json(results / "model" / "model.json", {**model, "path": MODEL.as_posix()})
    config = read_json(results / "config.json")
    config["two_layer"]["per_token"] = {
        "checkpoints": [STEPS[-1]],
        "control_checkpoints": [STEPS[-1]],
    }
    write_json(results / "config.json", config)
    shift = {name: np.zeros(every.size) for name in ("full", *HEADS)}
    common = 0.2 * rng.normal(size=every.size)
    for control in (False, True):
        folder = folder_of(results, STEPS[-1], control)
        folder.mkdir(parents=True)
        arguments = (table, common, shift, STEPS[-1], control, CHAINS, 0.1, rng)
        per_token_results._write(folder, *arguments)
        if control:
            continue
        # The kinds are read from the text itself, so the tokens have to be there first.
        texts = Texts(load_per_token(results), results)
        for head, word, upper, kind_of in (
            ("0:0", "to", WORD, kind_of_word),
            ("1:7", "/", URL, kind_of_slash),
        ):
            for index in np.flatnonzero(table["token"].is_in(spellings(word, texts.strings))):
                above = kind_of(texts.around(int(index))) == upper
                shift[head][index] = sign * spread * (1.0 if above else -1.0)
        shutil.rmtree(folder / SUSCEPTIBILITY)
        per_token_results._write(folder, *arguments)
    return results


def run_scripts(results: Path, monkeypatch: pytest.MonkeyPatch, *modules) -> dict[str, dict]:
    """Run steps of the section; the entries of measured.json."""
    for module in modules:
        monkeypatch.setattr("sys.argv", ["script", "--results", str(results)])
        module.main()
    return read_json(results / SECTION / "measured.json")


def run_all(results: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict]:
    """Every step of the section and its figures; the entries of measured.json."""
    measured = run_scripts(results, monkeypatch, bimodal_search, bimodal_cases, bimodal_page)
    monkeypatch.setattr("sys.argv", ["f", "--results", str(results), "--figure", *FIGURES])
    bimodal_tokens.main()
    for name in FIGURES:
        assert (results / "figures" / f"{name}.pdf").stat().st_size > 0
    return measured


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cases") / "mini")


@pytest.fixture(scope="module")
def measured(results: Path) -> dict[str, dict]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run_all(results, monkeypatch)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def texts_of(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(plt.Text) if t.get_text())


def tables_of(results: Path) -> dict[str, pl.DataFrame]:
    return {
        name: pl.read_parquet(results / SECTION / f"{name}.parquet")
        for name in bimodal_tokens.TABLES
    }


@pytest.mark.parametrize(
    ("before", "text", "after", "kind"),
    [
        ("see http:", "/", "/x.org", URL),
        ("npr.org", "/", "sections/", URL),
        ("npr.org/sections", "/", "a", URL),
        ("[link](www.a", "/", "b)", URL),
        ("at host.co.uk:80", "/", "x", URL),
        ("saving", "/", "committing", NO_URL),
        ("hashicorp", "/", "go-multierror.", NO_URL),
        ("Kay Mann", "/", "Corp/Enron, 11", NO_URL),
        ("either", " /", " http://x.y", NO_URL),
        ("(http://a.b/c) and", "/", "or", NO_URL),
        ("and", "/", "or(http://a.b/c)", NO_URL),
    ],
)
def test_slashes_in_urls(before, text, after, kind):
    assert kind_of_slash(Occurrence(before, text, after)) == kind


@pytest.mark.parametrize(
    ("before", "text", "after", "kind"),
    [
        ("N \\", "to", "\\infty", LATEX),
        ("x \\maps", "to", " y", LATEX),
        ("end \\\\", "to", " begin", WORD),
        ("line \\\\\\", "to", " b", LATEX),
        ("want", " to", " go", WORD),
        ("", "to", "", WORD),
        ("want ", "to", ", go", WORD),
        ("bytes_", "to", "_skip", PART),
        ("the", " to", "tal", PART),
        ("pho", "to", " of", PART),
        ("C\\", " to", " x", WORD),
    ],
)
def test_kinds_of_a_word(before, text, after, kind):
    assert kind_of_word(Occurrence(before, text, after)) == kind


def test_text_ends_with_its_document(results):
    data = load_per_token(results)
    texts = Texts(data, results)
    one = texts.around(3)
    whole = load_tokenizer(MODEL).decode(contexts_of("arxiv", 0)[0, 1:].tolist())
    assert one.before + one.text + one.after == whole
    assert len(texts.around(30, reach=2).before) < 25
    assert set(spellings("to", texts.strings)) == {
        texts.strings.index("to"),
        texts.strings.index(" to"),
    }
    assert spellings(" ", texts.strings) == [texts.strings.index(" ")]


def test_planted_modes_hold_and_their_part_is_named(measured):
    for name in ("to_arxiv", "slash_hackernews"):
        entry = measured[f"baker2025.fig11.{name}"]
        assert entry["holds"] is True, entry["note"]
        assert entry["value"] > 0.95 and 0 <= entry["se"] < 0.05 and entry["n"] > 40
        assert entry["carried_by"] == "mean shift"
        assert "mean shift 1.0" in entry["note"] or "mean shift 0.9" in entry["note"]
        # Neither the control nor the reliability gives a reason for caution about the pattern.
        assert "n_beta = 0 control" not in entry["note"]
    assert "LaTeX command" in measured["baker2025.fig11.to_arxiv"]["note"]
    assert "Token to or ␣to, arxiv" in measured["baker2025.fig11.to_arxiv"]["note"]


def test_examples_are_counterparts_of_the_quoted_values(results, monkeypatch, tmp_path):
    changed = write_cases(tmp_path / "mini")
    domains = {**{name: {} for name in TEXTS}, "github": {"stands_in_for": "github-all"}}
    write_json(changed / "tokens" / "manifest.json", {"domains": domains})
    entry = run_scripts(changed, monkeypatch, bimodal_cases)["baker2025.s46.examples"]
    assert "holds" not in entry and entry["n"] > 60
    np.testing.assert_allclose(entry["value"], [1, 1, -1, -1, -1], atol=0.25)
    assert len(entry["se"]) == 5 and max(entry["se"]) < 0.2
    cases = pl.read_parquet(changed / SECTION / "cases.parquet")
    github = cases.filter(pl.col("case") == "to_github")
    assert github["place"].unique().to_list() == ["stand-in"]
    # Holm over the four cases that are there.
    chi = cases.filter((pl.col("form") == "chi") & ~pl.col("control") & (pl.col("high") != ""))
    assert (chi["p_adjusted"] >= chi["p"] - 1e-15).all() and len(chi) == 4
    smallest = chi.sort("p").row(0, named=True)
    assert smallest["p_adjusted"] == pytest.approx(4 * smallest["p"])


def test_without_code_the_examples_say_what_is_missing(tmp_path, monkeypatch):
    changed = write_cases(tmp_path / "mini")
    domains = {name: {} for name in TEXTS if name != "github"}
    write_json(changed / "tokens" / "manifest.json", {"domains": domains})
    entry = run_scripts(changed, monkeypatch, bimodal_cases)["baker2025.s46.examples"]
    assert entry["n"] == 0 and entry["value"] is None
    assert "no domain named github-all" in entry["note"]


def test_modes_the_other_way_round_fail(tmp_path, monkeypatch):
    found = write_cases(tmp_path / "mini", sign=-1.0)
    measured = run_scripts(found, monkeypatch, bimodal_cases)
    for name in ("to_arxiv", "slash_hackernews"):
        entry = measured[f"baker2025.fig11.{name}"]
        assert entry["holds"] is False and entry["value"] < 0.05
    rows = pl.read_parquet(found / SECTION / "sensitivity.parquet")
    plus = rows.filter(pl.col("convention") == "sign=plus")
    assert plus.filter(pl.col("claim").str.contains("fig11"))["holds"].to_list() == ["holds"] * 2


def test_a_single_mode_does_not_hold(tmp_path, monkeypatch):
    found = write_cases(tmp_path / "mini", spread=0.0)
    measured = run_scripts(found, monkeypatch, bimodal_search, bimodal_cases, bimodal_page)
    for name in ("to_arxiv", "slash_hackernews"):
        entry = measured[f"baker2025.fig11.{name}"]
        assert entry["holds"] is not True and "Dip test p = " in entry["note"]
    modes = pl.read_parquet(found / SECTION / "modes.parquet")
    assert len(modes) > 10 and not modes["two_modes"].any()
    page = (found / "pages" / "bimodal_search.html").read_text(encoding="utf-8")
    assert "None of" in page and "no more than that" in page
    assert "none of" in texts_of(bimodal_tokens.draw_search(tables_of(found), load_run(found)))


def test_the_search_finds_what_was_planted_and_nothing_else(results, measured):
    modes = pl.read_parquet(results / SECTION / "modes.parquet")
    found = modes.filter("two_modes")
    planted_tokens = {("0:0", "to"), ("0:0", " to"), ("1:7", "/"), ("1:7", " /")}
    assert len(found) >= 2
    for row in found.iter_rows(named=True):
        assert (row["component"], row["text"]) in planted_tokens
        assert row["gap_mean_shift"] > 0.85 and row["kappa"] > 0.9
        total = row["gap_mean_shift"] + row["gap_rank_one"] + row["gap_covariance"]
        assert total == pytest.approx(1.0)
        assert row["lower"] < 0 < row["upper"] and row["lower_se"] > 0
        assert row["auc_loss"] == pytest.approx(0.5, abs=0.3)
    search = pl.read_parquet(results / SECTION / "search.parquet")
    passed = search.filter(pl.col("p_adjusted") <= 0.05)
    assert not passed.filter("control").height
    assert set(passed["form"]) <= {"chi", "mean_shift"}
    assert (search["count"] >= 40).all() and (search["contexts"] >= 10).all()
    # Every frequent token, head and form once; the loss once a token.
    keys = ["control", "form", "probe", "token", "component"]
    assert search.select(keys).n_unique() == len(search)
    per_token = search.filter(~pl.col("control")).group_by("probe", "token").len()["len"]
    assert set(per_token) == {4 * len(HEADS) + 1}


def test_contexts_of_both_modes_are_printed_and_escaped(results, measured):
    typical = pl.read_parquet(results / SECTION / "typical.parquet")
    modes = pl.read_parquet(results / SECTION / "modes.parquet")
    rank = modes.filter((pl.col("component") == "1:7") & (pl.col("probe") == "hackernews"))["rank"]
    mine = typical.filter(pl.col("rank") == rank[0])
    for upper, kind in ((True, URL), (False, NO_URL)):
        rows = mine.filter(pl.col("upper") == upper)
        assert rows["context"].n_unique() == len(rows) == bimodal_search.TYPICAL
        for row in rows.iter_rows(named=True):
            assert kind_of_slash(Occurrence(row["before"], row["text"], row["after"])) == kind
    page = (results / "pages" / "bimodal_search.html").read_text(encoding="utf-8")
    assert "npr.org" in page and "saving" in page
    assert "<script" not in page and "\u202e" not in page
    table = (results / "tables" / "bimodal_search.html").read_text(encoding="utf-8")
    assert "<script" not in table and "mathematics" not in table
    assert (results / "tables" / "bimodal_tests.csv").read_text(encoding="utf-8").count("\n") == 10


def test_text_from_data_is_escaped_on_the_page(results, measured):
    tables = bimodal_page.Tables.read(results / SECTION)
    changed = tables._replace(
        modes=tables.modes.with_columns(text=pl.lit(NASTY), probe=pl.lit(NASTY)),
        typical=tables.typical.with_columns(
            before=pl.lit(NASTY),
            text=pl.lit("\x00"),
            after=pl.lit(NASTY),
        ),
    )
    page = bimodal_page.page(results, changed, {})
    assert "<script" not in page and "\u202e" not in page and "\x00" not in page
    assert "&lt;script&gt;" in page and "\\u202e" in page and "\\x00" in page


def test_figures_draw_the_tables(results, measured):
    tables, run = tables_of(results), load_run(results)
    figure = bimodal_tokens.FIGURES["fig11"](tables, run)
    written = texts_of(figure)
    assert "‘to’, head 0:0" in written and "‘/’, head 1:7" in written
    assert "LaTeX command (" in written and "in a URL (" in written
    assert "github (for github-all)" in written
    # The bars of chi are all occurrences of the token.
    bars = sum(patch.get_height() for patch in figure.axes[0].patches)
    values = tables["case_values"].filter(pl.col("case") == "to_arxiv")
    # Stacked bars: every group's heights are its own.
    assert bars == pytest.approx(len(values))
    assert "0.52" not in texts_of(bimodal_tokens.FIGURES["fig35"](tables, run))
    search = texts_of(bimodal_tokens.FIGURES["bimodal_search"](tables, run))
    assert "lower mode" in search and "pass the dip test" in search


def test_stand_ins_have_no_verdict_on_other_subsets(tmp_path, monkeypatch):
    results = planted(tmp_path / "mini", contexts=12, length=40, chains=4)
    measured = run_scripts(results, monkeypatch, bimodal_cases)
    for name in ("to_arxiv", "slash_hackernews"):
        entry = measured[f"baker2025.fig11.{name}"]
        assert entry["holds"] is None and entry["n"] == 0 and entry["value"] is None
        assert "no domain named" in entry["note"] and "which does not stand in for" in entry["note"]
    cases = pl.read_parquet(results / SECTION / "cases.parquet")
    space = cases.filter(pl.col("case") == "space_00")
    assert space["probe"].unique().to_list() == ["cpp"]
    chi = space.filter((pl.col("form") == "chi") & ~pl.col("control")).row(0, named=True)
    assert chi["mean"] == pytest.approx(per_token_results.COMMON[" "], abs=0.1)


def test_a_run_too_small_for_any_test_still_builds(tmp_path, monkeypatch):
    results = planted(tmp_path / "smoke", contexts=4, length=16, chains=4)
    measured = run_all(results, monkeypatch)
    assert all(entry["n"] == 0 and entry["note"] for entry in measured.values())
    assert not len(pl.read_parquet(results / SECTION / "modes.parquet"))
    page = (results / "pages" / "bimodal_search.html").read_text(encoding="utf-8")
    assert "None of 0 tokens" in page


def test_measured_files_satisfy_the_comparison(results, measured):
    published = load_published(ROOT / "published")
    declared = load_declared(ROOT / "experiments", published)
    found = load_measured(results, published, declared)
    assert set(found) == set(declared[SECTION]) == set(measured)
    rows = pl.read_parquet(results / SECTION / "sensitivity.parquet")
    assert rows.columns == ["claim", "convention", "value", "se", "holds"]
    assert set(rows["claim"]) == set(measured)
