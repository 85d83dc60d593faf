"""One name for the tool and system prompts that conversations share, though each conversation counts its own blocks."""

from collections.abc import Sequence

Runs = tuple[tuple[int, int], ...]
Renamed = tuple[int, int, int]  # ids first .. stop - 1 of a conversation are ids of the trace from the third number on


class SharedPrompts:
    """Names for the leading blocks of conversations whose tool and system prompts have equal sizes."""

    def __init__(self) -> None:
        self._bases: dict[tuple[int, int], int] = {}

    def leading(
        self, sizes: tuple[int, int], first_prompt: Runs, num_blocks: int, renamed: Sequence[Renamed]
    ) -> list[Renamed]:
        """What to rename for a conversation whose first prompt begins with `num_blocks` blocks of tool and system prompt.

        Nothing if some of them are `renamed` already: then a conversation of the same line shares them, perhaps only in
        part, and a name must stand for one prefix only.
        """
        base = self._bases.setdefault(sizes, -(len(self._bases) + 1) << 32)
        found: list[Renamed] = []
        at = 0
        for first, count in first_prompt:
            count = min(count, num_blocks - at)
            if count <= 0:
                break
            found.append((first, first + count, base + at))
            at += count
        if any(start < stop2 and start2 < stop for start, stop, _ in found for start2, stop2, _ in renamed):
            return []
        return found


def rename(runs: Runs, renamed: Sequence[Renamed], base: int) -> Runs:
    """Ids of the trace for ids of a conversation: those that are `renamed`, and `base` plus the id for all others."""
    found: list[tuple[int, int]] = []
    for first, count in runs:
        stop = first + count
        while first < stop:
            inside = next((r for r in renamed if r[0] <= first < r[1]), None)
            if inside is not None:
                end = min(stop, inside[1])
                found.append((inside[2] + first - inside[0], end - first))
            else:
                end = min([stop, *(r[0] for r in renamed if first < r[0])])
                found.append((base + first, end - first))
            first = end
    return tuple(found)
