"""Measurements are cached by what determines them."""

from __future__ import annotations

import math

from pipeline.work.results import Results

KEY = {"sampler": {"solver": "euler", "times": (1.0, 0.8)}, "set": 0}


def test_a_measurement_is_made_once(tmp_path):
    made = []

    def measure():
        made.append(1)
        return {"distances": [1.5, math.nan]}

    for _ in range(2):
        found = Results(tmp_path).once(KEY, measure)
        assert found["distances"][0] == 1.5
        assert math.isnan(found["distances"][1])
    assert len(made) == 1
    assert Results(tmp_path).find({**KEY, "set": 1}) is None


def test_a_corrupted_file_is_no_measurement(tmp_path):
    results = Results(tmp_path)
    results.save(KEY, 1.5)
    [file] = tmp_path.glob("*.json")
    for corruption in (file.read_text().replace("1.5", "2.5"), "{", "[]", ""):
        file.write_text(corruption)
        assert results.find(KEY) is None
