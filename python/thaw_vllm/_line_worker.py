"""A worker process that speaks JSON lines: one object a line, requests on its stdin, answers on stdout.

Every wait has a deadline. Whatever breaks the exchange (an end, silence, a line that is no answer) ends
the process, since what it would say next belongs to nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from thaw_vllm.errors import ForkPoolError, WorkerBootTimeout, WorkerDead, WorkerProtocolError

MAX_LINE_BYTES = 256 << 20
_KILL_WAIT_S = 10.0
_MAX_POLL_S = 3600.0  # poll() takes no more than some weeks


class LineWorker:
    """One process. request() may be called by one thread at a time; kill() by any."""

    def __init__(self, index: int, command: Sequence[str], env: Mapping[str, str] | None):
        self.id = index
        self.boot_s = 0.0
        self.dead = False
        self.busy = False
        self._buffer = bytearray()
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # held while a request and its answer are under way
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **(env or {})},
                bufsize=0,
                start_new_session=True,  # the terminal's Ctrl-C is the parent's to handle
            )
        except OSError as error:
            raise WorkerDead(f"worker {index}: cannot start {command[0]}: {error.strerror}") from error
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """False once it has ended; it is a fact about now, not about the next moment."""
        return not self.dead and self._exit_status() is None

    def _exit_status(self) -> int | None:
        """As Popen's returncode, but it stays to be reaped: until then its number is nobody else's."""
        if self._process.returncode is not None:
            return self._process.returncode
        try:
            found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return 0
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def boot(self, fields: Mapping[str, Any], timeout_s: float) -> None:
        """Sends the first line and waits for "ready". WorkerBootTimeout, WorkerDead, ForkPoolError."""
        started = time.monotonic()
        try:
            with self._my_turn():
                reply = self._exchange({"op": "boot", **fields}, timeout_s, "boot")
        except TimeoutError:
            self.kill()
            raise WorkerBootTimeout(f"worker {self.id} was not ready within {timeout_s:g} s") from None
        if reply.get("status") != "ready":
            error = self._error_of(reply, "boot")
            self.kill()
            raise error
        told = reply.get("boot_s")
        self.boot_s = float(told) if isinstance(told, int | float) else time.monotonic() - started

    def request(self, op: str, fields: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer to one request, whose status is "ok".

        ForkPoolError with the worker's own words where it is "error"; WorkerDead where it has ended, or
        was ended since nothing came within `timeout_s`; WorkerProtocolError for what is no answer.
        """
        try:
            with self._my_turn():
                reply = self._exchange({"op": op, **fields}, timeout_s, op)
        except TimeoutError:
            self.kill()
            raise WorkerDead(
                f"worker {self.id} did not answer {op} within {timeout_s:g} s and was ended"
            ) from None
        if reply.get("status") == "ok":
            return reply
        raise self._error_of(reply, op)

    @contextlib.contextmanager
    def _my_turn(self) -> Iterator[None]:
        with self._turn:
            self.busy = True
            try:
                yield
            finally:
                self.busy = False
                if self.dead:
                    self._close_pipes()

    def shut_down(self, timeout_s: float) -> None:
        """Asks it to end, and ends it where it does not. Never raises."""
        deadline = time.monotonic() + max(timeout_s, 0.0)
        if os.getpid() != self._owner:
            return
        if self.is_running and self._turn.acquire(timeout=max(timeout_s, 0.0)):
            try:
                with contextlib.suppress(ForkPoolError, TimeoutError, OSError):
                    self._exchange({"op": "shutdown"}, max(0.0, deadline - time.monotonic()), "shutdown")
                    self._await_end(deadline)
            finally:
                self._turn.release()
        self.kill()

    def _await_end(self, deadline: float) -> int | None:
        """The exit status once it has ended; None where it has not by then."""
        pause = 0.001
        while (status := self._exit_status()) is None and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return status

    def kill(self) -> None:
        """Ends the process and all that it started. Never raises, does nothing in a forked child."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self.dead = True
            if self._process.returncode is None:  # not reaped: the group is still its own
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILL_WAIT_S)
        # Whoever has the turn may be reading; he closes them then.
        if self._turn.acquire(blocking=False):
            try:
                self._close_pipes()
            finally:
                self._turn.release()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _error_of(self, reply: Mapping[str, Any], op: str) -> ForkPoolError:
        if reply.get("status") != "error":
            self.kill()
            return WorkerProtocolError(f"worker {self.id} answered {op} with status {reply.get('status')!r}")
        name, message = reply.get("type"), reply.get("message")
        trace = reply.get("traceback")
        return ForkPoolError(
            f"worker {self.id}: {op}: {name}: {message}",
            type_name=name if isinstance(name, str) else None,
            traceback=trace if isinstance(trace, str) else None,
        )

    def _exchange(self, request: Mapping[str, Any], timeout_s: float, op: str) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        line = json.dumps(request, allow_nan=False).encode() + b"\n"
        if self.dead:
            raise WorkerDead(f"worker {self.id} is dead")
        try:
            self._write(line, deadline)
            answer = self._read_line(deadline)
        except (BrokenPipeError, EOFError, ValueError):
            raise self._ended(op) from None
        if self._buffer:
            self.kill()
            raise WorkerProtocolError(f"worker {self.id} said more than its answer to {op}")
        try:
            reply = json.loads(answer)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            self.kill()
            raise WorkerProtocolError(f"worker {self.id} answered {op} with {answer[:200]!r}, no JSON object")
        return reply

    def _ended(self, op: str) -> WorkerDead:
        code = self._await_end(time.monotonic() + 1.0)
        self.kill()
        how = "closed its output" if code is None else f"ended with status {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        return WorkerDead(f"worker {self.id} {how} at {op}")

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(fd, event)
        while (left := deadline - time.monotonic()) > 0:
            if poller.poll(min(left, _MAX_POLL_S) * 1000 + 1):
                return
        raise TimeoutError

    def _write(self, data: bytes, deadline: float) -> None:
        assert self._process.stdin is not None
        fd = self._process.stdin.fileno()
        view = memoryview(data)
        while view:
            self._wait(fd, select.POLLOUT, deadline)
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(fd, view[: 1 << 16]) :]

    def _read_line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            searched = len(self._buffer)
            if searched > MAX_LINE_BYTES:
                self.kill()
                raise WorkerProtocolError(f"worker {self.id} sent a line of more than {MAX_LINE_BYTES} bytes")
            self._wait(fd, select.POLLIN, deadline)
            with contextlib.suppress(BlockingIOError):
                part = os.read(fd, 1 << 20)
                if not part:
                    raise EOFError
                self._buffer += part
