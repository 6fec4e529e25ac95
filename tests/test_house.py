"""The house: which room imports which. Arrows go one way, and nothing goes in a circle."""

import ast
import graphlib
from pathlib import Path

import jupytext
import pytest

from utils.checkpoints import MODELS
from utils.paths import ROOT

# what each room may import of the others, the most particular name first
ROOMS = {
    "utils.bricks": {"utils", "utils.bricks", "utils.doors"},
    "utils.exercises": {"utils", "utils.bricks", "utils.exercises"},
    "utils.practice": {"utils", "utils.bricks", "utils.exercises", "utils.practice"},
    "utils.doors": {"utils", "utils.doors"},
    "utils.recipes": {"utils", "utils.bricks", "utils.recipes"},
    "utils": {"utils", "utils.doors"},  # plumbing
    "tools": {"utils", "utils.bricks", "utils.practice", "utils.recipes", "tools"},
}
LESSONS = {"utils", "utils.bricks", "utils.doors", "utils.exercises", "utils.practice"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("utils", "tools")
    for path in (ROOT / folder).rglob("*.py")
}


def room(module: str) -> str:
    return next(name for name in ROOMS if module == name or module.startswith(name + "."))


def imported(source: str) -> set[str]:
    """The modules of the house that a text imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found & MODULES.keys()


GRAPH = {name: imported(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_lies_before_it(module):
    allowed = ROOMS[room(module)]
    assert {room(other) for other in GRAPH[module]} <= allowed, GRAPH[module]


def test_no_import_goes_in_a_circle():
    order = list(graphlib.TopologicalSorter(GRAPH).static_order())  # raises CycleError
    assert order.index("utils.paths") < order.index("utils.data") < order.index("tools.pretrain")


@pytest.mark.parametrize("path", sorted((ROOT / "lessons").glob("[0-9]*.py")), ids=lambda p: p.stem)
def test_a_lesson_imports_no_tool_and_no_recipe(path: Path):
    cells = jupytext.read(path, fmt="py:percent").cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert {room(name) for name in imported(source)} <= LESSONS


def test_models_are_named_where_no_brick_looks():
    """`checkpoints` names bricks in strings, so these must not reach it; a loop may."""
    reached, todo = set(), [place.partition(":")[0] for place in MODELS.values()]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += GRAPH[module]
    assert "utils.tensors" in reached and "utils.checkpoints" not in reached
