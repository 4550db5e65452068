import re

import pytest

from pipeline.cli import presets
from pipeline.cli.methods import METHODS
from tests.helpers import ROOT


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.system)
def test_what_a_method_names_is_there(method):
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|OpenReview:\w{10}", method.paper)
    page = ROOT / "docs/methods" / f"{method.page}.md"
    assert method.paper.partition(":")[2] in page.read_text()
    assert f"methods/{method.page}.md" in (ROOT / "mkdocs.yml").read_text()
    for name in method.tests:
        assert (ROOT / "tests" / name).is_file()
    for name in re.findall(r"preset: ([a-z0-9_, -]+)", method.rows):
        assert set(name.split(", ")) <= set(presets.names())


def test_the_table_is_printed(capsys):
    from pipeline.cli.methods import methods

    methods(tests=True)
    said = capsys.readouterr().out
    assert all(f"{method.system} ({method.paper})" in said for method in METHODS)
    assert said.count("  tests  ") == len(METHODS)
