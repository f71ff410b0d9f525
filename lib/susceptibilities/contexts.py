"""The token contexts of a run, out of a corpus folder: training distribution, pool and probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from .corpora.documents import MANIFEST, TRAINING, CorpusError, Document, read_checked
from .store import fingerprint, read_json
from .tokens import SPLITS, Contexts, bos_id, encode, in_split, pack

# Text that is tokenized for one array at most: enough to choose from, minutes at worst.
_LEAST_BYTES = 4_000_000
_BYTES_A_TOKEN = 16


@dataclass
class CorpusContexts:
    """Packed contexts of a corpus folder, by split.

    The training distribution is the corpus's own training dataset where it has one, and
    otherwise all domains together in proportion to their text.

    Attributes:
        folder: a corpus folder with its manifest.
        context: tokens of a context, BOS included.
    """

    folder: Path
    tokenizer: Tokenizer
    context: int
    seed: int
    report: Callable[[str], None] = print
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Contexts packed so far, {domain: {split: n}}; see `_pool`."""

    def __post_init__(self) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            raise CorpusError(f"no {MANIFEST} in {self.folder}: build the corpus first")
        manifest = read_json(path)
        self.entries: dict[str, dict[str, Any]] = dict(sorted(manifest["domains"].items()))
        training = manifest.get("training")
        self.training = {TRAINING: training} if training else self.entries

    def distribution(self, split: str, rows: int, most: int | None = None) -> Contexts:
        """``rows`` contexts of the training distribution (up to ``most``, if there are as many).

        Returns:
            Token ids, shape (rows, context), in a seeded order.

        Raises:
            CorpusError: the split has fewer than ``rows``.
        """
        size = sum(int(entry["bytes"]) for entry in self.training.values())
        share = self._share(size, most or rows, split)
        pool = np.concatenate([self._pool(domain, split, share) for domain in self.training])
        return self._take(pool, rows, "the training distribution", split, most)

    def domain(self, domain: str, split: str, rows: int) -> Contexts:
        """``rows`` contexts of one domain, shape (rows, context).

        Raises:
            CorpusError: no such domain, or its split has fewer.
        """
        if domain not in self.entries:
            raise CorpusError(
                f"unknown domain {domain!r} in {self.folder}: it has {', '.join(self.entries)}"
            )
        share = self._share(int(self.entries[domain]["bytes"]), rows, split)
        pool = self._pool(domain, split, share)
        return self._take(pool, rows, f"domain {domain!r}", split)

    def everything(self, split: str) -> Contexts:
        """All contexts of the training distribution's split, in file order."""
        return np.concatenate([self._pool(domain, split, 1.0) for domain in self.training])

    def _share(self, size: int, rows: int, split: str) -> float:
        """Share of the documents that is read: all, unless there is far more than is needed.

        The same share for all domains of a mixture keeps their proportions.
        """
        low, high = SPLITS[split]
        wanted = max(_LEAST_BYTES, _BYTES_A_TOKEN * rows * self.context)
        return min(1.0, wanted / (size * (high - low)))

    def _documents(self, domain: str, split: str, share: float) -> Iterator[Document]:
        for document in read_checked(self.folder, domain):
            # The digits after those that decide the split (and a domain's size limit).
            if in_split(document, split) and (document.position * 2**32) % 1 < share:
                yield document

    def _pool(self, domain: str, split: str, share: float) -> Contexts:
        documents = self._documents(domain, split, share)
        pool = pack(encode(self.tokenizer, documents), self.context, bos_id(self.tokenizer))
        self.counts.setdefault(domain, {})[split] = len(pool)
        self.report(f"{domain}, {split}: {len(pool)} contexts of {self.context} tokens")
        return pool

    def _take(
        self, pool: Contexts, rows: int, where: str, split: str, most: int | None = None
    ) -> Contexts:
        if len(pool) < rows:
            low, high = SPLITS[split]
            raise CorpusError(
                f"{self.folder}: {where} is too small: its {split!r} split ({high - low:.0%} of "
                f"the documents) has {len(pool)} contexts of {self.context} tokens, needed "
                f"{rows}; add text, or lower base_contexts, sgld_contexts or context"
            )
        order = np.random.default_rng(int(fingerprint([self.seed, split, where]), 16))
        return pool[order.permutation(len(pool))[: most or rows]]
