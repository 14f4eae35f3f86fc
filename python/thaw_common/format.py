"""The container of `.thaw` and `.thawkv` files (kvsnap/FORMAT.md): read in both of its versions.

`write_header` and `write_region_entry` write version 1, which has no checksums, as scripts of the
public project expect; `write_container` writes version 2. All integers are little-endian.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import dataclasses
import fcntl
import functools
import io
import mmap
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from thaw_common import telemetry

MAGIC = b"THAW"
#: What `write_header` writes. Files of version 2 are read as well; `write_container` writes them.
VERSION = 1
CHECKSUM_VERSION = 2
HEADER_SIZE = 4096
REGION_ENTRY_SIZE = 32
KIND_WEIGHTS = 0
KIND_KV_LIVE_BLOCK = 1
KIND_METADATA = 2
KIND_NAMES = {KIND_WEIGHTS: "weights", KIND_KV_LIVE_BLOCK: "kv_live_block", KIND_METADATA: "metadata"}
KIND_NUMBERS = {name: kind for kind, name in KIND_NAMES.items()}
MAX_REGIONS = 1 << 20

_HEADER = struct.Struct("<4sIQQ40s")
_ENTRY = struct.Struct("<IIQQII")
_CHUNK = 8 << 20

Buffer = bytes | bytearray | memoryview


@dataclasses.dataclass(frozen=True)
class Region:
    """One payload: its kind (KIND_*), the writer's number, bytes and place in the file.

    `checksum` is the CRC32C of the payload; None in a file of version 1, which has none.
    """

    kind: int
    logical_id: int
    size: int
    offset: int
    checksum: int | None = None


@dataclasses.dataclass(frozen=True)
class Container:
    """Header and table of a file. `engine_commit` is None where the writer named none."""

    version: int
    engine_commit: str | None
    regions: tuple[Region, ...]


def _commit_bytes(engine_commit: str | bytes | None) -> bytes:
    if engine_commit is None:
        return bytes(40)
    encoded = engine_commit.encode("ascii", "replace") if isinstance(engine_commit, str) else engine_commit
    if len(encoded) != 40:
        raise ValueError(f"engine_commit has {len(encoded)} bytes; it must have 40 bytes, hex digits")
    return encoded


def _pack_header(version: int, num_regions: int, engine_commit: str | bytes | None) -> bytes:
    head = _HEADER.pack(MAGIC, version, num_regions, HEADER_SIZE, _commit_bytes(engine_commit))
    return head.ljust(HEADER_SIZE, b"\0")


def write_header(f: BinaryIO, num_regions: int, engine_commit: str | bytes | None = None) -> None:
    """Writes the header page of version 1. ValueError unless `engine_commit` has 40 bytes."""
    f.write(_pack_header(VERSION, num_regions, engine_commit))


def write_region_entry(f: BinaryIO, kind: int, logical_id: int, size: int, file_offset: int) -> None:
    """Writes an entry of the table, 32 bytes, without a checksum."""
    f.write(_ENTRY.pack(kind, logical_id, size, file_offset, 0, 0))


def _parse_header(data: bytes) -> tuple[int, int, int, bytes]:
    """(version, regions, offset of the table, commit)"""
    if len(data) < HEADER_SIZE:
        raise ValueError(f"file too short: {len(data)} bytes, a header has {HEADER_SIZE}")
    magic, version, count, table, commit = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"bad magic {magic!r}: this is no .thaw or .thawkv file")
    if version not in (VERSION, CHECKSUM_VERSION):
        raise ValueError(f"unsupported version {version}: versions 1 and 2 are known")
    if count > MAX_REGIONS:
        raise ValueError(f"{count} regions; a file has at most {MAX_REGIONS}")
    if table < HEADER_SIZE:
        raise ValueError(f"the region table is said to be at {table}, inside the header")
    return version, count, table, commit


def read_header(f: BinaryIO) -> tuple[int, bytes]:
    """(number of regions, engine commit: 40 bytes, zeros without one); the file is left at its table.

    Of either version. ValueError with "file too short", "bad magic" or "unsupported version".
    """
    _, count, table, commit = _parse_header(f.read(HEADER_SIZE))
    if table != HEADER_SIZE:
        f.seek(table)
    return count, commit


def read_region_entry(f: BinaryIO) -> tuple[int, int, int, int]:
    """(kind, logical id, size, offset); ValueError "truncated region entry"."""
    data = f.read(REGION_ENTRY_SIZE)
    if len(data) != REGION_ENTRY_SIZE:
        raise ValueError(f"truncated region entry: {len(data)} of {REGION_ENTRY_SIZE} bytes")
    kind, logical_id, size, offset, _, _ = _ENTRY.unpack(data)
    return kind, logical_id, size, offset


def read_container(f: BinaryIO) -> Container:
    """Header and table of an open file, compared with its size. ValueError says what is wrong."""
    size = f.seek(0, os.SEEK_END)
    f.seek(0)
    version, count, table, commit = _parse_header(f.read(HEADER_SIZE))
    if table + count * REGION_ENTRY_SIZE > size:
        raise ValueError(f"truncated region entry: the table of {count} regions ends behind the file")
    f.seek(table)
    data = f.read(count * REGION_ENTRY_SIZE)
    regions: list[Region] = []
    seen = set()
    for kind, logical_id, length, offset, checksum, _ in _ENTRY.iter_unpack(data):
        if kind not in KIND_NAMES:
            raise ValueError(f"region {len(regions)} is of kind {kind}; 0, 1 and 2 are known")
        if offset < HEADER_SIZE or offset + length > size:
            raise ValueError(
                f"region {len(regions)} ({length} bytes at {offset}) is not within the file's {size} bytes"
            )
        if version == VERSION and checksum != 0:
            raise ValueError(f"region {len(regions)} has a checksum, which version 1 has not")
        if (kind, logical_id) in seen:
            raise ValueError(f"{KIND_NAMES[kind]} {logical_id} is there twice")
        seen.add((kind, logical_id))
        regions.append(Region(kind, logical_id, length, offset, checksum if version > 1 else None))
    text = commit.decode("ascii", "replace") if any(commit) else None
    return Container(version, text, tuple(regions))


def read_region(f: BinaryIO, region: Region, into: memoryview | None = None, verify: bool = True) -> bytes:
    """A region's payload; where `into` is given it is filled and b"" returned.

    ValueError where the checksum is another (version 2, `verify`), or `into` has another size.
    """
    f.seek(region.offset)
    if into is not None:
        view = into.cast("B")
        if view.nbytes != region.size:
            raise ValueError(f"the buffer has {view.nbytes} bytes; the region has {region.size}")
        done = 0
        while done < region.size:
            part = f.readinto(view[done:])  # type: ignore[attr-defined]
            if not part:
                raise ValueError(f"the file ends within {_name(region)}")
            done += part
        _check(region, view, verify)
        return b""
    data = f.read(region.size)
    if len(data) != region.size:
        raise ValueError(f"the file ends within {_name(region)}")
    _check(region, data, verify)
    return data


def _name(region: Region) -> str:
    return f"{KIND_NAMES.get(region.kind, region.kind)} {region.logical_id}"


def _check(region: Region, data: Buffer, verify: bool) -> None:
    if verify and region.checksum is not None and crc32c(data) != region.checksum:
        raise ValueError(f"{_name(region)} is damaged: the checksum of its {region.size} bytes is another")


def write_container(
    path: str | os.PathLike[str],
    regions: Iterable[tuple[int, int, Sequence[Buffer]]],
    engine_commit: str | bytes | None = None,
    alignment: int = HEADER_SIZE,
) -> int:
    """Writes a file of version 2 and returns its bytes: regions are (kind, logical id, buffers).

    Under `path` and ".thaw-incomplete", locked; renamed once it is whole and on the disk, so that
    whatever crashes when, `path` is the old file or the new one. `alignment` is that of payloads.
    """
    listed = list(regions)
    if len(listed) > MAX_REGIONS:
        raise ValueError(f"{len(listed)} regions; a file has at most {MAX_REGIONS}")
    header = _pack_header(CHECKSUM_VERSION, len(listed), engine_commit)
    with replacing(path) as f:
        f.write(header)
        f.write(bytes(len(listed) * REGION_ENTRY_SIZE))
        table = bytearray()
        position = f.tell()
        for kind, logical_id, buffers in listed:
            f.write(bytes(-position % alignment))
            position += -position % alignment
            size = checksum = 0
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                checksum = crc32c(view, checksum)
                f.write(view)
                size += view.nbytes
            table += _ENTRY.pack(kind, logical_id, size, position, checksum, 0)
            position += size
        f.seek(HEADER_SIZE)
        f.write(table)
    return position


def buffer_file(data: memoryview | mmap.mmap) -> BinaryIO:
    """Bytes in memory as the file that read_container() takes. Of a view nothing is copied; a map is not kept
    from being closed."""
    return io.BufferedReader(_BufferFile(data))


class _BufferFile(io.RawIOBase):
    def __init__(self, data: memoryview | mmap.mmap):
        super().__init__()
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = {0: 0, 1: self._position, 2: len(self._data)}[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        part = self._data[self._position : self._position + target.nbytes]
        target[: len(part)] = part
        self._position += len(part)
        return len(part)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block ends well, and is gone when it does not."""
    target = pathlib.Path(path)
    incomplete = target.with_name(target.name + ".thaw-incomplete")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(incomplete, flags, 0o644), "r+b") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BlockingIOError(f"{target} is being written by somebody else") from None
        try:
            f.truncate(0)
            yield f
            f.flush()
            os.fsync(f.fileno())
            os.replace(incomplete, target)
        except BaseException:
            incomplete.unlink(missing_ok=True)
            raise
    sync_directory(target.parent)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Makes renames in a directory outlive a crash."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# CRC32C: of the extension, else of ISA-L (both some 27 GB/s on one core), else by the table below (5 MB/s).

_Sum = Callable[[memoryview, int], int]


def _native() -> _Sum | None:
    """None where there is no extension: this package works without thaw_vllm."""
    try:
        from thaw_vllm._core import crc32c
    except ImportError:
        return None
    return crc32c


def _isal() -> _Sum | None:
    name = ctypes.util.find_library("isal")
    try:
        library = ctypes.CDLL(name or "libisal.so.2")
        function = library.crc32_iscsi
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_uint
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]

    def update(view: memoryview, previous: int) -> int:
        state = previous ^ 0xFFFFFFFF
        for start in range(0, view.nbytes, 1 << 30):
            part = view[start : start + (1 << 30)]
            if part.readonly:
                # ctypes takes the address of what can be written only; the copy is of a chunk.
                for at in range(0, part.nbytes, _CHUNK):
                    chunk = bytes(part[at : at + _CHUNK])
                    state = function(chunk, len(chunk), state)
            else:
                holder = (ctypes.c_char * part.nbytes).from_buffer(part)
                state = function(ctypes.addressof(holder), part.nbytes, state)
                del holder
        return int(state ^ 0xFFFFFFFF)

    return update


@functools.cache
def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _slow(view: memoryview, previous: int) -> int:
    _say_slow()
    table = _table()
    state = previous ^ 0xFFFFFFFF
    for byte in view:
        state = table[(state ^ byte) & 255] ^ state >> 8
    return state ^ 0xFFFFFFFF


@functools.cache
def _say_slow() -> None:
    missing = ImportError("neither thaw_vllm._core nor libisal is there")
    telemetry.fallback_warning("the checksum's library", missing, dst="Python, some 5 MB/s")


@functools.cache
def _fastest() -> _Sum:
    return _native() or _isal() or _slow


def crc32c(data: Buffer, start: int = 0) -> int:
    """Castagnoli's CRC of `data`; `start` is that of what lies before it."""
    view = memoryview(data)
    if not view.nbytes:
        return start
    return _fastest()(view.cast("B"), start)


def has_fast_crc32c() -> bool:
    """True where a library computes the checksum: comparing gigabytes takes no notable time."""
    return _fastest() is not _slow
