"""Tile sizes: one table, so that nothing about performance hides in a launcher. The measurements behind it are in
docs/kernels/triton.md; `bench/triton_resources.py` prints them, and a test holds every row to no spills.

None of these depends on lengths or on the batch: they are part of the static configuration that a row's bits may
depend on.
"""

from typing import NamedTuple

SPLIT = 512  # keys per split: a multiple of every block_n
LONGEST_UNSPLIT_WINDOW = 512  # one program walks windows up to here
MAX_SPLIT_PROGRAMS = 8192  # beyond it, programs of a split decode take several splits instead of idling in the queue
MAX_SPLIT_REGISTERS = 255  # all there are: with no limit the assembler aims for 128 in some variants, and spills
COMBINE_SPLITS = 16
APPEND_ROWS = 8
COPY_ELEMENTS = 8192
MERGE_ROWS = 16


class Tile(NamedTuple):
    """block_m rows by block_n keys. Page ids and then K and V share the stages: 5 keep two tiles of K and V in flight
    (three where wgmma reads them from shared memory), 3 keep one (two)."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


FLOAT32 = Tile(16, 32, 8, 1)  # float32 dots run without tensor cores, out of registers


def prefill_tile(arch: int, head_dim: int, v_head_dim: int, q_itemsize: int, cache_itemsize: int) -> Tile:
    if q_itemsize == 4:
        return FLOAT32
    wide = max(head_dim, v_head_dim) > 192
    fp8 = cache_itemsize == 1
    if arch < 90:
        # mma.sync keeps Q, P and the accumulator in registers, and float8 is widened there too.
        return Tile(32 if wide else 64, 32, 8, 3) if fp8 else Tile(64 if wide else 128, 32, 8, 5)
    if fp8:  # widened in registers on its way to shared memory
        return Tile(64 if wide else 128, 32, 8, 5)
    return Tile(64, 64, 8, 3) if wide else Tile(128, 64, 8, 5)


def decode_tile(
    arch: int, head_dim: int, v_head_dim: int, q_itemsize: int, cache_itemsize: int, group_size: int
) -> Tile:
    """block_m does not depend on the number of tokens, so that a token's bits do not either. It holds 4 tokens or more
    of the usual groups: speculative tokens then share the keys that are loaded."""
    if q_itemsize == 4:
        return FLOAT32
    dim = max(head_dim, v_head_dim)
    wide = dim > 192
    block_m = 16 if group_size <= 4 else 32 if group_size <= 32 else 64
    num_warps = 4 if dim <= 64 and block_m < 64 else 8
    block_n = 64 if not wide else 16 if arch < 90 and cache_itemsize == 2 else 32
    return Tile(block_m, block_n, num_warps, 5)
