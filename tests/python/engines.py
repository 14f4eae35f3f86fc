"""LLM objects on the tiny model: in this process, and on a server of their own."""

import importlib.util
import pathlib
import tempfile

import pytest
from conftest import BUILD
from thaw_server import ThawServer

SETTINGS = {"kv_bytes": "64MiB", "arena_bytes": "32MiB", "threads": 1}
TRUNK = "The branch of a river does not begin again at the spring. " * 20


def tiny(kind: str = "q4_1") -> pathlib.Path:
    path = BUILD / "testdata" / f"tiny-{kind}.gguf"
    if not path.exists():
        pytest.fail(f"{path} is missing; `make build` makes it")
    return path


def has_core() -> bool:
    return importlib.util.find_spec("thaw_vllm._core") is not None


class ServerLLM:
    """A server, and an LLM that talks to it. close() ends both."""

    def __init__(self):
        from thaw_vllm.llm import LLM

        self._folder = tempfile.TemporaryDirectory()
        flags = ["--session-dir", f"{self._folder.name}/sessions", "--kv-bytes", "64MiB", "--threads", "1"]
        self.server = ThawServer(BUILD / "bin" / "thaw", tiny(), flags)
        self.server.wait_healthy()
        self.llm = LLM(str(tiny()), base_url=f"http://127.0.0.1:{self.server.port}/v1", session_dir=flags[1])

    def close(self):
        self.llm.close()
        self.server.stop()
        self._folder.cleanup()


def in_process(**settings):
    from thaw_vllm.llm import LLM

    return LLM(str(tiny()), **{**SETTINGS, **settings})
