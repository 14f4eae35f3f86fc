"""The files of a handle directory (kvsnap/FORMAT.md, Handle directories): read, described, checked.

Nothing here follows a symbolic link inside of the directory, nor believes a path that a file names.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import stat
import struct
from typing import Any

from thaw_common import format as container
from thaw_common.util import rank_snapshot_path

HANDLE_FILE = "handle.json"
KV_FILE = "kv.thawkv"
META_SUFFIX = ".meta"
WEIGHTS_FILE = "weights.thaw"
HANDLE_VERSION = 1
KV_MAGIC = b"THAWKV\0\0"
MAX_JSON_BYTES = 64 << 20
MAX_RANKS = 1024


def directory_of(path: str | os.PathLike[str]) -> pathlib.Path:
    """A handle's directory, which may be named by its handle.json."""
    found = pathlib.Path(path)
    return found.parent if found.name == HANDLE_FILE else found


def open_plain(path: pathlib.Path) -> int:
    """A descriptor of a plain file; OSError for a link, FileNotFoundError where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, f"{path} is a symbolic link") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, f"{path} is no plain file")
    return fd


def read_small(path: pathlib.Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """A whole file of at most `limit` bytes. ValueError where it has more."""
    with open(open_plain(path), "rb") as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} has more than {limit} bytes")
    return data


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
    """ValueError where the file holds no JSON object."""
    try:
        found = json.loads(read_small(path))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: it is no JSON object ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: it is no JSON object")
    return found


@dataclasses.dataclass(frozen=True)
class KvDescription:
    """What the blocks of a `.thawkv` file are. `block_bytes` is of one layer; hashes may be missing."""

    num_blocks: int = 0
    block_ids: tuple[int, ...] = ()
    block_hashes: tuple[str, ...] = ()
    num_layers: int = 0
    block_shape: tuple[int, ...] = ()
    block_bytes: int = 0
    dtype: str = ""
    block_size: int = 0
    layout: str = ""

    @property
    def payload_bytes(self) -> int:
        """Of all blocks in all layers."""
        return self.num_blocks * self.num_layers * self.block_bytes

    @property
    def is_ours(self) -> bool:
        """True for KV that thaw's own engine wrote, and so can restore."""
        return self.layout.startswith("thaw")


def frame_description(fields: dict[str, Any]) -> bytes:
    """The bytes of a `.thawkv.meta` file."""
    text = json.dumps(fields).encode()
    return KV_MAGIC + struct.pack("<I", len(text)) + text


def parse_description(data: bytes) -> tuple[KvDescription, int]:
    """(description, bytes that it took). ValueError says what is wrong."""
    if not data.startswith(KV_MAGIC) or len(data) < 12:
        raise ValueError("it does not start as a description of KV does")
    (size,) = struct.unpack_from("<I", data, 8)
    if 12 + size > len(data):
        raise ValueError(f"truncated: it claims {size} bytes of JSON and has {len(data) - 12}")
    fields = json.loads(data[12 : 12 + size])
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    num_blocks = _count(fields, "num_blocks")
    if num_blocks == 0:
        return KvDescription(), 12 + size
    hashes = fields.get("block_hashes")
    ids = fields.get("block_ids")
    if not isinstance(hashes, list) or not all(h is None or isinstance(h, str) for h in hashes):
        raise ValueError("block_hashes is no list of texts")
    if not isinstance(ids, list) or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise ValueError("block_ids is no list of numbers")
    for name, found in (("block_hashes", hashes), ("block_ids", ids)):
        if len(found) != num_blocks:
            raise ValueError(f"{name} has {len(found)} entries for {num_blocks} blocks")
    shape = fields.get("block_shape") or []
    if not isinstance(shape, list) or not all(isinstance(extent, int) for extent in shape):
        raise ValueError("block_shape is no list of numbers")
    kv = KvDescription(
        num_blocks,
        tuple(ids),
        tuple(h or "" for h in hashes),
        _count(fields, "num_layers", 1),
        tuple(shape),
        _count(fields, "block_bytes", 1),
        str(fields.get("dtype", "")),
        _count(fields, "block_size", 1),
        str(fields.get("layout") or ""),
    )
    return kv, 12 + size


def _count(fields: dict[str, Any], key: str, least: int = 0) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{key} is {value!r}; it must be a whole number of at least {least}")
    return value


@dataclasses.dataclass(frozen=True)
class HandleFiles:
    """A handle directory, read and compared with itself."""

    path: pathlib.Path
    fields: dict[str, Any]
    kv: KvDescription | None
    kv_bytes: int
    weights_bytes: int
    files: tuple[str, ...]

    @property
    def ranks(self) -> int:
        return int(self.fields.get("tensor_parallel_size") or 1)

    @property
    def has_weights(self) -> bool:
        return bool(self.fields.get("weights_path"))

    @property
    def name(self) -> str:
        """The label, else the directory's name."""
        return str(self.fields.get("label") or self.directory_name)

    @property
    def directory_name(self) -> str:
        return pathlib.Path(os.path.normpath(self.path.absolute())).name or str(self.path)


def open_handle(path: str | os.PathLike[str]) -> HandleFiles:
    """Reads a handle. FileNotFoundError where there is none; ValueError says what is wrong with it."""
    directory = directory_of(path)
    try:
        fields = read_json_object(directory / HANDLE_FILE)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is no handle: a directory that holds {HANDLE_FILE} is one") from None
    if fields.get("version") != HANDLE_VERSION:
        raise ValueError(
            f"{directory}: {HANDLE_FILE}: version {fields.get('version')!r}; supported is {HANDLE_VERSION}"
        )
    for key, kind in (("model_id", str), ("num_kv_blocks", int), ("prefix_tokens", int), ("num_layers", int)):
        if not isinstance(fields.get(key), kind):
            raise ValueError(f"{directory}: {HANDLE_FILE}: {key} is {fields.get(key)!r}")
    ranks = fields.get("tensor_parallel_size") or 1
    if not isinstance(ranks, int) or not 1 <= ranks <= MAX_RANKS:
        raise ValueError(f"{directory}: tensor_parallel_size is {ranks!r}, which cannot be")
    description: KvDescription | None = None
    kv_bytes = weights_bytes = 0
    files: list[str] = []
    for rank in range(ranks):
        found, size, names = open_kv(directory, str(rank_snapshot_path(KV_FILE, rank)))
        kv_bytes += size
        files += names
        if rank == 0:
            description = found
    if fields.get("weights_path"):
        for rank in range(ranks):
            name = str(rank_snapshot_path(WEIGHTS_FILE, rank))
            try:
                with open(open_plain(directory / name), "rb") as f:
                    container.read_container(f)
                    weights_bytes += f.seek(0, os.SEEK_END)
            except FileNotFoundError:
                continue
            files.append(name)
    _check(directory, fields, description)
    return HandleFiles(directory, fields, description, kv_bytes, weights_bytes, (*files, HANDLE_FILE))


def open_kv(directory: pathlib.Path, name: str = KV_FILE) -> tuple[KvDescription | None, int, list[str]]:
    """(description, bytes of the file, names of both files), as far as they are there."""
    path, meta = directory / name, directory / (name + META_SUFFIX)
    size, payload, files = 0, None, []
    try:
        with open(open_plain(path), "rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(0)
            head = f.read(12)
            files.append(name)
            if head.startswith(KV_MAGIC):  # the oldest form: description and blocks in one file
                kv, taken = parse_description(head + f.read(MAX_JSON_BYTES))
                if size - taken != kv.payload_bytes:
                    raise ValueError(f"{path}: its blocks have {size - taken} bytes, not {kv.payload_bytes}")
                return kv, size, files
            regions = container.read_container(f).regions
            payload = sum(r.size for r in regions if r.kind == container.KIND_KV_LIVE_BLOCK)
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        kv, _ = parse_description(read_small(meta))
    except FileNotFoundError:
        if payload is not None:
            raise ValueError(f"{meta} is missing: it says what the blocks are") from None
        return None, 0, files
    except ValueError as error:
        raise ValueError(f"{meta}: {error}") from None
    if payload is not None and payload != kv.payload_bytes:
        raise ValueError(f"{path} holds {payload} bytes of blocks; its description says {kv.payload_bytes}")
    return kv, size, [*files, name + META_SUFFIX]


def _check(directory: pathlib.Path, fields: dict[str, Any], kv: KvDescription | None) -> None:
    """What handle.json and the description of the blocks both say."""
    if kv is None:
        return
    pairs: list[tuple[str, Any, Any]] = [("num_kv_blocks", fields["num_kv_blocks"], kv.num_blocks)]
    if kv.num_blocks:
        pairs.append(("num_layers", fields["num_layers"], kv.num_layers))
        pairs.append(("block_shape", list(fields.get("block_shape") or []), list(kv.block_shape)))
        pairs.append(("max_block_id", fields.get("max_block_id"), max(kv.block_ids)))
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise ValueError(
                f"{directory}: {HANDLE_FILE} says {what} {ours}, the description of its blocks {theirs}"
            )


def verify_payloads(handle: HandleFiles) -> str:
    """Compares payloads with their checksums: "right", or "none" where a file has some without.

    ValueError names what is damaged.
    """
    result = "right"
    for name in handle.files:
        if not name.endswith((".thawkv", ".thaw")):
            continue
        path = handle.path / name
        with open(open_plain(path), "rb") as f:
            if f.read(8) == KV_MAGIC:
                result = "none"
                continue
            found = container.read_container(f)
            if found.version < container.CHECKSUM_VERSION:
                result = "none"
            for region in found.regions:
                try:
                    container.read_region(f, region)
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from None
    return result


def kv_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The JSON document in a `.thawkv` file of ours, or None where it is another's."""
    with open(open_plain(pathlib.Path(path)), "rb") as f:
        if f.read(8) == KV_MAGIC:
            return None
        for region in container.read_container(f).regions:
            if region.kind == container.KIND_METADATA and region.size <= MAX_JSON_BYTES:
                found = json.loads(container.read_region(f, region))
                return found if isinstance(found, dict) else None
    return None
