"""A real browser runs lessons in JupyterLab, and types, uploads and pastes as a learner does."""

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
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from utils.paths import ROOT

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium; install Debian's package chromium"),
]
MINUTE = 60_000  # in milliseconds, as Playwright counts
expect.set_options(timeout=MINUTE)
WELCOME, PROMPTING = "00_welcome", "04_zero_shot_prompting"

RUN_ALL = """async () => {
    await jupyterapp.restored;
    const panel = jupyterapp.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    return await Promise.race([
        jupyterapp.commands.execute('notebook:run-all-cells'),
        new Promise(done => setTimeout(() => done('late'), 600_000)),
    ]);
}"""
SOURCES = """() => jupyterapp.shell.currentWidget.content.widgets.map(
    cell => cell.model.sharedModel.getSource())"""
ERRORS = """() => jupyterapp.shell.currentWidget.content.widgets.flatMap(
    cell => cell.model.outputs ? cell.model.outputs.toJSON() : []).filter(
    output => output.output_type === 'error').map(output => output.ename + output.evalue)"""
SCROLL = "i => jupyterapp.shell.currentWidget.content.scrollToItem(i, 'smart')"
PASTE = """(field, data) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], 'pasted.png', {type: 'image/png'}));
    const event = new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true});
    field.dispatchEvent(event);
}"""


@dataclass
class Lesson:
    """A notebook in the browser, all of its cells run."""

    page: object
    log: Path
    said: list[str] = field(default_factory=list)

    def cell(self, pattern: str):
        """The first cell whose source has the pattern, scrolled into view."""
        found = [re.search(pattern, source) for source in self.page.evaluate(SOURCES)]
        assert any(found), f"no cell has {pattern}"
        return self.scrolled(next(i for i, match in enumerate(found) if match))

    def scrolled(self, i: int):
        self.page.evaluate(SCROLL, i)  # what is out of sight may not be in the page
        shown = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")  # others may be open
        cell = shown.locator(f'.jp-Cell[data-windowed-list-index="{i}"]')
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
def lessons(tmp_path_factory):
    """A function from a lesson's name to the lesson, opened and run once."""
    folder = tmp_path_factory.mktemp("course")
    for name in ("tools", "utils", "notebooks", "assets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ("pyproject.toml", "constraints.txt"):  # the machine check reads them
        shutil.copy(ROOT / path, folder)
    config = folder / ".jupyter" / "config" / "jupyter_lab_config.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"LabApp": {"expose_app_in_browser": true}}', encoding="utf-8")
    opened = {}
    server, address, token = serve(folder)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )

            def lesson(name: str) -> Lesson:
                if name not in opened:
                    opened[name] = run(browser, f"{address}/lab", name, token, folder)
                return opened[name]

            yield lesson
            browser.close()
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def run(browser, address: str, name: str, token: str, folder: Path) -> Lesson:
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(MINUTE)
    lesson = Lesson(page, folder / "log.txt")
    page.on("console", lambda message: lesson.said.append(f"{message.type}: {message.text}"))
    page.on(
        "response",
        lambda got: lesson.said.append(f"{got.status}: {got.url}") if got.status >= 400 else None,
    )
    page.on("pageerror", lambda error: lesson.said.append(f"uncaught: {error}"))
    path = f"notebooks/{name}.ipynb"
    with explained(lesson):
        # a workspace of its own: else each page reopens and saves what the others hold
        page.goto(f"{address}/workspaces/{name}/tree/{path}?token={token}", timeout=3 * MINUTE)
        page.wait_for_function(
            "path => window.jupyterapp?.shell.currentWidget?.context?.path === path",
            arg=path,
            timeout=3 * MINUTE,
        )
        done = page.evaluate(RUN_ALL)
        assert done is True, (done, page.evaluate(ERRORS))
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


def changed(answer, before: str) -> str:
    """The HTML of an answer once it is another."""
    for _ in range(600):
        if (now := answer.inner_html()) != before:
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


@pytest.mark.parametrize("name", [WELCOME, PROMPTING])
def test_every_widget_and_picture_shows(name, lessons):
    lesson = lessons(name)
    with explained(lesson):
        for i, source in enumerate(lesson.page.evaluate(SOURCES)):
            cell = lesson.scrolled(i)
            for fault in ("Error displaying widget", "model not found", "Traceback"):
                expect(cell).not_to_contain_text(fault)
            for image in cell.locator("img").all():
                expect(image).not_to_have_js_property("naturalWidth", 0)
            if "widgets.live(" in source:
                answer = cell.locator(".widget-html-content").last
                expect(answer).not_to_be_empty()
                expect(answer).not_to_contain_text("✗")
                expect(cell).not_to_contain_text("Run this cell to use it")


@pytest.mark.parametrize(
    "name, label, words, seen",
    [
        (WELCOME, "keyword", "drink", "beer mug"),
        (PROMPTING, "Prompts", "a red apple\nseven wild dogs", "seven wild dogs"),
        (PROMPTING, "Search", "猫", "cat"),
    ],
)
def test_typing_changes_the_answer(name, label, words, seen, lessons):
    lesson = lessons(name)
    with explained(lesson):
        box, answer = lesson.widget(label)
        count, before = len(lesson.page.evaluate(SOURCES)), answer.inner_html()
        expect(answer).not_to_contain_text(seen)
        retype(box, words)
        expect(answer).to_contain_text(seen)
        expect(answer).not_to_contain_text("✗")
        assert answer.inner_html() != before and answer.locator("img").count() > 0
        assert len(lesson.page.evaluate(SOURCES)) == count  # no key went to the notebook


@pytest.mark.parametrize("name, label", [(WELCOME, "keyword"), (PROMPTING, "Prompts")])
@pytest.mark.parametrize("words", ["", "zzzz " * 120])
def test_a_typed_fault_is_one_red_line_and_can_be_mended(name, label, words, lessons):
    lesson = lessons(name)
    with explained(lesson):
        box, answer = lesson.widget(label)
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


def test_a_picture_is_uploaded_or_pasted(lessons):
    lesson = lessons(PROMPTING)
    with explained(lesson):
        cell = lesson.cell(r"widgets\.upload\(")
        answer = cell.locator(".widget-html-content").last
        button = cell.get_by_role("button", name=re.compile("Upload"))

        def upload(name: str, content: bytes) -> str:
            before = answer.inner_html()
            with lesson.page.expect_file_chooser() as chooser:
                button.click()
            file = {"name": name, "mimeType": "image/png", "buffer": content}
            chooser.value.set_files(file)
            return changed(answer, before)

        def paste(content: bytes) -> str:
            before = answer.inner_html()
            box = cell.get_by_label("Paste a picture")
            box.evaluate(PASTE, base64.b64encode(content).decode())
            return changed(answer, before)

        red = upload("red.png", png("red"))
        assert "<img" in red and red.count("<tr>") == 2
        assert "✗ cut.png is damaged or cut short" in upload("cut.png", png("red")[:60])
        blue = paste(png("blue"))
        assert "<img" in blue and blue.count("<tr>") == 2 and blue != red
        assert upload("red.png", png("red")) == red
        assert paste(png("blue")) == blue
        choice = cell.locator("select")
        expect(choice).to_have_value("")
        before = answer.inner_html()
        choice.select_option("drawn dog")
        assert changed(answer, before) not in (red, blue)
        # 14.5 MB, more than a server takes unless told to
        assert "<img" in upload("photo.bmp", noise(2200))


def test_every_slider_and_choice_changes_the_answer(lessons):
    lesson = lessons(PROMPTING)
    with explained(lesson):
        retype(lesson.widget("Prompts")[0], "red heart\ntruck")  # one bar has no shares
        moved = []
        for i, source in enumerate(lesson.page.evaluate(SOURCES)):
            if "widgets.live(" not in source:
                continue
            cell = lesson.scrolled(i)
            answer = cell.locator(".widget-html-content").last
            for control in cell.locator("select, .noUi-handle").all():
                before = answer.inner_html()
                if control.evaluate("node => node.tagName") == "SELECT":
                    other = control.evaluate("node => (node.selectedIndex + 1) % node.length")
                    control.select_option(index=other)
                    moved.append("choice")
                else:
                    control.focus()
                    control.press("ArrowRight")
                    moved.append("slider")
                now = changed(answer, before)
                # only OpenAI's weights may be missing
                assert "✗" not in now or "openai/clip-vit-base-patch32 is not on disk" in now
        assert moved.count("choice") == 5 and moved.count("slider") == 1
