"""Which tokens run in the next step: continuous batching with chunked prefill over the cache's pools.

Every step has a token budget. Running requests that decode come first, one token each, then prompts in chunks, then new
requests, oldest first throughout. When a pool runs out, the newest request gives its pages back and is computed again
later, from whatever of it is still cached. Older requests never give way to newer ones, so every request ends.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..kvcache import KVCache, PageAccountingError
from .request import FinishReason, Request, RequestState
from .validation import as_count

LOADING_POLL_SECONDS = 0.05  # how often deadlines are looked at while nothing but transfers is going on


class RequestTooLarge(ValueError):
    """The request could not run even with all pages to itself."""


@dataclass(frozen=True)
class Chunk:
    """The next `num_tokens` known tokens of a request; their pages are there."""

    request: Request
    num_tokens: int

    @property
    def is_last(self) -> bool:
        """Nothing that is known of the request is left to compute after it: there are logits to choose a token from."""
        return self.num_tokens == self.request.num_uncomputed


class Scheduler:
    """Queues and running requests over one KVCache; both lists are oldest first.

    Args:
        max_tokens_per_step: budget of a step, prompts and decodes together.
        max_num_seqs: requests that may run at a time.
        rebuild: recomputes the windows that a request's plan asks for, or fails the request; None when the cache's planner
            asks for none.
    """

    def __init__(
        self,
        cache: KVCache,
        max_tokens_per_step: int,
        max_num_seqs: int,
        rebuild: Callable[[Request], None] | None = None,
    ) -> None:
        self.cache = cache
        self.max_tokens_per_step = as_count("Scheduler: max_tokens_per_step", max_tokens_per_step)
        self.max_num_seqs = as_count("Scheduler: max_num_seqs", max_num_seqs)
        self._rebuild = rebuild
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def check_fits(self, name: str, num_prompt_tokens: int, max_tokens: int) -> None:
        """Raises RequestTooLarge for a request that could never finish; `name` is its prompt's. Its last token is not
        written to the cache."""
        reason = self.cache.fits(num_prompt_tokens + max_tokens - 1)
        if reason is not None:
            raise RequestTooLarge(
                f"{name}: a prompt of {num_prompt_tokens} tokens with max_tokens={max_tokens} does not fit the cache: "
                f"{reason}"
            )

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def schedule(self) -> list[Chunk]:
        """The next step's work; empty only when there is none. Waits for transfers only when nothing else can be done.

        Raises PageAccountingError if no request can advance: admission promises every running prompt its pages, so that
        means pages are held by somebody unknown to the scheduler.
        """
        self.cache.poll()
        chunks = self._next_step()
        while not chunks and self.has_work:
            if not self.cache.num_pending:
                counts = f"{len(self.running)} running, {len(self.waiting)} waiting"
                raise PageAccountingError(f"no request can advance: {counts}, {self.cache.stats()}")
            self.cache.poll(timeout=LOADING_POLL_SECONDS)
            chunks = self._next_step()
        return chunks

    def _next_step(self) -> list[Chunk]:
        for request in tuple(self.running):
            self._prepare(request)
        chunks = self._decodes()
        budget = self.max_tokens_per_step - len(chunks)
        for request in self.running:
            if request.num_uncomputed > 1:
                budget -= self._prefill(chunks, request, budget)
        self._admissions(chunks, budget)
        return chunks

    def preempt(self, request: Request, *, keep: bool = True) -> None:
        """Take a running request's pages and queue it, first in line, with all its tokens as the prompt."""
        self._leave(request, keep)
        request.state = RequestState.WAITING
        request.num_preemptions += 1
        self._name(request)
        self.waiting.appendleft(request)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """Take a request out, wherever it is."""
        if request.state is RequestState.RUNNING:
            self._leave(request)
        else:
            self.waiting.remove(request)
        request.finish(reason)

    def fail(self, request: Request, error: str) -> None:
        """Take out a running request that went wrong. What it has computed is doubtful: nobody finds it again."""
        self._leave(request, False)
        self._name(request)
        self.cache.forget(request.key, request.first_own)
        request.finish(FinishReason.ERROR, error)

    def start_over(self, forget: Callable[[], None]) -> None:
        """`forget` empties the cache, or renames what it holds; unfinished requests wait until they are computed again."""
        while self.running:
            self.preempt(self.running[-1], keep=False)
        forget()
        for request in self.waiting:
            self._name(request)

    def drop_all(self) -> None:
        """Forget all requests, when nothing that is known of their pages can be trusted."""
        self.waiting.clear()
        self.running.clear()

    def _name(self, request: Request) -> None:
        request.key = self.cache.key(request.tokens(0, request.num_tokens), request.salt)

    def _leave(self, request: Request, keep: bool = True) -> None:
        self.running.remove(request)
        self.cache.end(request.pages, keep=keep)
        request.pages = None

    def _prepare(self, request: Request) -> None:
        """What happens once a request's prefix is there."""
        pages = request.pages
        if pages.is_loading:
            return
        if request.cached_tokens is None:
            request.cached_tokens = pages.hit_tokens
            request.cached_by_tier = pages.hit_tokens_by_tier
        rebuild = pages.plan.rebuild
        request.computes_from(pages.hit_tokens if rebuild is None else rebuild.first[0])
        if pages.needs_rebuild:
            self._rebuild(request)

    def _decodes(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        for request in tuple(self.running):
            if len(chunks) == self.max_tokens_per_step:
                break
            ready = request.state is RequestState.RUNNING and not request.pages.is_loading
            if ready and request.num_uncomputed == 1 and self._make_room(request):
                chunks.append(Chunk(request, 1))
        return chunks

    def _make_room(self, request: Request) -> bool:
        """A page for one more token, at the cost of newer requests; False when it was the newest itself."""
        while not self.cache.extend(request.pages, 1):
            newest = self.running[-1]
            self.preempt(newest)
            if newest is request:
                return False
        return True

    def _prefill(self, chunks: list[Chunk], request: Request, budget: int) -> int:
        """Add as much of the request as the budget and the pools allow now; returns how many tokens that is."""
        count = min(request.num_uncomputed, budget, self.cache.extendable(request.pages))
        if count <= 0:
            return 0
        self.cache.extend(request.pages, count)
        chunks.append(Chunk(request, count))
        return count

    def _admissions(self, chunks: list[Chunk], budget: int) -> None:
        while self.waiting and len(self.running) < self.max_num_seqs and budget > 0:
            if not self.cache.can_admit(self.waiting[0].key):
                break  # a smaller one behind it would starve it
            request = self.waiting.popleft()
            request.pages = self.cache.begin(request.key)
            request.state = RequestState.RUNNING
            self.running.append(request)
            self._prepare(request)
            if request.state is RequestState.RUNNING:  # its rebuild did not fail
                budget -= self._prefill(chunks, request, budget)
