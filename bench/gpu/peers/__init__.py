"""Other libraries' attention, one file each. A peer that cannot run a case says why; none is left out silently."""

from .fa3 import Fa3
from .fa4 import Fa4
from .flashinfer import FlashInferBatch, FlashInferFmha, FlashInferXqa
from .flex import Flex
from .peer import Peer
from .varlen import Varlen
from .vllm_triton import VllmTriton

__all__ = ["Peer", "all_peers"]


def all_peers() -> list[Peer]:
    return [
        Fa3(),
        Fa4(),
        FlashInferBatch("fa3"),
        FlashInferBatch("fa2"),
        FlashInferFmha(),
        FlashInferXqa(),
        VllmTriton(),
        Varlen(),
        Flex(),
    ]
