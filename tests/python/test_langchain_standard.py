"""LangChain's own suites for chat models: in process and over HTTP, on the default model."""

import os
from typing import Any

import pytest
from chats import SMALL, real_model
from conftest import BUILD
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from thaw_server import ThawServer
from thaw_vllm.langgraph import ChatThaw

# A model of 135M parameters calls a tool only if it must: `auto` is eager here, as for all such models.
SETTINGS = {**SMALL, "kv_bytes": "256MiB", "tool_auto": "eager"}
SAMPLING = {"temperature": 0, "max_tokens": 96}


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatThaw

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "default"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"THAW_API_KEY": "secret", "THAW_BASE_URL": "http://127.0.0.1:9/v1"}
        return environment, {"model": "default"}, {"api_key": "secret", "base_url": "http://127.0.0.1:9/v1"}


class Integration(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatThaw

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> BaseChatModel:
        """Strings that no schema bounds end only where the model stops repeating itself."""
        more = {"repetition_penalty": 1.2} if "structured_output" in request.node.name else {}
        more |= getattr(request, "param", None) or {}
        return ChatThaw(**{**self.standard_chat_model_params, **self.chat_model_params, **more})

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestInProcess(Integration):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": str(real_model()), "extra_llm_kwargs": SETTINGS, **SAMPLING}


@pytest.fixture(scope="session")
def server_url():
    flags = ["--tool-auto", "eager", "--threads", "1", "--served-model-name", "small,same"]
    server = ThawServer(BUILD / "bin" / "thaw", real_model(), flags, dict(os.environ))
    server.wait_healthy()
    yield f"http://127.0.0.1:{server.port}/v1"
    server.stop()


class TestOverHttp(Integration):
    @pytest.fixture(autouse=True)
    def _server(self, server_url: str) -> None:
        self.url = server_url

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "small", "base_url": self.url, **SAMPLING}

    @property
    def model_override_value(self) -> str:
        return "same"
