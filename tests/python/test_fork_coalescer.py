"""ForkCoalescer in front of callables that stand for an engine."""

import asyncio

import pytest
from thaw_vllm.langgraph import ForkCoalescer
from thaw_vllm.langgraph._message_utils import approximate_token_count, common_prefix_length, message_key

LONG = {"role": "user", "content": "x" * 4000}


def said(text):
    return {"role": "user", "content": text}


class Engine:
    def __init__(self) -> None:
        self.calls = []

    async def fork(self, prefix, suffixes, sampling):
        self.calls.append(("fork", len(prefix), len(suffixes), sampling))
        return [f"fork {suffix[-1]['content']}" for suffix in suffixes]

    async def single(self, messages, sampling):
        self.calls.append(("single", sampling))
        if messages[-1]["content"] == "bad":
            raise ValueError("bad message")
        return f"single {messages[-1]['content']}"

    async def batch(self, lists, sampling):
        self.calls.append(("batch", len(lists), sampling))
        return [f"batch {messages[-1]['content']}" for messages in lists]

    def coalescer(self, **options):
        return ForkCoalescer(fork_callable=self.fork, single_callable=self.single, **options)


async def test_what_begins_alike_is_forked():
    engine = Engine()
    coalescer = engine.coalescer()
    texts = await asyncio.gather(*(coalescer.submit([LONG, said(name)], {"t": 0}) for name in "abc"))
    assert texts == ["fork a", "fork b", "fork c"]
    assert engine.calls == [("fork", 1, 3, {"t": 0})]


async def test_a_lone_call_and_short_prefixes_are_single():
    engine = Engine()
    coalescer = engine.coalescer()
    assert await coalescer.submit([LONG, said("a")], {}) == "single a"
    await asyncio.gather(*(coalescer.submit([said("short"), said(name)], {}) for name in "ab"))
    assert [call[0] for call in engine.calls] == ["single"] * 3


async def test_a_batch_where_there_is_one():
    engine = Engine()
    coalescer = engine.coalescer(batch_single_callable=engine.batch)
    texts = await asyncio.gather(*(coalescer.submit([said(name)], {}) for name in "ab"))
    assert texts == ["batch a", "batch b"]


async def test_each_call_has_its_own_sampling():
    engine = Engine()
    coalescer = engine.coalescer()
    await asyncio.gather(*(coalescer.submit([LONG, said(str(t))], {"t": t % 2}) for t in range(4)))
    assert sorted(call[3]["t"] for call in engine.calls) == [0, 1]


async def test_errors_are_of_their_call():
    engine = Engine()
    coalescer = engine.coalescer()
    results = await asyncio.gather(
        *(coalescer.submit([said(name)], {}) for name in ("good", "bad")), return_exceptions=True
    )
    assert results[0] == "single good" and isinstance(results[1], ValueError)


async def test_a_wrong_count_is_an_error_for_all():
    async def fork(prefix, suffixes, sampling):
        return ["one"]

    coalescer = ForkCoalescer(fork_callable=fork, single_callable=Engine().single)
    results = await asyncio.gather(
        *(coalescer.submit([LONG, said(name)], {}) for name in "ab"), return_exceptions=True
    )
    assert all(isinstance(result, RuntimeError) and "2 calls" in str(result) for result in results)


async def test_a_cancelled_call_leaves_the_window():
    engine = Engine()
    coalescer = engine.coalescer(window_ms=20)
    tasks = [asyncio.create_task(coalescer.submit([LONG, said(name)], {})) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    assert await tasks[0] == "fork a" and await tasks[2] == "fork c"
    assert engine.calls == [("fork", 1, 2, {})]


def test_several_loops_and_plain_functions():
    coalescer = ForkCoalescer(
        fork_callable=lambda prefix, suffixes, sampling: ["f"] * len(suffixes),
        single_callable=lambda messages, sampling: "s",
    )

    async def both():
        return await asyncio.gather(*(coalescer.submit([LONG, said(name)], {}) for name in "ab"))

    assert asyncio.run(both()) == ["f", "f"]
    assert asyncio.run(both()) == ["f", "f"]


def test_prefixes_are_of_whole_messages():
    from langchain_core.messages import AIMessage, HumanMessage

    a = [HumanMessage("x"), AIMessage("y"), HumanMessage("one")]
    b = [HumanMessage("x"), AIMessage("y"), HumanMessage("two")]
    assert common_prefix_length([a, b]) == 2
    assert common_prefix_length([a, a]) == 3
    assert common_prefix_length([a, []]) == 0
    assert common_prefix_length([]) == 0
    assert message_key(HumanMessage("x")) != message_key(AIMessage("x"))
    assert message_key(HumanMessage("x", id="1")) == message_key(HumanMessage("x", id="2"))
    assert approximate_token_count([said("x" * 10), HumanMessage([{"type": "text", "text": "y" * 6}])]) == 4


def test_a_window_cannot_be_negative():
    with pytest.raises(ValueError, match="window_ms"):
        Engine().coalescer(window_ms=-1)
