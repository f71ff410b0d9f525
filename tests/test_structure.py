"""Head scores on patterns that are known: models whose attention is set by hand."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch

from susceptibilities.models.attention_only import AttentionOnly, AttentionOnlyConfig
from susceptibilities.structure import (
    THRESHOLDS,
    Role,
    Scores,
    diagonal_attention,
    head_scores,
    heads_table,
    repeat_losses,
    repeated_sequences,
    repeats_table,
    role,
    roles,
)

VOCABULARY, LENGTH = 40, 15
WIDTH = VOCABULARY + LENGTH + 1
SHAPE = AttentionOnlyConfig(
    n_layers=2, n_heads=2, d_model=WIDTH, d_head=VOCABULARY, n_ctx=LENGTH, d_vocab=VOCABULARY
)
TEXT = np.concatenate(
    [
        np.zeros((6, 1), np.uint16),
        np.random.default_rng(0).integers(1, VOCABULARY, (6, LENGTH - 1)).astype(np.uint16),
    ],
    axis=1,
)


def even() -> AttentionOnly:
    """All weights zero: every position attends evenly to itself and all before it."""
    model = AttentionOnly(SHAPE).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if ".W_" in name:
            parameter.zero_()
    return model


def positional(offset: int) -> AttentionOnly:
    """Head 0:0 attends to the position ``offset`` before, whatever the tokens are."""
    model = even()
    sharp = 80.0
    with torch.no_grad():
        rows = torch.arange(LENGTH)
        model.pos_embed.W_pos[rows, rows] = 1.0
        attention = model.blocks[0].attn
        for position in range(offset, LENGTH):
            attention.W_Q[0, position, position - offset] = sharp
            attention.W_K[0, position - offset, position - offset] = math.sqrt(SHAPE.d_head)
    return model


def layer_one(target: int) -> AttentionOnly:
    """Head 1:1 attends to the position ``target`` before, all others evenly."""
    model = positional(target)
    with torch.no_grad():
        first, second = model.blocks[0].attn, model.blocks[1].attn
        second.W_Q[1], second.W_K[1] = first.W_Q[0].clone(), first.W_K[0].clone()
        first.W_Q.zero_()
        first.W_K.zero_()
    return model


def test_repeated_sequences() -> None:
    repeats = repeated_sequences(TEXT, 9, seed=4)
    period = (LENGTH - 1) // 2
    assert repeats.shape == (9, 1 + 2 * period)
    assert (repeats[:, 0] == 0).all()
    assert torch.equal(repeats[:, 1 : 1 + period], repeats[:, 1 + period :])
    assert set(repeats[:, 1:].flatten().tolist()) <= set(TEXT.flatten().tolist()) - {0}
    assert torch.equal(repeats, repeated_sequences(TEXT, 9, seed=4))
    assert not torch.equal(repeats, repeated_sequences(TEXT, 9, seed=5))
    with pytest.raises(ValueError, match="too short to repeat"):
        repeated_sequences(TEXT[:, :4], 9, seed=4)


def test_even_attention_scores_what_even_attention_gives() -> None:
    text = torch.from_numpy(TEXT.astype(np.int64))
    scores = head_scores(even(), text, repeated_sequences(TEXT, 5, 0))
    share = np.mean([1 / (t + 1) for t in range(2, LENGTH)])
    np.testing.assert_allclose(scores.previous_token, share, rtol=1e-6)
    np.testing.assert_allclose(scores.current_token, share, rtol=1e-6)
    period = (LENGTH - 1) // 2
    late = np.mean([1 / (t + 1) for t in range(period + 1, 2 * period + 1)])
    np.testing.assert_allclose(scores.prefix_matching, late, rtol=1e-6)
    np.testing.assert_allclose(scores.previous_token_se, 0.0, atol=1e-7)
    assert roles(scores) == [["multigram"] * 2] * 2


@pytest.mark.parametrize(
    ("offset", "expected"), [(1, "previous-token"), (0, "current-token"), (3, "multigram")]
)
def test_positional_heads(offset: int, expected: str) -> None:
    text = torch.from_numpy(TEXT.astype(np.int64))
    scores = head_scores(positional(offset), text, repeated_sequences(TEXT, 5, 0))
    # Positions that have nothing so far before them attend evenly.
    early = sum(1 / (t + 1) for t in range(2, offset)) / (LENGTH - 2)
    assert scores.previous_token[0, 0] == pytest.approx(float(offset == 1) + early, abs=1e-4)
    assert scores.current_token[0, 0] == pytest.approx(float(offset == 0) + early, abs=1e-4)
    assert roles(scores) == [[expected, "multigram"], ["multigram", "multigram"]]


@pytest.mark.parametrize("miss", [-1, 0, 1])
def test_induction_is_attention_to_what_followed(miss: int) -> None:
    repeats = repeated_sequences(TEXT, 5, 0)
    period = (LENGTH - 1) // 2
    model = layer_one(period - 1 + miss)
    scores = head_scores(model, torch.from_numpy(TEXT.astype(np.int64)), repeats)
    assert scores.prefix_matching[1, 1] == pytest.approx(float(miss == 0), abs=1e-4)
    assert (roles(scores)[1][1] == "induction") == (miss == 0)


def test_prefix_matching_is_the_definition_written_out() -> None:
    """Olsson et al.: from each repeated token to the one after its earlier occurrence."""
    model = even()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.4, generator=generator)
    # Every token once in a copy, so that the earlier occurrence is unambiguous.
    half = torch.stack([torch.randperm(39, generator=generator)[:7] + 1 for _ in range(4)])
    repeats = torch.cat([torch.zeros(4, 1, dtype=torch.int64), half, half], 1)
    patterns = model.attention_patterns(repeats)
    expected = torch.zeros(2, 2, 4)
    for sequence in range(4):
        tokens = repeats[sequence].tolist()
        found = []
        for t in range(8, 15):
            earlier = tokens.index(tokens[t])
            found.append(patterns[:, sequence, :, t, earlier + 1])
        expected[:, :, sequence] = torch.stack(found).mean(0)
    scores = head_scores(model, torch.from_numpy(TEXT.astype(np.int64)), repeats)
    np.testing.assert_allclose(scores.prefix_matching, expected.mean(-1), rtol=1e-5)
    error = expected.numpy().std(-1, ddof=1) / 2
    np.testing.assert_allclose(scores.prefix_matching_se, error, rtol=1e-4)


def test_blocks_do_not_matter() -> None:
    model, text = positional(1), torch.from_numpy(TEXT.astype(np.int64))
    whole = diagonal_attention(model, text, (0, 1, 2), start=2)
    parts = diagonal_attention(model, text, (0, 1, 2), start=2, block=4)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert whole[0].shape == (6, 2, 2)


def test_one_sequence_has_no_error() -> None:
    text = torch.from_numpy(TEXT[:1].astype(np.int64))
    with pytest.raises(ValueError, match="at least two"):
        head_scores(even(), text, repeated_sequences(TEXT, 5, 0))


def test_loss_on_repeats() -> None:
    repeats = repeated_sequences(TEXT, 5, 0)
    mean, error = repeat_losses(even(), repeats)
    np.testing.assert_allclose(mean, math.log(VOCABULARY), rtol=1e-6)
    np.testing.assert_allclose(error, 0.0, atol=1e-7)
    assert mean.shape == error.shape == (LENGTH - 1,)


def test_each_head_has_one_role_by_the_thresholds() -> None:
    low: dict[Role, float] = {"previous-token": 0.01, "induction": 0.01, "current-token": 0.01}
    assert role(low) == "multigram"
    for name, threshold in THRESHOLDS.items():
        assert role({**low, name: threshold}) == name
        assert role({**low, name: threshold * 0.999}) == "multigram"
    # Where two reach theirs, the one that does so by the larger factor.
    assert role({"previous-token": 0.45, "induction": 0.4, "current-token": 0.0}) == "induction"


def test_tables() -> None:
    text, repeats = torch.from_numpy(TEXT.astype(np.int64)), repeated_sequences(TEXT, 5, 0)
    models = {0: even(), 200: positional(1)}
    scores: dict[int, Scores] = {k: head_scores(m, text, repeats) for k, m in models.items()}
    table = heads_table(scores)
    assert table.columns == [
        *("step", "head", "previous_token", "previous_token_se", "current_token"),
        *("current_token_se", "prefix_matching", "prefix_matching_se", "role"),
    ]
    assert table["head"].to_list() == ["0:0", "0:1", "1:0", "1:1"] * 2
    # Decided at the last checkpoint, also in the rows of the first.
    assert table.filter(pl.col("head") == "0:0")["role"].to_list() == ["previous-token"] * 2
    losses = repeats_table({k: repeat_losses(m, repeats) for k, m in models.items()})
    assert losses.columns == ["step", "position", "loss", "se"]
    assert losses.filter(pl.col("step") == 0)["position"].to_list() == list(range(1, LENGTH))
    assert not table.null_count().sum_horizontal().item()
