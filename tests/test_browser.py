"""A real browser runs every lesson in JupyterLab and moves every control that it finds there.

A lesson is opened and run once; what is asked of it shares the page.
"""

import base64
import contextlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from tests import helpers
from tests.practice import helpers as blanks
from tools import practice
from utils.paths import ROOT

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        not helpers.CHROMIUM, reason="no Chromium; install Debian's package chromium"
    ),
]
MINUTE = 60_000  # in milliseconds, as Playwright counts
expect.set_options(timeout=2 * MINUTE)
LESSONS = sorted(path.stem for path in (ROOT / "lessons").glob("[0-9]*.py"))
WELCOME, PROMPTING = "00_welcome", "04_zero_shot_prompting"

READY = """async () => {
    await jupyterapp.restored;
    await jupyterapp.shell.currentWidget.revealed;
    await jupyterapp.shell.currentWidget.context.ready;
}"""
RUN_ALL = """async () => {
    await jupyterapp.restored;
    const panel = jupyterapp.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    return await Promise.race([
        jupyterapp.commands.execute('notebook:run-all-cells'),
        new Promise(done => setTimeout(() => done('late'), 1_200_000)),
    ]);
}"""
SOURCES = """() => jupyterapp.shell.currentWidget.content.widgets.map(
    cell => cell.model.sharedModel.getSource())"""
ERRORS = """() => jupyterapp.shell.currentWidget.content.widgets.flatMap(
    cell => cell.model.outputs ? cell.model.outputs.toJSON() : []).filter(
    output => output.output_type === 'error').map(output => output.ename + output.evalue)"""
OUTPUTS = """() => jupyterapp.shell.currentWidget.content.widgets.map(cell => [
    cell.model.sharedModel.getMetadata('practice')?.cell ?? '',
    cell.model.outputs ? cell.model.outputs.toJSON() : []])"""
PICTURES = """() => jupyterapp.shell.currentWidget.content.widgets.map(
    cell => (cell.model.outputs ? cell.model.outputs.toJSON() : []).filter(output =>
    Object.keys(output.data ?? {}).some(kind => kind.startsWith('image/'))).length)"""
VIEWS = """() => jupyterapp.shell.currentWidget.content.widgets.map(
    cell => (cell.model.outputs ? cell.model.outputs.toJSON() : []).filter(
    output => output.data?.['application/vnd.jupyter.widget-view+json']).length)"""
OPEN = """async path => {
    await jupyterapp.restored;
    for (const open of [...jupyterapp.shell.widgets('main')]) open.dispose();
    await jupyterapp.commands.execute('docmanager:open', {path});
}"""
SHUT_DOWN = "() => jupyterapp.serviceManager.sessions.shutdownAll()"
RUN_ONE = """async i => {
    const content = jupyterapp.shell.currentWidget.content;
    content.activeCellIndex = i;
    await jupyterapp.commands.execute('notebook:run-cell');
    return content.widgets[i].model.outputs.toJSON().map(output => output.text).join('');
}"""
SCROLL = "i => jupyterapp.shell.currentWidget.content.scrollToItem(i, 'smart')"
PASTE = """(field, data) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], 'pasted.png', {type: 'image/png'}));
    const event = new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true});
    field.dispatchEvent(event);
}"""

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@dataclass
class Lesson:
    """A notebook in the browser."""

    name: str
    page: object
    log: Path
    said: list[str] = field(default_factory=list)

    def cells(self, pictures: bool = False) -> Iterator:
        """Every cell that shows widgets, scrolled into view, with all of them drawn.

        pictures: or shows a picture, or has one in its text.
        """
        drawn, sources = self.page.evaluate(PICTURES), self.page.evaluate(SOURCES)
        for i, views in enumerate(self.page.evaluate(VIEWS)):
            seen = pictures and (drawn[i] or "![" in sources[i] or "<img" in sources[i])
            if not views and not seen:
                continue  # scrolling takes its time
            cell = self.scrolled(i)
            expect(cell.locator(".jp-OutputArea-output > .jupyter-widgets")).to_have_count(views)
            yield cell

    def cell(self, pattern: str):
        """The first cell whose source has the pattern, scrolled into view."""
        found = [re.search(pattern, source) for source in self.page.evaluate(SOURCES)]
        assert any(found), f"no cell has {pattern}"
        return self.scrolled(next(i for i, match in enumerate(found) if match))

    def scrolled(self, i: int):
        self.page.evaluate(SCROLL, i)  # what is out of sight may not be in the page
        cell = self.page.locator(f'.jp-Cell[data-windowed-list-index="{i}"]')
        cell.wait_for(timeout=MINUTE)
        return cell

    def widget(self, label: str):
        """A text field by its label, and the answer under it."""
        cell = self.cell(rf'widgets\.text\(\s*"{label}"')
        answer = cell.locator(".widget-html-content").last
        expect(answer).not_to_be_empty()
        return cell.get_by_label(label, exact=True), answer


def serve(folder: Path) -> tuple[subprocess.Popen, str, str]:
    """JupyterLab on the course in `folder`, as `make lab` starts it: its address and token."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "JUPYTER_TOKEN")
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tools.lab", "--port", str(port)],
            cwd=folder,
            env={k: v for k, v in os.environ.items() if k not in hidden} | {"HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    for _ in range(600):
        shown = (folder / "log.txt").read_text(encoding="utf-8")
        address = re.search(rf"(http://localhost:{port})\S+\?token=(\w+)", shown)
        if address or server.poll() is not None:
            break
        time.sleep(0.2)
    else:
        server.kill()
    assert address, shown
    return server, *address.groups()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A function that opens a notebook, in a JupyterLab that serves a copy of the course."""
    folder = tmp_path_factory.mktemp("course")
    for name in ("tools", "utils", "notebooks", "lessons", "assets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in LESSONS:
        practice.practice(name[:2], folder)
    for path in ("pyproject.toml", "constraints.txt"):  # the machine check reads them
        shutil.copy(ROOT / path, folder)
    config = folder / ".jupyter" / "config" / "jupyter_lab_config.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"LabApp": {"expose_app_in_browser": true}}', encoding="utf-8")
    server, address, token = serve(folder)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=helpers.CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )

            def lesson(path: str, *cells: str) -> Lesson:
                if cells:  # of a notebook that is to be written first
                    new = list(map(nbformat.v4.new_code_cell, cells))
                    notebook = nbformat.v4.new_notebook(cells=new, metadata=KERNEL)
                    nbformat.write(notebook, folder / f"{path}.ipynb")
                return opened(browser, f"{address}/lab", path, token, folder / "log.txt")

            yield lesson
            browser.close()
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="module", params=LESSONS)
def lesson(request, lab):
    """A lesson, opened and run once for all that is asked of it.

    It is the one to practise with, whose code is the lesson's with some bodies blank: nbval runs
    the notebook as shipped, so that each is run to its end, and none twice.
    """
    lesson = lab(f"practice/{request.param}")
    with explained(lesson):
        done = lesson.page.evaluate(RUN_ALL)
        assert done is True, (done, lesson.page.evaluate(ERRORS))
    yield lesson
    lesson.page.evaluate(SHUT_DOWN)  # else the memory of every lesson is held to the end
    lesson.page.close()


def opened(browser, address: str, path: str, token: str, log: Path) -> Lesson:
    name, path = path.split("/")[1], f"{path}.ipynb"
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(MINUTE)
    lesson = Lesson(name, page, log)
    page.on("console", lambda message: lesson.said.append(f"{message.type}: {message.text}"))
    page.on(
        "response",
        lambda got: lesson.said.append(f"{got.status}: {got.url}") if got.status >= 400 else None,
    )
    page.on("pageerror", lambda error: lesson.said.append(f"uncaught: {error}"))
    with explained(lesson):
        # a workspace of its own: else each page reopens and saves what the others hold
        space = path.replace("/", "-").removesuffix(".ipynb")
        page.goto(f"{address}/workspaces/{space}/tree/{path}?token={token}", timeout=3 * MINUTE)
        page.wait_for_function(
            "path => window.jupyterapp?.shell.currentWidget?.context?.path === path",
            arg=path,
            timeout=3 * MINUTE,
        )
    return lesson


@contextlib.contextmanager
def explained(lesson: Lesson):
    """Add what the server and the browser said to an error."""
    try:
        yield
    except Exception as error:
        log = lesson.log.read_text(encoding="utf-8").splitlines()[-40:]
        error.add_note("\n".join(["Server:", *log, "Browser:", *lesson.said[-40:]]))
        with contextlib.suppress(Exception):
            picture = lesson.log.with_name("failed.png")
            lesson.page.screenshot(path=picture)
            error.add_note(f"Screen: {picture}")
        raise


@pytest.fixture(scope="module")
def shelf(lab):
    """A page in which the notebooks as shipped are opened, one after the other."""
    shelf = lab(f"notebooks/{LESSONS[0]}")
    yield shelf
    shelf.page.evaluate(SHUT_DOWN)
    shelf.page.close()


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_shows_as_it_is_shipped(shelf, name):
    """Nothing is run: every stored picture shows, and no view of a widget is stored."""
    with explained(shelf):
        shelf.page.evaluate(OPEN, f"notebooks/{name}.ipynb")
        shelf.page.evaluate(READY)
        # a view whose model is gone would show an error
        assert not any(shelf.page.evaluate(VIEWS))
        stored = shelf.page.evaluate(PICTURES)
        assert sum(stored)
        for i, count in enumerate(stored):
            if not count:
                continue
            images = shelf.scrolled(i).locator(".jp-OutputArea-output img")
            expect(images).to_have_count(count)
            for image in images.all():
                expect(image).not_to_have_js_property("naturalWidth", 0)
        shelf.page.evaluate(SHUT_DOWN)


def test_every_blank_waits_and_nothing_complains(lesson):
    """The lesson that is run has blanks; they say so, and the cells after them run all the same."""
    said, faults = set(), []
    for cell, outputs in lesson.page.evaluate(OUTPUTS):
        faults += [x for x in outputs if x["output_type"] == "error" or x.get("name") == "stderr"]
        if cell.startswith("check-"):
            # a busy kernel may send a line in pieces, an output each
            texts = "".join("".join(output["text"]) for output in outputs)
            said |= {line.split(":")[0] for line in texts.splitlines()}
    number = lesson.name[:2]
    (noun,) = (noun for noun in blanks.nouns() if blanks.module(noun).LESSON == number)
    assert said == {f"○ {name}" for name in blanks.check(noun).blanks}
    assert not faults


# The field to paste into is HTML, too.
ANSWERS = ".jp-OutputArea-output > .jupyter-widgets .widget-html-content:not(.paste *)"


def test_every_widget_and_picture_shows(lesson):
    with explained(lesson):
        shown = 0
        for cell in lesson.cells(pictures=True):
            shown += 1
            for fault in ("Error displaying widget", "model not found", "Traceback"):
                expect(cell).not_to_contain_text(fault)
            for image in cell.locator("img").all():
                expect(image).not_to_have_js_property("naturalWidth", 0)
            answers = cell.locator(ANSWERS)
            waits = cell.get_by_role("button", name="Start", exact=True).count()
            for answer in answers.all():
                if not waits:
                    expect(answer).not_to_be_empty()
                expect(answer).not_to_contain_text("✗")
            if answers.count():
                expect(cell).not_to_contain_text("Run this cell to use it")
        assert shown > 1


# Every control

CONTROLS = ".jupyter-widgets :is(input, select, textarea, button, .noUi-handle):visible"
KIND = """node => node.matches('.noUi-handle') ? 'slider'
    : node.matches('.widget-upload') ? 'upload'
    : node.matches('.paste input') ? 'paste'
    : node.matches('button') ? node.innerText : node.type"""
ANSWER = """cell => [...cell.querySelectorAll('.widget-html-content, img.widget-image')].map(
    node => node.src ?? node.innerHTML).join()"""
# a handle's aria-valuenow has one decimal, its text all
VALUE = "node => node.getAttribute('aria-valuetext') ?? node.value"
MISSING = "is not on disk"  # OpenAI's weights, where the learner has not fetched them


def changed(part, before: str, read: str = "node => node.innerHTML") -> str:
    """The HTML of an answer, or all answers of a cell, once it is another."""
    for _ in range(1200):
        if (now := part.evaluate(read)) != before:
            return now
        time.sleep(0.1)
    raise AssertionError(f"the answer stays {before[:300]}")


def retype(box, words: str) -> None:
    """Replace what a field holds, key by key, and leave the field."""
    box.click()
    box.press("ControlOrMeta+a")
    box.press("Delete")
    box.press_sequentially(words)
    box.press("Tab")


def step(control) -> Callable[[], None]:
    """A step up, or down from the top; returns the way back, as all that move do."""
    keys, before = ["ArrowUp", "ArrowDown"], control.evaluate(VALUE)
    control.press(keys[0])
    if control.evaluate(VALUE) == before:
        keys.reverse()
        control.press(keys[0])
    control.press("Tab")

    def back() -> None:
        control.press(keys[1])
        control.press("Tab")

    return back


def test_a_slider_of_small_steps_goes_up_and_back(lab):
    code = "widgets.live([widgets.slider('Heat', 0.0, 0.0, 1.0)], str, '')"
    lesson = lab("notebooks/small-steps", f"from utils import widgets\n{code}")
    with explained(lesson):
        assert lesson.page.evaluate(RUN_ALL) is True
        (cell,) = lesson.cells()
        handle, answer = cell.locator(".noUi-handle"), cell.locator(".widget-html-content")
        back = step(handle)
        expect(handle).to_have_attribute("aria-valuetext", "0.01")
        expect(answer).to_have_text("0.01")
        back()
        expect(handle).to_have_attribute("aria-valuetext", "0")
        expect(answer).to_have_text("0.0")
    lesson.page.close()


def reword(control) -> Callable[[], None]:
    """Prompts the other way round, or another one; returns the way back."""
    words = control.input_value()
    separator = "\n" if "\n" in words else ";"
    prompts = words.split(separator)
    others = prompts[::-1] if len(prompts) > 1 else ["dog" if words == "cat" else "cat"]
    retype(control, separator.join(others))
    return lambda: retype(control, words)


def choose(control) -> Callable[[], None]:
    """The next of a list; returns the way back."""
    here, count = control.evaluate("node => [node.selectedIndex, node.length]")
    control.select_option(index=(here + 1) % count)
    return lambda: control.select_option(index=here)


def upload(control, content: bytes | None = None, name: str = "green.png") -> None:
    with control.page.expect_file_chooser() as chooser:
        control.click()
    file = {"name": name, "mimeType": "image/png", "buffer": content or png("green")}
    chooser.value.set_files(file)


def paste(control, content: bytes | None = None) -> None:
    control.evaluate(PASTE, base64.b64encode(content or png("yellow")).decode())


def play(start) -> None:
    """Start a film and, when its first picture shows, stop it."""
    film = start.locator("xpath=../..")
    stop = film.get_by_role("button", name="Stop", exact=True)
    start.click()
    expect(film.locator("img").first).to_be_visible()
    stop.evaluate("button => button.click()")  # it may be over, and the button be dead
    expect(stop).to_be_disabled()


MOVES = {
    "slider": step,
    "number": step,
    "text": reword,
    "textarea": reword,
    "select-one": choose,
    "upload": upload,
    "paste": paste,
    "Start": play,
}


def test_every_control_changes_the_answer(lesson):
    """There and, where there is a way, back, so that each meets the others at their defaults.

    A film heeds its controls when it starts: there all are moved, and then it is started.
    """
    moved = 0
    with explained(lesson):
        for cell in lesson.cells():

            def good(before: str, cell=cell) -> str:
                now = changed(cell, before, ANSWER)
                assert "✗" not in now or MISSING in now, now[:500]
                expect(cell).not_to_contain_text("Traceback")
                return now

            controls = [(c.evaluate(KIND), c) for c in cell.locator(CONTROLS).all()]
            film = "Start" in dict(controls)
            for kind, control in controls:
                if kind == "Stop":
                    continue  # pressed with Start
                before = cell.evaluate(ANSWER)
                back = MOVES[kind](control)
                if kind == "Start" or not film:
                    now = good(before)
                    if back:
                        back()
                        good(now)
                moved += 1
    assert moved


# A learner's hands


TYPED = {  # a field, what is typed, what the answer has then
    WELCOME: [("keyword", "drink", "beer mug")],
    PROMPTING: [
        ("Prompts", "a red apple\nseven wild dogs", "seven wild dogs"),
        ("Search", "猫", "cat"),
    ],
}


# "lesson" alone, for pytest keeps together what shares a lesson only so
@pytest.mark.parametrize("lesson", TYPED, indirect=True)
def test_typing_changes_the_answer(lesson):
    with explained(lesson):
        for label, words, seen in TYPED[lesson.name]:
            box, answer = lesson.widget(label)
            count, before = len(lesson.page.evaluate(SOURCES)), answer.inner_html()
            expect(answer).not_to_contain_text(seen)
            retype(box, words)
            expect(answer).to_contain_text(seen)
            expect(answer).not_to_contain_text("✗")
            assert answer.inner_html() != before and answer.locator("img").count() > 0
            assert len(lesson.page.evaluate(SOURCES)) == count  # no key went to the notebook


@pytest.mark.parametrize("lesson", TYPED, indirect=True)
@pytest.mark.parametrize("words", ["", "zzzz " * 120])
def test_a_typed_fault_is_one_red_line_and_can_be_mended(lesson, words):
    with explained(lesson):
        box, answer = lesson.widget(TYPED[lesson.name][0][0])
        retype(box, words or " ")
        expect(answer).to_contain_text(re.compile("^✗ [^\n]{9,290}$"))
        expect(answer.locator("> *")).to_have_count(1)
        red = answer.locator("p").evaluate("p => getComputedStyle(p).color")
        red, green, blue = map(int, re.findall(r"\d+", red)[:3])
        assert red > 2 * green and red > 2 * blue
        retype(box, "cat")
        expect(answer).not_to_contain_text("✗")
        expect(answer.locator("img")).not_to_have_count(0)


def png(colour: str, side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def noise(side: int) -> bytes:
    """A picture that no format makes small, like a photograph from a phone."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(3 * side**2)).save(buffer, "BMP")
    return buffer.getvalue()


@pytest.mark.parametrize("lesson", [PROMPTING], indirect=True)
def test_a_picture_is_uploaded_or_pasted(lesson):
    with explained(lesson):
        cell = lesson.cell(r"widgets\.upload\(")
        answer = cell.locator(".widget-html-content").last
        button = cell.get_by_role("button", name=re.compile("Upload"))

        def uploaded(name: str, content: bytes) -> str:
            before = answer.inner_html()
            upload(button, content, name)
            return changed(answer, before)

        def pasted(content: bytes) -> str:
            before = answer.inner_html()
            paste(cell.get_by_label("Paste a picture"), content)
            return changed(answer, before)

        red = uploaded("red.png", png("red"))
        assert "<img" in red and red.count("<tr>") == 2
        assert "✗ cut.png is damaged or cut short" in uploaded("cut.png", png("red")[:60])
        blue = pasted(png("blue"))
        assert "<img" in blue and blue.count("<tr>") == 2 and blue != red
        assert uploaded("red.png", png("red")) == red
        assert pasted(png("blue")) == blue
        choice = cell.locator("select")
        expect(choice).to_have_value("")
        before = answer.inner_html()
        choice.select_option("drawn dog")
        assert changed(answer, before) not in (red, blue)
        # 14.5 MB, more than a server takes unless told to
        assert "<img" in uploaded("photo.bmp", noise(2200))


# Films

# from black to white, each frame taking its time
FILM = """
import threading, time, torch
from utils import widgets
from utils.device import seed

log = []
seconds = widgets.slider("Seconds", 0.2, 0.0, 1.0)
def frames(seconds):
    log.append("opened")
    try:
        for i in range(100):
            for _ in range(10):
                torch.randn(200, 200) @ torch.randn(200, 200)
                time.sleep(seconds / 10)
            yield torch.full((1, 3, 32, 32), i / 99)
    finally:
        log.append("closed")

widgets.film([seconds], frames, "From black to white.", steps=100, strip=5)
"""
SEEN = """
seed(0)
time.sleep(1)
print(log, torch.rand(1).item(), [t.name for t in threading.enumerate() if "play" in t.name])
"""


@pytest.fixture(scope="module")
def film(lab):
    lesson = lab("notebooks/film", FILM, SEEN)
    with explained(lesson):
        assert lesson.page.evaluate(RUN_ALL) is True
    return lesson


def frame_of(cell, meant) -> int:
    """The number of the frame that a film shows, once it is as meant."""
    for _ in range(600):
        shown = re.search(r"frame (\d+) of 100", cell.inner_text())
        if shown and meant(int(shown[1])):
            return int(shown[1])
        time.sleep(0.1)
    raise AssertionError(f"the film shows {cell.inner_text()[-300:]}")


def test_a_film_starts_stops_and_lets_other_cells_run(film):
    page = film.page
    with explained(film):
        cell = film.scrolled(0)
        start, stop = (cell.get_by_role("button", name=name) for name in ("Start", "Stop"))
        expect(stop).to_be_disabled()
        alone = page.evaluate(RUN_ONE, 1)
        assert alone.startswith("[] 0.") and alone.endswith(" []\n")
        number = alone.split()[1]

        def run_another() -> str:
            """A cell runs while the film plays: promptly, and as if there were none."""
            began = time.monotonic()
            said = page.evaluate(RUN_ONE, 1)
            assert time.monotonic() - began < 5 and f" {number} " in said
            return said

        start.click()
        before = frame_of(cell, lambda n: n > 1)
        expect(stop).to_be_enabled()
        bar = cell.get_by_role("progressbar", name="Frames")
        expect(bar).to_have_attribute("max", "100")
        expect(cell.get_by_role("img", name="Picture 1 of frame 1", exact=True)).to_be_visible()
        assert "['opened']" in run_another()
        frame_of(cell, lambda n: n > before + 3)  # goes on by itself
        stop.click()
        expect(cell).to_contain_text(re.compile(r"Stopped after \d+ frames\."), timeout=5_000)
        assert "['opened', 'closed']" in (said := run_another()) and said.endswith(" []\n")

        start.click()
        before = frame_of(cell, lambda n: n > 5)
        start.click()
        frame_of(cell, lambda n: n < before)  # begins anew
        page.evaluate("jupyterapp.commands.execute('kernelmenu:interrupt')")
        expect(cell).to_contain_text("Stopped after", timeout=5_000)
        said = run_another()
        assert f"{['opened', 'closed'] * 3}" in said and said.endswith(" []\n")

        retype(cell.get_by_label("Seconds", exact=True), "0")
        start.click()
        expect(cell).to_contain_text("Done: 100 frames.")
        image = cell.get_by_role("img", name="Picture 1 of frame 100", exact=True)
        expect(image).to_have_js_property("naturalWidth", 32)
        expect(stop).to_be_disabled()


def test_a_cell_run_again_stops_its_film(film):
    page = film.page
    with explained(film):
        page.evaluate(RUN_ONE, 0)
        cell = film.scrolled(0)
        cell.get_by_role("button", name="Start").click()
        frame_of(cell, lambda n: n > 1)
        page.evaluate(RUN_ONE, 0)
        said = page.evaluate(RUN_ONE, 1)
        assert "['closed']" in said and said.endswith(" []\n")  # the new log has its end
        cell = film.scrolled(0)
        expect(cell).not_to_contain_text(" of 100")
        for fault in ("Error displaying widget", "model not found", "Traceback"):
            expect(cell).not_to_contain_text(fault)
