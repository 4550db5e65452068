"""Pages of the documentation, and what of them a test looks at: links, headings, blocks."""

from __future__ import annotations

import posixpath
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from tests.helpers import ROOT

sys.path.insert(0, str(ROOT / "docs"))  # as MkDocs does for its hooks
import hooks

FENCED = re.compile(r"^( *)(```+)([^\n]*)\n(.*?)^\1\2 *$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


class Block(NamedTuple):
    """A block of code: its language (none for an indented one), its title, its lines, and the
    preset that the page has put in place by then."""

    language: str
    title: str
    text: str
    preset: str


def sources() -> dict[str, str]:
    """Text of every page by its path from the root; those that are generated among them."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    written = {str(file.relative_to(ROOT)): file.read_text() for file in files}
    return written | {f"docs/{uri}": make() for uri, make in hooks.GENERATED.items()}


PAGES = sources()


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return "\n".join(line for line in FENCED.sub("", PAGES[page]).splitlines()
                     if not line.startswith("    "))  # fmt: skip


def anchors(page: str) -> set[str]:
    """Anchors of a page's headings, as Markdown's toc extension names them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", FENCED.sub("", PAGES[page]), re.M):
        text = LINK.sub(lambda link: link[0][1:].partition("]")[0], title)
        plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        found.add(next(s for i in range(99) if (s := f"{slug}_{i}" if i else slug) not in found))
    return found | set(re.findall(r"^::: (\S+)", PAGES[page], re.M))


def links(page: str) -> list[tuple[str, str]]:
    """Local links of a page: path from the root (the page itself for a bare anchor), anchor."""
    found = []
    for target in LINK.findall(FENCED.sub("", PAGES[page])):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            place = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
            found.append((place if path else page, anchor))
    return found


def exists(path: str, linked_from: str) -> bool:
    """Whether a path from the root is there for readers of a page: on the disk, or, from a page
    of the site, on the site."""
    on_site = path.removeprefix("docs/") in {*hooks.GENERATED, *hooks.INCLUDED}
    return (ROOT / path).exists() or (linked_from.startswith("docs/") and on_site)


def blocks(page: str) -> Iterator[Block]:
    """Blocks of a page in order: fenced ones, and paragraphs of indented ones."""
    text, preset, at = PAGES[page], "digits", 0
    for found in [*FENCED.finditer(text), None]:
        for chunk in _indented(text[at : found.start() if found else len(text)]):
            preset = _preset(chunk, preset)
            yield Block("", "", chunk, preset)
        if found is None:
            return
        at = found.end()
        info, body = found[3].strip(), found[4]
        language, _, rest = info.partition(" ")
        preset = _preset(body, preset)
        yield Block(language, rest, body, preset)


def _indented(text: str) -> Iterator[str]:
    """Paragraphs that are indented by four, after a blank line."""
    for chunk in re.split(r"\n\s*\n", text):
        lines = chunk.strip("\n").splitlines()
        if lines and all(line.startswith("    ") for line in lines):
            yield "\n".join(line[4:] for line in lines) + "\n"


def _preset(text: str, before: str) -> str:
    """The preset that a block puts in place, or the one before it."""
    found = re.findall(r"^rfpp preset (\w[\w-]*)", text, re.M)
    return found[-1] if found else before


def commands(block: Block) -> list[str]:
    """The command lines of a block, continued lines joined; comments are left in."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def spans(page: str) -> list[str]:
    """Code within the text of a page."""
    return CODE.findall(prose(page))
