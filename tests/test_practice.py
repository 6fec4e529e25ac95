"""Practice notebooks: what is blank, what is kept, and that they run to the end."""

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import CHROMIUM
from tests.practice import helpers
from tools import practice
from tools.build import Kernel
from utils.paths import ROOT

NUMBERS = {helpers.module(noun).LESSON: noun for noun in helpers.nouns()}
SOURCE = '''\
A = 1  # a constant


# above
@decorated
def first(x: int, y: int = 0) -> int:
    """What it does."""
    n = x + y
    if n < 0:
        raise ValueError("negative")
    # a reason
    total = n + 1  # (B, L)
    if total:
        total += 2  # each (B,), once more
    text = "not # (a shape)"
    return total  # (L)


class Thing:
    """A thing."""

    size = 3

    def look(self, x):
        # how to
        q, k = x  # (2, 3)
        return q

    def keep(self):
        with quiet():
            # in place
            self.size.add_(1)


USES = {"first": first}
'''


def test_a_blank_keeps_signature_docstring_guards_and_shapes():
    stub = practice.blank_out(SOURCE, ["first", "Thing.look", "Thing.keep"])
    assert (
        stub
        == '''\
A = 1  # a constant


# above
@decorated
def first(x: int, y: int = 0) -> int:
    """What it does."""
    n = x + y
    if n < 0:
        raise ValueError("negative")
    # total: (B, L)
    # total: each (B,), once more
    # returned: (L)
    return ...  # your answer


class Thing:
    """A thing."""

    size = 3

    def look(self, x):
        # q, k: (2, 3)
        return ...  # your answer

    def keep(self):
        with quiet():
            return ...  # your answer


USES = {"first": first}
'''
    )


def test_a_cell_is_cut_into_what_is_before_its_blanks_and_what_uses_them():
    before, bricks, after = practice.split(SOURCE, ["first", "Thing.keep"])
    assert before == "A = 1  # a constant"
    assert bricks.startswith("# above\n@decorated\n") and bricks.endswith("add_(1)")
    assert after == 'USES = {"first": first}'


def test_a_solution_is_the_function_alone():
    assert practice.solution(SOURCE, "first").startswith("@decorated\ndef first(")
    assert practice.solution(SOURCE, "Thing.look").startswith("def look(self, x):\n    # how to\n")


# ---------------------------------------------------------------- the notebooks of the course


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The lessons alone, in a folder where practice notebooks may be made."""
    root = tmp_path_factory.mktemp("course")
    shutil.copytree(ROOT / "lessons", root / "lessons")
    return root


def make(root, number):
    """A fresh practice notebook and its path."""
    (lesson,) = (root / "lessons").glob(f"{number}_*.py")
    path = root / "practice" / f"{lesson.stem}.ipynb"
    path.unlink(missing_ok=True)
    assert practice.practice(number, root) == f"practice/{path.name} is ready."
    return path, nbformat.read(path, as_version=4)


def key(cell) -> str:
    return cell.metadata.practice["cell"]


def find(notebook, wanted):
    return next(c for c in notebook.cells if c.metadata.get("practice", {}).get("cell") == wanted)


def fill(notebook, noun):
    """Every answer as the lesson has it."""
    for cell in notebook.cells:
        if key(cell).startswith("answer-"):
            bricks = key(cell).split("-")[1:]
            cell.source = "\n\n\n".join(helpers.brick(noun, brick) for brick in bricks)
    return notebook


@pytest.mark.parametrize("number", NUMBERS)
def test_a_notebook_holds_the_lesson_with_blanks(course, number):
    noun, (_, notebook) = NUMBERS[number], make(course, number)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    blanks, text = helpers.check(noun).blanks, "\n".join(c.source for c in notebook.cells)
    assert text.count("return ...  # your answer") == len(blanks)
    assert text.count("<summary>Hint") - lesson_text(noun).count("<summary>Hint") == len(blanks)
    for name in blanks:
        assert practice.solution(helpers.brick(noun, name), name) in text


def lesson_text(noun) -> str:
    return helpers.lesson(noun).read_text(encoding="utf-8")


def letters(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("number", NUMBERS)
def test_filled_with_the_solutions_it_runs_as_the_lesson(course, number):
    """Without our own cells its code is the lesson's, which nbval runs to the end.

    That a check returns the very answer, and leaves the lesson's random numbers as they were,
    stands in tests/practice. So only one such notebook is run whole, below.
    """
    noun = NUMBERS[number]
    notebook = fill(make(course, number)[1], noun)
    ours = ("check-", "solution-", "intro", "import")
    rest = [c for c in notebook.cells if c.cell_type == "code" and not key(c).startswith(ours)]
    shipped = "".join(cell.source for cell in helpers.code_cells(noun))
    assert letters("".join(cell.source for cell in rest)) == letters(shipped)
    checks = [c.source for c in notebook.cells if key(c).startswith("check-")]
    assert all(re.fullmatch(r'(?:(\w+) = check\("\1"\)\n?)+', source) for source in checks)


def run(notebook) -> None:
    """Execute in practice/, as JupyterLab does; one thread, for two run side by side."""
    folder = ROOT / "practice"
    folder.mkdir(exist_ok=True)
    client = NotebookClient(
        notebook,
        kernel_manager_class=Kernel,
        extra_arguments=["--log-level=ERROR"],
        timeout=300,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


def faults(notebook) -> list[str]:
    outputs = [x for c in notebook.cells if c.cell_type == "code" for x in c.outputs]
    return [str(x) for x in outputs if x.output_type == "error" or x.get("name") == "stderr"]


def marks(notebook) -> set[str]:
    """What the checks of blanks printed, up to the colon."""
    checks = [c for c in notebook.cells if key(c).startswith("check-")]
    # a busy kernel may send a line in pieces, an output each
    texts = ["".join(output.text for output in cell.outputs) for cell in checks]
    return {line.split(":")[0] for text in texts for line in text.splitlines()}


def test_a_line_that_came_in_pieces_is_one():
    pieces = [nbformat.v4.new_output("stream", text=t) for t in ("○ merge: not", " yet", "\n")]
    cell = nbformat.v4.new_code_cell(outputs=pieces, metadata={"practice": {"cell": "check-merge"}})
    assert marks(nbformat.v4.new_notebook(cells=[cell])) == {"○ merge"}


@pytest.mark.slow
def test_practice_notebooks_run_to_the_end(course):
    """Each as it is made, one filled with its solutions, one with an answer that is no Python.

    All are run whole, no training is shortened. Two go side by side with a thread each, which
    takes about as long as half of them would alone. Where there is a browser, those as they are
    made are run in it, by tests/test_browser.py.
    """
    numbers = {} if CHROMIUM else NUMBERS
    notebooks = {noun: make(course, number)[1] for number, noun in numbers.items()}
    filled = fill(make(course, "02")[1], "text_encoders")
    broken = make(course, "00")[1]
    find(broken, "answer-matches").source = "def matches(word:"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, [*notebooks.values(), filled, broken]))
    for noun, notebook in notebooks.items():
        assert marks(notebook) == {f"○ {name}" for name in helpers.check(noun).blanks}
        assert not faults(notebook), noun
    blanks = helpers.check("text_encoders").blanks
    assert marks(filled) == {f"✓ {name}" for name in blanks} and not faults(filled)
    assert marks(broken) == {"✗ matches"}
    assert ["SyntaxError" in fault for fault in faults(broken)] == [True]


# ---------------------------------------------------------------- what a learner wrote is kept

MINE = "def merge(symbols, pair):\n    return symbols  # mine"


def test_made_again_it_is_the_same(course):
    path, _ = make(course, "02")
    before = path.read_bytes()
    assert practice.practice("2", course).endswith(" is ready.")
    assert path.read_bytes() == before


def test_what_was_written_is_kept(course):
    path, notebook = make(course, "02")
    find(notebook, "answer-merge").source = MINE
    notebook.cells[0].source += "\n\nA note of mine: ![](attachment:a.png)"
    notebook.cells[0].attachments = {"a.png": {"image/png": "iVBORw0KGgo="}}
    find(notebook, "check-merge").outputs = [nbformat.v4.new_output("stream", text="✗ merge\n")]
    place = notebook.cells.index(find(notebook, "check-merge"))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("merge('aa', 'a')"))
    nbformat.write(notebook, path)
    for _ in range(2):  # and it stays so
        said = practice.practice("02", course)
        assert said.endswith("is ready; what you wrote in 3 of its cells is kept.")
        again = nbformat.read(path, as_version=4)
        assert again.cells == notebook.cells


def lesson_change(course, tmp_path, old, new):
    """The course with another lesson 02, and the practice notebook that it had before."""
    root = tmp_path / "later"
    shutil.copytree(course, root)
    (lesson,) = (root / "lessons").glob("02_*.py")
    text = lesson.read_text(encoding="utf-8")
    assert old in text
    lesson.write_text(text.replace(old, new), encoding="utf-8")
    return root


def test_an_untouched_cell_follows_the_lesson_and_an_answer_stays(course, tmp_path):
    path, notebook = make(course, "02")
    find(notebook, "answer-merge").source = MINE
    nbformat.write(notebook, path)
    root = lesson_change(
        course, tmp_path, "def causal_mask(length: int", "def causal_mask(size: int"
    )
    root = lesson_change(root, tmp_path / "x", "def merge(symbols:", "def merge(signs:")
    practice.practice("02", root)
    again = nbformat.read(root / "practice" / path.name, as_version=4)
    assert "size: int" in find(again, "answer-causal_mask").source
    assert find(again, "answer-merge").source == MINE


def test_an_answer_without_a_blank_is_kept_as_text(course, tmp_path):
    path, notebook = make(course, "02")
    find(notebook, "answer-end_positions").source = "def end_positions(ids, end):\n    return 7"
    some = next(c for c in notebook.cells if "WORD_END = " in c.source)
    some.source += "\n# changed by me"
    nbformat.write(notebook, path)
    root = lesson_change(course, tmp_path, "def end_positions(", "def ends_of(")
    root = lesson_change(root, tmp_path / "x", 'WORD_END = "</w>"', 'WORD_END = "</W>"')
    practice.practice("02", root)
    again = nbformat.read(root / "practice" / path.name, as_version=4)
    kept = [c for c in again.cells if "no longer has" in c.source]
    assert [c.cell_type for c in kept] == ["markdown", "markdown"]
    assert "# changed by me" in kept[0].source and "return 7" in kept[1].source
    before = again.cells[again.cells.index(kept[1]) - 1]
    assert "02_pooling.svg" in before.source  # where it stood
    practice.practice("02", root)
    assert nbformat.read(root / "practice" / path.name, as_version=4) == again


def test_cells_are_known_without_their_marks(course):
    """Some editors drop what they do not know in a cell's metadata, and change its id."""
    path, notebook = make(course, "02")
    count = len(notebook.cells)
    find(notebook, "answer-merge").source = MINE
    for i, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = {}, f"other-{i}"
    nbformat.write(notebook, path)
    practice.practice("02", course)
    again = nbformat.read(path, as_version=4)
    assert len(again.cells) == count
    assert find(again, "answer-merge").source == MINE


def test_copied_and_deleted_cells(course):
    path, notebook = make(course, "02")
    answer = find(notebook, "answer-merge")
    copy = nbformat.from_dict(answer)
    copy.source, answer.source = MINE.replace("mine", "a second try"), MINE
    copy.id = "a-copy"  # JupyterLab copies the rest
    notebook.cells.insert(notebook.cells.index(answer) + 1, copy)
    notebook.cells.remove(find(notebook, "check-merge"))
    nbformat.write(notebook, path)
    practice.practice("02", course)
    again = nbformat.read(path, as_version=4)
    at = again.cells.index(find(again, "answer-merge"))
    assert again.cells[at].source == MINE
    assert "a second try" in again.cells[at + 1].source
    assert key(again.cells[at + 2]) == "check-merge"
    assert len({c.id for c in again.cells}) == len(again.cells)


# ---------------------------------------------------------------- the command


DAMAGED = {
    "empty": b"",
    "cut off": b'{"cells": [{"cell_type": "code", "source": "def merge',
    "binary": b"\x00\xff\xfe" * 40,
    "a list": b"[1, 2]",
    "no notebook": b'{"a": 1}',
    "a cell without text": json.dumps(
        {"cells": [{"cell_type": "code"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    ).encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_notebook_is_one_sentence_and_stays(course, content):
    path, _ = make(course, "00")
    path.write_bytes(content)
    with pytest.raises(SystemExit) as refusal:
        practice.practice("00", course)
    text = str(refusal.value)
    assert text.startswith("practice/00_welcome.ipynb cannot be read as a notebook (")
    assert "move it elsewhere" in text and "\n" not in text and len(text) < 300
    assert path.read_bytes() == content


@pytest.mark.parametrize("number", ["16", "99", "", "welcome", "../x"])
def test_an_unknown_lesson_names_those_there_are(course, number):
    with pytest.raises(SystemExit, match="choose one of 00, 01, 02, 03, 04"):
        practice.practice(number, course)


def test_a_lesson_without_blanks_says_so(course, tmp_path):
    root = tmp_path / "course"
    (root / "lessons").mkdir(parents=True)
    (root / "lessons" / "05_plain.py").write_text("# %%\nprint(1)\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="Lesson 05 has no blanks yet"):
        practice.practice("05", root)


def test_the_command_is_one_line_for_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "lessons", tmp_path / "lessons")
    (tmp_path / "practice").write_text("a file where the folder should be")
    monkeypatch.setattr("sys.argv", ["practice", "00"])
    with pytest.raises(SystemExit) as refusal:
        practice.main(tmp_path)
    assert "nothing of yours is lost" in str(refusal.value) and "\n" not in str(refusal.value)
