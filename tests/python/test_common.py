"""thaw_common: containers of both versions against the writer of tests/e2e and against `thaw info`."""

import ctypes
import io
import json
import os
import pathlib
import subprocess
import types

import pytest
import s3_server
import thaw_container
from conftest import BUILD, ROOT
from thaw_common import cloud, format, snapshot, telemetry, util

GOLDEN = ROOT / "tests" / "data" / "container"


class Tensor:
    """A torch tensor's duck type, in host memory."""

    def __init__(self, data: bytes, element_size: int = 2):
        self._buffer = ctypes.create_string_buffer(data, len(data))
        self._element_size = element_size
        self.device = types.SimpleNamespace(type="cpu")

    def numel(self):
        return len(self._buffer.raw) // self._element_size

    def element_size(self):
        return self._element_size

    def data_ptr(self):
        return ctypes.addressof(self._buffer)

    def is_contiguous(self):
        return True

    def raw(self) -> bytes:
        return self._buffer.raw


class Model:
    def __init__(self, *payloads: bytes):
        self.tensors = [Tensor(payload) for payload in payloads]

    def named_parameters(self):
        return [(f"layer.{i}", tensor) for i, tensor in enumerate(self.tensors)]

    def payloads(self):
        return [tensor.raw() for tensor in self.tensors]


PAYLOADS = (bytes(range(256)) * 40, b"\1\2" * 3, os.urandom(70000))


def blank() -> Model:
    return Model(*(bytes(len(payload)) for payload in PAYLOADS))


@pytest.mark.parametrize("name", ["v1", "v2", "v2-moved", "v2-packed"])
def test_golden_containers_of_both_versions_are_read(name):
    version, commit, regions = thaw_container.read(GOLDEN / f"{name}.thaw")
    with open(GOLDEN / f"{name}.thaw", "rb") as f:
        found = format.read_container(f)
        assert (found.version, found.engine_commit or "") == (version, commit)
        assert len(found.regions) == len(regions)
        for ours, theirs in zip(found.regions, regions, strict=True):
            assert format.KIND_NAMES[ours.kind] == theirs.kind and ours.logical_id == theirs.logical_id
            assert format.read_region(f, ours) == theirs.payload
        f.seek(0)
        assert format.read_header(f) == (len(regions), commit.encode().ljust(40, b"\0"))
        assert format.read_region_entry(f)[3] == regions[0].offset


def test_what_is_written_is_read_by_the_binary(tmp_path):
    path = tmp_path / "weights.thaw"
    stats = snapshot.freeze_model(Model(*PAYLOADS), path, engine_commit="a" * 40)
    assert stats["params"] == [(f"layer.{i}", len(p)) for i, p in enumerate(PAYLOADS)]
    assert (stats["num_regions"], stats["total_bytes"]) == (3, sum(map(len, PAYLOADS)))
    version, commit, regions = thaw_container.read(path)
    assert (version, commit) == (2, "a" * 40)
    assert [region.payload for region in regions] == list(PAYLOADS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.thaw"]
    told = subprocess.run(
        [str(BUILD / "bin" / "thaw"), "info", str(path), "--verify", "--json"], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["checksums"] == "right"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "restore", ["restore_model", "restore_model_pipelined", "restore_model_from_ram", "pinned"]
)
def test_a_module_is_restored_from_either_version(tmp_path, version, restore):
    path = tmp_path / "weights.thaw"
    regions = [thaw_container.Region("weights", i, payload) for i, payload in enumerate(PAYLOADS)]
    regions.append(thaw_container.Region("metadata", 0, b"{}"))
    path.write_bytes(thaw_container.encode(regions, version=version))
    model = blank()
    if restore == "pinned":
        pinned = snapshot.make_pinned_mmap(path)
        assert len(pinned) == pinned.size == path.stat().st_size
        stats = snapshot.restore_model_from_pinned_mmap(model, pinned)
        pinned.close()
    else:
        stats = getattr(snapshot, restore)(model, str(path))
    assert model.payloads() == list(PAYLOADS)
    assert stats["num_regions"] == 3 and stats["throughput_gb_s"] > 0
    if restore == "restore_model_from_ram":
        assert {"mmap_time_s", "dma_time_s", "dma_throughput_gb_s"} <= set(stats)


def test_what_does_not_fit_is_a_value_error_and_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "weights.thaw"
    snapshot.freeze_model(Model(*PAYLOADS), path)
    fewer = Model(b"\0" * len(PAYLOADS[0]))
    with pytest.raises(ValueError, match="3 regions of weights, the model 1 parameters"):
        snapshot.restore_model(fewer, path)
    other = Model(*(bytes(len(payload) + 2) for payload in PAYLOADS))
    with pytest.raises(ValueError, match="parameter layer.0"):
        snapshot.restore_model(other, path)
    assert not any(map(any, other.payloads()))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="weights 2 is damaged"):
        snapshot.restore_model(blank(), path)
    monkeypatch.setenv("THAW_VERIFY", "0")
    snapshot.restore_model(blank(), path)
    with pytest.raises(ValueError, match="no parameters"):
        snapshot.freeze_model(Model(), path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.thaw"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="40 bytes"):
        snapshot.freeze_model(Model(*PAYLOADS), path, engine_commit="short")
    with pytest.raises(ZeroDivisionError), format.replacing(path) as f:
        f.write(b"half")
        _ = 1 / 0
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    with (
        format.replacing(path),
        pytest.raises(BlockingIOError, match="somebody else"),
        format.replacing(path),
    ):
        pass


def test_headers_that_lie_are_value_errors():
    def written(count=0, **changes) -> bytearray:
        f = io.BytesIO()
        format.write_header(f, count)
        data = bytearray(f.getvalue())
        for at, value in changes.items():
            data[int(at[1:])] = value
        return data

    assert format.read_header(io.BytesIO(written(3))) == (3, bytes(40))
    f = io.BytesIO()
    format.write_header(f, 1, b"e" * 40)
    assert format.read_header(io.BytesIO(f.getvalue()))[1] == b"e" * 40
    for data, message in (
        (b"", "file too short"),
        (written(_0=0), "bad magic"),
        (written(_4=3), "unsupported version 3"),
        (written(5), "truncated region entry"),
        (written(_9=255, _10=255, _11=255), "regions; a file has at most"),
    ):
        with pytest.raises(ValueError, match=message):
            format.read_container(io.BytesIO(data))
    f = io.BytesIO()
    format.write_header(f, 1)
    format.write_region_entry(f, format.KIND_WEIGHTS, 7, 1 << 40, 4096)
    with pytest.raises(ValueError, match="not within the file"):
        format.read_container(f)
    with pytest.raises(ValueError, match="truncated region entry"):
        format.read_region_entry(io.BytesIO(b"123"))


def test_the_checksum_is_castagnolis_however_it_is_computed(monkeypatch):
    data = os.urandom(5000)
    for value in (b"", b"123456789", data, memoryview(data), bytearray(data)):
        assert format.crc32c(value) == thaw_container.crc32c(bytes(value))
    assert format.crc32c(data[1000:], format.crc32c(data[:1000])) == format.crc32c(data)
    monkeypatch.setattr(format, "_fastest", lambda: format._slow)
    assert format.crc32c(b"123456789") == 0xE3069283


@pytest.fixture
def choose_again(monkeypatch):
    """The ways to sum are looked for anew, and afterwards too."""
    for cached in (format._fastest, format._say_slow):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (format._fastest, format._say_slow):
        cached.cache_clear()


def test_the_extension_computes_the_checksum_where_it_is(choose_again):
    core = pytest.importorskip("thaw_vllm._core")
    assert format._fastest() is core.crc32c and format.has_fast_crc32c()
    data = os.urandom(5001)
    for value in (data, bytearray(data), memoryview(data)[1:]):
        for previous in (0, 7, 0xFFFFFFFF):
            assert core.crc32c(value, previous) == format._slow(memoryview(value), previous)
    with pytest.raises(BufferError):
        core.crc32c(memoryview(data)[::2], 0)


def test_without_a_library_it_is_slow_and_said_once(choose_again, monkeypatch, capsys):
    monkeypatch.delenv("THAW_QUIET", raising=False)
    monkeypatch.setattr(format, "_native", lambda: None)
    assert format.crc32c(b"123456789") == 0xE3069283
    format._fastest.cache_clear()
    monkeypatch.setattr(format, "_isal", lambda: None)
    assert not format.has_fast_crc32c() and capsys.readouterr().err.count("libisal") == 0
    assert format.crc32c(b"6789", format.crc32c(b"12345")) == 0xE3069283
    assert capsys.readouterr().err.count("libisal") == 1


def test_ranks_have_files_of_their_own():
    base = "s3://bucket/some.dir/weights"
    assert util.rank_snapshot_path(base, 0) is base
    assert util.rank_snapshot_path(base, 1) == base + ".rank1"
    assert util.rank_snapshot_path("weights.thaw", 3) == "weights.rank3.thaw"
    assert util.rank_snapshot_path("a.b/weights.thaw", 1) == "a.b/weights.rank1.thaw"
    with pytest.raises(ValueError, match="negative"):
        util.rank_snapshot_path(base, -1)


def test_switches_of_the_environment(monkeypatch, capsys):
    monkeypatch.delenv("THAW_ALLOW_PYTHON_FALLBACK", raising=False)
    monkeypatch.delenv("THAW_QUIET", raising=False)
    assert telemetry.strict_mode() and not telemetry.quiet_mode()
    telemetry.fallback_warning("mmap", OSError("no"), dst="pread")
    assert capsys.readouterr().err == "[thaw] mmap failed: OSError: no; falling back to pread\n"
    monkeypatch.setenv("THAW_ALLOW_PYTHON_FALLBACK", "1")
    monkeypatch.setenv("THAW_QUIET", "1")
    assert not telemetry.strict_mode()
    telemetry.fallback_warning("mmap", OSError("no"))
    assert not telemetry.check_pinned(types.SimpleNamespace(is_pinned=lambda: False), "x")
    assert telemetry.check_pinned(types.SimpleNamespace(is_pinned=lambda: True), "x")
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def s3():
    server = s3_server.S3Server()
    server.request("PUT", "/bucket")
    yield server
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch, tmp_path):
    for key, value in {**s3_server.CREDENTIALS, "AWS_ENDPOINT_URL": s3.url}.items():
        monkeypatch.setenv(key, value)
    for key in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(key, "/nonexistent")
    monkeypatch.setenv("THAW_CACHE_DIR", str(tmp_path / "cache"))
    return s3


def test_snapshots_in_s3(bucket, tmp_path, monkeypatch):
    uri = "s3://bucket/models/weights.thaw"
    snapshot.freeze_model(Model(*PAYLOADS), uri)
    told = []
    path = cloud.resolve_snapshot_path(uri, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == os.stat(path).st_size
    assert str(tmp_path / "cache" / "snapshots") in path and path.endswith("/weights.thaw")
    model = blank()
    snapshot.restore_model(model, uri)
    assert model.payloads() == list(PAYLOADS)
    # What has not changed is not fetched again; what has is.
    told.clear()
    assert cloud.resolve_snapshot_path(uri, progress=lambda *args: told.append(args)) == path and not told
    cloud.upload_snapshot(GOLDEN / "v1.thaw", uri)
    assert pathlib.Path(cloud.resolve_snapshot_path(uri)).read_bytes() == (GOLDEN / "v1.thaw").read_bytes()
    with pytest.raises(FileNotFoundError, match="no such object"):
        cloud.resolve_snapshot_path("s3://bucket/nothing.thaw")
    with pytest.raises(ValueError, match="names no object"):
        cloud.resolve_snapshot_path("s3://bucket")
    for scheme in ("gs", "http", "https"):
        assert cloud.is_remote(f"{scheme}://x/y")
        with pytest.raises(NotImplementedError, match=scheme):
            cloud.resolve_snapshot_path(f"{scheme}://x/y")
    assert cloud.resolve_snapshot_path("/some/file") == "/some/file" and not cloud.is_remote("weights.thaw")
    monkeypatch.setenv("THAW_S3_CONCURRENCY", "many")
    with pytest.raises(ValueError, match="THAW_S3_CONCURRENCY is 'many'"):
        cloud.resolve_snapshot_path(uri)
