"""Widgets: what a learner types or uploads gives an answer or one red line."""

import base64
import io
import re
import threading
import time
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


@pytest.mark.parametrize("value", ["猫；狗", "猫;狗", "猫\n狗", "猫\r\n；\u2028狗；", " 猫 ； 狗 "])
def test_semicolons_of_both_scripts_and_lines_separate_every_list(value):
    assert widgets.prompts(value) == widgets.labels(value) == ["猫", "狗"]


@pytest.mark.parametrize("value", ["cat, dog,coffee", "cat，dog、coffee", "cat; dog, ,coffee,"])
def test_commas_separate_labels_but_not_prompts(value):
    assert widgets.labels(value) == ["cat", "dog", "coffee"]
    assert len(widgets.prompts(value)) == value.count(";") + 1


def test_one_prompt_with_commas_gets_a_hint():
    for comma in ",，、":
        assert "put semicolons between" in widgets.hint([f"cat{comma} dog"])
    assert widgets.hint(["cat, dog", "fox"]) == widgets.hint(["cat"]) == ""


def test_known_labels_ignore_case_and_name_their_neighbours():
    names = {"fox": 1, "French fries": 2, "狐狸": 3, "box": 4}
    assert widgets.known(["Fox", "french FRIES", "狐狸"], names, "picture") == [
        "fox", "French fries", "狐狸"
    ]  # fmt: skip
    with pytest.raises(ValueError) as error:
        widgets.known(["fox", "foxy"], names, "picture")
    assert str(error.value) == "There is no picture 'foxy'; try fox, box."
    with pytest.raises(ValueError, match="; try fox, French fries, 狐狸.$"):
        widgets.known(["𓂀" * 900], names, "picture")


@pytest.mark.parametrize("value", [None, 3, ["cat"], b"cat"])
def test_what_is_no_typed_text_is_one_sentence(value):
    assert "type them as one text" in message_of(value)


@pytest.mark.parametrize("value", ["", " \t\n", ";;;", "\r\n\u2028", "；"])
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


@pytest.mark.parametrize(
    "limits, step", [((0.0, 1.0), 0.01), ((1.0, 4.0), 0.01), ((-6.0, 7.0), 0.1), ((1.0, 99.0), 1.0)]
)
def test_a_slider_of_fractions_goes_in_round_steps(limits, step):
    """From 14 of 1 to 99 the next is 15, not 14.86: a number box counts from its lower end."""
    number = widgets.slider("Heat", limits[1], *limits)
    assert [part.step for part in number.view.children] == [step, step]


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


def test_a_long_loop_shows_how_far_it_is(monkeypatch, capsys):
    views = []
    monkeypatch.setattr(widgets, "show", lambda view, about: views.append((view, about)))
    seen = []
    for item in widgets.progress(iter("abc"), "letters <3"):
        assert capsys.readouterr().out == ""  # nothing is stored until the end
        seen.append((item, text_of(views[0][0].value)))
    assert seen == [(item, f"letters &lt;3: {i} of 3 done") for i, item in enumerate("abc")]
    assert text_of(views[0][0].value) == "letters &lt;3: 3 of 3 done"
    assert views[0][1] == "Progress of letters <3."
    assert capsys.readouterr().out == "letters <3: 3 done\n"
    assert list(widgets.progress([], "nothing")) == []


def test_a_loop_that_fails_does_not_say_done(monkeypatch, capsys):
    monkeypatch.setattr(widgets, "show", lambda view, about: None)
    with pytest.raises(ZeroDivisionError):
        _ = [1 / number for number in widgets.progress([1, 0], "quotients")]
    assert capsys.readouterr().out == ""


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


# ---------------------------------------------------------------- films


def shades(*values):
    """A frame for each value: two grey pictures."""
    for value in values:
        yield torch.full((2, 3, 4, 5), value)


def text_of(html: str) -> str:
    return re.sub("<[^>]+>", "", html).strip()


def shown(film) -> list[float]:
    """The grey of every picture on a film's screen."""
    data = re.findall(r"base64,([^\"]+)", film.screen.value)
    opened = (Image.open(io.BytesIO(base64.b64decode(content))) for content in data)
    return [picture.convert("L").getpixel((0, 0)) / 255 for picture in opened]


def wait_for(what) -> None:
    for _ in range(1000):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to be")


@pytest.fixture
def film(monkeypatch):
    """`widgets.film`, but it returns the film; afterwards none may be playing."""
    made = []
    monkeypatch.setattr(widgets, "show", lambda view, about: None)
    monkeypatch.setattr(widgets, "REDRAW", 0)

    class Kept(widgets.Film):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(widgets, "Film", Kept)

    def start(controls, frames, about="What it shows.", **settings):
        widgets.film(controls, frames, about, **settings)
        return made[-1]

    yield start
    for one in made:
        one.stop()
        if one.thread:
            one.thread.join(10)
            assert not one.thread.is_alive()


def ended(film) -> str:
    """What a film says once its thread has ended."""
    film.thread.join(10)
    assert not film.thread.is_alive() and film.stop_button.disabled
    return film.line.value


def test_a_film_shows_its_last_frame(film):
    one = film([widgets.slider("Light", 0.4, 0.0, 1.0)], lambda light: shades(0.0, 1.0, light))
    assert one.thread is None and one.stop_button.disabled  # nothing runs until Start
    one.start_button.click()
    assert ended(one) == "Done: 3 frames."
    assert shown(one) == pytest.approx([0.4, 0.4], abs=0.02)
    assert 'alt="Picture 2 of frame 3"' in one.screen.value


def test_a_film_shows_the_frame_with_the_highest_score(film):
    def scored():
        yield from zip(shades(0.2, 0.6, 0.9), [-1, torch.tensor(0.25), -3.0], strict=True)

    one = film([], scored)
    one.start()
    assert ended(one) == "Done: 3 frames. The best is shown: frame 2, score 0.25."
    assert shown(one) == pytest.approx([0.6, 0.6], abs=0.02)


def test_stop_ends_a_film_and_closes_its_generator(film):
    closed, gate = [], threading.Event()

    def endless():
        try:
            yield from shades(0.5)
            gate.wait(10)  # a frame that takes its time
            yield from shades(*[1.0] * 10**6)
        finally:
            closed.append(threading.current_thread())

    one = film([], endless, steps=2)
    one.stop_button.click()  # before Start, this says nothing
    one.start_button.click()
    wait_for(lambda: "1 of 2" in one.line.value)
    assert not one.stop_button.disabled and not closed
    one.stop_button.click()
    gate.set()
    assert ended(one) == "Stopped after 2 frames." and closed == [one.thread]
    assert shown(one) == pytest.approx([1.0, 1.0], abs=0.02)


def test_start_pressed_again_begins_anew_with_the_controls_as_they_are(film):
    alive, together, light = [], [], widgets.slider("Light", 0.2, 0.0, 1.0)

    def endless(value):
        alive.append(value)
        together.append(len(alive))
        try:
            while True:
                yield from shades(value)
        finally:
            alive.remove(value)

    one = film([light], endless)
    one.start()
    wait_for(lambda: shown(one))
    light.value = 0.8  # moved while it plays: for the next one
    time.sleep(0.05)
    assert alive == [0.2] and shown(one) == pytest.approx([0.2, 0.2], abs=0.02)
    for _ in range(3):
        one.start()
    wait_for(lambda: shown(one) == pytest.approx([0.8, 0.8], abs=0.02))
    wait_for(lambda: alive == [0.8])  # the last of the three, once the others are gone
    assert set(together) == {1}  # never two at once
    one.stop()
    assert ended(one).startswith("Stopped after") and alive == []


def test_one_film_plays_at_a_time_and_a_cell_run_again_stops_its_own(film):
    def endless():
        while True:
            yield from shades(0.5)

    first, other = film([], endless, "First."), film([], endless, "Other.")
    first.start()
    wait_for(lambda: shown(first))
    other.start()
    assert ended(first).startswith("Stopped")
    wait_for(lambda: shown(other))
    film([], endless, "First.")
    assert other.thread.is_alive() and other.run
    film([], endless, "Other.")
    assert ended(other).startswith("Stopped")


def test_a_film_waits_while_a_cell_runs(film):
    made = []

    def counted():
        for i in range(10**6):
            made.append(i)
            yield from shades(0.5)

    one = film([], counted)
    one.start()
    wait_for(lambda: made)
    widgets.cell_starts(None)  # returns when no frame is in the making
    try:
        before = len(made)
        time.sleep(0.1)
        assert len(made) == before
        one.start()  # as a click does that was waiting for the cell
    finally:
        widgets.cell_ends(None)
    wait_for(lambda: len(made) > before)
    widgets.cell_ends(None)  # the end of a cell whose start went unseen
    assert widgets._cells == 0


def fails():
    yield from shades(0.5)
    raise RuntimeError("shapes differ\nTraceback")


def fails_to_close():
    try:
        yield "a"
    finally:
        raise ValueError("The door is stuck; oil it.")


def leaves():
    raise SystemExit("bye")
    yield


@pytest.mark.parametrize(
    "frames, said",
    [
        (fails, "RuntimeError: shapes differ"),
        (fails_to_close, "The door is stuck; oil it."),
        (leaves, "SystemExit: bye"),
        (lambda: shades(), "No frame came; choose other settings."),
        (lambda: 3, "TypeError: &#x27;int&#x27; object is not iterable"),
        (lambda wrong: shades(), "TypeError: "),
        (lambda: iter([None]), "A frame is a NoneType; yield pictures (B, 3, H, W)."),
        (lambda: iter([(1, 2, 3)]), "A frame is a tuple; yield pictures (B, 3, H, W)."),
        (lambda: torch.ones(1, 3, 4, 4), "A frame is (3, 4, 4); yield pictures (B, 3, H, W)."),
        (lambda: iter([torch.ones(1, 3, 0, 4)]), "A frame is (1, 3, 0, 4); yield"),
        (lambda: iter([torch.full((1, 3, 2, 2), torch.nan)]), "A frame holds what is no number"),
        (lambda: iter([(torch.ones(1, 3, 2, 2), torch.nan)]), "A frame holds what is no number"),
        (lambda: iter([(torch.ones(1, 3, 2, 2), "high")]), "could not convert string to float"),
    ],
)
def test_a_fault_in_a_film_is_one_red_line(frames, said, film, capfd):
    one = film([], frames)
    one.start()
    assert red_line(ended(one)).startswith(said)
    assert capfd.readouterr() == ("", "")


def test_what_a_film_showed_before_a_fault_stays(film):
    one = film([], fails)
    one.start()
    red_line(ended(one))
    assert shown(one) == pytest.approx([0.5, 0.5], abs=0.02)


def test_a_bad_picture_is_one_red_line_and_can_be_mended(film):
    button = widgets.upload()
    one = film([button], lambda picture: iter([picture[None]]))
    button.value = file(png()[:50])
    one.start()
    assert "damaged or cut short" in red_line(ended(one)) and not shown(one)
    button.value = file(png())
    one.start()
    assert ended(one) == "Done: 1 frame." and len(shown(one)) == 1


def test_pictures_of_any_size_type_and_range_show(film):
    def odd():
        yield torch.full((1, 3, 1, 1), 7.0)  # clamped
        yield torch.full((5, 3, 9, 2), 0.5, dtype=torch.bfloat16, requires_grad=True)
        yield torch.full((1, 3, 2, 9), 255, dtype=torch.uint8)

    one = film([], odd, strip=3)
    one.start()
    assert ended(one) == "Done: 3 frames."
    assert shown(one) == [1.0] and one.way.value.count("<img") == 7


def test_a_picture_changed_in_place_does_not_change_the_best(film):
    def in_place():
        picture = torch.zeros(1, 3, 2, 2)
        yield picture, 1.0
        picture.fill_(1.0)
        yield picture, 0.0

    one = film([], in_place)
    one.start()
    assert ended(one).endswith("frame 1, score 1.") and shown(one) == [0.0]


@pytest.mark.parametrize("count, steps", [(1, 1), (9, 9), (40, 9), (100, None)])
def test_a_film_tells_how_far_it_is_and_strips_the_way_evenly(count, steps, film):
    number = widgets.slider("Steps", steps, 1, 99) if steps else None
    said = []

    def counted(*_):
        for frame in shades(*[0.5] * count):
            said.append(one.line.value)
            yield frame

    one = film([number] if steps else [], counted, steps=number, strip=6)
    one.start()
    ended(one)
    assert text_of(said[0]) == "waiting for the first frame …"
    if count > 5:
        assert text_of(said[5]) == ("frame 5 of 9" if steps else "frame 5")
        bar = '<progress max="9" value="5" aria-label="Frames"></progress>'
        assert said[5].startswith(bar) == bool(steps)
    if count == 40:
        assert text_of(said[-1]) == "frame 39 of 39"  # more than was promised
    kept = [int(n) for n in re.findall(r"Picture 1 of frame (\d+)", one.way.value)]
    assert kept[0] == 1 and len(kept) <= 6 and len(kept) >= min(count, 3)
    assert len({b - a for a, b in zip(kept, kept[1:], strict=False)}) <= 1


def test_a_fast_film_does_not_flood_the_page(film, monkeypatch):
    monkeypatch.setattr(widgets, "REDRAW", 0.1)
    one = film([], lambda: shades(*[0.5] * 200))
    drawn = []
    one.screen.observe(drawn.append, names="value")
    began = time.monotonic()
    one.start()
    assert ended(one) == "Done: 200 frames."
    assert len(drawn) <= 3 + (time.monotonic() - began) / 0.1


def test_what_a_generator_leaves_switched_stays_in_its_thread(film):
    seen = []

    def without_gradients():
        with torch.no_grad():
            for frame in shades(0.1, 0.2):
                seen.append(torch.is_grad_enabled())
                yield frame

    one = film([], without_gradients)
    one.start()
    assert ended(one) == "Done: 2 frames." and seen == [False, False]
    assert torch.is_grad_enabled()
