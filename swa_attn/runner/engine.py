"""The engine: requests in, tokens out, one model forward per step over everything that the scheduler picked."""

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from ..attention import AttentionMetadata
from ..kvcache import (
    CacheStats,
    GroupSpec,
    KVCache,
    LayerPages,
    LowerTiers,
    Planner,
    SnapshotPolicy,
    pages_for_budget,
)
from .fingerprint import default_fingerprint
from .request import Completion, FinishReason, Request
from .sampler import SamplingParams, sample
from .scheduler import Chunk, Scheduler


class Model(Protocol):
    """What the engine runs."""

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        caches: Mapping[int, LayerPages],
        metadata: Mapping[str, AttentionMetadata],
        logits_rows: Tensor,
    ) -> Tensor:
        """Write the K and V of `tokens` (int64 `[T]`, at `positions` int64 `[T]`) into the caches and attend.

        `caches` maps a layer to its K and V pages, on the device and, if there are host pages that a block table may
        name, on the host; asking it for a layer waits until that layer's pages have arrived, so ask when you need it.
        `metadata` maps a group to its part of the batch. Returns float32 logits `[R, vocab_size]` of the rows
        `logits_rows` (int64 `[R]`).
        """
        ...


class Engine:
    """Continuous batching of one model on one device.

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
        dtype, device: of the cache.
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
        eos_token_ids: Sequence[int] = (),
        fingerprint: str | None = None,
        hash_key: bytes | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if (num_pages is None) == (cache_bytes is None):
            raise ValueError(
                f"Engine: give one of num_pages and cache_bytes, got num_pages={num_pages}, cache_bytes={cache_bytes}"
            )
        if num_pages is None:
            windows = [g.window for g in groups if g.window is not None]
            live = max_num_seqs * (max(windows, default=0) + page_size) + max_tokens_per_step
            num_pages = pages_for_budget(groups, page_size, dtype, cache_bytes, min_windowed_tokens=live)
        self.model = model
        self.eos_token_ids = frozenset(eos_token_ids)
        self.device = torch.device(device)
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
        self.scheduler = Scheduler(self.cache, max_tokens_per_step, max_num_seqs, self._rebuild_windows)
        self._ids = itertools.count()
        self._requests: dict[int, Request] = {}  # unfinished
        self._finished: dict[int, Completion] = {}

    def add_request(self, prompt: Sequence[int], params: SamplingParams | None = None, *, salt: str = "") -> int:
        """Queue a prompt (token ids) and return its request id; `salt` separates tenants in the prefix cache.

        Raises ValueError for an empty prompt, and its subclass RequestTooLarge for one that could never finish in this
        cache. Requests already queued are not affected.
        """
        params = params or SamplingParams()
        key = self.cache.key(prompt, salt)
        self.scheduler.check_fits(len(prompt), params.max_tokens)
        request = Request(next(self._ids), tuple(prompt), params, salt, key)
        self._requests[request.request_id] = request
        self.scheduler.add(request)
        return request.request_id

    def cancel(self, request_id: int) -> Completion:
        """End an unfinished request now; raises KeyError when there is none of that id."""
        request = self._requests[request_id]
        self._finish(request, FinishReason.CANCELLED)
        return self.take(request_id)

    def take(self, request_id: int) -> Completion:
        """The result of a finished request, once; raises KeyError before it has finished."""
        return self._finished.pop(request_id)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @torch.inference_mode()
    def step(self) -> list[tuple[int, int]]:
        """Run one forward; returns (request id, new token) of every request that got one. Nothing to do: `[]`."""
        chunks = self.scheduler.schedule()
        if not chunks:
            return []
        started = time.perf_counter()
        sampling = [c.request for c in chunks if c.num_tokens == c.request.num_uncomputed]
        logits = self._forward(chunks)
        new_tokens = sample(logits, [r.params for r in sampling], [len(r.output) for r in sampling])
        self._observe(chunks, time.perf_counter() - started)
        for chunk in chunks:
            start = chunk.request.pages.num_computed
            self.cache.commit(chunk.request.pages, chunk.request.tokens(start, start + chunk.num_tokens))
        for request, token in zip(sampling, new_tokens, strict=True):
            request.add_token(token)
            reason = self._why_finished(request, token)
            if reason is not None:
                self._finish(request, reason)
        return [(request.request_id, token) for request, token in zip(sampling, new_tokens, strict=True)]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Callable[[int, int], None] | None = None,
        salt: str = "",
    ) -> list[Completion]:
        """Complete all prompts, batched; the results are in the order of the prompts.

        `params` is one for all or one each. `stream(index of the prompt, token)` is called for every token as it comes.
        Raises as `add_request`, before anything has run.
        """
        each = [params] * len(prompts) if params is None or isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"Engine.generate: params must be one, or one per prompt: {len(each)} for {len(prompts)}")
        ids: dict[int, int] = {}
        try:
            for index, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
                ids[self.add_request(prompt, own, salt=salt)] = index
            while any(request_id in self._requests for request_id in ids):
                for request_id, token in self.step():
                    if stream is not None and request_id in ids:
                        stream(ids[request_id], token)
        except BaseException:
            self._abandon(ids)
            raise
        return [self.take(request_id) for request_id in ids]

    def stream(
        self, prompt: Sequence[int], params: SamplingParams | None = None, *, salt: str = ""
    ) -> Generator[int, None, Completion]:
        """Yield the tokens of one completion as they come; the generator's return value is the completion.

        Other requests advance too. Closing the generator early cancels the request. Raises as `add_request`, at once.
        """
        request_id = self.add_request(prompt, params, salt=salt)
        return self._stream(request_id)

    def stats(self) -> CacheStats:
        return self.cache.stats()

    def close(self) -> None:
        """End all requests and the transfers of the cache. May be called twice."""
        self._abandon(list(self._requests))
        self.cache.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, request_id: int) -> Generator[int, None, Completion]:
        try:
            while request_id in self._requests:
                yield from (token for owner, token in self.step() if owner == request_id)
            return self.take(request_id)
        finally:
            self._abandon([request_id])

    def _abandon(self, request_ids: Iterable[int]) -> None:
        """Nobody will ask for these: end them and forget their results."""
        for request_id in request_ids:
            if request_id in self._requests:
                self._finish(self._requests[request_id], FinishReason.CANCELLED)
            self._finished.pop(request_id, None)

    def _why_finished(self, request: Request, token: int) -> FinishReason | None:
        if token in self.eos_token_ids or token in request.params.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(request.output) == request.params.max_tokens else None

    def _finish(self, request: Request, reason: FinishReason) -> None:
        self.scheduler.finish(request, reason)
        del self._requests[request.request_id]
        self._finished[request.request_id] = request.completion()

    def _observe(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """The planner learns how fast prompts are computed."""
        if any(chunk.num_tokens > 1 for chunk in chunks):
            self.cache.planner.rates["prefill"].observe(sum(chunk.num_tokens for chunk in chunks), seconds)

    def _rebuild_windows(self, request: Request) -> None:
        """Recompute the windows that the request's plan could not find."""
        plan = request.pages.plan.rebuild
        tokens = torch.tensor(request.tokens(plan.first[0], plan.end), dtype=torch.int64, device=self.device)
        self.model.rebuild_windows(tokens, plan, self.cache.layers, request.pages.block_tables, self.cache.page_size)
        self.cache.rebuilt(request.pages)

    def _forward(self, chunks: Sequence[Chunk]) -> Tensor:
        tokens: list[int] = []
        positions: list[int] = []
        logits_rows: list[int] = []
        for chunk in chunks:
            start = chunk.request.pages.num_computed
            tokens += chunk.request.tokens(start, start + chunk.num_tokens)
            positions += range(start, start + chunk.num_tokens)
            if chunk.num_tokens == chunk.request.num_uncomputed:
                logits_rows.append(len(tokens) - 1)
        return self.model.forward(
            *(torch.tensor(x, dtype=torch.int64, device=self.device) for x in (tokens, positions)),
            self.cache.layers,
            self._metadata(chunks),
            torch.tensor(logits_rows, dtype=torch.int64, device=self.device),
        )

    def _metadata(self, chunks: Sequence[Chunk]) -> dict[str, AttentionMetadata]:
        sequences = [chunk.request.pages for chunk in chunks]
        query_lens = [chunk.num_tokens for chunk in chunks]
        seqlens_k = [s.num_computed + q for s, q in zip(sequences, query_lens, strict=True)]
        return {
            name: AttentionMetadata.build(
                [s.block_tables[name] for s in sequences],
                seqlens_k,
                query_lens,
                self.cache.page_size,
                self.device,
                window=pool.spec.window,
            )
            for name, pool in self.cache.pools.items()
        }
