"""`ModelConfig`: what a MiMo-V2 `config.json` says, checked and in one vocabulary.

Two dialects exist. The hub's (`hybrid_layer_pattern`, `swa_*`, `sliding_window_size`, ...) comes with the published
checkpoints of MiMo-V2-Flash, V2.5 and V2.5-Pro; transformers' own (`layer_types`, `mlp_layer_types`, `rope_parameters`,
`sliding_window`) with what it saves. A file may speak both, and then they must agree. A field that is not known, or has
a value that would change the mathematics, is an error: docs/models/mimo.md lists what is not supported.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch

from ..kvcache.encoding import encode, text
from ..kvcache.spec import GroupSpec
from .fields import ConfigError, Fields
from .fingerprint import config_fields
from .presets import PRESETS

FULL, SWA = "full", "swa"
MODEL_TYPES = ("mimo_v2_flash", "mimo_v2")

WindowReading = Literal["size_plus_self", "size_includes_self"]
_KEYS_BEYOND_SIZE: Mapping[str, int] = {"size_plus_self": 1, "size_includes_self": 0}

# Bookkeeping, training, the serving context, and what transformers adds to every file.
_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_chunk_size",  # repeats the window; MiMo's layers slide, they are not chunked
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "hybrid_block_size",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "moe_router_dtype",  # the router always runs in float32 here
        "num_nextn_predict_layers",  # the multi-token-prediction layers are not loaded
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "transformers_version",
        "use_cache",
    }
)
_REQUIRED_VALUES: Mapping[str, tuple[object, ...]] = {
    "model_type": MODEL_TYPES,
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_qk_norm": (False,),
    "n_shared_experts": (0,),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "first_k_dense_replace": (0,),
    "attention_projection_layout": ("split", "fused_qkv"),
}
_MOE_FIELDS = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_group", "topk_group")


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


@dataclass(frozen=True)
class ModelConfig:
    """A model of the MiMo family.

    `layer_kinds[i]` is "full" or "swa", `moe_layers[i]` whether layer i has experts. `value_scale` multiplies V before
    it is cached. `weight_block_size` is the block of a float8 checkpoint, None for one that is not quantised.
    `eos_token_ids` end a generation. `dtype` is that of the checkpoint.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layer_kinds: tuple[str, ...]
    moe_layers: tuple[bool, ...]
    full: AttentionConfig
    swa: AttentionConfig
    moe: MoEConfig | None
    value_scale: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    weight_block_size: tuple[int, int] | None

    @property
    def num_layers(self) -> int:
        return len(self.layer_kinds)

    def attention(self, layer_idx: int) -> AttentionConfig:
        """The attention of layer `layer_idx`."""
        return self.full if self.layer_kinds[layer_idx] == FULL else self.swa

    def kv_groups(self) -> tuple[GroupSpec, ...]:
        """The groups of layers that share a page pool: "full" and "swa", those that have layers."""
        groups = []
        for name, attention in ((FULL, self.full), (SWA, self.swa)):
            layers = tuple(i for i, kind in enumerate(self.layer_kinds) if kind == name)
            if layers:
                dims = attention.num_kv_heads, attention.head_dim, attention.v_head_dim
                groups.append(GroupSpec(name, layers, *dims, window=attention.window))
        return tuple(groups)

    def fingerprint(self, weights: str) -> str:
        """Names what decides the contents of K and V, for a cache that outlives the process or is shared.

        All fields of the configuration are in it (rotary settings, sinks, value scale, layer map, block scales), and
        `weights`, which names the checkpoint and its revision: two checkpoints of one configuration must not meet.
        `runner.model_fingerprint` reads the weights themselves instead of trusting a name.
        """
        return sha256(encode("config", config_fields(self), text("weights", weights))).hexdigest()

    @classmethod
    def preset(cls, name: str, *, mimo_window: WindowReading = "size_plus_self") -> "ModelConfig":
        """A published geometry: "mimo-v2-flash", "mimo-v2.5" or "mimo-v2.5-pro". Raises KeyError for another name."""
        if name not in PRESETS:
            raise KeyError(f"ModelConfig.preset: name must be one of {', '.join(PRESETS)}, got {name!r}")
        return cls.from_dict(PRESETS[name], mimo_window=mimo_window)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        mimo_window: WindowReading = "size_plus_self",
        ignore_fields: Iterable[str] = (),
    ) -> "ModelConfig":
        """Read a `config.json`, or the one in a directory; arguments and errors as `from_dict`, and OSError."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls.from_dict(raw, mimo_window=mimo_window, ignore_fields=ignore_fields)

    @classmethod
    def from_dict(
        cls,
        raw: Mapping[str, Any],
        *,
        mimo_window: WindowReading = "size_plus_self",
        ignore_fields: Iterable[str] = (),
    ) -> "ModelConfig":
        """Parse the contents of a `config.json`.

        Args:
            raw: the fields, in the hub's dialect, transformers', or both.
            mimo_window: what `sliding_window_size: n` means: "size_plus_self", n keys before the query and its own, as
                transformers and SGLang run the published checkpoints; or "size_includes_self", n keys in all, as vLLM
                does. A `sliding_window` without `sliding_window_size` always counts the query's own key.
            ignore_fields: unknown fields that you know to be harmless.

        Raises:
            ConfigError: a field is missing, contradictory, unknown or not supported; the message names it.
        """
        if mimo_window not in _KEYS_BEYOND_SIZE:
            raise ConfigError(f"mimo_window must be one of {', '.join(_KEYS_BEYOND_SIZE)}, got {mimo_window!r}")
        fields = Fields(raw, _WITHOUT_EFFECT | set(ignore_fields))
        fields.get("model_type")
        for field, allowed in _REQUIRED_VALUES.items():
            fields.require(field, allowed)
        full, swa = _attention(fields, _window(fields, _KEYS_BEYOND_SIZE[mimo_window]))
        layer_kinds = _layer_kinds(fields)
        moe_layers = _moe_layers(fields, len(layer_kinds))
        if "attention_value_scale" not in raw:
            fields.fail("attention_value_scale", "given (null for none)", None)
        config = cls(
            model_type=fields.get("model_type"),
            vocab_size=fields.size("vocab_size"),
            hidden_size=fields.size("hidden_size"),
            intermediate_size=fields.size("intermediate_size"),
            layer_kinds=layer_kinds,
            moe_layers=moe_layers,
            full=full,
            swa=swa,
            moe=_moe(fields, any(moe_layers)),
            value_scale=fields.factor("attention_value_scale"),
            rms_norm_eps=fields.agreed({f: fields.get(f, None) for f in ("rms_norm_eps", "layernorm_epsilon")}),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            max_position_embeddings=fields.size("max_position_embeddings"),
            eos_token_ids=_token_ids(fields.get("eos_token_id", ())),
            dtype=_dtype(fields),
            weight_block_size=_weight_block_size(fields),
        )
        fields.refuse_the_rest()
        return config


def _layer_kinds(fields: Fields) -> tuple[str, ...]:
    dialects: Mapping[str, Mapping[Any, str]] = {
        "hybrid_layer_pattern": {0: FULL, 1: SWA},
        "layer_types": {"full_attention": FULL, "sliding_attention": SWA},
    }
    num_layers = fields.size("num_hidden_layers")
    return fields.agreed({f: fields.per_layer(f, meanings, num_layers) for f, meanings in dialects.items()})


def _moe_layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    types = fields.per_layer("mlp_layer_types", {"dense": False, "sparse": True}, num_layers)
    if isinstance(fields.get("moe_layer_freq", None), int):
        period = fields.size("moe_layer_freq")
        listed: tuple | None = tuple(i % period == 0 for i in range(num_layers))
    else:
        listed = fields.per_layer("moe_layer_freq", {0: False, 1: True}, num_layers)
    said = {"moe_layer_freq": listed, "mlp_layer_types": types}
    if fields.get("n_routed_experts", None) is None:
        return fields.agreed(said, (False,) * num_layers)
    return fields.agreed(said)


def _moe(fields: Fields, has_experts: bool) -> MoEConfig | None:
    if not has_experts:
        fields.known.update(_MOE_FIELDS, ("norm_topk_prob", "routed_scaling_factor"))
        return None
    optional = {"n_group": 1, "topk_group": 1}
    experts, per_token, inner, groups, top_groups = (
        fields.size(f, optional[f]) if f in optional else fields.size(f) for f in _MOE_FIELDS
    )
    if experts % groups or (groups > 1 and experts // groups < 2):
        fields.fail("n_group", f"such that {experts} experts make equal groups of at least 2", groups)
    if top_groups > groups:
        fields.fail("topk_group", f"at most n_group = {groups}", top_groups)
    if per_token > experts // groups * top_groups:
        fields.fail("num_experts_per_tok", f"at most the experts of {top_groups} of {groups} groups", per_token)
    normalize = fields.flag("norm_topk_prob")
    return MoEConfig(experts, per_token, inner, groups, top_groups, normalize, fields.factor("routed_scaling_factor"))


def _attention(fields: Fields, window: int) -> tuple[AttentionConfig, AttentionConfig]:
    """The full and the windowed layers' attention."""
    rope = _rope(fields)
    head_dim = fields.size("head_dim")
    dims = head_dim, fields.size("v_head_dim", head_dim)
    q_heads, kv_heads = fields.size("num_attention_heads"), fields.size("num_key_value_heads")
    sinks = fields.flag("add_full_attention_sink_bias", False)
    full = _checked(fields, q_heads, kv_heads, dims, None, sinks, *rope[FULL])

    if fields.get("model_type") == "mimo_v2_flash":  # transformers' class has no field: twice the full layers' KV heads
        kv_heads = fields.size("swa_num_key_value_heads", 2 * kv_heads)
    else:
        kv_heads = fields.size("swa_num_key_value_heads")
    q_heads = fields.size("swa_num_attention_heads", q_heads)
    dims = fields.size("swa_head_dim", dims[0]), fields.size("swa_v_head_dim", dims[1])
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
    if rotary_dim % 2 or not 0 <= rotary_dim <= dims[0]:
        fields.fail("partial_rotary_factor", f"such that an even part of {dims[0]} dims is rotated", rotary_dim)
    return AttentionConfig(q_heads, kv_heads, *dims, window, sinks, theta, rotary_dim)


def _window(fields: Fields, keys_beyond_size: int) -> int:
    if fields.get("sliding_window_size", None) is None:
        return fields.size("sliding_window")
    size, window = fields.size("sliding_window_size"), fields.get("sliding_window", None)
    if window not in (None, size, size + 1):  # the hub repeats the size; transformers saves the size plus self
        raise ConfigError(f"config.json: sliding_window_size = {size} and sliding_window = {window} disagree")
    return size + keys_beyond_size


def _rope(fields: Fields) -> dict[str, tuple[float, float]]:
    """Theta and rotated share of the head, per kind of layer."""
    parameters = fields.get("rope_parameters", {})
    if not any(isinstance(v, Mapping) for v in parameters.values()):
        parameters = {"full_attention": parameters}  # V2.5's flat form repeats what rope_theta says
    for name, settings in (("rope_scaling", fields.get("rope_scaling", {})), *parameters.items()):
        _require_default_rope(fields, name, settings)
    share = fields.get("partial_rotary_factor", None)
    result = {}
    for kind, name, theta_field in (
        (FULL, "full_attention", "rope_theta"),
        (SWA, "sliding_attention", "swa_rope_theta"),
    ):
        settings, prefix = parameters.get(name, {}), f"rope_parameters.{name}."
        own_theta, own_share = settings.get("rope_theta"), settings.get("partial_rotary_factor")
        theta = fields.agreed({theta_field: fields.get(theta_field, None), prefix + "rope_theta": own_theta})
        turned = fields.agreed({"partial_rotary_factor": share, prefix + "partial_rotary_factor": own_share})
        result[kind] = float(theta), float(turned)
    return result


def _require_default_rope(fields: Fields, name: str, settings: Mapping[str, Any]) -> None:
    for kind in (settings.get("rope_type"), settings.get("type")):
        if kind not in (None, "default"):
            fields.fail(f"{name}.rope_type", "'default'", kind)
    if unknown := set(settings) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}:
        fields.fail(name, "of the default rotary embedding only", sorted(unknown))


def _token_ids(value: int | list[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _dtype(fields: Fields) -> torch.dtype:
    """bfloat16, as every published checkpoint, when the file does not say."""
    names = {f: fields.get(f, None) for f in ("dtype", "torch_dtype")}
    name = fields.agreed(names, "bfloat16")
    if name not in ("float32", "bfloat16", "float16"):
        fields.fail(" or ".join(names), "float32, bfloat16 or float16", name)
    return getattr(torch, name)


def _weight_block_size(fields: Fields) -> tuple[int, int] | None:
    """Of block-wise float8 weights with one scale per block, the only quantisation that is read."""
    raw = fields.get("quantization_config", None)
    if raw is None:
        return None
    quantization = Fields(raw, ("ignored_layers", "modules_to_not_convert"))
    try:
        quantization.get("quant_method")
        quantization.require("quant_method", ("fp8",))
        quantization.require("fmt", ("e4m3",))
        quantization.require("activation_scheme", ("dynamic",))
        rows, columns = quantization.get("weight_block_size")
        quantization.refuse_the_rest()
    except (ConfigError, TypeError, ValueError) as error:
        raise ConfigError(f"quantization_config is not block-wise float8, the only one supported: {error}") from None
    return rows, columns
