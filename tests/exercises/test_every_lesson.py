"""Every exercise: its solution passes, its stub is "not tried", mistakes get their own hint."""

import pytest

from tests.exercises import helpers

MODULES = {noun: helpers.module(noun) for noun in helpers.nouns()}
EXERCISES = [
    (noun, name, stub, solution)
    for noun, module in MODULES.items()
    for name, stub, solution in zip(
        helpers.names(module.LESSON),
        helpers.stubs(module.LESSON),
        helpers.solutions(module.LESSON),
        strict=True,
    )
]
WRONG = [(noun, *row) for noun, module in MODULES.items() for row in module.WRONG]


def id_of(value):
    return value if isinstance(value, str) and value.isidentifier() else ""


@pytest.mark.parametrize("noun, name, stub, solution", EXERCISES, ids=id_of)
def test_solution_is_right(noun, name, stub, solution):
    assert helpers.answer(noun, name, solution)[0] == "✓"


@pytest.mark.parametrize("noun, name, stub, solution", EXERCISES, ids=id_of)
def test_stub_is_not_tried(noun, name, stub, solution):
    assert helpers.answer(noun, name, stub) == ("○", "not tried yet")


@pytest.mark.parametrize("row", WRONG, ids=lambda row: "-".join(row[:2]))
def test_wrong_answer_gets_its_own_hint(row):
    noun, name, answer, *change, hint = row
    if change:
        old, new = change
        assert helpers.answer(noun, name, answer)[0] == "✓"  # right until it is spoilt
        assert old in answer
        answer = answer.replace(old, new)
    mark, message = helpers.answer(noun, name, answer)
    assert mark == "✗" and hint in message, (mark, message)


@pytest.mark.parametrize("noun, name, stub, solution", EXERCISES, ids=id_of)
def test_at_least_three_mistakes_are_refused(noun, name, stub, solution):
    assert sum(row[:2] == (noun, name) for row in WRONG) >= 3


def test_a_lesson_has_three_to_five_exercises():
    count = {module.LESSON: len(helpers.names(module.LESSON)) for module in MODULES.values()}
    assert count.pop("00") == 1  # five minutes in all
    assert all(3 <= number <= 5 for number in count.values()), count
    lessons = {path.name[:2] for path in helpers.LESSONS.glob("[0-9][0-9]_*.py")}
    assert lessons == {"00", *count}
