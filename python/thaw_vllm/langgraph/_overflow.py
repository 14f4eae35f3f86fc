"""A prompt that is too long, in LangChain's words: agents that shorten their history look for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from langchain_core.exceptions import ContextOverflowError

from thaw_vllm import _errors


class ContextLengthError(_errors.ContextLengthError, ContextOverflowError):
    """thaw_vllm.ContextLengthError, and LangChain's error for the same."""


@contextlib.contextmanager
def as_overflow() -> Iterator[None]:
    """Has a ContextLengthError be LangChain's too."""
    try:
        yield
    except _errors.ContextLengthError as error:
        raise ContextLengthError(
            str(error),
            status=error.status,
            code=error.code,
            param=error.param,
            type=error.type,
            body=error.body,
        ) from error
