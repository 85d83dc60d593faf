"""How a split decode cuts a sequence's keys."""

import triton
import triton.language as tl


@triton.jit
def split_range(context, q_len, window, SPLIT: tl.constexpr):
    """First and last + 1 split that holds a key some row sees; split i is the positions from i * SPLIT on."""
    first_split = tl.maximum(0, context - window + 1) // SPLIT
    return first_split, (context + q_len + SPLIT - 1) // SPLIT
