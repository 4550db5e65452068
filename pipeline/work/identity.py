"""Which code determines a result: the definitions that its functions use, and no others.

An identity must change with the code that made the result, and with nothing else.  So it holds
digests of *definitions* (functions, classes, constants), followed from the functions that compute
the result through every project name that they mention, not of whole files: a comment, an
annotation, an unused function or a new module beside those used changes nothing.

A table of alternatives is annotated ``Choices[...]``: of it only the entries are followed whose
keys the params name.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rfpp_core.storage import files

SOURCE = Path(__file__).parents[2]
PACKAGES = ("rfpp_core", "pipeline")
# These carry data whose content an identity knows by its digest, speak to people, or compute by
# another way what is defined elsewhere.
NOT_FOLLOWED = {
    *(f"rfpp_core.{name}" for name in (
        *(f"config.{part}" for part in ("dataset", "domain_rules", "evaluate", "flow", "network",
                                        "pairs", "method_rules", "methods", "params", "recipe",
                                        "rules", "section", "yaml_file")),
        "errors", "images.buffers", "images.sources", "images.store", "interop.foreign",
        "pairs.markers", "pairs.noise_check", "pairs.spec", "pairs.store", "pairs.verify",
        "rng.cpu", "rng.cuda",  # which have the bits of their definition
        "storage.checkpoint", "storage.downloads", "storage.files", "storage.zarr_arrays",
        "training.train_config",
    )),
    *(f"pipeline.{name}" for name in ("artifacts", "console", "settings", "work.identity",
                                      "work.ledger", "work.workdir", "workers.launch")),
}  # fmt: skip


class Name(NamedTuple):
    """A definition: its module and its name there."""

    module: str
    name: str


class Module:
    """The definitions and imports of one source file."""

    def __init__(self, source: str) -> None:
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, str] = {}  # local name -> dotted name
        self.bare: list[ast.stmt] = []  # what runs at import beside definitions
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports |= _imported(node)
            elif names := _defined(node):
                for name in names:
                    self.definitions.setdefault(name, []).append(node)
            elif not (_is_docstring(node) or _is_elsewhere(node)):
                self.bare.append(node)


def digests(roots: Sequence[Name], chosen: Collection[str]) -> dict[str, str]:
    """Digest of what is used of each module, by dotted module name.

    Args:
        roots: the functions that compute the result.
        chosen: values of params; of a ``Choices`` table only entries with such a key count.
    """
    used = closure(roots, chosen)
    found: dict[str, dict[str, str]] = {}
    for at, text in used.items():
        found.setdefault(at.module, {})[at.name] = text
    return {module: files.digest(names)[:16] for module, names in sorted(found.items())}


def closure(roots: Sequence[Name], chosen: Collection[str]) -> dict[Name, str]:
    """The syntax of every definition that the roots use, without annotations and docstrings.

    Raises:
        LookupError: if a root is not there.
    """
    seen: dict[Name, str] = {}
    queue, source = list(roots), SOURCE
    for root in roots:
        if root.name not in _module(source, root.module).definitions:
            raise LookupError(f"{root.module} defines no {root.name}")
    while queue:
        at = queue.pop()
        if at in seen:
            continue
        module = _module(source, at.module)
        nodes = module.definitions.get(at.name, []) if at.name else module.bare
        plain = [_plain(node, chosen) for node in nodes]
        seen[at] = "\n".join(map(ast.unparse, plain))
        queue += [used for node in plain for used in _uses(source, at.module, node)]
        if module.bare:
            queue.append(Name(at.module, ""))
    return seen


@cache
def _module(source: Path, name: str) -> Module:
    return Module((_file(source, name) or source / name).read_text())


@cache
def _file(source: Path, name: str) -> Path | None:
    """The file of a project module, or None."""
    if name.partition(".")[0] not in PACKAGES:
        return None
    base = source / name.replace(".", "/")
    there = (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists())
    return next(there, None)


def _uses(source: Path, module: str, node: ast.stmt) -> Iterator[Name]:
    """The project definitions that a definition mentions."""
    here = _module(source, module)
    imports = dict(here.imports)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import | ast.ImportFrom):
            imports |= _imported(inner)
    for dotted in _mentions(node):
        first, *rest = dotted
        if first in here.definitions:
            yield Name(module, first)
        elif first in imports:
            yield from _resolve(source, ".".join([imports[first], *rest]))


def _resolve(source: Path, dotted: str) -> Iterator[Name]:
    """A dotted name as a definition; a module that is passed around counts whole."""
    parts = dotted.split(".")
    split = next((i for i in range(len(parts), 0, -1) if _file(source, ".".join(parts[:i]))), 0)
    module, rest = ".".join(parts[:split]), parts[split:]
    if not module or module in NOT_FOLLOWED:
        return
    found = _module(source, module)
    if not rest:
        yield from (Name(module, name) for name in found.definitions)
    elif rest[0] in found.definitions:
        yield Name(module, rest[0])
    elif rest[0] in found.imports:
        yield from _resolve(source, ".".join([found.imports[rest[0]], *rest[1:]]))


def _mentions(node: ast.AST) -> Iterator[list[str]]:
    """Names and dotted names that are read, as their parts."""
    if isinstance(node, ast.Attribute | ast.Name):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield [inner.id, *reversed(parts)]
            return
    for child in ast.iter_child_nodes(node):
        yield from _mentions(child)


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    if isinstance(node, ast.Import):  # without `as`, it binds the package
        names = [alias.name if alias.asname else alias.name.partition(".")[0]
                 for alias in node.names]  # fmt: skip
        return {alias.asname or name: name for alias, name in zip(node.names, names, strict=True)}
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}


def _defined(node: ast.stmt) -> list[str]:
    """Names that a top-level statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        targets: list[ast.AST] = [*node.targets]
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    else:
        return []
    return [inner.id for target in targets for inner in ast.walk(target)
            if isinstance(inner, ast.Name)]  # fmt: skip


def _plain(node: ast.stmt, chosen: Collection[str]) -> ast.stmt:
    """A definition without docstrings and annotations, and with the chosen entries alone of a
    table of alternatives."""
    plain: Any = _Plain().visit(ast.parse(ast.unparse(node)).body[0])
    table = isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).startswith("Choices[")
    if table and isinstance(plain.value, ast.Dict):
        entries = zip(plain.value.keys, plain.value.values, strict=True)
        pairs = [(key, value) for key, value in entries
                 if isinstance(key, ast.Constant) and key.value in chosen]  # fmt: skip
        plain.value = ast.Dict([key for key, _ in pairs], [value for _, value in pairs])
    found: ast.stmt = plain
    return found


class _Plain(ast.NodeTransformer):
    """Drops what cannot change a result."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.returns = None
        return self._body(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        node.returns = None
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        return self._body(node)

    def visit_arg(self, node: ast.arg) -> Any:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def _body(self, node: Any) -> Any:
        if node.body and _is_docstring(node.body[0]):
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_elsewhere(node: ast.stmt) -> bool:
    """Whether it runs for type checkers only, or as a command only."""
    names = {inner.id for inner in ast.walk(node.test) if isinstance(inner, ast.Name)} \
        if isinstance(node, ast.If) else set()  # fmt: skip
    return bool(names & {"TYPE_CHECKING", "__name__"})
