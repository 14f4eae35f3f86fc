"""Snapshots in S3 (extra `cloud`: boto3). Other schemes are named and refused.

A copy lies in `snapshots/` below THAW_CACHE_DIR (~/.cache/thaw), in a folder named by the first 16 hex
digits of the URI's SHA-256, and beside it the object's ETag: a changed object is fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

Progress = Callable[[int, int], None]
_SCHEMES = ("s3", "gs", "http", "https")


def _scheme(uri: str | os.PathLike[str]) -> str:
    text = os.fspath(uri)
    scheme, mark, _ = text.partition("://")
    return scheme.lower() if mark else ""


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """True for s3://, gs://, http:// and https:// URIs."""
    return _scheme(uri) in _SCHEMES


def cache_directory() -> pathlib.Path:
    """Where copies lie: `snapshots/` below THAW_CACHE_DIR, or below ~/.cache/thaw."""
    return pathlib.Path(os.environ.get("THAW_CACHE_DIR") or pathlib.Path.home() / ".cache/thaw") / "snapshots"


def split_s3_uri(uri: str) -> tuple[str, str]:
    """(bucket, key). ValueError where one is missing."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not bucket or not key:
        raise ValueError(f"{uri!r} names no object; s3://BUCKET/KEY does")
    return bucket, key


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        value = int(text) if text else default
    except ValueError:
        raise ValueError(f"{name} is {text!r}; it must be a number") from None
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    return value


def s3_client() -> Any:
    """A boto3 client with the settings of the environment; ImportError with a hint without boto3."""
    try:
        boto3, botocore = importlib.import_module("boto3"), importlib.import_module("botocore.config")
    except ImportError as error:
        raise ImportError('s3:// needs boto3: pip install "thaw-vllm[cloud]"') from error
    config = botocore.Config(
        retries={"max_attempts": 4, "mode": "standard"},
        max_pool_connections=_number("THAW_S3_CONCURRENCY", 32),
        connect_timeout=20,
        read_timeout=60,
    )
    return boto3.client("s3", config=config)


def _transfer_config() -> Any:
    return importlib.import_module("boto3.s3.transfer").TransferConfig(
        multipart_threshold=_number("THAW_S3_MULTIPART_THRESHOLD_MB", 16) << 20,
        multipart_chunksize=max(5, _number("THAW_S3_PART_SIZE_MB", 16)) << 20,
        max_concurrency=_number("THAW_S3_CONCURRENCY", 32),
    )


@contextlib.contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """boto3's errors as ours: FileNotFoundError, PermissionError, RuntimeError."""
    errors: Any = importlib.import_module("botocore.exceptions")
    try:
        yield
    except errors.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = str(error.response.get("Error", {}).get("Code", ""))
        if status == 404 or code in ("404", "NoSuchKey", "NoSuchBucket"):
            raise FileNotFoundError(f"{uri}: no such object") from error
        if status == 403 or code == "AccessDenied":
            raise PermissionError(f"{uri}: access denied") from error
        raise RuntimeError(f"{uri}: {error}") from error
    except errors.NoCredentialsError as error:
        raise RuntimeError(f"{uri}: no AWS credentials were found") from error
    except (errors.BotoCoreError, OSError) as error:
        if isinstance(error, OSError):
            raise
        raise RuntimeError(f"{uri}: {error}") from error


def _require_s3(uri: str) -> None:
    if _scheme(uri) != "s3":
        raise NotImplementedError(f"{_scheme(uri)}:// is not supported; s3:// is ({uri})")


def _counter(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    lock, done = threading.Lock(), 0

    def count(more: int) -> None:
        nonlocal done
        with lock:
            done += more
            progress(done, total)

    return count


def resolve_snapshot_path(
    uri: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> str:
    """A local path for `uri`: itself where it is local, else a copy, fetched where it is not current.

    `force` fetches in any case; `progress(bytes done, bytes in all)` may be called by any thread.
    FileNotFoundError, PermissionError, RuntimeError, NotImplementedError as the module says.
    """
    text = os.fspath(uri)
    if not is_remote(text):
        return text
    _require_s3(text)
    bucket, key = split_s3_uri(text)
    folder = pathlib.Path(cache_dir or cache_directory()) / hashlib.sha256(text.encode()).hexdigest()[:16]
    target = folder / (key.rpartition("/")[2] or "snapshot")
    tag_file = target.with_name(target.name + ".etag")
    client = s3_client()
    with s3_errors(text):
        head = client.head_object(Bucket=bucket, Key=key)
        tag = str(head.get("ETag", ""))
        if not force and target.exists() and tag and tag_file.exists() and tag_file.read_text() == tag:
            return str(target)
        folder.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            client.download_file(
                bucket,
                key,
                str(part),
                Callback=_counter(progress, int(head["ContentLength"])),
                Config=_transfer_config(),
            )
            tag_file.unlink(missing_ok=True)
            os.replace(part, target)
            tag_file.write_text(tag)
        finally:
            part.unlink(missing_ok=True)
    return str(target)


def upload_snapshot(local: str | os.PathLike[str], uri: str, progress: Progress | None = None) -> str:
    """Puts a file there and returns the URI. Errors as of resolve_snapshot_path()."""
    _require_s3(uri)
    bucket, key = split_s3_uri(uri)
    size = os.stat(local).st_size
    client = s3_client()
    with s3_errors(uri):
        client.upload_file(
            os.fspath(local), bucket, key, Callback=_counter(progress, size), Config=_transfer_config()
        )
    return uri
