"""The page: complete in its folder, and safe from the names it shows."""

import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.report import looks, page
from rfpp_core.config import params
from tests.unit.report import fakes

HOSTILE = ("<script>alert(1)</script>", '" onmouseover="alert(2)', "</script><img src=x>",
           "{{ 7 * 7 }}", "&lt;b&gt;")  # fmt: skip


class Tags(HTMLParser):
    """The elements of a page with their attributes, and its text by element."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a fake run and its report; its page."""

    def make(document, **more):
        monkeypatch.chdir(tmp_path)
        page.write(fakes.make(document, **more))
        return (artifacts.REPORT / "index.html").read_text(encoding="utf-8")

    return make


@pytest.mark.parametrize("case", fakes.CASES)
def test_the_folder_is_complete(made, case):
    text = made(fakes.CASES[case]())
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    tags = Tags(text)
    files = [image["src"] for image in tags.all("img")]
    assert not [attrs for attrs in tags.all("script") if "src" in attrs]
    assert [link["href"] for link in tags.all("link")] == ["data:,"]
    files += [grid["file"] for shown in grids(tags) for grid in shown["grids"]]
    for file in files:
        assert (artifacts.REPORT / file).is_file(), file
    ids = {attrs["id"] for _, attrs in tags.found if "id" in attrs}
    assert {link["href"] for link in tags.all("a")} <= {f"#{name}" for name in ids}


def grids(tags):
    return json.loads(next(data for tag, data in tags.text if tag == "script"))


@pytest.mark.parametrize("case", fakes.CASES)
def test_every_table_and_picture_says_what_it_is(made, case):
    tags = Tags(made(fakes.CASES[case]()))
    assert all(image["alt"] for image in tags.all("img"))
    assert all(box.get("aria-label") for _, box in tags.found if box.get("role") == "region")
    assert tags.all("html") == [{"lang": "en"}]
    titles = [data for tag, data in tags.text if tag in ("title", "h1")]
    assert titles[0] == titles[1]
    assert titles[0].startswith("Rectified flows on ")


def test_names_of_strangers_are_text(made):
    document = fakes.conditional()
    document["dataset"] = {**document["dataset"], "path": "<script>alert(0)</script>"}
    text = made(document, classes=HOSTILE)
    tags = Tags(text)
    assert len(tags.all("script")) == 2  # the grids, and the page's own
    assert not [attrs for _, attrs in tags.found if "onmouseover" in attrs]
    assert {image["src"] for image in tags.all("img")} <= {
        "flow1/nfe35.png", "flow2/nfe1.png", "real.png", "distance.png", "loss.png", "times.png",
    }  # fmt: skip
    shown = "".join(data for _, data in tags.text)
    for name in (*HOSTILE, "<script>alert(0)</script>"):
        assert name in shown
    assert "49" not in [data for tag, data in tags.text if tag == "span"]
    assert {name for shown in grids(tags) for grid in shown["grids"] for name in grid["rows"]} == {
        *HOSTILE
    }


def test_a_file_name_of_git_and_a_machine_are_text(made, monkeypatch):
    monkeypatch.setattr(page.provenance, "revision", lambda: "<script>alert(3)</script>")
    monkeypatch.setattr(page.provenance, "machines", lambda *_: "<img src=x onerror=alert(4)>")
    assert len(Tags(made(fakes.changed())).all("script")) == 2


@pytest.mark.parametrize("n", [2, 10])
def test_a_flow_has_one_colour_everywhere(made, n):
    text = made(fakes.several(n))
    tags, flows = Tags(text), [shown["name"] for shown in grids(Tags(text))[:-1]]
    for i, (flow, look) in enumerate(looks.looks(flows).items()):
        assert f".f{i}{{--flow:{look.colour};--dash:{look.border}}}" in text
        assert grids(tags)[i] | {"grids": []} == {"name": flow, "look": f"f{i}", "grids": []}
    marked = re.findall(r'class="flow f(\d+)"><i class="mark"></i><span>(.*?)</span>', text)
    assert {flows[int(i)] for i, _ in marked} == set(flows)
    assert all(name.replace("<wbr>", "") == flows[int(i)] for i, name in marked)


def test_the_summary_is_one_paragraph_in_plain_words(made):
    text = made(fakes.changed())
    lead = re.sub(r"<[^>]*>", "", re.search(r'<p class="lead">(.*?)</p>', text, re.S)[1])
    assert " ".join(lead.split()) == (
        "With one network evaluation an image, flow2 is at distance 2.50 from the training images "
        "(fd_classifier, lower is better). Its teacher flow1 reaches 1.00 with 35, and 18.0 with "
        "1. Above the floor of 0.500, which training images drawn again reach, flow2 has 4.00× "
        "the excess of its teacher at 35. Its paths are 2.0 times straighter."
    )
    assert "One training seed" in text


def test_precision_is_never_shown_without_recall_and_why(made):
    text = made(fakes.several_nets())
    heads = re.findall(r"<thead>.*?</thead>", text)
    assert sum("precision" in head and "recall" in head for head in heads) == 3
    assert "high precision and a recall of 0" in text


def test_dvc_draws_the_same_curves(made):
    made(fakes.changed())
    with (artifacts.REPORT / "distance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["flow"], row["nfe"]) for row in rows} >= {("flow1", "35"), ("flow2", "1")}
    with (artifacts.REPORT / "loss.csv").open() as file:
        assert {row["flow"] for row in csv.DictReader(file)} == {"flow1", "flow2"}


def test_an_import_alone_has_a_report(made):
    document = fakes.imported()
    document["flows"], document["pairs"] = {"flow1": fakes.FLOW1}, {}
    text = made(document)
    assert "No flow was trained here" in text
    assert (artifacts.REPORT / "loss.csv").read_text() == "flow,step,loss\nflow1,0,\n"


def test_equal_results_give_an_equal_report(made):
    """But for stage times and revision, which are no results."""

    def digests():
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest()
                for file in artifacts.REPORT.rglob("*") if file.is_file()}  # fmt: skip

    made(fakes.changed())
    before = digests()
    page.write(params.load())
    assert digests() == before


def test_a_report_replaces_the_one_before(made):
    made(fakes.changed())
    (artifacts.REPORT / "left.png").write_text("of another run")
    page.write(params.load())
    assert not (artifacts.REPORT / "left.png").exists()
    assert not list(Path().glob(".report*"))


def test_the_page_stays_small(made):
    """Of ten flows: what is large are its pictures."""
    assert len(made(fakes.several(10))) < 200_000
