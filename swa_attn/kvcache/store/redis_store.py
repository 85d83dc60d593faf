"""Records in Redis."""

from collections.abc import Sequence
from typing import Any

from .buffers import Bytes
from .remote import RemoteOptions, RemoteStore


class RedisStore(RemoteStore):
    """Values of a Redis server. Give the server `maxmemory` and `maxmemory-policy allkeys-lru`: it evicts, and `touch`
    refreshes what it goes by.

    `url`: redis://host:port/database, rediss://..., or unix:///path/to/socket.
    """

    def __init__(
        self, url: str, *, namespace: bytes, layout: bytes = b"", options: RemoteOptions | None = None
    ) -> None:
        try:
            import redis
        except ModuleNotFoundError:
            raise ModuleNotFoundError("RedisStore needs a client: pip install 'swa-attn[redis]'") from None
        self._redis = redis
        options = options or RemoteOptions()
        patience = {"socket_timeout": options.slow_seconds, "socket_connect_timeout": options.slow_seconds}
        self._client = redis.Redis.from_url(url, retry=None, **patience)
        super().__init__(url, namespace=namespace, layout=layout, options=options)

    def _call(self, command: str, *arguments: str | bytes) -> Any:
        try:
            return self._client.execute_command(command, *arguments)
        except self._redis.RedisError as error:
            raise OSError(f"{command}: {error}") from error

    def _send(self, name: str, header: bytes, payload: Sequence[Bytes]) -> str | None:
        try:
            self._client.set(name, b"".join([header, *payload]))
        except self._redis.OutOfMemoryError:
            return "full"
        except self._redis.RedisError as error:
            raise OSError(f"SET: {error}") from error
        return None

    def _fetch(self, name: str, nbytes: int) -> bytes | str:
        length = self._call("STRLEN", name)
        if length != nbytes:
            return "size" if length else "absent"
        value = self._call("GET", name)
        return "absent" if value is None else value

    def _exists(self, name: str) -> bool:
        return bool(self._call("EXISTS", name))

    def _touch(self, name: str) -> None:
        self._call("TOUCH", name)

    def _remove(self, name: str) -> None:
        self._call("DEL", name)

    def _disconnect(self) -> None:
        self._client.close()
