"""One process for the whole suite: without a GPU, Triton kernels run in its interpreter, which must be chosen before they
are decorated, so before anything imports them."""

import contextlib
import importlib.util
import os
import zlib

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(int(os.environ.get("SWA_ATTN_TEST_THREADS", "1")))

import swa_attn
from swa_attn import backends, native
from swa_attn.testing import compare, emulated_backend
from swa_attn.testing.card import OnCard

backends.register("emulated", emulated_backend)
# Copies land and warps run in a random order, another one for each test; instructions err by turns as far as they may.
RANDOMLY = "-randomly"
# The card is one of compute capability 9.0: its kernels, and those for sm_80 where they do not fit; instructions err as
# far as they may, always above in some tests and always below in others.
HOPPER = "-sm90"
BACKENDS = ["reference", "cpu", "triton", "emulated", "emulated" + RANDOMLY, "emulated" + HOPPER]
ON_CARD = {}  # on a machine with a GPU: what runs there, on copies of the tests' CPU tensors
if torch.cuda.is_available():
    BACKENDS.append("cuda")
    ON_CARD = {name: f"{name} on the card" for name in ("cuda", "triton")}
    for name, label in ON_CARD.items():
        backends.register(label, OnCard(name, backends.load))
if os.environ.get("SWA_ATTN_TEST_BACKENDS"):
    BACKENDS = os.environ["SWA_ATTN_TEST_BACKENDS"].split(",")


def _unavailable(name: str) -> str | None:
    if name == "cpu":
        return native.unavailable()
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if name == "cuda":
        return native.unavailable("CUDA")
    if name == "emulated":
        return emulated_backend.unavailable()
    return None


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Runs the test once per backend, with every op forced to it."""
    name = request.param.removesuffix(RANDOMLY).removesuffix(HOPPER)
    reason = _unavailable(name)
    if reason and "SWA_ATTN_TEST_BACKENDS" in os.environ:
        pytest.fail(f"backend {name}, which was asked for: {reason}")
    if reason:
        pytest.skip(f"backend {name}: {reason}")
    schedule = contextlib.nullcontext()
    seed = zlib.crc32(request.node.nodeid.encode())
    if request.param.endswith(HOPPER):
        schedule = emulated_backend.settings(compute_capability=90, arithmetic=("above", "below")[seed % 2])
    elif request.param.endswith(RANDOMLY):
        schedule = emulated_backend.settings(asynchrony="random", order="random", seed=seed, arithmetic="edges")
    with swa_attn.use_backend(ON_CARD.get(name, name)), schedule:
        yield name


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """`torch.empty` gives NaN, so that a result left unwritten, or scratch read before it is written, shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter):
    """How close each backend's results came to their error bounds."""
    for name, tightness in sorted(compare.seen.items()):
        terminalreporter.write_line(
            f"{name}: {tightness.results:,} results within their bounds; the largest error was "
            f"{tightness.out:.2f} of its bound for out, {tightness.lse:.2f} for lse"
        )
