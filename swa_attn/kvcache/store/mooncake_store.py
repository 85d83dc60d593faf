"""Records in Mooncake Store."""

import errno
from collections.abc import Sequence
from typing import Any, TypeVar

from .base import Buffer
from .buffers import Bytes
from .remote import RemoteOptions, RemoteStore

T = TypeVar("T")

# Of Mooncake's error codes, those that are answers and not failures.
_NO_SPACE = -200
_NOT_FOUND = -704


class MooncakeStore(RemoteStore):
    """Objects of a Mooncake cluster. Reading an object is what keeps it from being evicted there; `touch` asks whether it
    exists, which renews its lease.

    `client`: a `mooncake.store.MooncakeDistributedStore` on which `setup` was called; it is not closed here.
    """

    def __init__(
        self, client: Any, *, namespace: bytes, layout: bytes = b"", options: RemoteOptions | None = None
    ) -> None:
        self._client = client
        super().__init__("Mooncake", namespace=namespace, layout=layout, options=options)

    def _send(self, name: str, header: bytes, payload: Sequence[Bytes]) -> str | None:
        code = self._client.put_parts(name, header, *payload)
        return "full" if code == _NO_SPACE else _checked("put", code, None)

    def _fetch(self, name: str, nbytes: int) -> Buffer | str:
        length = self._client.get_size(name)
        if length == _NOT_FOUND:
            return "absent"
        if _checked("get_size", min(length, 0), length) != nbytes:
            return "size"
        value = self._client.get_buffer(name)
        return "absent" if value is None else value

    def _exists(self, name: str) -> bool:
        code = self._client.is_exist(name)
        return _checked("is_exist", min(code, 0), code == 1)

    def _touch(self, name: str) -> None:
        self._exists(name)

    def _remove(self, name: str) -> None:
        code = self._client.remove(name, force=True)
        _checked("remove", 0 if code == _NOT_FOUND else code, None)

    def _disconnect(self) -> None:
        pass


def _checked(call: str, code: int, answer: T) -> T:
    if code:
        raise OSError(errno.EIO, f"Mooncake's {call} failed with code {code}")
    return answer
