"""Connections to a Redis server that cannot be made to wait or to take in more than was asked for.

The client library knows how to connect (TCP, TLS, sockets of the file system), to authenticate and to choose a database.
What a server may send is bounded here, below all of that: `_Socket` lets every call wait for what is left of the request's
time, `_Replies` reads the four kinds of replies that the store's commands have and refuses everything else unread.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError, InvalidResponse, ResponseError

_CHUNK = 16 << 10
_MAX_LINE = 4096
_MAX_DIGITS = 19
# What an error reply may begin with. Its text is never used: servers quote the words of a command, AUTH's too.
_CODES = {
    "ASK", "BUSY", "CLUSTERDOWN", "ERR", "LOADING", "MASTERDOWN", "MISCONF", "MOVED", "NOAUTH", "NOPERM", "NOREPLICAS",
    "OOM", "READONLY", "TRYAGAIN", "WRONGPASS", "WRONGTYPE",
}  # fmt: skip


class Limits(threading.local):
    """Those of the request that the current thread makes."""

    def __init__(self) -> None:
        self._until: float | None = None
        self.largest = 0

    @contextmanager
    def of(self, until: float, largest: int) -> Iterator[None]:
        """`until` is in seconds of `time.monotonic`; `largest` bytes may be in a reply."""
        self._until, self.largest = until, largest
        try:
            yield
        finally:
            self._until, self.largest = None, 0

    @property
    def seconds(self) -> float | None:
        """What is left, None outside of a request. Raises TimeoutError when that is nothing."""
        if self._until is None:
            return None
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request's time is over")
        return left


class _Socket:
    """A connected socket, plain or TLS, whose calls wait for what is left of the request."""

    def __init__(self, connected: socket.socket, limits: Limits) -> None:
        self._connected, self._limits = connected, limits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connected, name)

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._connected.settimeout(self._limits.seconds)
            rest = rest[self._connected.send(rest) :]

    def recv(self, count: int) -> bytes:
        self._connected.settimeout(self._limits.seconds)
        return self._connected.recv(count)

    def recv_into(self, buffer: memoryview) -> int:
        self._connected.settimeout(self._limits.seconds)
        return self._connected.recv_into(buffer)

    def recv_now(self, count: int) -> bytes | None:
        """What has already come; None if nothing has."""
        self._connected.settimeout(0)
        try:
            return self._connected.recv(count)
        except OSError as error:  # of a plain socket, of a TLS one
            if isinstance(error, BlockingIOError) or type(error).__name__ == "SSLWantReadError":
                return None
            raise


class _Replies:
    """The client library's parser for RESP2, without what no command here is answered with: arrays, which nest, and
    everything that came later. Raises InvalidResponse, and then the connection is closed. Messages never quote a reply."""

    def __init__(self, **_: Any) -> None:
        self._connection: Any = None
        self._unread = bytearray()

    def on_connect(self, connection: Any) -> None:
        self._connection, self._unread = connection, bytearray()

    def on_disconnect(self) -> None:
        self._connection, self._unread = None, bytearray()

    def can_read(self, timeout: float = 0) -> bool:
        """Whether there is something that nobody asked for."""
        if not self._unread and (data := self._open().recv_now(1)) is not None:
            self._take(data)
        return bool(self._unread)

    def read_response(self, disable_decoding: bool = False, **_: Any) -> bytes | bytearray | int | ResponseError | None:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            code = rest.split(b" ", 1)[0].decode("ascii", "replace")
            return ResponseError(code if code in _CODES else "an unknown error")
        if kind == b":":
            return self._number(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._bulk(self._number(rest))
        raise InvalidResponse("a reply of a kind that was not asked for")

    def _number(self, digits: bytes) -> int:
        if not digits.isdigit() or len(digits) > _MAX_DIGITS:
            raise InvalidResponse("a reply with a number that is none, or negative")
        return int(digits)

    def _bulk(self, count: int) -> bytearray:
        if count > (largest := self._connection.limits.largest):
            raise InvalidResponse(f"a reply of {count} bytes, expected at most {largest}")
        data = bytearray(count + 2)
        have = min(len(self._unread), len(data))
        data[:have] = self._unread[:have]
        del self._unread[:have]
        with memoryview(data) as view:
            while have < len(data):
                if not (more := self._open().recv_into(view[have:])):
                    raise ConnectionError("the server closed the connection")
                have += more
        if data[-2:] != b"\r\n":
            raise InvalidResponse("a reply that does not end where it says")
        del data[-2:]
        return data

    def _line(self) -> bytes:
        searched = 0
        while (end := self._unread.find(b"\r\n", searched)) < 0:
            if len(self._unread) > _MAX_LINE:
                raise InvalidResponse(f"a line of more than {_MAX_LINE} bytes")
            searched = max(0, len(self._unread) - 1)
            self._take(self._open().recv(_CHUNK))
        line = bytes(self._unread[:end])
        del self._unread[: end + 2]
        return line

    def _take(self, data: bytes) -> None:
        if not data:
            raise ConnectionError("the server closed the connection")
        self._unread += data

    def _open(self) -> _Socket:
        if self._connection is None or self._connection._sock is None:
            raise ConnectionError("the connection is closed")
        return self._connection._sock


class _Bounded:
    """In front of one of the library's connections: its timeouts are what is left of the request, at every step."""

    def __init__(self, limits: Limits, **options: Any) -> None:
        self.limits = limits
        super().__init__(parser_class=_Replies, **options)

    # The library sets and reads both; per address of a host, for the TLS handshake, and around some reads.
    socket_timeout = property(lambda self: self.limits.seconds, lambda self, given: None)
    socket_connect_timeout = property(lambda self: self.limits.seconds, lambda self, given: None)

    def _connect(self) -> _Socket:
        return _Socket(super()._connect(), self.limits)


class _BoundedTCP(_Bounded, Connection):
    pass


class _BoundedTLS(_Bounded, SSLConnection):
    pass


class _BoundedUnix(_Bounded, UnixDomainSocketConnection):
    pass


class Connections(ConnectionPool):
    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # the library's shows passwords, in some versions


BOUNDED = {Connection: _BoundedTCP, SSLConnection: _BoundedTLS, UnixDomainSocketConnection: _BoundedUnix}
