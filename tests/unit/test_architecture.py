"""The pages that explain the code say what is true of it: drawings against real imports, names against real definitions."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import grimp
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lingact"
ARCHITECTURE, CONTRIBUTING, GLOSSARY = (
    (ROOT / page).read_text(encoding="utf-8") for page in ("docs/architecture.md", "CONTRIBUTING.md", "docs/glossary.md")
)
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/glossary.md",
    "docs/paper.md",
    "docs/models.md",
    "docs/saes.md",
    "benchmarks/README.md",
)

Imports = dict[str, set[str]]
"""Package -> packages that any of its modules imports."""
DOORS = {"__main__", "interface"}
"""Modules through which the packages are entered; they are not drawn."""
_ARROW = re.compile(r'^\s*(\w+) (-->|-\.->)(?:\|"(\d+) ([^"]+)"\|)? (\w+)$')


class Arrow(NamedTuple):
    """One line of a drawing."""

    start: str
    end: str
    dotted: bool
    number: int | None
    names: tuple[str, ...]


def drawings(kind: str) -> list[list[Arrow]]:
    """The drawings of a kind (`packages`, `walk`), with every line understood."""
    blocks = re.findall(r"```mermaid\n(.*?)```", ARCHITECTURE, flags=re.DOTALL)
    found = []
    for title, marker, *lines in (block.splitlines() for block in blocks):
        assert title == "flowchart TD"
        assert marker.strip() in ("%% packages", "%% walk")
        if marker.strip() == f"%% {kind}":
            found.append([arrow(line) for line in lines])
    return found


def arrow(line: str) -> Arrow:
    match = _ARROW.match(line)
    assert match is not None, f"not an arrow that the test understands: {line}"
    start, line_style, number, names, end = match.groups()
    return Arrow(start, end, line_style == "-.->", int(number) if number else None, tuple(names.split(", ")) if names else ())


@pytest.fixture(scope="module")
def imports() -> Imports:
    graph = grimp.build_graph("lingact", cache_dir=None)
    found: Imports = {package_of(name): set() for name in graph.modules - {"lingact"}}
    for name in {name for name in graph.modules - {"lingact"} if not name.endswith(".__main__")}:
        found[package_of(name)] |= {package_of(other) for other in graph.find_modules_directly_imported_by(name) - {"lingact"}} - {package_of(name)}
    assert not DOORS & {end for ends in found.values() for end in ends}
    return {name: ends for name, ends in found.items() if name not in DOORS}


def package_of(module: str) -> str:
    """The package that a module is drawn in. `runtime.compat` is drawn apart: it imports nothing of lingact, and every package may use it."""
    return "compat" if module.startswith("lingact.runtime.compat") else module.split(".")[1]


def reached(arrows: Imports, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = arrows.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def called_by_name(start: str, end: str) -> bool:
    """Whether a package names a module of another one in a string, as for importlib."""
    return any(f'"lingact.{end}.' in path.read_text(encoding="utf-8") for path in modules(start))


def modules(package: str) -> list[Path]:
    """The files of a package, or the module of that name."""
    single, folder = SOURCE / f"{package}.py", SOURCE / ("runtime/compat" if package == "compat" else package)
    return [single] if single.is_file() else sorted(folder.rglob("*.py"))


@cache
def definitions(path: Path) -> frozenset[str]:
    """Names that a module defines: functions, classes and constants, and what classes define as `Class.name` and `name`."""

    def found() -> Iterator[str]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            yield from names_of(node)
            if isinstance(node, ast.ClassDef):
                for name in (name for inner in node.body for name in names_of(inner)):
                    yield from (f"{node.name}.{name}", name)

    return frozenset(found())


def names_of(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Assign(targets=targets):
            flat = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
            return [part.id for part in flat if isinstance(part, ast.Name)]
    return []


def test_the_drawing_has_every_package_and_no_other(imports: Imports) -> None:
    (arrows,) = drawings("packages")
    assert {end for each in arrows for end in (each.start, each.end)} == imports.keys()


def test_every_package_is_described_once(imports: Imports) -> None:
    rows = re.findall(r"^\| `(\w+)` \| \S", ARCHITECTURE, flags=re.MULTILINE)
    named = [name for name in rows if name in imports]
    assert sorted(named) == sorted(imports)


def test_drawn_arrows_are_real_imports(imports: Imports) -> None:
    for each in [each for kind in ("packages", "walk") for drawing in drawings(kind) for each in drawing]:
        if each.dotted:
            assert each.end not in imports[each.start], f"{each.start} imports {each.end}: draw a whole line"
            assert called_by_name(each.start, each.end), f"{each.start} does not call {each.end} by name"
        else:
            assert each.end in imports[each.start], f"no module of {each.start} imports {each.end}"


def test_no_import_is_missing_in_the_drawing(imports: Imports) -> None:
    (arrows,) = drawings("packages")
    drawn: Imports = {}
    for each in arrows:
        drawn.setdefault(each.start, set()).add(each.end)
    missing = [f"{start} --> {end}" for start, ends in imports.items() for end in sorted(ends - reached(drawn, start))]
    assert not missing
    assert not [name for name in drawn if name in reached(drawn, name)], "the drawing has a circle"


def test_walks_are_numbered_and_name_what_is_there() -> None:
    walks = drawings("walk")
    assert len(walks) == 3
    for walk in walks:
        assert [each.number for each in walk] == list(range(1, len(walk) + 1))
        for each in walk:
            there = {name for path in modules(each.end) for name in definitions(path)}
            assert set(each.names) <= there, f"{each.end} has no {set(each.names) - there}"


def test_every_term_of_the_glossary_stands_once_and_names_code_that_is_there() -> None:
    rows = [line for line in GLOSSARY.splitlines() if line.startswith("| **")]
    terms = [term.strip().lower() for row in rows for bold in re.findall(r"\*\*(.+?)\*\*", row.split(" | ")[0]) for term in bold.split(",")]
    assert len(rows) > 60
    assert sorted(terms) == sorted(set(terms))
    for row in rows:
        match = re.fullmatch(r"\| .* \| `([\w/]+)(\.py)?: ([\w.]+)` \|", row)
        assert match is not None, f"no code named in the last column: {row}"
        place, file, name = match.groups()
        paths = [SOURCE / f"{place}.py"] if file else modules(place)
        assert name in {found for path in paths for found in definitions(path)}, f"{place}{file or ''} has no {name}"


def test_paths_that_the_pages_name_are_there() -> None:
    named = set(re.findall(r"`((?:[\w.]+/)+[\w.]*)`", ARCHITECTURE + CONTRIBUTING)) - {"stats/", "outputs/cache"}
    assert {name for name in named if not any((base / name).exists() for base in (ROOT, SOURCE))} == set()


def test_classes_and_constants_that_the_pages_name_are_there() -> None:
    there = {name for folder in (SOURCE, ROOT / "tests") for path in folder.rglob("*.py") for name in definitions(path)}
    named = set(re.findall(r"`([A-Z]\w+(?:\.\w+)?)`", ARCHITECTURE + CONTRIBUTING))
    assert {name for name in named - there if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("https://"):
            assert ((ROOT / page).parent / target).exists(), f"{page}: no {target}"
