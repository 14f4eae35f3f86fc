"""A prompt that is too long, in LangChain's words: agents that shorten their history look for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from langchain_core.exceptions import ContextOverflowError

from thaw_vllm._errors import BadRequestError


class ContextLengthError(BadRequestError, ContextOverflowError):
    """Prompt and max_tokens exceed the model's context; the message has the numbers."""


@contextlib.contextmanager
def as_overflow() -> Iterator[None]:
    """Raises ContextLengthError for the BadRequestError that means it."""
    try:
        yield
    except BadRequestError as error:
        if error.code != "context_length_exceeded":
            raise
        raise ContextLengthError(
            str(error),
            status=error.status,
            code=error.code,
            param=error.param,
            type=error.type,
            body=error.body,
        ) from error
