#!/usr/bin/env python3
"""Builds the Python package's wheels, one for each Python named, to run where nothing was installed for them.

Each Python gets an environment of its own below build/wheel-env, with what scripts/wheel_requirements.txt
names. The wheel is built there, by pyproject.toml; auditwheel copies into it the libraries that not every
Linux has, and the licenses of all that it carries go to its dist-info. With --sdist the sources are those of
an sdist, which is kept too.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "scripts" / "wheel_requirements.txt"
# What is compiled in: a header of each, whose package has the license.
HEADERS = (
    "boost/version.hpp",
    "CLI/CLI.hpp",
    "fmt/format.h",
    "nlohmann/json.hpp",
    "spdlog/spdlog.h",
    "tsl/robin_map.h",
)
BUILT = ("awscrt", "xgrammar")  # below .deps, where the build had them


def run(*command: object, **options: object) -> str:
    """What it printed. Ends the program, and shows all of that, where it failed."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nbuild_wheel: failed: {' '.join(map(str, command))}")
    return done.stdout


class Environment:
    """A Python with the tools; made where it is not there, or was made for other tools."""

    def __init__(self, python: str) -> None:
        version = run(python, "-c", "import sys; print(sys.implementation.cache_tag)").strip()
        self.folder = ROOT / "build" / "wheel-env" / version
        self.python = self.folder / "bin" / "python"
        stamp = self.folder / "requirements.stamp"
        if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
            run(python, "-m", "venv", "--clear", self.folder)
            self.module("pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS)
            shutil.copy(REQUIREMENTS, stamp)

    def module(self, *command: object, **options: object) -> str:
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        return run(self.python, "-m", *command, env={**os.environ, "PATH": path}, **options)


def make_sdist(environment: Environment, output: pathlib.Path) -> pathlib.Path:
    """The folder that the sdist holds, unpacked below build/."""
    environment.module("build", "--sdist", "--no-isolation", "--outdir", output, ROOT)
    sdist = max(output.glob("thaw_vllm-*.tar.gz"), key=lambda path: path.stat().st_mtime)
    print(sdist)
    folder = ROOT / "build" / "sdist"
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(sdist) as sources:
        sources.extractall(folder)
    (source,) = folder.iterdir()
    return source


def licenses_of_package(owned: pathlib.Path) -> tuple[str, pathlib.Path]:
    """The name of the distribution's package that has a file, and what it says on licenses."""
    # Below /lib the package manager may know it as of /usr/lib, or the other way round.
    places = {owned, owned.resolve(), pathlib.Path(str(owned.resolve()).removeprefix("/usr"))}
    for place in places:
        done = subprocess.run(["dpkg-query", "-S", place], capture_output=True, text=True)
        if done.returncode == 0:
            package = done.stdout.split(":")[0]
            text = pathlib.Path("/usr/share/doc") / package / "copyright"
            if text.exists():
                return package, text
    sys.exit(f"build_wheel: no package tells the license of {owned}")


def needed_libraries(environment: Environment, wheel: pathlib.Path) -> dict[str, pathlib.Path]:
    """Shared libraries of this machine by name, as the loader finds them for what a wheel holds."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        environment.module("wheel", "unpack", "--dest", name, wheel)
        for path in pathlib.Path(name).rglob("*"):
            if path.is_file() and path.open("rb").read(4) == b"\x7fELF":
                for line in run("ldd", path).splitlines():
                    parts = line.split()
                    if "=>" in parts and parts[2].startswith("/"):
                        found[parts[0]] = pathlib.Path(parts[2])
    return found


def third_party(
    environment: Environment, source: pathlib.Path, bundled: dict[str, pathlib.Path], with_cuda: bool
) -> dict[str, pathlib.Path]:
    """License texts by their place below licenses/third_party."""
    owned = [*bundled.values(), *(pathlib.Path("/usr/include") / header for header in HEADERS)]
    texts = {f"{package}/copyright": text for package, text in map(licenses_of_package, owned)}
    for name in BUILT:
        for text in (source / ".deps" / name).glob("[LN][IO]*"):  # LICENSE, NOTICE
            texts[f"{name}/{text.name}"] = text
    (pybind11,) = environment.folder.glob("lib/python*/site-packages/pybind11-*.dist-info")
    texts["pybind11/LICENSE"] = next(pybind11.rglob("LICENSE"))
    if with_cuda:
        cuda = pathlib.Path(os.path.realpath("/usr/local/cuda"))
        runtime = [*cuda.glob("dist-info/nvidia_cuda_runtime-*/licenses/License.txt"), *cuda.glob("EULA*")]
        if not runtime:
            sys.exit(
                f"build_wheel: no license of the CUDA runtime in {cuda}; without it: --define THAW_CUDA=OFF"
            )
        texts["cuda-runtime/License.txt"] = runtime[0]
    return texts


def add_licenses(folder: pathlib.Path, texts: dict[str, pathlib.Path]) -> None:
    """To an unpacked wheel, and to what its METADATA lists."""
    (info,) = folder.glob("*.dist-info")
    for place, text in texts.items():
        target = info / "licenses" / "third_party" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(text, target)
    head, blank, body = (info / "METADATA").read_text().partition("\n\n")
    listed = "".join(f"\nLicense-File: third_party/{place}" for place in sorted(texts))
    (info / "METADATA").write_text(head + listed + blank + body)


def repair(environment: Environment, raw: pathlib.Path, source: pathlib.Path, output: pathlib.Path) -> None:
    """The wheel `raw` with all that it needs, written to `output`."""
    libraries = needed_libraries(environment, raw)
    with tempfile.TemporaryDirectory(dir=raw.parent) as name:
        scratch = pathlib.Path(name)
        environment.module("auditwheel", "repair", "--wheel-dir", scratch / "whole", raw)
        (whole,) = (scratch / "whole").glob("*.whl")
        environment.module("wheel", "unpack", "--dest", scratch, whole)
        (folder,) = scratch.glob("thaw_vllm-*/")
        # libfmt-0a1b2c3d.so.9 is libfmt.so.9's copy.
        copies = {path.name.partition("-")[0] for path in (folder / "thaw_vllm.libs").iterdir()}
        stems = {library: library.partition(".so")[0].partition("-")[0] for library in libraries}
        bundled = {library: path for library, path in libraries.items() if stems[library] in copies}
        if {stems[library] for library in bundled} != copies:
            sys.exit(
                f"build_wheel: whose are these: {', '.join(sorted(copies))}? known: {', '.join(libraries)}"
            )
        with_cuda = b"cudaGetDevice" in (folder / "thaw_vllm" / "bin" / "thaw").read_bytes()
        add_licenses(folder, third_party(environment, source, bundled, with_cuda))
        output.mkdir(parents=True, exist_ok=True)
        environment.module("wheel", "pack", "--dest-dir", output, folder)
        print(output / whole.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="3.10 or newer; default: this one")
    parser.add_argument("--sdist", action="store_true", help="build from an sdist, and keep that too")
    parser.add_argument("--define", action="append", default=[], metavar="NAME=VALUE", help="for CMake")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "build" / "dist")
    arguments = parser.parse_args()
    environments = [Environment(python) for python in arguments.pythons or [sys.executable]]
    arguments.output.mkdir(parents=True, exist_ok=True)
    source = make_sdist(environments[0], arguments.output) if arguments.sdist else ROOT
    defines = [f"--config-settings=cmake.define.{define}" for define in arguments.define]
    os.environ.setdefault("CXX", "c++")  # the compiler's name is part of what a compiler cache looks for
    for environment in environments:
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
            how = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", name]
            environment.module("pip", "wheel", *how, *defines, source)
            (raw,) = pathlib.Path(name).glob("*.whl")
            repair(environment, raw, source, arguments.output)


if __name__ == "__main__":
    main()
