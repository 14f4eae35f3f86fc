"""One server for the clients: the default model, which calls a tool whenever it may (`--tool-auto eager`), as
a model that was made for tools would where it needs one."""

import contextlib
import itertools
import json
import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from thaw_server import ThawServer  # noqa: E402

BRANCHES = 4
OWN_TOKENS = 60  # most that a branch adds to the trunk


class Thaw:
    """The server as a client sees it, and what its fan-outs cost."""

    model = "SmolLM2-135M-Instruct.Q4_1"
    alias = "gpt-4o-mini"  # the same model, for clients that ask only names they know for calls
    topics = ("security", "names", "tests", "speed")

    def __init__(self, server: ThawServer):
        self.server = server
        self.url = f"http://127.0.0.1:{server.port}"
        self.v1 = f"{self.url}/v1"
        self._documents = itertools.count(1)

    def document(self, name: str) -> str:
        """A text that no other test has sent."""
        name = f"{name} {next(self._documents)}"
        return f"Report {name}. " + f"One line that all readers of {name} have in common. " * 30

    @contextlib.contextmanager
    def one_trunk(self, document: str):
        """What runs inside is four branches on `document`, computed once. Yields a list for (prompt, cached)
        tokens of each branch where the client says so."""
        usages: list[tuple[int, int]] = []
        before = self.server.wait_idle()
        yield usages
        after = self.server.wait_idle()
        prefilled = after["thaw_tokens_prefilled_total"] - before["thaw_tokens_prefilled_total"]
        status, counted = self.server.post("/tokenize", {"prompt": document})
        assert status == 200
        assert counted["count"] <= prefilled < counted["count"] + BRANCHES * OWN_TOKENS, (
            f"{prefilled} tokens were computed for a trunk of {counted['count']}"
        )
        if usages:
            assert len(usages) == BRANCHES
            assert sum(prompt - cached for prompt, cached in usages) == prefilled


@pytest.fixture(scope="session")
def thaw(tmp_path_factory):
    build = pathlib.Path(os.environ.get("THAW_BUILD", ROOT / "build" / "release"))
    cache = pathlib.Path(os.environ.get("THAW_CACHE_DIR", pathlib.Path.home() / ".cache" / "thaw"))
    model = cache / "models" / f"{Thaw.model}.gguf"
    for needed, maker in ((build / "bin" / "thaw", "make binary"), (model, "make model")):
        if not needed.exists():
            pytest.fail(f"{needed} is missing; `{maker}` makes it")
    env = {**os.environ, "THAW_CACHE_DIR": str(tmp_path_factory.mktemp("thaw"))}
    flags = ("--tool-auto", "eager", "--kv-bytes", "512MiB", "--served-model-name")
    flags += (f"{Thaw.model},{Thaw.alias}",)
    server = ThawServer(build / "bin" / "thaw", model, flags, env)
    server.wait_healthy()
    yield Thaw(server)
    server.stop()


@pytest.fixture
def weather():
    """A tool for agents that remembers in `cities` what it was called with."""
    cities: list[str] = []

    def weather(city: str) -> str:
        """Tells the weather in a city.

        Args:
            city: The name of the city.
        """
        cities.append(city)
        return json.dumps({"city": city, "weather": "rain"})

    weather.cities = cities
    return weather
