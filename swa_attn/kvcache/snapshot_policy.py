"""Where window snapshots are taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .window_pages import Reason

QUOTA = 0.0025  # a window is worth hundreds of tokens of full-attention pages, and these kinds are rarely resumed from


@dataclass(frozen=True)
class SnapshotPolicy:
    """Where a resume is to be possible. docs/kv_tiers.md has what each rule costs and gains.

    Args:
        prompt_end, output_end: at the last page boundary of the prompt and of what was generated.
        slack_pages: with those two, so many pages before the window, to resume shortly before the end too: the last tokens
            of a prompt change more often than the others.
        branches: where a prompt was seen to leave a cached one.
        fixed: tokens; positions for prompts that share a short beginning, rounded down to pages.
        every: tokens between further snapshots along a prompt; None for none.
        demote_superseded: the end of a turn becomes `Reason.SUPERSEDED` once its conversation has gone on.
        quotas: reason -> the share of each tier (of its byte budget, or of its windowed pools) that its snapshots may take;
            beyond it they are the first to be evicted. By default QUOTA for slack, superseded ends and fixed positions
            each, and 5 % for intervals.
    """

    prompt_end: bool = True
    output_end: bool = True
    slack_pages: int = 2
    branches: bool = True
    fixed: Sequence[int] = (1024, 2048, 4096, 8192)
    every: int | None = None
    demote_superseded: bool = True
    quotas: Mapping[Reason, float] = field(
        default_factory=lambda: {
            Reason.SLACK: QUOTA,
            Reason.SUPERSEDED: QUOTA,
            Reason.FIXED: QUOTA,
            Reason.INTERVAL: 0.05,
        }
    )

    def __post_init__(self) -> None:
        if self.slack_pages < 0:
            raise ValueError(f"SnapshotPolicy: slack_pages must be at least 0, got {self.slack_pages}")
        if self.every is not None and self.every < 1:
            raise ValueError(f"SnapshotPolicy: every must be at least 1 or None, got {self.every}")
        if any(position < 1 for position in self.fixed):
            raise ValueError(f"SnapshotPolicy: fixed positions must be at least 1, got {list(self.fixed)}")
        for reason, share in self.quotas.items():
            if not 0 <= share <= 1:
                raise ValueError(f"SnapshotPolicy: quotas[{reason.name}] must be between 0 and 1, got {share}")

    def within(self, start: int, stop: int, page_size: int) -> list[tuple[int, Reason]]:
        """The boundaries (tokens) in `(start, stop]` where a snapshot is wanted, in order, with the reasons."""
        ends = {p // page_size * page_size: Reason.FIXED for p in self.fixed}
        wanted = {end: reason for end, reason in ends.items() if start < end <= stop}
        if self.every is not None:
            for n in range(start // self.every + 1, stop // self.every + 2):
                end = -(-n * self.every // page_size) * page_size
                if start < end <= stop:
                    wanted.setdefault(end, Reason.INTERVAL)
        return sorted(wanted.items())
