"""As vLLM has it."""

from __future__ import annotations

from typing import TypedDict


class TextPrompt(TypedDict):
    """A prompt that is a text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt that is token ids."""

    prompt_token_ids: list[int]
