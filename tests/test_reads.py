"""What counts as read: of plain text, no kernel needed."""

import ast
import subprocess
import sys

import pytest

from tools import reads
from utils.paths import ROOT

INK = """\
\'\'\'Printing.\'\'\'

try:
    import colour
except ImportError:
    colour = None


def line(text):
    \'\'\'One line.\'\'\'
    from utils.paper import sheet

    print(text, file=sheet())


def double(text):
    line(text)
    line(text)
"""
PAPER = """\
def sheet():
    return None


def shelf():
    return colour
"""


@pytest.fixture
def course(tmp_path):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils/ink.py").write_text(INK)
    (tmp_path / "utils/paper.py").write_text(PAPER)
    return tmp_path


def parts(course, cell: str, *files: str) -> dict[str, set[str]]:
    """{module: names that count}, files being those that the kernel loaded."""
    loaded = {reads.module_name(file) for file in files}
    found = reads.Code(course).reached(ast.parse(cell), loaded)
    return {module: {n for part in some for n in part.names} for module, some in found.items()}


LINE = {"utils.ink": {"line"}, "utils.paper": {"sheet"}}
ALL = {"utils.ink": {"__doc__", "line", "double"}, "utils.paper": {"sheet"}}


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("1 + 1", {}),
        ("import os.path", {}),
        ("from utils import ink", {"utils.ink": set()}),
        ("from utils import ink\nink.line(1)", LINE),
        ("from utils import ink as pen\npen.line(1).x", LINE),
        ("import utils.ink\nutils.ink.line(1)", LINE),
        ("import utils.ink as pen\npen.line(1)", LINE),
        ("from utils.ink import line", LINE),
        ("def f(x: int):\n    from utils.ink import line as x\n    return x", LINE),
        ("from utils import ink\nf = {\'a\': [ink.line]}", LINE),
        ("from utils.ink import double", {**LINE, "utils.ink": {"line", "double"}}),
        # more counts where the name does not say enough
        ("from utils import ink\nprint(ink)", ALL),
        ("from utils import ink\ngetattr(ink, name)()", ALL),
        ("from utils import ink\nink.colour", ALL),
        ("from utils.ink import *", ALL),
        # a string counts when the kernel loaded what it names
        ("load(\'utils.ink:line\')", {}),
        ("load(\'utils.inc:line\')", {}),
    ],
)
def test_what_a_cell_reaches(course, cell, found):
    assert parts(course, cell) == found


def test_what_the_kernel_loaded_counts(course):
    files = ("utils/ink.py", "utils/paper.py")
    assert parts(course, "load(\'utils.ink:line\')", *files) == LINE
    assert parts(course, "load(\'utils.ink\')", *files) == ALL
    # nobody knows why it was loaded
    assert parts(course, "load(name)", "utils/ink.py") == ALL


def test_docstrings_count_for_a_lesson_that_reads_them(course):
    cells = ["from utils.ink import line\nline(1)"]
    cells.append(cells[0] + "\nline.__doc__")
    before = [reads.Code(course).record(ast.parse(cell), []) for cell in cells]
    (course / "utils/ink.py").write_text(INK.replace("One line", "A line"))
    after = [reads.Code(course).record(ast.parse(cell), []) for cell in cells]
    assert before[0] == after[0]
    assert before[1].keys() == after[1].keys() == {"utils/ink.py", "utils/paper.py"}
    assert before[1]["utils/ink.py"] != after[1]["utils/ink.py"]
    assert before[1]["utils/paper.py"] == after[1]["utils/paper.py"]


def test_a_damaged_module_counts_whole(course):
    lesson = ast.parse("from utils.paper import sheet")
    before = reads.Code(course).record(lesson, [])
    (course / "utils/paper.py").write_text("<<<<<<< mine\n" + PAPER)
    damaged = reads.Code(course).record(lesson, [])
    (course / "utils/paper.py").write_text("<<<<<<< mine\n" + PAPER + "# a comment")
    assert len({*before.values(), *damaged.values()}) == 2
    assert reads.Code(course).record(lesson, []) != damaged


def test_the_same_code_is_the_same_text_in_every_python():
    code = """
@cache
async def f(a, *b: int, c=0.1, **d) -> None:
    '''Says what.'''
    return f"é {a!r:>{c}} {{" + 'x' "y" if a[1:, ...] else lambda: (yield)
"""
    assert reads.canonical(ast.parse(code)) == (
        "Module(body=[AsyncFunctionDef(name='f',args=arguments(args=[arg(arg='a')],vararg"
        "=arg(arg='b',annotation=Name(id='int',ctx=Load())),kwonlyargs=[arg(arg='c')],kw_"
        "defaults=[Constant(value=0.1)],kwarg=arg(arg='d')),body=[Return(value=IfExp(test"
        "=Subscript(value=Name(id='a',ctx=Load()),slice=Tuple(elts=[Slice(lower=Constant("
        "value=1)),Constant(value=Ellipsis)],ctx=Load()),ctx=Load()),body=BinOp(left=Join"
        "edStr(values=[Constant(value='\\xe9 '),FormattedValue(value=Name(id='a',ctx=Load("
        ")),conversion=114,format_spec=JoinedStr(values=[Constant(value='>'),FormattedVal"
        "ue(value=Name(id='c',ctx=Load()),conversion=-1)])),Constant(value=' {')]),op=Add"
        "(),right=Constant(value='xy')),orelse=Lambda(args=arguments(),body=Yield())))],d"
        "ecorator_list=[Name(id='cache',ctx=Load())],returns=Constant())])"
    )


def test_a_kernel_sees_which_files_the_course_opens():
    """Not by itself: a library may open a file below Python, as Arrow and safetensors do."""
    code = (
        f"exec({reads.WATCH!r})\n"
        "from utils import checkpoints, data, pictures\n"
        "data.load_emoji('unseen'), checkpoints.load('clip_resnet'), pictures.photo('coffee')\n"
        f"print(eval({reads.SEEN!r}))"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seen = set(reads.seen(run.stdout, ROOT))
    assert {path for path in seen if path.startswith("assets/")} == {
        "assets/emoji/unseen.parquet",
        "assets/checkpoints/clip_resnet.json",
        "assets/checkpoints/clip_resnet.safetensors",
        "assets/photos/coffee.webp",
    }
    assert {"utils/data.py", "utils/paths.py", "utils/bricks/clip.py"} <= seen
