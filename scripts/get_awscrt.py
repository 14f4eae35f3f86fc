#!/usr/bin/env python3
"""Fetches and builds the S3 client, aws-c-s3 and the C libraries below it, into .deps/awscrt.

Sources are those of the PyPI sdist awscrt 0.38.1 (38 MB, Apache-2.0), checked by their SHA-256; the build is
cmake/awscrt's, with ccache (about 75 seconds of one core).
"""

import hashlib
import pathlib

from sdist_library import SdistLibrary

LIBRARY = SdistLibrary(
    name="awscrt",
    sdist="awscrt==0.38.1",
    size="38 MB",
    sha256="0dcebfaa70cf079133cd2352119e3d05e9b8ca1d1621736cfb54c03f3d5fef0f",
    title="the S3 client",
    without="THAW_S3",
    cmake_options=("-DCMAKE_C_FLAGS_RELEASE=-O2 -g1 -DNDEBUG",),
)
LEFT_OUT = {"aws-lc", "aws-c-mqtt", "aws-c-event-stream"}


def is_needed(parts: tuple[str, ...]) -> bool:
    """crt/ with the libraries that are built; beside it their license."""
    if parts in (("LICENSE",), ("NOTICE",)):
        return True
    if len(parts) < 2 or parts[0] != "crt" or parts[1] in LEFT_OUT:
        return False
    # s2n's probes of libcrypto lie among its tests.
    return "tests" not in parts or parts[1] == "s2n"


def headers_of(crt: pathlib.Path, folder: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    return [(found, "") for found in [*crt.glob("*/include"), *folder.glob("*/generated/include")]]


def main() -> None:
    recipe = hashlib.sha256((LIBRARY.recipe / "CMakeLists.txt").read_bytes())
    LIBRARY.install(
        recipe.hexdigest(),
        lambda scratch: LIBRARY.unpack(scratch, is_needed) / "crt",
        headers_of,
        lambda crt: [crt.parent / notice for notice in ("LICENSE", "NOTICE")],
    )


if __name__ == "__main__":
    main()
