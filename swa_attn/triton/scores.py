"""From q.k to a masked score in log2 units, and the online softmax over it."""

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def tanh(x):
    """Accurate to a few roundings everywhere, without overflow; libdevice's is not in the interpreter."""
    magnitude = tl.abs(x)
    x2 = x * x
    # Up to 0.6 a fraction of polynomials, cut from tanh's continued fraction (1 - t would cancel there) ...
    small_over = magnitude * (945.0 + x2 * (105.0 + x2))
    small_under = 945.0 + x2 * (420.0 + x2 * 15.0)
    # ... beyond it (1 - t) / (1 + t) with t = exp(-2 |x|), which cannot overflow.
    t = tl.exp2(magnitude * (-2 * LOG2_E))
    small = magnitude < 0.6
    ratio = tl.where(small, small_over, 1.0 - t) / tl.where(small, small_under, 1.0 + t)
    return tl.where(x < 0, -ratio, ratio)


@triton.jit
def to_log2_scores(b_s, score_factor, cap_log2, HAS_SOFTCAP: tl.constexpr):
    """q.k -> log2(e) * score. score_factor is softmax_scale * log2(e), or softmax_scale / softcap when capped."""
    b_s = b_s * score_factor
    if HAS_SOFTCAP:
        b_s = tanh(b_s) * cap_log2
    return b_s


@triton.jit
def is_visible(o_key, o_position, window):
    """Which keys [N] which queries [M] see: `0 <= position - key < window`. [M, N]"""
    distance = o_position[:, None] - o_key[None, :]
    return (distance >= 0) & (distance < window)


@triton.jit
def finite_max(b_m):
    """A maximum that can be subtracted: 0 for a row that has seen no key yet."""
    return tl.where(b_m == float("-inf"), 0.0, b_m)


@triton.jit
def softmax_step(b_s, b_m, b_l):
    """One tile of an online softmax: weights [M, N], factor of what was accumulated before [M], new maximum and sum."""
    b_m_new = tl.maximum(b_m, tl.max(b_s, 1))
    b_m_safe = finite_max(b_m_new)
    b_p = tl.exp2(b_s - b_m_safe[:, None])
    b_alpha = tl.exp2(b_m - b_m_safe)
    return b_p, b_alpha, b_m_new, b_l * b_alpha + tl.sum(b_p, 1)


@triton.jit
def softmax_finish(b_acc, b_m, b_l, sinks, o_head, m_row):
    """out [M, D] and natural lse [M] from the sums of a softmax. The sinks of the rows' heads, if there are any, enter
    out's denominator, here and only here."""
    b_denominator = b_l
    if sinks is not None:
        b_sink = tl.load(sinks + o_head, mask=m_row, other=0.0).to(tl.float32)
        b_denominator += tl.exp2(b_sink * LOG2_E - finite_max(b_m))
    m_empty = b_l == 0.0  # not by b_m, which is -inf for a row of NaN scores, too: a maximum leaves NaN out
    b_out = tl.where(m_empty[:, None], 0.0, b_acc / tl.where(m_empty, 1.0, b_denominator)[:, None])
    b_lse = tl.where(m_empty, float("-inf"), (b_m + tl.log2(tl.where(m_empty, 1.0, b_l))) * LN_2)
    return b_out, b_lse
