"""From a Hugging Face directory to a model: names translated, fused tensors taken apart, float8 blocks expanded.

Every tensor of the checkpoint goes somewhere or is ignored by a rule below, and every parameter is filled exactly once;
anything else is listed in one error before a single weight is read.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint, CheckpointError
from .config import ModelConfig, WindowReading
from .models import MODELS
from .weights import expand_float8, split_fused_qkv

IGNORED_PREFIXES = ("model.mtp.",)  # the multi-token-prediction layers
_DERIVED = re.compile(r"\.rotary_emb\.\w*inv_freq$")  # follows from the config
_SINKS = re.compile(r"^(.*\.self_attn)\.(?:attention_sink_bias|sinks)$")
_EXPERT = re.compile(r"^(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$")
_FUSED_QKV = re.compile(r"^(model\.layers\.(\d+)\.self_attn)\.qkv_proj\.weight$")
_SCALE = "_scale_inv"
_FLOATS = {"F32", "BF16", "F16"}
_MOST_LISTED = 20


@dataclass(frozen=True)
class Destination:
    """A parameter; or, of a parameter that stacks experts, the rows `start` to `stop` of one expert."""

    parameter: str
    expert: int | None = None
    start: int = 0
    stop: int | None = None

    def within(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The memory to fill. Raises LookupError if the model has no such parameter or expert."""
        whole = parameters[self.parameter]
        return whole if self.expert is None else whole[self.expert, self.start : self.stop]


def load_model(
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    mimo_window: WindowReading = "size_plus_self",
    fused_qkv_tp: int | None = None,
    ignore_fields: Iterable[str] = (),
    ignore_prefixes: Iterable[str] = (),
) -> nn.Module:
    """Build the model that `directory`'s `config.json` describes and fill it, tensor by tensor.

    Args:
        directory: holds `config.json` and `model.safetensors`, or shards and `model.safetensors.index.json`.
        device: where the weights go.
        dtype: of the weights, also of those stored as float8; None means the config's. The router's correction bias
            stays float32.
        mimo_window, ignore_fields: see `ModelConfig.from_dict`.
        fused_qkv_tp: the tensor-parallel degree whose ranks' [Q; K; V] rows a fused `qkv_proj` strings together. None
            means the full layers' number of KV heads, as in the published V2.5 (4) and V2.5-Pro (8); 1 is plain
            [Q; K; V], which some re-exported checkpoints hold under the same name and shape.
        ignore_prefixes: of tensors that are not the model's, such as a vision tower's; beside IGNORED_PREFIXES.

    Returns:
        The model, in evaluation mode, requiring no grad; its `config` is the `ModelConfig`.

    Raises:
        ConfigError: the model is not supported.
        CheckpointError: tensors are missing, unexpected, given twice or of another shape or dtype; the message lists
            them.
        ImportError: safetensors is not installed.
    """
    config = ModelConfig.from_file(directory, mimo_window=mimo_window, ignore_fields=ignore_fields)
    with torch.device("meta"):
        model = MODELS[config.model_type](config)
    ignored = (*IGNORED_PREFIXES, *ignore_prefixes)
    source = _Source(Checkpoint(directory), config, fused_qkv_tp or config.full.num_kv_heads, ignored)
    parameters = dict(model.named_parameters())
    _check(source, parameters)
    _materialise(model, dtype or config.dtype, device)
    parameters = dict(model.named_parameters())
    for name in source.names:
        parts = (destination.within(parameters) for destination in source.destinations(name))
        for part, piece in zip(parts, source.pieces(name, source.read(name)), strict=True):
            part.copy_(piece)
    return model.eval()


class _Source:
    """A checkpoint in the model's terms: which of its tensors hold which parameters, and in what shape."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, num_ranks: int, ignored: Sequence[str]) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.num_ranks = num_ranks  # of a fused qkv_proj
        self.ignored = tuple(ignored)
        self.names = [name for name in checkpoint.names if not self._is_ignored(name) and not self._is_scale(name)]

    def destinations(self, name: str) -> tuple[Destination, ...]:
        """Where the parts of tensor `name` go; a name with no rule of its own is the parameter's."""
        if match := _SINKS.match(name):
            return (Destination(f"{match[1]}.attn.sinks"),)
        if match := _FUSED_QKV.match(name):
            return tuple(Destination(f"{match[1]}.{part}_proj.weight") for part in "qkv")
        if (match := _EXPERT.match(name)) and self.config.moe is not None:
            inner = self.config.moe.intermediate_size
            stack, start, stop = {
                "gate": ("gate_up_proj", 0, inner),
                "up": ("gate_up_proj", inner, None),
                "down": ("down_proj", 0, None),
            }[match[3]]
            return (Destination(f"{match[1]}.{stack}", int(match[2]), start, stop),)
        return (Destination(name),)

    def pieces(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        """The parts of the tensor, in the order of `destinations`."""
        if match := _FUSED_QKV.match(name):
            return split_fused_qkv(tensor, self.config.attention(int(match[2])), self.num_ranks)
        return (tensor,)

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """Of the parts, without reading them."""
        stand_in = torch.empty(self.checkpoint.shape(name), device="meta")
        return [tuple(piece.shape) for piece in self.pieces(name, stand_in)]

    def wrong_dtype(self, name: str) -> str | None:
        dtype = self.checkpoint.dtype(name)
        if dtype == "F8_E4M3":
            if self.config.weight_block_size is None:
                return "F8_E4M3, but config.json has no quantization_config"
            return None if name + _SCALE in self.checkpoint else f"F8_E4M3 without {name + _SCALE}"
        return None if dtype in _FLOATS else dtype

    def read(self, name: str) -> Tensor:
        weight = self.checkpoint.tensor(name)
        if weight.dtype != torch.float8_e4m3fn:
            return weight
        num_ranks = self.num_ranks if _FUSED_QKV.match(name) else 1
        try:
            return expand_float8(
                weight, self.checkpoint.tensor(name + _SCALE), self.config.weight_block_size, num_ranks
            )
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None

    def _is_ignored(self, name: str) -> bool:
        tied_head = self.config.tie_word_embeddings and name == "lm_head.weight"
        return tied_head or name.startswith(self.ignored) or _DERIVED.search(name) is not None

    def _is_scale(self, name: str) -> bool:
        weight = name.removesuffix(_SCALE)
        return weight != name and weight in self.checkpoint and self.checkpoint.dtype(weight) == "F8_E4M3"


def _check(source: _Source, parameters: dict[str, nn.Parameter]) -> None:
    """Raise unless the source's tensors fill every parameter exactly once."""
    problems: dict[str, list[str]] = {"unexpected": [], "of the wrong shape": [], "of an unreadable dtype": []}
    filled: Counter[str] = Counter()
    seen: Counter[Destination] = Counter()
    for name in source.names:
        destinations = source.destinations(name)
        try:
            wanted = [destination.within(parameters) for destination in destinations]
        except LookupError:
            problems["unexpected"].append(name)
            continue
        if reason := source.wrong_dtype(name):
            problems["of an unreadable dtype"].append(f"{name} ({reason})")
        try:
            shapes = source.shapes(name)
        except CheckpointError as error:
            problems["of the wrong shape"].append(f"{name} ({error})")
            shapes = [tuple(part.shape) for part in wanted]
        for destination, expected, shape in zip(destinations, wanted, shapes, strict=True):
            seen[destination] += 1
            filled[destination.parameter] += expected.numel()
            if shape != tuple(expected.shape):
                problems["of the wrong shape"].append(f"{name} ({list(shape)} for {list(expected.shape)})")
    problems["missing"] = [
        name if not filled[name] else f"{name} ({filled[name]} of {p.numel()} elements given)"
        for name, p in parameters.items()
        if filled[name] < p.numel()
    ]
    twice = {d.parameter for d, count in seen.items() if count > 1}
    problems["given twice"] = sorted(twice | {name for name, p in parameters.items() if filled[name] > p.numel()})
    lines = [f"{kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if lines:
        raise CheckpointError(f"{source.checkpoint.directory} does not fit the model\n" + "\n".join(lines))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def _materialise(model: nn.Module, dtype: torch.dtype, device: torch.device | str) -> None:
    """Replace the meta parameters by memory on `device`."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            own = torch.float32 if name == "e_score_correction_bias" else dtype
            memory = torch.empty(parameter.shape, dtype=own, device=device)
            setattr(module, name, nn.Parameter(memory, requires_grad=False))
