"""Is a result right? A sample of rows against the reference in float64, on the device the result is on."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from swa_attn import reference
from swa_attn.testing.bounds import attention_bounds
from swa_attn.testing.roundings import roundings_of

from .cases import Case
from .inputs import Call

MAX_ROWS = 24
MAX_RELATIVE_ERROR = 1e-2  # of the norm; bf16 gives about 4e-3


@dataclass(frozen=True)
class Verdict:
    relative_error: float  # |got - exact| / |exact| over the sample; NaN when something is not finite
    problem: str  # "" when the result is right


def sample_rows(case: Case, seed: int = 0) -> list[tuple[int, int]]:
    """(sequence, token) pairs: the first and last tokens of some sequences, where a window starts to bite, the rest
    at random."""
    rng = random.Random(seed)
    seqs = sorted({0, len(case.seqs) - 1, *rng.sample(range(len(case.seqs)), min(4, len(case.seqs)))})
    window = case.layer.window or 0
    wanted: list[tuple[int, int]] = []
    for seq in seqs:
        q_len = case.seqs[seq][0]
        wanted += [(seq, t) for t in (0, q_len - 1, window - 1, window, q_len // 2) if 0 <= t < q_len]
    while len(wanted) < MAX_ROWS:
        seq = rng.randrange(len(case.seqs))
        wanted.append((seq, rng.randrange(case.seqs[seq][0])))
    return sorted(set(wanted[:MAX_ROWS]))


def reference_rows(call: Call, rows: list[tuple[int, int]], sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Exact out `[len(rows), Hq, Dv]` in float64, each row as a sequence of its own, which ends with it; and how far off
    each element may be with 16-bit weights and tensor cores."""
    first = call.cu_seqlens_q.tolist()
    index = [first[seq] + token for seq, token in rows]
    device = call.q.device
    lengths = [call.case.seqs[seq][1] - call.case.seqs[seq][0] + token + 1 for seq, token in rows]
    options = call.options | {"sinks": sinks, "window": call.case.layer.window or -1}
    arguments = (
        call.q[index],
        call.k_cache,
        call.v_cache,
        call.block_table[[seq for seq, _ in rows]],
        torch.tensor(lengths, dtype=torch.int32, device=device),
        torch.arange(len(rows) + 1, dtype=torch.int32, device=device),
    )
    exact = reference.prefill(*arguments, **options, compute_dtype=torch.float64)[0]
    roundings = roundings_of("cuda", call.q.dtype, call.k_cache.dtype)
    return exact, attention_bounds(*arguments, **options, roundings=roundings).out


class Checker:
    """Checks results of some calls; what the reference gives is computed once per call, with and without sinks."""

    def __init__(self, calls: list[Call]):
        self._calls = calls
        self._expected: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}

    def _reference(self, index: int, counts_sinks: bool) -> tuple[Tensor, Tensor]:
        key = index, counts_sinks
        if key not in self._expected:
            call = self._calls[index]
            rows, sinks = sample_rows(call.case), call.sinks if counts_sinks else None
            self._expected[key] = reference_rows(call, rows, sinks)
        return self._expected[key]

    def verify(self, index: int, out: Tensor, counts_sinks: bool) -> Verdict:
        """Compares `out` (`[num_tokens, Hq, Dv]`) of a call with the reference, with sinks if the implementation counts
        them."""
        call = self._calls[index]
        rows = sample_rows(call.case)
        exact, limit = self._reference(index, counts_sinks)
        first = call.cu_seqlens_q.tolist()
        got = out[[first[seq] + token for seq, token in rows]].double()
        error = ((got - exact).norm() / exact.norm()).item()
        worst = (got - exact).abs()
        share = worst / limit.clamp(min=torch.finfo(torch.float64).tiny)
        if not torch.isfinite(got).all():
            return Verdict(error, "the result is not finite")
        if not (worst <= limit).all():
            seq, token = rows[int(share.flatten(1).max(1).values.argmax())]
            at = share.argmax()
            where, allowed = f"sequence {seq}, token {token}", limit.flatten()[at]
            return Verdict(error, f"off by {worst.flatten()[at]:.3g} at {where}, allowed {allowed:.3g}")
        if not error <= MAX_RELATIVE_ERROR:
            return Verdict(error, f"relative error {error:.2e}, allowed {MAX_RELATIVE_ERROR:g}")
        return Verdict(error, "")
