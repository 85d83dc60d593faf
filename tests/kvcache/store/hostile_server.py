"""A server that speaks Redis's protocol and answers as it is told; with nothing told, it is a small healthy one."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

Reply = bytes | Callable[[threading.Event], Iterator[bytes]]  # the event: the server is being closed

CLOSE = b""  # in a script: the server closes the connection there


def trickle(first: bytes) -> Reply:
    """A byte now and then, each well within what one recv waits."""

    def script(closed: threading.Event) -> Iterator[bytes]:
        yield first
        while not closed.wait(0.03):
            yield b"1"

    return script


def flood(first: bytes) -> Reply:
    """As fast as it is taken, without end."""

    def script(closed: threading.Event) -> Iterator[bytes]:
        yield first
        while not closed.is_set():
            yield bytes(1 << 16)

    return script


def parts(*pieces: bytes) -> Reply:
    return lambda closed: iter(pieces)


def after(seconds: float, reply: bytes) -> Reply:
    def script(closed: threading.Event) -> Iterator[bytes]:
        closed.wait(seconds)
        yield reply

    return script


class HostileServer:
    """On the loopback interface, or on the socket file `path`. `replies[command]` is sent instead of a right answer;
    `asked` lists the commands that came. Closing ends all threads."""

    def __init__(self, path: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.replies: dict[str, Reply] = {}
        self.values: dict[bytes, bytes] = {}
        self.asked: list[str] = []
        self._tls = tls
        self._closed = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port = self._listener.getsockname()[1]
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen()
        self._start(self._accept)

    def __enter__(self) -> "HostileServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for each in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _start(self, target: Callable, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._sockets.append(connection)
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._sockets.append(connection)
            with connection, connection.makefile("rb") as lines:
                while line := lines.readline():
                    words = []
                    for _ in range(int(line[1:])):
                        words.append(lines.read(int(lines.readline()[1:])))
                        lines.read(2)
                    if not self._answer(connection, words):
                        return

    def _answer(self, connection: socket.socket, words: list[bytes]) -> bool:
        """False to close the connection."""
        command = words[0].decode()
        self.asked.append(command)
        reply = self.replies.get(command)
        if reply is None:
            reply = self._right(command, words[1:])
        for piece in [reply] if isinstance(reply, bytes) else reply(self._closed):
            if piece == CLOSE or self._closed.is_set():
                return False
            connection.sendall(piece)
        return True

    def _right(self, command: str, words: list[bytes]) -> bytes:
        if command == "SET":
            self.values[words[0]] = words[1]
        elif command in ("EXISTS", "TOUCH"):
            return b":%d\r\n" % (words[0] in self.values)
        elif command == "UNLINK":
            return b":%d\r\n" % (self.values.pop(words[0], None) is not None)
        elif command == "GETRANGE":
            value = self.values.get(words[0], b"")[: int(words[2]) + 1]
            return b"$%d\r\n%s\r\n" % (len(value), value)
        return b"+OK\r\n"
