"""Reading a configuration file strictly: every field is asked for by name, and what nobody asked for is refused."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .shown import listed, named, shown

_REQUIRED = object()
_LARGEST_FLOAT32 = float.fromhex("0x1.fffffep+127")
MOST = 1 << 24  # of anything counted, unless a reader says otherwise: far above every model, far below what overflows


class ConfigError(ValueError):
    """A `config.json` lacks a field, contradicts itself, or describes a model that is not supported."""


class Fields:
    """The fields of an object in `file`; one that is null counts as absent. Those of `without_effect` may stay unread.

    `prefix` says where in the file the object is: "rope_parameters." for the one under that name.

    Every reader raises ConfigError, which names the file, the field, what was expected and what came.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        without_effect: Iterable[str] = (),
        *,
        file: str = "config.json",
        prefix: str = "",
    ) -> None:
        self.file, self.prefix = file, prefix
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{file}: {prefix[:-1] or 'the file'} must be an object, got {shown(raw)}")
        self.raw = raw
        self.known = set(without_effect)

    def fail(self, field: str, expected: str, given: object) -> None:
        raise ConfigError(f"{self.file}: {self.prefix}{field} must be {expected}, got {shown(given)}")

    def get(self, field: str, default: Any = _REQUIRED) -> Any:
        self.known.add(field)
        value = self.raw.get(field)
        if value is not None:
            return value
        if default is _REQUIRED:
            self.fail(field, "given", None)
        return default

    def typed(self, field: str, kind: type, default: Any = _REQUIRED) -> Any:
        value = self.get(field, default)
        if value is not default and type(value) is not kind:
            self.fail(field, f"of type {kind.__name__}", value)
        return value

    def size(self, field: str, default: Any = _REQUIRED, *, least: int = 1, most: int = MOST) -> int:
        """An int from `least` to `most`."""
        value = self.typed(field, int, default)
        if value is not default and value < least:
            self.fail(field, f"at least {least}", value)
        if value is not default and value > most:
            self.fail(field, f"at most {most}", value)
        return value

    def flag(self, field: str, default: Any = _REQUIRED) -> bool:
        return self.typed(field, bool, default)

    def number(
        self, field: str, default: Any = _REQUIRED, *, or_zero: bool = False, most: float = _LARGEST_FLOAT32
    ) -> Any:
        """An int or float above 0, or 0 too, and at most `most`, or what float32 can hold."""
        value = self.get(field, default)
        if value is default:
            return value
        if type(value) not in (int, float) or not (0 < value <= most or (or_zero and value == 0)):
            limit = f" and at most {most:g}" if most < _LARGEST_FLOAT32 else ""
            self.fail(field, f"a number {'of at least' if or_zero else 'above'} 0{limit}", value)
        return value

    def factor(self, field: str) -> float:
        """A positive number; null or absent means 1."""
        return float(self.number(field, 1.0))

    def section(self, field: str, without_effect: Iterable[str] = ()) -> "Fields":
        """The object under `field`; an empty one if it is absent."""
        raw = self.get(field, {})
        return Fields(raw, without_effect, file=self.file, prefix=f"{self.prefix}{field}.")

    def token_ids(self, field: str, vocab_size: int) -> tuple[int, ...]:
        """A token id below `vocab_size`, or a list of them; absent means none."""
        value = self.get(field, [])
        ids = value if isinstance(value, list | tuple) else [value]
        for token in ids:
            if type(token) is not int or not 0 <= token < vocab_size:
                self.fail(field, f"a token id from 0 to {vocab_size - 1}, or a list of such", value)
        return tuple(dict.fromkeys(ids))

    def require(self, field: str, allowed: Sequence[object]) -> Any:
        """The field, if given, must have one of these values; others would change the mathematics."""
        value = self.get(field, allowed[0])
        if not any(type(value) is type(a) and value == a for a in allowed):
            self.fail(field, " or ".join(map(repr, allowed)), value)
        return value

    def agreed(self, values: Mapping[str, Any], default: Any = _REQUIRED) -> Any:
        """The one thing that several fields say: `values` maps a field to what it says, None if it is absent."""
        given = {f: v for f, v in values.items() if v is not None}
        if not given:
            if default is _REQUIRED:
                self.fail(" or ".join(values), "given", None)
            return default
        value = next(iter(given.values()))
        if any(v != value for v in given.values()):
            said = " and ".join(f"{f} = {shown(v)}" for f, v in given.items())
            raise ConfigError(f"{self.file}: {said} disagree")
        return value

    def per_layer(self, field: str, meanings: Mapping[Any, Any], num_layers: int) -> tuple | None:
        """A list of one value per layer, translated by `meanings`, or None when it is absent."""
        values = self.get(field, None)
        if values is None:
            return None
        if not isinstance(values, list | tuple) or len(values) != num_layers:
            self.fail(field, f"a list of num_hidden_layers = {num_layers} values", values)
        (kind,) = {type(meaning) for meaning in meanings}
        for value in values:
            if type(value) is not kind or value not in meanings:
                self.fail(field, "of " + ", ".join(map(repr, meanings)), value)
        return tuple(meanings[v] for v in values)

    def refuse_the_rest(self) -> None:
        unknown = sorted((f for f, v in self.raw.items() if f not in self.known and v is not None), key=str)
        if unknown:
            raise ConfigError(
                f"{self.file}: unknown fields {listed(self.prefix + named(f) for f in unknown)}: they may change what the "
                "model computes. If they do not, name them in ignore_fields"
            )
