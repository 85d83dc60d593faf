"""One request: its prompt, what it has generated, where it is in its life, and when things happened to it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ..kvcache import KVSequence, PrefixKey, Tier
from .sampler import SamplingParams
from .usage import Usage


class RequestState(Enum):
    WAITING = "waiting"  # no pages; also after a preemption
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(Enum):
    STOP = "stop"  # an end-of-sequence or stop token, which is the last of the output
    LENGTH = "length"  # max_tokens
    CANCELLED = "cancelled"
    ERROR = "error"  # it went wrong, alone: Completion.error says how


@dataclass(frozen=True)
class Completion:
    """What a finished request returns. Times are in seconds from its arrival."""

    request_id: int
    tokens: list[int]
    finish_reason: FinishReason
    usage: Usage
    time_to_first_token: float | None  # None: cancelled before the first
    total_time: float
    num_preemptions: int
    error: str | None = None  # one line, with finish_reason ERROR

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token; None with fewer than two."""
        if self.time_to_first_token is None or len(self.tokens) < 2:
            return None
        return (len(self.tokens) - 1) / max(self.total_time - self.time_to_first_token, 1e-9)


@dataclass(eq=False)
class Request:
    """A request on its way through the engine. `key` names all tokens known when it (re)enters the queue.

    `first_own` is the first position whose K or V this request has computed, in any of its admissions, rather than found:
    what a failure makes doubtful starts there. None before the first admission.
    """

    request_id: int
    prompt: Sequence[int]
    params: SamplingParams
    salt: str
    key: PrefixKey
    is_held: bool = False  # by a generate or a stream, which asks it for its result; nobody else will
    output: list[int] = field(default_factory=list)
    state: RequestState = RequestState.WAITING
    finish_reason: FinishReason | None = None
    pages: KVSequence | None = None
    cached_tokens: int | None = None  # hit at the first admission; what is recomputed after a preemption is not billed
    cached_by_tier: Mapping[Tier, int] = field(default_factory=dict)
    first_own: int | None = None
    num_preemptions: int = 0
    error: str | None = None
    arrived: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None
    finished_at: float | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def num_uncomputed(self) -> int:
        """Known tokens whose K and V are not in the cache yet: 1 while decoding."""
        return self.num_tokens - self.pages.num_computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """Known tokens at positions `start` to `stop`."""
        split = len(self.prompt)
        return [*self.prompt[start:stop], *self.output[max(0, start - split) : max(0, stop - split)]]

    def add_token(self, token: int) -> None:
        self.output.append(token)
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()

    def computes_from(self, position: int) -> None:
        """An admission makes the request compute what comes from `position` on."""
        self.first_own = position if self.first_own is None else min(self.first_own, position)

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        self.state, self.finish_reason, self.error = RequestState.FINISHED, reason, error
        self.finished_at = time.perf_counter()

    def usage(self) -> Usage:
        return Usage(len(self.prompt), self.cached_tokens or 0, len(self.output), self.cached_by_tier)

    def completion(self) -> Completion:
        """The result of a finished request."""
        first = None if self.first_token_at is None else self.first_token_at - self.arrived
        total = self.finished_at - self.arrived
        return Completion(
            self.request_id,
            list(self.output),
            self.finish_reason,
            self.usage(),
            first,
            total,
            self.num_preemptions,
            self.error,
        )
