"""The report: what it shows, that it loads nothing from the network, and its numbers."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from report_results import (
    FIGURES,
    MEASURED,
    NASTY,
    NOT_DRAWN,
    PAGE,
    SECTION_1,
    SECTION_2,
    TABLE,
    config,
    write_experiments,
    write_results,
)
from susceptibilities.claims import InputError, load_published
from susceptibilities.comparison import compare
from susceptibilities.report import load_config, write_report
from susceptibilities.report.build import (
    LONG_NOTE,
    MEANINGS,
    code_spans,
    figures_named,
    lead,
    png_size,
)
from susceptibilities.report.embedded import load_fragment
from susceptibilities.report.numbers import (
    format_measured,
    format_number,
    format_published,
    format_seconds,
)
from susceptibilities.report.provenance import bibtex, git_state, references, wall_times
from susceptibilities.report.tables import parts_table
from susceptibilities.report.traces import HEIGHT, WIDTH, trace_panels
from susceptibilities.store import write_json
from susceptibilities.verdicts import VERDICTS

ROOT = Path(__file__).parent.parent

# Attributes that make a browser fetch something when the page opens.
LOADING = {"src", "srcset", "data", "poster", "background", "action", "formaction", "xlink:href"}


class Page(HTMLParser):
    """The elements of a page, and the text outside script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(folder: Path, *, scale: str = "mini", hub: bool = False, bare: bool = False) -> Path:
    write_experiments(folder / "experiments")
    write_results(folder / "results", scale=scale, hub=hub, bare=bare)
    settings = load_config(folder / "results", scale)
    comparison = compare(folder / "results", folder / "experiments", ROOT / "published", settings)
    return write_report(folder / "results", folder / "experiments", ROOT, settings, comparison)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(html: Path) -> Page:
    return Page(html.read_text())


def test_nothing_is_loaded_from_elsewhere(html: Path, page: Page) -> None:
    for tag, attributes in page.elements:
        loaded = [attributes[name] for name in LOADING & set(attributes)]
        if tag == "link":
            loaded.append(attributes["href"])
        for address in loaded:
            assert re.match(r"figures/[a-z0-9_]+\.png$|data:,$", address), (tag, address)
    assert not page.all("iframe") + page.all("object") + page.all("base")
    css = "".join(re.findall(r"<style>(.*?)</style>", html.read_text(), re.DOTALL))
    assert "url(" not in css
    assert "@import" not in css
    policy = next(m for m in page.all("meta") if m.get("http-equiv"))["content"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_every_claim_is_there_with_its_verdict(page: Page) -> None:
    rows = {a["id"]: a["data-verdict"] for a in page.all("tr") if "data-verdict" in a}
    assert list(rows) == list(load_published(ROOT / "published").claims())
    assert rows["baker2025.s41.signs"] == "fails"
    assert "0.0312 ± 0.0041" in page.text
    assert "≈ 0.04" in page.text


def test_text_from_files_is_escaped(page: Page) -> None:
    assert all(image["src"].startswith("figures/") for image in page.all("img"))
    # In a note, in a caption, as a domain, as a chain's reason.
    assert page.text.count(NASTY) >= 4


def test_it_can_be_read_without_seeing_it(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(image["alt"] and image["width"] and image["height"] for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(head["scope"] in ("row", "col") for head in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_links_inside_the_page_lead_somewhere(html: Path, page: Page) -> None:
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for link in page.all("a"):
        href = link["href"]
        if href.startswith("#"):
            assert href[1:] in names
        elif not href.startswith("https://"):
            assert (html.parent / href).exists()


def test_figures_with_what_the_paper_shows(html: Path, page: Page) -> None:
    names = {f["name"] for figures in FIGURES.values() for f in figures} | {"structure"}
    copied = {path.stem for path in (html.parent / "figures").iterdir()}
    assert copied == names - {NOT_DRAWN, TABLE}
    assert "layer-1 heads fall apart" in page.text
    assert f"Not made in this run: snakemake -c2 {NOT_DRAWN}" in page.text
    assert "4 more: Figure 20 to Figure 23" in page.text


def test_tables_are_embedded_and_pages_linked(html: Path, page: Page) -> None:
    links = [a["href"] for a in page.all("a")]
    assert links.count(f"tables/{TABLE}.csv") == links.count(f"pages/{PAGE}.html") == 1
    assert [path.name for path in (html.parent / "tables").iterdir()] == [f"{TABLE}.csv"]
    assert [path.name for path in (html.parent / "pages").iterdir()] == [f"{PAGE}.html"]
    # The page's figure is there beside it, and a table alone is not missing a figure.
    assert (html.parent / "figures" / f"{PAGE}.png").exists()
    assert f"Not made in this run: snakemake -c2 {TABLE}" not in page.text
    assert "167995" in page.text and "−150179" in page.text
    assert "−150179" not in (html.parent / "tables" / f"{TABLE}.csv").read_text()


GOOD = "<table><caption>A &lt;b&gt; http://a.b</caption><tr><td>1<br></td></tr></table>"


def test_a_table_of_a_section_is_embedded_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.html").write_text(GOOD)
    assert load_fragment(tmp_path / "x.html") == GOOD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("1", "<script>alert(1)</script>"), "element <script>"),
        (GOOD.replace("1", "<SCRIPT src=x>"), "element <script>"),
        (GOOD.replace("1", '<img src="http://evil.example/x.png">'), "element <img>"),
        (GOOD.replace("1", "<svg/onload=alert(1)>"), "element <svg>"),
        (GOOD.replace("1", '<a href="https://a.b">x</a>'), "element <a>"),
        (GOOD.replace("<tr>", "<tr onclick=alert(1)>"), "attribute onclick of <tr>"),
        (GOOD.replace("<tr>", "<tr ONCLICK=alert(1)>"), "attribute onclick of <tr>"),
        (GOOD.replace("<tr>", '<tr style="background:url(http://a.b)">'), "attribute style"),
        (GOOD.replace("<tr>", '<tr id="claims">'), "attribute id"),
        (GOOD.replace("1", "<!-- x -->"), "a comment"),
        (GOOD.replace("1", "<![CDATA[x]]>"), "CDATA"),
        ("<!doctype html>" + GOOD, "doctype"),
        (GOOD.replace("</td>", "</table></td>"), "</table> without its beginning"),
        (GOOD.replace("</table>", ""), "<table> is not closed"),
        (GOOD + GOOD, "<table> outside the table"),
        (GOOD + "and more", "text outside the table: 'and more'"),
        ("<p>no table</p>", "element <p>"),
        ("", "no table"),
    ],
)
def test_a_table_that_could_do_harm_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.html").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        load_fragment(tmp_path / "x.html")
    assert str(error.value).startswith(f"{tmp_path / 'x.html'}, line 1, column ")


def test_a_table_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.html").write_bytes(b"<table>\xff</table>")
    with pytest.raises(InputError, match="not UTF-8"):
        load_fragment(tmp_path / "x.html")


def test_a_refused_table_leaves_no_report(tmp_path: Path) -> None:
    first = report(tmp_path)
    before = first.read_text()
    (tmp_path / "results" / "tables" / f"{TABLE}.html").write_text("<script>")
    settings = load_config(tmp_path / "results", "mini")
    experiments = tmp_path / "experiments"
    comparison = compare(tmp_path / "results", experiments, ROOT / "published", settings)
    with pytest.raises(InputError, match="element <script>"):
        write_report(tmp_path / "results", experiments, ROOT, settings, comparison)
    assert first.read_text() == before


def test_the_other_sections(page: Page) -> None:
    for text in (
        "This is not the paper’s model",
        "the largest part is the rank-one part: its size is 97% of that of χ",
        "0.690 ± 0.040",
        "no part alone",
        "Chains left out of every estimate, with the reason (4)",
        "The parts of χ in the n_beta = 0 control",
        "Loss traces of the chains at step 40000",
        "second_factor=same_chain",
        "sympy 1.14.0",
        "previous-token",
        "0.5100 ± 0.0040",
        "two_layer.seed = 0",
        "@software{susceptibilities_run",
    ):
        assert text in page.text


def test_a_run_with_nothing_but_measurements(tmp_path: Path) -> None:
    page = Page(report(tmp_path, bare=True).read_text())
    for text in ("has not saved diagnostics", "no manifest of its text", "no structural scores"):
        assert text in page.text


def test_banners(tmp_path: Path) -> None:
    papers = Page(report(tmp_path / "hub", hub=True).read_text())
    assert "This is not the paper" not in papers.text
    smoke = Page(report(tmp_path / "smoke", scale="smoke").read_text())
    assert "This scale decides nothing" in smoke.text


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    first = report(tmp_path)
    (first.parent / "figures" / "old.png").write_bytes(b"")
    settings = load_config(tmp_path / "results", "mini")
    comparison = compare(
        tmp_path / "results", tmp_path / "experiments", ROOT / "published", settings
    )
    write_report(tmp_path / "results", tmp_path / "experiments", ROOT, settings, comparison)
    assert not (first.parent / "figures" / "old.png").exists()
    assert not list((tmp_path / "results").glob(".report*"))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_config(tmp_path, "mini")
    write_json(tmp_path / "config.json", config("desk"))
    with pytest.raises(InputError, match="expected scale mini, found desk"):
        load_config(tmp_path, "mini")
    (tmp_path / "x.png").write_bytes(b"half")
    with pytest.raises(InputError, match="not a PNG"):
        png_size(tmp_path / "x.png")
    pl.DataFrame({"form": ["chi"]}).write_parquet(tmp_path / "parts.parquet")
    with pytest.raises(InputError, match="no column size, reliability, pc1_share"):
        parts_table(tmp_path)


def test_a_wrong_figure_text_is_named(tmp_path: Path) -> None:
    write_experiments(tmp_path / "experiments")
    write_results(tmp_path / "results", bare=True)
    write_json(tmp_path / "experiments" / SECTION_2 / "figures.yaml", [{"name": "fig6", "c": "x"}])
    comparison = compare(
        tmp_path / "results", tmp_path / "experiments", ROOT / "published", config()
    )
    with pytest.raises(InputError, match=r"figures\.yaml: .*caption: Field required"):
        write_report(tmp_path / "results", tmp_path / "experiments", ROOT, config(), comparison)
    assert not (tmp_path / "results" / "report").exists()


# ---- small parts -------------------------------------------------------------------------------


def test_every_verdict_is_explained() -> None:
    assert set(MEANINGS) == set(VERDICTS)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("4.1, Figs 3-5", {"fig3", "fig4", "fig5"}),
        ("4.2, Fig 13", {"fig13"}),
        ("Table 1", {"table1"}),
        ("2601.12703 Table 7", {"table7"}),
        ("4.2", set()),
    ],
)
def test_figures_named(where: str, names: set[str]) -> None:
    assert figures_named(where) == names


def test_code_spans_are_escaped() -> None:
    assert code_spans("`a<b>` & c") == "<code>a&lt;b&gt;</code> &amp; c"


def test_trace_panels_stay_in_their_box(tmp_path: Path) -> None:
    write_results(tmp_path)
    step, panels = trace_panels(tmp_path / SECTION_1, burn_in=40)
    assert step == 40000
    assert [panel.component for panel in panels] == ["0:0", "1:7", "full"]
    for panel in panels:
        assert [healthy for _, healthy in panel.lines].count(False) == (panel.component == "1:7")
        for points, _ in panel.lines:
            x, y = zip(*(map(float, pair.split(",")) for pair in points.split()), strict=True)
            assert 0 <= min(x) <= max(x) <= WIDTH
            assert 0 <= min(y) <= max(y) <= HEIGHT


def test_trace_panels_of_every_component_are_as_in_the_model(tmp_path: Path) -> None:
    write_results(tmp_path)
    path = tmp_path / SECTION_1 / "traces.parquet"
    one = pl.read_parquet(path).filter(pl.col("component") == "0:0")
    names = ["unembed", "0:10", "mlp:1", "full", "1:0", "mlp:0", "0:2", "embed"]
    pl.concat([one.with_columns(component=pl.lit(name)) for name in names]).write_parquet(path)
    found = [panel.component for panel in trace_panels(tmp_path / SECTION_1, burn_in=40)[1]]
    assert found == ["embed", "0:2", "0:10", "mlp:0", "1:0", "mlp:1", "unembed", "full"]


def test_wall_times_by_rule(tmp_path: Path) -> None:
    assert wall_times(tmp_path) is None
    write_results(tmp_path)
    table = wall_times(tmp_path)
    assert table is not None
    assert table.rows == [
        ("sample", "2", "2 min 2 s", "812 MB"),
        ("compare", "1", "2.5 s", ""),
        ("all", "3", "2 min 4 s", ""),
    ]


def test_no_git_is_no_error(tmp_path: Path) -> None:
    assert git_state(tmp_path / "nowhere") == ("", None)


def test_citation() -> None:
    people = [{"given-names": "Garrett", "family-names": "Baker"}, {"name": "A Group"}]
    entry = {"title": "T", "authors": people, "year": 2025, "doi": "10.1/x"}
    script = {"title": "S", "url": "javascript:alert(1)"}
    preprint = {"title": "P", "identifiers": [{"type": "other", "value": "arXiv:2504.18274"}]}
    found = references({"references": [entry, script, preprint]})
    assert found[2]["link"] == "https://arxiv.org/abs/2504.18274"
    assert found[0]["authors"] == "Garrett Baker, A Group"
    assert found[0]["link"] == "https://doi.org/10.1/x"
    assert found[1]["link"] == ""
    names = ("Commit", "Settings", "Model", "Text", "susceptibilities")
    facts = dict.fromkeys(names, "a_b") | {"Report written": "2026-11-21"}
    text = bibtex({"title": "T", "authors": people, "url": "https://x.org/a_b"}, facts)
    assert "author = {Garrett Baker and A Group}" in text
    assert "url = {https://x.org/a_b}" in text
    assert "a\\_b" in text
    assert text.count("{") == text.count("}")


# ---- numbers -----------------------------------------------------------------------------------

values = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False)
NUMBER = r"[−]?\d+(?:\.\d+)?"
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def parse(text: str) -> tuple[float, float, str, str]:
    """Value and error of "a ± b" or "(a ± b) × 10ⁿ", and their digits."""
    match = re.fullmatch(rf"\(?({NUMBER}) ± ({NUMBER})\)?(?: × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?", text)
    assert match, text
    power = int((match[3] or "0").translate(SUPERSCRIPTS))
    value, se = (float(f"{match[i].replace('−', '-')}e{power}") for i in (1, 2))
    return value, se, match[1], match[2]


@given(st.floats(-1e12, 1e12), st.floats(1e-12, 1e12))
def test_value_and_error_share_their_last_place(value: float, se: float) -> None:
    shown, error, digits, error_digits = parse(format_number(value, se))
    places = [len(text.partition(".")[2]) for text in (digits, error_digits)]
    assert places[0] == places[1]
    # The last place is that of the error's second digit: half of it is a twentieth at most.
    assert abs(shown - value) <= 0.051 * se + 1e-9 * abs(value)
    assert abs(error - se) <= 0.051 * se


@given(st.floats(-1e12, 1e12), st.floats(1e-12, 1e12))
def test_the_error_has_two_significant_digits(value: float, se: float) -> None:
    _, error, _, _ = parse(format_number(value, se))
    assert error == pytest.approx(float(f"{se:.1e}"), rel=1e-9)


@given(values, st.none() | st.just(0.0) | positive)
def test_the_sign_is_kept(value: float, se: float | None) -> None:
    text = format_number(value, se).lstrip("(")
    assert text.startswith("−") == (value < 0)
    assert "-" not in text


@pytest.mark.parametrize(
    ("value", "se", "text"),
    [
        (0.0312, 0.0041, "0.0312 ± 0.0041"),
        (-0.012, 0.002, "−0.0120 ± 0.0020"),
        (16012.0, 230.0, "16010 ± 230"),
        (0.0004, 0.0007, "(4.0 ± 7.0) × 10⁻⁴"),
        (-1e-9, 0.0012, "−0.0000 ± 0.0012"),
        (0.5, 0.0996, "0.50 ± 0.10"),
        (46e6, 1e5, "(4.600 ± 0.010) × 10⁷"),
        (0.0, 0.0, "0"),
        (-0.0, None, "0"),
        (42764, 0.0, "42764"),
        (57236, None, "57236"),
        (0.123456, None, "0.1235"),
        (1.2e-7, None, "1.2 × 10⁻⁷"),
        (math.nan, 0.1, "nan ± 0.1"),
    ],
)
def test_format_number(value: float, se: float | None, text: str) -> None:
    assert format_number(value, se) == text


def test_format_lists() -> None:
    assert format_measured(None, None) == []
    assert format_measured([0.5, 1.5], 0.1) == ["0.50 ± 0.10", "1.50 ± 0.10"]
    assert format_published(["4.10", "-2.76"], "==") == ["4.10", "−2.76"]
    assert format_published("0.24", "~", "nats") == ["≈ 0.24 nats"]
    assert format_published(["1"] * 10, "==")[-1] == "… 10 values"
    assert format_published(None, "") == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.54, "2.5 s"), (59.2, "59 s"), (61.5, "1 min 2 s"), (7322, "2 h 2 min")]
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_the_measurements_of_the_fixture_are_real_claims() -> None:
    claims = load_published(ROOT / "published").claims()
    assert {claim for entries in MEASURED.values() for claim in entries} <= set(claims)


def test_a_long_note_is_folded_and_its_cautions_stay_in_sight() -> None:
    short = "Measured on python. Parts: covariance 0.1."
    assert lead(short) == short
    caution = "Caution: reliability of chi between halves of the chains is 0.12, below 0.5."
    other = "Caution: the n_beta = 0 control, sampled without any loss, meets the same conditions."
    words = "One of many things that were measured. " * 9
    assert lead(f"The first, 0.5 ± 0.1. {words}{caution} {other} {words}") == (
        f"The first, 0.5 ± 0.1. {caution} {other}"
    )
    long = lead("word " * 100)
    assert long.endswith(" …") and len(long) < LONG_NOTE
