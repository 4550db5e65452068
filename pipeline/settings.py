"""The environment variables ``RFPP_*``: settings that cannot change a result.

Every stage checks all of them, so that a wrong value is found at once.
"""

from __future__ import annotations

import math
import os
import re
from typing import NamedTuple

from rfpp_core import runtime
from rfpp_core.errors import UserError


class Number(NamedTuple):
    """A setting that is a number: its limits, whether it is a whole number, and its meaning."""

    least: float
    most: float
    whole: bool
    meaning: str


class Words(NamedTuple):
    """A setting that is text: its pattern, the same in words, and its meaning."""

    pattern: str
    allowed: str
    meaning: str


SETTINGS: dict[str, Number | Words] = {
    "RFPP_CHECKPOINT_SECONDS": Number(0, 1e7, False, "seconds between training checkpoints"),
    "RFPP_DASK": Words(r"[^\s]*", "an address", "address of a Dask scheduler for generate"),
    "RFPP_DEVICE": Words(r"cpu|cuda(:[0-9]{1,4})?", "cpu, cuda or cuda:<index>",
                         "device of trainings and evaluation"),
    "RFPP_DEVICES": Words(r"[ ,]*((cpu|cuda:[0-9]{1,4})[ ,]*)*", "devices such as cuda:0,cuda:1",
                          "devices of generate, a worker each"),
    "RFPP_MEMORY": Number(0, 1e6, False, "GiB of training data in memory; more is memory-mapped"),
    "RFPP_PROCESSES": Number(1, 9999, True, "processes of a training"),
    "RFPP_RETRIES": Number(0, 1e3, True, "retries of a shard that fails"),
    "RFPP_RETRY_SECONDS": Number(0, 1e5, False, "seconds before the first retry, then doubled"),
    "RFPP_SHARD_TIMEOUT": Number(0, 1e7, False, "seconds that a shard may take; 0 for no limit"),
    "RFPP_THREADS": Number(1, 9999, True, "micro-batches in parallel on a CPU"),
    "RFPP_WORKERS": Number(1, 9999, True, "workers of generate and evaluate on a CPU"),
}  # fmt: skip


def check() -> None:
    """Checks all settings.

    Raises:
        UserError: naming the first that is wrong.
    """
    for name, setting in SETTINGS.items():
        if isinstance(setting, Number):
            number(name, setting.least)
            continue
        text = os.environ.get(name, "")
        if text and not re.fullmatch(setting.pattern, text):
            raise UserError(f"{name} is {text[:80]!r}; it must be {setting.allowed}")


def number(name: str, default: float) -> float:
    """The value of a setting that is a number.

    Raises:
        UserError: if it is not a number within its limits.
    """
    setting = SETTINGS[name]
    assert isinstance(setting, Number)
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    fits = setting.least <= value <= setting.most and (not setting.whole or value.is_integer())
    if not fits:
        raise UserError(f"{name} is {text[:80]!r}; it must be a {'whole ' * setting.whole}number "
                        f"from {setting.least:g} to {setting.most:g}")  # fmt: skip
    return value


def checkpoint_seconds() -> float | None:
    """Seconds between training checkpoints; None to choose them by their cost."""
    given = bool(os.environ.get("RFPP_CHECKPOINT_SECONDS"))
    return number("RFPP_CHECKPOINT_SECONDS", 0) if given else None


def dask() -> str:
    """Address of a Dask scheduler; empty for none."""
    return os.environ.get("RFPP_DASK", "")


def devices() -> list[str]:
    """The devices listed for workers; empty for the default."""
    return [name for name in re.split("[ ,]+", os.environ.get("RFPP_DEVICES", "")) if name]


def memory() -> float:
    """Bytes that training data may take in memory; by default half of the machine's memory."""
    return number("RFPP_MEMORY", runtime.memory() / 2**31) * 2**30


def processes() -> int:
    """Processes of a training on this machine."""
    return int(number("RFPP_PROCESSES", 1))


def workers() -> int:
    """Workers on a CPU."""
    return int(number("RFPP_WORKERS", 1))


def retries() -> int:
    """Retries of a shard."""
    return int(number("RFPP_RETRIES", 3))


def retry_seconds() -> float:
    """Seconds before the first retry."""
    return number("RFPP_RETRY_SECONDS", 2)


def shard_timeout() -> float | None:
    """Seconds that a shard may take; None for no limit."""
    return number("RFPP_SHARD_TIMEOUT", 0) or None
