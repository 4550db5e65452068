"""MkDocs hooks: generated pages, pages that lie in the root, and links that leave the site.

A link to a page of the root leads to its copy on the site; one to a file that is not on the site
(source code, tests) becomes its text alone, since the site does not know where its repository is.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import gen_cli
import gen_methods
import gen_params
import gen_pipeline

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
GENERATED: dict[str, Callable[[], str]] = {
    "methods/index.md": gen_methods.page,
    "reference/params.md": gen_params.page,
    "reference/cli.md": gen_cli.page,
    "reference/environment.md": gen_pipeline.environment,
    "reference/stages.md": gen_pipeline.stages,
}
INCLUDED = {"contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md",
            "changelog.md": "CHANGELOG.md"}  # fmt: skip
PAGES = {name: uri for uri, name in INCLUDED.items()} | {"README.md": "index.md"}
LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```\w+) ([^\s={}]+)$", re.M)  # a language, and the file that a block is
ROLE = re.compile(r":(?:class|meth|func):<code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is generated, and what lies in the root."""
    from mkdocs.structure.files import File

    for uri, make in GENERATED.items():
        files.append(File.generated(config, uri, content=make()))
    for uri, name in INCLUDED.items():
        files.append(File.generated(config, uri, content=included(name)))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:  # fmt: skip
    """Links of the pages that lie here."""
    uri = page.file.src_uri
    if uri in INCLUDED:  # its links were written for the root
        return markdown
    return linked(markdown, f"docs/{uri}", uri)


def on_page_content(
    html: str, page: Page, config: MkDocsConfig, files: Files
) -> str:  # fmt: skip
    """Docstrings name others in roles, which Markdown does not know."""
    return ROLE.sub("<code>", html)


def included(name: str) -> str:
    """A page of the root as a page of the site."""
    uri = next(uri for uri, source in INCLUDED.items() if source == name)
    text = FENCE.sub(r'\1 title="\2"', (ROOT / name).read_text())
    return linked(text, name, uri)


def linked(markdown: str, source: str, uri: str) -> str:
    """The text with its local links as the site needs them.

    Args:
        markdown: the text.
        source: where it lies, from the root.
        uri: where it is on the site.
    """

    def new(found: re.Match[str]) -> str:
        text, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, hash_, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = PAGES.get(place, place.removeprefix("docs/"))
        if page == place:  # it is neither of the root nor in docs/
            return text
        relative = posixpath.relpath(page, posixpath.dirname(uri) or ".")
        return f"[{text}]({relative}{hash_}{anchor})"

    return LINK.sub(new, markdown)
