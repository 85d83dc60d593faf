"""How long a request may be, and which ids it may hold, by the model that runs it."""

from dataclasses import dataclass

from .scheduler import RequestTooLarge
from .validation import as_int, require


@dataclass(frozen=True)
class Limits:
    """`vocab_size` token ids and `context` positions; None: no limit is known."""

    vocab_size: int | None
    context: int | None

    @classmethod
    def of(cls, model: object, vocab_size: int | None = None, context_limit: int | None = None) -> "Limits":
        """What the model states, unless given. Raises TypeError, ValueError for what is no positive integer."""
        stated = getattr(model, "vocab_size", None), getattr(model, "max_position_embeddings", None)
        return cls(
            _positive("Engine: vocab_size", stated[0] if vocab_size is None else vocab_size),
            _positive("Engine: context_limit", stated[1] if context_limit is None else context_limit),
        )

    def check(self, num_prompt_tokens: int, max_tokens: int) -> None:
        """Raises RequestTooLarge. The last token is generated but not computed on, and needs no position."""
        needed = num_prompt_tokens + max_tokens - 1
        if self.context is not None and needed > self.context:
            raise RequestTooLarge(
                f"a prompt of {num_prompt_tokens} tokens with max_tokens={max_tokens} needs {needed} positions, and the "
                f"model has {self.context}"
            )


def _positive(name: str, value: object) -> int | None:
    number = as_int(name, value, or_none=True)
    require(number is None or number >= 1, name, "at least 1", number)
    return number
