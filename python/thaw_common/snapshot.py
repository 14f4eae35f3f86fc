"""Parameters of a torch module, frozen to a `.thaw` file and restored from one of either version.

A model is anything with `named_parameters()` whose tensors have `numel()`, `element_size()`,
`data_ptr()` and `device.type` (or `is_cuda`), as torch's do; torch itself is not imported. Regions are
matched by order: kind "weights", logical id = place among the parameters. Parameters on a GPU are
taken where there are some, else those in host memory, which need no GPU.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, Protocol

from thaw_common import cloud, telemetry
from thaw_common import format as container
from thaw_common.cloud import is_remote, resolve_snapshot_path, upload_snapshot
from thaw_common.format import (
    HEADER_SIZE,
    KIND_KV_LIVE_BLOCK,
    KIND_METADATA,
    KIND_WEIGHTS,
    MAGIC,
    REGION_ENTRY_SIZE,
    VERSION,
    read_header,
    read_region_entry,
    write_header,
    write_region_entry,
)
from thaw_common.util import rank_snapshot_path

__all__ = [
    "HEADER_SIZE", "KIND_KV_LIVE_BLOCK", "KIND_METADATA", "KIND_WEIGHTS", "MAGIC", "PinnedBuffer",
    "REGION_ENTRY_SIZE", "VERSION", "freeze_model", "freeze_model_pipelined", "is_remote",
    "make_pinned_mmap", "rank_snapshot_path", "read_header", "read_region_entry", "resolve_snapshot_path",
    "restore_model", "restore_model_from_pinned_mmap", "restore_model_from_ram", "restore_model_pipelined",
    "upload_snapshot", "write_header", "write_region_entry",
]  # fmt: skip

PathLike = str | os.PathLike[str]
Stats = dict[str, Any]


class Tensor(Protocol):
    """What is used of a torch tensor."""

    def numel(self) -> int: ...
    def element_size(self) -> int: ...
    def data_ptr(self) -> int: ...
    def is_contiguous(self) -> bool: ...


class Module(Protocol):
    """What is used of a torch.nn.Module."""

    def named_parameters(self) -> Iterable[tuple[str, Any]]: ...


def _is_on_device(tensor: Any) -> bool:
    device = getattr(tensor, "device", None)
    kind = getattr(device, "type", device)
    return str(kind).startswith("cuda") if kind is not None else bool(getattr(tensor, "is_cuda", False))


def _parameters(model: Module) -> list[tuple[str, Any]]:
    """Those on a GPU where there are some; else all."""
    listed = [(name, getattr(parameter, "data", parameter)) for name, parameter in model.named_parameters()]
    on_device = [(name, tensor) for name, tensor in listed if _is_on_device(tensor)]
    chosen = on_device or listed
    if not chosen:
        raise ValueError("the model has no parameters")
    for name, tensor in chosen:
        if not tensor.is_contiguous():
            raise ValueError(f"parameter {name} is not contiguous; freeze a contiguous copy")
    return chosen


def _bytes_of(tensor: Any) -> int:
    return int(tensor.numel()) * int(tensor.element_size())


def host_view(tensor: Any) -> memoryview:
    """The bytes of a tensor in host memory, writable. The tensor must outlive it."""
    size = _bytes_of(tensor)
    if not size:
        return memoryview(bytearray())
    array = (ctypes.c_ubyte * size).from_address(int(tensor.data_ptr()))
    return memoryview(array).cast("B")


def _read_out(tensor: Any) -> memoryview:
    if not _is_on_device(tensor):
        return host_view(tensor)
    return host_view(tensor.detach().to("cpu").contiguous())


def _fill(tensor: Any, f: BinaryIO, region: container.Region, verify: bool) -> None:
    if not _is_on_device(tensor):
        container.read_region(f, region, host_view(tensor), verify)
        return
    staging = tensor.detach().to("cpu").contiguous()
    container.read_region(f, region, host_view(staging), verify)
    tensor.copy_(staging)


def _stats(count: int, total: int, started: float, backend: str) -> Stats:
    elapsed = max(time.perf_counter() - started, 1e-9)
    return {
        "num_regions": count,
        "total_bytes": total,
        "elapsed_s": elapsed,
        "throughput_gb_s": total / elapsed / 1e9,
        "backend": backend,
    }


def freeze_model(model: Module, path: PathLike, engine_commit: str | None = None) -> Stats:
    """Writes the parameters to `path`, a file or s3://BUCKET/KEY, in version 2: with checksums.

    {num_regions, total_bytes, elapsed_s (seconds), throughput_gb_s (10^9 bytes), backend, params:
    [(name, bytes)]}. ValueError for a model without parameters, one that is not contiguous, and a
    commit that has not 40 digits. A file that was there is replaced once the new one is whole.
    """
    started = time.perf_counter()
    parameters = _parameters(model)
    local: PathLike = path
    if is_remote(path):
        local = cloud.cache_directory() / f"upload-{os.getpid()}-{time.monotonic_ns()}.thaw"
        pathlib.Path(local).parent.mkdir(parents=True, exist_ok=True)
    try:
        held = [_read_out(tensor) for _, tensor in parameters]
        regions = [(container.KIND_WEIGHTS, index, (view,)) for index, view in enumerate(held)]
        container.write_container(local, regions, engine_commit)
        if is_remote(path):
            upload_snapshot(local, os.fspath(path))
    finally:
        if is_remote(path):
            pathlib.Path(local).unlink(missing_ok=True)
    sizes = [(name, _bytes_of(tensor)) for name, tensor in parameters]
    stats = _stats(len(sizes), sum(size for _, size in sizes), started, "python_region_copy")
    return {**stats, "params": sizes}


def freeze_model_pipelined(model: Module, path: PathLike, engine_commit: str | None = None) -> Stats:
    """As freeze_model(). Of parameters in host memory there is nothing to overlap."""
    return freeze_model(model, path, engine_commit)


def _match(
    regions: Sequence[container.Region], parameters: Sequence[tuple[str, Any]]
) -> list[container.Region]:
    """Weights of a file by order of their ids, compared with the parameters. ValueError."""
    weights = sorted((r for r in regions if r.kind == container.KIND_WEIGHTS), key=lambda r: r.logical_id)
    if len(weights) != len(parameters):
        raise ValueError(
            f"the file has {len(weights)} regions of weights, the model {len(parameters)} parameters"
        )
    for region, (name, tensor) in zip(weights, parameters):
        if region.size != _bytes_of(tensor):
            raise ValueError(
                f"weights {region.logical_id} have {region.size} bytes, parameter {name} {_bytes_of(tensor)}"
            )
    return weights


def _restore(model: Module, f: BinaryIO, backend: str) -> Stats:
    started = time.perf_counter()
    parameters = _parameters(model)
    weights = _match(container.read_container(f).regions, parameters)
    verify = telemetry.verify_mode()
    for region, (_, tensor) in zip(weights, parameters):
        _fill(tensor, f, region, verify)
    return _stats(len(weights), sum(region.size for region in weights), started, backend)


def restore_model(model: Module, path: PathLike) -> Stats:
    """Fills the parameters from a file of either version, local or s3://, after comparing sizes.

    Payloads of version 2 are compared with their checksums (THAW_VERIFY=0 skips that). ValueError
    where count, size or checksum differ: before the first byte is written, but for checksums.
    """
    with open(resolve_snapshot_path(path), "rb") as f:
        return _restore(model, f, "python_region_copy")


def restore_model_pipelined(
    model: Module, path: PathLike, chunk_size_mb: int = 64, direct_io: bool = True
) -> Stats:
    """As restore_model(); the arguments are accepted, and decide nothing for host memory."""
    if chunk_size_mb < 1:
        raise ValueError(f"chunk_size_mb is {chunk_size_mb}; it must be at least 1")
    return restore_model(model, path)


def restore_model_from_ram(model: Module, path: PathLike, chunk_size_mb: int = 64) -> Stats:
    """Maps the file, then fills the parameters from memory.

    Adds mmap_time_s, dma_time_s (seconds) and dma_throughput_gb_s, both of the copy.
    """
    if chunk_size_mb < 1:
        raise ValueError(f"chunk_size_mb is {chunk_size_mb}; it must be at least 1")
    started = time.perf_counter()
    pinned = make_pinned_mmap(path)
    try:
        mapped = time.perf_counter() - started
        stats = restore_model_from_pinned_mmap(model, pinned)
    finally:
        pinned.close()
    stats["mmap_time_s"] = mapped
    stats["dma_time_s"] = stats["elapsed_s"]
    stats["dma_throughput_gb_s"] = stats["throughput_gb_s"]
    stats["elapsed_s"] += mapped
    stats["throughput_gb_s"] = stats["total_bytes"] / stats["elapsed_s"] / 1e9
    return stats


class PinnedBuffer:
    """A snapshot in memory, mapped from its file: len() and `size` are its bytes."""

    def __init__(self, path: PathLike):
        with open(resolve_snapshot_path(path), "rb") as f:
            self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._map)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._map)

    def file(self) -> BinaryIO:
        """The mapped bytes as a file."""
        return container.buffer_file(self._map)

    def close(self) -> None:
        """Unmaps it. May be called twice."""
        self._map.close()


def make_pinned_mmap(path: PathLike) -> PinnedBuffer:
    """Maps a snapshot, to restore several models, or one several times, without reading it again."""
    return PinnedBuffer(path)


def restore_model_from_pinned_mmap(model: Module, pinned: PinnedBuffer) -> Stats:
    """As restore_model(), from what make_pinned_mmap() returned."""
    return _restore(model, pinned.file(), "rust_pipelined_pinned_mmap")
