"""The wheel: built from an sdist, installed into an empty environment, and tested from there."""

import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUILD = pathlib.Path(os.environ.get("THAW_BUILD", ROOT / "build" / "release"))
#: Libraries that every Linux has which can run the wheel (its tag says which).
OF_THE_SYSTEM = {"libc", "libm", "libstdc++", "libgcc_s", "linux-vdso", "ld-linux-x86-64"}
#: What the tests need, by the name before `==` in requirements.txt; the packages' own needs come with them.
FOR_TESTS = {
    "flask",
    "flask-cors",
    "jsonschema",
    "langchain-openai",
    "langchain-tests",
    "moto[s3]",
    "numpy",
    "openai",
    "pytest",
    "pytest-asyncio",
    "rich",
}


def run(*command: object, **options) -> str:
    parts = [str(part) for part in command]
    result = subprocess.run(
        parts, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3000, **options
    )
    assert result.returncode == 0, f"{parts}\n{result.stdout[-8000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """As `make sdist` builds it; the grammar library and the S3 client are fetched and built on the way."""
    cache = (BUILD / "CMakeCache.txt").read_text()
    cuda = "OFF" if "THAW_CUDA:BOOL=OFF" in cache else "ON"
    folder = tmp_path_factory.mktemp("dist")
    script = ROOT / "scripts" / "build_wheel.py"
    run(sys.executable, script, "--sdist", "--define", f"THAW_CUDA={cuda}", "--output", folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """The Python of an environment that holds the wheel and what the tests need."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", place)
    python = place / "bin" / "python"
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    needed = [line for line in lines if line.partition("==")[0] in FOR_TESTS]
    assert len(needed) == len(FOR_TESTS)
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[all]", *needed)
    return python


def test_what_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("thaw_vllm/bin/thaw", "thaw_vllm/py.typed", "thaw_vllm/langgraph/chat_model.py"):
        assert name in names
    assert [name for name in names if name.startswith("thaw_vllm/_core.") and name.endswith(".so")]
    assert not [name for name in names if name.startswith(("tests/", "include/", "lib/"))]
    assert re.search(r"-manylinux_2_\d+_x86_64\.whl$", wheel.name)


def test_each_library_in_it_has_its_license(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    licenses = [name.partition("/licenses/third_party/")[2] for name in names]
    owners = {place.partition("/")[0] for place in licenses if place}
    # Packages are called libfmt9, libpcre2-8-0, libssl3; copies libfmt-0a1b2c3d.so.9.1.0.
    bundled = {
        name.partition("thaw_vllm.libs/")[2].partition("-")[0] for name in names if "thaw_vllm.libs/" in name
    }
    for library in bundled:
        owner = library.replace("libcrypto", "libssl")
        assert any(name.startswith(owner) for name in owners), library
    assert {"awscrt", "xgrammar", "pybind11"} <= owners
    metadata = next(name for name in names if name.endswith("METADATA"))
    listed = re.findall("License-File: (.*)", zipfile.ZipFile(wheel).read(metadata).decode())
    assert set(listed) == {"LICENSE"} | {f"third_party/{place}" for place in licenses if place}


def test_it_brings_its_libraries(installed):
    site = pathlib.Path(
        run(installed, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip()
    )
    for path in (site / "thaw_vllm" / "bin" / "thaw", *(site / "thaw_vllm").glob("_core.*.so")):
        for line in run("ldd", path).splitlines():
            name, _, where = line.strip().partition(" => ")
            if pathlib.PurePath(name.split()[0]).name.partition(".so")[0].partition(".")[0] in OF_THE_SYSTEM:
                continue
            assert "thaw_vllm.libs/" in where, line


def test_its_commands(installed):
    version = run(installed, "-c", "import thaw_vllm; print(thaw_vllm.__version__)").strip()
    assert run(installed.parent / "thaw", "--version") == f"thaw {version}\n"
    assert run(installed, "-m", "thaw_vllm", "--version") == f"thaw {version}\n"


def test_its_checksums_need_no_library_of_the_system(installed):
    program = "from thaw_common import format; format._isal = lambda: None; print(format.has_fast_crc32c())"
    assert run(installed, "-c", program) == "True\n"


def test_the_tests_pass_from_it(installed, tmp_path):
    """With the binary of the wheel wherever a test starts one."""
    where = run(installed, "-c", "import thaw_vllm; print(thaw_vllm.__file__)", cwd=tmp_path).strip()
    package = pathlib.Path(where).parent
    assert package.is_relative_to(installed.parent.parent)
    build = tmp_path / "build"
    (build / "bin").mkdir(parents=True)
    (build / "bin" / "thaw").symlink_to(package / "bin" / "thaw")
    (build / "testdata").symlink_to(BUILD / "testdata")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"THAW_BUILD": str(build), "THAW_BINARY": str(build / "bin" / "thaw")}
    tests = sorted((ROOT / "tests" / "python").glob("test_*.py"))
    print(run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=ROOT, env=environment))
