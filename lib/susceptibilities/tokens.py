"""Text to token contexts: tokenizer, splits, packing, and the paper's dataset mixing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpora.documents import Document

Contexts = NDArray[np.uint16]

BOS = "<|endoftext|>"
CONTROL_PROBE = "mixture"
"""The control probe, an independent sample of the training distribution: its susceptibility is
zero within its error."""

# Share of the documents (by the hash of their text) that each use gets. They never overlap:
# `train` trains the model, `sgld` feeds the sampler's gradients, `base` is the sample of the
# training distribution on which losses are measured, `probe` the samples of each domain.
SPLITS: dict[str, tuple[float, float]] = {
    "train": (0.0, 0.70),
    "sgld": (0.70, 0.80),
    "base": (0.80, 0.90),
    "probe": (0.90, 1.0),
}


def in_split(document: Document, split: str) -> bool:
    """Whether the document belongs to the split; a property of its text alone."""
    low, high = SPLITS[split]
    return low <= document.position < high


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE; token 0 is the context separator ``<|endoftext|>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a ``tokenizer.json``, or the ``tokenizer.json`` of a folder."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"no tokenizer at {file}: expected a tokenizer.json")
    return Tokenizer.from_file(str(file))


def bos_id(tokenizer: Tokenizer) -> int:
    """Id of the token put in front of every context."""
    for name in (BOS, "<s>", "[BOS]"):
        token = tokenizer.token_to_id(name)
        if token is not None:
            return int(token)
    raise ValueError(f"the tokenizer has no beginning token: expected one of {BOS}, <s>, [BOS]")


def token_strings(tokenizer: Tokenizer) -> list[str]:
    """Text of every token id by itself; bytes that are not UTF-8 alone are written ``\\xNN``.

    Ids without an entry in the vocabulary are empty.
    """
    # The alphabet of byte-level BPE: printable bytes stand for themselves, the others for
    # characters from 256 on, in order (Radford et al. 2019).
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + place): byte for place, byte in enumerate(others)}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    strings = [""] * (max(vocabulary.values(), default=-1) + 1)
    for entry, number in vocabulary.items():
        if entry in added or not all(character in byte_of for character in entry):
            strings[number] = entry
        else:
            raw = bytes(byte_of[character] for character in entry)
            strings[number] = raw.decode("utf-8", errors="backslashreplace")
    return strings


def encode(
    tokenizer: Tokenizer, documents: Iterable[Document], batch: int = 256
) -> Iterator[list[int]]:
    """Token ids of each document; a separator occurring in the text is treated as text."""
    # Untrusted text must not be able to spell the special token.
    tokenizer.encode_special_tokens = True

    def flush(texts: list[str]) -> Iterator[list[int]]:
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            yield encoding.ids

    texts: list[str] = []
    for document in documents:
        texts.append(document.text)
        if len(texts) == batch:
            yield from flush(texts)
            texts = []
    yield from flush(texts)


def pack(
    encoded: Iterable[Sequence[int]], context: int, bos: int, limit: int | None = None
) -> Contexts:
    """Join documents with the separator, cut into pieces and put BOS in front of each.

    Returns:
        Token ids, shape (contexts, context); the last incomplete piece is dropped.

    Raises:
        ValueError: a context of fewer than two tokens, or an id of more than 16 bits.
    """
    if context < 2:
        raise ValueError(f"a context holds {BOS} and at least one token, got {context}")
    body = context - 1
    rows: list[NDArray[np.uint16]] = []
    buffer: list[int] = []
    for ids in encoded:
        if ids and max(ids) >= 2**16:
            raise ValueError(f"token id {max(ids)} does not fit the 16-bit token store")
        buffer.extend(ids)
        buffer.append(bos)
        while len(buffer) >= body:
            rows.append(np.array([bos, *buffer[:body]], dtype=np.uint16))
            del buffer[:body]
            if limit is not None and len(rows) >= limit:
                return np.stack(rows)
    return np.stack(rows) if rows else np.empty((0, context), np.uint16)


def probe_positions(length: int, delta_h: float) -> NDArray[np.int64]:
    """Positions that Algorithm 1 (Baker C.4) fills from the probe, for ``length`` samples.

    Position j (from 0) is the probe's where floor((j + 1) * delta_h) has just risen.
    """
    if not 0.0 <= delta_h <= 1.0:
        raise ValueError(f"delta_h must lie in [0, 1], got {delta_h}")
    # The guard keeps 10 * 0.1 from falling below 1 in binary.
    targets = np.floor(np.arange(1, length + 1) * delta_h + 1e-9).astype(np.int64)
    return np.flatnonzero(np.diff(targets, prepend=0) > 0)


def mix(base: Contexts, probe: Contexts, delta_h: float) -> Contexts:
    """The mixed dataset of Algorithm 1 (Baker C.4): ``base`` with rows replaced by ``probe``.

    Row j of the result is ``probe[j]`` at the probe positions and ``base[j]`` elsewhere, so
    mixing a dataset with itself gives it back. Length: the shorter of the two.

    Raises:
        ValueError: the contexts differ in length, or ``delta_h`` is not in [0, 1].
    """
    if base.shape[1:] != probe.shape[1:]:
        raise ValueError(
            f"cannot mix contexts of {base.shape[1]} tokens with contexts of {probe.shape[1]}"
        )
    length = min(len(base), len(probe))
    mixed = base[:length].copy()
    chosen = probe_positions(length, delta_h)
    mixed[chosen] = probe[:length][chosen]
    return mixed
