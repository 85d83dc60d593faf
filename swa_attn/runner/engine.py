"""The engine: requests in, tokens out, one model forward per step over everything that the scheduler picked."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

import torch

from ..kvcache import (
    CacheStats,
    GroupSpec,
    Intact,
    KVCache,
    LowerTiers,
    Planner,
    SnapshotPolicy,
    pages_for_budget,
)
from ..kvcache.sequence_cache import check_fingerprint
from .asked import Asked
from .batch import Model, rebuild_windows, run_chunks
from .fingerprint import default_fingerprint, model_fingerprint
from .interrupts import InterruptHold
from .limits import Limits
from .request import Completion, FinishReason, Request, RequestState
from .sampler import SamplingParams, choose
from .scheduler import Chunk, Scheduler
from .shown import in_one_line, shown, shown_with_type
from .stream import TokenStream
from .turns import Turns
from .validation import (
    as_count,
    as_flag,
    as_int,
    as_iterable,
    as_token_set,
    require_callable,
    require_kind,
)

CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Weights(NamedTuple):
    """Another model, or the same one with other weights."""

    model: Model
    fingerprint: str | None
    limits: Limits


class Engine:
    """Continuous batching of one model on one device. docs/engine.md says what happens when something goes wrong.

    Args:
        model: see `Model`.
        groups: the layer groups that the model's layers belong to.
        page_size: token slots per page.
        num_pages: pages of each group, by name; or give `cache_bytes`, to be split between them.
        max_tokens_per_step: tokens of one forward, prompts and decodes together.
        max_num_seqs: requests that run at a time.
        enable_prefix_cache, policy, lower: see `KVCache`.
        planner: see `KVCache`; None: one that rebuilds windows if the model can (`rebuild_windows`).
        eos_token_ids: each ends every request that samples it.
        fingerprint: names whatever decides the contents of K and V; see `KVCache`. None: with a store, the digest of the
            model's configuration and weights (`model_fingerprint`), computed here; without one, nothing.
        hash_key: see `KVCache`.
        dtype, device: of the cache; float32, bfloat16 or float16.
        vocab_size: prompts hold ids below it. None: the model's, if it states one.
        context_limit: positions that a request may reach: its prompt, and what it generates but for the last token. None:
            the model's `max_position_embeddings`, if it states them.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        model: Model,
        groups: Sequence[GroupSpec],
        *,
        page_size: int = 16,
        num_pages: Mapping[str, int] | None = None,
        cache_bytes: int | None = None,
        max_tokens_per_step: int = 512,
        max_num_seqs: int = 64,
        enable_prefix_cache: bool = True,
        policy: SnapshotPolicy | None = None,
        planner: Planner | None = None,
        lower: LowerTiers | None = None,
        eos_token_ids: Iterable[int] = (),
        fingerprint: str | None = None,
        hash_key: bytes | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        vocab_size: int | None = None,
        context_limit: int | None = None,
    ) -> None:
        if (num_pages is None) == (cache_bytes is None):
            given = f"num_pages={shown(num_pages)}, cache_bytes={shown(cache_bytes)}"
            raise ValueError(f"Engine: give one of num_pages and cache_bytes, got {given}")
        if dtype not in CACHE_DTYPES:
            raise ValueError(
                f"Engine: dtype must be float32, bfloat16 or float16, got {shown(dtype)}: pages on the device carry no "
                "scales; LowerTiers(dtype=torch.float8_e4m3fn) keeps pages below the device in float8, with them"
            )
        page_size = as_count("Engine: page_size", page_size)
        max_tokens_per_step = as_count("Engine: max_tokens_per_step", max_tokens_per_step)
        max_num_seqs = as_count("Engine: max_num_seqs", max_num_seqs)
        enable_prefix_cache = as_flag("Engine: enable_prefix_cache", enable_prefix_cache)
        require_kind("Engine: policy", policy, SnapshotPolicy)
        require_kind("Engine: planner", planner, Planner)
        require_kind("Engine: lower", lower, LowerTiers)
        if num_pages is None:
            cache_bytes = as_count("Engine: cache_bytes", cache_bytes)
            windows = [g.window for g in groups if g.window is not None]
            live = max_num_seqs * (max(windows, default=0) + page_size) + max_tokens_per_step
            num_pages = pages_for_budget(groups, page_size, dtype, cache_bytes, min_windowed_tokens=live)
        num_pages = _page_counts(num_pages)
        self.model = model
        self.eos_token_ids = frozenset(as_token_set("Engine: eos_token_ids", eos_token_ids))
        self.device = torch.device(device)
        self._overrides = vocab_size, context_limit
        self._limits = Limits.of(model, *self._overrides)
        self.cache = KVCache(
            groups,
            page_size,
            num_pages,
            dtype,
            device,
            default_fingerprint(model, lower) if fingerprint is None else fingerprint,
            enable_prefix_cache=enable_prefix_cache,
            policy=policy,
            planner=planner or Planner(rebuild=hasattr(model, "rebuild_windows")),
            lower=lower,
            hash_key=hash_key,
        )
        try:
            self.scheduler = Scheduler(self.cache, max_tokens_per_step, max_num_seqs, self._rebuild_windows)
        except BaseException:
            self.cache.close()
            raise
        self._ids = itertools.count()
        self._requests: dict[int, Request] = {}  # unfinished
        self._finished: dict[int, Completion] = {}
        self._dropped: deque[int] = deque()  # ids that nobody will ask for any more
        self._turns = Turns("Engine", self._begin_turn, self._end_dropped, self._has_dropped)
        self._changes = Intact("Engine", "close it")
        self._next_weights: _Weights | None = None  # that a change which was cut short was to bring
        self._closed = False

    def add_request(self, prompt: Sequence[int], params: SamplingParams | None = None, *, salt: str = "") -> int:
        """Queue a prompt and return its request id; `salt` separates tenants in the prefix cache.

        A prompt is token ids: a list, tuple, range, bytes (each byte an id) or another sequence of integers, or a
        one-dimensional NumPy array or tensor of integers.

        Raises TypeError and ValueError for what no request may be, naming it, and RequestTooLarge, a ValueError, for one
        that could never finish in this cache or goes beyond the model's positions. Requests already queued are not
        affected.
        """
        request_id = next(self._ids)
        try:
            self._add_all([Asked("add_request", None, request_id, prompt, params, None, salt)], is_held=False)
        except BaseException:
            self._drop(request_id)
            raise
        return request_id

    def cancel(self, request_id: int) -> Completion:
        """End an unfinished request now; raises KeyError when there is none of that id."""
        request_id = as_int("Engine.cancel: request_id", request_id)
        with self._turns("cancel"):
            if request_id not in self._requests:
                raise KeyError(f"Engine.cancel: no unfinished request {shown(request_id)}")
            request = self._requests[request_id]
            with self._changes:
                self._finish(request, FinishReason.CANCELLED)
        self._finished.pop(request_id, None)
        return request.completion()

    def take(self, request_id: int) -> Completion:
        """The result of a finished request, once; raises KeyError before it has finished."""
        request_id = as_int("Engine.take: request_id", request_id)
        with self._turns("take"):
            pass  # an interrupt comes out here, and not with the result in hand
        completion = self._finished.pop(request_id, None)
        if completion is None:
            raise KeyError(f"Engine.take: no finished request {shown(request_id)}")
        return completion

    @property
    def has_work(self) -> bool:
        """Whether there are unfinished requests."""
        self._turns.end_if_due("has_work")
        return bool(self._requests)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, int]]:
        """Run one forward; returns (request id, new token) of every request that got one. Nothing to do: `[]`.

        A request that goes wrong by itself ends with FinishReason.ERROR. What the model raises comes out, and changes
        nothing: the next step tries again.
        """
        with self._turns("step"):
            self._check_open("step")
            with self._changes:
                chunks = self.scheduler.schedule()
            return self._compute(chunks) if chunks else []

    def generate(
        self,
        prompts: Iterable[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Callable[[int, int], None] | None = None,
        salt: str = "",
    ) -> list[Completion]:
        """Complete all prompts, batched; the results are in the order of the prompts.

        `params` is one for all or one each. `stream(index of the prompt, token)` is called for every token as it comes;
        what it raises ends all of these prompts, and comes out. Raises as `add_request`, before anything has run.
        """
        expected = "prompts of token ids"
        if isinstance(prompts, str):
            raise TypeError(f"Engine.generate: prompts must be {expected}, got {shown_with_type(prompts)}")
        prompts = list(as_iterable("Engine.generate: prompts", prompts, expected))
        is_one = params is None or isinstance(params, SamplingParams)
        expected = "SamplingParams or None, or one per prompt"
        each = [params] * len(prompts) if is_one else list(as_iterable("Engine.generate: params", params, expected))
        if len(each) != len(prompts):
            raise ValueError(f"Engine.generate: params must be one, or one per prompt: {len(each)} for {len(prompts)}")
        require_callable("Engine.generate: stream", stream)
        ids = [next(self._ids) for _ in prompts]
        with InterruptHold() as hold:
            try:
                requests = self._add_all(
                    [
                        Asked("generate", i, request_id, prompt, own, None if is_one else i, salt)
                        for i, (request_id, prompt, own) in enumerate(zip(ids, prompts, each, strict=True))
                    ],
                    is_held=True,
                )
                self._run(requests, stream, hold)
                return [request.completion() for request in requests]
            finally:
                self._drop(*ids)

    def stream(self, prompt: Sequence[int], params: SamplingParams | None = None, *, salt: str = "") -> TokenStream:
        """The tokens of one completion as they come; see `TokenStream`. Raises as `add_request`, at once."""
        request_id = next(self._ids)
        with InterruptHold():
            try:
                asked = Asked("stream", None, request_id, prompt, params, None, salt)
                (request,) = self._add_all([asked], is_held=True)
                return TokenStream(self, request)
            except BaseException:
                self._drop(request_id)
                raise

    def stats(self) -> CacheStats:
        with self._turns("stats"):
            return self.cache.stats()

    def clear_cache(self) -> None:
        """Forget all past sequences, in all tiers (see `KVCache.clear`). Unfinished requests are computed again.

        Raises RuntimeError when a transfer does not end.
        """
        with self._turns("clear_cache"):
            self._check_open("clear_cache")
            with self._changes:
                self.scheduler.start_over(self.cache.clear)

    def set_fingerprint(self, fingerprint: str) -> None:
        """Something else decides the contents of K and V from now on; see `update_weights`."""
        check_fingerprint("Engine.set_fingerprint", fingerprint, above_store=self.cache.has_store)
        self.update_weights(fingerprint=fingerprint)

    def update_weights(self, model: Model | None = None, *, fingerprint: str | None = None) -> None:
        """The model has other weights: it is `model` now, with the same groups, or this one was changed in place.

        No page that was computed before is used again. `fingerprint` names the new weights. Without one it is computed from
        them if there is a store (`model_fingerprint`); without a store the cache takes names that no other engine finds.
        In a store the pages of the old weights stay under the old fingerprint, for those who still use it.

        An exception in the middle of the change comes out, and the next call of the engine finishes the change first. One
        of those below leaves everything as it was. docs/engine.md says what that means for a model changed in place.

        Raises:
            RuntimeError: requests are unfinished: they would go on with other weights than they began with.
            ValueError: the fingerprint is the old one or empty above a store, or a model with a store needs one by hand.
            TypeError: an argument has another type.
        """
        if model is not None and self.cache.planner.rebuild and not hasattr(model, "rebuild_windows"):
            raise TypeError("Engine.update_weights: model must have rebuild_windows, which the planner counts on")
        with self._turns("update_weights"):
            self._check_open("update_weights")  # and an earlier change is finished
        model = self.model if model is None else model
        if fingerprint is None and self.cache.has_store:
            fingerprint = model_fingerprint(model)
        if fingerprint is not None:
            check_fingerprint("Engine.update_weights", fingerprint, above_store=self.cache.has_store)
        weights = _Weights(model, fingerprint, Limits.of(model, *self._overrides))
        with self._turns("update_weights"):
            self._check_open("update_weights")
            if fingerprint == self.cache.fingerprint:
                raise ValueError(
                    f"Engine.update_weights: fingerprint must be a new one, got the old one, {fingerprint!r}"
                )
            if self._requests:
                raise RuntimeError(
                    f"Engine.update_weights: {len(self._requests)} requests are unfinished; end them first"
                )
            with self._changes:
                self._next_weights = weights
                self._change_weights()

    def close(self) -> None:
        """End all requests and the transfers of the cache. May be called twice; afterwards nothing runs any more."""
        with self._turns("close"):
            self._closed = True
            self._dropped.extend(self._requests)
            self._end_dropped()
            self.cache.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Turns

    @property
    def _is_torn(self) -> bool:
        return self._changes.torn or self.cache.is_torn

    def _begin_turn(self, call: str) -> None:
        """Before every call: make whole what an exception has cut short, and end what was dropped."""
        if self._is_torn:
            self._end_all(self._changes.cause or "an exception")
            if call == "close" or self._closed:
                return
            self.cache.reset()
            self._change_weights()
            self._changes.mend()
        self._end_dropped()

    def _change_weights(self) -> None:
        """Bring what `_next_weights` says, if anything. May be cut short and called again: it forgets the order last."""
        if self._next_weights is None:
            return
        model, fingerprint, limits = self._next_weights
        if fingerprint is None:
            self.cache.clear()
        else:
            self.cache.set_fingerprint(fingerprint)
        self.model, self._limits = model, limits
        self._next_weights = None

    def _end_all(self, cause: str) -> None:
        """All requests end, without a look at what is known of their pages."""
        self.scheduler.drop_all()
        for request in list(self._requests.values()):
            error = f"request {request.request_id}: {cause} cut a change of the engine short, and all requests ended"
            request.finish(FinishReason.ERROR, error)
            self._ended(request)

    def _drop(self, *request_ids: int) -> None:
        """Nobody will ask for these: unfinished ones end, and their results are forgotten.

        Neither waits nor raises, so that finalisers may call it. In the middle of another call the requests end with that
        call.
        """
        self._dropped.extend(request_ids)
        self._turns.end_if_due("drop")

    def _has_dropped(self) -> bool:
        return bool(self._dropped) and not self._is_torn

    def _end_dropped(self) -> None:
        while self._has_dropped():
            request = self._requests.get(self._dropped[0])
            if request is not None:
                with self._changes:
                    self._finish(request, FinishReason.CANCELLED)
            self._finished.pop(self._dropped[0], None)
            self._dropped.popleft()

    def _check_open(self, call: str) -> None:
        if self._closed:
            raise RuntimeError(f"Engine.{call}: the engine is closed")

    # Requests

    def _add_all(self, asked: Sequence[Asked], *, is_held: bool) -> list[Request]:
        """Queue all, or none if one is wrong. Checking runs code of the prompts', so nobody waits for it to end."""
        limits = self._limits
        asked = [one.checked(limits, self.scheduler) for one in asked]
        with self._turns("add_request"):
            if self._limits is not limits:  # the model has changed since
                asked = [one.checked(self._limits, self.scheduler) for one in asked]
            requests = [self._request(one, is_held) for one in asked]
            self._queue(requests)
        return requests

    def _request(self, asked: Asked, is_held: bool) -> Request:
        key = self.cache.key(asked.prompt, asked.salt)
        return Request(asked.request_id, asked.prompt, asked.params, asked.salt, key, is_held)

    def _queue(self, requests: Sequence[Request]) -> None:
        self._check_open("add_request")
        with self._changes:
            for request in requests:
                self._requests[request.request_id] = request
                self.scheduler.add(request)

    def _run(self, requests: Sequence[Request], stream: Callable[[int, int], None] | None, hold: InterruptHold) -> None:
        """Steps until all have finished; between them an interrupt may come out."""
        unfinished = list(enumerate(requests))
        num_given = [0] * len(requests)
        while unfinished:
            self.step()
            for index, request in unfinished if stream is not None else ():
                for token in request.output[num_given[index] :]:
                    num_given[index] += 1
                    with hold.lifted():
                        stream(index, token)
            hold.deliver()
            unfinished = [(i, r) for i, r in unfinished if r.state is not RequestState.FINISHED]

    def _finish(self, request: Request, reason: FinishReason) -> None:
        self.scheduler.finish(request, reason)
        self._ended(request)

    def _fail(self, request: Request, error: str) -> None:
        self.scheduler.fail(request, f"request {request.request_id}: {error}")
        self._ended(request)

    def _ended(self, request: Request) -> None:
        if not request.is_held:
            self._finished[request.request_id] = request.completion()
        del self._requests[request.request_id]

    # A step

    def _compute(self, chunks: Sequence[Chunk]) -> list[tuple[int, int]]:
        """One forward. Nothing changes before all of its results are known."""
        started = time.perf_counter()
        sampling = [chunk.request for chunk in chunks if chunk.is_last]
        logits = run_chunks(self.model, self.cache, chunks, self.device)
        tokens = choose(logits, [r.params for r in sampling], [len(r.output) for r in sampling])
        self._observe(chunks, time.perf_counter() - started)
        verdicts = [self._verdict(*each) for each in zip(sampling, tokens, strict=True)]
        with self._changes:
            return self._settle(chunks, zip(sampling, tokens, verdicts, strict=True))

    def _verdict(self, request: Request, token: int | None) -> FinishReason | str | None:
        """Why the request ends with this token, or the error that it ends with instead; None: it goes on."""
        if token is None:
            return f"the logits after {request.num_tokens} tokens hold NaN or no finite largest value"
        if token in self.eos_token_ids or token in request.params.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(request.output) + 1 == request.params.max_tokens else None

    def _settle(
        self, chunks: Sequence[Chunk], results: Iterable[tuple[Request, int | None, FinishReason | str | None]]
    ) -> list[tuple[int, int]]:
        """Take note of a forward. Failed requests leave first: nobody is to share pages with them any more."""
        good = []
        for request, token, verdict in results:
            if isinstance(verdict, str):
                self._fail(request, verdict)
            else:
                good.append((request, token, verdict))
        for chunk in chunks:
            request = chunk.request
            if request.state is RequestState.RUNNING:
                start = request.pages.num_computed
                self.cache.commit(request.pages, request.tokens(start, start + chunk.num_tokens))
        for request, token, verdict in good:
            request.add_token(token)
            if verdict is not None:
                self._finish(request, verdict)
        return [(request.request_id, token) for request, token, _ in good]

    def _observe(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """The planner learns how fast prompts are computed."""
        if any(chunk.num_tokens > 1 for chunk in chunks):
            self.cache.planner.rates["prefill"].observe(sum(chunk.num_tokens for chunk in chunks), seconds)

    def _rebuild_windows(self, request: Request) -> None:
        """A request's own computation, so what goes wrong in it is the request's error."""
        try:
            rebuild_windows(self.model, self.cache, request, self.device)
        except Exception as error:
            self._fail(request, f"its windows could not be rebuilt: {_cause(error)}")
        else:
            self.cache.rebuilt(request.pages)


def _page_counts(num_pages: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(num_pages, Mapping):
        raise TypeError(f"Engine: num_pages must be pages by names of groups, got {shown_with_type(num_pages)}")
    return {name: as_count(f"Engine: num_pages[{shown(name)}]", count) for name, count in num_pages.items()}


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {in_one_line(error)}"
