"""The attention and the experts of the layers, and how a `config.json` says them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .fields import ConfigError, Fields

FULL, SWA = "full", "swa"

MOST_LAYERS = 1 << 10
MOST_TOKENS = 1 << 30  # of a context or a window; positions are int32
_MOST_HEADS = _MOST_HEAD_DIM = 1 << 16
_MOST_EXPERTS, _MOST_EXPERT_SIZE = 1 << 14, 1 << 20

_MOE_SIZES: Mapping[str, dict[str, int]] = {
    "n_routed_experts": {"most": _MOST_EXPERTS},
    "num_experts_per_tok": {"most": _MOST_EXPERTS},
    "moe_intermediate_size": {"most": _MOST_EXPERT_SIZE},
    "n_group": {"default": 1, "most": _MOST_EXPERTS},
    "topk_group": {"default": 1, "most": _MOST_EXPERTS},
}


@dataclass(frozen=True)
class AttentionConfig:
    """The attention of one kind of layer: `window` counts the query's own key, the first `rotary_dim` dims rotate."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None
    sinks: bool
    rope_theta: float
    rotary_dim: int


@dataclass(frozen=True)
class MoEConfig:
    """Sigmoid-routed experts: `num_experts_per_tok` of them from the best `num_top_groups` of `num_groups` groups."""

    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    num_groups: int
    num_top_groups: int
    normalize: bool
    scaling_factor: float


def read_layer_kinds(fields: Fields) -> tuple[str, ...]:
    """ "full" or "swa" for every layer."""
    dialects: Mapping[str, Mapping[Any, str]] = {
        "hybrid_layer_pattern": {0: FULL, 1: SWA},
        "layer_types": {"full_attention": FULL, "sliding_attention": SWA},
    }
    num_layers = fields.size("num_hidden_layers", most=MOST_LAYERS)
    return fields.agreed({f: fields.per_layer(f, meanings, num_layers) for f, meanings in dialects.items()})


def read_moe_layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    """Whether each layer has experts."""
    types = fields.per_layer("mlp_layer_types", {"dense": False, "sparse": True}, num_layers)
    if type(fields.get("moe_layer_freq", None)) is int:
        period = fields.size("moe_layer_freq")
        listed: tuple | None = tuple(i % period == 0 for i in range(num_layers))
    else:
        listed = fields.per_layer("moe_layer_freq", {0: False, 1: True}, num_layers)
    said = {"moe_layer_freq": listed, "mlp_layer_types": types}
    if fields.get("n_routed_experts", None) is None:
        return fields.agreed(said, (False,) * num_layers)
    return fields.agreed(said)


def read_moe(fields: Fields, has_experts: bool) -> MoEConfig | None:
    """The experts, or None for a model without: what is said of them then has no effect."""
    if not has_experts:
        fields.known.update(_MOE_SIZES, ("norm_topk_prob", "routed_scaling_factor"))
        return None
    experts, per_token, inner, groups, top_groups = (fields.size(f, **limits) for f, limits in _MOE_SIZES.items())
    if experts % groups or (groups > 1 and experts // groups < 2):
        fields.fail("n_group", f"such that {experts} experts make equal groups of at least 2", groups)
    if top_groups > groups:
        fields.fail("topk_group", f"at most n_group = {groups}", top_groups)
    if per_token > experts // groups * top_groups:
        fields.fail("num_experts_per_tok", f"at most the experts of {top_groups} of {groups} groups", per_token)
    normalize = fields.flag("norm_topk_prob")
    return MoEConfig(experts, per_token, inner, groups, top_groups, normalize, fields.factor("routed_scaling_factor"))


def read_attention(fields: Fields, keys_beyond_size: int) -> tuple[AttentionConfig, AttentionConfig]:
    """The full and the windowed layers' attention. `keys_beyond_size`: a window of size n has n + that many keys."""
    window = _window(fields, keys_beyond_size)
    rope = _rope(fields)
    head_dim = fields.size("head_dim", most=_MOST_HEAD_DIM)
    dims = head_dim, fields.size("v_head_dim", head_dim, most=_MOST_HEAD_DIM)
    q_heads = fields.size("num_attention_heads", most=_MOST_HEADS)
    kv_heads = fields.size("num_key_value_heads", most=_MOST_HEADS)
    sinks = fields.flag("add_full_attention_sink_bias", False)
    full = _checked(fields, q_heads, kv_heads, dims, None, sinks, *rope[FULL])

    if fields.get("model_type") == "mimo_v2_flash":  # transformers' class has no field: twice the full layers' KV heads
        kv_heads = fields.size("swa_num_key_value_heads", 2 * kv_heads, most=_MOST_HEADS)
    else:
        kv_heads = fields.size("swa_num_key_value_heads", most=_MOST_HEADS)
    q_heads = fields.size("swa_num_attention_heads", q_heads, most=_MOST_HEADS)
    dims = tuple(
        fields.size(f, dim, most=_MOST_HEAD_DIM)
        for f, dim in zip(("swa_head_dim", "swa_v_head_dim"), dims, strict=True)
    )
    sinks = fields.flag("add_swa_attention_sink_bias", True)
    return full, _checked(fields, q_heads, kv_heads, dims, window, sinks, *rope[SWA])


def _checked(
    fields: Fields,
    q_heads: int,
    kv_heads: int,
    dims: tuple[int, int],
    window: int | None,
    sinks: bool,
    theta: float,
    rotary_share: float,
) -> AttentionConfig:
    rotary_dim = int(dims[0] * rotary_share)
    if q_heads % kv_heads:
        fields.fail("the number of query heads", f"a multiple of {kv_heads} KV heads", q_heads)
    if rotary_dim % 2:
        fields.fail("partial_rotary_factor", f"such that an even part of {dims[0]} dims is rotated", rotary_dim)
    return AttentionConfig(q_heads, kv_heads, *dims, window, sinks, theta, rotary_dim)


def _window(fields: Fields, keys_beyond_size: int) -> int:
    size = fields.size("sliding_window_size", None, most=MOST_TOKENS)
    if size is None:
        return fields.size("sliding_window", most=MOST_TOKENS)
    window = fields.size("sliding_window", None, most=MOST_TOKENS + 1)
    if window not in (None, size, size + 1):  # the hub repeats the size; transformers saves the size plus self
        raise ConfigError(f"{fields.file}: sliding_window_size = {size} and sliding_window = {window} disagree")
    return size + keys_beyond_size


def _rope(fields: Fields) -> dict[str, tuple[float, float]]:
    """Theta and rotated share of the head, per kind of layer."""
    scaling = fields.section("rope_scaling")
    _require_default_rope(scaling)
    scaling.refuse_the_rest()
    parameters = fields.section("rope_parameters")
    by_kind = {"full_attention": FULL, "sliding_attention": SWA}
    said = {kind: parameters.section(name) for name, kind in by_kind.items()}
    if not any(of_kind.raw for of_kind in said.values()) and parameters.raw:
        said[FULL] = parameters  # V2.5's flat form repeats what rope_theta says
    share = _share(fields)
    result = {}
    for kind, theta_field in ((FULL, "rope_theta"), (SWA, "swa_rope_theta")):
        own = said[kind]
        _require_default_rope(own)
        theta = fields.agreed(
            {theta_field: fields.number(theta_field, None), f"{own.prefix}rope_theta": own.number("rope_theta", None)}
        )
        turned = fields.agreed({"partial_rotary_factor": share, f"{own.prefix}partial_rotary_factor": _share(own)})
        own.refuse_the_rest()
        result[kind] = float(theta), float(turned)
    parameters.refuse_the_rest()
    return result


def _share(fields: Fields) -> Any:
    return fields.number("partial_rotary_factor", None, or_zero=True, most=1)


def _require_default_rope(fields: Fields) -> None:
    for name in ("rope_type", "type"):
        fields.require(name, ("default",))
