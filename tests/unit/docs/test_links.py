"""No link of the documentation is dead, and the site has every page."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.helpers import ROOT
from tests.unit.docs.markdown import PAGES, anchors, exists, hooks, links

LINKED = sorted(page for page in PAGES if links(page))


@pytest.mark.parametrize("page", LINKED)
def test_local_links_lead_to_files_and_headings(page):
    dead = []
    for path, anchor in links(page):
        if not exists(path, page):
            dead.append(path)
        elif anchor and anchor not in anchors(path):
            dead.append(f"{path}#{anchor}")
    assert not dead


def test_links_are_found_and_dead_ones_noticed():
    assert len(LINKED) > 10
    assert ("docs/concepts/graph.md", "") in links("docs/index.md")
    assert not exists("docs/howto/nothing.md", "README.md")
    assert not exists("docs/reference/params.md", "README.md")  # it is generated
    assert exists("docs/reference/params.md", "docs/index.md")
    assert "the-control-regression-at-t-1" in anchors("docs/concepts/graph.md")


def test_the_site_has_every_page():
    def leaves(node):
        if isinstance(node, str):
            return [node]
        return [leaf for child in (node.values() if isinstance(node, dict) else node)
                for leaf in leaves(child)]  # fmt: skip

    nav = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert set(nav) == pages | set(hooks.INCLUDED)
    assert len(nav) == len(set(nav))


def test_the_site_loads_nothing_from_elsewhere():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False
    assert "extra_javascript" not in config
    assert config["extra_css"] == ["site.css"]
    assert "http" not in (ROOT / "docs/site.css").read_text()


@pytest.mark.parametrize(
    ("link", "source", "uri", "expected"),
    [
        ("(docs/start.md)", "CONTRIBUTING.md", "contributing.md", "[x](start.md)"),
        ("(../SECURITY.md)", "docs/index.md", "index.md", "[x](security.md)"),
        ("(../../SECURITY.md#a)", "docs/howto/gpus.md", "howto/gpus.md", "[x](../security.md#a)"),
        ("(../tests/faults/kinds.py)", "docs/reliability.md", "reliability.md", "x"),
        ("(howto/gpus.md)", "docs/index.md", "index.md", "[x](howto/gpus.md)"),
        ("(https://arxiv.org)", "docs/index.md", "index.md", "[x](https://arxiv.org)"),
        ("(#here)", "docs/index.md", "index.md", "[x](#here)"),
    ],
)
def test_links_that_leave_the_site_become_text_and_pages_of_the_root_are_on_it(
    link, source, uri, expected
):
    assert hooks.linked(f"[x]{link}", source, uri) == expected
    assert hooks.linked(f"![x]{link}", source, uri) == f"![x]{link}"


def test_files_of_the_example_are_titles_of_blocks():
    text = hooks.included("CONTRIBUTING.md")
    assert '```python title="rfpp_core/training/couplings/antithetic.py"' in text
    assert '```diff title="rfpp_core/config/objective.py"' in text


@pytest.mark.parametrize("page", LINKED)
def test_no_placeholder_is_left(page):
    if (ROOT / page).exists():  # some are generated
        assert not re.search(r"^[A-Z_]{4,}$", (ROOT / page).read_text(), re.MULTILINE)
