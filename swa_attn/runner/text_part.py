"""Which fields and tensors of a multimodal checkpoint are its text model's, and what the others are.

The published MiMo-V2.5 and V2.6 keep the text model's fields and names as they are and put the towers beside them
(`vision_config`, `visual.`, `audio_encoder.`, `speech_embeddings.`). Re-exports nest the text model: `text_config`,
`model.language_model.` or `language_model.`.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from .fields import ConfigError, Fields
from .shown import shown

_OTHER_FIELDS = re.compile(r"(?:vision|visual|image|video|audio|speech)_\w+|processor_config")
_NESTED_TEXT = (("model.language_model.", "model."), ("language_model.", ""))
_OTHER_PARTS: Mapping[
    str, re.Pattern[str]
] = {  # none of them starts as a text model's: embed_tokens, layers, norm, lm_head
    "vision tower": re.compile(r"(?:model\.)?(?:visual|vision_\w+|image_\w+|multi_modal_projector)\."),
    "audio tower": re.compile(r"(?:model\.)?(?:audio_\w+|speech_\w+)\."),
    "multi-token prediction": re.compile(r"(?:model\.)?mtp\."),
}


@dataclass(frozen=True)
class SkippedPart:
    """How much of a checkpoint was not loaded."""

    num_tensors: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.num_tensors} tensors, {self.num_bytes / 2**20:.1f} MiB"


def text_fields(raw: Mapping[str, Any], bookkeeping: Set[str]) -> dict[str, Any]:
    """The fields of the text model: those of `text_config`, if there is one, and what stands beside it.

    Raises:
        ConfigError: both say something, differently, that is not `bookkeeping`.
    """
    outer = Fields(raw)
    inner = outer.section("text_config").raw
    nested = {f: v for f, v in inner.items() if v is not None}
    beside = {f: v for f, v in raw.items() if f != "text_config"}
    for field in nested.keys() & beside.keys() - bookkeeping - {"model_type"}:  # the whole has a type of its own
        if beside[field] is not None and beside[field] != nested[field]:
            raise ConfigError(
                f"{outer.file}: {field} = {shown(beside[field])} and text_config.{field} = {shown(nested[field])} disagree"
            )
    return {f: v for f, v in {**inner, **beside, **nested}.items() if not _OTHER_FIELDS.fullmatch(str(f))}


def text_name(name: str) -> str:
    """A tensor's name in a checkpoint of the text model alone."""
    for nested, alone in _NESTED_TEXT:
        if name.startswith(nested):
            return alone + name[len(nested) :]
    return name


def other_part(name: str) -> str | None:
    """The part of the checkpoint that a tensor of that `text_name` belongs to; None: the text model."""
    return next((part for part, names in _OTHER_PARTS.items() if names.match(name)), None)
