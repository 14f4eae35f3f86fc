#!/usr/bin/env python3
"""Fetches and builds the S3 client, aws-c-s3 and the C libraries below it, into .deps/awscrt.

Sources are those of the PyPI sdist awscrt 0.38.1 (38 MB, Apache-2.0), checked by their SHA-256; the build is
cmake/awscrt's, with ccache (about 75 seconds of one core). Headers and one static archive are kept. A folder
is written under a temporary name and renamed. Does nothing where it is done. Uses the standard library alone.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SDIST = "awscrt==0.38.1"
SHA256 = "0dcebfaa70cf079133cd2352119e3d05e9b8ca1d1621736cfb54c03f3d5fef0f"
TARGET = ROOT / ".deps" / "awscrt"
RECIPE = ROOT / "cmake" / "awscrt" / "CMakeLists.txt"
LEFT_OUT = {"aws-lc", "aws-c-mqtt", "aws-c-event-stream"}


def fetch(scratch: pathlib.Path) -> pathlib.Path:
    print(f"fetching {SDIST} (38 MB)", file=sys.stderr)
    # pip asks an sdist's build system what it is: setuptools, which it fetches too.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "awscrt", "--dest", str(scratch), SDIST]
    if subprocess.run(command).returncode != 0:
        sys.exit(f"get_awscrt: pip could not download {SDIST}; is PyPI reachable?")
    (archive,) = scratch.glob("awscrt-*.tar.gz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"get_awscrt: {archive.name} has SHA-256 {found}, expected {SHA256}; not used")
    return archive


def unpack(archive: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """The folder crt/ with the libraries that are built; beside it their license."""

    def is_needed(name: str) -> bool:
        parts = pathlib.PurePosixPath(name).parts
        if parts[1:] in (("LICENSE",), ("NOTICE",)):
            return True
        if len(parts) < 3 or parts[1] != "crt" or parts[2] in LEFT_OUT:
            return False
        # s2n's probes of libcrypto lie among its tests.
        return "tests" not in parts or parts[2] == "s2n"

    with tarfile.open(archive) as sources:
        members = [member for member in sources.getmembers() if is_needed(member.name)]
        sources.extractall(scratch, members)  # checked: as published
    (crt,) = scratch.glob("awscrt-*/crt")
    return crt


def build(crt: pathlib.Path, folder: pathlib.Path) -> None:
    print("building the S3 client", file=sys.stderr)
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_C_FLAGS_RELEASE=-O2 -g1 -DNDEBUG"]
    commands = [
        ["cmake", "-S", RECIPE.parent, "-B", folder, "-G", "Ninja", f"-DAWSCRT_SOURCE={crt}", *options],
        ["cmake", "--build", folder, "-j", str(os.cpu_count() or 1)],
    ]
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            print(done.stdout[-4000:], file=sys.stderr)
            sys.exit("get_awscrt: the S3 client could not be built; without it: cmake -DTHAW_S3=OFF")


def main() -> None:
    wanted = f"{SDIST} {SHA256} {hashlib.sha256(RECIPE.read_bytes()).hexdigest()}\n"
    stamp = TARGET / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    TARGET.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="awscrt-", dir=TARGET.parent) as name:
        scratch = pathlib.Path(name)
        crt = unpack(fetch(scratch), scratch)
        build(crt, scratch / "build")
        made = scratch / "made"
        for headers in [*crt.glob("*/include"), *(scratch / "build").glob("*/generated/include")]:
            shutil.copytree(headers, made / "include", dirs_exist_ok=True)
        (made / "lib").mkdir()
        shutil.copy(scratch / "build" / "libthaw_awscrt.a", made / "lib")
        for notice in ("LICENSE", "NOTICE"):
            shutil.copy(crt.parent / notice, made)
        (made / "stamp").write_text(wanted)
        if TARGET.exists():
            shutil.rmtree(TARGET)
        made.rename(TARGET)


if __name__ == "__main__":
    main()
