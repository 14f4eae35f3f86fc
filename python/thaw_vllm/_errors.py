"""What a call to the engine or a server can end with."""

from __future__ import annotations

from typing import Any


class ThawError(RuntimeError):
    """A call that got no answer, or one that says why not."""

    _is_final = False  # trying again is of no use, or the answer had begun


class APIConnectionError(ThawError, ConnectionError):
    """The engine or server could not be reached, or hung up before the answer was complete."""


class APITimeoutError(ThawError, TimeoutError):
    """The call's deadline passed. The request has been cancelled where it ran."""


class APIStatusError(ThawError):
    """An answer with an HTTP status that is not 200.

    Attributes: ``status`` (0: an error frame within a stream), ``code``, ``param`` (the field that is
    wrong), ``type``, ``retry_after_s`` (seconds after which trying again may help, or None) and ``body``.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
        retry_after_s: float | None = None,
        body: Any = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.type = type
        self.retry_after_s = retry_after_s
        self.body = body


class BadRequestError(APIStatusError, ValueError):
    """400, 413, 422: the request is wrong; the message names the field, its value and what would be right."""


class ContextLengthError(BadRequestError):
    """Prompt and max_tokens exceed the model's context; the message has the numbers."""


class AuthenticationError(APIStatusError, PermissionError):
    """401, 403."""


class NotFoundError(APIStatusError, LookupError):
    """404: no such model, session or endpoint."""


class RateLimitError(APIStatusError):
    """429: too many requests wait."""


class UnavailableError(APIStatusError):
    """503: loading, draining, or no worker."""


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    413: BadRequestError,
    422: BadRequestError,
    429: RateLimitError,
    503: UnavailableError,
}


# Where there is no status: an error within a stream, or of one branch of several.
_BY_CODE: dict[str, type[APIStatusError]] = {
    "invalid_api_key": AuthenticationError,
    "permission_denied": AuthenticationError,
    "unavailable": UnavailableError,
}
_BY_TYPE: dict[str, type[APIStatusError]] = {
    "invalid_request_error": BadRequestError,
    "rate_limit_error": RateLimitError,
}


def _class_of(status: int, code: str, type: str) -> type[APIStatusError]:
    if code == "context_length_exceeded":
        return ContextLengthError
    if status != 0:
        return _BY_STATUS.get(status, APIStatusError)
    if code.endswith("not_found"):
        return NotFoundError
    return _BY_CODE.get(code) or _BY_TYPE.get(type, APIStatusError)


def error_of(status: int, body: Any, retry_after_s: float | None = None) -> APIStatusError:
    """The exception for an answer. ``body`` is parsed JSON, or text where it was none; ``status`` is 0 where
    the answer is a part of another, and code and type say what it is."""
    error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    fields = error if isinstance(error, dict) else {}
    message = str(fields.get("message") or error or f"HTTP status {status}")
    return _class_of(status, str(fields.get("code")), str(fields.get("type")))(
        message,
        status=status,
        code=fields.get("code"),
        param=fields.get("param"),
        type=fields.get("type"),
        retry_after_s=retry_after_s,
        body=body,
    )
