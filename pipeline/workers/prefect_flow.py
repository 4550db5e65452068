"""The Prefect flow: one task per shard, with retries, over a pool of workers.

No other module imports Prefect, and no worker does.  Its server is that of ``PREFECT_API_URL``, or
a private one that ends with this process.  Finished shards are known by the markers of the store,
not by Prefect's cache.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

from tqdm import tqdm

from pipeline import artifacts, console, settings
from pipeline.workers.launch import die_with_parent, free_port
from pipeline.workers.pool import Closed, Pool
from rfpp_core.errors import UserError
from rfpp_core.storage import files

if TYPE_CHECKING:
    from pipeline.workers.tasks import Made

START_SECONDS = 180.0
RESTARTS = 3  # of the private server
ANSWER_SECONDS, ANSWER_TRIES = 10.0, 3


def make_shards(pool: Pool, call: tuple[str, ...], shards: list[int], size: int) -> list[Made]:
    """Makes shards and returns what was made; those that succeed are committed whatever happens
    to the others.

    Args:
        pool: of workers.
        call: the task, "module:function", and its arguments but the last, which is the shard.
        shards: which to make.
        size: pairs per shard, for the progress bar.

    Raises:
        UserError: if shards failed after their retries, naming them, or if Prefect fails.
    """
    home = artifacts.work() / "prefect"
    _settings(home)
    if url := os.environ.get("PREFECT_API_URL"):
        _check_server(url)
    else:
        os.environ["PREFECT_API_URL"] = _start_server(home)
    try:
        import prefect  # noqa: F401
    except Exception as error:  # a PREFECT_* variable that it does not accept
        raise _orchestration(error) from None
    return _flow(pool, call, shards, size)


def _flow(pool: Pool, call: tuple[str, ...], shards: list[int], size: int) -> list[Made]:
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.task_runners import ThreadPoolTaskRunner
    from prefect.tasks import exponential_backoff

    timeout, retries = settings.shard_timeout(), settings.retries()
    backoff = exponential_backoff(settings.retry_seconds())
    bar = tqdm(total=len(shards) * size, desc="pairs", unit="img", disable=None, mininterval=1)

    made: list[Made] = []

    def worth_another_try(task: Any, run: Any, state: Any) -> bool:
        return not isinstance(state.result(raise_on_failure=False), Closed | UserError)

    @task(
        name="shard",
        task_run_name="shard {shard}",
        retries=retries,
        retry_delay_seconds=backoff if retries else None,
        retry_condition_fn=worth_another_try,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def shard_task(shard: int) -> Made:
        try:
            done: Made = pool.call(*call, shard, timeout=timeout)
        except Closed:
            raise
        except Exception as error:
            bar.write(f"shard {shard} failed: {console.one_line(error)}", file=sys.stderr)
            raise
        bar.update(done.pairs)
        made.append(done)
        return done

    @flow(
        name="generate",
        task_runner=ThreadPoolTaskRunner(max_workers=pool.size),  # type: ignore[arg-type]
        validate_parameters=False,
    )
    def generate(shards: list[int]) -> dict[int, str]:
        try:
            futures = shard_task.map(shards)
            states = [future.wait() or future.state for future in futures]
            return {
                k: console.one_line(s.result(raise_on_failure=False))
                for k, s in zip(shards, states, strict=True)
                if not s.is_completed()
            }
        except BaseException:
            pool.close(kill=True)  # the runner's own exit waits for running threads
            raise

    with bar:
        try:
            failed = generate(shards)
        except Exception as error:  # shards' own errors are in what it returns
            raise _orchestration(error) from error
    if failed:
        names, first = ", ".join(map(str, failed)), next(iter(failed.values()))
        raise UserError(f"shards {names} failed after {retries} retries ({first}); the others "
                        f"are committed; run again to retry")  # fmt: skip
    return made


def _orchestration(error: Exception) -> UserError:
    """A failure of Prefect itself (its server is gone, its disk is full) in one line."""
    home = artifacts.work() / "prefect"
    log = home / "flow.log"
    with suppress(OSError), log.open("a") as file:
        traceback.print_exception(error, file=file)
    with suppress(OSError):
        _set_aside(home)
    return UserError(f"Prefect failed ({console.one_line(error)}; see {log} and server.log beside "
                     f"it); finished shards are committed; run again to "
                     f"resume")  # fmt: skip


def _check_server(url: str) -> None:
    """Checks that a server answers; Prefect itself would wait for minutes.

    Raises:
        UserError: if nothing answers at the URL, or it answers with errors of its own.
    """
    why = "it is no URL" if not url.startswith(("http://", "https://")) else ""
    for _ in range(0 if why else ANSWER_TRIES):
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS):
                return
        except (OSError, ValueError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code < 500:
                return  # Prefect's Cloud, or something that Prefect will name
            why = console.one_line(error)
        time.sleep(1)
    raise UserError(f"PREFECT_API_URL is {url[:200]!r}, where no Prefect server answers ({why}); "
                    f"start it or unset PREFECT_API_URL, and run again; finished shards are "
                    f"committed")  # fmt: skip


def _settings(home: Path) -> None:
    """Sets Prefect's variables that are not set: quiet, offline, all files below ``.work``."""
    home.mkdir(parents=True, exist_ok=True)
    for name, value in {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        # this module prints failures and interruptions, one line each
        "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # events lost with a server that died
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_API_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)


def _start_server(home: Path) -> str:
    """Starts a private server, which ends with this process, and returns its URL.

    An flock guards the start: two servers migrating a fresh home at once kill one of them.  It is
    stopped at exit and not earlier, because Prefect's log threads drain at interpreter shutdown.
    """
    for name in ("NO_PROXY", "no_proxy"):  # this machine needs no proxy
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
    with files.locked(home / "start.lock", "Prefect", console.warn):
        try:
            return _serve(home)
        except UserError:
            if not _set_aside(home):
                raise
            return _serve(home)


def _serve(home: Path) -> str:
    server = _Server(home, free_port())
    _wait_healthy(f"{server.url}/health", server.process, home)
    threading.Thread(target=server.keep_up, daemon=True).start()
    return server.url


class _Server:
    """A private server; one that dies during a run is started again on its port, and Prefect's
    clients, which would retry for minutes, find it there."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port, self.ending = home, port, False
        self.url = f"http://127.0.0.1:{port}/api"
        self.process = self._start()
        atexit.register(self._end)

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.home / "server.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "--factory",
                 "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port",
                 str(self.port), "--log-level", "error"],
                env={**os.environ, "PREFECT_UI_ENABLED": "false",
                     "PREFECT__SERVER_EPHEMERAL": "1"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def keep_up(self) -> None:
        """Starts it again when it ends; runs in a thread that lasts as long as this process,
        since the kernel ends a child with the thread that started it."""
        for _ in range(RESTARTS):
            self.process.wait()
            if self.ending:
                return
            console.warn("Prefect's server was killed; it is started again")
            self.process = self._start()
        self.process.wait()

    def _end(self) -> None:
        self.ending = True
        _stop(self.process)


def _set_aside(home: Path) -> bool:
    """Renames the private server's database if it is corrupted, and returns whether it was; a run
    needs nothing in it."""
    database = home / "prefect.db"
    try:
        reading = f"{database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(reading, uri=True)) as opened:
            [(found,)] = opened.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorname == "SQLITE_CANTOPEN":  # a path of more than 512 characters
            return False
        found = str(error)
    if found == "ok" or not database.exists():
        return False
    for name in ("prefect.db-wal", "prefect.db-shm", "prefect.db"):
        with suppress(FileNotFoundError):
            (home / name).replace(home / f"{name}.damaged")
    print(
        f"pairs: Prefect's database {database} was corrupted ({found}); it is renamed and "
        f"a new one is made"
    )
    return True


def _wait_healthy(url: str, server: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise UserError(f"Prefect's server did not start; see {home / 'server.log'}, or set "
                    f"PREFECT_API_URL to a running one")  # fmt: skip


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
