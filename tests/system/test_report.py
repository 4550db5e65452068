"""The report in a real browser, at the widths of a screen and of a telephone."""

import itertools
import shutil

import pytest

from pipeline.report import page
from tests.browser import Browser
from tests.unit.report import fakes

WIDTHS, PAPER = (1280, 390), 718  # pixels; A4 between margins of 1 cm
HOSTILE = (
    "<script>document.title = 'taken'</script>",
    "<img src=x onerror=document.title='taken'>",
    "a very long class name " * 20,
    "w" * 300,
)

# What sticks out of the page, but for what lies in a box that scrolls.
OUTSIDE = """
[...document.querySelectorAll('body *')].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5)
    && !e.closest('.scroll') && !e.closest('pre') && !e.closest('option');
}).map((e) => `${e.tagName}.${e.className}`)
"""
WIDEST = "document.documentElement.scrollWidth"
BOXES = """
[...document.querySelectorAll('.scroll, pre')].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.right > innerWidth + 0.5 || box.left < -0.5;
}).length
"""
LOADED = "[...document.images].filter((i) => !i.complete || !i.naturalWidth).map((i) => i.src)"
EVERY_GRID = """
Promise.all(JSON.parse(document.getElementById('grids').textContent)
  .flatMap((set) => set.grids)
  .map((g) => new Promise((done) => {
    const image = new Image();
    image.onload = () => done(image.naturalWidth === g.width && image.naturalHeight === g.height);
    image.onerror = () => done(false);
    image.src = g.file;
  }))).then((all) => all.length > 1 && all.every(Boolean))
"""
PANELS = """
[...document.querySelectorAll('.panel')].map((p) => ({
  flow: p.querySelector('select').value,
  pressed: [...p.querySelectorAll('button[aria-pressed=true]')].map((b) => b.textContent),
  buttons: [...p.querySelectorAll('button')].map((b) => b.textContent),
  file: p.querySelector('img').getAttribute('src'),
  shown: [p.querySelector('img').width, p.querySelector('img').height],
  caption: p.querySelector('figcaption').textContent,
  rows: [...p.querySelectorAll('.rows span')].map((s) => s.textContent),
  named: p.querySelector('.rows').offsetWidth > 0,
  look: p.querySelector('.pick').className,
}))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture
def report(browser, tmp_path, monkeypatch):
    """Makes the report of a fake run; opens it from another place, alone."""

    def make(document, **more):
        (tmp_path / "run").mkdir()
        monkeypatch.chdir(tmp_path / "run")
        page.write(fakes.make(document, **more))
        shutil.move("report", tmp_path / "moved here")
        browser.problems.clear()
        browser.size(1280)
        browser.media("light")
        browser.open(tmp_path / "moved here" / "index.html")
        return browser

    return make


def press(browser, panel, label):
    browser.run(f"[...document.querySelectorAll('.panel')[{panel}].querySelectorAll('button')]"
                f".find((b) => b.textContent === '{label}').click()")  # fmt: skip


def choose(browser, panel, name):
    browser.run(f"""(() => {{
      const select = document.querySelectorAll('.panel')[{panel}].querySelector('select');
      select.value = '{name}';
      select.dispatchEvent(new Event('change'));
    }})()""")


@pytest.mark.parametrize("case", fakes.CASES)
def test_nothing_is_wider_than_the_page_and_nothing_fails(report, case):
    browser = report(fakes.CASES[case]())
    for width, scheme in itertools.product(WIDTHS, ("light", "dark")):
        browser.size(width)
        browser.media(scheme)
        assert browser.run(WIDEST) <= width
        assert browser.run(OUTSIDE) == []
        assert browser.run(BOXES) == 0
    browser.size(PAPER)
    browser.media("light", "print")
    assert browser.run(WIDEST) <= PAPER
    assert browser.run(LOADED) == []
    assert browser.run(EVERY_GRID)
    assert browser.problems == []


def test_hostile_names_break_nothing(report):
    document = fakes.conditional()
    document["dataset"] = {**document["dataset"], "path": "x" * 200 + "<script>" * 20}
    browser = report(document, classes=HOSTILE)
    for width in WIDTHS:
        browser.size(width)
        assert browser.run(WIDEST) <= width
        assert browser.run(OUTSIDE) == []
    choose(browser, 0, "training images")
    press(browser, 1, "path")
    [_, right] = browser.run(PANELS)
    assert right["rows"][:2] == list(HOSTILE[:2])
    assert browser.run("document.title").startswith("Rectified flows on the images of xxx")
    assert browser.problems == []


def test_two_flows_are_compared_at_any_number_of_evaluations(report):
    browser = report(fakes.several(3))
    names = ["flow1", "way1_with_a_long_name", "way2_with_a_long_name"]
    left, right = browser.run(PANELS)
    assert (left["flow"], left["pressed"], left["file"]) == ("flow1", ["35"], "flow1/nfe35.png")
    assert (right["flow"], right["pressed"]) == (names[2], ["1"])
    assert left["buttons"] == right["buttons"] == ["1", "2", "8", "35", "path"]

    press(browser, 0, "2")
    choose(browser, 1, names[1])
    left, right = browser.run(PANELS)
    assert (left["pressed"], left["file"]) == (["2"], "flow1/nfe2.png")
    assert left["caption"] == "2 network evaluations an image, euler"
    assert right["file"] == f"{names[1]}/nfe1.png"  # at the evaluations chosen before
    assert (left["look"], right["look"]) == ("pick f0", "pick f1")

    press(browser, 1, "path")
    choose(browser, 0, "training images")
    left, right = browser.run(PANELS)
    assert right["file"] == f"{names[1]}/trajectory.png"
    assert (left["file"], left["buttons"], left["named"]) == ("real.png", [], True)
    choose(browser, 0, "flow1")
    assert browser.run(PANELS)[0]["file"] == "flow1/nfe2.png"
    assert browser.run(LOADED) == []
    assert browser.problems == []


def test_the_keyboard_stays_on_the_button_it_pressed(report):
    browser = report(fakes.changed())
    press(browser, 0, "8")
    assert browser.run("document.activeElement.textContent") == "8"


def test_grids_are_shown_pixel_by_pixel_with_their_classes(report):
    browser = report(fakes.conditional())
    left, _ = browser.run(PANELS)
    assert left["shown"] == browser.run(
        "(() => { const i = document.querySelector('.panel img');"
        " return [i.naturalWidth, i.naturalHeight]; })()"
    )
    assert browser.run(
        "getComputedStyle(document.querySelector('.panel img')).imageRendering"
    ) == ("pixelated")
    assert left["rows"] == ["zero", "one", "two"] * 2 + ["zero", "one"]
    middles = browser.run("[...document.querySelector('.panel').querySelectorAll('.rows span')]"
                          ".map((s) => { const b = s.getBoundingClientRect();"
                          " return (b.top + b.bottom) / 2; })")  # fmt: skip
    top = browser.run("document.querySelector('.panel img').getBoundingClientRect().top")
    for row, middle in enumerate(middles):  # of 32 pixels and 2 between
        assert middle == pytest.approx(top + 2 + row * 34 + 16, abs=2)


def test_wide_grids_scroll_together_and_shrink_when_told(report):
    browser = report(fakes.unlabelled())
    browser.size(390)
    widths = (
        "[...document.querySelectorAll('.panel img')].map((i) => i.getBoundingClientRect().width)"
    )
    assert browser.run(widths) == [530, 530]
    browser.run("document.querySelector('.panel .scroll').scrollLeft = 60")
    browser.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
    assert browser.run("document.querySelectorAll('.panel .scroll')[1].scrollLeft") == 60
    browser.run("document.getElementById('fit').click()")
    assert all(width <= 390 for width in browser.run(widths))
    browser.run("document.getElementById('fit').click()")
    assert browser.run(widths) == [530, 530]


def test_light_and_dark_differ_and_paper_is_white(report):
    browser = report(fakes.changed())
    shown = {}
    for scheme, kind in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        browser.media(scheme, kind)
        shown[scheme, kind] = browser.run("getComputedStyle(document.body).backgroundColor")
    assert shown["light", "screen"] == shown["dark", "print"] == "rgb(255, 255, 255)"
    assert shown["dark", "screen"] == "rgb(17, 20, 23)"


@pytest.mark.slow
def test_a_run_has_its_stage_times(finished):
    """And none of them in what DVC compares but the report itself."""
    text = (finished.path / "report" / "index.html").read_text()
    assert "No stage times" not in text
    for stage in ("reference", "generate", "train", "evaluate"):
        assert f">{stage}</th>" in text.replace("\n", "")
    assert "stage-times" not in (finished.path / "dvc.lock").read_text()
