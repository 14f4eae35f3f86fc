"""Tests of the Python packages, from the build's tree of links, else from the sources."""

import importlib.util
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("THAW_BUILD", ROOT / "build" / "release"))
if importlib.util.find_spec("thaw_vllm") is None:
    tree = BUILD / "python"
    sys.path.insert(0, str(tree if (tree / "thaw_vllm" / "__init__.py").exists() else ROOT / "python"))
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
