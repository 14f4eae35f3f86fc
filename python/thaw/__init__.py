"""The public project's native module by its name and functions, for memory of this process.

A request is (kind, logical_id, pointer, nbytes); kinds are "weights", "kv_live_block" and "metadata".
Pointers are addresses in host memory, as tensor.data_ptr() gives them: a range that this process may not
read (or, to restore, write) is a RuntimeError, and so is a pointer of a GPU, which this build cannot follow.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

from thaw_common import format as container
from thaw_common import telemetry

__all__ = [
    "PinnedMmap", "freeze_to_file_pipelined", "restore_from_bytes_auto", "restore_from_bytes_pipelined",
    "restore_from_bytes_pipelined_zerocopy", "restore_from_file_pipelined", "restore_from_pinned_mmap",
]  # fmt: skip

Request = tuple[str, int, int, int]


class PinnedMmap:
    """A snapshot in memory, to restore from more than once. len() and `size` are its bytes."""

    def __init__(self, buffer: Any):
        self._view = memoryview(buffer).cast("B")

    def __len__(self) -> int:
        return self._view.nbytes

    @property
    def size(self) -> int:
        """Bytes."""
        return self._view.nbytes


def _ranges(writable: bool) -> list[tuple[int, int]]:
    """Address ranges of this process that may be read, and written where that is asked for; merged."""
    found: list[tuple[int, int]] = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            where, permissions = line.split()[:2]
            if permissions[0] != "r" or (writable and permissions[1] != "w"):
                continue
            start, end = (int(part, 16) for part in where.split("-"))
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], end)
            else:
                found.append((start, end))
    return found


def _views(requests: Sequence[Request], writable: bool) -> list[tuple[int, int, memoryview]]:
    """(kind, logical id, bytes) of each request. ValueError for kinds, RuntimeError for addresses."""
    ranges = _ranges(writable)
    views = []
    for kind, logical_id, pointer, size in requests:
        if kind not in container.KIND_NUMBERS:
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(container.KIND_NUMBERS)}")
        if not 0 <= logical_id < 1 << 32:
            raise ValueError(f"logical_id is {logical_id}; it must fit into 32 bits")
        if size < 0 or (size and not any(a <= pointer and pointer + size <= b for a, b in ranges)):
            raise RuntimeError(
                f"{kind} {logical_id}: {size} bytes at {pointer:#x} are no host memory of this process that "
                f"can be {'written' if writable else 'read'}; pointers of a GPU need a build with CUDA"
            )
        array = (ctypes.c_ubyte * size).from_address(pointer) if size else bytearray()
        views.append((container.KIND_NUMBERS[kind], logical_id, memoryview(array).cast("B")))
    return views


def freeze_to_file_pipelined(
    path: str | os.PathLike[str], requests: Sequence[Request], vllm_commit: str | None = None
) -> dict[str, int]:
    """Writes regions of memory as a container of version 2: {regions_frozen, bytes_copied}.

    ValueError for an unknown kind and a commit that has not 40 digits; RuntimeError for the rest.
    """
    views = _views(requests, writable=False)
    try:
        container.write_container(path, [(kind, index, (view,)) for kind, index, view in views], vllm_commit)
    except OSError as error:
        raise RuntimeError(f"{path}: {error}") from error
    return {"regions_frozen": len(views), "bytes_copied": sum(view.nbytes for _, _, view in views)}


def _restore(f: BinaryIO, mapping: Sequence[Request], name: str) -> dict[str, int]:
    views = _views(mapping, writable=True)
    try:
        found = container.read_container(f)
        by_key = {(region.kind, region.logical_id): region for region in found.regions}
        chosen = []
        for kind, index, view in views:
            region = by_key.get((kind, index))
            if region is None:
                raise ValueError(f"it holds no {container.KIND_NAMES[kind]} {index}")
            if region.size != view.nbytes:
                raise ValueError(
                    f"{container.KIND_NAMES[kind]} {index} has {region.size} bytes, not {view.nbytes}"
                )
            chosen.append((region, view))
        for region, view in chosen:
            container.read_region(f, region, view, telemetry.verify_mode())
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{name}: {error}") from error
    return {"regions_restored": len(views), "bytes_copied": sum(view.nbytes for _, _, view in views)}


def _check_chunk(chunk_size_mb: int) -> None:
    if chunk_size_mb < 1:
        raise ValueError(f"chunk_size_mb is {chunk_size_mb}; it must be at least 1")


def restore_from_file_pipelined(
    path: str | os.PathLike[str], mapping: Sequence[Request], chunk_size_mb: int = 64, direct_io: bool = True
) -> dict[str, int]:
    """Fills memory from a container of either version: {regions_restored, bytes_copied}.

    Sizes are compared before anything is written; checksums (version 2) with each region, unless
    THAW_VERIFY=0. ValueError for an unknown kind; RuntimeError for the rest.
    """
    _check_chunk(chunk_size_mb)
    try:
        with open(path, "rb") as f:
            return _restore(f, mapping, os.fspath(path))
    except OSError as error:
        raise RuntimeError(f"{path}: {error}") from error


def restore_from_bytes_pipelined(
    data: Any, mapping: Sequence[Request], chunk_size_mb: int = 64
) -> dict[str, int]:
    """The same from the bytes of a file."""
    _check_chunk(chunk_size_mb)
    return _restore(container.buffer_file(memoryview(data).cast("B")), mapping, "the snapshot")


#: The same function by its other name.
restore_from_bytes_auto = restore_from_bytes_pipelined


def restore_from_bytes_pipelined_zerocopy(data: Any, mapping: Sequence[Request]) -> dict[str, int]:
    """The same."""
    return restore_from_bytes_pipelined(data, mapping)


def restore_from_pinned_mmap(pinned: PinnedMmap, mapping: Sequence[Request]) -> dict[str, int]:
    """The same from a PinnedMmap."""
    return _restore(container.buffer_file(pinned._view), mapping, "the snapshot")
