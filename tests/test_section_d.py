"""Section D (top tokens, Table 3, polarity) on results whose answers are planted."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl
import pytest

from per_token_results import planted
from susceptibilities.claims import load_declared, load_measured, load_published
from susceptibilities.highlight import load_highlight
from susceptibilities.jackknife import jackknife_se
from susceptibilities.store import read_json, write_json

ROOT = Path(__file__).parents[1]
SECTION = ROOT / "experiments" / "baker2025" / "d_top_tokens"
sys.path[:0] = [str(SECTION), str(ROOT / "figures")]

import matplotlib.pyplot as plt  # noqa: E402
import one_token  # noqa: E402
import rank_tokens  # noqa: E402
import token_polarity  # noqa: E402
import top_ranking as ranking  # noqa: E402
import top_sample  # noqa: E402
import top_token_tables  # noqa: E402
import top_tokens_claims as claims  # noqa: E402
import top_tokens_page  # noqa: E402

import common  # noqa: E402
import top_tokens  # noqa: E402

PAPER_ROLES = {f"{layer}:{head}": "multigram" for layer in range(2) for head in range(8)} | {
    "0:1": "previous-token",
    "0:5": "current-token",
    "1:6": "induction",
    "1:7": "induction",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("section_d") / "mini", contexts=20)


@pytest.fixture(scope="module")
def inputs(results: Path) -> ranking.Inputs:
    return ranking.load_inputs(results)


@pytest.fixture(scope="module")
def built(results: Path) -> Path:
    """The results after every script of the section."""
    for script in ("rank_tokens", "top_tokens_claims", "top_tokens_page"):
        command = [sys.executable, str(SECTION / f"{script}.py"), "--results", str(results)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return results / ranking.FOLDER


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def with_chi(inputs: ranking.Inputs, value: np.ndarray, noise: float = 0.0) -> ranking.Inputs:
    """The same tokens with chi (token,) for every head, and noise over chains."""
    data = inputs.data
    rng = np.random.default_rng(1)
    shape = (data.chains, len(data.components), len(value))
    chains = value + noise * rng.normal(size=shape)
    left_out = np.stack([np.delete(chains, c, 0).mean(0) for c in range(data.chains)])
    return replace(
        inputs,
        data=replace(
            data,
            value=data.value | {"chi": chains.mean(0)},
            se=data.se | {"chi": jackknife_se(left_out)},
            replicates=data.replicates | {"chi": left_out.astype(np.float32)},
        ),
    )


# ---- rankings ------------------------------------------------------------------


def test_k_is_the_papers_share_of_the_tokens():
    assert ranking.scaled_k(ranking.PAPER_TOKENS) == 1000
    assert ranking.scaled_k(3048) == 19
    assert ranking.scaled_k(31) == 1
    assert ranking.list_k(3048) == 100
    assert ranking.list_k(186) == 18


def test_heads_are_the_papers_where_they_have_its_roles():
    heads = tuple(PAPER_ROLES)
    assert ranking.three_heads(heads, PAPER_ROLES) == ("0:0", "1:2", "1:7")
    here = dict.fromkeys(heads, "multigram") | {"0:0": "current-token", "1:2": "induction"}
    assert ranking.three_heads(heads, here) == ("0:0", "1:0", "1:2")
    # Without roles, and without the paper's heads.
    assert ranking.three_heads(heads, {}) == ("0:0", "1:2", "1:7")
    assert ranking.three_heads(("0:0", "0:1", "0:2"), {}) == ("0:0", "0:2", "0:1")


def test_ranking_and_first_different_tokens():
    values = np.array([0.1, 3.0, -2.0, 3.0, 1.0])
    assert ranking.ranked(values, 3, 1).tolist() == [1, 3, 4]
    assert ranking.ranked(values, 2, -1).tolist() == [2, 0]
    assert ranking.distinct([7, 7, 5, 7, 9, 5, 1]) == [0, 2, 4]
    assert ranking.distinct([7, 7]) == [0]


def test_masks_hold_k_tokens_even_among_ties():
    values = np.array([[1.0, 1.0, 1.0, 0.0, -1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    masks = ranking.top_masks(values, 2)
    assert masks[1].tolist() == [[True, True, False, False, False]] * 2
    assert masks[-1].sum(1).tolist() == [2, 2]


def test_halves_are_the_means_of_disjoint_chains():
    chains = np.random.default_rng(0).normal(size=(4, 2, 50))
    left_out = np.stack([np.delete(chains, c, 0).mean(0) for c in range(4)])
    found = list(ranking.halves(chains.mean(0), left_out))
    assert len(found) == 3
    np.testing.assert_allclose(found[0][0], chains[:2].mean(0))
    np.testing.assert_allclose(found[0][1], chains[2:].mean(0))
    with pytest.raises(ValueError, match="at least 2 chains"):
        list(ranking.halves(chains[0], chains[:1]))


def chains_of(signal: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and replicates of six chains; noise has the shape (chain, head, token)."""
    chains = signal + noise
    return chains.mean(0), np.stack([np.delete(chains, c, 0).mean(0) for c in range(6)])


def test_agreement_of_signal_and_of_noise():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(3, 2000))
    noise = rng.normal(size=(6, 3, 2000))
    sure = ranking.overlaps(*chains_of(signal, 0.01 * noise), 100)[1]
    assert sure.own.min() > 0.9
    assert sure.opposite.max() == 0
    assert sure.others.max() < 0.15  # every head has a ranking of its own
    random = ranking.overlaps(*chains_of(0 * signal, noise), 100)[1]
    assert random.own.mean() == pytest.approx(0.05, abs=0.03)
    # Noise of unequal size agrees by itself, and as often with the opposite end.
    uneven = noise * np.exp(1.5 * rng.normal(size=(3, 2000)))
    random = ranking.overlaps(*chains_of(0 * signal, uneven), 100)[1]
    assert random.own.min() > 0.15
    assert random.own.mean() == pytest.approx(random.opposite.mean(), abs=0.05)


def test_a_control_with_the_same_random_numbers_does_not_agree_by_its_noise():
    rng = np.random.default_rng(0)
    same = chains_of(np.zeros((3, 2000)), rng.normal(size=(6, 3, 2000)))
    found = ranking.overlaps(*same, 100, control=same)[1]
    assert found.control == pytest.approx(found.own)


def test_planted_tokens_lead_every_list(built: Path):
    lists = pl.read_parquet(built / "lists.parquet")
    mine = lists.filter((pl.col("run") == "posterior") & (pl.col("form") == "rank_one"))
    first = mine.filter(pl.col("rank") == 1)
    assert set(first.filter(pl.col("sign") == 1)["text"]) == {"://"}
    assert set(first.filter(pl.col("sign") == -1)["text"]) == {" "}
    # What stands before a token is the end of its context.
    top = pl.read_parquet(built / "top.parquet")
    assert top["before"].list.len().max() == rank_tokens.TAIL
    early = top.filter(pl.col("position") == 1)
    assert early["before"].to_list() == [["<|endoftext|>"]] * len(early)
    np.testing.assert_allclose(
        top["value"], top["covariance"] + top["rank_one"] + top["mean_shift"], atol=1e-12
    )
    counts = pl.read_parquet(built / "counts.parquet")
    assert counts["component"].unique().sort().to_list() == ["0:0", "1:2", "1:7"]
    per_panel = counts.group_by("run", "form", "component", "probe", "sign").agg(
        pl.col("count").sum(), pl.col("k").first()
    )
    assert (per_panel["count"] == per_panel["k"]).all()


def test_only_parts_with_signal_are_agreed_on(built: Path):
    overlap = pl.read_parquet(built / "overlap.parquet").filter(pl.col("left_out").is_null())
    means = {
        (row["run"], row["form"]): row
        for row in overlap.group_by("run", "form").agg(pl.col(pl.Float64).mean()).to_dicts()
    }
    assert means["posterior", "rank_one"]["halves"] > 0.7
    assert means["posterior", "covariance"]["halves"] == pytest.approx(0.1, abs=0.02)
    # All heads share the rank-one part, and its list.
    rank_one = means["posterior", "rank_one"]
    assert rank_one["heads"] == pytest.approx(rank_one["halves"], abs=1e-6)


# ---- Figure 1 --------------------------------------------------------------------


def test_the_context_in_the_middle_is_chosen():
    context = np.repeat([4, 7, 9, 11], 3)
    values = np.tile(np.repeat([5.0, 1.0, 2.0, 9.0], 3) * np.tile([1, -1, 1], 4), (2, 1))
    assert top_sample.middle_context(values, context) == 9


def test_sample_is_of_the_papers_domain_where_there_is_one(inputs: ranking.Inputs):
    assert top_sample.sample_probe(inputs)[0] == "biomedical"
    with_arxiv = replace(inputs, domains={"python": {"stands_in_for": "arxiv"}})
    assert top_sample.sample_probe(with_arxiv) == ("python", "python (for arxiv)")
    bare = top_sample.sample_probe(replace(inputs, domains={}))
    assert bare[0] == inputs.probes[0] and "arxiv" in bare[1]


def test_highlighted_sample(built: Path, inputs: ranking.Inputs):
    figure = load_highlight(built / "fig1.highlight.json")
    page = load_highlight(built / "fig1_parts.highlight.json")
    assert figure.opacity == page.opacity == "linear"
    assert len(figure.panels) == 3 and len(page.panels) == 5
    for panel in page.panels:
        assert [track.name.split()[0] for track in panel.tracks] == ["0:0", "1:2", "1:7"]
        for track in panel.tracks:
            assert track.values[0] is None and None not in track.values[1:]
            assert max(abs(v) for v in track.values[1:] if v is not None) <= track.limit
    chi, *parts, _ = page.panels
    totals = np.sum([[t.values[1:] for t in part.tracks] for part in parts], axis=0)
    np.testing.assert_allclose(totals, [t.values[1:] for t in chi.tracks], atol=1e-9)


# ---- Table 3 ---------------------------------------------------------------------


def test_the_papers_token_is_taken_where_it_occurs(inputs: ranking.Inputs):
    mail = replace(inputs, domains={"speeches": {"stands_in_for": "enron_emails"}})
    chosen = one_token.choose(mail)
    assert (chosen.probe, chosen.text) == ("speeches", "://")
    assert "speeches (for enron_emails)" in chosen.rule
    tokens = inputs.data.tokens.filter(chosen.mask)
    assert set(tokens["text"]) == {"://"} and set(tokens["probe"]) == {"speeches"}
    assert tokens["position"].min() > 1


def test_else_the_token_with_the_largest_mean(inputs: ranking.Inputs):
    tokens = inputs.data.tokens
    value = (tokens["text"] == "]").cast(pl.Float64) * (tokens["probe"] == "cpp").cast(pl.Float64)
    chosen = one_token.choose(with_chi(inputs, value.to_numpy()))
    assert (chosen.probe, chosen.text) == ("cpp", "]")
    assert "all domains (this corpus has no domain named enron_emails" in chosen.rule


def test_too_few_occurrences_are_said(inputs: ranking.Inputs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(one_token, "ROWS", 10_000)
    chosen = one_token.choose(inputs)
    assert chosen.count == 0
    assert one_token.occurrences(inputs, chosen).is_empty()
    measured, _ = claims.one_token(inputs, chosen)
    for entry in measured.values():
        assert entry["n"] == 0 and "no token has at least" in entry["note"]


def table3_case(
    inputs: ranking.Inputs, spread: float, noise: float, decades: float
) -> tuple[dict, one_token.Chosen]:
    """Table 3's claim where the token :// has chi 1 with a given spread and noise."""
    rng = np.random.default_rng(3)
    tokens = inputs.data.tokens
    count = len(tokens)
    common = np.where(tokens["text"] == "://", 1.0, 0.0) + np.where(
        tokens["text"] == "://", spread, 1.0
    ) * rng.normal(size=count)
    case = with_chi(inputs, common, noise)
    losses = tokens.with_columns(loss=10.0 ** (decades * rng.normal(size=count)))
    case = replace(
        case,
        data=replace(case.data, tokens=losses),
        domains={"speeches": {"stands_in_for": "enron_emails"}},
        control=None,
    )
    chosen = one_token.choose(case)
    return claims.one_token(case, chosen)[0]["baker2025.tab3.consistency"], chosen


def test_constant_susceptibility_and_varying_loss_hold(inputs: ranking.Inputs):
    entry, chosen = table3_case(inputs, 0.02, 0.01, decades=3.0)
    assert entry["holds"] is True
    assert entry["value"] == pytest.approx(0.02, abs=0.008)
    assert entry["n"] == chosen.count > 10
    assert "lie close together by their choice" in entry["note"]


def test_a_spread_that_is_not_noise_fails_and_noise_alone_does_not(inputs: ranking.Inputs):
    assert table3_case(inputs, 0.4, 0.01, decades=3.0)[0]["holds"] is False
    # The same spread, made by the errors over chains.
    assert table3_case(inputs, 0.0, 0.4 * 6**0.5, decades=3.0)[0]["holds"] is None
    # A loss that hardly varies makes the claim empty.
    assert table3_case(inputs, 0.02, 0.01, decades=0.1)[0]["holds"] is False


def test_identity_explains_what_it_should(inputs: ranking.Inputs):
    data = inputs.data
    keep = np.ones(len(data.tokens), dtype=bool)
    explained = one_token.explained(data, "python")
    by_token = data.tokens["token"].to_numpy().astype(float)
    noise = np.random.default_rng(0).normal(size=len(keep))
    assert explained(by_token, keep) == pytest.approx(1.0)
    assert explained(noise, keep) == pytest.approx(0.0, abs=0.05)


# ---- section 6 -------------------------------------------------------------------


def polarity_case(inputs: ranking.Inputs, signs: dict[str, int], noise: float = 0.05) -> dict:
    masks = token_polarity.category_masks(inputs)
    value = np.random.default_rng(0).normal(size=len(inputs.data.tokens))
    for name, sign in signs.items():
        value = np.where(masks[name], value + 2.0 * sign, value)
    case = with_chi(inputs, value, noise)
    table = token_polarity.polarity_table(case, masks)
    return claims.signs(table, case)[0]


def test_planted_polarity_holds_and_its_opposite_fails(inputs: ranking.Inputs):
    entry = polarity_case(inputs, token_polarity.CLAIMED)
    assert entry["holds"] is True and entry["value"] > 1
    assert "spacing 16 (16)" in entry["note"]
    assert "n_beta = 0 control: contrast" in entry["note"]
    flipped = {name: -sign for name, sign in token_polarity.CLAIMED.items()}
    assert polarity_case(inputs, flipped)["holds"] is False
    assert polarity_case(inputs, token_polarity.CLAIMED | {"word_end": -1})["holds"] is False


def test_noise_has_no_polarity(inputs: ranking.Inputs):
    assert not polarity_case(inputs, {})["holds"]


def test_a_control_that_meets_the_bounds_is_reported(inputs: ranking.Inputs):
    masks = token_polarity.category_masks(inputs)
    value = np.zeros(len(inputs.data.tokens))
    for name, sign in token_polarity.CLAIMED.items():
        value = np.where(masks[name], value + sign, value)
    case = with_chi(inputs, value + np.random.default_rng(0).normal(size=len(value)), 0.05)
    case = replace(case, control=case.data)
    entry = claims.signs(token_polarity.polarity_table(case, masks), case)[0]
    assert "Caution: the n_beta = 0 control" in entry["note"]


def test_kinds_without_tokens_are_left_out(inputs: ranking.Inputs):
    masks = token_polarity.category_masks(inputs)
    masks["right_bracket"] = np.zeros_like(masks["right_bracket"])
    table = token_polarity.polarity_table(inputs, masks)
    rows = table.filter(pl.col("category") == "right_bracket")
    assert rows["mean"].null_count() == len(rows)
    found = claims.polarity_finding(table, "posterior", "chi")
    assert found.n == 0 and "right_bracket" in found.note


# ---- everything together -----------------------------------------------------------


def test_what_is_written_fits_the_claims(results: Path, built: Path):
    published = load_published(ROOT / "published")
    declared = load_declared(ROOT / "experiments", published)
    measured = load_measured(results, published, declared)
    mine = declared["baker2025/d_top_tokens"]
    assert set(mine) <= set(measured)
    lists = measured["baker2025.appD.top_tokens"]
    assert lists.n == 160 and isinstance(lists.value, float) and 0.7 < lists.value < 1
    assert lists.carried_by.startswith("rank-one")
    assert "0.10 by chance" in lists.note
    rows = measured["baker2025.tab3.rows"]
    assert np.shape(rows.value) == np.shape(rows.se) == (10, 3)
    chi = np.array(rows.value)[:, 2]
    assert (np.diff(chi) <= 0).all()


def test_flipping_the_sign_takes_the_other_end(built: Path):
    table = pl.read_parquet(built / "sensitivity.parquet")
    found = {(r["claim"], r["convention"]): r for r in table.to_dicts()}
    name = "baker2025.s6.polarity"
    plain = found[name, "second_factor=full, sign=minus, scale=none (published)"]
    assert found[name, "sign=plus"]["value"] == pytest.approx(-plain["value"])
    same = "baker2025.tab3.consistency"
    assert found[same, "sign=plus"]["value"] == found[same, "scale=n_beta"]["value"]


def test_a_run_without_control_is_complete(results: Path):
    settings = read_json(results / "config.json")
    bare = {**settings["two_layer"]["per_token"], "control_checkpoints": []}
    write_json(results / "config.json", settings | {"two_layer": {"per_token": bare}})
    try:
        inputs = ranking.load_inputs(results)
        assert inputs.control is None
        rows = list(rank_tokens.overlap_rows(inputs, "posterior", "chi", "python"))
        assert all(row["control"] is None for row in rows)
        assert len(top_sample.sample(inputs)[0].panels) == 2
        occurrences = one_token.occurrences(inputs, one_token.choose(inputs))
        assert occurrences["control"].null_count() == len(occurrences) > 0
        table = token_polarity.polarity_table(inputs, token_polarity.category_masks(inputs))
        assert set(table["run"]) == {"posterior"}
    finally:
        write_json(results / "config.json", settings)


def test_page_and_tables_escape_what_tokens_hold(results: Path, built: Path):
    nasty = "<script>alert('x')</script>\u202e\"&"
    tables = top_tokens_page.Tables.read(built)
    top = tables.top.with_columns(text=pl.lit(nasty))
    lists = tables.lists.with_columns(text=pl.lit(nasty))
    changed = tables._replace(top=top, lists=lists)
    html = top_tokens_page.page(results, changed, {})
    assert "<script" not in html and "\u202e" not in html
    assert "&lt;script&gt;" in html and "\\u202e" in html
    assert not re.search(r"(src|href)=\"(?!#|data:)", html)
    _, fragment = top_token_tables.lists_table(lists, tables.overlap, {})
    assert "<script" not in fragment and "&lt;script&gt;" in fragment
    # Every domain and head is there, and links lead somewhere.
    anchors = set(re.findall(r'href="#([^"]+)"', html))
    assert anchors and all(f'id="{anchor}"' in html for anchor in anchors)


def test_report_tables(results: Path, built: Path):
    for name in ("top_tokens", "table3", "polarity"):
        assert (results / "tables" / f"{name}.html").read_text().startswith("<table>")
        assert len(pl.read_csv(results / "tables" / f"{name}.csv")) > 0
    empty = pl.read_parquet(built / "table3.parquet").clear()
    assert "<table>" in top_token_tables.rows_table(empty)[1]
    assert top_token_tables.written(-0.01, 0) == "0.0"
    assert top_token_tables.written(-0.0312, -2) == "−3.1"
    assert top_token_tables.unit_of(-2) == "10⁻² nats²"


def figure_texts(figure: matplotlib.figure.Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(plt.Text) if t.get_text())


def test_figures(results: Path, built: Path):
    run = common.load_run(results)
    tables = top_tokens.load_tables(results)
    words = figure_texts(top_tokens.draw_counts(tables, run))
    assert "mathematics (for dm_mathematics)" in words and "://" in words
    assert "no text here for arxiv, philpapers" in words
    assert "all domains" in figure_texts(top_tokens.draw_polarity(tables, run))
    assert "χ, n_beta = 0" in figure_texts(top_tokens.draw_table3(tables, run))
    for form in ("mean_shift", "covariance"):
        for draw in top_tokens.FIGURES.values():
            draw(tables, run, form)
    none = tables | {"table3": tables["table3"].clear()}
    assert "no token occurs often enough" in figure_texts(top_tokens.draw_table3(none, run))


def test_labels_are_short_and_drawable():
    assert top_tokens.label_of(" " * 16) == "␣×16"
    assert top_tokens.label_of(" the") == "␣the"
    assert top_tokens.label_of("a" * 20) == "a" * 8 + "…"
    assert top_tokens.label_of("\U0010ffff") == r"\U0010ff…"
    assert top_tokens.drawable("語") in ("語", r"\u8a9e")
