"""A checkpoint in the terms of the model: which of its tensors hold which parameters, in what shape, and what is not its.

Names are translated, fused projections taken apart, float8 blocks expanded. Tensors of other parts are set aside by a rule
each; everything else belongs to the text model, and has to fit it.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, float8_e4m3fn, nn

from .checkpoint import Checkpoint, CheckpointError
from .config import ModelConfig
from .shown import listed, named, shown
from .text_part import SkippedPart, other_part, text_name
from .weights import check_float8_scale, expand_float8, fused_qkv_rows, split_fused_qkv

BY_REQUEST = "ignore_prefixes"
_DERIVED = re.compile(r"\.rotary_emb\.\w*inv_freq$")  # follows from the config
_SINKS = re.compile(r"^(.*\.self_attn)\.(?:attention_sink_bias|sinks)$")
_EXPERT = re.compile(r"^(.*\.mlp\.experts)\.(\d{1,6})\.(gate|up|down)_proj\.weight$", re.ASCII)
_FUSED_QKV = re.compile(r"^(model\.layers\.(\d{1,6})\.self_attn)\.qkv_proj\.weight$", re.ASCII)
_SCALE = "_scale_inv"
_FLOAT8 = "F8_E4M3"
_FLOATS = {"F32", "BF16", "F16"}


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


class Source:
    """The tensors of a checkpoint that are the model's, and how much was set aside.

    `names` are the checkpoint's own, and so are those of all arguments. `skipped` says, by part, what was not taken.
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, num_ranks: int, ignored: Sequence[str]) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.num_ranks = num_ranks  # of a fused qkv_proj
        self.names: list[str] = []
        num_tensors: Counter[str] = Counter()
        num_bytes: Counter[str] = Counter()
        for name in checkpoint.names:
            part = BY_REQUEST if name.startswith(tuple(ignored)) else other_part(text_name(name))
            if part is not None:
                num_tensors[part] += 1
                num_bytes[part] += checkpoint.num_bytes(name)
            elif not self._is_redundant(text_name(name)) and not self._is_scale(name):
                self.names.append(name)
        self.skipped = {part: SkippedPart(count, num_bytes[part]) for part, count in sorted(num_tensors.items())}

    def destinations(self, name: str) -> tuple[Destination, ...]:
        """Where the parts of tensor `name` go; a name with no rule of its own is the parameter's."""
        name = text_name(name)
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

    def pieces(self, name: str) -> tuple[Tensor, ...]:
        """The parts of tensor `name`, read, in the order of `destinations`."""
        weight = self._read(name)
        layer = self._fused_layer(name)
        return (weight,) if layer is None else split_fused_qkv(weight, self.config.attention(layer), self.num_ranks)

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """Of the parts, without reading them. Raises CheckpointError if the tensor, or its scale, has no such parts."""
        shape, block = self.checkpoint.shape(name), self.config.weight_block_size
        if block is not None and self.checkpoint.dtype(name) == _FLOAT8 and name + _SCALE in self.checkpoint:
            check_float8_scale(shape, self.checkpoint.shape(name + _SCALE), block, self._num_parts(name))
        layer = self._fused_layer(name)
        if layer is None:
            return [shape]
        return [(rows, shape[1]) for rows in fused_qkv_rows(shape, self.config.attention(layer), self.num_ranks)]

    def wrong_dtype(self, name: str) -> str | None:
        """Why the tensor cannot be read, or None."""
        dtype = self.checkpoint.dtype(name)
        if dtype != _FLOAT8:
            return None if dtype in _FLOATS else dtype
        if self.config.weight_block_size is None:
            return f"{_FLOAT8}, but config.json has no quantization_config"
        scale = name + _SCALE
        if scale not in self.checkpoint:
            return f"{_FLOAT8} without {named(scale)}"
        own = self.checkpoint.dtype(scale)
        return None if own in _FLOATS else f"{_FLOAT8} with {named(scale)} of {own}"

    def _read(self, name: str) -> Tensor:
        weight = self.checkpoint.tensor(name)
        if weight.dtype != float8_e4m3fn:
            return weight
        scale = self.checkpoint.tensor(name + _SCALE)
        return expand_float8(weight, scale, self.config.weight_block_size, self._num_parts(name))

    def _fused_layer(self, name: str) -> int | None:
        """The layer whose fused projection this is."""
        match = _FUSED_QKV.match(text_name(name))
        return int(match[2]) if match else None

    def _num_parts(self, name: str) -> int:
        """In which a weight was quantised."""
        return 1 if self._fused_layer(name) is None else self.num_ranks

    def _is_redundant(self, name: str) -> bool:
        tied_head = self.config.tie_word_embeddings and name == "lm_head.weight"
        return tied_head or _DERIVED.search(name) is not None

    def _is_scale(self, name: str) -> bool:
        weight = name.removesuffix(_SCALE)
        return weight != name and weight in self.checkpoint and self.checkpoint.dtype(weight) == _FLOAT8


def check_fit(source: Source, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise CheckpointError unless the source's tensors fill every parameter exactly once."""
    problems: dict[str, list[str]] = {"unexpected": [], "of the wrong shape": [], "of an unreadable dtype": []}
    filled: Counter[str] = Counter()
    seen: Counter[Destination] = Counter()
    for name in source.names:
        destinations = source.destinations(name)
        try:
            wanted = [destination.within(parameters) for destination in destinations]
        except LookupError:
            problems["unexpected"].append(named(name))
            continue
        if reason := source.wrong_dtype(name):
            problems["of an unreadable dtype"].append(f"{named(name)} ({reason})")
        try:
            shapes = source.shapes(name)
        except CheckpointError as error:
            problems["of the wrong shape"].append(f"{named(name)} ({error})")
            shapes = [tuple(part.shape) for part in wanted]
        for destination, expected, shape in zip(destinations, wanted, shapes, strict=True):
            seen[destination] += 1
            filled[destination.parameter] += expected.numel()
            if shape != tuple(expected.shape):
                problems["of the wrong shape"].append(
                    f"{named(name)} ({shown(list(shape))} for {list(expected.shape)})"
                )
    problems["missing"] = [
        name if not filled[name] else f"{name} ({filled[name]} of {p.numel()} elements given)"
        for name, p in parameters.items()
        if filled[name] < p.numel()
    ]
    twice = {d.parameter for d, count in seen.items() if count > 1}
    problems["given twice"] = sorted(twice | {name for name, p in parameters.items() if filled[name] > p.numel()})
    found = [f"{kind}: {listed(names)}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{source.checkpoint.directory} does not fit the model: {'; '.join(found)}")
