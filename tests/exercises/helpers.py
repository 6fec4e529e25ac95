"""What every exercise test needs: a lesson's stubs, its solutions, a check's answer."""

import re
from pathlib import Path

import jupytext

from utils.exercises import verdict

LESSONS = Path(__file__).resolve().parents[2] / "lessons"
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)


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


def define(code: str, name: str, **given):
    """Run `code` where the names in `given` exist; returns what it calls `name`."""
    exec(code, given)
    return given[name]


def answer(check, *answers) -> tuple[str, str]:
    """The mark and the message that a check gives these answers."""
    return verdict(check.check, *answers)
