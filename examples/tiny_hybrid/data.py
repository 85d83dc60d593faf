"""The corpus: the source files of the Python standard library on this machine, split once into train and held-out."""

import hashlib
import lzma
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

END_OF_FILE = 256  # the one token that is not a byte; it closes every file
VOCAB_SIZE = 257

# Generated tables and data: they are not code somebody would complete.
EXCLUDED = ("site-packages", "__pycache__", "pydoc_data", "encodings", "lib2to3", "turtledemo", "config-")


@dataclass(frozen=True)
class Corpus:
    modules: list[Path]  # training files of the library proper
    tests: list[Path]  # training files of the library's own test suite
    held_out: list[Path]  # library files never trained on
    root: Path

    def document(self, path: Path) -> bytes:
        """A file as the model sees it: a header naming the file, then its bytes."""
        return f"# file: {path.relative_to(self.root).as_posix()}\n".encode() + path.read_bytes()


def find_corpus() -> Corpus:
    """Every `*.py` of the standard library; a file is held out if the hash of its path says so (about one in twenty)."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(f for f in root.rglob("*.py") if not any(p.startswith(EXCLUDED) for p in f.relative_to(root).parts))
    modules, tests, held_out = [], [], []
    for file in files:
        relative = file.relative_to(root)
        if "test" in relative.parts or "tests" in relative.parts:
            tests.append(file)
        elif hashlib.sha256(relative.as_posix().encode()).digest()[0] % 20 == 0:
            held_out.append(file)
        else:
            modules.append(file)
    return Corpus(modules, tests, held_out, root)


class Sampler:
    """Endless stream of training sequences: shuffled files, packed end to end, cut every `length` tokens."""

    def __init__(self, corpus: Corpus, generator: torch.Generator, library_share: float = 0.8):
        self.corpus, self.generator, self.library_share = corpus, generator, library_share
        self.queues: dict[str, list[Path]] = {"modules": [], "tests": []}
        self.pending: list[torch.Tensor] = []
        self.num_pending = 0

    def _next_document(self) -> torch.Tensor:
        name = "modules" if torch.rand((), generator=self.generator) < self.library_share else "tests"
        queue = self.queues[name]
        if not queue:
            files = getattr(self.corpus, name)
            queue.extend(files[i] for i in torch.randperm(len(files), generator=self.generator).tolist())
        text = bytearray(self.corpus.document(queue.pop()))
        return torch.cat([torch.frombuffer(text, dtype=torch.uint8).long(), torch.tensor([END_OF_FILE])])

    def batch(self, num_sequences: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, both int64 `[num_sequences, length]`."""
        need = num_sequences * length + 1
        while self.num_pending < need:
            self.pending.append(self._next_document())
            self.num_pending += len(self.pending[-1])
        stream = torch.cat(self.pending)
        self.pending, self.num_pending = [stream[need - 1 :]], len(stream) - need + 1
        inputs = stream[: need - 1].view(num_sequences, length)
        targets = stream[1:need].view(num_sequences, length)
        return inputs, targets


def held_out_stream(corpus: Corpus) -> torch.Tensor:
    """The held-out documents packed end to end, as token ids."""
    parts = []
    for file in corpus.held_out:
        parts.append(torch.frombuffer(bytearray(corpus.document(file)), dtype=torch.uint8).long())
        parts.append(torch.tensor([END_OF_FILE]))
    return torch.cat(parts)


def compressor_bits_per_byte(corpus: Corpus) -> dict[str, float]:
    """What general compressors need for the same held-out bytes, packed end to end as the model reads them."""
    data = b"".join(corpus.document(f) for f in corpus.held_out)
    result = {"xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) * 8 / len(data)}
    if shutil.which("zstd"):
        packed = subprocess.run(["zstd", "-19", "--ultra", "-c"], input=data, capture_output=True, check=True).stdout
        result["zstd -19"] = len(packed) * 8 / len(data)
    return result
