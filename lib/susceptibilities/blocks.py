"""How much is held at a time while losses are computed: blocks that fit the device.

On a CPU blocks stay in the cache, and larger ones are slower. On a GPU they need only be large
enough to fill it, and small enough to leave room for what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .models.shapes import Shape, inner_width, mlp_width

# CPU: a block of logits of 4 MB in float32, or as many rows of 2,048 columns as are worth it.
_CPU_LOGITS = 1 << 20
_CPU_LEAST_LOGIT_ROWS = 256
_CPU_MOST_LOGIT_ROWS = 512
_CPU_STREAM_ROWS = 4096
# GPU: beyond these sizes a product is no faster.
_GPU_MOST_LOGITS = 1 << 29
_GPU_MOST_STREAM_ROWS = 1 << 17
_GPU_LEAST_ROWS = 256
# And a run can be resumed between blocks of losses: some minutes of work at most.
_GPU_MOST_LOSSES_BYTES = 1 << 26
# Shares of a GPU's memory. A tenth is left for the model and the allocator's gaps.
_LOGITS, _STREAM, _DRAWS, _ACTIVATIONS, _PROJECTED, _LOSSES = 0.2, 0.2, 0.15, 0.2, 0.1, 0.05
# Arrays of a block of logits that are alive together: at w*, changed, their product or slope.
LOGITS_COPIES = 3
FLOAT = 4


@dataclass(frozen=True)
class Blocks:
    """Sizes of blocks.

    Attributes:
        rows_of_logits: rows (positions) of logits held at a time.
        rows_of_stream: rows (draws * positions) of stacked activations held at a time.
    """

    rows_of_logits: int
    rows_of_stream: int


@dataclass(frozen=True)
class Limits:
    """Bytes up to which something is kept; beyond them it is computed again, or in turns.

    Attributes:
        draws: weights of the draws that are evaluated together.
        activations: residual streams around a layer, of all contexts that are evaluated and of
            all that minibatches are drawn from, half for each.
        projected: output matrices of heads of the last layer times the unembedding.
        losses: losses of the draws on a block of contexts.
    """

    draws: int
    activations: int
    projected: int
    losses: int


def total_memory(device: torch.device | str) -> int:
    """Bytes of a GPU. Not those that are free at the moment: the sizes of blocks, and with them
    the last bits of a result, must not depend on the moment."""
    return torch.cuda.get_device_properties(device).total_memory


def stream_numbers(shape: Shape) -> int:
    """Numbers a row that a layer holds at a time: the stream, what it reads, what it makes."""
    return 4 * shape.d_model + 4 * inner_width(shape) + 2 * mlp_width(shape)


def saved_numbers(shape: Shape) -> int:
    """Numbers a row and layer that are kept for the gradient of activations.

    The stream; queries, keys and values with what attention makes of them (rotated queries and
    keys beside those that are not); what the MLP's nonlinearity reads.
    """
    hidden = mlp_width(shape)
    return shape.d_model + (6 if hidden else 4) * inner_width(shape) + hidden


def logit_rows(device: torch.device, d_vocab: int, memory: int | None = None) -> int:
    """Rows of logits held at a time; ``memory`` as for `losses_blocks`."""
    if device.type == "cpu":
        return min(_CPU_MOST_LOGIT_ROWS, max(_CPU_LEAST_LOGIT_ROWS, _CPU_LOGITS // d_vocab))
    if memory is None:
        memory = total_memory(device)
    return min(_GPU_MOST_LOGITS, int(memory * _LOGITS) // (LOGITS_COPIES * FLOAT)) // d_vocab


def losses_blocks(
    device: torch.device | str, shape: Shape, draws: int, memory: int | None = None
) -> Blocks:
    """Sizes of blocks for ``draws`` weight vectors that are evaluated together.

    Args:
        memory: bytes that may be used on a GPU; all of the device's by default.

    Raises:
        ValueError: no draws, or less than the smallest block fits in ``memory``.
    """
    if draws < 1:
        raise ValueError(f"blocks are for at least one draw, found {draws}")
    device = torch.device(device)
    if device.type == "cpu":
        return Blocks(logit_rows(device, shape.d_vocab), _CPU_STREAM_ROWS)
    if memory is None:
        memory = total_memory(device)
    rows = logit_rows(device, shape.d_vocab, memory)
    stream = int(memory * _STREAM) // (FLOAT * stream_numbers(shape))
    # More rows than the draws of one block of logits have are never stacked.
    stream = min(_GPU_MOST_STREAM_ROWS, stream, draws * rows)
    if min(rows, stream) < _GPU_LEAST_ROWS:
        raise ValueError(
            f"{memory / 1e9:.2f} GB of memory on {device} hold {rows} rows of logits "
            f"(vocabulary {shape.d_vocab}) and {stream} rows of activations; expected "
            f"{_GPU_LEAST_ROWS} of each at least: use a device with more, or a smaller model"
        )
    return Blocks(rows, stream)


def memory_limits(device: torch.device | str, memory: int | None = None) -> Limits:
    """What may be kept; ``memory`` as for `losses_blocks`."""
    device = torch.device(device)
    if device.type == "cpu":
        return Limits(1 << 29, 1 << 31, 1 << 28, 1 << 24)
    if memory is None:
        memory = total_memory(device)
    shares = (_DRAWS, _ACTIVATIONS, _PROJECTED, _LOSSES)
    draws, activations, projected, losses = (int(memory * share) for share in shares)
    return Limits(draws, activations, projected, min(losses, _GPU_MOST_LOSSES_BYTES))


def row_bytes(shape: Shape, layers: int) -> int:
    """Bytes a row that a gradient step through ``layers`` layers keeps for its way back."""
    return FLOAT * (saved_numbers(shape) * layers + 8 * shape.d_model)


def gradient_rows(
    device: torch.device | str, shape: Shape, layers: int, memory: int | None = None
) -> int:
    """Rows (chains * batch * positions) whose gradients may be computed together on a GPU.

    ``memory`` as for `losses_blocks`; half of it, since draws and activations are kept as well.
    """
    if memory is None:
        memory = total_memory(device)
    return max(1, memory // 2 // row_bytes(shape, layers))
