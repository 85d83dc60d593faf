"""Fixtures of the tests that need a card; they skip where there is none."""

import os

import pytest
import torch

from swa_attn import backends

CARD_BACKENDS = ("cuda", "triton")


@pytest.fixture
def card() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return torch.device("cuda")


@pytest.fixture(params=CARD_BACKENDS)
def card_backend(card, request) -> str:
    """The name of a backend that runs on the card; skips one that has no kernels here, unless it was asked for."""
    case = backends.Case("decode", request.param, "cuda", torch.bfloat16, torch.bfloat16, 16, 8, 128, 128)
    reason = backends.lacks(request.param, case)
    if reason and request.param in os.environ.get("SWA_ATTN_TEST_BACKENDS", "").split(","):
        pytest.fail(f"backend {request.param}, which was asked for: {reason}")
    if reason:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param
