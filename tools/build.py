"""Build the course: lessons/*.py → utils/bricks/*.py and executed notebooks/*.ipynb.

A lesson is a py:percent file. Its cells tagged `brick` become utils/bricks/NAME.py (see
tools/export.py); NAME stands in its header, as `#   brick: NAME` under `# jupyter:`. A
cell tagged `brick:OTHER` goes to utils/bricks/OTHER.py. A notebook records what it read
(see tools/reads.py). The same lesson gives the same bytes every time. `--check` compares,
executing nothing.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import jupytext
import nbformat
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from tools import export, reads
from utils.machine import cores
from utils.paths import ROOT

SECONDS, GIGABYTES, BYTES = 90, 2.5, 1_000_000  # what a lesson may take
CELL_TIMEOUT = 300  # seconds
METADATA = {  # no versions: the bytes must not depend on a patch release
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
VIEW = "application/vnd.jupyter.widget-view+json"
MACHINE = r"\bat 0x[0-9a-fA-F]{6,}|/tmp/ipykernel_\d+|\bsite-packages\b"


class BuildError(Exception):
    """What is wrong with a lesson, and where."""


@dataclass
class Lesson:
    path: Path
    brick: str | None  # the module that cells tagged `brick` go to
    cells: list  # of nbformat cells: source and kept metadata

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def notebook(self) -> Path:
        return self.path.parents[1] / "notebooks" / f"{self.name}.ipynb"

    def brick_of(self, cell) -> str | None:
        """The module that a cell goes to; None if it is no brick."""
        for tag in cell.metadata.get("tags", []) if cell.cell_type == "code" else []:
            if tag == "brick" or tag.startswith("brick:"):
                return tag.partition(":")[2] or self.brick or ""
        return None

    @property
    def bricks(self) -> dict[str, dict[str, str]]:
        """The modules it feeds: {name: {place: source}}, the cells in order."""
        found = defaultdict(dict)
        for index, cell in enumerate(self.cells):
            if (name := self.brick_of(cell)) is not None:
                place = f"lessons/{self.path.name}, {where(index, cell)}"
                found[name][place] = cell.source
        return dict(found)

    def module(self, name: str) -> Path:
        """The file of a module it feeds."""
        return self.path.parents[1] / "utils" / "bricks" / f"{name}.py"

    @property
    def metadata(self) -> dict:
        return METADATA | ({"brick": self.brick} if self.brick else {})

    @property
    def tree(self) -> ast.Module:
        """Its code cells as one module. Raises BuildError."""
        body = []
        for index, cell in enumerate(self.cells):
            try:
                body += ast.parse(cell.source).body if cell.cell_type == "code" else []
            except SyntaxError as error:
                place = f"lessons/{self.path.name}, {where(index, cell)}"
                message = f"{place}: {error.msg}; a cell holds plain Python."
                raise BuildError(message) from None
        return ast.Module(body, [])


# ---------------------------------------------------------------- lessons


def read_lessons(root: Path) -> list[Lesson]:
    """All lessons in order. Raises BuildError if a brick has no name or two lessons."""
    lessons = []
    for path in sorted((root / "lessons").glob("[0-9][0-9]_*.py")):
        notebook = jupytext.read(path, fmt="py:percent")
        for cell in notebook.cells:
            cell.source = cell.source.strip("\n")
            kept = {"tags", "jupyter", "slideshow"} & cell.metadata.keys()
            cell.metadata = {key: cell.metadata[key] for key in sorted(kept)}
        name = notebook.metadata.get("brick")
        lesson = Lesson(path, name, notebook.cells)
        if "" in lesson.bricks or name and name not in lesson.bricks:
            raise BuildError(
                f"lessons/{path.name}: brick cells and a line `#   brick: NAME` under "
                "`# jupyter:` in the header go together; add the one that is missing."
            )
        for brick in lesson.bricks:
            if not brick.isidentifier():
                raise BuildError(
                    f"lessons/{path.name}: {brick!r} is no name for a module; write it "
                    "with letters, digits and _."
                )
            for other in lessons:
                if brick in other.bricks:
                    raise BuildError(
                        f"lessons/{path.name}: the brick {brick} already comes from "
                        f"lessons/{other.path.name}; choose another name."
                    )
        lessons.append(lesson)
    return lessons


def where(index: int, cell) -> str:
    """A cell as a person finds it: its number and its first line."""
    return f"cell {index + 1} (`{cell.source.strip().split(chr(10))[0][:60]}`)"


# ---------------------------------------------------------------- notebooks


def execute(lesson: Lesson) -> tuple[nbformat.NotebookNode, float, float | None]:
    """The executed notebook, the seconds it took and the kernel's peak memory in GB."""
    cells = [nbformat.from_dict(cell) for cell in lesson.cells]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=lesson.metadata)
    folder = lesson.notebook.parent
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join(
        filter(None, [str(folder.parent), os.environ.get("PYTHONPATH")])
    )
    client = NotebookClient(
        notebook,
        kernel_manager_class=Kernel,
        extra_arguments=["--log-level=ERROR"],
        timeout=CELL_TIMEOUT,
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
    )
    # not a person's settings of IPython, which could change what a cell prints
    settings = folder.parent / ".jupyter" / "ipython"
    settings.mkdir(parents=True, exist_ok=True)
    places = {"PYTHONPATH": path, "IPYTHONDIR": str(settings)}
    # all cores, whatever else runs: another number of threads rounds otherwise
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores()))}
    tree, start = lesson.tree, time.perf_counter()
    with client.setup_kernel(env=os.environ | ENVIRONMENT | places | threads):
        ask = run_sync(partial(client.kc.execute_interactive, silent=True, allow_stdin=False))
        ask(reads.WATCH)
        for index, cell in enumerate(notebook.cells):
            try:
                client.execute_cell(cell, index)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                message = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
                place = f"lessons/{lesson.path.name}, {where(index, cell)}"
                raise BuildError(f"{place} failed:\n{message}") from None
        peak = peak_memory(client.km.provisioner.pid)
        answer = ask("", user_expressions={"seen": reads.SEEN})
    seen = answer["content"]["user_expressions"]["seen"]["data"]["text/plain"]
    files = reads.seen(ast.literal_eval(seen), folder.parent)
    notebook.metadata["reads"] = reads.Code(folder.parent).record(tree, files)
    return notebook, time.perf_counter() - start, peak


class Kernel(AsyncKernelManager):
    """Runs the Python that runs the build, whatever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


def peak_memory(pid: int) -> float | None:
    """Peak resident memory of a process in GB; None where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9


def tidy(lesson: Lesson, notebook, old_cells: list) -> str:
    """The text of the notebook file: same lesson, same outputs, same bytes."""
    identify(lesson, notebook.cells, old_cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = tidy_outputs(cell.outputs)
    return nbformat.writes(notebook, sort_keys=True).rstrip("\n") + "\n"


def identify(lesson: Lesson, cells: list, old_cells: list) -> None:
    """Give every cell the id it had: by source, else by position, else a hash."""
    free, old_ids = defaultdict(list), {}
    for old in old_cells:
        free[old.cell_type, old.source].append(old.id)
    for index, cell in enumerate(cells):
        same = free[cell.cell_type, cell.source]
        old_ids[index] = same.pop(0) if same else None
    used = set(filter(None, old_ids.values()))
    for index, cell in enumerate(cells):
        there = old_cells[index] if index < len(old_cells) else None
        if old_ids[index]:
            cell.id = old_ids[index]
        elif there and there.cell_type == cell.cell_type and there.id not in used:
            cell.id = there.id
        else:
            text = f"{lesson.name} {index} {cell.source}"
            while (new := hashlib.sha256(text.encode()).hexdigest()[:12]) in used:
                text += "+"
            cell.id = new
        used.add(cell.id)


def tidy_outputs(outputs: list) -> list:
    """Join the pieces of one stream; leave out the views of widgets.

    Their models are gone: JupyterLab would show an error, and so shows the text beside.
    """
    kept = []
    for output in outputs:
        output.get("data", {}).pop(VIEW, None)
        last = kept[-1] if kept else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            last.text += output.text
        else:
            kept.append(output)
    return kept


# ---------------------------------------------------------------- checks


def difference(lesson: Lesson, notebook, code: reads.Code) -> str | None:
    """The first way in which a stored notebook is not what its lesson would give now."""
    pairs = zip(lesson.cells, notebook.cells, strict=False)
    for index, (ours, theirs) in enumerate(pairs):
        for part in ("cell_type", "source", "metadata"):
            if ours[part] != theirs[part]:
                found = first_difference(ours[part], theirs[part])
                return f"{where(index, theirs)}: {found}"
    if len(notebook.cells) != len(lesson.cells):
        return f"{len(notebook.cells)} cells, the lesson has {len(lesson.cells)}"
    metadata = dict(notebook.metadata)
    read = metadata.pop("reads", None)
    if not isinstance(read, dict):
        return "does not say what it read; build it"
    now = code.record(lesson.tree, read)
    files = sorted(now.keys() | read.keys())
    if other := [file for file in files if now.get(file) != read.get(file)]:
        return f"executed with another {', '.join(other)}; build it"
    if metadata != lesson.metadata:
        return f"metadata: {first_difference(lesson.metadata, metadata)}"
    return None


def first_difference(ours, theirs) -> str:
    """Two texts or tables, told apart by their first line that differs."""
    if not isinstance(ours, str):
        ours, theirs = (json.dumps(x, sort_keys=True) for x in (ours, theirs))
    lines = zip_longest(ours.split("\n"), theirs.split("\n"), fillvalue="(no line)")
    pairs = enumerate(lines, 1)
    number, (a, b) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
    return f"line {number} is `{b}`, the lesson gives `{a}`"


def output_faults(lesson: Lesson, notebook) -> list[str]:
    """What must not be stored: wrong counts, errors, warnings, traces of a machine."""
    faults, count = [], 0
    machine = re.compile(f"{MACHINE}|{re.escape(str(lesson.path.parents[1]))}")
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        place = where(index, cell)
        count += bool(cell.source.strip())
        if cell.source.strip() and cell.execution_count != count:
            found = cell.execution_count
            return [f"{place}: execution count {found}, expected {count}; build it"]
        meant = "raises-exception" in cell.metadata.get("tags", [])
        for output in cell.outputs:
            text = output_text(output)
            if output.output_type == "error" and not meant:
                faults.append(f"{place}: {output.ename}: {output.evalue[:200]!r}")
            elif output.get("name") == "stderr":
                faults.append(f"{place}: text on stderr: {text.strip()[:200]!r}")
            elif trace := machine.search(text):
                faults.append(f"{place}: `{trace[0]}` in an output varies by machine")
    return faults


def output_text(output) -> str:
    data = [text for text in output.get("data", {}).values() if isinstance(text, str)]
    return "\n".join([output.get("text", ""), *output.get("traceback", []), *data])


def size_fault(size: int) -> list[str]:
    if size > BYTES:
        found = f"{size / 1e6:.2f} MB stored, at most {BYTES / 1e6:.0f}"
        return [f"{found}; draw its pictures smaller"]
    return []


def check(root: Path, wanted: str | None = None) -> list[str]:
    """Every way in which notebooks and bricks are not what the lessons give."""
    lessons, code = read_lessons(root), reads.Code(root)
    findings = []

    def find(path: Path, faults: list[str]) -> None:
        name = path.relative_to(root).as_posix()
        findings.extend(f"{name}: {fault}" for fault in faults if fault)

    for lesson in choose(lessons, wanted):
        try:
            texts = brick_texts(lesson, lessons)
        except BuildError as error:
            findings.append(str(error))
        else:
            for path, text in texts.items():
                if not (stored := read(path)):
                    find(path, ["missing; build it"])
                elif text != stored:
                    find(path, [first_difference(text, stored)])
        if notebook := stored_notebook(lesson):
            size = lesson.notebook.stat().st_size
            find(lesson.notebook, [difference(lesson, notebook, code)])
            find(lesson.notebook, output_faults(lesson, notebook) + size_fault(size))
        else:
            find(lesson.notebook, ["missing or not a notebook; build it"])
    if not wanted:
        built = {root / "utils" / "bricks" / "__init__.py"}
        for lesson in lessons:
            built |= {lesson.notebook, *map(lesson.module, lesson.bricks)}
        there = {*root.glob("notebooks/*.ipynb"), *root.glob("utils/bricks/*.py")}
        for path in sorted(there - built):
            if ".mine" not in path.name:  # what `make fresh` keeps for the learner
                find(path, ["no lesson builds it; delete it"])
    return findings


# ---------------------------------------------------------------- build


def choose(lessons: list[Lesson], wanted: str | None) -> list[Lesson]:
    chosen = [lesson for lesson in lessons if lesson.name.startswith(wanted or "")]
    if not chosen:
        names = ", ".join(lesson.name for lesson in lessons) or "none"
        raise BuildError(f"no lesson starts with {wanted!r}; there are: {names}")
    return chosen


def brick_texts(lesson: Lesson, lessons: list[Lesson]) -> dict[Path, str]:
    """The modules that a lesson's brick cells become: {file: text}."""
    before = lessons[: lessons.index(lesson)]
    earlier = {name for other in before for name in other.bricks}
    try:
        texts = export.module_texts(lesson.name, lesson.bricks, earlier)
    except ValueError as error:
        raise BuildError(str(error)) from None
    return {lesson.module(name): text for name, text in texts.items()}


def stored_notebook(lesson: Lesson):
    """The notebook on disk; None if there is none that can be read."""
    try:
        return nbformat.read(lesson.notebook, as_version=4)
    except Exception:  # a damaged file can fail anywhere in nbformat
        return None


def read(path: Path) -> str:
    return path.read_bytes().decode() if path.exists() else ""


def write(path: Path, text: str) -> None:
    """All or nothing: a build that is stopped leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(text.encode())
    os.replace(temporary, path)


def build(root: Path, wanted: str | None = None, everything: bool = False) -> list[str]:
    """Write the bricks, then the notebooks that need it. Returns what failed."""
    lessons = read_lessons(root)
    chosen = choose(lessons, wanted)
    texts = {x.name: brick_texts(x, lessons) for x in chosen}
    for lesson in chosen:
        for path, text in texts[lesson.name].items():
            if text != read(path):
                write(path, text)
                print(f"{lesson.name}: wrote {path.relative_to(root).as_posix()}")
    stale, failed, code = [], [], reads.Code(root)
    for lesson in chosen:
        old = stored_notebook(lesson)
        fault = not old or difference(lesson, old, code) or output_faults(lesson, old)
        if fault or everything:
            stale.append(lesson)
        else:
            print(f"{lesson.name}: up to date")
    for lesson in stale:
        try:
            print(build_notebook(lesson), flush=True)
        except BuildError as error:  # the others may depend on a changed brick as well
            failed.append(str(error))
    return failed


def build_notebook(lesson: Lesson) -> str:
    """Execute a lesson and store its notebook. Returns time and memory as one line."""
    old = stored_notebook(lesson)
    notebook, seconds, peak = execute(lesson)
    text = tidy(lesson, notebook, old.cells if old else [])
    if faults := output_faults(lesson, notebook) + size_fault(len(text.encode())):
        raise BuildError("\n".join(f"lessons/{lesson.path.name}, {f}" for f in faults))
    write(lesson.notebook, text)
    line = f"{lesson.name}: {seconds:.0f} s" + (f", {peak:.2f} GB" if peak else "")
    if seconds > SECONDS or (peak or 0) > GIGABYTES:
        line += f"  WARNING: over the budget of {SECONDS} s and {GIGABYTES} GB"
    return line


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.build",
        description="Build bricks and notebooks from lessons. A notebook is executed "
        "when its cells changed, or what they read of utils/ and assets/.",
    )
    parser.add_argument("--lesson", metavar="03", help="only lessons that start so")
    parser.add_argument("--all", action="store_true", help="execute the unchanged too")
    parser.add_argument("--check", action="store_true", help="compare, execute nothing")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            problems = check(root, options.lesson)
        else:
            problems = build(root, options.lesson, options.all)
    except BuildError as error:
        problems = [str(error)]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
