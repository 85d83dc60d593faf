"""One process for the whole suite: without a GPU, Triton kernels run in its interpreter, which must be chosen before they
are decorated, so before anything imports them."""

import importlib.util
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(int(os.environ.get("SWA_ATTN_TEST_THREADS", "1")))

import swa_attn
from swa_attn import native


def _unavailable(name: str) -> str | None:
    if name == "cpu":
        return native.unavailable()
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request):
    """Runs the test once per backend, with every op forced to it."""
    reason = _unavailable(request.param)
    if reason:
        pytest.skip(f"backend {request.param}: {reason}")
    with swa_attn.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """`torch.empty` gives NaN, so that a result left unwritten, or scratch read before it is written, shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
