"""What checkpoints do to weight matrices, undone: fused projections, block-scaled float8."""

from torch import Tensor

from .checkpoint import CheckpointError
from .config import AttentionConfig
from .shown import shown


def fused_qkv_rows(shape: tuple[int, ...], attention: AttentionConfig, num_ranks: int) -> tuple[int, int, int]:
    """The rows of Q, of K and of V, together in all ranks, in a fused qkv_proj of that shape.

    Raises CheckpointError when the heads cannot be dealt out to that many ranks, or the rows are not theirs.
    """
    a = attention
    if num_ranks < 1 or a.num_kv_heads % num_ranks or a.num_q_heads % num_ranks:
        raise CheckpointError(
            f"fused_qkv_tp must divide {a.num_q_heads} query and {a.num_kv_heads} KV heads: {num_ranks}"
        )
    rows = a.num_q_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.num_kv_heads * a.v_head_dim
    if len(shape) != 2 or shape[0] != sum(rows):
        given = f"{shape[0]}" if len(shape) == 2 else f"a tensor of shape {shown(list(shape))}"
        raise CheckpointError(f"a fused qkv_proj must have {sum(rows)} rows, got {given}")
    return rows


def split_fused_qkv(weight: Tensor, attention: AttentionConfig, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K and V `[heads * dim, hidden]` of a fused `[rows, hidden]`, which holds [Q; K; V] of rank 0, of rank 1, ...

    Raises CheckpointError as `fused_qkv_rows`.
    """
    rows = fused_qkv_rows(tuple(weight.shape), attention, num_ranks)
    parts = weight.unflatten(0, (num_ranks, -1)).split([r // num_ranks for r in rows], dim=1)
    return tuple(part.flatten(0, 1) for part in parts)


def check_float8_scale(
    shape: tuple[int, ...], scale_shape: tuple[int, ...], block: tuple[int, int], num_ranks: int
) -> None:
    """Raise CheckpointError unless a float8 weight of that shape, quantised in `num_ranks` parts, has a scale per block."""
    if len(shape) != 2:
        raise CheckpointError(f"a float8 weight must be a matrix, got a tensor of shape {shown(list(shape))}")
    expected = num_ranks * -(-(shape[0] // num_ranks) // block[0]), -(-shape[1] // block[1])
    if scale_shape != expected:
        raise CheckpointError(
            f"the scale of a float8 weight {list(shape)} in {num_ranks} parts must be of shape {list(expected)} for "
            f"blocks of {list(block)}, got {shown(list(scale_shape))}"
        )


def expand_float8(weight: Tensor, scale: Tensor, block: tuple[int, int], num_ranks: int = 1) -> Tensor:
    """float32 `weight * scale`, one scale per block of rows and columns; a rank's last blocks may be cut off.

    weight float8 `[rows, columns]`, scale `[blocks of rows, blocks of columns]`. A matrix that was quantised in
    `num_ranks` parts, one under the other, has blocks that start anew in each.

    Raises CheckpointError as `check_float8_scale`.
    """
    check_float8_scale(tuple(weight.shape), tuple(scale.shape), block, num_ranks)
    rows, columns = weight.shape[0] // num_ranks, weight.shape[1]
    high, wide = min(block[0], rows), min(block[1], columns)  # a block may be larger than the weight
    by_row = scale.float().unflatten(0, (num_ranks, -1)).repeat_interleave(high, dim=1)[:, :rows].flatten(0, 1)
    return weight.float() * by_row.repeat_interleave(wide, dim=1)[:, :columns]
