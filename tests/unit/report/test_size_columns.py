"""Columns that older metrics files lack: MACs, transport cost and flip error."""

from __future__ import annotations

import json

import pytest

from pipeline import artifacts
from pipeline.report import page, tables
from tests.unit.report import fakes
from tests.unit.report.test_tables import texts

MORE = {"parameters": 1234, "macs": 6_570_000_000, "transport": 0.81, "flip_error": 1.9}


def test_a_flow_has_the_columns_that_it_was_measured_for(run):
    found = run(fakes.changed())
    assert "million MACs" not in tables.costs(found).head
    assert "transport" not in tables.properties(found).head
    found.metrics["flow2"] |= MORE
    costs, properties = tables.costs(found), tables.properties(found)
    assert costs.head[:4] == ["", "parameters", "million MACs", "images/s"]
    assert [row[2] for row in texts(costs.groups[0].rows)] == ["–", "6,570"]
    assert properties.head[-2:] == ["transport", "flip error"]
    assert [row[-2:] for row in texts(properties.groups[0].rows)] == [
        ["", ""], ["–", "–"], ["0.810", "1.90"]
    ]  # fmt: skip
    for table in (costs, properties):
        assert {len(row) for row in table.groups[0].rows} == {len(table.head)}


@pytest.mark.parametrize("measured", [True, False])
def test_the_page_explains_them_where_they_are(tmp_path, monkeypatch, measured):
    monkeypatch.chdir(tmp_path)
    config = fakes.make(fakes.changed())
    for flow in config.flows if measured else []:
        file = artifacts.metrics(flow)
        file.write_text(json.dumps(json.loads(file.read_text()) | MORE))
    page.write(config)
    text = (artifacts.REPORT / "index.html").read_text()
    for word in ("<b>Transport</b>", "<b>Flip error</b>", "<b>MACs</b>", "6,570"):
        assert (word in text) == measured
