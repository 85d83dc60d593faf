"""`ModelConfig`: what a MiMo-V2 `config.json` says, checked and in one vocabulary.

Two dialects exist. The hub's (`hybrid_layer_pattern`, `swa_*`, `sliding_window_size`, ...) comes with the published
checkpoints of MiMo-V2-Flash, V2.5 and V2.5-Pro; transformers' own (`layer_types`, `mlp_layer_types`, `rope_parameters`,
`sliding_window`) with what it saves. A file may speak both, and then they must agree. A field that is not known, or has
a value that would change the mathematics, is an error: docs/models/mimo.md lists what is not supported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch

from ..kvcache.encoding import encode, text
from ..kvcache.spec import GroupSpec
from .fields import ConfigError, Fields
from .fingerprint import config_fields
from .generation_config import GenerationConfig
from .json_file import MOST_CONFIG_BYTES, read_json_object
from .layer_config import (
    FULL,
    MOST_TOKENS,
    SWA,
    AttentionConfig,
    MoEConfig,
    read_attention,
    read_layer_kinds,
    read_moe,
    read_moe_layers,
)
from .presets import PRESETS
from .shown import shown
from .text_part import text_fields

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
        """Read a `config.json`, or the one in a directory, and the `generation_config.json` beside it, if there is one.

        The token ids at which either file ends a generation are united. Arguments and errors are those of `from_dict`;
        OSError if a file cannot be opened.
        """
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        raw = read_json_object(path, ConfigError, MOST_CONFIG_BYTES)
        config = cls.from_dict(raw, mimo_window=mimo_window, ignore_fields=ignore_fields)
        return config if path.name != "config.json" else config.ending_at(GenerationConfig.from_folder(path.parent))

    def ending_at(self, generation: GenerationConfig) -> "ModelConfig":
        """This configuration, whose generations end at the token ids of `generation` too.

        Raises ConfigError for a token id that the vocabulary does not have.
        """
        if beyond := [token for token in generation.eos_token_ids if token >= self.vocab_size]:
            raise ConfigError(
                f"{generation.FILE}: eos_token_id must be below vocab_size = {self.vocab_size}, got {shown(beyond)}"
            )
        united = dict.fromkeys((*self.eos_token_ids, *generation.eos_token_ids))
        return replace(self, eos_token_ids=tuple(united))

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
        if not isinstance(mimo_window, str) or mimo_window not in _KEYS_BEYOND_SIZE:
            raise ConfigError(f"mimo_window must be one of {', '.join(_KEYS_BEYOND_SIZE)}, got {shown(mimo_window)}")
        fields = Fields(text_fields(raw, _WITHOUT_EFFECT), _WITHOUT_EFFECT | set(ignore_fields))
        fields.get("model_type")
        model_type = fields.require("model_type", MODEL_TYPES)
        for field, allowed in _REQUIRED_VALUES.items():
            fields.require(field, allowed)
        full, swa = read_attention(fields, _KEYS_BEYOND_SIZE[mimo_window])
        layer_kinds = read_layer_kinds(fields)
        moe_layers = read_moe_layers(fields, len(layer_kinds))
        if "attention_value_scale" not in fields.raw:
            fields.fail("attention_value_scale", "given (null for none)", None)
        vocab_size = fields.size("vocab_size")
        config = cls(
            model_type=model_type,
            vocab_size=vocab_size,
            hidden_size=fields.size("hidden_size"),
            intermediate_size=fields.size("intermediate_size"),
            layer_kinds=layer_kinds,
            moe_layers=moe_layers,
            full=full,
            swa=swa,
            moe=read_moe(fields, any(moe_layers)),
            value_scale=fields.factor("attention_value_scale"),
            rms_norm_eps=fields.agreed({f: fields.number(f, None) for f in ("rms_norm_eps", "layernorm_epsilon")}),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            max_position_embeddings=fields.size("max_position_embeddings", most=MOST_TOKENS),
            eos_token_ids=fields.token_ids("eos_token_id", vocab_size),
            dtype=_dtype(fields),
            weight_block_size=_weight_block_size(fields),
        )
        fields.refuse_the_rest()
        return config


def _dtype(fields: Fields) -> torch.dtype:
    """bfloat16, as every published checkpoint, when the file does not say."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    names = {f: fields.typed(f, str, None) for f in ("dtype", "torch_dtype")}
    name = fields.agreed(names, "bfloat16")
    if name not in known:
        fields.fail(" or ".join(names), "float32, bfloat16 or float16", name)
    return known[name]


def _weight_block_size(fields: Fields) -> tuple[int, int] | None:
    """Of block-wise float8 weights with one scale per block, the only quantisation that is read."""
    if fields.get("quantization_config", None) is None:
        return None
    try:
        quantization = fields.section("quantization_config", ("ignored_layers", "modules_to_not_convert"))
        quantization.get("quant_method")
        quantization.require("quant_method", ("fp8",))
        quantization.require("fmt", ("e4m3",))
        quantization.require("activation_scheme", ("dynamic",))
        block = quantization.get("weight_block_size")
        if not isinstance(block, list | tuple) or [type(n) for n in block] != [int, int] or min(block) < 1:
            quantization.fail("weight_block_size", "two sizes of at least 1", block)
        quantization.refuse_the_rest()
    except ConfigError as error:
        raise ConfigError(f"quantization_config is not block-wise float8, the only one supported: {error}") from None
    return tuple(block)
