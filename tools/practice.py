"""Make a practice notebook: `python -m tools.practice 03` writes practice/03_….ipynb.

It is the same lesson, from the same source, in which you build: in cells tagged `blank` the
bodies that utils/practice names, such as `attend` or `Attention.forward`, are blank. Under each
stand a check, a hint and the solution. Made again, the notebook keeps what you wrote in it.
"""

import argparse
import ast
import hashlib
import importlib
import io
import os
import re
import textwrap
import tokenize
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.build import METADATA, write
from utils.paths import ROOT

INTRO = """\
> **This is a practice notebook**: lesson {number}, in which you build. {count}: {names}.
>
> Where `return ...` stands, write the body, run the cell, then the check under it. It holds
> your answer against the brick that the course ships, on random input: **○** not tried yet,
> **✗** what differs, **✓** equal. After a ✓ the notebook goes on with yours, until then with
> the shipped one, so you can leave a blank and come back. A comment in a blank gives a shape
> on the way; other ways are as good. Hint and solution are folded below.
>
> `make practice LESSON={number}` makes this notebook again and keeps what you wrote. The
> lesson to read is [notebooks/{name}.ipynb](../notebooks/{name}.ipynb)."""

FOLDED = """\
<details><summary>Hint{of}</summary>

{hint}

</details>
<details><summary>Solution{of}</summary>

```python
{solution}
```

</details>"""

GONE = "Your version of a cell that the lesson no longer has:\n\n```python\n{}\n```"


# ---------------------------------------------------------------- blanks


def find(source: str, name: str):
    """The function that `name` or `Class.name` names in a cell; None if it is not there."""
    nodes, node = ast.parse(source).body, None
    for part in name.split("."):
        node = next((n for n in nodes if getattr(n, "name", None) == part), None)
        nodes = getattr(node, "body", [])
    return node


def blank_lines(source: str, node) -> tuple[int, int, int]:
    """What is blank of a function: first line, last line and indentation.

    Docstring and guards stay. A guard is an `if` that only raises, with all that stands before
    it; or a `with` that holds all the rest.
    """
    body, kept = node.body, int(ast.get_docstring(node) is not None)
    for i, part in enumerate(body):
        if isinstance(part, ast.If) and isinstance(part.body[-1], ast.Raise) and not part.orelse:
            kept = i + 1
    if isinstance(body[kept], ast.With) and len(body) == kept + 1:
        body, kept = body[kept].body, 0
    first = body[kept - 1].end_lineno + 1 if kept else body[0].lineno
    lines = source.split("\n")
    while not kept and lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return first, node.end_lineno, body[0].col_offset


def shapes(source: str, node, first: int) -> list[str]:
    """`x: (B, d)` for each statement of the blank that ends in a comment with a shape."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {x.start[0]: x.string for x in tokens if x.type == tokenize.COMMENT}
    found = {}
    for part in ast.walk(node):
        if not isinstance(part, ast.Assign | ast.AugAssign | ast.Return) or part.lineno < first:
            continue
        if shape := re.match(r"#\s*((?:each )?\(.+)", comments.get(part.end_lineno, "")):
            target = getattr(part, "target", getattr(part, "targets", [None])[0])
            name = ast.unparse(target).strip("()") if target else "returned"
            found[part.lineno] = f"{name}: {shape[1]}"
    return [found[line] for line in sorted(found)]


def blank_out(source: str, names: list[str]) -> str:
    """A cell with these bodies blank; a blank keeps signature, docstring, guards and shapes."""
    lines = source.split("\n")
    nodes = sorted((find(source, name) for name in names), key=lambda node: -node.lineno)
    for node in nodes:
        first, last, column = blank_lines(source, node)
        indent = " " * column
        comments = [f"{indent}# {shape}" for shape in shapes(source, node, first)]
        lines[first - 1 : last] = [*comments, f"{indent}return ...  # your answer"]
    return "\n".join(lines)


def first_line(node) -> int:
    """Where a function or class begins, decorators included."""
    return min([node.lineno, *(x.lineno for x in node.decorator_list)])


def solution(source: str, name: str) -> str:
    """The code of a function or method."""
    node = find(source, name)
    return textwrap.dedent("\n".join(source.split("\n")[first_line(node) - 1 : node.end_lineno]))


def split(source: str, names: list[str]) -> tuple[str, str, str]:
    """A cell in three: what stands before its blanks, the bricks that hold them, the rest.

    The rest may use a brick at once, and so comes after its check.
    """
    nodes = [find(source, name.split(".")[0]) for name in names]
    first, last = min(map(first_line, nodes)), max(node.end_lineno for node in nodes)
    lines = source.split("\n")
    while lines[first - 2 : first - 1] and lines[first - 2].startswith("#"):
        first -= 1
    parts = lines[: first - 1], lines[first - 1 : last], lines[last:]
    return tuple("\n".join(part).strip("\n") for part in parts)


# ---------------------------------------------------------------- the notebook


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def made(cell: NotebookNode, key: str = "") -> NotebookNode:
    """A cell of ours, marked so that it is known again and a change in it is seen."""
    key = key or digest(f"{cell.cell_type} {cell.source}")
    cell.metadata["practice"] = {"cell": key, "made": digest(cell.source)}
    return cell


def has_blanks(cell: NotebookNode) -> bool:
    return "blank" in cell.metadata.get("tags", [])


def practice_cells(lesson: Path) -> list[NotebookNode]:
    """The lesson's cells; a brick with blanks becomes answer, check and solution."""
    notebook = jupytext.read(lesson, fmt="py:percent")
    if not any(map(has_blanks, notebook.cells)):
        raise SystemExit(f"Lesson {lesson.stem[:2]} has no blanks yet; choose another.")
    noun = notebook.metadata.get("brick") or lesson.stem[3:]
    checks = importlib.import_module(f"utils.practice.{noun}").check
    cells, blanks = [], []
    for cell in notebook.cells:
        source = cell.source.strip("\n")
        if cell.cell_type == "markdown":
            cells.append(made(new_markdown_cell(source)))
        elif names := [x for x in checks.blanks if has_blanks(cell) and find(source, x)]:
            before, bricks, after = split(source, names)
            blanks += names
            cells += [made(new_code_cell(before))] if before else []
            cells += answer_cells(bricks, names, checks)
            cells += [made(new_code_cell(after))] if after else []
        else:
            cells.append(made(new_code_cell(source)))
    names = ", ".join(f"`{name}`" for name in blanks)
    count = "One body is blank" if len(blanks) == 1 else f"{len(blanks)} bodies are blank"
    intro = INTRO.format(number=lesson.stem[:2], name=lesson.stem, count=count, names=names)
    cells[1:1] = [
        made(new_markdown_cell(intro), "intro"),
        made(new_code_cell(f"from utils.practice.{noun} import check"), "import"),
    ]
    used = set()
    for cell in cells:
        while (key := cell.metadata.practice["cell"]) in used:  # the same text once more
            cell.metadata.practice["cell"] += "-again"
        used.add(key)
        cell.id = key
    return cells


def answer_cells(source: str, names: list[str], checks) -> list[NotebookNode]:
    """Bricks with blanks, the cell that checks them, and hints with solutions."""
    bricks = list(dict.fromkeys(name.split(".")[0] for name in names))
    folded = [
        FOLDED.format(
            of=f": `{name}`" if len(names) > 1 else "",
            hint=checks.blanks[name].hint,
            solution=solution(source, name),
        )
        for name in names
    ]
    answer = new_code_cell(blank_out(source, names))
    answer.metadata["tags"] = ["raises-exception"]  # Run All goes on after an answer that fails
    check = "\n".join(f'{brick} = check("{brick}")' for brick in bricks)
    key = "-".join(bricks)
    return [
        made(answer, f"answer-{key}"),
        made(new_code_cell(check), f"check-{key}"),
        made(new_markdown_cell("\n\n".join(folded)), f"solution-{key}"),
    ]


# ---------------------------------------------------------------- what the learner wrote


def keep(cells: list[NotebookNode], old: list[NotebookNode]) -> tuple[list[NotebookNode], int]:
    """New cells with what the learner did to the old ones; how many were changed or added.

    A changed cell keeps its change, an added one its place. What was changed in a cell that
    is no longer made stays as a Markdown cell.
    """
    slots = {cell.metadata.practice["cell"]: cell for cell in cells}
    following = {key: [] for key in [None, *slots]}  # added cells, by the cell they come after
    marked = {mark(cell).get("cell") for cell in old}
    place, taken, kept = None, set(), 0
    for cell in old:
        key = mark(cell).get("cell") or recognised(cell, slots, marked | taken)
        changed = mark(cell).get("made") != digest(cell.source)
        slot = slots.get(key) if key not in taken else None
        if slot and slot.cell_type == cell.cell_type:
            place = key
            taken.add(key)
            same = cell.source == slot.source
            changed = changed and not same
            if changed or same:  # with its outputs and attachments
                cell.metadata.update(slot.metadata)
                slots[key] = cell
        elif changed:
            following[place].append(added(cell, gone=key is not None and key not in slots))
        kept += changed
    result = [*following[None]]
    for key, slot in slots.items():
        result += [slot, *following[key]]
    unique_ids(result)
    return result, kept


def mark(cell: NotebookNode) -> dict:
    found = cell.metadata.get("practice")
    return found if isinstance(found, dict) else {}


def recognised(cell: NotebookNode, slots: dict, known: set) -> str | None:
    """The key of a cell that lost its mark: by its text, or by the brick that it defines."""
    for key, slot in slots.items():
        if key in known or slot.cell_type != cell.cell_type:
            continue
        bricks = set(key.split("-")[1:]) if key.startswith("answer-") else set()
        if slot.source == cell.source or bricks & defined(cell.source):
            return key
    return None


def defined(source: str) -> set[str]:
    """The functions and classes of a cell; none if it is not Python."""
    try:
        return {x.name for x in ast.parse(source).body if hasattr(x, "name")}
    except SyntaxError:
        return set()


def added(cell: NotebookNode, gone: bool) -> NotebookNode:
    """A learner's cell as one of their own; code that belonged to a lost cell becomes text."""
    if gone and cell.cell_type == "code":
        return new_markdown_cell(GONE.format(cell.source))
    cell.metadata.pop("practice", None)
    return cell


def unique_ids(cells: list[NotebookNode]) -> None:
    used = set()
    for cell in cells:
        while cell.get("id") in used | {None}:
            cell.id = digest(f"{cell.get('id')} {cell.source}")
        used.add(cell.id)


def practice(number: str, root: Path = ROOT) -> str:
    """Write a lesson's practice notebook; returns a line that says what it holds.

    Raises SystemExit with one line if there is no such lesson, or if the notebook that is
    there cannot be read: it may hold answers.
    """
    lessons = sorted((root / "lessons").glob("[0-9][0-9]_*.py"))
    lesson = next((p for p in lessons if number and p.name.startswith(number.zfill(2))), None)
    if not lesson:
        numbers = ", ".join(path.name[:2] for path in lessons)
        raise SystemExit(f"There is no lesson {number!r}; choose one of {numbers}.")
    cells, kept = practice_cells(lesson), 0
    path = root / "practice" / f"{lesson.stem}.ipynb"
    name = path.relative_to(root).as_posix()
    if path.exists():
        try:
            old = nbformat.read(path, as_version=4)
            nbformat.validate(old)
        except Exception as error:  # a damaged file can fail anywhere in nbformat
            reason = (str(error).splitlines() or ["empty"])[0][:100]
            raise SystemExit(
                f"{name} cannot be read as a notebook ({reason}): it may hold answers of "
                "yours, so move it elsewhere, then try again."
            ) from None
        cells, kept = keep(cells, old.cells)
    notebook = new_notebook(cells=cells, metadata=METADATA)
    write(path, nbformat.writes(notebook, sort_keys=True).rstrip("\n") + "\n")
    yours = f"; what you wrote in {kept} of its cells is kept" if kept else ""
    return f"{name} is ready{yours}."


def main(root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.practice", description=__doc__)
    typed = os.environ.get("LESSON")  # by `make`, past the shell
    parser.add_argument(
        "lesson", nargs="?" if typed else None, default=typed, help="its number, such as 03"
    )
    lesson = parser.parse_args().lesson
    try:
        print(practice(lesson, root))
    except OSError as error:
        raise SystemExit(f"{error}; nothing of yours is lost: mend that, try again.") from None
    print("Open it in JupyterLab; if it is open there: File > Reload Notebook from Disk.")


if __name__ == "__main__":
    main()
