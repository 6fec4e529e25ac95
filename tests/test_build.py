"""The build tool, on two tiny lessons in a folder of their own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

from tools import build

HEADER = """\
# ---
# jupyter:
#   brick: {}
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

"""
FIRST = HEADER.format("shapes") + '''\
# %% [markdown]
# # Shapes

# %% tags=["brick"]
import math

from torch import nn

WIDTH = 3  # the width of everything


# %%
import sys

print("one")
sys.stdout.flush()
print("two")

# %% tags=["brick"]
import functools
import math
from collections.abc import Callable

from torch import Tensor


# the area of a circle
@functools.cache
def area(radius: float) -> float:
    return math.pi * radius**2   # spaces stay


class Flat(nn.Module):
    def forward(self, x: Tensor, f: Callable = len) -> Tensor:
        from safetensors import SafetensorError  # noqa: F401

        return x.flatten(1)

# %%
import ipywidgets

print(f"{area(1):.4f}")
ipywidgets.IntSlider(value=2)
'''
SECOND = HEADER.format("solids") + '''\
# %% tags=["brick"]
from utils.bricks.shapes import area


def volume(radius: float, height: float) -> float:
    return area(radius) * height

# %%
print(f"{volume(1, 2):.4f}")

# %% tags=["raises-exception"]
volume(1)
'''
SHAPES = '''\
"""The bricks of lesson 01_shapes.

Built by `make build` from lessons/01_shapes.py: edit them there.
"""

import functools
import math
from collections.abc import Callable

from torch import Tensor, nn

WIDTH = 3  # the width of everything


# the area of a circle
@functools.cache
def area(radius: float) -> float:
    return math.pi * radius**2   # spaces stay


class Flat(nn.Module):
    def forward(self, x: Tensor, f: Callable = len) -> Tensor:
        from safetensors import SafetensorError  # noqa: F401

        return x.flatten(1)
'''


# It comes first and reads, in each way there is, what the others are made of.
WELCOME = HEADER.replace("#   brick: {}\n", "") + '''\
# %%
from utils import ink, store
from utils.bricks.solids import volume

ink.line(volume(1, 1))
print(store.load("blue"), store.load("shapes"))
'''
INK = '''\
"""Printing."""

import math

WIDTH = 6
TONES = {"light": 1}
TONES["dark"] = 2  # changes it when it is imported


def line(text) -> None:
    """Print one line."""
    print(str(rounded(text)).rjust(WIDTH))


def rounded(number: float) -> float:
    return math.floor(100 * number) / 100


def double(text) -> None:
    line(text)
    line(text)
'''
STORE = '''\
import importlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODELS = {
    "blue": "utils.bricks.shapes:WIDTH",
    "shapes": "utils.bricks.shapes:Flat",
    "later": "utils.bricks.later:Model",
}


def load(name: str) -> str:
    module, _, kind = MODELS[name].partition(":")
    made = getattr(importlib.import_module(module), kind)
    return (ROOT / "assets" / f"{name}.txt").read_text() + repr(made)
'''


def lay_out(root: Path) -> Path:
    """A course of three lessons, not built."""
    for folder in ("lessons", "notebooks", "utils/bricks", "assets"):
        (root / folder).mkdir(parents=True)
    for package in ("utils", "utils/bricks"):
        (root / package / "__init__.py").touch()
    (root / "lessons/00_welcome.py").write_text(WELCOME)
    (root / "lessons/01_shapes.py").write_text(FIRST)
    (root / "lessons/02_solids.py").write_text(SECOND)
    (root / "utils/ink.py").write_text(INK)
    (root / "utils/store.py").write_text(STORE)
    for name in ("blue", "shapes", "later"):
        (root / f"assets/{name}.txt").write_text(f"{name} ")
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = lay_out(tmp_path_factory.mktemp("built"))
    assert build.build(root) == []
    return root


@pytest.fixture
def course(built, tmp_path):
    """A built course to spoil."""
    return shutil.copytree(built, tmp_path / "course")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def change(path: Path, what) -> None:
    """Apply `what` to the notebook stored at `path`."""
    notebook = nbformat.read(path, as_version=4)
    what(notebook)
    nbformat.write(notebook, path)


def files(root: Path) -> dict[str, bytes]:
    paths = [*root.glob("notebooks/*"), *root.glob("utils/bricks/*.py")]
    return {path.name: path.read_bytes() for path in paths}


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# What a build gives


def test_brick_is_the_brick_cells_with_imports_on_top(built):
    assert (built / "utils/bricks/shapes.py").read_text() == SHAPES


def test_bricks_pass_ruff(built):
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=88"]
    rules = ["--select=E,F,I,B,UP", "--config=src=['.']", "utils/bricks"]
    run = subprocess.run(command + rules, cwd=built, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_notebook_holds_tidy_outputs(built):
    path = built / "notebooks/01_shapes.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4]
    assert cells[0].metadata.tags == ["brick"]
    assert [output.text for output in cells[1].outputs] == ["one\ntwo\n"]
    assert cells[3].outputs[0].text == "3.1416\n"
    slider = cells[3].outputs[1].data  # no view of a widget that is gone
    assert list(slider) == ["text/plain"]
    assert slider["text/plain"].startswith("IntSlider(value=2")
    assert set(notebook.metadata) == {
            "brick",
            "kernelspec",
            "language_info",
            "reads",
        }
    assert "version" not in notebook.metadata.language_info
    assert path.read_text().endswith("}\n")
    assert path.read_text().startswith('{\n "cells": [')


def test_check_passes_and_a_second_build_does_nothing(built, capsys):
    before = files(built)
    assert build.check(built) == []
    assert build.build(built) == []
    names = ("00_welcome", "01_shapes", "02_solids")
    assert capsys.readouterr().out == "".join(f"{name}: up to date\n" for name in names)
    assert files(built) == before


@pytest.mark.slow
def test_all_gives_the_same_bytes(course):
    before = files(course)
    assert build.build(course, everything=True) == []
    assert files(course) == before


@pytest.mark.slow
def test_an_edit_keeps_ids_and_rebuilds_only_that_lesson(course, capsys):
    def ids():
        path = course / "notebooks/02_solids.ipynb"
        return [cell.id for cell in nbformat.read(path, as_version=4).cells]

    before = ids()
    edit(course / "lessons/02_solids.py", "volume(1, 2)", "volume(1, 3)")
    assert build.build(course) == []
    assert "01_shapes: up to date" in capsys.readouterr().out
    assert ids() == before  # by position
    edit(course / "lessons/02_solids.py", "\n# %%\n", "\n# %%\n1 + 1\n\n# %%\n")
    assert build.build(course) == []
    after = ids()
    assert after[:1] + after[2:] == before  # by source
    assert len(set(after)) == 4
    assert build.check(course) == []


@pytest.mark.slow
def test_a_changed_brick_rebuilds_what_read_it(course):
    edit(course / "lessons/01_shapes.py", "math.pi", "3.0")
    assert build.build(course) == []
    second = (course / "notebooks/02_solids.ipynb").read_text()
    assert "6.0000" in second and "6.2832" not in second
    assert " 3.0\\n" in (course / "notebooks/00_welcome.ipynb").read_text()


def test_a_notebook_says_what_it_read(built):
    def files(name):
        path = built / f"notebooks/{name}.ipynb"
        return set(nbformat.read(path, as_version=4).metadata.reads)

    packages = {"utils/__init__.py", "utils/bricks/__init__.py"}
    assert files("01_shapes") == set()
    assert files("02_solids") == packages | {"utils/bricks/shapes.py"}
    assert files("00_welcome") == packages | {
        "assets/blue.txt",
        "assets/shapes.txt",
        "utils/bricks/shapes.py",
        "utils/bricks/solids.py",
        "utils/ink.py",
        "utils/store.py",
    }


FIRST_CELLS, SECOND_CELLS = "lessons/01_shapes.py", "lessons/02_solids.py"


@pytest.mark.parametrize(
    ("path", "old", "new", "stale"),
    [
        # a lesson's own text, and the bricks that it imports, through others too
        (FIRST_CELLS, "# the area of a circle", "# πr²", "01"),
        (FIRST_CELLS, "math.pi * radius**2   #", "(math.pi\n        * radius ** 2) #", "01"),
        (FIRST_CELLS, "    return math.pi", '    """Of a disk."""\n    return math.pi', "01"),
        (FIRST_CELLS, "math.pi", "3.0", "00 01 02"),
        (FIRST_CELLS, "flatten(1)", "flatten(2)", "00 01"),
        (SECOND_CELLS, "radius) * height", "radius) * 2 * height", "00 02"),
        (SECOND_CELLS, "volume(1, 2)", "volume(1, 3)", "02"),
        # the plumbing that it calls
        ("utils/ink.py", "100 *", "10 *", "00"),
        ("utils/ink.py", "WIDTH = 6", "WIDTH = 7", "00"),
        ("utils/ink.py", "import math", "import cmath as math", "00"),
        ("utils/ink.py", '["dark"] = 2', '["dark"] = 3', "00"),
        ("utils/ink.py", '{"light": 1}', '{"light": 4}', "00"),
        ("utils/ink.py", '"""Printing."""', "print(math.pi)", "00"),
        ("utils/ink.py", "Print one line", "Print a line", ""),
        ("utils/ink.py", "    line(text)\n    line(text)", "    pass", ""),
        ("utils/ink.py", "\n\ndef double", "\n\ndef new():\n    pass\n\n\ndef double", ""),
        # models and files that it loads
        ("utils/store.py", "shapes:WIDTH", "shapes:area", "00"),
        ("utils/store.py", "later:Model", "later:Other", ""),
        ("assets/blue.txt", "blue", "red", "00"),
        ("assets/later.txt", "later", "sooner", ""),
    ],
)
def test_a_change_of_what_was_read_makes_stale(course, monkeypatch, path, old, new, stale):
    executed = []
    monkeypatch.setattr(build, "build_notebook", lambda x: executed.append(x.name[:2]))
    edit(course / path, old, new)
    assert build.build(course) == []
    assert " ".join(executed) == stale
    if "lessons" not in path:
        (finding,) = build.check(course) or [""]
        assert bool(finding) == bool(stale)
        assert path in finding or not stale


def test_check_names_each_file_that_changed(course):
    edit(course / "utils/ink.py", "100 *", "10 *")
    (course / "assets/blue.txt").unlink()
    assert found(course) == WELCOME_IS_OLD.format("assets/blue.txt, utils/ink.py")


@pytest.mark.parametrize("reads", [None, [], "utils"])
def test_check_finds_a_notebook_that_does_not_say_what_it_read(course, reads):
    def spoil(notebook):
        notebook.metadata.pop("reads")
        notebook.metadata |= {"reads": reads} if reads is not None else {}

    change(course / "notebooks/02_solids.ipynb", spoil)
    message = "notebooks/02_solids.ipynb: does not say what it read; build it"
    assert found(course) == message


def test_line_endings_do_not_count(course):
    for path in course.glob("utils/**/*.py"):
        if path.parent.name != "bricks":
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert b"\r\n" in (course / "utils/ink.py").read_bytes()
    assert build.check(course) == []


def test_a_magic_is_refused(course):
    with (course / "lessons/02_solids.py").open("a") as lesson:
        lesson.write("\n# %%\n# %time volume(1, 2)\n")
    (failure,) = build.build(course)
    assert failure == (
        "lessons/02_solids.py, cell 4 (`%time volume(1, 2)`): invalid syntax; a cell holds "
        "plain Python."
    )


@pytest.mark.slow
def test_a_build_that_was_stopped_is_finished_by_the_next(course, monkeypatch):
    edit(course / "lessons/01_shapes.py", "math.pi", "3.0")

    def stop(lesson):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "build_notebook", stop)
        build.build(course)  # the brick is written, no notebook is
    assert build.check(course)[::2] == [  # the other is the lesson's own, for its text
        f"notebooks/{name}.ipynb: executed with another utils/bricks/shapes.py; build it"
        for name in ("00_welcome", "02_solids")
    ]
    assert build.build(course) == []
    assert "6.0000" in (course / "notebooks/02_solids.ipynb").read_text()
    assert build.check(course) == []


def test_budget(monkeypatch, course, capsys):
    monkeypatch.setattr(build, "SECONDS", 0)
    assert build.main(["--all", "--lesson=02"], course) == 0
    out = capsys.readouterr().out
    assert "02_solids: " in out and "WARNING: over the budget" in out
    if Path("/proc").exists():
        assert " GB" in out.split("WARNING")[0]


# What a build refuses


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("print(1)", "`print(1)` runs when the brick is imported"),
        ("for x in []:\n    pass", "`for x in []:` runs"),
        ("if WIDTH:\n    Y = 1", "`if WIDTH:` runs"),
        ("import numpy as np", "it imports numpy; a brick imports torch"),
        ("import torchvision", "it imports torchvision"),
        ("def f():\n    import transformers", "it imports transformers"),
        ("import safetensors", "it imports safetensors"),
        ("class A:\n    import huggingface_hub", "it imports huggingface_hub"),
        ("from utils.bricks.solids import volume", "no earlier lesson builds"),
        ("from utils.bricks import shapes", "no earlier lesson builds"),
        ("import utils.bricks", "no earlier lesson builds"),
        ("from . import solids", "it imports ."),
        ("from math import *", "it imports * from math"),
        ("import re; import os", "shares its line"),
        ("import re  # why", "shares its line"),
        ("X = ", "invalid syntax"),
    ],
)
def test_refused_in_a_brick(course, line, message):
    before = files(course)
    lesson = course / "lessons/01_shapes.py"
    edit(lesson, "WIDTH = 3  # the width of everything", line)
    with pytest.raises(build.BuildError) as refusal:
        build.build(course)
    assert message in str(refusal.value)
    assert "lessons/01_shapes.py, cell 2 (`import math`)" in str(refusal.value)
    assert str(refusal.value) in build.check(course)
    assert files(course) == before


def test_an_earlier_brick_may_be_imported_as_a_module(course):
    edit(
        course / "lessons/02_solids.py",
        "from utils.bricks.shapes import area\n",
        "from utils.bricks import shapes\n\narea = shapes.area\n",
    )
    lessons = build.read_lessons(course)
    (text,) = build.brick_texts(lessons[2], lessons).values()
    assert "\nfrom utils.bricks import shapes\n\narea" in text


BOX = '''
# %% tags=["practice", "brick:boxes", "blank:box"]
class Box(nn.Module):
    side = WIDTH

    def forward(self, radius: float) -> float:
        return math.sqrt(area(radius)) + functools.reduce(max, [self.side])
'''
BOXES = '''\
"""The bricks of lesson 01_shapes.

Built by `make build` from lessons/01_shapes.py: edit them there.
"""

import functools
import math

from torch import nn

from utils.bricks.shapes import WIDTH, area


class Box(nn.Module):
    side = WIDTH

    def forward(self, radius: float) -> float:
        return math.sqrt(area(radius)) + functools.reduce(max, [self.side])
'''


def test_a_lesson_may_feed_two_modules(course, monkeypatch):
    edit(course / "lessons/01_shapes.py", "\n# %%\nimport ipy", BOX + "\n# %%\nimport ipy")
    edit(course / "lessons/02_solids.py", "bricks.shapes", "bricks.boxes")
    monkeypatch.setattr(build, "build_notebook", lambda lesson: "")
    assert build.build(course) == []
    assert (course / "utils/bricks/boxes.py").read_text() == BOXES
    assert (course / "utils/bricks/shapes.py").read_text() == SHAPES
    assert "utils.bricks.boxes" in (course / "utils/bricks/solids.py").read_text()
    test_bricks_pass_ruff(course)
    cell = code(build.read_lessons(course)[1])[3]
    assert cell.metadata.tags == ["practice", "brick:boxes", "blank:box"]


def test_a_second_module_takes_its_imports_with_it(course):
    lesson = course / "lessons/01_shapes.py"
    edit(lesson, 'tags=["brick"]\nimport functools', 'tags=["brick:circles"]\nimport functools')
    edit(lesson, "math.pi", "WIDTH * math.pi")
    edit(lesson, "WIDTH = 3 ", "SIZE = WIDTH = 3 ")
    first = build.read_lessons(course)[1]
    texts = build.brick_texts(first, [first])
    assert "import " not in texts[first.module("shapes")]  # its cell has two, used elsewhere
    top = texts[first.module("circles")].partition("\n\n\n# the area")[0]
    assert top.endswith(
        "import functools\nimport math\nfrom collections.abc import Callable\n\n"
        "from torch import Tensor, nn\n\nfrom utils.bricks.shapes import WIDTH"
    )


@pytest.mark.parametrize(
    ("tag", "line", "message"),
    [
        (
            "brick:boxes",
            "def box():\n    return area(1)\n\n# %% tags=['brick']\nBOX = box",
            "go in a circle, as shapes uses box of boxes and boxes uses area of shapes; move",
        ),
        (
            "brick:a",
            "A = WIDTH\n# %% tags=['brick:b']\nB = A\n# %% tags=['brick']\nC = B",
            "shapes uses B of b and b uses A of a and a uses WIDTH of shapes; move",
        ),
        ("brick:boxes", "WIDTH, H = 1, 2", "both shapes and boxes define WIDTH, which"),
        ("brick:solids", "H = 1", "the brick solids already comes from lessons/01_shapes"),
        ("brick:vq-vae", "H = 1", "'vq-vae' is no name for a module; write it with"),
        ("brick:boxes", "from utils.bricks.shapes import area", "no earlier lesson builds"),
    ],
)
def test_refused_in_a_second_module(course, tag, line, message):
    before = files(course)
    edit(course / "lessons/01_shapes.py", "\n# %%\nimport ipy", f"""
# %% tags=["{tag}"]
{line}

# %%
import ipy""")
    with pytest.raises(build.BuildError, match="^lessons/0.*[^\n]*$") as refusal:
        build.build(course)
    assert message in str(refusal.value)
    assert files(course) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#   brick: shapes\n", "", "go together; add the one that is missing"),
        ("brick: shapes", "brick: solids", "lessons/02_solids.py: the brick solids"),
    ],
)
def test_refused_header(course, old, new, message, capsys):
    edit(course / "lessons/01_shapes.py", old, new)
    assert build.main([], course) == build.main(["--check"], course) == 1
    assert message in capsys.readouterr().err


def test_unknown_lesson(course, capsys):
    assert build.main(["--lesson", "07"], course) == 1
    assert "there are: 00_welcome, 01_shapes, 02_solids" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        ("1 / 0", ["failed:", "ZeroDivisionError: division by zero"]),
        ("import os; os._exit(1)", ["failed:", "Kernel died"]),
        (
            "import os, sys; print(object(), file=sys.stderr)\n"
            "print(object(), 'x' * 1_000_000)\n"
            "os.getcwd()",
            [": text on stderr: '<obj", ": `at 0x", ": `/", "_solids.py, 1.00 MB"],
        ),
    ],
)
def test_refused_when_executed(course, line, messages):
    before = files(course)
    edit(course / "lessons/02_solids.py", 'print(f"{volume(1, 2):.4f}")', line)
    (failure,) = build.build(course)
    first = line.splitlines()[0][:60]
    assert failure.startswith(f"lessons/02_solids.py, cell 2 (`{first}`)")
    assert all(message in failure for message in messages)
    assert files(course) == before  # the old notebook stays


# What a check finds


WELCOME_IS_OLD = "notebooks/00_welcome.ipynb: executed with another {}; build it"


def found(course) -> str:
    """The one finding, which must not need an execution."""
    (finding,) = build.check(course)
    assert "\n" not in finding
    return finding


def test_check_finds_a_changed_lesson(course):
    edit(course / "lessons/02_solids.py", "volume(1, 2)", "volume(1, 3)")
    assert found(course).startswith("notebooks/02_solids.ipynb: cell 2 (`print(")
    assert "line 1 is `print" in found(course)


def test_check_finds_changed_tags(course):
    edit(course / "lessons/02_solids.py", "raises-exception", "exercise")
    assert "metadata" not in build.check(course)[0]
    assert 'the lesson gives `{"tags": ["exercise"]}`' in build.check(course)[0]


def test_check_finds_a_missing_cell(course):
    change(course / "notebooks/02_solids.ipynb", lambda nb: nb.cells.pop())
    assert found(course) == "notebooks/02_solids.ipynb: 2 cells, the lesson has 3"


def test_check_finds_other_metadata(course):
    path = course / "notebooks/02_solids.ipynb"
    change(path, lambda nb: nb.metadata.language_info.update(version="3.11.2"))
    assert found(course).startswith("notebooks/02_solids.ipynb: metadata: line 1 is")


def test_check_finds_a_changed_brick(course):
    edit(course / "utils/bricks/solids.py", "* height", "* height * 2")
    message = "line 10 is `    return area(radius) * height * 2`, the lesson gives `    "
    assert build.check(course) == [
        WELCOME_IS_OLD.format("utils/bricks/solids.py"),
        f"utils/bricks/solids.py: {message}return area(radius) * height`",
    ]


def test_check_finds_what_is_missing(course):
    (course / "notebooks/01_shapes.ipynb").unlink()
    (course / "notebooks/02_solids.ipynb").write_text("<<<<<<< mine")
    (course / "utils/bricks/solids.py").unlink()
    welcome, *others = build.check(course)
    assert "00_welcome.ipynb: executed with another" in welcome
    assert "utils/bricks/solids.py" in welcome
    assert others == [
        "notebooks/01_shapes.ipynb: missing or not a notebook; build it",
        "utils/bricks/solids.py: missing; build it",
        "notebooks/02_solids.ipynb: missing or not a notebook; build it",
    ]


@pytest.mark.parametrize("content", [b"[]", b"null", b"\xff\xfe", b"", b'{"cells": 3}'])
def test_check_finds_what_is_no_notebook(course, content):
    (course / "notebooks/02_solids.ipynb").write_bytes(content)
    assert found(course) == "notebooks/02_solids.ipynb: missing or not a notebook; build it"


def test_check_finds_what_has_no_lesson(course):
    (course / "notebooks/03_old.ipynb").write_text("{}")
    (course / "notebooks/01_shapes.mine.ipynb").write_text("{}")
    (course / "utils/bricks/old.py").touch()
    assert build.check(course) == [
        "notebooks/03_old.ipynb: no lesson builds it; delete it",
        "utils/bricks/old.py: no lesson builds it; delete it",
    ]


@pytest.mark.parametrize("count", [None, 7])
def test_check_finds_execution_counts(course, count):
    path = course / "notebooks/01_shapes.ipynb"
    change(path, lambda nb: code(nb)[1].update(execution_count=count))
    message = f"cell 3 (`import sys`): execution count {count}, expected 2"
    assert message in found(course)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (("error", {"ename": "E", "evalue": "no", "traceback": []}), "E: 'no'"),
        (("stream", {"name": "stderr", "text": "warned\n"}), "on stderr: 'warned'"),
        (("stream", {"name": "stdout", "text": "<f at 0x7f0a1b2c>"}), "at 0x7f0a1b2c"),
    ],
)
def test_check_finds_bad_outputs(course, output, message):
    kind, fields = output
    stored = nbformat.v4.new_output(kind, **fields)
    path = course / "notebooks/01_shapes.ipynb"
    change(path, lambda nb: code(nb)[1].update(outputs=[stored]))
    assert message in found(course)


def test_check_finds_a_big_notebook(course):
    path = course / "notebooks/01_shapes.ipynb"
    stored = nbformat.v4.new_output("stream", name="stdout", text="x" * 1_500_000)
    change(path, lambda nb: code(nb)[1].update(outputs=[stored]))
    assert "1.50 MB stored, at most 1" in found(course)


def test_check_of_one_lesson(course, capsys):
    edit(course / "lessons/02_solids.py", "volume(1, 2)", "volume(1, 3)")
    assert build.main(["--check", "--lesson", "01"], course) == 0
    assert build.main(["--check"], course) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_empty_cells_need_no_execution_count(course):
    with (course / "lessons/01_shapes.py").open("a") as lesson:
        lesson.write("\n# %%\n\n# %%\n1\n")
    assert build.build(course) == []
    assert build.check(course) == []
    notebook = json.loads((course / "notebooks/01_shapes.ipynb").read_text())
    assert notebook["cells"][-2]["execution_count"] is None


@pytest.mark.slow
def test_strict_nbval_passes(built):
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q"]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-c/dev/null", built / "notebooks"],
        env={**os.environ, "PYTHONPATH": str(built)},
        capture_output=True,
        text=True,
    )
    assert "8 passed" in run.stdout, run.stdout


@pytest.mark.parametrize(
    ("output", "same"),
    [
        ('<img src="data:image/webp;base64,AB/+CD=="> 3', '<img src="data:image"> 3'),
        ("UklGR" + "Ab0/" * 20 + "==\n", "WebP"),
        ("UklGR is how WebP begins", "UklGR is how WebP begins"),
    ],
)
def test_nbval_ignores_the_bytes_of_pictures(output, same):
    rules = (build.ROOT / "tests/nbval_sanitize.cfg").read_text()
    for pattern, replacement in get_sanitize_patterns(rules):
        output = re.sub(pattern, replacement, output)
    assert output == same
