"""ChatThaw: thaw as LangChain's chat model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils import from_env, secret_from_env
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SecretStr, model_validator
from typing_extensions import Self

from thaw_vllm import _engines
from thaw_vllm._client import Client
from thaw_vllm._engine_settings import engine_settings
from thaw_vllm._transport import HttpEndpoint
from thaw_vllm.langgraph._chunks import ChunkReader
from thaw_vllm.langgraph._messages import message_of, to_json, usage_of
from thaw_vllm.langgraph._overflow import as_overflow
from thaw_vllm.langgraph._tools import (
    function_tool,
    parsed_by,
    response_format_of,
    structured_parser,
    tool_choice_of,
)

Json = dict[str, Any]

_PATH = "/v1/chat/completions"
_DEFAULT_MODEL = "default"
# Fields that are of the engine, and mean nothing where a server has it.
_ENGINE_FIELDS = (
    "fork_window_ms",
    "fork_min_prefix_tokens",
    "workers",
    "device",
    "extra_llm_kwargs",
    "extra_pool_kwargs",
)
# Fields of thaw-vllm that mean nothing here: memory is sized by bytes, forks are always on and exact.
_MEANINGLESS_FIELDS = (
    "enable_auto_fork",
    "enforce_eager",
    "gpu_memory_utilization",
    "worker_gpu_memory_utilization",
)
# Fields that are the request's, under the request's name.
_REQUEST_FIELDS = (
    "temperature",
    "max_tokens",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "reasoning_effort",
)
# Of calls, for LangChain or the binding alone.
_NOT_SENT = frozenset(
    {"ls_structured_output_format", "strict", "stream_usage", "stream", "timeout", "extra_body"}
)


class ChatThaw(BaseChatModel):
    """A model of thaw's as a LangChain chat model.

    Without ``base_url`` the model runs in this process's own worker processes, shared by all ChatThaw objects
    of the same model and engine settings; they start with the first call and end with the interpreter or the
    last close(). With it, calls go to a thaw server. Either way calls that begin alike, however they arrive
    (asyncio, threads, batch, streams, LangGraph's Send), share one prefill of what they have in common, and
    each is answered bit for bit as if it had been made alone.

    ``model`` is what `thaw serve` takes: a GGUF file, a directory of Hugging Face's files, a .thaw file,
    org/name in the local Hugging Face cache, or "default"; with ``base_url``, a name that the server has.
    Safe for threads, event loops and os.fork(). A task that is cancelled and a stream that is closed end
    their request in the engine. Errors: those of thaw_vllm (BadRequestError, ...), and what the engine raises
    at its start (ValueError, OSError, RuntimeError).
    """

    # A key may be among the input: no message quotes it.
    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, populate_by_name=True, hide_input_in_errors=True
    )

    model: str = Field(validation_alias=AliasChoices("model", "model_name"))
    base_url: str | None = Field(default_factory=from_env("THAW_BASE_URL", default=None))
    api_key: SecretStr | None = Field(default_factory=secret_from_env("THAW_API_KEY", default=None))
    timeout: float | None = Field(
        default=None, gt=0, validation_alias=AliasChoices("timeout", "request_timeout")
    )
    """Seconds for a call; in streams, for each wait. They begin once the engine has started. None: 600."""
    max_retries: int = Field(default=2, ge=0)
    """After 429, 503 and connections that ended before an answer began."""

    temperature: float | None = 0.7
    max_tokens: int | None = Field(
        default=256, validation_alias=AliasChoices("max_tokens", "max_completion_tokens")
    )
    top_p: float | None = 1.0
    top_k: int | None = None
    min_p: float | None = None
    n: int = Field(default=1, ge=1)
    seed: int | None = None
    stop: list[str] | str | None = Field(
        default=None, validation_alias=AliasChoices("stop", "stop_sequences")
    )
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    streaming: bool = False
    stream_usage: bool = True
    """Whether streams end with usage_metadata."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More fields of each request (docs/http.md)."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """The same."""

    fork_window_ms: float = Field(default=2.0, ge=0)
    fork_min_prefix_tokens: int = Field(default=500, ge=0)
    enable_auto_fork: bool = True
    workers: int = Field(default=1, ge=1)
    device: str | None = None
    """"cpu" (the default), "cuda", "cuda:N"."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    enforce_eager: bool = True
    gpu_memory_utilization: float = 0.25
    worker_gpu_memory_utilization: float = 0.55
    extra_llm_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Flags of `thaw serve` ("kv_bytes": "512MiB"), or vLLM's names for them ("max_model_len")."""
    extra_pool_kwargs: dict[str, Any] = Field(default_factory=dict)
    """The same."""

    _engine: _engines.EngineUse | None = PrivateAttr(default=None)
    _client: Client = PrivateAttr()

    @model_validator(mode="after")
    def _connect(self) -> Self:
        """Makes the client; nothing is started or asked yet."""
        ignored = [name for name in _MEANINGLESS_FIELDS if self._differs(name)]
        if self.base_url is None:
            settings, more = engine_settings({**self.extra_llm_kwargs, **self.extra_pool_kwargs})
            ignored += more
            settings.setdefault("window_ms", self.fork_window_ms)
            settings.setdefault("fork_min_prefix_tokens", self.fork_min_prefix_tokens)
            settings.setdefault("workers", self.workers)
            if self.device is not None:
                settings.setdefault("device", self.device)
            if self.tensor_parallel_size > 1:
                if str(settings.get("device", "cpu")).startswith("cuda"):
                    settings.setdefault("tensor_parallel", self.tensor_parallel_size)
                else:
                    ignored.append("tensor_parallel_size")
            model = "" if self.model == _DEFAULT_MODEL else self.model
            self._engine = _engines.use_engine(model, settings)
            endpoint: Any = self._engine.endpoint
        else:
            ignored += [name for name in (*_ENGINE_FIELDS, "tensor_parallel_size") if self._differs(name)]
            endpoint = HttpEndpoint(self.base_url, self.api_key.get_secret_value() if self.api_key else None)
        if ignored:
            warnings.warn(f"ChatThaw: without effect here: {', '.join(dict.fromkeys(ignored))}", stacklevel=2)
        self._client = Client(endpoint)
        return self

    def _differs(self, name: str) -> bool:
        """Whether a field has another value than its default; who sets all fields means none of them."""
        default = type(self).model_fields[name].get_default(call_default_factory=True)
        return bool(getattr(self, name) != default)

    def close(self) -> None:
        """Ends idle connections, and the engine if no other ChatThaw uses it. The next call starts another.

        Calls that run in an engine that ends fail (UnavailableError, APIConnectionError); others go on.
        """
        self._client.close()
        if self._engine is not None:
            self._engine.close()

    # -- what it is

    @property
    def model_name(self) -> str:
        return self.model

    @property
    def _llm_type(self) -> str:
        return "chat-thaw"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        names = (
            "model",
            "base_url",
            "fork_window_ms",
            "fork_min_prefix_tokens",
            "enable_auto_fork",
            "workers",
            "device",
            "tensor_parallel_size",
            "extra_llm_kwargs",
            "extra_pool_kwargs",
            "stop",
            "model_kwargs",
            "extra_body",
            *_REQUEST_FIELDS,
        )
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "thaw"
        if (stops := stop or self._stops()) is not None:
            params["ls_stop"] = stops
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        profile = ModelProfile(
            text_inputs=True,
            text_outputs=True,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
            reasoning_output=True,
        )
        if isinstance(length := self.extra_llm_kwargs.get("max_model_len"), int):
            profile["max_input_tokens"] = length
        return profile

    # -- calls

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        body, patience = self._request(messages, stop, kwargs, stream=False)
        with as_overflow():
            return self._result(self._client.call("POST", _PATH, body, **patience))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        body, patience = self._request(messages, stop, kwargs, stream=False)
        with as_overflow():
            return self._result(await self._client.acall("POST", _PATH, body, **patience))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        body, patience = self._request(messages, stop, kwargs, stream=True)
        reader = ChunkReader()
        with as_overflow(), contextlib.closing(self._client.stream(_PATH, body, **patience)) as events:
            for event in events:
                for chunk in reader.read(event):
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        for chunk in reader.end():
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        body, patience = self._request(messages, stop, kwargs, stream=True)
        reader = ChunkReader()
        with as_overflow():
            async with contextlib.aclosing(self._client.astream(_PATH, body, **patience)) as events:
                async for event in events:
                    for chunk in reader.read(event):
                        if run_manager is not None:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk
        for chunk in reader.end():
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _stops(self) -> list[str] | None:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def _request(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        kwargs: Mapping[str, Any],
        *,
        stream: bool,
    ) -> tuple[Json, Json]:
        """The request's body, and how long and how often it is tried."""
        body = self._fields(kwargs, stop)
        body["messages"] = to_json(messages)
        if stream:
            if body.get("n", 1) != 1:
                raise ValueError(f"n is {body['n']}; a stream has one choice")
            body["stream"] = True
            if kwargs.get("stream_usage", self.stream_usage):
                body.setdefault("stream_options", {"include_usage": True})
        return body, self._patience(kwargs)

    def _patience(self, kwargs: Mapping[str, Any]) -> Json:
        """Arguments of the client's calls."""
        timeout = kwargs.get("timeout")
        return {
            "timeout_s": self.timeout if timeout is None else timeout,
            "max_retries": self.max_retries,
        }

    def _fields(self, kwargs: Mapping[str, Any], stop: list[str] | str | None) -> Json:
        """All of a request but its messages: the object's fields, and over them the call's."""
        stop = self._stops() if stop is None else stop
        body: Json = {}
        for layer in (
            {name: value for name in _REQUEST_FIELDS if (value := getattr(self, name)) is not None},
            self._named(),
            self.model_kwargs,
            self.extra_body,
            {"stop": stop} if stop else {},
            kwargs.get("extra_body") or {},
            {name: value for name, value in kwargs.items() if name not in _NOT_SENT and value is not None},
        ):
            body.update(layer)
            if "max_completion_tokens" in body:  # another word for max_tokens; the later layer counts
                body["max_tokens"] = body.pop("max_completion_tokens")
        if "response_format" in body:
            body["response_format"] = response_format_of(body["response_format"])
        if body.get("top_logprobs") is not None:
            body.setdefault("logprobs", True)
        return body

    def _result(self, answer: Json) -> ChatResult:
        usage = usage_of(answer.get("usage"))
        generations = []
        for choice in answer["choices"]:
            # Of several choices the first one carries what all together cost.
            message = message_of(answer, choice, usage if choice["index"] == 0 else None)
            info = {"finish_reason": choice.get("finish_reason"), "logprobs": choice.get("logprobs")}
            generations.append(ChatGeneration(message=message, generation_info=info))
        return ChatResult(
            generations=generations,
            llm_output={
                "token_usage": answer.get("usage"),
                "model_name": answer.get("model"),
                "system_fingerprint": answer.get("system_fingerprint"),
                "id": answer.get("id"),
            },
        )

    def _combine_llm_outputs(self, llm_outputs: list[Json | None]) -> Json:
        """Of a batch: the first one's names, and what all together used."""
        outputs = [output for output in llm_outputs if output]
        usage: dict[str, int] = {}
        for output in outputs:
            for name, count in (output.get("token_usage") or {}).items():
                if isinstance(count, int):
                    usage[name] = usage.get(name, 0) + count
        return {**(outputs[0] if outputs else {}), "token_usage": usage}

    # -- tools and structured output

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools. Calls are held to the tools' schemas token by token.

        ``tool_choice``: "auto", "none", "any" or "required", a tool's name, or a dict of OpenAI's form;
        without one the model decides. ``response_format``: a schema that a reply which is no call follows.
        ``strict`` is taken and changes nothing, since every schema is kept to. Raises ValueError for a
        tool_choice that is not bound.
        """
        functions = [function_tool(tool, strict) for tool in tools]
        bound: Json = {"tools": functions}
        if (choice := tool_choice_of(tool_choice, functions)) is not None:
            bound["tool_choice"] = choice
        if parallel_tool_calls is not None:
            bound["parallel_tool_calls"] = parallel_tool_calls
        if response_format is not None:
            bound["response_format"] = response_format_of(response_format, strict=strict)
        return self.bind(**bound, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Literal["function_calling", "json_schema", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        tools: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model with replies of a schema: a pydantic class (replies are objects of it), a TypedDict or a
        JSON schema (replies are dicts).

        ``method``: "json_schema" has the reply follow the schema token by token; "function_calling" has the
        model call a tool with it; "json_mode" has it write any JSON object, which is validated where
        ``schema`` is a pydantic class, and needs no schema. ``tools``: what the model may call instead of a
        reply, with "json_schema". A reply that max_tokens cut, or that is no JSON, is LangChain's
        OutputParserException, but not in streams, which give what there is. ``include_raw``: replies are
        {"raw": message, "parsed": ..., "parsing_error": ...}, and what cannot be parsed does not raise.
        Raises ValueError for another method, a schema that is missing, and tools with another method.
        """
        if method not in ("function_calling", "json_schema", "json_mode"):
            raise ValueError(
                f"method is {method!r}; it must be 'function_calling', 'json_schema' or 'json_mode'"
            )
        if schema is None and method != "json_mode":
            raise ValueError(f"method {method!r} needs a schema")
        if tools and method != "json_schema":
            raise ValueError(f"tools go with method 'json_schema', not with {method!r}")
        how: Json = {"kwargs": {"method": method, "strict": strict}, "schema": schema or {}}
        bound: Json = {"ls_structured_output_format": how, **kwargs}
        if method == "json_mode":
            bound["response_format"] = {"type": "json_object"}
        elif method == "json_schema":
            bound["response_format"] = response_format_of(schema, strict=strict)
            if tools:
                bound["tools"] = [function_tool(tool, strict) for tool in tools]
        else:
            function = function_tool(schema, strict)
            bound |= {
                "tools": [function],
                "tool_choice": tool_choice_of(function["function"]["name"], [function]),
                "parallel_tool_calls": False,
            }
        return parsed_by(self.bind(**bound), structured_parser(schema, method), include_raw=include_raw)

    # -- tokens

    def get_token_ids(self, text: str) -> list[int]:
        """The model's own tokens of a text, without those that a chat puts around it."""
        body = {"prompt": text, "add_special_tokens": False, **self._named()}
        answer = self._client.call("POST", "/tokenize", body, **self._patience({}))
        return [int(token) for token in answer["tokens"]]

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Tokens of the prompt that the messages make, by the model's own template."""
        body: Json = {"messages": to_json(messages), **self._named()}
        if tools:
            body["tools"] = [function_tool(tool, None) for tool in tools]
        return int(self._client.call("POST", "/tokenize", body, **self._patience({}))["count"])

    def _named(self) -> Json:
        return {"model": self.model} if self.base_url is not None and self.model != _DEFAULT_MODEL else {}
