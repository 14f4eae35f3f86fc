"""The package as a whole: quick to import, typed, one version, and the binary's commands."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import thaw_vllm
from conftest import ROOT

VERSION = re.search(r"project\(thaw VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())[1]


def python(*arguments: str) -> subprocess.CompletedProcess:
    places = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": places},
    )


def test_import_loads_nothing_that_is_heavy():
    program = """
import sys
before = set(sys.modules)
import thaw_vllm
dir(thaw_vllm)
heavy = {"torch", "vllm", "langchain_core", "pydantic", "numpy", "ssl", "asyncio", "thaw_vllm._core"}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    result = python("-c", program)
    assert result.stdout == "[]\n", result.stderr


def test_names():
    for name in thaw_vllm.__all__:
        assert getattr(thaw_vllm, name) is not None, name
    with pytest.raises(AttributeError, match="no_such_name"):
        thaw_vllm.no_such_name  # noqa: B018
    assert set(thaw_vllm.__all__) <= set(dir(thaw_vllm))


def test_errors_of_calls():
    errors = {
        "AuthenticationError": PermissionError,
        "BadRequestError": ValueError,
        "ContextLengthError": thaw_vllm.BadRequestError,
        "NotFoundError": LookupError,
        "RateLimitError": RuntimeError,
        "UnavailableError": RuntimeError,
    }
    for name, base in errors.items():
        assert issubclass(getattr(thaw_vllm, name), base)
        assert issubclass(getattr(thaw_vllm, name), thaw_vllm.APIStatusError)


def test_langgraph_without_langchain():
    program = """
import sys
sys.modules["langchain_core"] = None
import thaw_vllm.langgraph as langgraph
assert "ChatThaw" not in langgraph.__all__
assert langgraph.ForkCoalescer
try:
    langgraph.ChatThaw
except ImportError as error:
    print(error)
"""
    result = python("-c", program)
    assert "thaw-vllm[langgraph]" in result.stdout, result.stderr


def test_one_version():
    assert thaw_vllm.__version__ == VERSION
    assert python("-m", "thaw_vllm", "--version").stdout == f"thaw {VERSION}\n"


def test_it_is_typed():
    folder = pathlib.Path(thaw_vllm.__file__).parent
    assert (folder / "py.typed").exists() and (folder / "_core.pyi").exists()


def test_the_command_line_is_the_binary_s():
    result = python("-m", "thaw_vllm", "info", "/nowhere")
    assert result.returncode == 1 and "/nowhere" in result.stderr
