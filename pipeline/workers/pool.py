"""Workers behind one ``.call()``: a long-lived process per device, or a Dask cluster.

A worker process pins its device before it imports torch, loads the teacher once, ignores Ctrl-C
(its parent decides) and exits when its parent is gone.  A worker that dies or exceeds its time is
replaced; the call that it broke raises, and the caller may retry.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from typing import Any, Protocol

from pipeline import console, settings
from rfpp_core.errors import UserError
from rfpp_core.storage import files

# words in errors after which a process cannot be used any more
SPOILT = ("CUDA", "cuDNN error", "CUBLAS", "NCCL", "memory", "can't start new thread")
POLL_SECONDS = 5.0  # between two checks that a Dask scheduler is there


class WorkerDied(RuntimeError):
    """A worker was killed or exceeded its time; the next call gets a new one."""


class Closed(RuntimeError):
    """The pool is closed, so no call can be retried."""


class Pool(Protocol):
    """Runs ``module.function(*args)`` on a device and waits for the result."""

    size: int

    def call(self, target: str, *args: Any, timeout: float | None = None) -> Any: ...

    def close(self, kill: bool = False) -> None: ...


def open_pool() -> Pool:
    """The pool that the settings describe: ``RFPP_DASK``, or processes on :func:`devices`."""
    if address := settings.dask():
        return DaskPool(address)
    return ProcessPool(devices())


def quiet_resource_tracker() -> None:
    """Silences Python's resource tracker, which warns of the lock of a killed worker.

    To be called before anything uses multiprocessing: the tracker inherits warning options.
    """
    sys.warnoptions.append("ignore:resource_tracker")


def devices() -> list[str]:
    """Device of each worker: those of ``RFPP_DEVICES``, else all CUDA devices, else the CPU.

    Raises:
        UserError: if a name is not ``cpu`` or ``cuda:<index>``, there is no such device, or
            ``RFPP_WORKERS`` is not a positive whole number.
    """
    names = settings.devices()
    if wrong := [name for name in names if not re.fullmatch(r"cpu|cuda:[0-9]{1,4}", name)]:
        raise UserError(
            f"RFPP_DEVICES has {wrong[0][:80]!r}; it lists devices such as cuda:0,cuda:1"
        )
    if names != ["cpu"]:
        import torch

        count = torch.cuda.device_count()
        if lost := [n for n in names if n != "cpu" and int(n[5:]) >= count]:
            raise UserError(f"RFPP_DEVICES has '{lost[0]}' but there are {count} CUDA device(s)")
        names = names or [f"cuda:{i}" for i in range(count)] or ["cpu"]
    if names != ["cpu"]:
        return names
    return ["cpu"] * settings.workers()


class ProcessPool:
    """A spawned process per device, each used by one caller at a time."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.size, self.closed = names, len(names), False
        threads = (
            max(1, len(os.sched_getaffinity(0)) // names.count("cpu")) if "cpu" in names else 1
        )
        self.threads = threads
        self.executors: dict[int, ProcessPoolExecutor] = {}
        self.lock = threading.Lock()
        self.free: Queue[int] = Queue()
        for slot in range(self.size):
            self.free.put(slot)

    def call(self, target: str, *args: Any, timeout: float | None = None) -> Any:
        """Runs ``target`` ("package.module:function") in a worker.

        Raises:
            WorkerDied: if the worker was killed or took longer than ``timeout`` seconds.
            Closed: if the pool is closed.
            Exception: whatever the function raises.
        """
        slot = self.free.get()
        try:
            return self._submit(slot, target, args).result(timeout)
        except Exception as error:
            if isinstance(error, Closed) or not _spoils_the_worker(error):
                raise
            self._kill(slot)
            if self.closed:
                raise Closed("the worker pool is closed") from None
            if not isinstance(error, BrokenProcessPool | TimeoutError):
                raise
            late = isinstance(error, TimeoutError)
            why = f"took over {timeout} s and was stopped" if late else "was killed"
            raise WorkerDied(f"the worker on {self.names[slot]} {why}") from None
        finally:
            self.free.put(slot)

    def _submit(self, slot: int, target: str, args: tuple[Any, ...]) -> Future[Any]:
        with self.lock:
            if self.closed:
                raise Closed("the worker pool is closed")
            return self._executor(slot).submit(_run, target, args)

    def close(self, kill: bool = False) -> None:
        """Ends all workers; with ``kill`` at once, else when idle."""
        with self.lock:
            self.closed = True
        for slot in list(self.executors):
            if kill:
                self._kill(slot)
            else:
                self.executors.pop(slot).shutdown(wait=True)

    def _executor(self, slot: int) -> ProcessPoolExecutor:
        if slot not in self.executors:
            self.executors[slot] = ProcessPoolExecutor(
                1,
                mp_context=get_context("spawn"),
                initializer=_start_worker,
                initargs=(self.names[slot], self.threads, os.getpid()),
            )
        return self.executors[slot]

    def _kill(self, slot: int) -> None:
        executor = self.executors.pop(slot, None)
        if executor is None:
            return
        for process in list((executor._processes or {}).values()):
            process.kill()
        executor.shutdown(wait=True, cancel_futures=True)  # quick: its worker is dead


class DaskPool:
    """The same calls on a Dask cluster, for more than one machine with a shared file system."""

    def __init__(self, address: str) -> None:
        try:
            distributed: Any = importlib.import_module("distributed")
        except ModuleNotFoundError:
            raise UserError("RFPP_DASK is set but Dask is not installed; "
                            "`pip install .[dask]`") from None  # fmt: skip
        try:
            self.client = distributed.Client(address, timeout="30s")
        except (OSError, ValueError, TimeoutError) as error:
            raise UserError(f"RFPP_DASK: no scheduler answers at {address!r} ({error})") from None
        self.size = sum(self.client.nthreads().values())
        if not self.size:
            raise UserError(f"RFPP_DASK: the scheduler at {address!r} has no workers")
        self.code = code_signature()
        try:
            self.client.run(check_code, self.code)
            self.call("builtins:len", "")  # the scheduler unpickles calls, too
        except Exception as error:
            self.client.close()
            if isinstance(error, UserError):
                raise
            raise UserError(f"RFPP_DASK: the scheduler or a worker cannot run this code "
                            f"({console.one_line(error)}); all need what the driver has, "
                            f"{self.code}") from None  # fmt: skip

    def call(self, target: str, *args: Any, timeout: float | None = None) -> Any:
        future = self.client.submit(_run_checked, self.code, target, args, pure=False)
        try:
            return self._wait(future, timeout)
        except TimeoutError:
            future.cancel()  # if it runs already, it makes the same bytes as the retry
            raise WorkerDied(f"a Dask worker took over {timeout} s") from None

    def _wait(self, future: Any, timeout: float | None) -> Any:
        """Waits for the result, as long as the scheduler is there."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return future.result(max(0.0, min(POLL_SECONDS, end - time.monotonic())))
            except TimeoutError:
                if future.done():  # the call's own error, not that of waiting
                    raise
                if self.client.status != "running":
                    raise UserError(
                        f"RFPP_DASK: the scheduler is gone ({self.client.status}); finished "
                        f"shards are committed; run again"
                    ) from None
                if time.monotonic() >= end:
                    raise

    def close(self, kill: bool = False) -> None:
        self.client.close()


@functools.cache
def code_signature() -> str:
    """This code and torch's version: a worker with the same makes the same pairs."""
    here = Path(__file__).parents[2]
    parts = sorted(
        path for name in ("rfpp_core", "pipeline") for path in here.glob(f"{name}/**/*.py")
    )
    code = files.digest([[str(path.relative_to(here)), files.sha256(path)] for path in parts])
    return f"code {code[:16]} and torch {metadata.version('torch')}"


def check_code(wanted: str) -> None:
    """Refuses a worker of other code or another torch than the driver's.

    Raises:
        UserError: saying what each has.
    """
    if (found := code_signature()) != wanted:
        raise UserError(f"RFPP_DASK: the worker on {socket.gethostname()} has {found}, the driver "
                        f"{wanted}; give both the same and start the worker again")  # fmt: skip


def _spoils_the_worker(error: Exception) -> bool:
    """Whether the worker is gone, stuck, out of memory or threads, or has a CUDA context that
    fails every call."""
    if isinstance(error, BrokenProcessPool | TimeoutError | MemoryError):
        return True
    return any(sign in str(error) for sign in SPOILT)


def _start_worker(name: str, threads: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if name.startswith("cuda"):
        index, visible = int(name[5:]), os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [entry.strip() for entry in visible.split(",")] if visible else []
        os.environ["CUDA_VISIBLE_DEVICES"] = names[index] if names else str(index)
        os.environ["RFPP_DEVICE"] = "cuda"
    else:
        os.environ["RFPP_DEVICE"] = name
        os.environ["RFPP_THREADS"] = str(threads)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _run(target: str, args: tuple[Any, ...]) -> Any:
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function(*args)


def _run_checked(code: str, target: str, args: tuple[Any, ...]) -> Any:
    """As :func:`_run`, on a worker that may have joined after the check."""
    check_code(code)
    return _run(target, args)
