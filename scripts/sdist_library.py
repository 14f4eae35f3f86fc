"""A library that is built from a PyPI sdist into .deps/NAME by the recipe cmake/NAME.

Headers and one static archive are kept. A folder is written under a temporary name and renamed; where it is
done nothing is done. Uses the standard library alone.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class SdistLibrary:
    name: str
    sdist: str  # NAME==VERSION
    size: str  # of the download, for people
    sha256: str
    title: str  # what it is, for people
    without: str  # the CMake option that does without it
    cmake_options: tuple[str, ...]

    @property
    def recipe(self) -> pathlib.Path:
        return ROOT / "cmake" / self.name

    def fail(self, what: str) -> None:
        sys.exit(f"get_{self.name}: {what}")

    def fetch(self, scratch: pathlib.Path) -> pathlib.Path:
        print(f"fetching {self.sdist} ({self.size})", file=sys.stderr)
        # pip asks an sdist's build system what it is, and fetches that too.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-binary", self.name, "--dest", str(scratch), self.sdist]
        if subprocess.run(command).returncode != 0:
            self.fail(f"pip could not download {self.sdist}; is PyPI reachable?")
        (archive,) = scratch.glob(f"{self.name}-*.tar.gz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != self.sha256:
            self.fail(f"{archive.name} has SHA-256 {found}, expected {self.sha256}; not used")
        return archive

    def unpack(self, scratch: pathlib.Path, is_needed: Callable[[tuple[str, ...]], bool]) -> pathlib.Path:
        """The sdist's folder with the files whose path below it is needed."""
        with tarfile.open(self.fetch(scratch)) as sources:
            members = [m for m in sources.getmembers() if is_needed(pathlib.PurePosixPath(m.name).parts[1:])]
            sources.extractall(scratch, members)  # checked: as published
        (source,) = scratch.glob(f"{self.name}-*/")
        return source

    def build(self, source: pathlib.Path, folder: pathlib.Path) -> None:
        print(f"building {self.title}", file=sys.stderr)
        where = f"-D{self.name.upper()}_SOURCE={source}"
        options = ["-DCMAKE_BUILD_TYPE=Release", *self.cmake_options]
        commands = [
            ["cmake", "-S", self.recipe, "-B", folder, "-G", "Ninja", where, *options],
            ["cmake", "--build", folder, "-j", str(os.cpu_count() or 1)],
        ]
        for command in commands:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode != 0:
                print(done.stdout[-4000:], file=sys.stderr)
                self.fail(f"{self.title} could not be built; without it: cmake -D{self.without}=OFF")

    def install(
        self,
        recipe_sha256: str,
        make_source: Callable[[pathlib.Path], pathlib.Path],
        headers_of: Callable[[pathlib.Path, pathlib.Path], Iterable[tuple[pathlib.Path, str]]],
        licenses_of: Callable[[pathlib.Path], Iterable[pathlib.Path]],
    ) -> None:
        """`headers_of(source, build folder)`: folders, and the names they get below include/."""
        target = ROOT / ".deps" / self.name
        wanted = f"{self.sdist} {self.sha256} {recipe_sha256}\n"
        stamp = target / "stamp"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-", dir=target.parent) as name:
            scratch = pathlib.Path(name)
            source = make_source(scratch)
            folder = scratch / "build"
            self.build(source, folder)
            made = scratch / "made"
            for headers, below in headers_of(source, folder):
                shutil.copytree(headers, made / "include" / below, dirs_exist_ok=True)
            (made / "lib").mkdir()
            shutil.copy(folder / f"libthaw_{self.name}.a", made / "lib")
            for notice in licenses_of(source):
                shutil.copy(notice, made)
            (made / "stamp").write_text(wanted)
            if target.exists():
                shutil.rmtree(target)
            made.rename(target)
