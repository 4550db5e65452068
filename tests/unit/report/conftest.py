"""Fake runs in a directory of their own."""

from __future__ import annotations

import pytest

from pipeline.report import results
from tests.unit.report import fakes


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes a fake run in a new directory, which becomes the current one, and reads it."""

    def make(document, **more) -> results.Results:
        monkeypatch.chdir(tmp_path)
        return results.read(fakes.make(document, **more))

    return make
