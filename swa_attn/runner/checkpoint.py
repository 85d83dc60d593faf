"""The safetensors files of a directory, read one tensor at a time."""

import json
from pathlib import Path

from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint's files are missing or damaged, or its tensors are not the model's."""


class Checkpoint:
    """`model.safetensors`, or the shards named by `model.safetensors.index.json`; a tensor is read when asked for.

    Raises:
        ImportError: safetensors is not installed.
        CheckpointError: no weights are found, or a shard is missing or does not hold what the index says.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._files: dict[str, object] = {}
        self._file_of = self._read_index()
        missing = sorted({f for f in self._file_of.values() if not (self.directory / f).is_file()})
        if missing:
            raise CheckpointError(f"{self.directory}: the index names files that are missing: {', '.join(missing)}")

    @property
    def names(self) -> list[str]:
        """All tensors, shard by shard."""
        return sorted(self._file_of, key=lambda name: (self._file_of[name], name))

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As safetensors writes it: "F32", "BF16", "F8_E4M3", ..."""
        return self._slice(name).get_dtype()

    def tensor(self, name: str) -> Tensor:
        """On the CPU, mapped from the file."""
        return self._open(self._file_of[name]).get_tensor(name)

    def _read_index(self) -> dict[str, str]:
        index = self.directory / "model.safetensors.index.json"
        if index.is_file():
            return json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not (self.directory / "model.safetensors").is_file():
            raise CheckpointError(f"{self.directory} holds neither model.safetensors nor model.safetensors.index.json")
        return dict.fromkeys(self._open("model.safetensors").keys(), "model.safetensors")

    def _slice(self, name: str):
        file = self._file_of[name]
        try:
            return self._open(file).get_slice(name)
        except Exception as error:
            raise CheckpointError(
                f"{self.directory / file} does not hold {name}, as the index says: {error}"
            ) from error

    def _open(self, file: str):
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError(
                "reading a checkpoint needs safetensors: pip install 'swa_attn[runner]', or pip install safetensors"
            ) from error
        if file not in self._files:
            try:
                self._files[file] = safe_open(self.directory / file, framework="pt")
            except Exception as error:
                raise CheckpointError(f"{self.directory / file} cannot be read: {error}") from error
        return self._files[file]
