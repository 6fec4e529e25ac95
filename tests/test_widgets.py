"""Widgets: what a learner types or uploads gives an answer or one red line."""

import base64
import io
import re
from datetime import UTC, datetime

import pytest
import torch
from PIL import Image

from tests.helpers import red_line
from utils import plots, widgets


def message_of(value: str) -> str:
    with pytest.raises(ValueError) as error:
        widgets.prompts(value)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_prompts_stand_on_lines_or_between_semicolons():
    assert widgets.prompts(" a cat; 一只狗\n\n🦊 ;") == ["a cat", "一只狗", "🦊"]


@pytest.mark.parametrize("value", ["", " \t\n", ";;;", "\r\n\u2028"])
def test_no_prompt_is_said(value):
    assert message_of(value) == "There is no text yet; type a prompt."


def test_too_much_text_is_said():
    assert message_of("cat\n" * 101).startswith("101 prompts are more than the 100")
    assert message_of("a " * 100_000).startswith("A prompt has 199999 characters")
    assert len(widgets.prompts("x" * widgets.MAX_TEXT)) == 1


def test_control_characters_and_unknown_scripts_pass():
    value = "\x07bell\x1b[2J;𓂀𓆣;\u202eabc"
    assert widgets.prompts(value) == ["\x07bell\x1b[2J", "𓂀𓆣", "\u202eabc"]


def test_an_answer_follows_its_controls(live):
    field, number = widgets.text("Prompts", "cat"), widgets.slider("Scale", 3, 1, 9)
    answer = live([field, number], lambda text, n: text * n)
    assert answer.value == "catcatcat"
    number.value = 2
    assert answer.value == "catcat"
    field.value = "dog"
    assert answer.value == "dogdog"


@pytest.mark.parametrize("value", ["", "\x00", "x" * 99_999, "cat\n" * 500])
def test_a_typed_fault_is_one_red_line_and_can_be_mended(value, live):
    def draw(text):
        if "\x00" in text:
            raise RuntimeError("first line\nTraceback of something")
        return str(len(widgets.prompts(text)))

    field = widgets.text("Prompts", "cat", lines=3)
    answer = live([field], draw)
    field.value = value
    red_line(answer.value)
    field.value = "cat; dog"
    assert answer.value == "2"


@pytest.mark.parametrize(
    "error, shown",
    [
        (ValueError("There is no cat; type one."), "There is no cat; type one."),
        (ValueError(""), "ValueError: "),
        (RuntimeError("shapes differ\nmore"), "RuntimeError: shapes differ"),
        (KeyError("cat"), "KeyError: &#x27;cat&#x27;"),
        (ZeroDivisionError(), "ZeroDivisionError: "),
        (ValueError("<script>alert(1)</script>"), "&lt;script&gt;alert(1)&lt;/script&gt;"),
    ],
)
def test_any_error_is_one_line_without_markup(error, shown, live):
    def draw():
        raise error

    assert red_line(live([], draw).value) == shown


def file(content: bytes, name: str = "fox.png") -> tuple:
    about = {"name": name, "type": "image/png", "size": len(content)}
    return (about | {"content": memoryview(content), "last_modified": datetime.now(UTC)},)


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_upload_is_passed_on_as_a_picture(live):
    button = widgets.upload()
    answer = live([button], lambda picture: "none" if picture is None else str(picture[0].mean()))
    assert answer.value == "none"
    button.value = file(png())
    assert answer.value == str(torch.tensor(1.0))


@pytest.mark.parametrize(
    "content, cause",
    [(b"", "empty"), (b"<html>", "not a picture"), (png()[:50], "damaged or cut short")],
    ids=["empty", "html", "cut"],
)
def test_a_broken_upload_is_one_red_line_and_can_be_mended(content, cause, live):
    button = widgets.upload()
    answer = live([button], lambda picture: "drawn")
    button.value = file(content, "<b>holiday</b>.png")
    line = red_line(answer.value)
    assert "&lt;b&gt;holiday&lt;/b&gt;.png" in line and cause in line
    button.value = file(png())
    assert answer.value == "drawn"


def test_a_pasted_picture_counts_as_an_upload(live):
    button = widgets.upload()
    answer = live([button], lambda picture: "none" if picture is None else str(picture[0].mean()))
    button.pasted.value = "data:image/png;base64," + base64.b64encode(png()).decode()
    assert answer.value == str(torch.tensor(1.0))
    button.pasted.value = "data:image/png;base64,äöü"
    assert "The pasted picture is not a picture" in red_line(answer.value)
    button.value = file(png())  # the last one given counts
    assert answer.value == str(torch.tensor(1.0))


def test_the_same_picture_can_be_pasted_again_after_another(live):
    button = widgets.upload()
    answer = live([button], lambda picture: "none" if picture is None else str(picture[0].mean()))
    for _ in range(2):
        button.pasted.value = "data:image/png;base64," + base64.b64encode(png()).decode()
        assert answer.value == str(torch.tensor(1.0))
        button.value = file(png("blue"))
        assert answer.value == str(torch.tensor(0.0))


def test_a_picture_of_yours_and_one_chosen_take_turns(live):
    field = widgets.choice("Picture", ["cat", "dog"])
    button = widgets.upload(instead_of=field)
    answer = live([field, button], lambda name, own: name if own is None else f"own, {name}")
    assert answer.value == "cat"
    for name in ("cat", "dog"):
        button.value = file(png())
        assert answer.value == "own, None"  # the list shows no name for it
        field.value = name
        assert answer.value == name and not button.value
    button.value = file(b"no picture")
    assert "not a picture" in red_line(answer.value)
    field.value = "dog"
    assert answer.value == "dog"
    button.value = file(png())
    button.value = ()
    assert answer.value == "cat"


def test_a_slider_has_a_labelled_box_and_limits():
    number = widgets.slider("Scale", 3, 1, 9)
    assert number.description == "Scale"
    box, handle = number.view.children
    assert box is number
    handle.value = 7
    assert number.value == 7
    number.value = 99
    assert number.value == handle.value == 9
    assert widgets.slider("Heat", 0.5, 0.0, 1.0).step == pytest.approx(0.01)


def test_a_choice_starts_where_it_is_told():
    assert widgets.choice("Style", ["noto", "fluent"]).value == "noto"
    assert widgets.choice("Style", [("one", 1), ("two", 2)], 2).value == 2


def test_bars_show_names_as_text_and_values_as_width():
    html = widgets.bars(["<script>", "b"], torch.tensor([0.25, 1.5]))
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "width:25.0%" in html and "width:100.0%" in html  # never wider than the page
    assert "25%" in html and "150%" in html
    with pytest.raises(ValueError):
        widgets.bars(["one"], [0.1, 0.2])


def test_a_matrix_shows_shares_notes_and_shades():
    shares, cosines = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.7, -0.12]])
    html = widgets.matrix(["<img>"], ["<b>", "fox"], shares, cosines)
    cells = re.findall(r"background:(#\w+);color:(\w+)'>(.*?)</td>", html)
    purple = plots.COLOURS["shared"]
    assert cells == [
        (purple, "white", "100%<br><small>0.70</small>"),
        ("#ffffff", "black", "0%<br><small>-0.12</small>"),
    ]
    assert "<img>" in html and "&lt;b&gt;" in html and "<b>" not in html
    with pytest.raises(ValueError, match="zip"):
        widgets.matrix(["one"], ["a"], [[0.1, 0.2]], [[0.1, 0.2]])


def test_results_of_a_search_stand_above_their_names():
    html = widgets.captioned(torch.rand(2, 3, 8, 8), ["fox", "<cat>"], size=50)
    assert html.count("<img") == 2 and html.count('height="50"') == 2
    assert html.endswith("<p>fox, &lt;cat&gt;</p>")
    assert widgets.captioned([], []) == "<p></p><p></p>"
    with pytest.raises(ValueError):
        widgets.captioned(torch.rand(2, 3, 8, 8), ["fox"])


def test_a_thumbnail_carries_its_picture_and_its_words():
    html = widgets.thumbnail(torch.rand(3, 900, 500), 50, alt='a "fox"')
    assert 'src="data:image/webp;base64,' in html and len(html) < 60_000
    assert 'alt="a &quot;fox&quot;"' in html


def test_what_is_stored_is_one_sentence(monkeypatch):
    stored = []
    monkeypatch.setattr(widgets, "display", lambda bundle, raw: stored.append(bundle))
    widgets.live([widgets.text("Prompts", "cat")], lambda text: text, "Bars of a cat.")
    assert stored[0]["text/plain"] == "[Bars of a cat. Run this cell to use it.]"
    assert "application/vnd.jupyter.widget-view+json" in stored[0]
