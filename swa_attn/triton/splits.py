"""How a split decode cuts a sequence's keys."""

import triton
import triton.language as tl


@triton.jit
def split_range(context, q_len, window, SPLIT: tl.constexpr):
    """First and last + 1 split that holds a key some row sees; split i is the positions from i * SPLIT on."""
    first_split = tl.maximum(0, tl.maximum(0, context) - window + 1) // SPLIT
    length = context + q_len  # up to 2**31 - 1: nothing may be added to it
    return first_split, length // SPLIT + (length % SPLIT > 0).to(tl.int32)
