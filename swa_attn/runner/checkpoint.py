"""The safetensors files of a directory, read one tensor at a time.

The directory is somebody else's, and what its index names may lie: a shard is a regular file of the directory itself, and
index and shards name the same tensors. A symlink in the directory is followed, since only its owner can have made it; a
Hugging Face cache is made of them.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from torch import Tensor

from .json_file import read_json_object
from .shown import in_one_line, listed, named, shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_MOST_INDEX_BYTES = 64 << 20  # MiMo-V2.6-Pro's names 160,000 tensors in 18 MB


class CheckpointError(ValueError):
    """A checkpoint's files are missing or damaged, or its tensors are not the model's."""


class Checkpoint:
    """`model.safetensors`, or the shards named by `model.safetensors.index.json`; a tensor is read when asked for.

    Raises:
        ImportError: safetensors is not installed.
        CheckpointError: no weights are found, the index is malformed or names a file elsewhere, a file is missing or
            damaged, or index and shards disagree about the tensors.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        index = self._read_index()
        self._files = (
            {file: self._open(file) for file in sorted(set(index.values()))} if index else {SINGLE: self._open(SINGLE)}
        )
        held = {file: frozenset(opened.keys()) for file, opened in self._files.items()}
        self._file_of = index or dict.fromkeys(held[SINGLE], SINGLE)
        if index:
            self._compare(held)

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

    def num_bytes(self, name: str) -> int:
        """In the file."""
        bits = re.search(r"\d+", self.dtype(name))  # BOOL has none
        return math.prod(self.shape(name)) * (int(bits[0]) if bits else 8) // 8

    def tensor(self, name: str) -> Tensor:
        """On the CPU, mapped from the file."""
        return self._files[self._file_of[name]].get_tensor(name)

    def _slice(self, name: str):
        return self._files[self._file_of[name]].get_slice(name)

    def _read_index(self) -> Mapping[str, str] | None:
        """Tensor -> file, or None where there is one file without an index."""
        if not (self.directory / INDEX).exists():
            self._require_weights()
            return None
        where = self.directory / INDEX
        files = read_json_object(where, CheckpointError, _MOST_INDEX_BYTES).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise CheckpointError(f"{where}: weight_map must be an object of tensors and files, got {shown(files)}")
        wrong = [file for file in files.values() if not _is_file_name(file)]
        if wrong:
            raise CheckpointError(
                f"{where}: weight_map must name *.safetensors files of this folder itself, got {shown(wrong[0])}"
            )
        missing = sorted({file for file in files.values() if not (self.directory / file).exists()})
        if missing:
            raise CheckpointError(f"{self.directory}: the index names files that are missing: {listed(missing)}")
        return files

    def _require_weights(self) -> None:
        if (self.directory / SINGLE).exists():
            return
        if not self.directory.is_dir():
            raise CheckpointError(f"{self.directory} is not a folder with a checkpoint")
        pickles = sorted(f.name for f in self.directory.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        only = (
            f", only {listed(map(named, pickles))}: pickles are not read, convert them to safetensors"
            if pickles
            else ""
        )
        raise CheckpointError(f"{self.directory} holds neither {SINGLE} nor {INDEX}{only}")

    def _open(self, file: str):
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError(
                "reading a checkpoint needs safetensors: pip install 'swa_attn[runner]', or pip install safetensors"
            ) from error
        path = self.directory / file
        if not path.is_file():  # before it is opened: opening a FIFO waits for its other end
            raise CheckpointError(f"{path} is not a regular file")
        try:
            return safe_open(path, framework="pt")
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {in_one_line(error)}") from error

    def _compare(self, held: Mapping[str, frozenset[str]]) -> None:
        """Raise unless every tensor is in the file that the index says, and no file holds another."""
        for name, file in self._file_of.items():
            if name not in held[file]:
                raise CheckpointError(f"{self.directory / file} does not hold {named(name)}, as the index says")
        copies = Counter(name for names in held.values() for name in names)
        for problem, wrong in (
            ("hold several times", [name for name, count in copies.items() if count > 1]),
            ("hold and the index does not name", [name for name in copies if name not in self._file_of]),
        ):
            if wrong:
                names = listed(map(named, sorted(wrong)))
                raise CheckpointError(f"{self.directory}: tensors that the shards {problem}: {names}")


def _is_file_name(file: object) -> bool:
    """Whether it names a *.safetensors file in the folder it is joined to, whatever the system's separators."""
    return (
        isinstance(file, str)
        and file.endswith(".safetensors")
        and file.isprintable()  # neither NUL nor half of a surrogate pair
        and len(file.encode()) <= 255
        and PurePosixPath(file).name == file
        and PureWindowsPath(file).name == file
    )
