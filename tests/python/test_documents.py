"""The examples of the documents run as they are written."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from chats import real_model
from conftest import ROOT

DOCUMENTS = ("README.md", "docs/python.md")


def examples() -> list[tuple[str, str]]:
    """Blocks of Python that import thaw_vllm, with where they stand."""
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
            if "thaw_vllm" in match[1]:
                found.append((f"{name}:{text[: match.start()].count(chr(10)) + 2}", match[1]))
    return found


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


@pytest.mark.parametrize("where, program", examples(), ids=[where for where, _ in examples()])
def test_example(where, program):
    real_model()
    result = run(program)
    assert result.returncode == 0, f"{where}\n{result.stderr}"
    assert result.stdout.strip()


def test_the_fan_out_of_the_readme_shares():
    where, program = examples()[0]
    assert where.startswith("README.md")
    assert len([line for line in program.splitlines() if line]) <= 10
    result = run(program)
    shared = [int(count) for count in re.findall(r"'cache_read': (\d+)", result.stdout)]
    assert len(shared) == 4 and sorted(shared)[1] > 500, result.stdout + result.stderr


def test_every_public_name_is_documented():
    import thaw_vllm
    import thaw_vllm.langgraph

    text = "".join(path.read_text() for path in pathlib.Path(ROOT / "docs").glob("python*.md"))
    names = [*thaw_vllm.langgraph.__all__, *thaw_vllm.__all__]
    assert not [name for name in names if not name.startswith("__") and f"{name}" not in text]
