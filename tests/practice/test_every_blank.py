"""Every blank: the brick passes, the stub is "not tried", mistakes are told by what differs."""

import pytest
import torch

from tests.practice import helpers
from tools.practice import blank_out, find, has_blanks

BLANKS = [(noun, key) for noun in helpers.nouns() for key in helpers.check(noun).blanks]
BRICKS = list(dict.fromkeys((noun, key.split(".")[0]) for noun, key in BLANKS))
WRONG = [(noun, *row) for noun in helpers.nouns() for row in helpers.module(noun).WRONG]
RIGHT = [(noun, *row) for noun in helpers.nouns() for row in helpers.module(noun).RIGHT]


def id_of(value):
    return "-".join(value[:2]) if isinstance(value, tuple) else value


@pytest.mark.parametrize("noun, name", BRICKS, ids=id_of)
def test_the_brick_is_right_and_goes_on(noun, name):
    before = torch.random.get_rng_state()
    lines, answer, chosen = helpers.choose(noun, name, helpers.whole(noun, name))
    keys = [key for key in helpers.check(noun).blanks if key.split(".")[0] == name]
    assert [line.split(":")[0] for line in lines] == [f"✓ {key}" for key in keys]
    assert chosen is answer and answer is not helpers.check(noun).shipped(name)
    assert torch.random.get_rng_state().equal(before)  # the lesson draws what it would have drawn


@pytest.mark.parametrize("noun, name", BRICKS, ids=id_of)
def test_without_an_answer_the_shipped_brick_goes_on(noun, name):
    shipped = helpers.check(noun).shipped(name)
    keys = [key for key in helpers.check(noun).blanks if key.split(".")[0] == name]
    lines, _, chosen = helpers.choose(noun, name, blank_out(helpers.whole(noun, name), keys))
    assert lines == [f"○ {key}: not tried yet" for key in keys] and chosen is shipped
    lines, _, chosen = helpers.choose(noun, name, "this is no Python")
    assert all("did its cell run without an error?" in line for line in lines) and chosen is shipped
    again = f"{name} = check.shipped({name!r})"  # the check's cell was run twice
    lines, _, chosen = helpers.choose(noun, name, again)
    assert all(line.startswith("○") and "nothing new" in line for line in lines)
    assert chosen is shipped


@pytest.mark.parametrize("noun, key", BLANKS, ids=id_of)
def test_no_answer_ends_in_a_traceback(noun, key):
    for body, hint in {
        "pass": "",
        "return 42.5": "",
        "raise ValueError('no luck')": "your code raised ValueError: no luck",
        "raise SystemExit": "your code raised SystemExit",
        "return undefined": "name 'undefined' is not defined",
    }.items():
        line = helpers.verdict(noun, key, helpers.filled(noun, key, body))
        assert line.startswith(f"✗ {key}: ") and hint in line and len(line) < 320
    name = key.split(".")[0]
    for code in (
        f"{name} = 3",
        f"{name} = torch.zeros(2)",
        f"class {name}: ...",
        f"def {name}(): ...",
    ):
        line = helpers.verdict(noun, key, f"import torch\n{code}")
        assert line.startswith(f"✗ {key}: ") and "your code raised" not in line


@pytest.mark.parametrize("row", WRONG, ids=id_of)
def test_a_mistake_is_told_by_what_differs(row):
    noun, key, *given, hint = row
    line = helpers.verdict(noun, key, helpers.answer(noun, key, *given))
    assert line.startswith("✗") and hint in line


@pytest.mark.parametrize("row", RIGHT, ids=id_of)
def test_another_form_is_as_right(row):
    noun, key, *given = row
    assert helpers.verdict(noun, key, helpers.answer(noun, key, *given)).startswith("✓")


def test_one_blank_of_a_class_is_right_before_the_others():
    """Each is judged as if the others were; the class goes on when all are."""
    code = helpers.whole("clip", "CLIP")
    code = blank_out(code, ["CLIP.encode_image", "CLIP.clamp_scale"])
    lines, answer, chosen = helpers.choose("clip", "CLIP", code)
    assert [line[0] for line in lines] == ["○", "✓", "✓", "○"]
    assert chosen is helpers.check("clip").shipped("CLIP") and chosen is not answer


def test_what_surrounds_a_blank_must_stay():
    code = helpers.whole("image_encoders", "Attention")
    for old, new, hint in [
        ("3 * width)", "3 * width, bias=False)", "`qkv.bias` of a new module is missing"),
        (
            "self.heads = heads",
            "self.heads, self.k = heads, nn.Linear(2, 2)",
            "of a new module is new",
        ),
        ("nn.Linear(width, width)", "nn.Linear(width, width).double()", "the dtype is float64"),
        ("def forward(self, x", "def forward(self, tokens, x", "its arguments are (self, tokens"),
        ("def forward(", "def backward(", "`forward` is gone"),
    ]:
        assert old in code
        line = helpers.verdict("image_encoders", "Attention.forward", code.replace(old, new))
        assert line.startswith("✗") and hint in line, line


@pytest.mark.parametrize("noun, key", BLANKS, ids=id_of)
def test_at_least_three_mistakes_are_refused(noun, key):
    assert sum(row[:2] == (noun, key) for row in WRONG) >= 3


@pytest.mark.parametrize("noun", helpers.nouns())
def test_a_lesson_has_three_to_eight_blanks(noun):
    """Lesson 00, which builds no brick, has one to try. Each stands in one tagged cell."""
    blanks = helpers.check(noun).blanks
    assert len(blanks) == 1 if noun == "welcome" else 3 <= len(blanks) <= 8
    assert all(helpers.brick(noun, key) for key in blanks)
    tagged = [cell.source for cell in helpers.code_cells(noun) if has_blanks(cell)]
    assert all(any(find(source, key) for key in blanks) for source in tagged)
