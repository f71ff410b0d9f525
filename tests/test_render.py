"""Highlighted text and tables as HTML and as figures: colors, marks, and text that does harm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from susceptibilities.claims import InputError
from susceptibilities.highlight import SCHEMES, Colors, keys, shared_keys, signed
from susceptibilities.markup import encodable, write_text
from susceptibilities.render import (
    Highlight,
    color,
    highlight_fragment,
    highlight_page,
    load_highlight,
    save_highlight,
    table_fragment,
    write_table,
)
from susceptibilities.report.embedded import load_fragment
from susceptibilities.visible import pieces, printable, visible

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "figures"))

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.collections import PatchCollection  # noqa: E402

import highlight as figure_script  # noqa: E402
from text_layout import Cell, cells, lines  # noqa: E402

NASTY = [
    *("<|endoftext|>", "<script>", "alert(1)", "</script>", "</span>", "&amp;", ' "', "quo'te"),
    *("\x00", "\x1b[31m", "\t", "\r\n", "\n\n", "a\u202e", "live", "\u2066x\u2069", "שלום"),
    *(
        "\u0301e",
        "\ud800",
        "\udc80x",
        "\ufeff",
        "\xa0",
        "日本",
        "👍",
        "$x$ $y",
        "    ",
        "-->",
        "{{1}}",
    ),
]


class Elements(HTMLParser):
    """Elements in order, and the text of the highlighted tokens, one string a token."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tokens: list[str] = []
        self._depth = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if attributes.get("class") == "t":
            self.tokens.append("")
            self._depth = 1
        elif self._depth:
            self._depth += tag != "br"
            self.tokens[-1] += "\n" if tag == "br" else ""

    def handle_endtag(self, tag: str) -> None:
        self._depth = max(0, self._depth - 1)

    def handle_data(self, data: str) -> None:
        if self._depth:
            self.tokens[-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def spans(self) -> list[dict[str, str]]:
        return [a for a in self.all("span") if a.get("class") == "t"]


def track(values: list[float | None], **more: Any) -> dict[str, Any]:
    return {"name": "0:0 current-token", "limit": 0.5, "values": values, **more}


def spec(tokens: list[str], *tracks: dict[str, Any], **more: Any) -> Highlight:
    drawn = tracks or (track([None, *([0.1] * (len(tokens) - 1))]),)
    panel = {"label": "python, context 3", "tokens": tokens, "tracks": list(drawn)}
    return Highlight.model_validate({"title": "Three heads", "panels": [panel], **more})


# ---- colors: Baker C.2 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "opacity", "expected"),
    [
        # Algorithm of Figs 1 and 8: rgba(0,128,0,|v|/max) or rgba(255,0,0,|v|/max).
        (0.5, "susceptibility", "linear", "rgba(0,128,0,0.25)"),
        (-0.5, "susceptibility", "linear", "rgba(255,0,0,0.25)"),
        (2.0, "susceptibility", "linear", "rgba(0,128,0,1)"),
        (-2.0, "susceptibility", "linear", "rgba(255,0,0,1)"),
        (0.0, "susceptibility", "linear", "rgba(255,0,0,0)"),
        # Algorithm of Fig 32: rgba(0,255,0,(|v|/max)^2) or rgba(255,0,0,(|v|/max)^2).
        (0.5, "susceptibility", "squared", "rgba(0,255,0,0.0625)"),
        (-1.0, "susceptibility", "squared", "rgba(255,0,0,0.25)"),
        # Fig 32: a head whose ablation lowers the loss is green; a loss is red.
        (-1.0, "ablation", "squared", "rgba(0,255,0,0.25)"),
        (1.0, "ablation", "squared", "rgba(255,0,0,0.25)"),
        (1.0, "loss", "squared", "rgba(255,0,0,0.25)"),
        (1.0, "loss", "linear", "rgba(255,0,0,0.5)"),
        # Beyond the limit the color is full.
        (7.0, "susceptibility", "linear", "rgba(0,128,0,1)"),
        (-7.0, "susceptibility", "squared", "rgba(255,0,0,1)"),
    ],
)
def test_the_colors_are_those_of_the_paper(value, kind, opacity, expected):
    assert color(value, 2.0, kind, opacity) == expected


def test_other_colors_and_no_limit():
    assert color(1.0, 1.0, scheme="blue-orange") == "rgba(51,136,221,1)"
    assert color(-1.0, 1.0, scheme="blue-orange") == "rgba(238,136,0,1)"
    assert color(0.0, 0.0) == "rgba(255,0,0,0)"


def contrast_with_black(rgb: tuple[int, int, int]) -> float:
    """WCAG 2 contrast of black text on a color."""
    parts = [c / 255 for c in rgb]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05) / 0.05


def without_red_cones(rgb: tuple[int, int, int]) -> tuple[float, float]:
    """The two colors left to a protanope (Viénot, Brettel, Mollon 1999): yellow and blue."""
    r, g, b = ((c / 255) ** 2.2 for c in rgb)
    return 0.11238 * r + 0.88762 * g, 0.00401 * r - 0.00401 * g + b


def test_the_other_colors_are_told_apart_without_red_and_can_be_read():
    pair = SCHEMES["blue-orange"]["linear"]
    assert min(map(contrast_with_black, pair)) > 4.5

    def distance(colors: Colors) -> float:
        one, two = map(without_red_cones, colors)
        return max(abs(a - b) for a, b in zip(one, two, strict=True))

    assert distance(pair) > 3 * distance(SCHEMES["paper"]["linear"])


def test_the_page_holds_the_colors_of_both_schemes_and_the_values():
    text = highlight_page(spec(["<|endoftext|>", "a", "b"], track([None, 0.25, -0.5])))
    page = Elements(text)
    assert [span["style"] for span in page.spans] == [
        "",
        "--a:rgba(var(--green),0.5)",
        "--a:rgba(var(--red),1)",
    ]
    assert [span["title"] for span in page.spans] == [
        "0:0 current-token: no value",
        "0:0 current-token: +0.25 nats²",
        "0:0 current-token: −0.5 nats²",
    ]
    box = next(a for a in page.all("div") if a.get("class") == "highlight")["style"]
    assert "--paper-green:0,128,0;--paper-red:255,0,0;" in box
    assert "--blue-orange-green:51,136,221;" in box
    squared = highlight_fragment(spec(["a"], track([0.25]), opacity="squared"))
    assert "--paper-green:0,255,0;" in squared
    assert 'style="--a:rgba(var(--green),0.25)"' in squared


def test_three_bars_and_their_legend():
    three = [
        track([0.25, -0.5]),
        track([-0.3, 0.1], name="ablation", kind="ablation", limit=0.3),
        track([2.0, 4.0], name="loss", kind="loss", limit=4.0),
    ]
    found = spec(["a", "b"], *three)
    page = Elements(text := highlight_page(found))
    assert page.spans[0]["style"] == (
        "--a:rgba(var(--green),0.5);--b:rgba(var(--green),1);--c:rgba(var(--red),0.5)"
    )
    assert page.spans[0]["title"].split("\n") == [
        "0:0 current-token: +0.25 nats²",
        "ablation: −0.3 nats",
        "loss: +2 nats",
    ]
    assert any("bars3" in a.get("class", "") for a in page.all("div"))
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))
    assert "greenblue means positive (suppression), redorange means negative (expression)" in words
    assert "means negative (the loss falls when the head is ablated)" in words
    assert "redorange means a high loss" in words
    for place in ("top: 0:0 current-token", "middle: ablation", "bottom: loss"):
        assert place in words
    assert "−0.5 nats²+0.5 nats²" in words
    assert [key.scale[0] for key in keys(found.panels[0])] == [-0.5, 0.3, 0.0]


def test_one_legend_where_panels_share_it():
    one = spec(["a"], track([0.1])).panels[0]
    same = Highlight(title="t", columns=2, panels=[one, one])
    assert highlight_fragment(same).count('<dl class="legend">') == 1
    other = spec(["a"], track([0.1], limit=0.2)).panels[0]
    differ = Highlight(title="t", columns=2, panels=[one, other])
    assert shared_keys(differ.panels) == ()
    assert highlight_fragment(differ).count('<dl class="legend">') == 2
    assert "--columns:2" in highlight_fragment(differ)
    assert "--columns:1" in highlight_fragment(spec(["a"], columns=4))


# ---- text that does harm -----------------------------------------------------------------------

ALLOWED = {"span", "bdi", "i", "br"}


def test_nasty_tokens_stay_text(tmp_path: Path):
    found = spec(NASTY, title="<b> & \u202e", subtitle="\x00 {{ 7 * 7 }}")
    write_text(tmp_path / "page.html", highlight_page(found))
    raw = (tmp_path / "page.html").read_bytes()
    text = raw.decode("utf-8")
    assert not {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs")} - {"\n", "\t"}
    page = Elements(text)
    assert not page.all("script")
    assert page.tokens == [
        *("<|endoftext|>", "<script>", "alert(1)", "</script>", "</span>", "&amp;", ' "', "quo'te"),
        *("\\x00", "\\x1b[31m", "\t", "\\x0d\n", "\n\n", "a\\u202e", "live", "\\u2066x\\u2069"),
        *("שלום", "◌\u0301e", "\\ud800", "\\udc80x", "\\ufeff", "\\xa0", "日本", "👍", "$x$ $y"),
        *("    ", "-->", "{{1}}"),
    ]
    assert "{{ 7 * 7 }}" in text and "&lt;b&gt; &amp; \\u202e" in text


@given(st.lists(st.text(st.characters(exclude_categories=[])), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_and_makes_no_element(tokens):
    found = spec(tokens)
    fragment = highlight_fragment(found)
    assert fragment.encode("utf-8")
    page = Elements(fragment)
    expected = ["".join(text for _, text in pieces(t)) for t in found.panels[0].tokens]
    assert page.tokens == expected
    plain = Elements(highlight_fragment(spec(["x"] * len(tokens))))
    inside = [tag for tag, _ in page.elements if tag not in ALLOWED]
    assert inside == [tag for tag, _ in plain.elements if tag not in ALLOWED]
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("src", "href")}


def test_nothing_is_loaded_and_nothing_runs():
    text = highlight_page(spec(NASTY))
    page = Elements(text)
    assert not page.all("script") + page.all("img") + page.all("iframe") + page.all("a")
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    css = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert css and "url(" not in css and "@import" not in css
    policy = next(m for m in page.all("meta") if m.get("http-equiv"))["content"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy and "http" not in policy


def test_the_page_for_every_reader():
    text = highlight_page(spec(["a", " b", "\n"]))
    page = Elements(text)
    assert page.all("html")[0]["lang"] == "en"
    assert [tag for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)] == ["h1", "h2"]
    assert page.all("fieldset") and len(page.all("legend")) == 1
    radios = page.all("input")
    assert len({r["name"] for r in radios}) == 1
    assert [("checked" in r, r["type"]) for r in radios] == [(True, "radio"), (False, "radio")]
    sample = next(a for a in page.all("div") if a.get("class", "").startswith("text"))
    assert sample["lang"] == "" and sample["dir"] == "ltr" and sample["translate"] == "no"
    # The values without a pointer: a table, which can be reached and scrolled by keyboard.
    assert page.all("details") and page.all("summary")
    assert next(a for a in page.all("div") if a.get("role") == "region")["tabindex"] == "0"
    assert "<td>␣b</td>" in text and "<td>↵</td>" in text
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for rule in ("print-color-adjust: exact", "@media print", "prefers-color-scheme: dark"):
        assert rule in text


def test_two_fragments_in_a_page_have_their_own_choice_of_colors():
    one, two = (highlight_fragment(spec([t])) for t in ("a", "b"))
    names = [Elements(f).all("input")[0]["name"] for f in (one, two)]
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "␣the"),
        ("\n\t", "↵⇥"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("\u202e\u2029\U000e0001", "\\u202e\\u2029\\U000e0001"),
        ("\ud800", "\\ud800"),
        ("\u0301a e\u0301", "◌\u0301a␣e\u0301"),
        (" \u0301", "␣◌\u0301"),
        ("\u3164\xad\xa0", "\\u3164\\xad\\xa0"),
        ("שלום·", "שלום·"),
        ("", ""),
    ],
)
def test_visible(text, shown):
    assert visible(text) == shown
    assert printable(text) == shown.replace("␣", " ")


# ---- files -------------------------------------------------------------------------------------


def test_files_survive_lone_surrogates(tmp_path: Path):
    path = tmp_path / "x.highlight.json"
    save_highlight(path, found := spec(["\ud800", "a\udfff\U0001f44d"]))
    assert load_highlight(path) == found
    assert found.panels[0].tokens == ["\\ud800", "a\\udfff👍"]
    # JSON from elsewhere may spell them out.
    content = json.loads(path.read_text())
    content["panels"][0]["tokens"][0] = "\udc00"
    path.write_text(json.dumps(content))
    assert load_highlight(path).panels[0].tokens[0] == "\\udc00"
    write_text(tmp_path / "x.txt", "a\ud800\r\n")
    assert (tmp_path / "x.txt").read_bytes() == b"a\\ud800\r\n"
    assert encodable("é👍") == "é👍"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"panels": [{"label": "p", "tokens": ["a"], "tracks": [track([])]}]},
            "0 values for 1 tok",
        ),
        ({"panels": [{"label": "p", "tokens": [], "tracks": []}]}, "tracks"),
        ({"panels": [{"label": "p", "tokens": [], "tracks": [track([])] * 4}]}, "tracks"),
        (
            {"panels": [{"label": "p", "tokens": ["a"], "tracks": [track([float("nan")])]}]},
            "finite",
        ),
        ({"opacity": "cubic"}, "opacity"),
        ({"columns": 0}, "columns"),
        ({"extra": 1}, "extra"),
        ({"panels": [{"label": "p", "tokens": [1], "tracks": [track([0.0])]}]}, "tokens"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, change, message):
    path = tmp_path / "x.highlight.json"
    path.write_text(json.dumps({"title": "t", "panels": [], **change}))
    with pytest.raises(InputError, match=message) as error:
        load_highlight(path)
    assert str(path) in str(error.value)


def test_half_a_file_is_named(tmp_path: Path):
    (tmp_path / "x.json").write_text('{"title": ')
    with pytest.raises(InputError, match=r"x\.json: not a JSON file"):
        load_highlight(tmp_path / "x.json")


def test_signed():
    assert [signed(v) for v in (0.0123446, -3.0, 0.0, -1e-7, None)] == [
        *("+0.01234", "−3", "0", "−1 × 10⁻⁷", "no value"),
    ]


# ---- tables ------------------------------------------------------------------------------------

FRAME = pl.DataFrame(
    {
        "token": ["<b>&\x00", "a b"],
        "count": [12345, None],
        "chi": [0.123456, float("nan")],
        "text": ["0.1 ± 0.2", ""],
        "sure": [True, False],
    }
)


def test_a_table_shows_what_it_is_given(tmp_path: Path):
    labels = {"text": "χ & se", "token": "Token", "count": "Count", "chi": "χ", "sure": "Sure"}
    text = table_fragment(FRAME, labels, "<caption>", numbers=["text"])
    for cell in (
        "<caption>&lt;caption&gt;</caption>",
        '<th scope="col" class="number">χ &amp; se</th>',
        '<th scope="col">Token</th>',
        '<th scope="row" class="number">0.1 ± 0.2</th>',
        "<td>&lt;b&gt;&amp;\\x00</td>",
        "<td>a b</td>",
        '<td class="number">12\N{NARROW NO-BREAK SPACE}345</td>',
        '<td class="number">0.1235</td>',
        '<td class="number"></td>',
        "<td>yes</td>",
    ):
        assert cell in text
    write_table(tmp_path / "t", FRAME, labels, "<caption>", ["text"])
    assert load_fragment(tmp_path / "t.html") == text
    assert pl.read_csv(tmp_path / "t.csv").columns == FRAME.columns


def test_a_table_without_rows_or_columns():
    assert "No rows." in table_fragment(FRAME.clear(), {"chi": "χ"})
    assert "<caption>" not in table_fragment(FRAME, {"chi": "χ"})
    with pytest.raises(ValueError, match="no column x, y; found"):
        table_fragment(FRAME, {"x": "X", "chi": "χ"}, numbers=["y"])
    with pytest.raises(ValueError, match="no column chosen"):
        table_fragment(FRAME, {})
    with pytest.raises(ValueError, match="column l holds lists"):
        table_fragment(pl.DataFrame({"l": [[1]]}), {"l": "L"})


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=60, deadline=None)
def test_any_cell_is_text(text):
    fragment = table_fragment(pl.DataFrame({"a": [text]}), {"a": text}, text)
    assert {tag for tag, _ in Elements(fragment).elements} <= {
        *("table", "caption", "thead", "tbody", "tr", "th"),
    }


# ---- figures -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_lines_are_broken_after_spaces_and_at_newlines():
    tokens = ["one", " two", " three", "\n", "\n\n", "four", "x" * 25]
    rows = lines(tokens, 10)
    assert ["".join(c.text for c in row) for row in rows] == [
        *("one two ", "three\n", "\n", "\n", "fourxxxxxx", "x" * 10, "x" * 9),
    ]
    for row in rows:
        assert [c.column for c in row] == list(range(len(row)))
    assert lines([], 10) == [[]]
    assert sum(len(row) for row in rows) == sum(map(len, tokens))


def test_cells_of_rare_letters():
    assert [c.text for c in cells(0, "שלום ab")] == ["ם", "ו", "ל", "ש", " ", "a", "b"]
    assert [c.text for c in cells(0, "e\u0301x")] == ["é", "x"]
    assert list(cells(2, "日")) == [Cell(2, "escape", "\\u65e5", 6)]
    assert [c.kind for c in cells(0, "\ud800\t\x00")] == ["escape", "tab", "escape"]
    (tab,) = lines(["ab\t"], 10)[0][2:]
    assert (tab.column, tab.columns) == (2, 2)


def bars(figure) -> list[tuple[float, ...]]:
    found = [c for c in figure.axes[0].collections if isinstance(c, PatchCollection)]
    return [tuple(color) for c in found for color in c.get_facecolors()]


@pytest.mark.parametrize("opacity", ["linear", "squared"])
def test_the_figure_has_the_colors_of_the_page(opacity):
    values = [None, 0.25, -0.5]
    figure = figure_script.draw(spec(["a", "b", "c"], track(values), opacity=opacity))
    expected = []
    for value in values[1:]:
        parts = color(value, 0.5, opacity=opacity)[5:-1].split(",")
        expected.append((*(int(p) / 255 for p in parts[:3]), float(parts[3])))
    assert bars(figure) == [pytest.approx(e, abs=1e-3) for e in expected]
    other = figure_script.draw(spec(["a"], track([0.5])), "blue-orange")
    assert bars(other) == [pytest.approx((51 / 255, 136 / 255, 221 / 255, 1.0))]


def test_nasty_tokens_are_drawn_as_they_are():
    figure = figure_script.draw(spec(NASTY, title="$x$ <b>"))
    figure.canvas.draw()  # a glyph that no font has would warn, and fail the test
    written = [t.get_text() for t in figure.findobj(plt.Text)]
    for text in ("$x$", "$y", "\\x00", "\\u202e", "\\u65e5", "$x$ <b>", "python, context 3"):
        assert any(text in w for w in written), text


def test_panels_stand_side_by_side_in_one_width():
    one = spec(["word "] * 80).panels[0]
    figures = [
        figure_script.draw(Highlight(title="t", columns=columns, panels=[one] * 4))
        for columns in (1, 2)
    ]
    wide, tall = zip(*(f.get_size_inches() for f in figures), strict=True)
    assert wide[0] == wide[1] == pytest.approx(6.75)
    assert tall[1] < tall[0]
    figure_script.draw(Highlight(title="no panels", panels=[])).canvas.draw()


def test_the_script(tmp_path: Path):
    save_highlight(tmp_path / "fig1.highlight.json", spec(NASTY))
    command = [sys.executable, "figures/highlight.py", "--results", str(tmp_path)]
    command += ["--spec", str(tmp_path / "fig1.highlight.json")]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)

    page = run("--page", str(tmp_path / "pages" / "fig1.html"))
    assert page.returncode == 0, page.stderr
    assert not (tmp_path / "figures").exists()
    assert Elements((tmp_path / "pages" / "fig1.html").read_text()).spans
    both = run("--page", str(tmp_path / "p.html"), "--out", str(tmp_path / "figures" / "fig1"))
    assert both.returncode == 0, both.stderr
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"fig1.pdf", "fig1.png"}
    (tmp_path / "fig1.highlight.json").write_text("{}")
    wrong = run()
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ") and "title" in wrong.stderr
