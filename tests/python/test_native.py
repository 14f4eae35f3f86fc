"""The native module's names (`thaw`), on memory of this process; sglang's and vLLM's sides on stand-ins."""

import ctypes
import mmap
import sys
import types

import pytest
import thaw
import thaw_container
from test_common import PAYLOADS, Model, blank
from thaw_vllm import loader, snapshot

KINDS = ("weights", "kv_live_block", "metadata")


def request(kind, index, buffer):
    return (kind, index, ctypes.addressof(buffer), len(buffer.raw))


@pytest.fixture
def buffers():
    return [ctypes.create_string_buffer(payload, len(payload)) for payload in PAYLOADS]


def test_memory_to_a_file_and_back(tmp_path, buffers):
    path = tmp_path / "x.thaw"
    requests = [request(kind, 7, buffer) for kind, buffer in zip(KINDS, buffers, strict=True)]
    told = thaw.freeze_to_file_pipelined(str(path), requests, vllm_commit="b" * 40)
    total = sum(map(len, PAYLOADS))
    assert told == {"regions_frozen": 3, "bytes_copied": total}
    version, commit, regions = thaw_container.read(path)
    assert (version, commit) == (2, "b" * 40)
    assert [(r.kind, r.logical_id, r.payload) for r in regions] == [
        (kind, 7, payload) for kind, payload in zip(KINDS, PAYLOADS, strict=True)
    ]
    data = path.read_bytes()
    pinned = thaw.PinnedMmap(data)
    assert len(pinned) == pinned.size == len(data)
    for restore in (
        lambda mapping: thaw.restore_from_file_pipelined(
            str(path), mapping, chunk_size_mb=1, direct_io=False
        ),
        lambda mapping: thaw.restore_from_bytes_pipelined(data, mapping, chunk_size_mb=1),
        lambda mapping: thaw.restore_from_bytes_auto(data, mapping),
        lambda mapping: thaw.restore_from_bytes_pipelined_zerocopy(data, mapping),
        lambda mapping: thaw.restore_from_pinned_mmap(pinned, mapping),
    ):
        targets = [ctypes.create_string_buffer(len(payload)) for payload in PAYLOADS]
        mapping = [request(kind, 7, buffer) for kind, buffer in zip(KINDS, targets, strict=True)]
        assert restore(mapping[::-1]) == {"regions_restored": 3, "bytes_copied": total}
        assert [target.raw for target in targets] == list(PAYLOADS)
    # Files of version 1 too, and a part of a file.
    path.write_bytes(thaw_container.encode(regions, version=1))
    target = ctypes.create_string_buffer(len(PAYLOADS[1]))
    assert (
        thaw.restore_from_file_pipelined(path, [request("kv_live_block", 7, target)])["regions_restored"] == 1
    )
    assert target.raw == PAYLOADS[1]


def test_what_cannot_be_is_told(tmp_path, buffers):
    path = tmp_path / "x.thaw"
    requests = [request("weights", 0, buffers[0])]
    with pytest.raises(ValueError, match="kind is 'biases'"):
        thaw.freeze_to_file_pipelined(path, [("biases", 0, 0, 0)])
    with pytest.raises(ValueError, match="40 bytes"):
        thaw.freeze_to_file_pipelined(path, requests, "short")
    for pointer in (0, 1 << 46, 1 << 63):
        with pytest.raises(RuntimeError, match="no host memory of this process .* build with CUDA"):
            thaw.freeze_to_file_pipelined(path, [("weights", 0, pointer, 64)])
    assert not path.exists()
    with pytest.raises(RuntimeError, match="No such file"):
        thaw.restore_from_file_pipelined(path, requests)
    thaw.freeze_to_file_pipelined(path, requests)
    with pytest.raises(RuntimeError, match="holds no weights 1"):
        thaw.restore_from_file_pipelined(path, [request("weights", 1, buffers[0])])
    with pytest.raises(RuntimeError, match="bytes, not"):
        thaw.restore_from_file_pipelined(path, [request("weights", 0, buffers[1])])
    readonly = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(readonly))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address), 4096, mmap.PROT_READ) == 0
    with pytest.raises(RuntimeError, match="can be written"):
        thaw.restore_from_file_pipelined(path, [("weights", 0, address, 4096)])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with pytest.raises(RuntimeError, match="weights 0 is damaged"):
        thaw.restore_from_bytes_auto(data, requests)
    with pytest.raises(RuntimeError, match="bad magic"):
        thaw.restore_from_bytes_auto(b"x" * 5000, requests)
    with pytest.raises(ValueError, match="chunk_size_mb"):
        thaw.restore_from_bytes_auto(data, requests, 0)


class RpcEngine:
    """vLLM's way: functions run in workers, each with a module of its own."""

    def __init__(self, models):
        self.workers = [
            types.SimpleNamespace(rank=rank, model_runner=types.SimpleNamespace(model=model))
            for rank, model in enumerate(models)
        ]

    def collective_rpc(self, function, args=()):
        return [function(worker, *args) for worker in self.workers]


def test_weights_of_every_rank(tmp_path):
    engine = RpcEngine([Model(*PAYLOADS), Model(*PAYLOADS[::-1])])
    base = str(tmp_path / "weights.thaw")
    stats = snapshot.freeze_model_tp(engine, base, vllm_commit="c" * 40)
    assert (stats["tensor_parallel_size"], len(stats["per_rank"]), stats["num_regions"]) == (2, 2, 6)
    assert stats["backend"] == "python_region_copy"
    assert {path.name for path in tmp_path.iterdir()} == {"weights.thaw", "weights.rank1.thaw"}
    empty = RpcEngine([blank(), Model(*(bytes(len(p)) for p in PAYLOADS[::-1]))])
    restored = snapshot.restore_model_tp(empty, base)
    assert restored["total_bytes"] == stats["total_bytes"]
    assert empty.workers[1].model_runner.model.payloads() == list(PAYLOADS[::-1])
    with pytest.raises(RuntimeError, match="neither save_weights nor collective_rpc"):
        snapshot.freeze_model_tp(object(), base)


def test_vllms_loader(tmp_path, monkeypatch):
    path = tmp_path / "weights.thaw"
    snapshot.freeze_model(Model(*PAYLOADS), path)
    config = types.SimpleNamespace(model_loader_extra_config={"snapshot": str(path)})
    made = loader.ThawModelLoader(config)
    made.download_model(None)
    model = blank()
    assert made.load_weights(model, None)["num_regions"] == 3 and model.payloads() == list(PAYLOADS)
    for extra in (None, {}, {"other": 1}):
        with pytest.raises(ValueError, match="model_loader_extra_config"):
            loader.ThawModelLoader(types.SimpleNamespace(model_loader_extra_config=extra))
    config.model_loader_extra_config = {"snapshot": str(tmp_path / "none.thaw")}
    with pytest.raises(FileNotFoundError):
        loader.ThawModelLoader(config).download_model(None)
    assert loader._rank_snapshot_path("weights.thaw", 1) == "weights.rank1.thaw"
    # In vLLM it is one of its loaders.
    registered = {}

    class BaseModelLoader:
        pass

    names = ("vllm", "vllm.model_executor", "vllm.model_executor.model_loader")
    for name in (*names, f"{names[-1]}.base_loader"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["vllm"].__spec__ = types.SimpleNamespace(name="vllm")
    sys.modules[names[-1]].register_model_loader = lambda format: lambda kind: registered.update(
        {format: kind}
    )
    sys.modules[f"{names[-1]}.base_loader"].BaseModelLoader = BaseModelLoader
    loader.register()
    assert issubclass(registered["thaw"], BaseModelLoader)
    assert issubclass(registered["thaw"], loader.ThawModelLoader)


def test_sglang(tmp_path, monkeypatch):
    import thaw_sglang

    assert "sglang" not in sys.modules
    for name in ("ThawSGLangModelLoader", "ThawSGLangFreezeLoader"):
        with pytest.raises(ImportError, match=r'pip install "thaw-vllm\[sglang\]"'):
            getattr(thaw_sglang, name)
    path = tmp_path / "weights.thaw"
    with pytest.raises(ImportError, match="sglang"):
        thaw_sglang.freeze("org/tiny", path)
    with pytest.raises(FileNotFoundError):
        thaw_sglang.load("org/tiny", tmp_path / "none.thaw")
    assert thaw_sglang.restore_model is snapshot.restore_model

    class DefaultModelLoader:
        payloads = PAYLOADS

        def __init__(self, config):
            self.config = config

        def load_model(self, *, model_config, **keywords):
            return Model(*self.payloads)

    class DummyModelLoader(DefaultModelLoader):
        payloads = tuple(bytes(len(payload)) for payload in PAYLOADS)

    class Engine:
        def __init__(self, *, model_path, load_format, model_loader_extra_config, **keywords):
            assert model_loader_extra_config == {"snapshot": str(path)}
            config = types.SimpleNamespace(
                load_format=load_format, model_loader_extra_config=model_loader_extra_config
            )
            self.model = load_format(config).load_model(model_config=model_path, device_config=None)
            self.keywords = keywords

        def shutdown(self):
            self.model = None

    for name in ("sglang", "sglang.srt", "sglang.srt.model_loader", "sglang.srt.model_loader.loader"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.delitem(sys.modules, "thaw_sglang.loader", raising=False)
    sys.modules["sglang"].Engine = Engine
    sys.modules["sglang.srt.model_loader.loader"].DefaultModelLoader = DefaultModelLoader
    sys.modules["sglang.srt.model_loader.loader"].DummyModelLoader = DummyModelLoader
    assert thaw_sglang.freeze("org/tiny", path) == str(path)
    engine = thaw_sglang.load("org/tiny", path, tp_size=1)
    assert engine.model.payloads() == list(PAYLOADS) and engine.keywords == {"tp_size": 1}
    sys.modules.pop("thaw_sglang.loader")
