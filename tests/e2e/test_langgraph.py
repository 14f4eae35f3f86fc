"""LangGraph's fan-outs as they reach the server: from ChatOpenAI over HTTP, spread, in waves, as streams.

Each is one trunk, by the server's counter and by the usage of the answers, and each answer is that of the
call made alone.
"""

import asyncio
import threading
import uuid

import pytest
from fan_graphs import BRANCHES, by_send, side_by_side
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

OWN_TOKENS = 40  # most that a branch adds to the trunk


class Fan:
    """Eight prompts on a document that nobody has sent, and the calls that ask them."""

    def __init__(self, server):
        self.server = server
        self.chat = ChatOpenAI(
            model=server.pool()["base_model"],
            base_url=f"http://127.0.0.1:{server.port}/v1",
            api_key="none",
            temperature=0,
            max_tokens=8,
            stream_usage=True,
            max_retries=0,
        )
        name = uuid.uuid4().hex[:8]
        self.document = f"Report {name}. " + f"A line that all readers of {name} have in common. " * 20
        self.running = self.most_running = 0
        self.lock = threading.Lock()
        self.before = server.wait_idle()["thaw_tokens_prefilled_total"]

    def messages(self, branch: int) -> list:
        return [SystemMessage(self.document), HumanMessage(f"{branch}: a topic")]

    def __enter__(self):
        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)

    def __exit__(self, *_):
        with self.lock:
            self.running -= 1

    def ask(self, branch: int) -> AIMessage:
        with self:
            return self.chat.invoke(self.messages(branch))

    async def aask(self, branch: int) -> AIMessage:
        with self:
            return await self.chat.ainvoke(self.messages(branch))

    def check(self, answers: list[tuple[int, AIMessage]]) -> None:
        assert sorted(branch for branch, _ in answers) == list(range(BRANCHES))
        prefilled = self.server.wait_idle()["thaw_tokens_prefilled_total"] - self.before
        usages = [answer.usage_metadata for _, answer in answers]
        computed = [u["input_tokens"] - u["input_token_details"]["cache_read"] for u in usages]
        assert sum(computed) == prefilled
        trunk = min(usage["input_tokens"] for usage in usages) - OWN_TOKENS
        assert trunk <= prefilled < trunk + (BRANCHES + 1) * OWN_TOKENS, (prefilled, trunk)
        for branch, answer in answers:
            alone = self.chat.invoke(self.messages(branch), extra_body={"cache_salt": f"alone-{branch}"})
            assert alone.usage_metadata["input_token_details"]["cache_read"] == 0
            assert answer.content == alone.content


@pytest.fixture
def fan(server):
    return Fan(server)


def async_node(fan: Fan, spread_s: float = 0.0):
    def make(branch: int):
        async def node(state):
            await asyncio.sleep(spread_s * branch / (BRANCHES - 1))
            return {"answers": [(branch, await fan.aask(branch))]}

        return node

    return make


def sync_node(fan: Fan):
    def make(branch: int):
        def node(state):
            return {"answers": [(branch, fan.ask(branch))]}

        return node

    return make


@pytest.mark.parametrize("spread_s", [0.0, 0.015])
def test_async_nodes(fan, spread_s):
    state = asyncio.run(side_by_side(async_node(fan, spread_s)).ainvoke({"answers": []}))
    fan.check(state["answers"])


def test_async_nodes_by_send(fan):
    async def node(work):
        return {"answers": [(work["branch"], await fan.aask(work["branch"]))]}

    fan.check(asyncio.run(by_send(node).ainvoke({"answers": []}))["answers"])


def test_sync_nodes_in_waves_of_six_and_two(fan):
    """Six threads is what LangGraph has on two cores: the last two start as others end."""
    state = side_by_side(sync_node(fan)).invoke({"answers": []}, {"max_concurrency": 6})
    assert fan.most_running <= 6
    fan.check(state["answers"])


def test_four_at_a_time(fan):
    state = asyncio.run(side_by_side(async_node(fan)).ainvoke({"answers": []}, {"max_concurrency": 4}))
    assert fan.most_running <= 4
    fan.check(state["answers"])


def test_streams_of_messages(fan):
    """With this mode LangGraph makes streams of the nodes' calls."""

    async def run():
        texts: dict[str, str] = {}
        last: dict = {}
        graph = side_by_side(async_node(fan))
        async for mode, part in graph.astream({"answers": []}, stream_mode=["messages", "values"]):
            if mode == "values":
                last = part
                continue
            chunk, told = part
            texts[told["langgraph_node"]] = texts.get(told["langgraph_node"], "") + chunk.text
        return texts, last["answers"]

    texts, answers = asyncio.run(run())
    assert texts == {f"n{branch}": answer.content for branch, answer in answers}
    fan.check(answers)


def test_streams_of_sync_nodes(fan):
    graph = side_by_side(sync_node(fan))
    parts = list(graph.stream({"answers": []}, {"max_concurrency": 6}, stream_mode=["messages", "values"]))
    nodes = {part[1]["langgraph_node"] for mode, part in parts if mode == "messages"}
    assert len(nodes) == BRANCHES
    fan.check(parts[-1][1]["answers"])


def test_nobody_waits_for_a_number_of_branches(fan):
    """Each branch is sent only once the one before it has said something and is still being answered: a
    server that waited for four, or for eight, would wait for ever."""
    has_begun = [asyncio.Event() for _ in range(BRANCHES + 1)]
    has_begun[0].set()

    def make(branch: int):
        async def node(state):
            await has_begun[branch].wait()
            whole = None
            stream = fan.chat.astream(
                fan.messages(branch), max_tokens=8 + 32 * (BRANCHES - branch), extra_body={"ignore_eos": True}
            )
            async for chunk in stream:
                whole = chunk if whole is None else whole + chunk
                has_begun[branch + 1].set()
            return {"answers": [(branch, whole)]}

        return node

    async def run():
        return await asyncio.wait_for(side_by_side(make).ainvoke({"answers": []}), timeout=60)

    answers = asyncio.run(run())["answers"]
    prefilled = fan.server.wait_idle()["thaw_tokens_prefilled_total"] - fan.before
    trunk = answers[0][1].usage_metadata["input_tokens"]
    assert len(answers) == BRANCHES and prefilled < trunk + BRANCHES * OWN_TOKENS
