"""What the tests of blanks need: a lesson's bricks, an answer in its place, a check's lines.

A module NOUN.py beside this one belongs to utils/practice/NOUN.py. It holds
- LESSON, the lesson's number, and GIVEN, what else its bricks use;
- WRONG, the answers that must be refused: (blank, a body, part of what is said), or the same with
  a change of the brick in place of the body: (blank, old, new, part of what is said);
- RIGHT, other forms that must pass: (blank, a body) or (blank, old, new).
"""

import contextlib
import functools
import importlib
import io
import textwrap
from pathlib import Path

import jupytext

from tools.practice import blank_out, find, has_blanks, split
from utils.paths import ROOT

STUB = "return ...  # your answer"


def nouns() -> list[str]:
    """Every lesson with blanks, by the noun of its checks."""
    return sorted(p.stem for p in (ROOT / "utils" / "practice").glob("[!_]*.py"))


def module(noun: str):
    """The tables of a lesson: LESSON, GIVEN, WRONG and RIGHT."""
    return importlib.import_module(f"tests.practice.{noun}")


def check(noun: str):
    return importlib.import_module(f"utils.practice.{noun}").check


def lesson(noun: str) -> Path:
    (path,) = (ROOT / "lessons").glob(f"{module(noun).LESSON}_*.py")
    return path


def code_cells(noun: str) -> list:
    cells = jupytext.read(lesson(noun), fmt="py:percent").cells
    return [cell for cell in cells if cell.cell_type == "code"]


@functools.cache
def brick(noun: str, key: str) -> str:
    """The text of the function or class that holds a blank, as the lesson has it."""
    cells = [x.source for x in code_cells(noun) if has_blanks(x) and find(x.source, key)]
    assert len(cells) == 1, f"the blank {key} stands in {len(cells)} cells tagged `blank`"
    return split(cells[0], [key])[1]


def whole(noun: str, name: str) -> str:
    """The text of a brick, by its own name."""
    return brick(noun, next(key for key in check(noun).blanks if key.split(".")[0] == name))


@functools.cache
def names(noun: str) -> dict:
    """What the bricks of a lesson define, and its answers may use."""
    space = dict(module(noun).GIVEN)
    for cell in code_cells(noun):
        if any(tag.split(":")[0] == "brick" for tag in cell.metadata.get("tags", [])):
            exec(cell.source, space)
        elif has_blanks(cell):
            keys = [key for key in check(noun).blanks if find(cell.source, key)]
            exec(split(cell.source, keys)[1], space)
    return space


def filled(noun: str, key: str, body: str) -> str:
    """A brick whose blank holds this body."""
    stub = blank_out(brick(noun, key), [key])
    (line,) = (line for line in stub.split("\n") if STUB in line)
    indent = line[: line.index(STUB)]
    return stub.replace(line, textwrap.indent(textwrap.dedent(body).strip("\n"), indent))


def changed(noun: str, key: str, old: str, new: str) -> str:
    """A brick with a change in the function that is blank."""
    source = brick(noun, key)
    node, lines = find(source, key), source.split("\n")
    text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
    assert old in text, f"{key} does not hold {old!r}"
    return source.replace(text, text.replace(old, new))


def answer(noun: str, key: str, *given: str) -> str:
    """The code of an answer: a body, or a change of the brick."""
    return (filled if len(given) == 1 else changed)(noun, key, *given)


def verdict(noun: str, key: str, code: str) -> str:
    """The line that a check prints on one blank of the brick that the code defines."""
    name, _, method = key.partition(".")
    space = dict(names(noun))
    exec(code, space)
    checks, printed = check(noun), io.StringIO()
    keys = [other for other in checks.blanks if other.partition(".")[0] == name]
    with contextlib.redirect_stdout(printed):
        checks.report(key, keys, space[name], checks.shipped(name))
    (line,) = printed.getvalue().splitlines()
    return line


def choose(noun: str, name: str, code: str) -> tuple[list[str], object, object]:
    """As in a notebook: the code defines a brick, the check is called with its name.

    Returns the lines printed, the answer (None if the code fails), and the brick to go on with.
    """
    space = dict(names(noun), check=check(noun))
    space.pop(name, None)
    with contextlib.suppress(Exception):
        exec(code, space)
    answer, printed = space.get(name), io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(f"{name} = check({name!r})", space)
    return printed.getvalue().splitlines(), answer, space[name]
