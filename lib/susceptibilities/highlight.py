"""Highlighted text (Baker C.2, Figs 1, 8 and 32): what is drawn, and the colors.

Each token carries up to three values, drawn as bars stacked behind it. ``render`` writes this as
HTML, ``figures/highlight.py`` as PDF and PNG.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from .claims import InputError, parse
from .markup import encodable
from .report.numbers import format_number
from .store import read_json, write_json

Kind = Literal["susceptibility", "ablation", "loss"]
Opacity = Literal["linear", "squared"]
Scheme = Literal["paper", "blue-orange"]
Rgb = tuple[int, int, int]

UNITS: dict[Kind, str] = {"susceptibility": "nats²", "ablation": "nats", "loss": "nats"}
# What the two colors mean, the first being the paper's green; a loss has only the other one.
MEANINGS: dict[Kind, tuple[str, str]] = {
    "susceptibility": ("positive (suppression)", "negative (expression)"),
    "ablation": (
        "negative (the loss falls when the head is ablated)",
        "positive (the loss rises when the head is ablated)",
    ),
    "loss": ("", "a high loss"),
}


class Colors(NamedTuple):
    """The pair of a scheme: ``green`` and ``red``, or what takes their place."""

    green: Rgb
    red: Rgb


# Baker C.2 has two greens: 128 where opacity is linear (Figs 1, 8), 255 where it is squared
# (Fig 32). The other pair is told apart without seeing red or green, and black text on either
# at full strength has a contrast of 5 or more.
SCHEMES: dict[Scheme, dict[Opacity, Colors]] = {
    "paper": {
        "linear": Colors((0, 128, 0), (255, 0, 0)),
        "squared": Colors((0, 255, 0), (255, 0, 0)),
    },
    "blue-orange": {
        "linear": Colors((51, 136, 221), (238, 136, 0)),
        "squared": Colors((51, 136, 221), (238, 136, 0)),
    },
}


class Shade(NamedTuple):
    """Which of the two colors a value gets, and how opaque: 0 to 1."""

    green: bool
    alpha: float


def shade(
    value: float, limit: float, kind: Kind = "susceptibility", opacity: Opacity = "linear"
) -> Shade:
    """The color of a value by the two algorithms of Baker C.2.

    Green is for positive susceptibilities and for negative ablation deltas (Fig 32), red for all
    else: a loss is never green. Opacity is |value| / limit, or its square, and 1 beyond limit.
    """
    share = min(1.0, abs(value) / limit) if limit else 0.0
    green = {"susceptibility": value > 0, "ablation": value < 0, "loss": False}[kind]
    return Shade(green, share**2 if opacity == "squared" else share)


def color(
    value: float,
    limit: float,
    kind: Kind = "susceptibility",
    opacity: Opacity = "linear",
    scheme: Scheme = "paper",
) -> str:
    """The same as CSS: ``rgba(0,128,0,0.25)``. Opacity has four decimals."""
    chosen = shade(value, limit, kind, opacity)
    pair = SCHEMES[scheme][opacity]
    red, green, blue = pair.green if chosen.green else pair.red
    return f"rgba({red},{green},{blue},{chosen.alpha:.4g})"


# ---- the JSON files ----------------------------------------------------------------------------

# Decoded tokens may end in half a surrogate pair, which no file could hold.
Text = Annotated[str, BeforeValidator(lambda x: encodable(x) if isinstance(x, str) else x)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Track(_Strict):
    """One bar of every token.

    Attributes:
        limit: |value| at which the color is full.
        values: one a token; None where nothing was measured, as on the first token.
    """

    name: Text
    kind: Kind = "susceptibility"
    limit: float = Field(ge=0)
    values: list[float | None]


class Panel(_Strict):
    """One piece of text with its tracks, top to bottom."""

    label: Text
    tokens: list[Text]
    tracks: list[Track] = Field(min_length=1, max_length=3)

    @model_validator(mode="after")
    def _one_value_a_token(self) -> Panel:
        for track in self.tracks:
            if len(track.values) != len(self.tokens):
                raise ValueError(
                    f"track {track.name!r} of panel {self.label!r} has {len(track.values)} values "
                    f"for {len(self.tokens)} tokens"
                )
        return self


class Highlight(_Strict):
    """A page or a figure of highlighted text; ``columns`` panels stand side by side."""

    title: Text
    subtitle: Text = ""
    opacity: Opacity = "linear"
    columns: int = Field(default=1, ge=1, le=4)
    panels: list[Panel]


def load_highlight(path: Path) -> Highlight:
    """Read a ``<name>.highlight.json``.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is not JSON, or not of this form; says where.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error}); make it again") from None
    return parse(Highlight, content, path)


def save_highlight(path: Path, highlight: Highlight) -> None:
    """Write a ``<name>.highlight.json``. Lone surrogates were replaced when it was made."""
    write_json(path, highlight.model_dump())


# ---- legend ------------------------------------------------------------------------------------


class Key(NamedTuple):
    """A track's line of the legend."""

    place: str
    name: str
    kind: Kind
    limit: float

    @property
    def unit(self) -> str:
        """Unit of the values."""
        return UNITS[self.kind]

    @property
    def scale(self) -> list[float]:
        """Values whose colors are shown, from red to green as the paper has them."""
        if self.kind == "loss":
            return [self.limit * i / 4 for i in range(5)]
        sign = -1 if self.kind == "ablation" else 1
        return [sign * self.limit * i / 4 for i in range(-4, 5)]


def keys(panel: Panel) -> tuple[Key, ...]:
    """The legend of a panel: its bars from top to bottom."""
    places = {1: ("",), 2: ("top", "bottom"), 3: ("top", "middle", "bottom")}[len(panel.tracks)]
    return tuple(
        Key(place, track.name, track.kind, track.limit)
        for place, track in zip(places, panel.tracks, strict=True)
    )


def shared_keys(panels: Sequence[Panel]) -> tuple[Key, ...]:
    """The legend of all panels where they have the same, and () where they differ."""
    found = {keys(panel) for panel in panels}
    return found.pop() if len(found) == 1 else ()


def kinds(panels: Sequence[Panel]) -> list[Kind]:
    """The kinds of values among all tracks, in the order in which they first appear."""
    found: list[Kind] = []
    for track in (track for panel in panels for track in panel.tracks):
        if track.kind not in found:
            found.append(track.kind)
    return found


def signed(value: float | None, unit: str = "") -> str:
    """A value with its sign, in four significant digits: "+0.01234 nats²"."""
    if value is None:
        return "no value"
    text = format_number(float(f"{value:.4g}"))
    return f"{'+' if value > 0 else ''}{text}{' ' + unit if unit else ''}"
