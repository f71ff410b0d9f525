"""Numbers as text: a value with its error, a published value as it was printed."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

from ..claims import leaves

MINUS = "\N{MINUS SIGN}"
RELATIONS = {"==": "", "~": "≈ ", "<": "< ", ">": "> ", "<=": "≤ ", "": ""}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SHOWN = 6  # values of a long list that are written out


def format_number(value: float, se: float | None = None) -> str:
    """Write "value ± se" with two significant digits of se, both cut at the same place.

    Without an error (None) four significant digits; with an error of zero the value as it is.
    Below 1e-3 and from 1e6 on, with a common power of ten. The sign is kept when the digits
    round to zero.
    """
    value = value + 0.0  # no sign for a negative zero
    if not math.isfinite(value) or (se is not None and not math.isfinite(se)):
        return f"{value} ± {se}" if se is not None else str(value)
    if not se:
        text = f"{value:.10g}" if se == 0 or float(value).is_integer() else f"{value:.4g}"
        mantissa, _, exponent = text.partition("e")
        return _minus(mantissa) + (_power(int(exponent)) if exponent else "")
    se = abs(se)
    size = max(abs(value), se)
    power = math.floor(math.log10(size))
    shift = power if not -3 <= power < 6 else 0
    last = int(f"{se:.1e}".partition("e")[2]) - 1  # place of se's second digit
    with localcontext(prec=2000):
        unit = Decimal(1).scaleb(last)
        digits = [
            format(Decimal(number).quantize(unit).scaleb(-shift), "f") for number in (value, se)
        ]
    pair = " ± ".join(_minus(text) for text in digits)
    return f"({pair}){_power(shift)}" if shift else pair


def _minus(text: str) -> str:
    return "0" if text == "-0" else text.replace("-", MINUS)


def _power(exponent: int) -> str:
    return f" × 10{str(exponent).translate(SUPERSCRIPTS)}"


def format_measured(value: float | list[Any] | None, se: float | list[Any] | None) -> list[str]:
    """A regenerated value, or each of a list of them, with its error."""
    if value is None:
        return []
    values = leaves(value)
    errors = [None] * len(values) if se is None else leaves(se)
    if len(errors) != len(values):  # one error for all
        errors = errors[:1] * len(values)
    return _shorten([format_number(*pair) for pair in zip(values, errors, strict=True)])


def format_published(value: str | list[Any] | None, relation: str, unit: str = "") -> list[str]:
    """A published value, or each of a list of them, with the digits that were printed."""
    if value is None:
        return []
    texts = [
        RELATIONS[relation] + text.replace("-", MINUS) + (f" {unit}" if unit else "")
        for text in leaves(value)
    ]
    return _shorten(texts)


def _shorten(texts: list[str]) -> list[str]:
    if len(texts) <= SHOWN + 1:
        return texts
    return [*texts[:SHOWN], f"… {len(texts)} values"]


def format_count(value: float | None) -> str:
    """A count with thin spaces between thousands."""
    return "" if value is None else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def format_seconds(seconds: float) -> str:
    """A duration in the two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
