"""Stores on servers that answer with anything: misses and refusals, in bounded time and memory, and service afterwards."""

import contextlib
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
import traceback
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hostile_server import CLOSE, HostileServer, after, flood, parts, trickle
from store_faults import content, key_of
from test_store_remote import Redis, fetch, store_one
from test_store_remote import until as until_at

from swa_attn.kvcache.store import MooncakeStore, RedisStore, RemoteOptions
from swa_attn.kvcache.store.workers import WorkerPool

pytest.importorskip("xxhash", reason="xxhash is not installed: pip install 'swa-attn[disk]'")

SLOW, ASK, GRACE = 0.2, 0.1, 0.5
SLACK = 1.0  # for a loaded machine
NBYTES = 1000
SECRETS = ("us3r", "pa55", "k3y")


def until(condition) -> bool:
    return until_at(condition, 20, pause=0.005)


def options(**changes) -> RemoteOptions:
    settings = {"workers": 2, "slow_seconds": SLOW, "ask_seconds": ASK, "queue_seconds": 0.5, "close_seconds": 2.0}
    return RemoteOptions(**{**settings, "failures_to_trip": 2, "backoff": 0.005, "max_backoff": 0.02, **changes})


def redis_at(place: str, **changes) -> RedisStore:
    pytest.importorskip("redis", reason="the client is not installed: pip install 'swa-attn[redis]'")
    return RedisStore(place, namespace=b"m", options=options(**changes))


def on(server: HostileServer, **changes) -> RedisStore:
    return redis_at(f"redis://us3r:pa55@127.0.0.1:{server.port}/1", **changes)


def threads_of(store) -> list[threading.Thread]:
    return [*store._pool._threads, *store._askers._threads]


def failures(store) -> dict[str, int]:
    stats = store.stats()
    return {**stats.misses, **stats.refused, **stats.unanswered}


def works(store) -> bool:
    return store_one(store, 90, NBYTES) and store.contains(key_of(90)) and fetch(store, 90, NBYTES)


REPLIES = {
    "a length that is no number": b"$abc\r\n",
    "a number that is none": b":abc\r\n",
    "an empty number": b":\r\n",
    "a number with an underscore": b":1_0\r\n",
    "a negative length": b"$-7\r\n",
    "a negative number": b":-7\r\n",
    "100,000 digits": b":" + b"9" * 100_000 + b"\r\n",
    "null": b"$-1\r\n",
    "20,000 nested arrays": b"*1\r\n" * 20_000,
    "an array of 4 billion": b"*4294967295\r\n",
    "an empty array": b"*0\r\n",
    "a map": b"%1\r\n+a\r\n+b\r\n",
    "a push": b">3\r\n+MOVING\r\n:1\r\n+127.0.0.1:1\r\n",
    "50 GB": b"$53687091200\r\n" + bytes(1 << 16),
    "50 GB, all of them": flood(b"$53687091200\r\n"),
    "no end of a line": flood(b"+"),
    "a byte at a time": trickle(b":"),
    "a byte at a time, of a value": trickle(b"$1000\r\n"),
    "silence": after(2 * SLOW, b""),
    "an end before its length": parts(b"$100\r\nabc", CLOSE),
    "an end within a line": parts(b":1", CLOSE),
    "nothing but the end": parts(CLOSE),
    "a value that goes on": b"$5\r\nhello, you",
    "NUL bytes": bytes(64) + b"\r\n",
    "a NUL in a length": b"$\x00\r\n",
    "no UTF-8": b"-\xff\xfe\xfd\r\n",
    "an error": b"-ERR no\r\n",
    "an error that quotes the password": b"-pa55 is wrong, us3r\r\n",
    "a redirection": b"-MOVED 3999 127.0.0.1:1\r\n",
    "another reply's kind": b"+PONG\r\n",
}
COMMANDS = ("TOUCH", "SET", "GETRANGE", "EXISTS", "UNLINK", "AUTH", "SELECT", "CLIENT")


TAKE_LONG = {"a byte at a time, of a value", "silence"}


@pytest.mark.parametrize("what", [pytest.param(w, marks=[pytest.mark.slow] * (w in TAKE_LONG)) for w in REPLIES])
def test_whatever_a_command_is_answered_is_a_miss_in_time_and_then_service_goes_on(what, caplog):
    caplog.set_level(logging.DEBUG)
    for command in COMMANDS:
        with HostileServer() as server, on(server) as store:
            server.replies[command] = REPLIES[what]
            start = time.monotonic()
            into = np.full(NBYTES, 0xEE, np.uint8)
            put = store.put(key_of(1), [content(key_of(1), NBYTES)])
            get = store.get(key_of(2), [into])
            store.touch(key_of(3))
            store.delete(key_of(4))
            found = store.contains(key_of(5))
            assert time.monotonic() - start < ASK + SLACK, command  # what holds a step
            stored, hit = put.result(10), get.result(10)
            assert time.monotonic() - start < 2 * SLOW + GRACE + SLACK, command
            assert not found and not hit and (into == 0xEE).all(), command
            assert stored == (command in ("GETRANGE", "EXISTS", "UNLINK")) or command == "CLIENT", command
            assert all(thread.is_alive() for thread in threads_of(store)), command
            assert not {"internal", "closed"} & {*failures(store)} and store.stats().failed_jobs == 0, command
            server.replies.clear()
            assert until(lambda store=store: works(store)), command
    assert not [secret for secret in SECRETS if secret in caplog.text]


WRONG_KINDS = {
    "EXISTS": [b"+OK\r\n", b"$1\r\n1\r\n", b":2\r\n"],
    "TOUCH": [b"+OK\r\n", b":18446744073709551615\r\n"],
    "SET": [b":1\r\n", b"+QUEUED\r\n", b"$2\r\nOK\r\n"],
    "GETRANGE": [b"+OK\r\n", b":0\r\n"],
    "UNLINK": [b"+OK\r\n"],
}


@pytest.mark.parametrize("command", WRONG_KINDS)
def test_a_right_reply_to_another_command_closes_the_connection(command):
    for reply in WRONG_KINDS[command]:
        with HostileServer() as server, on(server) as store:
            assert until(lambda store=store: works(store))
            server.replies[command] = reply
            before = server.asked.count("AUTH")
            hit, stored, found = fetch(store, 90, NBYTES), store_one(store, 91, NBYTES), store.contains(key_of(90))
            store.delete(key_of(90))
            expected = (command != "GETRANGE", command not in ("TOUCH", "SET"), command != "EXISTS")
            assert (hit, stored, found) == expected, reply
            assert until(lambda store=store: failures(store) == {"bad_reply": 1}), reply
            server.replies.clear()
            assert until(lambda store=store: works(store))
            assert server.asked.count("AUTH") > before, reply


def test_values_of_another_length_are_taken_in_no_further_than_one_byte():
    with HostileServer() as server, on(server) as store:
        assert store_one(store, 1, NBYTES)
        (name,) = server.values
        whole = server.values[name]
        for value, reason in ((whole + b"x", "size"), (whole[:-1], "size"), (b"", "absent"), (whole * 99, "size")):
            server.values[name] = value
            assert not fetch(store, 1, NBYTES) and store.stats().misses.pop(reason)
        assert store.stats().misses == {"size": 3, "absent": 1} and store.stats().read_state == "closed"
        server.replies["GETRANGE"] = b"$%d\r\n%s\r\n" % (len(whole) + 2, whole + b"xx")
        assert not fetch(store, 1, NBYTES) and store.stats().misses["bad_reply"] == 1


@pytest.mark.parametrize(
    "reply", [flood(b"$53687091200\r\n"), flood(b"+"), b"*4294967295\r\n"], ids=["bulk", "line", "array"]
)
def test_no_reply_takes_memory(reply):
    with HostileServer() as server, on(server) as store:
        assert until(lambda: works(store))
        server.replies["GETRANGE"] = server.replies["EXISTS"] = reply
        tracemalloc.start()
        try:
            assert not fetch(store, 90, NBYTES) and not store.contains(key_of(90))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20, peak


def test_the_requests_of_one_put_share_its_time():
    with HostileServer() as server, on(server) as store:
        server.replies["TOUCH"] = after(0.7 * SLOW, b":0\r\n")
        server.replies["SET"] = after(0.7 * SLOW, b"+OK\r\n")
        assert not store_one(store, 1, NBYTES) and store.stats().refused == {"slow": 1}


def test_a_host_with_many_addresses_has_no_more_time(monkeypatch):
    """Addresses where connecting hangs: the backlog of their listener is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))] * 10
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        with redis_at("redis://many.invalid:6379/0") as store:
            start = time.monotonic()
            assert not fetch(store, 1, NBYTES) and store.stats().misses == {"slow": 1}
            assert time.monotonic() - start < SLOW + GRACE + SLACK
        for each in waiting:
            each.close()


def test_a_name_that_does_not_resolve_in_time_is_a_miss(monkeypatch):
    """Nothing can interrupt the resolver: the watch ends the request, and its thread comes back when it can."""
    answer = threading.Event()

    def resolve(*_, **__):
        answer.wait(20)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with redis_at("redis://slow.invalid:6379/0") as store:
        start = time.monotonic()
        futures = [store.get(key_of(i), [np.empty(9, np.uint8)]) for i in range(5)]
        assert not store.contains(key_of(9)) and not any(future.result(10) for future in futures)
        assert time.monotonic() - start < 1.0 + SLOW + GRACE + SLACK
        assert store.stats().misses == {"slow": 2, "late": 3}
        answer.set()


def test_a_large_value_goes_to_a_server_that_takes_it_slowly():
    """Sending has the same deadline: nobody reads what is sent here."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        redis_at(f"redis://127.0.0.1:{listener.getsockname()[1]}/0") as store,
    ):
        start = time.monotonic()
        assert not store.put(key_of(1), [np.zeros(32 << 20, np.uint8)]).result(10)
        assert time.monotonic() - start < SLOW + GRACE + SLACK and store.stats().refused == {"slow": 1}


# What holds a step


def test_questions_wait_together_for_little_more_than_one_of_them():
    with HostileServer() as server, on(server, backoff=5.0, max_backoff=5.0, slow_seconds=2.0) as store:
        server.replies["EXISTS"] = after(0.6, b":1\r\n")
        start = time.monotonic()
        assert not any(store.contains(key_of(i)) for i in range(200))
        assert time.monotonic() - start < ASK + SLACK / 2
        assert store.stats().unanswered == {"late": 1, "tripped": 199} and store.stats().ask_state == "open"
        assert store_one(store, 1, NBYTES)  # nothing else is kept from the server


def test_a_chain_counts_as_far_as_it_was_answered_in_time():
    with HostileServer() as server, on(server) as store:
        keys = [key_of(i) for i in range(100)]
        assert all(f.result(10) for f in [store.put(key, [b"x"]) for key in keys[:50]])
        assert until(lambda: store.leading(keys) == 50) and store.leading(keys[50:]) == 0 == store.leading([])
        server.replies["EXISTS"] = after(0.04, b":1\r\n")
        start = time.monotonic()
        assert 1 <= store.leading(keys) <= 1 + ASK / 0.04
        assert time.monotonic() - start < ASK + SLACK / 2


def test_a_question_does_not_wait_behind_errands_and_reads():
    with HostileServer() as server, on(server, slow_seconds=5.0, ask_seconds=2.0) as store:
        assert store_one(store, 1, NBYTES)
        server.replies["UNLINK"] = server.replies["GETRANGE"] = after(1.0, b":1\r\n")
        for i in range(2, 12):
            store.delete(key_of(i))
            store.get(key_of(i), [bytearray(9)])
        start = time.monotonic()
        assert store.contains(key_of(1)) and time.monotonic() - start < 0.9
        server.replies.clear()


def test_a_deletion_holds_from_the_call_on_and_a_later_put_undoes_it():
    with HostileServer() as server, on(server, slow_seconds=5.0) as store:
        assert store_one(store, 1, NBYTES) and store_one(store, 2, NBYTES)
        server.replies["UNLINK"] = after(0.2, b":1\r\n")
        store.delete(key_of(1))
        store.delete(key_of(2))  # waits for the first
        assert not store.contains(key_of(1)) and not fetch(store, 2, NBYTES)
        assert store_one(store, 2, NBYTES) and fetch(store, 2, NBYTES)
        server.replies.clear()
        assert until(lambda: not store._leaving) and fetch(store, 2, NBYTES)


# Mooncake


class FakeMooncake:
    """The calls that the store makes, and what the tests do to one of them."""

    def __init__(self):
        self.values, self.fault = {}, {}
        self.hang, self.hanging = threading.Event(), 0

    def _call(self, name, right):
        fault = self.fault.get(name)
        if fault == "hang":
            self.hanging += 1
            self.hang.wait(20)
        elif isinstance(fault, type) and issubclass(fault, BaseException):
            raise fault(*(("utf-8", b"\xff", 0, 1, "no") if fault is UnicodeDecodeError else ("pa55",)))
        elif fault is not None:
            return fault[0]
        return right()

    def put_parts(self, name, *parts):
        return self._call("put_parts", lambda: self.values.update({name: b"".join(parts)}) or 0)

    def get_size(self, name):
        return self._call("get_size", lambda: len(self.values[name]) if name in self.values else -704)

    def get_buffer(self, name):
        return self._call("get_buffer", lambda: self.values.get(name))

    def is_exist(self, name):
        return self._call("is_exist", lambda: int(name in self.values))

    def remove(self, name, force):
        return self._call("remove", lambda: 0 if self.values.pop(name, None) else -704)


@pytest.fixture
def mooncake():
    client = FakeMooncake()
    yield client
    client.hang.set()


def over(client, **changes) -> MooncakeStore:
    return MooncakeStore(client, namespace=b"m", options=options(**changes))


CALLS = ("put_parts", "get_size", "get_buffer", "is_exist", "remove")
RAISED = (RecursionError, MemoryError, ValueError, UnicodeDecodeError, OSError, KeyError, SystemExit, KeyboardInterrupt)


@pytest.mark.parametrize("call", CALLS)
def test_whatever_mooncakes_client_raises_or_gives_is_a_miss(mooncake, call, caplog):
    caplog.set_level(logging.DEBUG, "swa_attn.kvcache.store.remote")
    faults = [*RAISED, (None,), ("x",), (1.5,), (b"short",), (-1,), (True,)]
    for fault in faults:
        with over(mooncake) as store:
            assert works(store)
            mooncake.fault[call] = fault
            found, hit, stored = store.contains(key_of(90)), fetch(store, 90, NBYTES), store_one(store, 91, NBYTES)
            store.touch(key_of(90))
            store.delete(key_of(90))
            assert found == (call != "is_exist"), fault
            assert hit == (call not in ("get_size", "get_buffer")), fault
            assert stored == (call not in ("put_parts", "is_exist")), fault
            mooncake.fault.clear()
            assert until(lambda store=store: works(store)), fault
            assert all(thread.is_alive() for thread in threads_of(store)), fault
            assert store.stats().failed_jobs == 0
        mooncake.values.clear()


def test_mooncakes_client_is_not_asked_for_an_object_of_another_size(mooncake):
    with over(mooncake) as store:
        assert store_one(store, 1, NBYTES)
        (name,) = mooncake.values
        mooncake.values[name] *= 1000
        mooncake.fault["get_buffer"] = AssertionError
        assert not fetch(store, 1, NBYTES) and store.stats().misses == {"size": 1}


@pytest.mark.parametrize(
    "call",
    ["get_buffer", "put_parts", *(pytest.param(c, marks=pytest.mark.slow) for c in ("get_size", "is_exist", "remove"))],
)
def test_a_call_that_never_returns_costs_a_thread_and_no_request(mooncake, call):
    with over(mooncake, workers=3) as store:
        assert works(store)
        mooncake.fault[call] = "hang"
        start = time.monotonic()
        into = [np.full(NBYTES, 0xEE, np.uint8) for _ in range(4)]
        gets = [store.get(key_of(90), [each]) for each in into]
        puts = [store.put(key_of(i), [content(key_of(i), NBYTES)]) for i in range(91, 95)]
        store.touch(key_of(90))
        found = store.contains(key_of(90))
        store.delete(key_of(89))
        assert time.monotonic() - start < ASK + SLACK
        hits, stored = [get.result(10) for get in gets], [put.result(10) for put in puts]
        assert time.monotonic() - start < 1.0 + SLOW + GRACE + SLACK
        assert found == (call != "is_exist")
        assert call not in ("get_size", "get_buffer") or not any(hits)
        assert call not in ("put_parts", "is_exist") or not any(stored)
        assert call != "remove" or (all(hits) and all(stored))
        assert failures(store).keys() <= {"slow", "late", "tripped"}
        assert until(lambda: mooncake.hanging >= 1)
        del mooncake.fault[call]
        mooncake.hang.set()  # what comes now comes too late
        assert until(lambda: works(store))
        assert all((each == 0xEE).all() for each, hit in zip(into, hits, strict=True) if not hit)
        assert store.stats().failed_jobs == 0


# Threads


def test_a_job_that_raises_is_logged_counted_and_costs_no_thread(caplog):
    pool = WorkerPool("tested", 2, 1, 100, 1 << 20)
    done = threading.Semaphore(0)

    def fail(error: BaseException):
        def job(staging):
            done.release()
            raise error

        return job

    errors = [ValueError("pa55"), SystemExit(1), KeyboardInterrupt(), RecursionError(), MemoryError(), GeneratorExit()]
    for error in errors:
        assert pool.submit_read(fail(error)) and pool.submit_write(fail(error), 10)
    for _ in range(2 * len(errors)):
        assert done.acquire(timeout=5)
    assert until(lambda: pool.submit_write(lambda staging: done.release(), 1 << 20))  # none counts as waiting
    assert done.acquire(timeout=5) and pool.failed_jobs == 2 * len(errors)
    assert "ValueError" in caplog.text and "pa55" not in caplog.text
    assert all(thread.is_alive() for thread in pool._threads) and pool.close(5)


# Who we are, and TLS


URLS = [
    "redis://us3r:pa55@127.0.0.1:notaport/0",
    "redis://us3r:pa/55@127.0.0.1:6379/0",
    "redis://us3r:1234#pa55@127.0.0.1:6379/0",
    "redis://us3r:12?pa55=pa55@127.0.0.1/0",
    "redis://us3r:pa55\u2100@127.0.0.1:6379/0",
    "redis://us3r:pa55@[::1/0",
    "unix://us3r:12/pa55@/tmp/socket",
    "redis://us3r:pa55@127.0.0.1:6379/0?pa55=1",
    "redis://us3r:pa55@127.0.0.1:6379/0?socket_timeout=99",
    "redis://us3r:pa55@127.0.0.1:6379/0?ssl_password=k3y",
    "rediss://us3r:pa55@127.0.0.1:6379/0?ssl_cert_reqs=pa55",
    "rediss://us3r:pa55@127.0.0.1:6379/0?ssl_password=k3y&ssl_min_version=pa55",
    "http://us3r:pa55@127.0.0.1:6379/0",
    "us3r:pa55",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_cannot_be_used_is_one_line_that_quotes_nothing(url):
    with pytest.raises(ValueError, match="url: ") as error:
        redis_at(url)
    text = "".join(traceback.format_exception_only(error.value)) + str(error.value.__cause__)
    assert error.value.__suppress_context__ or error.value.__context__ is None
    assert "\n" not in str(error.value) and not [s for s in (*SECRETS, "12") if s in text]


NO_TIMES = [("slow_seconds", 0), ("ask_seconds", float("nan")), ("backoff", float("inf")), ("ask_seconds", None)]
NO_COUNTS = [("workers", -1), ("workers", 2.5), ("max_waiting_reads", 0), ("max_writers", True)]


@pytest.mark.parametrize(
    "name, value, expected",
    [(*x, "a positive, finite number") for x in NO_TIMES] + [(*x, "an integer of at least 1") for x in NO_COUNTS],
)
def test_options_are_positive_and_finite(name, value, expected):
    with pytest.raises(ValueError, match=f"{name}: expected {expected}, got {value}"):
        options(**{name: value})


def test_as_many_bytes_may_wait_as_there_is_memory():
    assert options(max_pending_write_bytes=1 << 40).max_pending_write_bytes == 1 << 40


def test_messages_show_where_and_not_who(caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    places = {
        f"redis://us3r:pa55@127.0.0.1:{port}/3": f"redis://127.0.0.1:{port}/3",
        f"redis://127.0.0.1:{port}?username=us3r&password=pa55": f"redis://127.0.0.1:{port}/0",
        f"redis://:pa55@[::1]:{port}": f"redis://[::1]:{port}/0",
        f"rediss://us3r:pa55@127.0.0.1:{port}/0?ssl_password=k3y": f"rediss://127.0.0.1:{port}/0",
        f"unix://us3r:pa55@{tmp_path}/none": f"unix://{tmp_path}/none",
    }
    for url, place in places.items():
        with redis_at(url) as store:
            for i in range(3):
                assert not fetch(store, i, NBYTES) and not store_one(store, i, NBYTES) and not store.contains(key_of(i))
            store.delete(key_of(1))
            store.touch(key_of(1))
            shown = f"{store!r} {store.stats()!r} {store._connections!r} {store._reading!r}"
            assert not [secret for secret in SECRETS if secret in shown]
        assert f"{place}: " in caplog.text and f"reads from {place}" in caplog.text
    assert not [secret for secret in SECRETS if secret in caplog.text]


class Proxy:
    """Ends TLS in front of a server without."""

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self._context, self._target = context, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets, self._threads = [self._listener], []
        self._run(self._accept)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _run(self, target, *args):
        self._threads.append(threading.Thread(target=self._quietly, args=(target, *args), daemon=True))
        self._threads[-1].start()

    def _quietly(self, target, *args):
        with contextlib.suppress(OSError):
            target(*args)

    def _accept(self):
        while True:
            self._run(self._join, self._listener.accept()[0])

    def _join(self, client):
        self._sockets.append(client)
        client = self._context.wrap_socket(client, server_side=True)
        server = socket.create_connection(("127.0.0.1", self._target))
        self._sockets += [client, server]
        self._run(self._pump, server, client)
        self._pump(client, server)

    def _pump(self, source, target):
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        finally:
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA, and what it signed: a server called localhost and a client. And another CA."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for ca in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-subj", f"/CN={ca}", "-days", "2")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    for who in ("server", "client"):
        openssl("req", *key, "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{who}.csr", "-out", f"{who}.pem", *signed)
    return folder


def server_context(folder, client_needed: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if client_needed:
        context.load_verify_locations(folder / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


USER = "user us3r on >pa55/# ~swa2-* +exists +touch +set +getrange +unlink +select"


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A real server that lets one user in, with the rights that the documentation names."""
    server = Redis(tmp_path_factory.mktemp("locked"), *f"--{USER}".split(), "--user", "default", "off")
    yield server
    server.stop()


TLS = [
    ("localhost", "ssl_ca_certs={}/ca.pem", False, True),
    ("localhost", "ssl_ca_certs={}/ca.pem&ssl_certfile={}/client.pem&ssl_keyfile={}/client.key", True, True),
    ("localhost", "ssl_ca_certs={}/ca.pem", True, False),  # without the client's certificate
    ("127.0.0.1", "ssl_ca_certs={}/ca.pem", False, False),  # not the name in the server's
    ("127.0.0.1", "ssl_ca_certs={}/ca.pem&ssl_check_hostname=false", False, True),
    ("localhost", "ssl_ca_certs={}/other.pem", False, False),
    ("localhost", "", False, False),  # no authority that this system trusts
    ("localhost", "ssl_cert_reqs=none", False, True),
]


@pytest.mark.parametrize("host, query, client_needed, accepted", TLS)
def test_tls_verifies_both_ends_and_passwords_are_asked_for(
    locked, certificates, caplog, host, query, client_needed, accepted
):
    caplog.set_level(logging.DEBUG)
    options = query.replace("{}", str(certificates))
    with Proxy(server_context(certificates, client_needed), locked.port) as proxy:
        patient = {"slow_seconds": 5.0, "ask_seconds": 5.0}
        with redis_at(f"rediss://us3r:pa55%2F%23@{host}:{proxy.port}/1?{options}", **patient) as store:
            assert works(store) == accepted
            if accepted:
                store.delete(key_of(90))
                assert until(lambda: not store._leaving) and not store.contains(key_of(90))
            assert bool(store.stats().refused) != accepted
        if client_needed and accepted:
            with redis_at(f"rediss://us3r:pa56@{host}:{proxy.port}/1?{options}", **patient) as stranger:
                assert not works(stranger) and not fetch(stranger, 90, NBYTES)
                assert stranger.stats().misses == {"io_error": 1} and "WRONGPASS" in caplog.text
    assert not [secret for secret in SECRETS if secret in caplog.text]


def test_the_documented_rights_are_those_of_the_tests():
    assert USER in (Path(__file__).parents[3] / "docs" / "store.md").read_text().replace("a-password", "pa55/#")


def over_tls(server: HostileServer, folder) -> RedisStore:
    return redis_at(f"rediss://localhost:{server.port}?ssl_ca_certs={folder}/ca.pem")


def test_a_handshake_that_does_not_come_has_the_same_deadline(certificates):
    for context in (None, server_context(certificates)):
        with HostileServer(tls=context) as server, over_tls(server, certificates) as store:
            server.replies["TOUCH"] = trickle(b":")
            start = time.monotonic()
            assert not store_one(store, 1, NBYTES) and time.monotonic() - start < SLOW + GRACE + SLACK
            server.replies.clear()
            assert context is None or until(lambda store=store: works(store))


def test_a_socket_of_the_file_system_is_bounded_as_well(tmp_path):
    with HostileServer(path=str(tmp_path / "s")) as server, redis_at(f"unix://us3r:pa55@{tmp_path}/s") as store:
        assert until(lambda: works(store)) and "AUTH" in server.asked
        for reply in (trickle(b":"), b"*1\r\n" * 20_000, flood(b"$53687091200\r\n")):
            server.replies["TOUCH"] = reply
            assert not store_one(store, 1, NBYTES)
            server.replies.clear()
            assert until(lambda: works(store))
