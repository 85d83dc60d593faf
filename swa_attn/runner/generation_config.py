"""What a `generation_config.json` recommends: where a generation ends, and how its tokens are chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .fields import ConfigError, Fields
from .json_file import MOST_CONFIG_BYTES, read_json_object
from .layer_config import MOST_TOKENS

_MOST_TOKEN_ID = 1 << 24  # `ModelConfig.ending_at` knows the vocabulary
_MOST_TOP_K = 1 << 30

# Values with which a field changes nothing. What else a file says is named in `not_applied`.
_WITHOUT_EFFECT: Mapping[str, object] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1,
    "length_penalty": 1,
    "no_repeat_ngram_size": 0,
    "typical_p": 1,
}
_BOOKKEEPING = frozenset({"_from_model_config", "transformers_version", "bos_token_id", "pad_token_id", "use_cache"})


@dataclass(frozen=True)
class GenerationConfig:
    """The recommendations of a checkpoint's publisher; the default is that of a folder without the file.

    `do_sample` False means greedy, whatever the others say, as in transformers. A `temperature`, `top_k` (None: all),
    `top_p` or `min_p` that the file leaves out does nothing: transformers' own default of 50 for `top_k` is not taken.
    `max_new_tokens` is None if the file does not say. `not_applied` names the fields that ask for something which the
    sampler does not have, such as `repetition_penalty`.
    """

    FILE: ClassVar[str] = "generation_config.json"

    eos_token_ids: tuple[int, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int | None = None
    not_applied: tuple[str, ...] = ()

    @classmethod
    def from_folder(cls, folder: str | Path) -> "GenerationConfig":
        """Read the file in `folder`, if there is one.

        Raises:
            ConfigError: it is malformed; the message names the file and the field.
            OSError: it cannot be opened.
        """
        try:
            raw = read_json_object(Path(folder) / cls.FILE, ConfigError, MOST_CONFIG_BYTES)
        except FileNotFoundError:
            return cls()
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "GenerationConfig":
        """Parse the contents of a `generation_config.json`. Raises ConfigError; the message names the field."""
        fields = Fields(raw, _BOOKKEEPING, file=cls.FILE)
        return cls(
            eos_token_ids=fields.token_ids("eos_token_id", _MOST_TOKEN_ID),
            do_sample=fields.flag("do_sample", False),
            temperature=float(fields.number("temperature", 1.0, or_zero=True)),
            top_k=fields.size("top_k", None, least=0, most=_MOST_TOP_K) or None,  # 0 keeps all
            top_p=float(fields.number("top_p", 1.0, most=1)),
            min_p=float(fields.number("min_p", 0.0, or_zero=True, most=1)),
            max_new_tokens=fields.size("max_new_tokens", None, most=MOST_TOKENS),
            not_applied=tuple(
                sorted(
                    str(f)
                    for f, value in raw.items()
                    if f not in fields.known and value is not None and value != _WITHOUT_EFFECT.get(f)
                )
            ),
        )

    def sampling(self) -> dict[str, Any]:
        """The arguments of `SamplingParams` that this recommends."""
        limit = {} if self.max_new_tokens is None else {"max_tokens": self.max_new_tokens}
        temperature = self.temperature if self.do_sample else 0.0
        return {"temperature": temperature, "top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p, **limit}
