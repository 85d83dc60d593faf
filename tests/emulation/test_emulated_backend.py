"""The backend that runs the CUDA kernels in the emulator: its settings, and what it does with reports."""

import pytest
import torch

import swa_attn
from swa_attn import backends
from swa_attn.testing import emulated_backend
from swa_attn.testing.emulator import EmulationError, Options

if emulated_backend.unavailable():
    pytest.skip(emulated_backend.unavailable(), allow_module_level=True)


def append(slots):
    key = torch.randn(2, 1, 16)
    pool = torch.zeros(1, 4, 1, 16)
    emulated_backend.append_kv(key, key, pool, pool.clone(), slots)
    return key, pool


def test_reports_are_exceptions():
    with pytest.raises(EmulationError, match=r"out-of-bounds.*read.*slot_mapping"):
        append(torch.tensor([0]))  # of two tokens; the op's own checks are not asked here
    assert emulated_backend.last_run.kinds == {"out-of-bounds"}
    key, pool = append(torch.tensor([3, 0]))
    assert torch.equal(pool[0, [3, 0]], key)
    assert emulated_backend.last_run.counters.bytes_read("new_tokens") == 2 * 2 * 64


def test_settings_hold_inside_their_block_and_nest():
    before = emulated_backend.current
    with emulated_backend.settings(order="random", seed=5, num_sms=3):
        with emulated_backend.settings(race=False):
            assert emulated_backend.current.options == Options(order="random", seed=5, race=False)
            assert emulated_backend.current.num_sms == 3
        assert emulated_backend.current.options.race
    assert emulated_backend.current is before
    with pytest.raises(TypeError), emulated_backend.settings(no_such_option=1):
        pass
    assert emulated_backend.current is before


def test_it_takes_cpu_tensors_and_is_chosen_by_name_only():
    case = backends.Case("append_kv", "emulated", "cuda", torch.float32)
    assert backends.lacks("emulated", case) == "the emulator takes cpu tensors, got cuda"
    assert "emulated" not in backends.ORDER["cpu"]
    states = torch.ones(1, 2, 8), torch.zeros(1, 2)
    with swa_attn.use_backend("emulated"):
        emulated_backend.last_run = None
        out, _ = swa_attn.merge_states(*states, *states)
        assert emulated_backend.last_run is not None and (out == 1).all()


def test_results_without_rows_launch_nothing_wrong():
    none = torch.zeros(0, 2, 8), torch.zeros(0, 2)
    with swa_attn.use_backend("emulated"):
        out, lse = swa_attn.merge_states(*none, *none)
    assert out.shape == (0, 2, 8) and lse.shape == (0, 2)
