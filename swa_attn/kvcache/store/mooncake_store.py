"""Records in Mooncake Store."""

import errno
from collections.abc import Sequence
from typing import Any, TypeVar

from .base import Buffer
from .buffers import Bytes
from .remote import BadReply, RemoteOptions, RemoteStore

T = TypeVar("T")

# Of Mooncake's error codes, those that are answers and not failures.
_NO_SPACE = -200
_NOT_FOUND = -704


class MooncakeStore(RemoteStore):
    """Objects of a Mooncake cluster. Reading an object is what keeps it from being evicted there; `touch` asks whether it
    exists, which renews its lease.

    Its client has no time limits. A call that hangs costs a worker thread until it returns; its request ends all the same
    after `slow_seconds`, as a miss or a refusal.

    `client`: a `mooncake.store.MooncakeDistributedStore` on which `setup` was called; it is not closed here.
    """

    def __init__(
        self, client: Any, *, namespace: bytes, layout: bytes = b"", options: RemoteOptions | None = None
    ) -> None:
        self._client = client
        super().__init__("Mooncake", namespace=namespace, layout=layout, options=options)

    def _send(self, name: str, header: bytes, payload: Sequence[Bytes], until: float) -> str | None:
        code = _whole("put", self._client.put_parts(name, header, *payload))
        return "full" if code == _NO_SPACE else _checked("put", code, None)

    def _fetch(self, name: str, nbytes: int, until: float) -> Buffer | str:
        """The size is asked for first: the client would make room for whatever the object holds."""
        length = _whole("get_size", self._client.get_size(name))
        if length == _NOT_FOUND:
            return "absent"
        if _checked("get_size", min(length, 0), length) != nbytes:
            return "size"
        value = self._client.get_buffer(name)
        if value is None:
            return "absent"
        return value if memoryview(value).nbytes == nbytes else "size"

    def _exists(self, name: str, until: float) -> bool:
        code = _whole("is_exist", self._client.is_exist(name))
        return _checked("is_exist", min(code, 0), code == 1)

    def _touch(self, name: str, until: float) -> bool:
        return self._exists(name, until)

    def _remove(self, name: str, until: float) -> None:
        code = _whole("remove", self._client.remove(name, force=True))
        _checked("remove", 0 if code == _NOT_FOUND else code, None)

    def _disconnect(self) -> None:
        pass


def _whole(call: str, code: object) -> int:
    if type(code) is not int:
        raise BadReply(f"Mooncake's {call} gave a {type(code).__name__}, expected an int")
    return code


def _checked(call: str, code: int, answer: T) -> T:
    if code:
        raise OSError(errno.EIO, f"Mooncake's {call} failed with code {code}")
    return answer
