"""Handle directories copied, and sent to and brought from S3. handle.json comes last: where it is,
everything is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

from thaw_common import cloud, telemetry
from thaw_common import format as container
from thaw_common.util import rank_snapshot_path

from thaw_vllm import _handle_files as files
from thaw_vllm.errors import ForkError


def write_manifest(directory: pathlib.Path, fields: dict[str, Any]) -> None:
    """handle.json, with paths that hold wherever the directory is."""
    written = {
        **fields,
        "state_dir": ".",
        "kv_path": files.KV_FILE,
        "weights_path": files.WEIGHTS_FILE if fields.get("weights_path") else None,
    }
    with container.replacing(directory / files.HANDLE_FILE) as f:
        f.write(json.dumps(written, indent=2, ensure_ascii=False).encode() + b"\n")


def check_target(target: pathlib.Path) -> None:
    """Makes the directory. ForkError where something is in it that is no part of a handle."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in target.iterdir():
        name = entry.name.removesuffix(".thaw-incomplete").removesuffix(files.META_SUFFIX)
        is_part = name == files.HANDLE_FILE or name.endswith((".thawkv", ".thaw"))
        if entry.is_symlink() or not is_part:
            raise ForkError(
                f"{target} holds {entry.name}; name a directory that does not exist yet, or a handle"
            )


def copy_handle(source: pathlib.Path, target: pathlib.Path, fields: dict[str, Any]) -> None:
    """Copies what handle at `source` holds; `fields` become its handle.json.

    Payloads are compared with their checksums first (THAW_VERIFY=0 skips that).
    """
    handle = read(source)
    if source.resolve() == target.resolve():
        raise ForkError(f"{target} is the handle's own directory")
    check_target(target)
    if telemetry.verify_mode() and container.has_fast_crc32c():
        try:
            files.verify_payloads(handle)
        except ValueError as error:
            raise ForkError(str(error)) from None
    with contextlib.suppress(FileNotFoundError):
        (target / files.HANDLE_FILE).unlink()
    for name in handle.files:
        if name != files.HANDLE_FILE:
            with (
                open(files.open_plain(source / name), "rb") as old,
                container.replacing(target / name) as new,
            ):
                shutil.copyfileobj(old, new, 8 << 20)
    write_manifest(target, fields)


def read(path: pathlib.Path) -> files.HandleFiles:
    """open_handle() with ForkError for what is wrong with a handle that is there."""
    try:
        return files.open_handle(path)
    except ValueError as error:
        raise ForkError(str(error)) from None


def upload_handle(source: pathlib.Path, uri: str, fields: dict[str, Any]) -> None:
    """Puts every file below the prefix `uri`."""
    handle = read(source)
    prefix = uri.rstrip("/")
    for name in handle.files:
        if name != files.HANDLE_FILE:
            cloud.upload_snapshot(handle.path / name, f"{prefix}/{name}")
    staged = cloud.cache_directory() / f"handle-{os.getpid()}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}"
    staged.mkdir(parents=True, exist_ok=True)
    try:
        write_manifest(staged, fields)
        cloud.upload_snapshot(staged / files.HANDLE_FILE, f"{prefix}/{files.HANDLE_FILE}")
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def download_handle(uri: str) -> pathlib.Path:
    """A local directory with the files below the prefix `uri`; FileNotFoundError without handle.json."""
    prefix = uri.rstrip("/")
    manifest = pathlib.Path(cloud.resolve_snapshot_path(f"{prefix}/{files.HANDLE_FILE}"))
    text = files.read_small(manifest)
    fields = json.loads(text)
    # By content, so that a handle which was replaced never mixes with its successor.
    name = f"handle-{hashlib.sha256(prefix.encode() + text).hexdigest()[:16]}"
    folder = cloud.cache_directory() / name
    if (folder / files.HANDLE_FILE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    ranks = fields.get("tensor_parallel_size") or 1
    for rank in range(min(int(ranks), files.MAX_RANKS)):
        kv = str(rank_snapshot_path(files.KV_FILE, rank))
        names = [kv, kv + files.META_SUFFIX]
        if fields.get("weights_path"):
            names.append(str(rank_snapshot_path(files.WEIGHTS_FILE, rank)))
        for part in names:
            with contextlib.suppress(FileNotFoundError):  # what was left out, or is of the oldest form
                fetched = cloud.resolve_snapshot_path(f"{prefix}/{part}", cache_dir=folder / "parts")
                os.replace(fetched, folder / part)
    shutil.rmtree(folder / "parts", ignore_errors=True)
    write_manifest(folder, fields)
    return folder
