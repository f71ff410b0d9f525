"""The state of a component's chains on their way, saved now and then."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .chains import Chains, Collector
from .store import atomic_path

# Seconds between two saves of a component's state; and the share of the time that saving may
# take: a state that takes long to write is written less often.
SAVE_SECONDS = 60.0
SAVE_SHARE = 0.05
# What a state that cannot be gone on from may raise.
UNUSABLE = (SafetensorError, KeyError, RuntimeError, ValueError)


class Saver:
    """Saves the state of chains and collector in one file; to be called after every step."""

    def __init__(self, path: Path, chains: Chains, collector: Collector) -> None:
        self.path, self.chains, self.collector = path, chains, collector
        self._last, self._took = time.monotonic(), 0.0

    def __call__(self) -> None:
        if time.monotonic() - self._last >= max(SAVE_SECONDS, self._took / SAVE_SHARE):
            self.save()

    def save(self) -> None:
        begin = time.monotonic()
        state = self.chains.state()
        state |= {f"array.{k}": torch.from_numpy(v) for k, v in self.collector.arrays.items()}
        with atomic_path(self.path) as temporary:
            save_file({name: value.contiguous() for name, value in state.items()}, temporary)
        self._last = time.monotonic()
        self._took = self._last - begin

    def load(self) -> None:
        """Put the saved state back.

        Raises:
            UNUSABLE: it is damaged, or the blocks were cut otherwise.
        """
        state = load_file(self.path)
        for name, array in self.collector.arrays.items():
            array[...] = state.pop(f"array.{name}").numpy()
        self.chains.restore(state)
