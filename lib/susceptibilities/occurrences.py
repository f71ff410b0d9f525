"""The text around an occurrence of a token, and what kind of place it is.

The kinds are the ones that Baker 4.6 tells bimodal tokens apart by: a slash in a URL or not, `to`
in a LaTeX command, in an identifier, or as a word. They are defined on decoded text, so that they
are the same for every tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .per_token import PerToken
from .store import read_json
from .tokens import bos_id, load_tokenizer, token_strings

URL, NO_URL = "in a URL", "elsewhere"
LATEX, PART, WORD = "LaTeX command", "part of a longer name", "word"

# A run without white space, quotes or brackets, so that a link in brackets is one by itself.
_RUN = r"[^\s<>\"'`()\[\]{}]*"
_RUN_BEFORE, _RUN_AFTER = re.compile(_RUN + r"\Z"), re.compile(_RUN)
_SCHEME = re.compile(r"(?:https?|ftp|file|git|ssh)://|www\.", re.IGNORECASE)
# A host without a scheme, up to its first slash: npr.org/sections.
_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+"
    r"(?:com|org|net|edu|gov|mil|int|info|io|[a-z]{2})(?::\d+)?/",
    re.IGNORECASE,
)
_LATEX_BEFORE = re.compile(r"(?<!\\)(?:\\\\)*\\[A-Za-z]*\Z")


@dataclass(frozen=True)
class Occurrence:
    """A token and the text on both sides of it, within its document and context."""

    before: str
    text: str
    after: str


class Texts:
    """Decodes the contexts of a run's probes.

    Args:
        data: per-token susceptibilities of the run.
        results: its folder, ``results/<scale>``.
    """

    def __init__(self, data: PerToken, results: Path) -> None:
        model = read_json(results / "model" / "model.json")
        self._tokenizer: Tokenizer = load_tokenizer(Path(model["path"]))
        self._bos = bos_id(self._tokenizer)
        self._data, self._results = data, results
        self._contexts: dict[str, tuple[dict[int, int], NDArray[np.int64]]] = {}
        self.strings: list[str] = token_strings(self._tokenizer)

    def around(self, index: int, reach: int | None = None) -> Occurrence:
        """The text around a row of ``data.tokens``.

        Args:
            reach: decode at most so many tokens on either side; all by default.
        """
        row: dict[str, Any] = self._data.tokens.row(index, named=True)
        places, ids = self._of(row["probe"])
        context, position = ids[places[row["context"]]], row["position"]
        if context[position] != row["token"]:
            raise ValueError(
                f"probe {row['probe']}, context {row['context']}, position {position}: token "
                f"{context[position]} in tokens/, {row['token']} in the per-token table; build "
                "the per-token susceptibilities again"
            )
        # Another document, or the beginning token, is no context of this one.
        ends = np.flatnonzero(context == self._bos)
        first = max((int(e) + 1 for e in ends if e < position), default=0)
        last = min((int(e) for e in ends if e > position), default=len(context))
        if reach is not None:
            first, last = max(first, position - reach), min(last, position + 1 + reach)
        decode = self._tokenizer.decode
        return Occurrence(
            decode(context[first:position].tolist()),
            decode([int(context[position])]),
            decode(context[position + 1 : last].tolist()),
        )

    def _of(self, probe: str) -> tuple[dict[int, int], NDArray[np.int64]]:
        if probe not in self._contexts:
            mine = self._data.tokens.filter(self._data.tokens["probe"] == probe)
            numbers = mine["context"].unique(maintain_order=True).to_list()
            places = {number: place for place, number in enumerate(numbers)}
            self._contexts[probe] = places, self._data.context_ids(self._results, probe)
        return self._contexts[probe]


def spellings(word: str, strings: Sequence[str]) -> list[int]:
    """Ids of the tokens that are this word, with or without a space before it.

    The paper's tokenizer writes a space as a token of its own, others write it into the word.
    The space itself is only the single space.
    """
    wanted = (word,) if word.isspace() else (word, " " + word)
    return [number for text in wanted for number, other in enumerate(strings) if other == text]


def in_url(found: Occurrence) -> bool:
    """Whether the token is part of a URL: a scheme, ``www.``, or a host name with a path."""
    start, end = _RUN_BEFORE.search(found.before), _RUN_AFTER.match(found.after)
    assert start is not None and end is not None  # both match the empty string
    before = "" if found.text.startswith(" ") else start.group()
    run = before + found.text.strip() + end.group()
    links = (pattern.search(run) for pattern in (_SCHEME, _HOST))
    # The token may be part of the scheme itself, but not stand before the link.
    return any(link is not None and link.start() <= len(before) for link in links)


def kind_of_slash(found: Occurrence) -> str:
    """`URL` or `NO_URL`."""
    return URL if in_url(found) else NO_URL


def kind_of_word(found: Occurrence) -> str:
    """`LATEX`, `PART` or `WORD`.

    A LaTeX command is a backslash and letters, the token among them. A word stands between
    characters that are no letters, digits or underscores; beside one of these the token is part
    of a longer word or identifier.
    """
    spaced = found.text.startswith(" ")
    before = "" if spaced else found.before
    if _LATEX_BEFORE.search(before):
        return LATEX
    joined = (before[-1:], found.after[:1])
    if any(character.isalnum() or character == "_" for character in joined):
        return PART
    return WORD


KIND_OF = {"slash": kind_of_slash, "word": kind_of_word}


def kinds(texts: Texts, indices: Iterable[int], of: str) -> NDArray[np.str_]:
    """Kind of each occurrence, (occurrence,).

    Args:
        indices: rows of the token table.
        of: "slash", "word", or "" for no kinds (empty strings).
    """
    found = [KIND_OF[of](texts.around(index)) if of else "" for index in indices]
    return np.array(found, dtype=np.str_)
