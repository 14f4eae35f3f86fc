"""LangChain's own suite for chat models, through ChatOpenAI at the server: by /v1/chat/completions and by
/v1/responses.

A model of 135M parameters calls a tool because `auto` is eager, and is held to the tool's schema; that the
numbers and names of its calls are right ("3", a name in Chinese) is its own: it copies them from the question
at temperature 0. Tests of pictures, sound and PDF are off, as the suite has it for models of text.
"""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class Integration(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _server(self, thaw) -> None:
        self.thaw = thaw

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": self.thaw.model,
            "base_url": self.thaw.v1,
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 96,
            "stream_usage": True,
        }

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> BaseChatModel:
        """Strings that no schema bounds end only where the model stops repeating itself."""
        more = dict(getattr(request, "param", None) or {})
        if "structured_output" in request.node.name:
            more["extra_body"] = {"repetition_penalty": 1.2}
        return ChatOpenAI(**{**self.standard_chat_model_params, **self.chat_model_params, **more})

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.thaw.alias


class TestChat(Integration):
    pass


class TestResponses(Integration):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "use_responses_api": True}
