"""Widgets that answer a question: controls on top, one live answer or film under them.

A widget never shows a traceback: what goes wrong is one red line. The stored page shows
the sentence given as `about`; the controls appear when the cell runs.
"""

import asyncio
import base64
import contextlib
import difflib
import html
import io
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import ipywidgets
from IPython import get_ipython
from IPython.display import display
from torch import Tensor

from utils import device, pictures, plots

MAX_TEXT = 500
MAX_SENTENCE = 280
MAX_UPLOAD = 1024  # pixels on the longer side; larger pictures are scaled down to it


def slider(label: str, value, low, high):
    """A slider with a labelled number box beside it; read `.value` of what is returned.

    Whole numbers if `value` is one, else about a hundred steps, of a power of ten. The
    box is the accessible name of the pair.
    """
    whole = isinstance(value, int)
    make_handle = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    make_box = ipywidgets.BoundedIntText if whole else ipywidgets.BoundedFloatText
    step = 1 if whole else 10 ** round(math.log10((high - low) / 100))
    limits = {"value": value, "min": low, "max": high, "step": step}
    handle = make_handle(**limits, readout=False, continuous_update=False)
    number = make_box(**limits, description=label, layout={"width": "15em"})
    number.style.description_width = "initial"
    ipywidgets.link((handle, "value"), (number, "value"))
    number.view = ipywidgets.HBox([number, handle])
    return number


def text(label: str, value: str, lines: int = 1):
    """A text field; `live` is told when the learner presses Enter or leaves the field."""
    make = ipywidgets.Text if lines == 1 else ipywidgets.Textarea
    field = make(value, description=label, continuous_update=False, layout={"width": "90%"})
    field.style.description_width = "initial"
    if lines > 1:
        field.rows = lines
    return field


def choice(label: str, options, value=None):
    """A drop-down list; options are names or (name, value) pairs, or some of each."""
    options = [o if isinstance(o, tuple) else (str(o), o) for o in options]
    field = ipywidgets.Dropdown(options=options, description=label, layout={"width": "24em"})
    field.style.description_width = "initial"
    if value is not None:
        field.value = value
    return field


# Reads a picture from the clipboard in the browser, at most 512 pixels wide or high, and
# hands it to the hidden text field beside it.
PASTE = """<input placeholder="or paste one here (Ctrl+V)" aria-label="Paste a picture"
onpaste="const item = [...event.clipboardData.items].find(i => i.type.startsWith('image/'));
event.preventDefault(); if (item) createImageBitmap(item.getAsFile()).then(picture => {
const scale = Math.min(1, 512 / Math.max(picture.width, picture.height));
const page = document.createElement('canvas');
page.width = Math.max(1, picture.width * scale);
page.height = Math.max(1, picture.height * scale);
page.getContext('2d').drawImage(picture, 0, 0, page.width, page.height);
const field = this.closest('.paste').querySelector('.pasted input');
field.value = page.toDataURL('image/png');
field.dispatchEvent(new Event('change', {bubbles: true})); })">"""


def upload(instead_of=None):
    """An upload button and, beside it, a field to paste into; `live` passes on the picture.

    instead_of: a `choice` of pictures. The one used last counts: a picture given here leaves
    the choice without a value, None, and a choice empties the button.
    """
    button = ipywidgets.FileUpload(description="Upload a picture", accept="image/*", multiple=False)
    button.layout.width = "14em"
    pasted = ipywidgets.Text(continuous_update=False, layout={"display": "none"})
    pasted.add_class("pasted")

    def take(change) -> None:
        if not change["new"]:
            return
        name = "The pasted picture"
        data = change["new"].rpartition(",")[2]
        try:
            content = base64.b64decode(data, validate=True)
        except ValueError:
            content = b"no picture"  # answered as any file that is none
        file = {"name": name, "type": "image/png", "size": len(content), "content": content}
        button.value = ({**file, "last_modified": datetime.now(UTC)},)
        pasted.value = ""  # so that the same picture is news when it is pasted again

    def take_turns(change) -> None:
        if change["owner"] is instead_of:
            if change["new"] is not None:
                button.value = ()
        elif change["new"]:
            instead_of.value = None
        elif instead_of.value is None:  # the button was emptied, and nothing chosen
            instead_of.index = 0

    pasted.observe(take, names="value")
    if instead_of is not None:
        for field in (button, instead_of):
            field.observe(take_turns, names="value")
    button.pasted = pasted
    button.view = ipywidgets.HBox([button, ipywidgets.HTML(PASTE), pasted])
    button.view.add_class("paste")
    return button


def uploaded(button) -> Tensor | None:
    """The picture in an upload button, (3, H, W), or None. Raises PictureError."""
    if not button.value:
        return None
    file = button.value[0]
    return pictures.read(file["content"], file["name"], MAX_UPLOAD)


def prompts(value: str, most: int = 100) -> list[str]:
    """Typed prompts, one a line or separated by semicolons, cleaned. Raises ValueError.

    A comma separates none, for a prompt may hold one: see `hint`.
    """
    return entries(value, ";；", "prompt", most)


def labels(value: str, most: int = 100) -> list[str]:
    """Typed labels, separated by lines, semicolons or commas, Chinese ones too, cleaned."""
    return entries(value, ";；,，、", "label", most)


def entries(value: str, separators: str, what: str, most: int) -> list[str]:
    """What stands between the separators or on lines of its own. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"The {what}s are a {type(value).__name__}; type them as one text.")
    parts = re.split(f"[\n{separators}]", "\n".join(value.splitlines()))
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise ValueError(f"There is no text yet; type a {what}.")
    if len(found) > most:
        raise ValueError(f"{len(found)} {what}s are more than the {most} shown; delete some.")
    long = next((part for part in found if len(part) > MAX_TEXT), None)
    if long:
        raise ValueError(f"A {what} has {len(long)} characters; shorten it to {MAX_TEXT}.")
    return found


def hint(prompts: list[str]) -> str:
    """A line of HTML where one prompt with commas stands alone and several may be meant."""
    if len(prompts) > 1 or not re.search("[,，、]", prompts[0]):
        return ""
    return "<p>This is one prompt. If several are meant, put semicolons between them.</p>"


def known(typed: list[str], names: Iterable[str], what: str) -> list[str]:
    """The names meant, as they are spelt among `names`; case does not count.

    Raises ValueError that says which names come nearest to one that is not there.
    """
    spelt = {name.casefold(): name for name in names}
    for word in typed:
        if word.casefold() not in spelt:
            near = difflib.get_close_matches(word.casefold()[:40], spelt, 3, 0.4) or list(spelt)[:3]
            near = ", ".join(spelt[name] for name in near)
            raise ValueError(f"There is no {what} {word[:40]!r}; try {near}.")
    return [spelt[word.casefold()] for word in typed]


def live(controls: list, draw: Callable[..., str], about: str) -> None:
    """Show `controls` and under them the HTML that `draw(*values)` returns, kept up to date.

    An upload button is passed on as the picture it holds. Errors become one red line.
    """
    answer = ipywidgets.HTML()

    def update(_=None):
        try:
            answer.value = draw(*values(controls))
        except Exception as error:
            answer.value = red(sentence(error))

    for control in controls:
        control.observe(update, names="value")
    update()
    show(ipywidgets.VBox([*views(controls), answer]), about)


def values(controls: list) -> list:
    """What the controls hold; an upload button, its picture or None. Raises PictureError."""
    return [
        uploaded(control) if isinstance(control, ipywidgets.FileUpload) else control.value
        for control in controls
    ]


def views(controls: list) -> list:
    return [getattr(control, "view", control) for control in controls]


def progress(items: Iterable, name: str) -> Iterator:
    """Yield the items and show how many are done, in a cell that takes long.

    What is stored on the page is one line, the same on every machine.
    """
    items, view = list(items), ipywidgets.HTML()
    show(view, f"Progress of {name}.")
    for done in range(len(items) + 1):
        said = html.escape(f"{name}: {done} of {len(items)} done")
        view.value = bar(done, len(items), name) + said
        if done < len(items):
            yield items[done]
    print(f"{name}: {len(items)} done")


def bar(done: int, total: int, name: str) -> str:
    return f'<progress max="{total}" value="{done}" aria-label="{html.escape(name)}"></progress> '


# ---------------------------------------------------------------- films


def film(
    controls: list,
    frames: Callable[..., Iterator],
    about: str,
    *,
    steps=None,
    strip: int = 0,
    size: int = 160,
) -> None:
    """Show `controls`, Start and Stop, and the pictures that `frames(*values)` yields.

    frames: a generator function. It yields pictures (B, 3, H, W) in [0, 1], the last being
    the result, or (pictures, score): then those with the highest score are the result.
    steps: how many frames there will be, where that is known: a number, or one of the
    controls. strip: shows the way there as well, in at most so many small frames.

    Start takes the controls as they are; pressed again, it begins anew. Stop, or the
    kernel's interrupt button, ends a film after the frame it is at and closes the generator.
    One film plays at a time, and it waits while a cell runs. Errors become one red line.
    """
    if _film and _film.about == about:  # this cell was run before
        _film.stop()
    show(Film(controls, frames, about, steps, strip, size).view, about)


END = object()
REDRAW = 0.1  # seconds from one picture on the page to the next, at least
_film = None  # the one started last; no other plays
_cells = 0  # how many run
_turn = threading.Condition()  # frames and cells take turns, for both draw, seed and train


class Film:
    """The widget of `film`. A thread makes the frames, so that Stop is heard meanwhile.

    The thread ends with its film. What a generator leaves switched between two frames, such
    as `torch.no_grad()`, is switched for its thread alone.
    """

    def __init__(self, controls: list, frames, about: str, steps, strip: int, size: int):
        self.controls, self.frames, self.about = controls, frames, about
        self.steps, self.strip, self.size = steps, strip, size
        self.start_button = ipywidgets.Button(description="Start", button_style="primary")
        self.stop_button = ipywidgets.Button(description="Stop", disabled=True)
        self.start_button.on_click(self.start)
        self.stop_button.on_click(self.stop)
        self.line, self.screen, self.way = (ipywidgets.HTML() for _ in range(3))
        buttons = ipywidgets.HBox([self.start_button, self.stop_button])
        self.view = ipywidgets.VBox([*views(controls), buttons, self.line, self.screen, self.way])
        self.run = self.thread = None

    def start(self, _=None) -> None:
        global _film
        before = None
        if _film:
            _film.stop()
            before = _film.thread
        _film, self.run = self, object()  # this run is on until something replaces it
        self.thread = threading.Thread(target=self.play, args=(self.run, before), daemon=True)
        self.thread.start()
        heed_interrupts()

    def stop(self, _=None) -> None:
        self.run = None

    def play(self, run: object, before: threading.Thread | None) -> None:
        if before:
            before.join()
        self.stop_button.disabled = False
        self.screen.value = self.way.value = ""
        self.line.value = "waiting for the first frame …"
        try:
            self.line.value = self.project(run)
        except BaseException as error:  # SystemExit, too: a thread has no one else to tell
            self.line.value = red(sentence(error))
        self.stop_button.disabled = True

    def project(self, run: object) -> str:
        """Show frame after frame and, in the end, the result; returns what to say then."""
        total = getattr(self.steps, "value", self.steps)
        last = best = None
        way, stride, drawn = [], 1, 0.0
        try:
            with contextlib.closing(self.shots(run)) as shots:
                for count, (pictures, score) in enumerate(shots, 1):
                    last = Shot(count, pictures, score)
                    if score is not None and (best is None or score > best.score):
                        best = last
                    if self.strip and (count - 1) % stride == 0:
                        small = "<br>".join(last.thumbnails(self.size * 2 // 5))
                        way.append(f"<div style='display:inline-block'>{small}</div>")
                        if len(way) > self.strip:
                            way, stride = way[::2], 2 * stride
                        self.way.value = "".join(way)
                    if time.monotonic() - drawn > REDRAW:
                        drawn = time.monotonic()
                        self.screen.value = "".join(last.thumbnails(self.size))
                        self.line.value = place(last, best, total)
        finally:
            if last:
                self.screen.value = "".join((best or last).thumbnails(self.size))
        stopped = self.run is not run
        if not (last or stopped):
            raise ValueError("No frame came; choose other settings.")
        count = last.number if last else 0
        ending = f"{'Stopped after' if stopped else 'Done:'} {count} frame{'s' * (count != 1)}."
        return ending + (f" The best is shown: {best}." if best else "")

    def shots(self, run: object) -> Iterator[tuple[Tensor, float | None]]:
        """Pictures and score of every frame, each made while no cell runs."""
        made = (lambda: (yield from self.frames(*values(self.controls))))()
        try:
            while True:
                device.share_cores()
                with _turn:
                    while _cells and self.run is run:
                        _turn.wait(0.1)
                    frame = next(made, END) if self.run is run else END
                if frame is END:
                    return
                yield checked(frame)
        finally:
            with _turn:
                made.close()


@dataclass(frozen=True)
class Shot:
    """A frame of a film: its number, counted from 1, its pictures (B, 3, H, W), its score."""

    number: int
    pictures: Tensor
    score: float | None

    def __str__(self) -> str:
        return f"frame {self.number}" + ("" if self.score is None else f", score {self.score:.3g}")

    def thumbnails(self, size: int) -> list[str]:
        return [
            thumbnail(picture, size, f"Picture {i} of {self}")
            for i, picture in enumerate(self.pictures, 1)
        ]


def checked(frame) -> tuple[Tensor, float | None]:
    """What a generator yielded as pictures of its own, for it may change them, and score."""
    pictures, score = frame if isinstance(frame, tuple) and len(frame) == 2 else (frame, None)
    shape = getattr(pictures, "shape", ())
    if not isinstance(pictures, Tensor) or len(shape) != 4 or shape[1] != 3 or 0 in shape:
        seen = tuple(shape) or f"a {type(pictures).__name__}"
        raise ValueError(f"A frame is {seen}; yield pictures (B, 3, H, W).")
    score = None if score is None else float(score)
    if not pictures.isfinite().all() or not math.isfinite(score or 0):
        raise ValueError("A frame holds what is no number; choose gentler settings.")
    return pictures.detach().to("cpu", copy=True), score


def place(last: Shot, best: Shot | None, total: int | None) -> str:
    """How far a film is, as HTML."""
    line, best_line = str(last), f"; best so far: {best}" if best else ""
    if not total:
        return line + best_line
    total = max(total, last.number)
    number = f"{last.number} of {total}"
    return bar(last.number, total, "Frames") + line.replace(str(last.number), number, 1) + best_line


def heed_interrupts() -> None:
    """Let the kernel's interrupt button stop a film: between cells, a kernel ignores it."""
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may
    with contextlib.suppress(RuntimeError):  # no loop: no kernel
        # soon, for now the kernel has set its own way, and will put back the old one
        asyncio.get_running_loop().call_soon(signal.signal, signal.SIGINT, lambda *_: _film.stop())


def cell_starts(_) -> None:
    global _cells
    with _turn:
        _cells += 1
    device.share_cores()


def cell_ends(_) -> None:
    global _cells
    with _turn:
        _cells = max(0, _cells - 1)  # the start of the cell that imports this went unseen


if shell := get_ipython():
    shell.events.register("pre_run_cell", cell_starts)
    shell.events.register("post_run_cell", cell_ends)


# ---------------------------------------------------------------- pieces


def show(widget, about: str) -> None:
    """Display a widget whose stored form is one sentence instead of its state."""
    bundle = widget._repr_mimebundle_(include=None, exclude=None)
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    display(bundle | {"text/plain": f"[{about} Run this cell to use it.]"}, raw=True)


def sentence(error: Exception) -> str:
    """An error as one line for a person."""
    first = (str(error).strip().splitlines() or [""])[0]
    first = first if len(first) <= MAX_SENTENCE else first[: MAX_SENTENCE - 1] + "…"
    return first if isinstance(error, ValueError) and first else f"{type(error).__name__}: {first}"


def red(message: str) -> str:
    return f'<p style="color:{plots.COLOURS["wrong"]}">✗ {html.escape(message)}</p>'


def thumbnail(picture: Tensor, size: int = 96, alt: str = "") -> str:
    """(3, H, W) → an `<img>` that carries its own bytes."""
    buffer = io.BytesIO()
    image = pictures.to_pil(picture)
    image.thumbnail((4 * size, 4 * size))
    image.save(buffer, "WEBP", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/webp;base64,{data}" height="{size}" alt="{html.escape(alt)}" '
        'style="background:white;margin:2px">'
    )


def captioned(shown, labels: list[str], size: int = 72) -> str:
    """Pictures side by side, and under them their labels in one line; (N, 3, H, W) or a list."""
    images = [thumbnail(*pair) for pair in zip(shown, [size] * len(labels), labels, strict=True)]
    return f"<p>{''.join(images)}</p><p>{html.escape(', '.join(labels))}</p>"


def bars(names: list[str], values, colour: str = "shared", form: str = "{:.0%}") -> str:
    """Horizontal bars as HTML; values in [0, 1]."""
    rows = []
    for name, value in zip(names, values, strict=True):
        width = 100 * max(0.0, min(1.0, float(value)))
        rows.append(
            f"<tr><td style='text-align:right;padding-right:8px'>{html.escape(name)}</td>"
            f"<td style='width:60%'><div style='background:{plots.COLOURS[colour]};height:1em;"
            f"width:{width:.1f}%'></div></td><td>{form.format(float(value))}</td></tr>"
        )
    return f"<table style='width:100%;max-width:640px'>{''.join(rows)}</table>"


def matrix(rows: list[str], columns: list[str], values, notes) -> str:
    """A table of values in [0, 1], the larger the darker; `notes` stand small under them.

    rows: R heads as HTML, such as thumbnails; columns: C heads as text; values, notes: (R, C).
    """
    ink = bytes.fromhex(plots.COLOURS["shared"].removeprefix("#"))
    heads = "".join(f"<th style='text-align:center'>{html.escape(name)}</th>" for name in columns)
    lines = [f"<tr><td></td>{heads}</tr>"]
    for head, numbers, small in zip(rows, values, notes, strict=True):
        cells = []
        for _, value, note in zip(columns, numbers, small, strict=True):
            value = max(0.0, min(1.0, float(value)))
            shade = bytes(round(255 + value * (part - 255)) for part in ink).hex()
            cells.append(
                f"<td style='text-align:center;min-width:5em;background:#{shade};"
                f"color:{'white' if value > 0.5 else 'black'}'>"
                f"{value:.0%}<br><small>{float(note):.2f}</small></td>"
            )
        lines.append(f"<tr><td>{head}</td>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"
