"""A short run of the fuzzer on every backend, and that it sees what it is there to see. A long one: `make fuzz`."""

import argparse
import importlib.util
import os
import random
import subprocess
import sys

import judge
import ops_fuzz
import pytest
import torch
from calls import Call, guarded, make_call

import swa_attn
from swa_attn import native, reference
from swa_attn.testing import emulated_backend

UNAVAILABLE = {
    "reference": lambda: None,
    "cpu": native.unavailable,
    "triton": lambda: None if importlib.util.find_spec("triton") else "triton is not installed",
    "emulated": emulated_backend.unavailable,
}
SECONDS = {"reference": 2, "cpu": 2, "triton": 3, "emulated": 2}


@pytest.mark.parametrize("backend", ops_fuzz.BACKENDS)
def test_a_short_run(backend):
    if reason := UNAVAILABLE[backend]():
        pytest.skip(f"backend {backend}: {reason}")
    command = [sys.executable, ops_fuzz.__file__, "--backend", backend, "--seconds", str(SECONDS[backend])]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) >= 5


def test_a_call_is_made_from_its_seed_alone():
    for number in range(30):
        first, second = (make_call(f"3/{number}", "cpu") for _ in range(2))
        assert str(first) == str(second)
        for name, x in first.tensors().items():
            same = second.arguments[name]
            assert torch.equal(x.detach().double().nan_to_num(), same.detach().double().nan_to_num()), name


def decode_call():
    chance = random.Random(0)
    q, cache = torch.randn(1, 1, 2, 16), torch.randn(2, 4, 1, 16)
    table, length = torch.tensor([[1, 0]], dtype=torch.int32), torch.tensor([7], dtype=torch.int32)
    out, lse = torch.empty(1, 1, 2, 16), torch.empty(1, 1, 2)
    names = "q", "k_cache", "v_cache", "block_table", "seqlens_k", "out", "lse"
    tensors = q, cache, cache.clone(), table, length, out, lse
    return Call("decode", {name: guarded(x, chance) for name, x in zip(names, tensors, strict=True)} | {"softcap": 0.0})


def raises(error):
    def op(**_):
        raise error

    return op


def spoil(name, after):
    """The right op, and then one number changed: of `name`'s memory, `after` elements behind its end."""

    def op(**arguments):
        result = RIGHT(**arguments)
        x = arguments[name]
        end = x.storage_offset() + x.numel()
        whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        whole[end + after] += 1
        return result

    return op


RIGHT = swa_attn.decode
PLANTED = {
    "an error of torch": (raises(RuntimeError("CUDA error")), "RuntimeError: CUDA error"),
    "an error without a name": (raises(ValueError("bad shape")), "without op and argument: bad shape"),
    "a wrong number": (spoil("out", -1), r"out\[.* expected"),
    "a wrong lse": (spoil("lse", -1), r"lse\[.* expected"),
    "a write behind out": (spoil("out", 0), "wrote to byte .* of the memory of out"),
    "a write to an input": (spoil("q", -1), "wrote to byte .* of the memory of q"),
    "a write behind the cache": (spoil("v_cache", 3), "wrote to byte .* of the memory of v_cache"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_judge_finds(monkeypatch, name):
    judge.run(decode_call())
    op, message = PLANTED[name]
    monkeypatch.setattr(swa_attn, "decode", op)
    with pytest.raises(judge.WrongError, match=message):
        judge.run(decode_call())


def test_the_judge_finds_a_call_that_should_have_been_refused(monkeypatch):
    call = decode_call()
    call.arguments["block_table"][0, 1] = 9
    judge.run(call)
    monkeypatch.setattr(swa_attn, "decode", lambda out, lse, **_: (out, lse))
    with pytest.raises(judge.WrongError, match="accepted what the reference refuses: IndexError"):
        judge.run(call)


def test_the_judge_finds_a_wrong_slot(monkeypatch):
    def append(slot_mapping, **arguments):
        reference.append_kv(slot_mapping=slot_mapping + 1, **arguments)

    pools = {"k_cache": torch.zeros(2, 4, 1, 8), "v_cache": torch.zeros(2, 4, 1, 8)}
    new = {"key": torch.ones(1, 1, 8), "value": torch.ones(1, 1, 8), "slot_mapping": torch.tensor([3])}
    judge.run(Call("append_kv", new | pools))
    monkeypatch.setattr(swa_attn, "append_kv", append)
    with pytest.raises(judge.WrongError, match="differs from the reference in byte"):
        judge.run(Call("append_kv", new | pools))


ENDS = {
    "a crash": "print('ready'); print('case 1/7', flush=True); import os; os.abort()",
    "a hang": "print('ready'); print('case 1/7', flush=True); import time; time.sleep(60)",
}


@pytest.mark.parametrize("name", ENDS)
def test_the_watcher_finds(capsys, name):
    args = argparse.Namespace(backend="cpu", patience=1)
    assert ops_fuzz.watch(args, [sys.executable, "-c", ENDS[name]]) == 1
    assert "python tests/fuzz/ops_fuzz.py --backend cpu --case 1/7" in capsys.readouterr().out


def test_one_call_can_be_made_again(capsys):
    threads = torch.get_num_threads()
    try:
        assert ops_fuzz.worker(argparse.Namespace(backend="reference", case="1/1", seconds=0)) == 0
    finally:
        torch.set_num_threads(threads)
    assert str(make_call("1/1", "reference")) in capsys.readouterr().out
