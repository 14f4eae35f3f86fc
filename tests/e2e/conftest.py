"""Starts the real binary on a real file and talks to it over loopback."""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from thaw_server import ThawServer

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("THAW_BUILD", ROOT / "build" / "release"))


def tiny_model(kind: str = "q4_1") -> pathlib.Path:
    path = BUILD / "testdata" / f"tiny-{kind}.gguf"
    if not path.exists():
        pytest.fail(f"{path} is missing; `make build` makes it")
    return path


def real_model() -> pathlib.Path:
    cache = os.environ.get("THAW_CACHE_DIR", pathlib.Path.home() / ".cache" / "thaw")
    path = pathlib.Path(cache) / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.fail(f"{path} is missing; `make model` fetches it")
    return path


@pytest.fixture(scope="session")
def image_cache(tmp_path_factory):
    """Packed weights of all tests' servers: away from the user's."""
    return {**os.environ, "THAW_CACHE_DIR": str(tmp_path_factory.mktemp("thaw"))}


@pytest.fixture
def serve(image_cache):
    """serve(*flags, model=None) -> ThawServer; all are ended, and checked for leftovers, afterwards."""
    servers = []

    def start(*flags: str, model: pathlib.Path | None = None, env=None) -> ThawServer:
        server = ThawServer(BUILD / "bin" / "thaw", model or tiny_model(), flags, env or image_cache)
        servers.append(server)
        server.wait_healthy()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(serve):
    """A server on the tiny model with one worker."""
    return serve()
