"""Tests written for a GPU, run without one: device="cuda" means the CPU, and a question about the card gets an answer."""

import contextlib
import types

import torch
from peer_adapters import OutsideContract
from torch.overrides import TorchFunctionMode

LARGEST = 8 << 30  # bytes of one new tensor; tests that fill a card to provoke something mean a card
_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
_MOVES = {torch.Tensor.to, torch.Tensor.cuda}


def _on_cpu(device):
    """The device that is meant here: the CPU for any GPU."""
    if isinstance(device, bool) or not isinstance(device, (int, str, torch.device)):
        return device
    if isinstance(device, str):
        return "cpu" if device.startswith("cuda") else device
    return "cpu" if isinstance(device, int) or device.type == "cuda" else device


class CudaIsCpu(TorchFunctionMode):
    """Rewrites the device of every torch call; `.to(0)` and `.cuda()` stay where they are."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = _on_cpu(kwargs["device"])
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.Tensor.to:
            args = (args[0], *(_on_cpu(x) for x in args[1:]))
        if function in _FACTORIES:
            _refuse_if_too_large(function, args, kwargs)
        kwargs.pop("pin_memory", None)
        return function(*args, **kwargs)


def _refuse_if_too_large(function, args, kwargs) -> None:
    sizes = kwargs.get("size", args[0] if args and isinstance(args[0], (tuple, list, torch.Size)) else args)
    elements = 1
    for size in sizes:
        if isinstance(size, int):
            elements *= size
    if elements * (kwargs.get("dtype") or torch.float32).itemsize > LARGEST:
        raise OutsideContract(f"one tensor of more than {LARGEST >> 30} GiB, which means a card")


class _Inert:
    """A stream or an event: what it orders is in order here anyway."""

    def __init__(self, *args, **options):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: None


class _Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls, device=_on_cpu(device))


def _graphs(*args, **options):
    raise OutsideContract("CUDA graphs")


def install(capability: tuple[int, int]) -> None:
    """From here on, in this process: CUDA calls of torch mean the CPU, which claims to be a card of `capability`."""
    properties = types.SimpleNamespace(
        name="CPU", major=capability[0], minor=capability[1], total_memory=80 << 30, multi_processor_count=132
    )
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": capability,
        "get_device_properties": properties,
        "get_device_name": "CPU",
        "synchronize": None,
        "empty_cache": None,
        "set_device": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "mem_get_info": (64 << 30, 80 << 30),
        "current_stream": _Inert(),
        "is_current_stream_capturing": False,
        "manual_seed": None,
        "manual_seed_all": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **options: answer)
    torch.cuda.Stream = torch.cuda.Event = _Inert
    torch.cuda.CUDAGraph = torch.cuda.graph = _graphs
    torch.cuda.stream = torch.cuda.device = lambda *args: contextlib.nullcontext()
    torch.Generator = _Generator
    CudaIsCpu().__enter__()  # for the life of the process
