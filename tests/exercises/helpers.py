"""What every exercise test needs: a lesson's stubs, its solutions, a check's answer.

A module test_NOUN.py beside this one belongs to the checks of utils/exercises/NOUN.py. It holds
- LESSON, the lesson's number, and GIVEN, the names that its answers may use;
- RIGHT, other right answers: (exercise, answer), each a function or its code;
- WRONG, the answers that must be refused: (exercise, answer, part of its hint), or the same with
  a right answer's code and a change that spoils it: (exercise, code, old, new, part of its hint).
test_every_lesson.py does with them what is the same in all.
"""

import ast
import functools
import importlib
import re
from pathlib import Path

import jupytext

from utils.exercises import verdict

HERE = Path(__file__).resolve().parent
LESSONS = HERE.parents[1] / "lessons"
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)


@functools.cache
def cells(number: str) -> list:
    """The cells of the lesson whose file starts with `number`, e.g. "01"."""
    (path,) = LESSONS.glob(f"{number}_*.py")
    return jupytext.read(path, fmt="py:percent").cells


def stubs(number: str) -> list[str]:
    """The code of a lesson's stub cells, in order."""
    tagged = (c for c in cells(number) if "exercise" in c.metadata.get("tags", []))
    return [cell.source for cell in tagged]


def solutions(number: str) -> list[str]:
    """The code of a lesson's solutions, in order."""
    prose = (c.source for c in cells(number) if c.cell_type == "markdown")
    return [code for text in prose for code in SOLUTION.findall(text)]


def names(number: str) -> list[str]:
    """What a lesson's exercises ask for, in order: the function that each stub defines."""
    return [ast.parse(stub).body[-1].name for stub in stubs(number)]


def nouns() -> list[str]:
    """Every lesson with exercises, by the noun of its checks."""
    return sorted(p.stem for p in (HERE.parents[1] / "utils" / "exercises").glob("[!_]*.py"))


def module(noun: str):
    """The test module of a lesson's exercises: its LESSON, GIVEN, RIGHT and WRONG."""
    return importlib.import_module(f"tests.exercises.test_{noun}")


def define(code: str, name: str, given: dict):
    """Run `code` where the names in `given` exist; returns what it calls `name`."""
    space = dict(given)
    exec(code, space)
    return space[name]


def answer(noun: str, name: str, given) -> tuple[str, str]:
    """The mark and the message that the check of an exercise gives an answer or its code."""
    check = getattr(importlib.import_module(f"utils.exercises.{noun}"), f"check_{name}")
    if isinstance(given, str):
        given = define(given, name, module(noun).GIVEN)
    return verdict(check.check, given)
