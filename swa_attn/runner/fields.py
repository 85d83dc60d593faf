"""Reading a `config.json` strictly: every field is asked for by name, and what nobody asked for is refused."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_REQUIRED = object()


class ConfigError(ValueError):
    """A `config.json` lacks a field, contradicts itself, or describes a model that is not supported."""


class Fields:
    """The fields of one file; one that is null counts as absent. Those named by `without_effect` may stay unread."""

    def __init__(self, raw: Mapping[str, Any], without_effect: Iterable[str] = ()):
        self.raw = raw
        self.known = set(without_effect)

    def fail(self, field: str, expected: str, given: object) -> None:
        raise ConfigError(f"config.json: {field} must be {expected}, got {given!r}")

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
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(field, f"of type {kind.__name__}", value)
        return value

    def size(self, field: str, default: Any = _REQUIRED) -> int:
        value = self.typed(field, int, default)
        if value < 1:
            self.fail(field, "at least 1", value)
        return value

    def flag(self, field: str, default: Any = _REQUIRED) -> bool:
        return self.typed(field, bool, default)

    def factor(self, field: str) -> float:
        """A number; null or absent means 1."""
        value = self.get(field, 1.0)
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.fail(field, "a number or null", value)
        return float(value)

    def require(self, field: str, allowed: Sequence[object]) -> None:
        """The field, if given, must have one of these values; others would change the mathematics."""
        value = self.get(field, allowed[0])
        if value not in allowed:
            self.fail(field, " or ".join(map(repr, allowed)), value)

    def agreed(self, values: Mapping[str, Any], default: Any = _REQUIRED) -> Any:
        """The one thing that several fields say: `values` maps a field to what it says, None if it is absent."""
        given = {f: v for f, v in values.items() if v is not None}
        if not given:
            if default is _REQUIRED:
                self.fail(" or ".join(values), "given", None)
            return default
        value = next(iter(given.values()))
        if any(v != value for v in given.values()):
            raise ConfigError("config.json: " + " and ".join(f"{f} = {v!r}" for f, v in given.items()) + " disagree")
        return value

    def per_layer(self, field: str, meanings: Mapping[Any, Any], num_layers: int) -> tuple | None:
        """A list of one value per layer, translated by `meanings`, or None when it is absent."""
        values = self.get(field, None)
        if values is None:
            return None
        if not isinstance(values, list | tuple) or len(values) != num_layers:
            self.fail(field, f"a list of num_hidden_layers = {num_layers} values", values)
        for value in values:
            if value not in meanings:
                self.fail(field, "of " + ", ".join(map(repr, meanings)), value)
        return tuple(meanings[v] for v in values)

    def refuse_the_rest(self) -> None:
        unknown = sorted(f for f, v in self.raw.items() if f not in self.known and v is not None)
        if unknown:
            raise ConfigError(
                f"config.json: unknown fields {', '.join(unknown)}: they may change what the model computes. "
                "If they do not, name them in ignore_fields"
            )
