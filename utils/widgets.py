"""Widgets that answer a question: controls on top, one live answer under them.

A widget never shows a traceback: what goes wrong is one red line. The stored page shows
the sentence given as `about`; the controls appear when the cell runs.
"""

import base64
import html
import io
from collections.abc import Callable
from datetime import UTC, datetime

import ipywidgets
from IPython.display import display
from torch import Tensor

from utils import pictures, plots

MAX_TEXT = 500
MAX_SENTENCE = 280


def slider(label: str, value, low, high):
    """A slider with a labelled number box beside it; read `.value` of what is returned.

    Whole numbers if `value` is one. The box is the accessible name of the pair.
    """
    whole = isinstance(value, int)
    make_handle = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    make_box = ipywidgets.BoundedIntText if whole else ipywidgets.BoundedFloatText
    step = 1 if whole else (high - low) / 100
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
    button = ipywidgets.FileUpload(
        description="Upload a picture", accept="image/*", multiple=False
    )
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
    return pictures.read(file["content"], file["name"])


def prompts(value: str, most: int = 100) -> list[str]:
    """Typed prompts, one a line or separated by semicolons, cleaned. Raises ValueError."""
    lines = [line.strip() for line in value.replace(";", "\n").splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError("There is no text yet; type a prompt.")
    if len(lines) > most:
        raise ValueError(f"{len(lines)} prompts are more than the {most} shown; delete some.")
    long = next((line for line in lines if len(line) > MAX_TEXT), None)
    if long:
        raise ValueError(f"A prompt has {len(long)} characters; shorten it to {MAX_TEXT}.")
    return lines


def live(controls: list, draw: Callable[..., str], about: str) -> None:
    """Show `controls` and under them the HTML that `draw(*values)` returns, kept up to date.

    An upload button is passed on as the picture it holds. Errors become one red line.
    """
    answer = ipywidgets.HTML()

    def values():
        for control in controls:
            yield uploaded(control) if isinstance(control, ipywidgets.FileUpload) else control.value

    def update(_=None):
        try:
            answer.value = draw(*values())
        except Exception as error:
            answer.value = red(sentence(error))

    for control in controls:
        control.observe(update, names="value")
    update()
    views = [getattr(control, "view", control) for control in controls]
    show(ipywidgets.VBox([*views, answer]), about)


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
