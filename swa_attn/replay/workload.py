"""A trace as the cache sees it: prompts in order, named page by page."""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from ..kvcache import PrefixKey
from ..runner.shown import shown
from .mooncake import read_mooncake
from .sessions import read_sessions
from .traces import Prompt, Trace, TraceError, read_lines
from .users import arrivals

DEFAULT_PAGE_SIZE = 64
WARM_UP = 0.2  # of the requests fill the cache and are not counted


def read_trace(path: Path, *, block_size: int | None = None, share_prompts: bool = True) -> Trace:
    """Reads a trace of either format; its first line says which. Raises TraceError."""
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        raise TraceError(f"{path}: holds no requests")
    every_line = chain([first], lines)
    if "hash_ids" in first.values:
        return read_mooncake(every_line, block_size)
    if "requests" in first.values:
        if block_size is not None:
            raise TraceError(f"{path}: the file states its block size; it cannot be given another one")
        return read_sessions(every_line, share_prompts)
    raise first.fail(
        "neither Mooncake's format (a field hash_ids) nor the session format (a field requests): "
        f"the fields are {shown(list(first.values))}"
    )


@dataclass(frozen=True)
class Workload:
    """Prompts in the order in which they are asked, in pages of `page_size` tokens.

    A page may be a part of a block, or several blocks: then the last one's id names it, since ids are chained.
    """

    prompts: tuple[Prompt, ...]
    block_size: int
    page_size: int

    def __post_init__(self) -> None:
        small, large = sorted((self.block_size, self.page_size))
        if small < 1 or large % small:
            raise ValueError(
                f"Workload: page_size must divide the trace's block size {self.block_size} or be a multiple of it, "
                f"got {self.page_size}"
            )

    @property
    def num_warm_up(self) -> int:
        """Requests at the beginning that are not counted."""
        return int(len(self.prompts) * WARM_UP)

    def key(self, prompt: Prompt) -> PrefixKey:
        """What names the prompt in the cache.

        Tokens of a partial block that would fill pages have no names in the trace and cannot be found again: the key
        leaves them out. They count as input that was computed.
        """
        pages = self.pages(prompt)
        named = len(pages) * self.page_size
        return PrefixKey(b"replay", pages, min(prompt.num_tokens, named + self.page_size - 1))

    def pages(self, prompt: Prompt) -> tuple[int, ...]:
        """The names of the prompt's full pages."""
        parts = self.block_size // self.page_size
        if parts > 1:
            return tuple(chain.from_iterable(range(i * parts, (i + n) * parts) for i, n in prompt.runs))
        blocks = chain.from_iterable(range(i, i + n) for i, n in prompt.runs)
        per_page = self.page_size // self.block_size
        return tuple(blocks if per_page == 1 else islice(blocks, per_page - 1, None, per_page))


def workload_of(trace: Trace, *, num_users: int, page_size: int | None = None, limit: int | None = None) -> Workload:
    """The first `limit` requests of a trace: as they arrived, or those of `num_users` users.

    `page_size` None: 64 where that divides the trace's block, and else the block.
    """
    if page_size is None:
        page_size = trace.block_size if trace.block_size % DEFAULT_PAGE_SIZE else DEFAULT_PAGE_SIZE
    prompts: Iterator[Prompt] = iter(trace.arrivals) if trace.arrivals else arrivals(trace.conversations, num_users)
    return Workload(tuple(islice(prompts, limit)), trace.block_size, page_size)


@dataclass(frozen=True)
class Bound:
    """What a cache without limits would do: `hit_tokens` of the `input_tokens` that are counted."""

    input_tokens: int
    hit_tokens: int

    @property
    def hit_rate(self) -> float:
        return self.hit_tokens / self.input_tokens if self.input_tokens else 0.0


def infinite_cache(workload: Workload, tick: Callable[[int], None] = lambda _: None) -> Bound:
    """The bound for any cache: a prompt hits on its leading pages that were seen before, but for one token."""
    seen: set[Hashable] = set()
    total = hit = 0
    for number, prompt in enumerate(workload.prompts):
        pages = workload.pages(prompt)
        known = bisect_left(pages, True, key=lambda page: page not in seen)  # names are chained: no hit after a miss
        seen.update(pages[known:])
        if number >= workload.num_warm_up:
            total += prompt.num_tokens
            hit += min(known * workload.page_size, prompt.num_tokens - 1)
        tick(number + 1)
    return Bound(total, hit)
