"""Eight branches of a LangGraph graph: one trunk is computed, and each answer has the bits of a lone call."""

import asyncio
import concurrent.futures
import uuid
from typing import Any, TypedDict

import pytest
import thaw_vllm
from chats import distinct_tokens, prefilled, prompt_tokens, tiny_chat, words
from fan_graphs import BRANCHES, by_send, side_by_side
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from thaw_vllm.langgraph import ChatThaw, fork_fanout

SHOWN = {"logprobs": True, "top_logprobs": 2}


class Work(TypedDict):
    branch: int


@pytest.fixture
def chat():
    return tiny_chat()


class Fan:
    """Eight prompts with a trunk that nobody had before."""

    def __init__(self, chat) -> None:
        self.chat = chat
        trunk = words(uuid.uuid4().hex[:6], 60)
        self.messages = [
            [SystemMessage("You review code."), HumanMessage(f"{trunk}\n\nReviewer {branch}: go.")]
            for branch in range(BRANCHES)
        ]
        self.prompts = [prompt_tokens(chat, messages) for messages in self.messages]
        self.trunk = len(self.prompts[0]) - 16
        assert self.trunk > 200
        self.before = prefilled(chat)

    def check(self, answers: dict[int, Any], fields: dict[int, dict[str, Any]] | None = None) -> None:
        """One trunk was prefilled, and the answers are those of the calls made alone."""
        computed = prefilled(self.chat) - self.before
        least = distinct_tokens(self.prompts)
        # A prompt's last token is computed again; a branch that came later may start at a block's edge.
        assert self.trunk // 2 < computed <= least + BRANCHES * 16, (computed, least)
        assert computed < 2 * self.trunk
        for branch, answer in answers.items():
            more = (fields or {}).get(branch, {})
            alone = self.chat.invoke(self.messages[branch], cache_salt=uuid.uuid4().hex, **SHOWN, **more)
            assert alone.usage_metadata["input_token_details"]["cache_read"] == 0
            assert answer.content == alone.content
            assert answer.response_metadata["logprobs"] == alone.response_metadata["logprobs"]


@pytest.fixture
def fan(chat):
    return Fan(chat)


def async_node(fan, fields=None):
    def make(branch):
        async def node(state, config: RunnableConfig):  # before Python 3.11 a task does not inherit it
            more = (fields or {}).get(branch, {})
            answer = await fan.chat.ainvoke(fan.messages[branch], config, **SHOWN, **more)
            return {"answers": [(branch, answer)]}

        return node

    return make


def sync_node(fan):
    def make(branch):
        def node(state):
            return {"answers": [(branch, fan.chat.invoke(fan.messages[branch], **SHOWN))]}

        return node

    return make


async def test_async_nodes(fan):
    result = await side_by_side(async_node(fan)).ainvoke({"answers": []})
    fan.check(dict(result["answers"]))


def test_sync_nodes(fan):
    result = side_by_side(sync_node(fan)).invoke({"answers": []})
    fan.check(dict(result["answers"]))


async def test_send_to_async_nodes(fan):
    async def node(work: Work):
        answer = await fan.chat.ainvoke(fan.messages[work["branch"]], **SHOWN)
        return {"answers": [(work["branch"], answer)]}

    result = await by_send(node).ainvoke({"answers": []})
    fan.check(dict(result["answers"]))


def test_send_to_sync_nodes(fan):
    def node(work: Work):
        return {"answers": [(work["branch"], fan.chat.invoke(fan.messages[work["branch"]], **SHOWN))]}

    result = by_send(node).invoke({"answers": []})
    fan.check(dict(result["answers"]))


def test_threads(fan):
    with concurrent.futures.ThreadPoolExecutor(BRANCHES) as pool:
        answers = list(pool.map(lambda messages: fan.chat.invoke(messages, **SHOWN), fan.messages))
    fan.check(dict(enumerate(answers)))


async def test_gather(fan):
    answers = await asyncio.gather(*(fan.chat.ainvoke(messages, **SHOWN) for messages in fan.messages))
    fan.check(dict(enumerate(answers)))


def test_batch(fan):
    fan.check(dict(enumerate(fan.chat.bind(**SHOWN).batch(fan.messages))))


async def test_stream_mode_messages(fan):
    seen: dict[str, str] = {}
    graph = side_by_side(async_node(fan))
    last = None
    async for mode, part in graph.astream({"answers": []}, stream_mode=["messages", "values"]):
        if mode == "values":
            last = part
            continue
        chunk, metadata = part
        seen[metadata["langgraph_node"]] = seen.get(metadata["langgraph_node"], "") + chunk.content
    answers = dict(last["answers"])
    assert {f"n{branch}": answer.content for branch, answer in answers.items()} == seen
    fan.check(answers)


def test_stream_mode_messages_of_sync_nodes(fan):
    parts = list(side_by_side(sync_node(fan)).stream({"answers": []}, stream_mode=["messages", "values"]))
    fan.check(dict(parts[-1][1]["answers"]))
    assert len({part[1]["langgraph_node"] for mode, part in parts if mode == "messages"}) == BRANCHES


async def test_max_concurrency(fan):
    result = await side_by_side(async_node(fan)).ainvoke({"answers": []}, {"max_concurrency": 4})
    fan.check(dict(result["answers"]))


async def test_one_that_raises(fan):
    # Too many tokens for the model's context: an error of that branch alone.
    too_many = {3: {"max_tokens": 10_000_000}}

    def make(branch):
        plain = async_node(fan, too_many)(branch)

        async def node(state, config: RunnableConfig):
            try:
                return await plain(state, config)
            except ValueError as error:
                return {"answers": [(branch, error)]}

        return node

    answers = dict((await side_by_side(make).ainvoke({"answers": []}))["answers"])
    error = answers.pop(3)
    assert "10000000" in str(error)
    fan.prompts.pop(3)
    fan.check(answers)


async def test_one_that_is_cancelled(fan):
    async def call(branch):
        more = {"max_tokens": 4000, "ignore_eos": True} if branch == 5 else {}
        return await fan.chat.ainvoke(fan.messages[branch], **{**SHOWN, **more})

    tasks = [asyncio.create_task(call(branch)) for branch in range(BRANCHES)]
    others = [task for branch, task in enumerate(tasks) if branch != 5]
    answers = await asyncio.gather(*others)
    tasks[5].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[5]
    fan.check(dict(zip([n for n in range(BRANCHES) if n != 5], answers)))
    await until_idle(fan.chat)


async def until_idle(chat) -> None:
    """Waits until no request is in the engine any more: what was cancelled has gone."""
    from chats import counter

    for _ in range(500):
        if counter(chat, "thaw_requests_in_flight") == 0 and counter(chat, "thaw_sequences_running") == 0:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the cancelled request still runs after 5 seconds")


async def test_one_with_other_sampling(fan):
    other = {2: {"temperature": 1.3, "top_p": 0.9, "seed": 11}}
    result = await side_by_side(async_node(fan, other)).ainvoke({"answers": []})
    fan.check(dict(result["answers"]), other)


@pytest.mark.parametrize(
    "error, kind",
    [
        ({"code": "context_length_exceeded", "type": "invalid_request_error"}, ContextOverflowError),
        ({"code": None, "type": "invalid_request_error"}, thaw_vllm.BadRequestError),
        ({"code": "model_not_found", "type": "invalid_request_error"}, thaw_vllm.NotFoundError),
        ({"code": "rate_limit_exceeded", "type": "rate_limit_error"}, thaw_vllm.RateLimitError),
        ({"code": "unavailable", "type": "server_error"}, thaw_vllm.UnavailableError),
        ({"code": "internal", "type": "server_error"}, thaw_vllm.APIStatusError),
    ],
)
async def test_a_branch_s_error_is_of_its_kind(error, kind):
    class Branches:
        async def acall(self, method, path, body, **more):
            return {"data": [{"branch": 0, "error": {"message": "no", **error}}]}

    chat = ChatThaw(model="default")
    chat._client = Branches()
    with pytest.raises(kind, match="no") as caught:
        await fork_fanout(chat, [HumanMessage("a")], [[HumanMessage("b")]])
    assert (caught.value.status, caught.value.code) == (0, error["code"])
    assert type(caught.value) is kind or kind is ContextOverflowError


async def test_a_trunk_that_is_too_long():
    with pytest.raises(ContextOverflowError):
        await fork_fanout(tiny_chat(), [HumanMessage("a")], [[HumanMessage("b")]], max_tokens=10_000_000)


async def test_fork_fanout(fan):
    trunk = fan.messages[0][:1] + [HumanMessage(words(uuid.uuid4().hex[:6], 60))]
    suffixes = [[HumanMessage(f"Reviewer {branch}: go.")] for branch in range(BRANCHES)]
    texts = await fork_fanout(fan.chat, trunk, suffixes, max_tokens=6)
    computed = prefilled(fan.chat) - fan.before
    prompts = [prompt_tokens(fan.chat, trunk + suffix) for suffix in suffixes]
    assert computed <= distinct_tokens(prompts) + BRANCHES * 16
    for text, suffix in zip(texts, suffixes, strict=True):
        alone = fan.chat.invoke(trunk + suffix, max_tokens=6, cache_salt=uuid.uuid4().hex)
        assert alone.content == text
