"""What checkpoints do to weight matrices, undone: fused projections, block-scaled float8."""

from torch import Tensor

from .checkpoint import CheckpointError
from .config import AttentionConfig


def split_fused_qkv(weight: Tensor, attention: AttentionConfig, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K and V `[heads * dim, hidden]` of a fused `[rows, hidden]`, which holds [Q; K; V] of rank 0, of rank 1, ...

    Raises CheckpointError when the heads cannot be dealt out to that many ranks, or the rows are not theirs.
    """
    a = attention
    rows = a.num_q_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.num_kv_heads * a.v_head_dim
    if num_ranks < 1 or a.num_kv_heads % num_ranks or a.num_q_heads % num_ranks:
        raise CheckpointError(
            f"fused_qkv_tp must divide {a.num_q_heads} query and {a.num_kv_heads} KV heads: {num_ranks}"
        )
    if weight.shape[0] != sum(rows):
        raise CheckpointError(f"a fused qkv_proj must have {sum(rows)} rows, got {weight.shape[0]}")
    parts = weight.unflatten(0, (num_ranks, -1)).split([r // num_ranks for r in rows], dim=1)
    return tuple(part.flatten(0, 1) for part in parts)


def expand_float8(weight: Tensor, scale: Tensor, block: tuple[int, int], num_ranks: int = 1) -> Tensor:
    """float32 `weight * scale`, one scale per block of rows and columns; a rank's last blocks may be cut off.

    weight float8 `[rows, columns]`, scale `[blocks of rows, blocks of columns]`. A matrix that was quantised in
    `num_ranks` parts, one under the other, has blocks that start anew in each.

    Raises CheckpointError when there is not one scale per block.
    """
    rows, columns = weight.shape[0] // num_ranks, weight.shape[1]
    expected = [num_ranks * -(-rows // block[0]), -(-columns // block[1])]
    if list(scale.shape) != expected:
        raise CheckpointError(
            f"the scale of a float8 weight {list(weight.shape)} in {num_ranks} parts must be of shape {expected} for "
            f"blocks of {list(block)}, got {list(scale.shape)}"
        )
    by_row = scale.float().unflatten(0, (num_ranks, -1)).repeat_interleave(block[0], dim=1)[:, :rows].flatten(0, 1)
    return weight.float() * by_row.repeat_interleave(block[1], dim=1)[:, :columns]
