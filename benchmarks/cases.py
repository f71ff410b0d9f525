"""What is benchmarked: a model, its text, the components and the sampler's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt

from susceptibilities.components import Component, component, head_names
from susceptibilities.models.gpt_neox import PYTHIA, GPTNeoX, GPTNeoXConfig
from susceptibilities.models.loading import available_steps, load_checkpoint
from susceptibilities.models.transformer import Transformer
from susceptibilities.posterior import SamplerConfig
from susceptibilities.token_sampling import TokenTexts

SHIPPED = Path(__file__).parents[1] / "models" / "two-layer-10d"
TOKENS = "tokens.npy"
NAMES = ("two-layer", "gpt-neox-14m")

# A relaxation time of 2 / (step_size * localization) = 1.7 steps: after a burn-in of 4 the
# chains have forgotten where they began, and a short run has the errors of a long one's kind.
# What a step or an evaluation costs does not depend on it.
_POSTERIOR = {"n_beta": 30, "localization": 300, "step_size": 4e-3}
_TINY = {"chains": 3, "burn_in": 1, "draws": 2, "thinning": 1, "batch": 1}
# Six tokens are evaluated for one that is stepped on, as at the scale `mini`; in the papers' runs
# of millions of tokens it is many more.
_TWO_LAYER = {"chains": 6, "burn_in": 4, "draws": 6, "thinning": 3, "batch": 2}
_NEOX = {"chains": 4, "burn_in": 4, "draws": 3, "thinning": 2, "batch": 2}


class Case(BaseModel):
    """One benchmark.

    Attributes:
        shape: of a GPT-NeoX with random weights; None is the shipped two-layer model.
        context: tokens of a context.
        base: contexts on which L_n is measured and from which minibatches are drawn.
        probe: contexts whose tokens get a susceptibility.
        components: with ``full``, which the second factor of eq. 41 needs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str
    shape: GPTNeoXConfig | None
    context: PositiveInt
    base: PositiveInt
    probe: PositiveInt
    components: tuple[str, ...]
    sampler: SamplerConfig
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Predicted tokens of an evaluation: base and probe."""
        return (self.base + self.probe) * (self.context - 1)

    @property
    def draws(self) -> int:
        """Kept draws of a component, of all chains together."""
        return self.sampler.chains * self.sampler.draws

    def model(self) -> Transformer:
        """The model, in eval mode."""
        if self.shape is None:
            return load_checkpoint(SHIPPED, available_steps(SHIPPED)[-1])
        model = GPTNeoX(self.shape)
        model.initialise(torch.Generator().manual_seed(self.seed))
        return model.eval()

    def parts(self, model: Transformer) -> list[Component]:
        """The components of the model."""
        parameters = dict(model.named_parameters())
        return [component(name, model.config, parameters) for name in self.components]

    def write_tokens(self, folder: Path) -> None:
        """Make the text, base contexts first: the model's own, or random tokens."""
        rng, count = np.random.default_rng(self.seed), self.base + self.probe
        if self.shape is None:
            tokens = _sampled_text(self.model(), count, self.context, self.seed)
        else:
            tokens = rng.integers(0, self.shape.d_vocab, (count, self.context))
        np.save(folder / TOKENS, tokens.astype(np.int64))

    def texts(self, folder: Path) -> TokenTexts:
        """The text that `write_tokens` made.

        The pool is the base: the losses of the minibatches are then those of L_n, and a peer
        that measures its baseline on the pool has the same baseline.
        """
        tokens = np.load(folder / TOKENS)
        base, probe = tokens[: self.base], tokens[self.base :]
        return TokenTexts(base, {"probe": probe}, base)


@torch.no_grad()
def _sampled_text(model: Transformer, count: int, length: int, seed: int) -> np.ndarray:
    """Text that the model itself writes, after the beginning token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(count, 1, dtype=torch.long)
    while tokens.shape[1] < length:
        chances = model(tokens)[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], 1)
    return tokens.numpy()


def cases(size: Literal["tiny", "quick", "default"]) -> list[Case]:
    """The two models, at a size: a smoke test, a minute, or about ten minutes on one core."""
    shipped = load_checkpoint(SHIPPED, available_steps(SHIPPED)[-1]).config
    neox = PYTHIA["14m"]
    if size == "tiny":
        neox = neox.model_copy(update={"n_layers": 2, "d_vocab": 512})
    heads = [head_names(shipped), head_names(neox)]
    if size != "default":
        # A head of the first, a middle and the last layer.
        heads = [[h[0], h[len(h) // 2], h[-1]] for h in heads]
    # Context, base and probe contexts.
    texts = [(16, 2, 2), (16, 2, 2)] if size == "tiny" else [(128, 24, 24), (32, 8, 32)]
    samplers = [_TINY, _TINY] if size == "tiny" else [_TWO_LAYER, _NEOX]
    titles = ("the shipped two-layer model", "a GPT-NeoX of Pythia-14M's shape, random weights")
    found = []
    for name, title, shape, names, text, sampler in zip(
        NAMES, titles, (None, neox), heads, texts, samplers, strict=True
    ):
        context, base, probe = text
        found.append(
            Case(
                name=name,
                title=title,
                shape=shape,
                context=context,
                base=base,
                probe=probe,
                components=("full", *names),
                sampler=SamplerConfig.model_validate({**_POSTERIOR, **sampler}),
            )
        )
    return found
