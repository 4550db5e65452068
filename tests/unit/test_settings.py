"""``RFPP_*``: every setting has its limits, and a wrong one is one line in every stage."""

from __future__ import annotations

import ast
import re

import pytest

from pipeline import settings
from pipeline.settings import SETTINGS, Number, Words
from rfpp_core.errors import UserError
from tests.helpers import ROOT

NUMBERS = {name: kind for name, kind in SETTINGS.items() if isinstance(kind, Number)}
INTERNAL = {"RFPP_ERRORS"}  # from the launcher of a training to its processes
READ = {  # how each is read: its function, a value, what it gives, and what it gives without
    "RFPP_CHECKPOINT_SECONDS": (settings.checkpoint_seconds, "0.5", 0.5, None),
    "RFPP_DASK": (settings.dask, "tcp://host:8786", "tcp://host:8786", ""),
    "RFPP_DEVICES": (settings.devices, "cuda:0, cuda:1", ["cuda:0", "cuda:1"], []),
    "RFPP_MEMORY": (settings.memory, "1.5", 1.5 * 2**30, None),
    "RFPP_PROCESSES": (settings.processes, "2", 2, 1),
    "RFPP_RETRIES": (settings.retries, "0", 0, 3),
    "RFPP_RETRY_SECONDS": (settings.retry_seconds, "0.1", 0.1, 2),
    "RFPP_SHARD_TIMEOUT": (settings.shard_timeout, "7", 7, None),
    "RFPP_WORKERS": (settings.workers, "3", 3, 1),
}


@pytest.mark.parametrize("name", READ)
def test_what_a_setting_gives(monkeypatch, name):
    read, text, value, default = READ[name]
    monkeypatch.setenv(name, text)
    settings.check()
    assert read() == value
    for empty in ("", None):
        monkeypatch.delenv(name) if empty is None else monkeypatch.setenv(name, empty)
        settings.check()
        assert read() == default or name == "RFPP_MEMORY"
        assert read() != value


@pytest.mark.parametrize(("name", "at"), [(n, at) for n in NUMBERS for at in ("least", "most")])
def test_limits_are_allowed_and_what_is_beyond_is_not(monkeypatch, name, at):
    kind, limit = NUMBERS[name], getattr(NUMBERS[name], at)
    monkeypatch.setenv(name, f"{limit:.0f}")
    settings.check()
    monkeypatch.setenv(name, f"{limit + (1 if at == 'most' else -1):.0f}")
    whole = "whole " * kind.whole
    with pytest.raises(UserError) as error:
        settings.check()
    assert str(error.value).endswith(
        f"; it must be a {whole}number from {kind.least:g} to {kind.most:g}"
    )


@pytest.mark.parametrize("name", [*NUMBERS, "RFPP_DEVICE", "RFPP_DEVICES"])
@pytest.mark.parametrize("wrong", ["many", "-1", "nan", "inf", "1e400", "²", "a\x1b[31m\nb" * 999])
def test_wrong_settings_are_refused_by_every_stage(monkeypatch, name, wrong):
    monkeypatch.setenv(name, wrong)
    with pytest.raises(UserError, match=f"^{name} is ") as error:
        settings.check()
    line = str(error.value)
    assert line.isprintable()
    assert repr(wrong)[:8] in line
    allowed = SETTINGS[name].allowed if isinstance(SETTINGS[name], Words) else "number from"
    assert allowed in line


@pytest.mark.parametrize("name", [name for name, kind in NUMBERS.items() if kind.whole])
def test_whole_numbers_are_whole(monkeypatch, name):
    monkeypatch.setenv(name, "2.5")
    with pytest.raises(UserError, match=r"is '2.5'; it must be a whole number from"):
        settings.check()


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_by_name(monkeypatch, name):
    monkeypatch.setenv("RFPP_DEVICE", name)
    settings.check()


def test_an_address_has_no_spaces(monkeypatch):
    monkeypatch.setenv("RFPP_DASK", "tcp://a b")
    with pytest.raises(UserError, match="RFPP_DASK is 'tcp://a b'; it must be an address"):
        settings.check()


def test_every_variable_that_is_read_is_a_setting():
    """And every setting is read somewhere beside the table; docstrings do not count."""
    found = set()
    for file in [*ROOT.glob("rfpp_core/**/*.py"), *ROOT.glob("pipeline/**/*.py")]:
        tree = ast.parse(file.read_text())
        if file.name == "settings.py":
            tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        found |= {
            node.value for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and re.fullmatch("RFPP_[A-Z_]+", str(node.value))
        }  # fmt: skip
    assert found - INTERNAL == set(SETTINGS)
