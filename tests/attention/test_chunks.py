"""Attention in chunks, as docs/conventions.md makes it, against a dense mask; attention in both directions is refused."""

import re
from pathlib import Path

import pytest
import torch
from test_attention_module import DK, DV, HKV, HQ, PAGE

from swa_attn.attention import AttentionMetadata, SlidingWindowAttention

DOCS = Path(__file__).resolve().parents[2] / "docs" / "conventions.md"
(RECIPE,) = re.findall(r"```python\n(def split_at_chunks.*?)```", DOCS.read_text(), re.DOTALL)
names: dict = {}
exec(RECIPE, names)
split_at_chunks = names["split_at_chunks"]
CHUNK = 3 * PAGE


def dense_in_chunks(q, k, v):
    """One sequence in float64: q `[n, Hq, Dk]`, k and v `[n, Hkv, Dk | Dv]`."""
    at = torch.arange(len(q))
    visible = (at[:, None] >= at) & (at[:, None] // CHUNK == at // CHUNK)
    k, v = (x.double().repeat_interleave(HQ // HKV, 1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q.double(), k) * DK**-0.5
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(~visible, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize(
    "steps",
    [
        [40],
        [CHUNK],
        [CHUNK - 1, 1, 1, 1],
        [CHUNK, 1, CHUNK - 1, 2, 8, 1],
        [5, 30, 1, 1, 1],
        [1] * (CHUNK + 2),
    ],
    ids=str,
)
def test_chunks_equal_a_dense_mask(steps):
    """Two sequences, the second one a token ahead; the pages of chunks that are over are taken away and poisoned."""
    module = SlidingWindowAttention(HQ, HKV, DK, DV)
    generator = torch.Generator().manual_seed(0)
    total = sum(steps)
    sizes = (HQ, DK), (HKV, DK), (HKV, DV)
    sequences = [[torch.randn(total + i, *size, generator=generator) for size in sizes] for i in range(2)]
    pages = -(-(total + 1) // PAGE)
    tables = [list(range(pages)), list(range(2 * pages - 1, pages - 1, -1))]
    caches = [torch.full((2 * pages, PAGE, HKV, dim), float("nan")) for dim in (DK, DV)]
    done, results = [0, 0], [[], []]
    for number, step in enumerate(steps):
        news = [step, step + (number == 0)]
        lengths = [start + new for start, new in zip(done, news, strict=True)]
        for table, start in zip(tables, done, strict=True):
            for page in range(start // CHUNK * CHUNK // PAGE):
                caches[0][table[page]] = caches[1][table[page]] = float("nan")
        gone = [[-1] * (start // CHUNK * CHUNK // PAGE) for start in done]
        left = [pages_gone + table[len(pages_gone) :] for pages_gone, table in zip(gone, tables, strict=True)]
        metadata = AttentionMetadata.build(*split_at_chunks(left, lengths, news, PAGE, CHUNK), PAGE)
        new = (
            torch.cat([s[i][start:end] for s, start, end in zip(sequences, done, lengths, strict=True)])
            for i in range(3)
        )
        if step == 1 and number:
            assert metadata.q_len == 1  # the decode op's
        for result, out in zip(results, module(*new, *caches, metadata).split(news), strict=True):
            result.append(out)
        done = lengths
    for result, (q, k, v) in zip(results, sequences, strict=True):
        torch.testing.assert_close(torch.cat(result).double(), dense_in_chunks(q, k, v), rtol=1e-5, atol=1e-5)


def test_chunks_of_padding_and_of_nothing():
    assert split_at_chunks([[]], [0], [3], PAGE, CHUNK) == ([[]], [0], [3])
    assert split_at_chunks([], [], [], PAGE, CHUNK) == ([], [], [])
    assert split_at_chunks([[0, 1, 2, 3]], [CHUNK + 1], [1], PAGE, CHUNK) == ([[3]], [1], [1])
    assert split_at_chunks([[0, 1, 2]], [CHUNK], [1], PAGE, CHUNK) == ([[0, 1, 2]], [CHUNK], [1])
    with pytest.raises(ValueError, match="chunk must be a multiple of page_size 4, got 10"):
        split_at_chunks([[0]], [1], [1], PAGE, 10)


def test_attention_in_both_directions_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="SlidingWindowAttention: is_causal must be True, got False"):
        SlidingWindowAttention(HQ, HKV, DK, is_causal=False)
    step = [[0], [0]], [3, 4], [3, 4], PAGE
    AttentionMetadata.build(*step, bidirectional_spans=[[], []])
    with pytest.raises(NotImplementedError, match=r"bidirectional_spans\[1\] must be empty, got \[\(0, 3\)\]"):
        AttentionMetadata.build(*step, bidirectional_spans=[[], [(0, 3)]])
