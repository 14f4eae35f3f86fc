"""`.thaw` files in S3: frozen to it, served from it, and what is said when something is wrong there."""

import base64
import json
import pathlib
import random
import socket
import struct
import subprocess
import threading

import pytest
import s3_server
import thaw_container
from conftest import BUILD, tiny_model
from s3_server import Fault, xml_error
from test_snapshots import answers

THAW = BUILD / "bin" / "thaw"
MIB = 1 << 20


@pytest.fixture(scope="module")
def s3():
    server = s3_server.S3Server()
    server.make_bucket("models")
    yield server
    server.stop()


@pytest.fixture
def proxy(s3):
    made = s3_server.Proxy(s3)
    yield made
    made.stop()


@pytest.fixture
def cloud(proxy, tmp_path):
    return Cloud(proxy, tmp_path)


class Cloud:
    """Runs thaw with the proxy as its S3 and a cache of its own."""

    def __init__(self, proxy, tmp_path: pathlib.Path):
        self.proxy = proxy
        self.cache = tmp_path / "cache"
        self.env = {
            **s3_server.clean_environment(),
            **s3_server.CREDENTIALS,
            "AWS_ENDPOINT_URL": proxy.url,
            "THAW_CACHE_DIR": str(self.cache),
            "THAW_S3_PART_SIZE_MB": "5",
            "THAW_S3_MULTIPART_THRESHOLD_MB": "5",
        }

    def run(self, *arguments, env=None) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(THAW), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**self.env, **(env or {})},
        )

    def succeed(self, *arguments, env=None) -> str:
        result = self.run(*arguments, env=env)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def refusal(self, *arguments, env=None) -> str:
        result = self.run(*arguments, env=env)
        assert result.returncode == 1, result.stdout
        (line,) = result.stderr.splitlines()
        assert line.startswith("[thaw] "), line
        return line

    def freeze(self, model, url, *flags):
        return self.succeed("freeze", "--model", model, "--output", url, *flags)

    def info(self, url, *flags, env=None) -> dict:
        return json.loads(self.succeed("info", url, "--json", *flags, env=env))

    def snapshots(self) -> list[pathlib.Path]:
        return sorted(path for path in (self.cache / "snapshots").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def container():
    """24 MiB in regions of 1 MiB, of which no two places look alike."""
    noise = random.Random(1).randbytes(MIB)
    regions = [thaw_container.Region("weights", 0, noise)]
    encoded = thaw_container.encode(regions)
    checksum = thaw_container.crc32c(noise)
    # The same payload in each: one checksum in slow Python is enough.
    table = b"".join(
        thaw_container.ENTRY.pack(0, i, MIB, 2 * thaw_container.PAGE + i * MIB, checksum, 0)
        for i in range(24)
    )
    header = bytearray(encoded[: thaw_container.PAGE])
    header[8:16] = (24).to_bytes(8, "little")
    return bytes(header) + table.ljust(thaw_container.PAGE, b"\0") + noise * 24


@pytest.fixture(scope="module")
def bulky(tmp_path_factory):
    """The tiny model with 12 MB of text among its metadata, which a snapshot keeps."""
    model = tiny_model().read_bytes()
    name, text = b"test.padding", base64.b64encode(random.Random(2).randbytes(9 * MIB))
    entry = struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, len(text)) + text
    text += b"." * (-len(entry) % 32)  # tensors stay aligned
    entry = struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, len(text)) + text
    num_entries = struct.unpack_from("<Q", model, 16)[0]
    path = tmp_path_factory.mktemp("bulky") / "bulky.gguf"
    path.write_bytes(model[:16] + struct.pack("<Q", num_entries + 1) + entry + model[24:])
    return path


@pytest.fixture
def large(s3, container):
    s3.put("models", "large.thaw", container)
    return "s3://models/large.thaw"


def test_a_model_is_frozen_to_s3_and_served_from_it(cloud, serve, tmp_path, s3):
    url = "s3://models/a b/tiny+1.thaw"
    printed = cloud.freeze(tiny_model(), url)
    assert f"[thaw] {url} is ready" in printed
    local = tmp_path / "local.thaw"
    cloud.freeze(tiny_model(), local)
    assert s3.get("models", "a%20b/tiny%2B1.thaw") == local.read_bytes()
    report, expected = cloud.info(url, "--verify"), cloud.info(local, "--verify")
    assert report.pop("path") == url and expected.pop("path") == str(local)
    assert report == expected and report["checksums"] == "right"
    assert not cloud.snapshots(), "information needs no copy"

    server = serve("--snapshot", url, model="tiny", env=cloud.env)
    assert answers(server) == answers(serve())
    fetched = len(cloud.proxy.parts)
    assert fetched > 0
    serve("--snapshot", url, model="tiny", env=cloud.env)
    assert len(cloud.proxy.parts) == fetched, "the second start has a copy"
    assert [path.name for path in cloud.snapshots()] == ["tiny+1.thaw", "tiny+1.thaw.version"]


def test_shards_too(cloud, serve, s3):
    url = "s3://models/shards/w.thaw"
    cloud.freeze(tiny_model(), url, "-tp", 3)
    assert [key for key in s3.keys("models") if key.startswith("shards/")] == [
        "shards/w.rank1.thaw",
        "shards/w.rank2.thaw",
        "shards/w.thaw",
    ]
    server = serve("--snapshot", url, model="tiny", env=cloud.env)
    assert answers(server) == answers(serve())
    s3.request("DELETE", "/models/shards/w.rank2.thaw")
    assert "w.rank2.thaw is missing" in cloud.refusal("serve", "--snapshot", url)


def test_a_large_model_goes_in_parts_and_comes_in_parts(cloud, s3, bulky, tmp_path):
    url = "s3://models/bulky.thaw"
    # The test's server takes a second for a part's checksum.
    cloud.env["AWS_REQUEST_CHECKSUM_CALCULATION"] = "WHEN_REQUIRED"
    cloud.freeze(bulky, url)
    uploads = [r for r in cloud.proxy.requests if r.method == "PUT" and "partNumber=" in r.path]
    assert len(uploads) == 4 and s3.uploads("models") == 0
    assert not any("x-amz-checksum-crc32c" in request.headers for request in uploads)
    local = tmp_path / "local.thaw"
    cloud.freeze(bulky, local)
    assert s3.get("models", "bulky.thaw") == local.read_bytes()
    assert cloud.info(url, "--verify")["fingerprint"] == cloud.info(local)["fingerprint"]


def fetch(cloud, url, env=None) -> bytes:
    """The copy that serving would use; serving it then fails, since a container of noise is no model."""
    assert "no metadata" in cloud.refusal("serve", "--snapshot", url, env=env)
    (copy,) = [path for path in cloud.snapshots() if path.suffix == ".thaw"]
    return copy.read_bytes()


def test_ranges_run_at_once(cloud, large, container):
    together = threading.Barrier(6)

    def rule(request):
        # The first is alone: it finds the object's size. The others wait for each other.
        if request.is_part and request.range[0] > 0:
            together.wait(timeout=30)

    cloud.proxy.rule = rule
    # 24 MiB and two pages in parts of 4 MiB: one, and six that wait.
    assert fetch(cloud, large, {"THAW_S3_CONCURRENCY": "8"}) == container
    starts = sorted(request.range[0] for request in cloud.proxy.parts)
    assert len(starts) == 7 and not together.broken
    assert all("if-match" in request.headers for request in cloud.proxy.parts)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut_after=1000),
        Fault(cut_after=0),
        Fault(status=500),
        Fault(status=503),
        xml_error(503, "SlowDown"),
        xml_error(500, "InternalError"),
    ],
    ids=["cut", "cut at once", "500", "503", "slow down", "internal error"],
)
def test_what_fails_for_a_while_is_tried_again(cloud, large, container, fault):
    failed = []

    def rule(request):
        if request.method == "GET" and len(failed) < 4 and request.number % 2 == 1:
            failed.append(request)
            return fault
        return None

    cloud.proxy.rule = rule
    assert fetch(cloud, large) == container
    assert len(failed) == 4


def test_uploads_are_tried_again_part_by_part(cloud, s3, bulky):
    failed = []

    def rule(request):
        if request.method in ("PUT", "POST") and len(failed) < 3 and request.number % 2 == 0:
            failed.append(request)
            return Fault(status=500)
        return None

    cloud.proxy.rule = rule
    cloud.env["AWS_REQUEST_CHECKSUM_CALCULATION"] = "WHEN_REQUIRED"
    url = "s3://models/retried.thaw"
    cloud.freeze(bulky, url)
    assert len(failed) == 3 and s3.uploads("models") == 0
    assert cloud.info(url, "--verify")["checksums"] == "right"


def test_an_upload_that_fails_leaves_the_old_object_and_no_part(cloud, s3, bulky):
    s3.put("models", "kept.thaw", b"old")
    cloud.proxy.rule = lambda request: Fault(status=500) if "partNumber=2" in request.path else None
    line = cloud.refusal("freeze", "--model", bulky, "--output", "s3://models/kept.thaw")
    assert "s3://models/kept.thaw: the store failed, each time of several" in line
    parts = [request for request in cloud.proxy.requests if "partNumber=" in request.path]
    assert all("x-amz-checksum-crc32c" in request.headers for request in parts)
    assert s3.get("models", "kept.thaw") == b"old"
    assert s3.uploads("models") == 0, "its parts would be paid for"
    assert not cloud.snapshots()


@pytest.mark.parametrize("shorten", [1, 1000])
def test_answers_of_the_wrong_size_are_never_taken(cloud, large, container, shorten):
    cloud.proxy.rule = lambda request: Fault(shorten=shorten) if request.is_part else None
    line = cloud.refusal("serve", "--snapshot", large)
    assert large in line
    assert not [path for path in cloud.snapshots() if path.suffix == ".thaw"]
    cloud.proxy.rule = lambda request: None
    assert fetch(cloud, large) == container


def test_a_size_that_lies_is_refused(cloud, large):
    lies = {"Content-Range": "bytes 0-0/999999"}
    cloud.proxy.rule = lambda r: Fault(headers=lies) if r.range == (0, 0) else None
    assert large in cloud.refusal("info", large)
    assert large in cloud.refusal("serve", "--snapshot", large)


@pytest.mark.parametrize("knows_if_match", [True, False])
def test_an_object_that_is_replaced_while_it_is_read_is_refused(cloud, s3, large, container, knows_if_match):
    replaced = []

    def rule(request):
        if not knows_if_match:
            request.headers.pop("if-match", None)
        if request.is_part and request.range[0] > 0 and not replaced:
            replaced.append(request)
            s3.put("models", "large.thaw", container[:-1] + b"x")
        return None

    cloud.proxy.rule = rule
    line = cloud.refusal("serve", "--snapshot", large)
    assert "the object was replaced while it was read" in line
    assert not cloud.snapshots(), "nobody knows which bytes were of which"
    assert fetch(cloud, large) == container[:-1] + b"x"


def test_a_fetch_goes_on_where_it_broke_off(cloud, large, container):
    cloud.proxy.rule = lambda r: Fault(status=500) if r.is_part and r.range[1] > 15 * MIB else None
    assert "the store failed" in cloud.refusal("serve", "--snapshot", large)
    (partial,) = cloud.snapshots()
    have = partial.stat().st_size
    assert have > 0 and partial.read_bytes() == container[:have]
    cloud.proxy.rule = lambda request: None
    cloud.proxy.requests.clear()
    assert fetch(cloud, large) == container
    assert min(request.range[0] for request in cloud.proxy.parts) == have


def test_a_damaged_object_is_found(cloud, s3, container):
    s3.put("models", "bad.thaw", container[:-100] + b"x" + container[-99:])
    assert "weights 23 is damaged" in cloud.refusal("info", "s3://models/bad.thaw", "--verify")
    s3.put("models", "none.thaw", b"hello")
    assert "s3://models/none.thaw" in cloud.refusal("info", "s3://models/none.thaw")
    s3.put("models", "empty.thaw", b"")
    assert "s3://models/empty.thaw" in cloud.refusal("info", "s3://models/empty.thaw")


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_errors_say_what_would_help(cloud, large):
    assert "no such object" in cloud.refusal("info", "s3://models/nothing.thaw")
    assert "no such bucket" in cloud.refusal("info", "s3://no-such-bucket/a.thaw")
    frozen = cloud.refusal("freeze", "--model", tiny_model(), "--output", "s3://no-such-bucket/a.thaw")
    assert "no such bucket" in frozen
    assert "'Models' is no bucket's name" in cloud.refusal("info", "s3://Models/a.thaw")
    assert "no key" in cloud.refusal("freeze", "--model", tiny_model(), "--output", "s3://models")

    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    line = cloud.refusal("info", large, env=nobody)
    assert "no credentials" in line and "AWS_ACCESS_KEY_ID" in line

    refused = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{closed_port()}"}
    assert "refuses connections" in cloud.refusal("info", large, env=refused)
    assert "'nonsense' is no S3 endpoint" in cloud.refusal("info", large, "--s3-endpoint", "nonsense")

    cloud.proxy.rule = lambda request: xml_error(403, "AccessDenied", "Access Denied")
    line = cloud.refusal("serve", "--snapshot", large)
    assert "access was denied" in line and "HTTP 403 AccessDenied: Access Denied" in line
    redirect = xml_error(301, "PermanentRedirect")
    redirect.headers = {"x-amz-bucket-region": "eu-west-1"}
    cloud.proxy.rule = lambda request: redirect
    line = cloud.refusal("info", large)
    assert "region eu-west-1, not us-east-1" in line and "AWS_REGION=eu-west-1" in line
    cloud.proxy.rule = lambda r: xml_error(
        400, "AuthorizationHeaderMalformed", extra="<Region>eu-west-1</Region>"
    )
    assert "AWS_REGION=eu-west-1" in cloud.refusal("info", large)
    cloud.proxy.rule = lambda request: Fault(status=500)
    assert "the store failed, each time of several" in cloud.refusal("info", large)


def test_the_profile_is_where_aws_programs_look(cloud, large, tmp_path):
    (tmp_path / "credentials").write_text("[me]\naws_access_key_id = k\naws_secret_access_key = s\n")
    (tmp_path / "config").write_text(f"[profile me]\nregion = eu-north-1\nendpoint_url = {cloud.proxy.url}\n")
    env = {
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_REGION": "",
        "AWS_ENDPOINT_URL": "",
        "AWS_PROFILE": "me",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
    }
    assert cloud.info(large, env=env)["kinds"]["weights"]["regions"] == 24
    assert "Credential=k/" in cloud.proxy.requests[-1].headers["authorization"]
    assert "/eu-north-1/s3/" in cloud.proxy.requests[-1].headers["authorization"]


@pytest.fixture
def certificate(tmp_path):
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(command, check=True, capture_output=True)
    return paths


def test_tls_is_checked(cloud, s3, large, certificate):
    proxy = s3_server.Proxy(s3, certificate)
    try:
        env = {"AWS_ENDPOINT_URL": proxy.url}
        line = cloud.refusal("info", large, env=env)
        assert "no trusted TLS connection" in line and "AWS_CA_BUNDLE" in line
        assert "Certificate is untrusted" in line
        trusting = {**env, "AWS_CA_BUNDLE": str(certificate[0])}
        assert cloud.info(large, "--verify", env=trusting)["checksums"] == "right"
        missing = {**env, "AWS_CA_BUNDLE": "/nonexistent.pem"}
        assert "/nonexistent.pem" in cloud.refusal("info", large, env=missing)
        plain = {"AWS_ENDPOINT_URL": cloud.proxy.url.replace("http:", "https:")}
        assert "closed the connection, each time of several" in cloud.refusal("info", large, env=plain)
    finally:
        proxy.stop()


def test_a_server_that_never_answers_has_a_deadline(cloud, large):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "THAW_S3_TIMEOUT": "3"}
        assert large in cloud.refusal("info", large, env=env)


def test_a_cache_that_cannot_be_written_is_named(cloud, large):
    cloud.cache.write_text("a file is in its place")
    assert f"cannot make {cloud.cache}" in cloud.refusal("serve", "--snapshot", large)
