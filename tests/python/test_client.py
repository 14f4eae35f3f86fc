"""The client against a server that misbehaves, blocking and async."""

import asyncio
import atexit
import contextlib
import json
import socket
import ssl
import threading
import time

import pytest
from thaw_vllm._client import Client
from thaw_vllm._errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BadRequestError,
    NotFoundError,
    RateLimitError,
    UnavailableError,
)
from thaw_vllm._transport import HttpEndpoint
from thaw_vllm._wire import Tls


def answer(body, status="200 OK", headers=""):
    data = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n{headers}\r\n"
    )
    return head.encode() + data


def events(*bodies, done=True):
    frames = [f"data: {json.dumps(body)}\n\n" for body in bodies] + (["data: [DONE]\n\n"] if done else [])
    text = "".join(f"{len(frame):x}\r\n{frame}\r\n" for frame in frames)
    end = "0\r\n\r\n" if done else ""
    return f"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{text}{end}".encode()


HANG_UP = b"hang up"


class Server:
    """Answers each request with the next of the script: bytes, HANG_UP, or a list of both."""

    def __init__(self, *script) -> None:
        self.script = list(script)
        self.requests: list[bytes] = []
        self.connections = 0
        self.ended = threading.Event()  # a client has hung up
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.serve, args=[connection], daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            buffer = b""
            while True:
                while b"\r\n\r\n" not in buffer:
                    data = connection.recv(65536)
                    if not data:
                        self.ended.set()
                        return
                    buffer += data
                head, _, rest = buffer.partition(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                while len(rest) < length:
                    rest += connection.recv(65536)
                self.requests.append(head + b"\r\n\r\n" + rest[:length])
                buffer = rest[length:]
                parts = self.script.pop(0)
                for part in parts if isinstance(parts, list) else [parts]:
                    if part == HANG_UP:
                        return
                    connection.sendall(part)

    def close(self) -> None:
        self.listener.close()


class Calls:
    """A client's calls as plain functions, whether it waits with a loop or without."""

    def __init__(self, client: Client, on_loop: bool) -> None:
        self.client = client
        self.on_loop = on_loop

    def call(self, method, path, body=None, **more):
        if self.on_loop:
            return asyncio.run(self.client.acall(method, path, body, **more))
        return self.client.call(method, path, body, **more)

    def stream(self, path, body, **more):
        if not self.on_loop:
            return list(self.client.stream(path, body, **more))

        async def collect():
            return [event async for event in self.client.astream(path, body, **more)]

        return asyncio.run(collect())


@pytest.fixture(params=[False, True], ids=["blocking", "async"])
def start(request):
    servers = []

    def make(*script, **options):
        server = Server(*script)
        servers.append(server)
        return server, Calls(Client(HttpEndpoint(server.url, "secret"), **options), request.param)

    yield make
    for server in servers:
        server.close()


def test_a_call_and_the_next_on_its_connection(start):
    server, calls = start(answer({"a": 1}), answer({"b": 2}))
    assert calls.call("POST", "/v1/x", {"question": "ü"}) == {"a": 1}
    assert calls.call("GET", "/v1/y") == {"b": 2}
    assert server.connections == 1
    assert server.requests[0].startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert b"authorization: Bearer secret" in server.requests[0]
    assert json.loads(server.requests[0].partition(b"\r\n\r\n")[2]) == {"question": "ü"}


@pytest.mark.parametrize(
    "status, kind",
    [("400 Bad", BadRequestError), ("404 Not Found", NotFoundError), ("500 Oops", APIStatusError)],
)
def test_errors_are_not_tried_again(start, status, kind):
    body = {"error": {"message": "no", "param": "top_p", "code": "c", "type": "t"}}
    server, calls = start(answer(body, status))
    with pytest.raises(kind, match="no") as caught:
        calls.call("POST", "/v1/x", {})
    assert (caught.value.param, caught.value.code, caught.value.status) == ("top_p", "c", int(status[:3]))
    assert len(server.requests) == 1


def test_a_full_queue_is_waited_for(start):
    full = answer({"error": {"message": "full"}}, "429 Too Many", "retry-after-ms: 30\r\nretry-after: 60\r\n")
    server, calls = start(full, full, answer({"well": True}))
    began = time.monotonic()
    assert calls.call("POST", "/v1/x", {}) == {"well": True}
    assert time.monotonic() - began >= 0.06
    assert len(server.requests) == 3 and server.connections == 1


def test_retries_have_an_end(start):
    loading = answer({"error": {"message": "loading"}}, "503 Unavailable", "retry-after-ms: 1\r\n")
    server, calls = start(loading, loading, max_retries=1)
    with pytest.raises(UnavailableError) as caught:
        calls.call("POST", "/v1/x", {})
    assert caught.value.retry_after_s == 0.001
    assert len(server.requests) == 2


def test_a_wait_beyond_the_deadline_is_not_begun(start):
    full = answer({"error": {"message": "full"}}, "429 Too Many", "retry-after: 60\r\n")
    server, calls = start(full)
    with pytest.raises(RateLimitError):
        calls.call("POST", "/v1/x", {}, timeout_s=5)
    assert len(server.requests) == 1


def test_should_not_retry_is_obeyed(start):
    server, calls = start(answer({"error": {"message": "never"}}, "503 U", "x-should-retry: false\r\n"))
    with pytest.raises(UnavailableError) as caught:
        calls.call("POST", "/v1/x", {})
    assert caught.value.retry_after_s is None
    assert len(server.requests) == 1


def test_a_call_may_have_retries_of_its_own(start):
    loading = answer({"error": {"message": "loading"}}, "503 Unavailable", "retry-after-ms: 1\r\n")
    server, calls = start(*[loading] * 4, answer({"well": True}))
    assert calls.call("POST", "/v1/x", {}, max_retries=4) == {"well": True}
    server.script = [loading] * 4
    with pytest.raises(UnavailableError):
        calls.stream("/v1/x", {}, max_retries=3)
    assert server.script == []


def test_a_connection_that_was_closed_while_idle_is_replaced(start):
    server, calls = start([answer({"a": 1}), HANG_UP], answer({"b": 2}), max_retries=0)
    assert calls.call("POST", "/v1/x", {}) == {"a": 1}
    assert calls.call("POST", "/v1/x", {}) == {"b": 2}


def test_a_hang_up_before_the_answer_is_tried_again(start):
    _, calls = start(HANG_UP, answer({"b": 2}))
    assert calls.call("POST", "/v1/x", {}) == {"b": 2}


def test_an_answer_that_is_cut(start):
    whole = answer({"a": "long" * 100})
    server, calls = start([whole[:-50], HANG_UP], [whole[:20], HANG_UP], answer({"b": 2}))
    for count in (1, 2):  # cut in the body, and in the head: nobody may have read of it, but it had begun
        with pytest.raises(APIConnectionError):
            calls.call("POST", "/v1/x", {})
        assert len(server.requests) == count


def test_deadlines(start):
    server, calls = start([b""], max_retries=0)
    began = time.monotonic()
    with pytest.raises(APITimeoutError):
        calls.call("POST", "/v1/x", {}, timeout_s=0.1)
    assert time.monotonic() - began < 5
    assert server.ended.wait(10), "the server was not told"


@pytest.mark.parametrize("on_loop", [False, True])
def test_nobody_there(on_loop):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    calls = Calls(Client(HttpEndpoint(f"http://127.0.0.1:{port}"), max_retries=0), on_loop)
    with pytest.raises(APIConnectionError, match=f"127.0.0.1:{port}"):
        calls.call("GET", "/v1/x")


@pytest.mark.parametrize("on_loop", [False, True])
def test_the_next_address_is_tried(on_loop, monkeypatch):
    server = Server(answer({"a": 1}))
    (there,) = socket.getaddrinfo("127.0.0.1", int(server.url.split(":")[2][:-3]), type=socket.SOCK_STREAM)
    no_such_family = (250, *there[1:])
    no_way = (*there[:4], ("255.255.255.255", 9))  # refused before anything is sent
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **keywords: [no_such_family, no_way, there])
    calls = Calls(Client(HttpEndpoint(server.url), max_retries=0), on_loop)
    assert calls.call("GET", "/v1/x") == {"a": 1}
    server.close()


@pytest.mark.parametrize("on_loop", [False, True])
def test_what_is_no_tls_is_no_connection(on_loop):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 this is no TLS\r\n\r\n")
                connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(APIConnectionError, match="TLS failed"):
            Calls(Client(HttpEndpoint(url), max_retries=0), on_loop).call("GET", "/v1/x")
        thread.join()


def test_tls_that_breaks_is_no_connection():
    def tls():
        made = Tls(ssl.create_default_context(), "localhost")
        made.feed(b"this is no TLS\r\n")
        return made

    for use in (Tls.handshake, Tls.decrypt, lambda broken: broken.encrypt(b"x")):
        with pytest.raises(APIConnectionError, match="TLS failed"):
            use(tls())


def test_a_stream(start):
    server, calls = start(events({"n": 1}, {"n": 2}), answer({"after": True}))
    assert calls.stream("/v1/x", {}) == [{"n": 1}, {"n": 2}]
    assert calls.call("GET", "/v1/x") == {"after": True}
    assert server.connections == 1


def test_a_stream_in_small_pieces(start):
    whole = b": ping\n\n".join([b"", b""]) + events({"text": "ü\n"}, {"n": 2})
    _, calls = start([whole[i : i + 3] for i in range(8, len(whole), 3)])
    assert calls.stream("/v1/x", {}) == [{"text": "ü\n"}, {"n": 2}]


def test_a_stream_that_is_cut(start):
    _, calls = start([events({"n": 1}, done=False), HANG_UP], max_retries=0)
    with pytest.raises(APIConnectionError):
        calls.stream("/v1/x", {})


def test_an_error_within_a_stream(start):
    _, calls = start(events({"n": 1}, {"error": {"message": "worker died", "code": "gone"}}, done=False))
    with pytest.raises(APIStatusError, match="worker died") as caught:
        calls.stream("/v1/x", {})
    assert caught.value.status == 0 and caught.value.code == "gone"


def test_a_stream_that_is_refused_and_then_not(start):
    full = answer({"error": {"message": "full"}}, "429 Too Many", "retry-after-ms: 1\r\n")
    _, calls = start(full, events({"n": 1}))
    assert calls.stream("/v1/x", {}) == [{"n": 1}]


def test_a_stream_that_stalls(start):
    server, calls = start([events({"n": 1}, done=False)], max_retries=0)
    with pytest.raises(APITimeoutError):
        calls.stream("/v1/x", {}, timeout_s=0.1)
    assert server.ended.wait(10)


def test_a_closed_stream_hangs_up():
    server = Server([events({"n": 1}, done=False)])
    stream = Client(HttpEndpoint(server.url)).stream("/v1/x", {})
    assert next(stream) == {"n": 1}
    assert not server.ended.is_set()
    stream.close()
    assert server.ended.wait(10)
    server.close()


async def test_a_cancelled_task_hangs_up():
    server = Server([b""])
    task = asyncio.create_task(Client(HttpEndpoint(server.url)).acall("POST", "/v1/x", {}))
    while not server.requests:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.ended.wait, 10)
    server.close()


def test_one_client_on_several_loops_and_threads():
    server = Server(*[answer({"n": n}) for n in range(12)])
    client = Client(HttpEndpoint(server.url))
    for _ in range(4):
        asyncio.run(client.acall("POST", "/v1/x", {}))
        client.call("POST", "/v1/x", {})
    assert server.connections == 1
    threads = [threading.Thread(target=client.call, args=["GET", "/v1/x"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 12
    server.close()


def test_the_interpreter_s_list_of_last_calls_does_not_grow():
    server = Server(*[answer({"n": n}) for n in range(101)])
    client = Client(HttpEndpoint(server.url))
    counts = []

    def calls():
        client.call("GET", "/v1/x")
        counts.append(atexit._ncallbacks())
        for _ in range(100):
            client.call("GET", "/v1/x")
        counts.append(atexit._ncallbacks())

    thread = threading.Thread(target=calls, daemon=True)
    thread.start()
    thread.join(60)
    assert len(counts) == 2 and counts[0] == counts[1]
    server.close()


def test_keys():
    url = "http://127.0.0.1:9"
    assert HttpEndpoint(url, " key\n").headers == (("authorization", "Bearer key"),)
    assert HttpEndpoint(url, " ").headers == HttpEndpoint(url).headers == ()
    with pytest.raises(ValueError, match="api_key must be printable ASCII"):
        HttpEndpoint(url, "a\nb")


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x", "http://", ""])
def test_urls_that_are_none(url):
    with pytest.raises(ValueError, match="base_url"):
        HttpEndpoint(url)
