"""HTML from the package's templates: everything escaped, and text of any kind written as UTF-8."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from .store import atomic_path


def environment() -> jinja2.Environment:
    """The templates of the package. Everything is escaped; undefined names are errors."""
    loader = jinja2.PackageLoader("susceptibilities", "templates")
    result = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The style sheets and the script are files of this package, not text from data.
    result.globals["asset"] = lambda name: Markup(loader.get_source(result, name)[0])
    return result


def encodable(text: str) -> str:
    r"""The text with lone surrogates, which UTF-8 cannot hold, written as ``\ud800``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all; lone surrogates as in ``encodable``."""
    with atomic_path(path) as temporary:
        temporary.write_text(encodable(text), encoding="utf-8", newline="\n")
