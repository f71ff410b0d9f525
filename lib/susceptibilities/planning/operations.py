"""Operations and memory traffic of the parts of a model, by counting.

Only matrix products are counted as operations (two for a multiplication with its addition); what
else passes over the activations is counted by the numbers that it reads and writes. ``fused``
attention computes the causal half of the scores and keeps them on the chip; otherwise the whole
square is computed and stored. ``in_memory`` logits are stored, and read for the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..models.gpt_neox import GPTNeoXConfig
from ..models.shapes import Shape, inner_width, mlp_width


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes.

    Attributes:
        operations: floating-point operations of its matrix products.
        traffic: numbers that these read and write, each once.
        passes: numbers that all else reads and writes.
    """

    operations: float = 0.0
    traffic: float = 0.0
    passes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.operations + other.operations,
            self.traffic + other.traffic,
            self.passes + other.passes,
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.operations * times, self.traffic * times, self.passes * times)


def product(rows: float, inner: float, columns: float, count: float = 1) -> Cost:
    """``count`` matrix products (rows, inner) x (inner, columns)."""
    traffic = rows * inner + inner * columns + rows * columns
    return Cost(2 * count * rows * inner * columns, count * traffic)


def attention(sequences: float, length: int, shape: Shape, heads: float, fused: bool) -> Cost:
    """Scores and mixing of ``heads`` heads."""
    streams = sequences * heads
    vectors = 4 * streams * length * shape.d_head
    pairs = length * (length + 1) / 2 if fused else float(length**2)
    operations = 4 * streams * pairs * shape.d_head
    if fused:
        return Cost(operations, vectors)
    # Scores: written, masked and normalised (each reads and writes), read.
    return Cost(operations, vectors + 2 * streams * pairs, 4 * streams * pairs)


def attention_backward(
    sequences: float, length: int, shape: Shape, heads: float, fused: bool
) -> Cost:
    """Gradients of queries, keys and values: four products, and fused the scores once more."""
    return attention(sequences, length, shape, heads, fused) * (2.5 if fused else 2.0)


def mlp(rows: float, shape: Shape, count: float = 1) -> Cost:
    """``count`` MLPs, each on rows of its own or sharing them."""
    hidden, width = mlp_width(shape), shape.d_model
    cost = product(rows, width, hidden, count) + product(rows, hidden, width, count)
    return cost + Cost(passes=2 * count * rows * hidden)


def _projections(rows: float, shape: Shape) -> Cost:
    inner = inner_width(shape)
    return product(rows, shape.d_model, 3 * inner) + product(rows, inner, shape.d_model)


def _layer_passes(rows: float, shape: Shape) -> Cost:
    inner = inner_width(shape)
    if isinstance(shape, GPTNeoXConfig):
        # Two norms, rotation of queries and keys (read, joined, written), two branches added.
        return Cost(passes=rows * (4 * shape.d_model + 6 * inner + 6 * shape.d_model))
    # One norm, positions added to what queries and keys are made of, one branch added.
    return Cost(passes=rows * (2 * shape.d_model + 2 * shape.d_model + 3 * shape.d_model))


def layer(sequences: float, length: int, shape: Shape, fused: bool = True) -> Cost:
    """A whole layer on ``sequences`` contexts."""
    rows = sequences * length
    cost = _projections(rows, shape) + mlp(rows, shape) + _layer_passes(rows, shape)
    return cost + attention(sequences, length, shape, shape.n_heads, fused)


def layer_backward(
    sequences: float, length: int, shape: Shape, fused: bool = True, weights: bool = False
) -> Cost:
    """Gradient of a layer's input, given its output's; with ``weights``, theirs too."""
    rows = sequences * length
    cost = (_projections(rows, shape) + mlp(rows, shape)) * (2 if weights else 1)
    cost += attention_backward(sequences, length, shape, shape.n_heads, fused)
    return cost + _layer_passes(rows, shape) * 2


def attention_gradient(sequences: float, length: int, shape: Shape, fused: bool = True) -> Cost:
    """Gradient of a layer's attention weights, its input's left out."""
    rows, inner = sequences * length, inner_width(shape)
    cost = product(rows, shape.d_model, 3 * inner) + product(rows, inner, shape.d_model) * 2
    return cost + attention_backward(sequences, length, shape, shape.n_heads, fused)


def head(
    draws: float,
    sequences: float,
    length: int,
    shape: Shape,
    fused: bool = True,
    output_rows: float | None = None,
) -> Cost:
    """One head for ``draws`` weight vectors on the same contexts.

    Queries, keys and values of all draws are one product.

    Args:
        output_rows: rows that go through the output matrix; all by default.
    """
    rows, width, narrow = sequences * length, shape.d_model, shape.d_head
    written = rows if output_rows is None else output_rows
    cost = product(rows, width, 3 * draws * narrow) + product(written, narrow, width, draws)
    cost += attention(draws * sequences, length, shape, 1, fused)
    # The input is normalised once; rotation and the sum with the rest are every draw's own.
    return cost + Cost(passes=rows * (2 * width + draws * (6 * narrow + 3 * width)))


def head_gradient(
    chains: float, batch: float, length: int, shape: Shape, fused: bool = True
) -> Cost:
    """Forward and backward pass of one head of every chain, each on contexts of its own.

    Its input needs no gradient: only the weights and what lies between them do.
    """
    rows, width, narrow = batch * length, shape.d_model, shape.d_head
    cost = product(rows, width, 3 * narrow, chains) * 2
    cost += product(rows, narrow, width, chains) * 3
    sequences = chains * batch
    cost += attention(sequences, length, shape, 1, fused)
    cost += attention_backward(sequences, length, shape, 1, fused)
    return cost + Cost(passes=3 * chains * rows * (2 * width + 6 * narrow + 3 * width))


def mlp_gradient(chains: float, batch: float, length: int, shape: Shape) -> Cost:
    """Forward and backward pass of one MLP of every chain, each on contexts of its own."""
    rows, width, hidden = batch * length, shape.d_model, mlp_width(shape)
    cost = product(rows, width, hidden, chains) * 2 + product(rows, hidden, width, chains) * 3
    return cost + Cost(passes=3 * chains * rows * (2 * width + 2 * hidden + 3 * width))


def logits(rows: float, shape: Shape, count: float = 1, in_memory: bool = True) -> Cost:
    """Logits of ``count`` streams or unembeddings, and their losses."""
    cost = product(rows, shape.d_model, shape.d_vocab, count)
    written = count * rows * shape.d_vocab
    return cost + (Cost(passes=2 * written) if in_memory else Cost(traffic=-written))


def logits_gradient(
    rows: float, shape: Shape, outputs: int = 1, count: float = 1, in_memory: bool = True
) -> Cost:
    """Loss with its gradient for the stream, the unembedding (``outputs`` 1) or both (2)."""
    written = count * rows * shape.d_vocab
    cost = product(rows, shape.d_model, shape.d_vocab, count) * (1 + outputs)
    if in_memory:
        # Probabilities from logits, then the target taken off.
        return cost + Cost(passes=4 * written)
    return cost + Cost(traffic=-written * (1 + outputs))


def low_rank_logits(draws: float, rows: float, shape: Shape, in_memory: bool = True) -> Cost:
    """Change of the logits for ``draws`` weight vectors of a head of the last layer.

    One row more than the head is wide carries what is constant.
    """
    written = draws * rows * shape.d_vocab
    cost = product(rows, shape.d_head + 1, shape.d_vocab, draws)
    # The logits of the rest are scaled (read, written), added to (read), and summed over.
    return cost + (Cost(passes=4 * written) if in_memory else Cost(traffic=-written))
