"""How far off a row's result may be: forward error bounds in float64, from the row's own scores and values.

Nothing here is tuned. docs/numerics.md derives every line; the constants are in `roundings.py`.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference import gather_keys
from .cases import visible_span
from .roundings import EXP, FLOAT32, LOG, NORMAL, SMALLEST, Rounding, Roundings, log_error

_CELLS = 1 << 21  # (head, row, key) triples that are looked at together
_HOPELESS = 100.0  # an exponent, of a weight and the denominator together, at which float32 may overflow
_EXP = log_error(EXP) + FLOAT32  # of a weight, and of every factor that rescales it, with its product


@dataclass(frozen=True)
class Bounds:
    """Largest errors: out `[total_q, Hq, Dv]` and lse `[total_q, Hq]`, float64; 0 for rows that see no key, infinite where
    the result may leave its type's range, and for rows whose scores float32 does not tell apart (docs/numerics.md)."""

    out: Tensor
    lse: Tensor


def attention_bounds(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    cu_seqlens_q: Tensor,
    *,
    roundings: Roundings,
    softmax_scale: float,
    window: int | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
) -> Bounds:
    """Of every row that `prefill` computes from these arguments, on a backend with these roundings."""
    device = q.device
    window = None if window is None or window < 0 else window
    out = torch.zeros(*q.shape[:2], v_cache.shape[3], dtype=torch.float64, device=device)
    lse = torch.zeros(q.shape[:2], dtype=torch.float64, device=device)
    scaled = k_scale is not None or v_scale is not None
    lengths = zip(cu_seqlens_q.tolist(), cu_seqlens_q.diff().tolist(), seqlens_k.tolist())
    for seq, (first_row, q_len, seqlen_k) in enumerate(lengths):
        span = visible_span(q_len, seqlen_k, window)
        positions = torch.arange(seqlen_k - q_len, seqlen_k, device=device)
        distance = positions[:, None] - torch.arange(span.start, span.stop, device=device)
        sees = (distance >= 0) & (distance < (seqlen_k + 1 if window is None else window))
        gathered = functools.partial(gather_keys, span, block_table[seq], compute_dtype=torch.float64)
        k = gathered(k_cache, k_host_cache, k_scale)
        v = gathered(v_cache, v_host_cache, v_scale)
        stored = v if v_scale is None else gathered(v_cache, v_host_cache, None)
        for rows in _pieces(sees, q.shape[1], k, v):
            seen = sees[rows].any(0).nonzero().flatten()
            if len(seen) == 0:
                continue
            here = slice(int(seen[0]), int(seen[-1]) + 1)
            at = slice(first_row + rows.start, first_row + rows.stop)
            keys = _Keys(k[here], v[here], stored[here], scaled)
            piece = _Rows(q[at].double(), keys, sees[rows, here], softmax_scale, softcap, sinks, roundings)
            out[at], lse[at] = piece.out_error(), piece.lse_error()
    return Bounds(out, lse)


def _pieces(sees: Tensor, num_heads: int, k: Tensor, v: Tensor) -> Iterator[slice]:
    """Rows to look at together: few enough for memory; one, where a value is not finite, which only its rows may meet."""
    finite = bool(torch.isfinite(k).all() and torch.isfinite(v).all())
    step = max(1, _CELLS // max(1, num_heads * sees.shape[1])) if finite else 1
    for start in range(0, sees.shape[0], step):
        yield slice(start, min(start + step, sees.shape[0]))


@dataclass(frozen=True)
class _Keys:
    """Of one sequence, float64: k `[n, Hkv, Dk]`, v `[n, Hkv, Dv]`, and v as stored, which is what a scaled weight meets."""

    k: Tensor
    v: Tensor
    stored: Tensor
    scaled: bool


class _Rows:
    """Rows [T] that see some of the keys [n]. Tensors are [Hkv, group, T, n]; errors of scores and weights are in units
    of the exponent: a weight may be off by a factor of e^error either way."""

    def __init__(
        self,
        q: Tensor,
        keys: _Keys,
        sees: Tensor,
        softmax_scale: float,
        softcap: float,
        sinks: Tensor | None,
        roundings: Roundings,
    ):
        num_kv_heads = keys.k.shape[1]
        self._r, self._keys, self._sees, self._empty = roundings, keys, sees, ~sees.any(-1)
        scores, errors = self._scores(q.unflatten(1, (num_kv_heads, -1)), softmax_scale, softcap)
        self._largest = scores.masked_fill(~sees, float("-inf")).amax(-1, keepdim=True)
        fall = torch.where(sees, self._largest - scores, 0.0)
        self._counts = sees.sum(-1, keepdim=True)  # [T, 1]
        self._rescales = self._counts // 16 + 4
        log_count = self._counts.clamp(min=1).log()
        # The differences of scores and maxima on the way of a weight add up to its fall; each is rounded.
        spread = torch.where(sees, errors, 0.0).amax(-1, keepdim=True)
        errors = errors + FLOAT32 * (fall + 2 * spread) + (self._rescales + 1) * _EXP
        self._joining = torch.zeros_like(log_count)  # what the largest log-sum-exp of a part adds to an exponent
        if roundings.joins_by_lse:
            size = torch.where(sees, scores.abs(), 0.0).amax(-1, keepdim=True)
            errors = errors + FLOAT32 * (3 * size + 4 * log_count + 6) + 2 * LOG + _EXP
            self._joining = FLOAT32 * log_count
        self._errors = torch.where(sees, errors, 0.0)
        self._logs = torch.where(sees, -fall, float("-inf"))
        self._weights = torch.exp(self._logs)
        self._sum = self._weights.sum(-1, keepdim=True)
        self._sink, self._sink_error = self._sinks(sinks, num_kv_heads)

    def _scores(self, q: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
        """Scores, and how far off they may be."""
        r, k = self._r, self._keys.k
        products = torch.einsum("thgd,nhd->hgtn", q, k)
        sizes = torch.einsum("thgd,nhd->hgtn", q.abs(), k.abs())
        errors = r.sum_error(q.shape[-1]) * (sizes + products.abs()) / 2 + 2 * FLOAT32 * sizes
        errors = errors + 2 * q.shape[-1] * NORMAL  # products and sums that are taken for 0
        # The scale, log2(e), their product and the score; the key's scale.
        factors = (6 if self._keys.scaled else 4) * FLOAT32
        if softcap <= 0:
            scores = products * scale
            return scores, abs(scale) * errors + factors * scores.abs()
        inside = products * (scale / softcap)
        errors = abs(scale / softcap) * errors + factors * inside.abs()
        steepest = 1 - torch.tanh((inside.abs() - errors).clamp(min=0)) ** 2
        scores = softcap * torch.tanh(inside)
        errors = softcap * ((steepest * errors).clamp(max=2.0) + r.tanh_absolute)
        return scores, errors + (r.tanh_relative + 4 * FLOAT32) * scores.abs()

    def _sinks(self, sinks: Tensor | None, num_kv_heads: int) -> tuple[Tensor, Tensor]:
        """Logarithm of the sink's weight in units of the largest weight [Hkv, group, T, 1], and its error."""
        if sinks is None:
            return torch.full_like(self._largest, float("-inf")), torch.zeros_like(self._largest)
        sink = sinks.double().view(num_kv_heads, -1, 1, 1)
        rise = sink - self._largest
        error = FLOAT32 * (2 * sink.abs() + rise.abs()) + 2 * _EXP + self._joining
        return rise, torch.where(torch.isfinite(error), error, 0.0)

    def _total_error(self, sink: Tensor, sink_error: Tensor) -> Tensor:
        """Error of the sum of the weights and the sink [Hkv, group, T, 1]."""
        logs = torch.cat([self._logs, sink], -1)
        errors = torch.cat([self._errors, sink_error], -1)
        additions = -torch.log1p(-(self._counts + 2 * self._rescales) * FLOAT32)
        return _error_of_log_sum(logs, errors, -1) + additions

    def lse_error(self) -> Tensor:
        """[T, Hq]"""
        no_sink = torch.full_like(self._sum, float("-inf")), torch.zeros_like(self._sum)
        log_sum = self._sum.log()
        lse = self._largest + log_sum
        error = self._total_error(*no_sink) + LOG * (1 + log_sum.abs()) + 4 * FLOAT32 * (lse.abs() + log_sum.abs())
        error = error + self._counts * SMALLEST
        return self._by_row(self._bounded(error))[..., 0]

    def out_error(self) -> Tensor:
        """[T, Hq, Dv]"""
        r = self._r
        total = self._sum + torch.exp(self._sink)
        share = self._weights / total
        rounding = log_error(r.weights.unit) + log_error(r.values.unit) + (3 if self._keys.scaled else 0) * FLOAT32
        errors = self._errors + self._total_error(self._sink, self._sink_error) + rounding + 4 * FLOAT32
        off = torch.exp((self._logs + errors - total.log()).clamp(max=_HOPELESS)) - share
        wrong = self._times(torch.where(self._sees, off, 0.0), self._keys.v.abs())
        sizes = self._times(share, self._keys.v.abs()) + wrong
        exact = self._times(share, self._keys.v).abs()
        sums = r.sum_error(self._counts) * (sizes + torch.minimum(sizes, exact + wrong)) / 2
        rescaled = 2 * (self._rescales + 2) * FLOAT32 * sizes
        lost = self._lost(total)
        error = wrong + sums + rescaled + lost
        error = error + r.out.unit * (exact + error) + r.out.subnormal
        error = torch.where(exact + error > r.out.largest, float("inf"), error)
        return self._by_row(self._bounded(error))

    def _bounded(self, error: Tensor) -> Tensor:
        """[Hkv, group, T, D]: no bound for rows whose scores float32 does not tell apart, 0 for rows that see nothing."""
        hopeless = (self._logs + self._errors).amax(-1, keepdim=True) > _HOPELESS / 2
        return torch.where(self._empty[:, None], 0.0, torch.where(hopeless, float("inf"), error))

    def _lost(self, total: Tensor) -> Tensor:
        """What falls below the normal range, of 16-bit weights and values or of float32: [Hkv, group, T, Dv]."""
        r, seen = self._r, self._sees.double().expand(*self._weights.shape)
        largest = self._times(seen, self._keys.v.abs() + 1)
        lost = largest * SMALLEST
        if r.weights.subnormal:
            lost = lost + r.weights.subnormal * self._times(seen / total, self._keys.stored.abs())
        if r.values.subnormal:
            lost = lost + r.values.subnormal * (self._weights / total).sum(-1, keepdim=True)
        beyond = (self._keys.v.abs() > r.values.largest).double()
        if beyond.any():
            lost = torch.where(self._times(seen, beyond) > 0, float("inf"), lost)
        return lost

    @staticmethod
    def _times(weights: Tensor, values: Tensor) -> Tensor:
        return torch.einsum("hgtn,nhd->hgtd", weights, values)

    @staticmethod
    def _by_row(x: Tensor) -> Tensor:
        """[Hkv, group, T, D] -> [T, Hq, D]"""
        return x.flatten(0, 1).transpose(0, 1)


def merge_bounds(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, sinks: Tensor | None, out_dtype: torch.dtype
) -> Bounds:
    """Of merge_states, whose partial results are taken as exact: out `[..., Hq, Dv]`, lse `[..., Hq]`."""
    parts = torch.stack((lse_a, lse_b)).double()
    parts = torch.where(parts == float("inf"), float("-inf"), parts)  # FlashAttention's mark of a partial without keys
    largest = parts.amax(0)
    empty = largest == float("-inf")
    base = torch.where(empty, 0.0, largest)

    def error(x: Tensor) -> Tensor:
        """Of e^(x - base), in units of the exponent: conversions to base 2, the difference, the exponential."""
        size = FLOAT32 * (3 * (x.abs() + base.abs()) + (x - base).abs()) + 2 * _EXP
        return torch.where(torch.isfinite(size), size, 0.0)

    sink = torch.full_like(base, float("-inf")) if sinks is None else sinks.double().expand_as(base)
    logs, errors = torch.cat([parts - base, (sink - base)[None]]), torch.cat([error(parts), error(sink)[None]])
    logs = torch.where(empty, float("-inf"), logs)
    total = logs.logsumexp(0)
    of_total, of_sum = _error_of_log_sum(logs, errors), _error_of_log_sum(logs[:2], errors[:2])
    rounding = Rounding.to(out_dtype)
    shares, wrong = torch.zeros_like(out_a).double(), torch.zeros_like(out_a).double()
    for i, out in enumerate((out_a, out_b)):
        seen = (parts[i] > float("-inf"))[..., None]
        size = torch.where(seen, out.double().abs(), 0.0)
        share = torch.exp(logs[i] - total)[..., None]
        off = torch.exp(logs[i] + errors[i] + of_total + 6 * FLOAT32 - total)[..., None] - share
        shares = shares + size * share
        wrong = wrong + torch.where(seen, size * off, 0.0) + 4 * SMALLEST * (1 + size)
    wrong = wrong + rounding.unit * (shares + wrong) + rounding.subnormal
    wrong = torch.where(shares + wrong > rounding.largest, float("inf"), wrong)
    log_sum = torch.where(empty, 0.0, logs[:2].logsumexp(0))
    lse_error = of_sum + LOG * (1 + log_sum) + 4 * FLOAT32 * (base.abs() + log_sum) + 3 * FLOAT32
    return Bounds(torch.where(empty[..., None], 0.0, wrong), torch.where(empty, 0.0, lse_error))


def _error_of_log_sum(logs: Tensor, errors: Tensor, dim: int = 0) -> Tensor:
    """How far off the logarithm of a sum may be whose terms have these logarithms, each off by its error."""
    exact, above, below = (x.logsumexp(dim, keepdim=True) for x in (logs, logs + errors, logs - errors))
    error = torch.maximum(above - exact, exact - below)
    return torch.where(exact == float("-inf"), 0.0, error).squeeze(dim) if dim == 0 else error
