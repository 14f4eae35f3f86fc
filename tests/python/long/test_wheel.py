"""The wheel: built, installed into an empty environment, and tested from there."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUILD = pathlib.Path(os.environ.get("THAW_BUILD", ROOT / "build" / "release"))


def run(*command: str, **options) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=3000, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """As `make wheel` builds it, with the objects that the compiler cache has."""
    cache = (BUILD / "CMakeCache.txt").read_text()
    cuda = "OFF" if "THAW_CUDA:BOOL=OFF" in cache else "ON"
    folder = tmp_path_factory.mktemp("dist")
    run(
        *[sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)],
        f"-Ccmake.define.THAW_CUDA={cuda}",
        str(ROOT),
        env={**os.environ, "CXX": "c++"},  # the compiler's name is part of what the cache looks for
    )
    return next(folder.glob("*.whl"))


def test_what_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("thaw_vllm/bin/thaw", "thaw_vllm/py.typed", "thaw_vllm/langgraph/chat_model.py"):
        assert name in names
    assert [name for name in names if name.startswith("thaw_vllm/_core.") and name.endswith(".so")]
    assert not [name for name in names if name.startswith(("tests/", "include/", "lib/"))]


def test_the_tests_pass_from_it(wheel, tmp_path):
    place = tmp_path / "venv"
    run(sys.executable, "-m", "venv", str(place))
    python = str(place / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[langgraph]")
    # What the tests alone need comes from this environment; the packages do not.
    needed = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line.startswith(("pytest==", "pytest-asyncio==", "langchain-tests=="))
    ]
    run(python, "-m", "pip", "install", "--quiet", *needed)
    where = run(python, "-c", "import thaw_vllm; print(thaw_vllm.__file__)", cwd=tmp_path).strip()
    assert where.startswith(str(place))
    assert run(str(place / "bin" / "thaw"), "--version").startswith("thaw ")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    tests = ["test_package.py", "test_client.py", "test_engine.py", "test_chat_thaw.py", "test_fan_outs.py"]
    print(
        run(
            *[python, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
            *[str(ROOT / "tests" / "python" / name) for name in tests],
            cwd=ROOT,
            env={**environment, "THAW_BUILD": str(BUILD)},
        )
    )
