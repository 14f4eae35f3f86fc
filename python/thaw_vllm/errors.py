"""What can go wrong with forks, handles and pools. All are RuntimeErrors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ForkError(RuntimeError):
    """A fork, a handle or a pool could not do what was asked; the message says why."""


class ModelMismatchError(ForkError):
    """The handle is of another model than the engine that it was given to."""


class BlockShapeMismatchError(ForkError):
    """The handle's KV has another layout than the engine's: layers, block shape, or another engine's."""


class BlockPoolTooSmallError(ForkError):
    """The handle holds more blocks than the engine has."""


class PrefixCachingDisabledError(ForkError):
    """The engine was made with enable_prefix_caching=False, so it keeps nothing to fork from."""


class UnfinishedRequestsError(ForkError):
    """The engine is generating; what it holds changes under the fork."""


class HandleClosedError(ForkError):
    """The handle was closed; its directory may be gone."""


class ForkPoolError(ForkError):
    """A pool, or a worker of it, answered with an error. `traceback` is the worker's, where it sent one."""

    def __init__(self, message: str = "", *, type_name: str | None = None, traceback: str | None = None):
        super().__init__(message)
        self.type_name = type_name
        self.traceback = traceback


class WorkerBootTimeout(ForkPoolError):
    """A worker did not become ready in time."""


class WorkerDead(ForkPoolError):
    """A worker's process has ended, or was ended since it did not answer in time."""


class WorkerProtocolError(ForkPoolError):
    """A worker sent what is no answer: no JSON object, a missing field, another number of results."""


class ForkBranchError(ForkPoolError):
    """Branches of a round failed, others may not have: `results` has one entry for each prompt, in order.

    A result whose `error` is None is whole. With `return_errors=True` a round returns that list instead.
    """

    def __init__(self, message: str, results: Sequence[Any]):
        super().__init__(message)
        self.results = list(results)


ERRORS = (
    ForkError,
    ModelMismatchError,
    BlockShapeMismatchError,
    BlockPoolTooSmallError,
    PrefixCachingDisabledError,
    UnfinishedRequestsError,
    HandleClosedError,
    ForkPoolError,
    WorkerBootTimeout,
    WorkerDead,
    WorkerProtocolError,
    ForkBranchError,
)
