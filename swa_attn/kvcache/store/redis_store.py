"""Records in Redis."""

from collections.abc import Callable, Sequence
from typing import Any

from .buffers import Bytes
from .remote import BadReply, RemoteOptions, RemoteStore

_SCHEMES = ("redis://", "rediss://", "unix://")
# Of what the client library takes from a URL: where, as whom, and how TLS is done. Times are RemoteOptions'.
_PLACE = {"host", "port", "path", "db", "connection_class"}
_OPTIONS = (
    "username", "password", "client_name", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_certfile", "ssl_keyfile",
    "ssl_password", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers",
)  # fmt: skip


class ErrorReply(OSError):
    """`code` is what the server's error begins with."""

    def __init__(self, command: str, code: str) -> None:
        super().__init__(f"{command}: the server answered with {code}")
        self.code = code


class RedisStore(RemoteStore):
    """Values of a Redis server. Give the server `maxmemory` and `maxmemory-policy allkeys-lru`: it evicts, and `touch`
    refreshes what it goes by.

    `url`: redis://user:password@host:port/database, rediss://... for TLS, or unix://user:password@/path/to/socket.
    Characters that mean something in URLs are percent-encoded in user and password. TLS verifies the server's certificate
    and name; options such as `?ssl_ca_certs=ca.pem&ssl_certfile=client.pem&ssl_keyfile=client.key` follow the database.
    No message of the store shows user, password or options. Raises ValueError for a URL that cannot be used.
    """

    def __init__(
        self, url: str, *, namespace: bytes, layout: bytes = b"", options: RemoteOptions | None = None
    ) -> None:
        try:
            import redis
        except ModuleNotFoundError:
            raise ModuleNotFoundError("RedisStore needs a client: pip install 'swa-attn[redis]'") from None
        from .redis_link import BOUNDED, Connections, Limits

        self._redis = redis
        self._limits = Limits()
        given = _parsed(url, redis.connection.parse_url)
        kind = given.pop("connection_class", redis.Connection)
        if kind is redis.SSLConnection:
            given.setdefault("ssl_check_hostname", True)  # old clients have another default
        # RESP3 would let the server speak unasked, and send the client elsewhere.
        self._connections = Connections(BOUNDED[kind], limits=self._limits, protocol=2, **given)
        try:
            self._connections.connection_class(**self._connections.connection_kwargs)
        except Exception as error:
            raise ValueError(f"url: the client refuses its options with {type(error).__name__}") from None
        super().__init__(_place(url, given), namespace=namespace, layout=layout, options=options)

    def _send(self, name: str, header: bytes, payload: Sequence[Bytes], until: float) -> str | None:
        try:
            self._ask(until, 0, lambda reply: reply == b"OK", "SET", name, b"".join([header, *payload]))
        except ErrorReply as error:
            if error.code == "OOM":
                return "full"
            raise
        return None

    def _fetch(self, name: str, nbytes: int, until: float) -> bytearray | str:
        """At most one byte more than wanted is asked for: it tells that the value is longer."""
        value = self._ask(
            until, nbytes + 1, lambda reply: isinstance(reply, bytearray), "GETRANGE", name, "0", str(nbytes)
        )
        if len(value) != nbytes:
            return "size" if value else "absent"
        return value

    def _exists(self, name: str, until: float) -> bool:
        return self._count("EXISTS", name, until) == 1

    def _touch(self, name: str, until: float) -> bool:
        return self._count("TOUCH", name, until) == 1

    def _remove(self, name: str, until: float) -> None:
        self._count("UNLINK", name, until)

    def _disconnect(self) -> None:
        self._connections.disconnect()

    def _count(self, command: str, name: str, until: float) -> int:
        """Of the one name, how many the server knows."""
        return self._ask(until, 0, lambda reply: type(reply) is int and reply <= 1, command, name)

    def _ask(self, until: float, largest: int, fits: Callable[[Any], bool], command: str, *words: str | bytes) -> Any:
        """The reply. Raises OSError alone, whose messages are of words of ours and of the operating system's."""
        errors = self._redis.exceptions
        try:
            with self._limits.of(until, largest):
                return self._exchange(fits, command, *words)
        except errors.ResponseError as error:
            raise ErrorReply(command, str(error)) from None
        except errors.InvalidResponse as error:
            raise BadReply(f"{command}: {error}") from None
        except (errors.TimeoutError, TimeoutError):
            raise TimeoutError(f"{command}: no answer in time") from None
        except Exception as error:
            raise OSError(f"{command}: {type(error).__name__}{_system_reason(error)}") from None

    def _exchange(self, fits: Callable[[Any], bool], command: str, *words: str | bytes) -> Any:
        errors = self._redis.exceptions
        connection = self._connections.get_connection()
        try:
            connection.send_command(command, *words)
            reply = connection.read_response()
            if not fits(reply):
                raise errors.InvalidResponse("a reply that does not fit the command")
            return reply
        except errors.ResponseError:
            raise
        except BaseException:
            connection.disconnect()  # what else comes on it may belong to this request
            raise
        finally:
            self._connections.release(connection)


def _parsed(url: str, parse: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """The client library's reading of a URL. Errors quote nothing of it: they could quote a password."""
    if not isinstance(url, str):
        raise TypeError(f"url: expected a str, got {type(url).__name__}")
    if not url.startswith(_SCHEMES):
        raise ValueError(f"url: expected one that begins with {', '.join(_SCHEMES)}")
    behind_host = url.partition("://")[2].replace("?", "/").replace("#", "/").partition("/")[2]
    try:
        given = None if "@" in behind_host else parse(url)
    except Exception:
        given = None
    if given is None:
        raise ValueError(
            "url: cannot be read; in user and password, characters that mean something in URLs must be percent-encoded"
        )
    if not given.keys() <= _PLACE.union(_OPTIONS):
        raise ValueError(f"url: has an option that is none of {', '.join(_OPTIONS)}")
    return given


def _place(url: str, given: dict[str, Any]) -> str:
    """The URL as messages show it."""
    scheme = url.partition("://")[0]
    if scheme == "unix":
        return f"unix://{given.get('path', '')}"
    host = given.get("host", "localhost")
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{given.get('port', 6379)}/{given.get('db', 0)}"


def _system_reason(error: BaseException | None) -> str:
    """What the operating system or TLS said, if one of them is behind the error."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return f": {error.strerror}"
        error = error.__context__
    return ""
