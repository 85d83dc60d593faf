"""From logits to tokens: greedy, or sampled with temperature, top-k, top-p and min-p, each request by its own seed."""

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .generation_config import GenerationConfig
from .validation import LARGEST_INT64, as_float, as_int, as_token_set, require

_BLOCK = 512  # about the root of the largest vocabularies


@dataclass(frozen=True)
class SamplingParams:
    """How a request chooses its tokens, and when it stops.

    Numbers may be Python's or NumPy's, and are kept as Python's; bool is not a number.

    Args:
        max_tokens: most tokens to generate, from 1 to 2**63 - 1.
        temperature: divides the logits; 0 is greedy, and then nothing below matters. However small it is, the likeliest
            tokens can be drawn.
        top_k: keep the k likeliest tokens, 1 to 2**63 - 1; None keeps all.
        top_p: of those, keep the likeliest ones until their probability reaches top_p; 0 < top_p <= 1.
        min_p: drop tokens less likely than min_p times the likeliest; 0 <= min_p <= 1.
        seed: from -2**63 to 2**64 - 1; makes the request reproducible: its n-th token then depends on the logits, these
            parameters, the seed and n only. None draws fresh randomness for every token.
        stop_token_ids: end the request when one of them is generated.

    Raises:
        TypeError: a value has another type; the message names it.
        ValueError: a value is outside its range; the message names it.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        take = "SamplingParams: {}".format
        plain = {
            "max_tokens": as_int(take("max_tokens"), self.max_tokens),
            "temperature": as_float(take("temperature"), self.temperature),
            "top_k": as_int(take("top_k"), self.top_k, or_none=True),
            "top_p": as_float(take("top_p"), self.top_p),
            "min_p": as_float(take("min_p"), self.min_p),
            "seed": as_int(take("seed"), self.seed, or_none=True),
            "stop_token_ids": as_token_set(take("stop_token_ids"), self.stop_token_ids),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        self._require(self.max_tokens >= 1, "max_tokens", "at least 1")
        self._require(self.max_tokens <= LARGEST_INT64, "max_tokens", "at most 2**63 - 1")
        self._require(0 <= self.temperature < math.inf, "temperature", "0 (greedy) or positive and finite")
        self._require(self.top_k is None or self.top_k >= 1, "top_k", "at least 1 or None")
        self._require(self.top_k is None or self.top_k <= LARGEST_INT64, "top_k", "at most 2**63 - 1")
        self._require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        self._require(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        self._require(self.seed is None or -(1 << 63) <= self.seed < 1 << 64, "seed", "from -2**63 to 2**64 - 1")

    def _require(self, holds: bool, name: str, expected: str) -> None:
        require(holds, f"SamplingParams: {name}", expected, getattr(self, name))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @classmethod
    def from_generation_config(cls, generation: GenerationConfig, **changes) -> "SamplingParams":
        """What a checkpoint recommends (`load_model(...).generation`), with `changes` in place of single fields.

        A `do_sample` that is false makes it greedy; a `temperature` among the changes then still meets the recommended
        top_k, top_p and min_p.
        """
        return cls(**{**generation.sampling(), **changes})


def sample(logits: Tensor, params: Sequence[SamplingParams], steps: Sequence[int]) -> list[int]:
    """Choose a token for every row: `choose`, for callers that have no use for a row without one.

    Raises:
        ValueError: as `choose`, or a row holds NaN or no finite logit.
    """
    chosen = choose(logits, params, steps)
    wrong = [row for row, token in enumerate(chosen) if token is None]
    if wrong:
        raise ValueError(f"sample: logits must hold no NaN and a finite value per row, rows {wrong} do not")
    return chosen


def choose(logits: Tensor, params: Sequence[SamplingParams], steps: Sequence[int]) -> list[int | None]:
    """Choose a token for every row; None for a row that holds NaN, or no finite largest logit.

    A row's token depends on its own logits, params and step only, never on the rows beside it: everything that rounds
    is computed row by row. Equal logits are broken towards the smaller token id.

    Args:
        logits: float32 `[R, vocab_size]`, on any device; read back once.
        params: one per row.
        steps: per row, how many tokens its request has generated before this one.

    Raises:
        ValueError: the lengths differ.
    """
    if logits.dim() != 2 or not logits.shape[0] == len(params) == len(steps):
        raise ValueError(
            "sample: logits must be of shape [R, vocab_size] with one of params and of steps per row, "
            f"got {list(logits.shape)}, {len(params)} and {len(steps)}"
        )
    if not params:
        return []
    vocab_size = logits.shape[1]
    tokens = _likeliest(logits)
    for row, (own, step) in enumerate(zip(params, steps, strict=True)):
        if not own.greedy:
            drawn = _draw(logits[row], own, _uniform(own.seed, step))
            tokens[row] = torch.where(tokens[row] < vocab_size, drawn, tokens[row])
    return [None if token == vocab_size else token for token in tokens.tolist()]


def _likeliest(logits: Tensor) -> Tensor:
    """int64 `[R]`: the smallest token id with the largest logit; vocab_size marks a row with NaN or nothing finite.

    `argmax` promises none of several largest ones. So the first block with the largest logit is found by the maxima of
    blocks, and the id in that block alone: nothing of the size of the logits is made on the way.
    """
    vocab_size = logits.shape[1]
    maxima = _block_maxima(logits)
    best = maxima.amax(dim=1, keepdim=True)  # NaN if there is one
    block = _first(maxima == best).clamp(max=maxima.shape[1] - 1)
    inside = torch.arange(_BLOCK, device=logits.device)
    ids = (block[:, None] * _BLOCK + inside).clamp(max=vocab_size - 1)
    index = _first((logits.gather(1, ids) == best) & torch.isfinite(best))
    return torch.where(index < _BLOCK, block * _BLOCK + index, vocab_size)


def _block_maxima(logits: Tensor) -> Tensor:
    """`[R, blocks]`; the last block may be shorter."""
    whole = logits.shape[1] // _BLOCK * _BLOCK
    parts = [logits[:, :whole].unflatten(1, (whole // _BLOCK, _BLOCK)), logits[:, None, whole:]]
    return torch.cat([part.amax(dim=2) for part in parts if part.shape[1] and part.shape[2]], dim=1)


def _first(holds: Tensor) -> Tensor:
    """int64 `[R]`: the first index at which it holds in bool `[R, N]`; N if at none."""
    return torch.where(holds, torch.arange(holds.shape[1], device=holds.device), holds.shape[1]).amin(dim=1)


def _draw(row: Tensor, params: SamplingParams, uniform: float) -> Tensor:
    """One token by inverting the cumulative distribution. Sorted by probability, every filter keeps a prefix.

    The largest logit is taken off before the division: it stays 0, and a temperature near 0 sends the others to -inf.
    """
    row = row.double()
    scaled, ids = torch.sort((row - row.amax()) / params.temperature, descending=True, stable=True)
    probabilities = torch.softmax(scaled, dim=0)
    if params.top_k is not None:
        probabilities = probabilities[: params.top_k]
    before = probabilities.cumsum(0) - probabilities
    keep = (before < params.top_p * probabilities.sum()) & (probabilities >= params.min_p * probabilities[0])
    cumulative = torch.where(keep, probabilities, 0.0).cumsum(0)
    index = torch.searchsorted(cumulative, uniform * cumulative[-1:], right=True)
    return ids.gather(0, torch.minimum(index, keep.sum() - 1).clamp(min=0))[0]


def _uniform(seed: int | None, step: int) -> float:
    """A number in [0, 1) for token `step` of a request: a counter-based generator, so preemption loses no state."""
    if seed is None:
        return random.SystemRandom().random()
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
