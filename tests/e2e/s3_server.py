"""An S3 server as a process of its own (moto's), and a proxy before it that breaks what it is told to."""

import contextlib
import dataclasses
import http.client
import http.server
import os
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable

SERVER = """
import logging, sys
logging.disable(logging.INFO)
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
# moto wants a name, and checks no signature.
SOMEBODY = {"Authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request"}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def clean_environment() -> dict[str, str]:
    """This process's, without what would point S3 elsewhere or find credentials."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("AWS_", "THAW_")) and not key.lower().endswith("_proxy")
    }
    nowhere = {"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}
    return {**kept, **nowhere, "AWS_EC2_METADATA_DISABLED": "true"}


class S3Server:
    """Ends when its standard input does, so it never outlives the tests."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=clean_environment(),
        )
        line = self.process.stdout.readline()
        assert line.strip().isdigit(), "moto did not start; `make setup` installs it"
        self.port = int(line)
        self.url = f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=SOMEBODY)
        request.add_header("Content-Type", "application/octet-stream")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as reply:
            return reply.read()

    def make_bucket(self, name: str):
        self.request("PUT", f"/{name}")

    def put(self, bucket: str, key: str, body: bytes):
        self.request("PUT", f"/{bucket}/{key}", body)

    def get(self, bucket: str, key: str) -> bytes:
        return self.request("GET", f"/{bucket}/{key}")

    def keys(self, bucket: str) -> list[str]:
        return re.findall(r"<Key>([^<]*)</Key>", self.request("GET", f"/{bucket}?list-type=2").decode())

    def uploads(self, bucket: str) -> int:
        """Multipart uploads that were begun and neither completed nor aborted."""
        return self.request("GET", f"/{bucket}?uploads").decode().count("<UploadId>")

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@dataclasses.dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    number: int  # of all requests before it

    @property
    def range(self) -> tuple[int, int] | None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(found[1]), int(found[2])) if found else None

    @property
    def is_part(self) -> bool:
        """Of an object's content, and not only to find it."""
        return self.method == "GET" and self.range is not None and self.range != (0, 0)


@dataclasses.dataclass
class Fault:
    status: int = 0  # answered in place of the server
    body: bytes = b""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)  # over the server's
    cut_after: int | None = None  # bytes of the body, then the connection
    shorten: int = 0  # the body, with a Content-Length to match


def xml_error(status: int, code: str, message: str = "said the test", extra: str = "") -> Fault:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>"
    return Fault(status=status, body=body.encode())


class Proxy:
    """Passes requests on. `rule` may answer, break or delay each; `bytes_per_second` caps a connection."""

    def __init__(self, upstream: S3Server, certificate=None):
        self.upstream = upstream
        self.rule: Callable[[Request], Fault | None] = lambda request: None
        self.bytes_per_second: float | None = None
        self.delay_s = 0.0
        self.remembers = False  # objects, once they were read: moto copies all of one for each range
        self._objects: dict[str, tuple[dict, bytes]] = {}
        self.requests: list[Request] = []
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def pass_on(self):
                proxy._handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 256

            def handle_error(self, *_):
                pass  # a client that hung up

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme, host = "http", "127.0.0.1"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            scheme, host = "https", "localhost"
        self.url = f"{scheme}://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def parts(self) -> list[Request]:
        return [request for request in self.requests if request.is_part]

    def stop(self):
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        headers = {key.lower(): value for key, value in handler.headers.items()}
        with self._lock:
            request = Request(handler.command, handler.path, headers, len(self.requests))
            self.requests.append(request)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            fault = self.rule(request) or Fault()
            if self.delay_s:
                time.sleep(self.delay_s)
            if fault.status:
                answer = fault.status, {"Content-Type": "application/xml", **fault.headers}, fault.body
            else:
                status, replied, content = self._ask(request, body)
                content = content[: len(content) - fault.shorten]
                changed = {key.lower() for key in fault.headers}
                kept = {key: value for key, value in replied.items() if key.lower() not in changed}
                answer = status, {**kept, **fault.headers}, content
            self._answer(handler, *answer, fault.cut_after)
        finally:
            with self._lock:
                self.in_flight -= 1

    def _recall(self, request: Request):
        """A range of an object, out of memory."""
        with self._lock:
            if request.path not in self._objects:
                whole = Request("GET", request.path, {**request.headers}, -1)
                whole.headers.pop("range")
                status, headers, content = self._ask(whole, b"")
                assert status == 200
                self._objects[request.path] = headers, content
        headers, content = self._objects[request.path]
        first, last = request.range[0], min(request.range[1], len(content) - 1)
        headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return 206, headers, memoryview(content)[first : last + 1]

    def _ask(self, request: Request, body: bytes):
        if self.remembers and request.method == "GET" and request.range:
            return self._recall(request)
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream.port, timeout=60)
        with contextlib.closing(connection):
            headers = {k: v for k, v in request.headers.items() if k != "connection"}
            connection.request(request.method, request.path, body=body, headers=headers)
            reply = connection.getresponse()
            content = reply.read()
            dropped = {"content-length", "connection", "transfer-encoding", "date", "server"}
            kept = {k: v for k, v in reply.getheaders() if k.lower() not in dropped}
            return reply.status, kept, content

    def _answer(self, handler, status, headers, content, cut_after):
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        cut = cut_after is not None and cut_after < len(content)
        self._send(handler, content[:cut_after] if cut else content)
        if cut:
            handler.wfile.flush()
            handler.close_connection = True
            with contextlib.suppress(OSError):
                handler.connection.shutdown(2)

    def _send(self, handler, content):
        if self.bytes_per_second is None:
            handler.wfile.write(content)
            return
        started = time.monotonic()
        view = memoryview(content)
        step = max(1, min(256 << 10, int(self.bytes_per_second / 10)))
        for start in range(0, len(view), step):
            handler.wfile.write(view[start : start + step])
            due = min(start + step, len(view)) / self.bytes_per_second
            wait = due - (time.monotonic() - started)
            if wait > 0:
                time.sleep(wait)
