"""Every exercise: its solution passes, its stub is "not tried", mistakes get their own hint."""

import functools

import numpy as np
import pytest
import torch

from tests.exercises import helpers
from utils.exercises import is_stub

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
RIGHT = [(noun, *row) for noun, module in MODULES.items() for row in module.RIGHT]


def held(value, number, row):
    """A result in which other types hold the same: every number, every tuple and list."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    if isinstance(value, list | tuple):
        return row(value)
    return value


FORMS = {
    "numpy": (np.asarray, lambda row: np.asarray(row) if plain(row) else list(row)),
    "numpy's scalars": (lambda x: np.asarray(x)[()], list),
    "tensors": (torch.tensor, lambda row: torch.tensor(row) if plain(row) else list(row)),
    "tensors with one entry": (lambda x: torch.tensor([x]), list),
    "lists": (lambda x: x, list),
    "tuples": (lambda x: x, tuple),
}


def plain(row) -> bool:
    return all(isinstance(x, int | float) for x in row)


def id_of(value):
    return value if isinstance(value, str) and value.isidentifier() else ""


@pytest.mark.parametrize("noun, name, stub, solution", EXERCISES, ids=id_of)
def test_solution_is_right(noun, name, stub, solution):
    assert helpers.answer(noun, name, solution)[0] == "✓"


@pytest.mark.parametrize("noun, name, stub, solution", EXERCISES, ids=id_of)
def test_stub_is_not_tried(noun, name, stub, solution):
    assert helpers.answer(noun, name, stub) == ("○", "not tried yet")


@pytest.mark.parametrize(
    "body", ["...", "pass", '"""What it does."""\n    ...', "raise NotImplementedError"]
)
def test_a_body_that_does_nothing_is_not_tried(body):
    code = f"def chance(names):\n    {body}\n"
    assert helpers.answer("welcome", "chance", code) == ("○", "not tried yet")


@pytest.mark.parametrize("answer", [lambda n: 1, lambda n: print(n), lambda n: [n][:] and None])
def test_what_does_something_is_no_stub(answer):
    assert not is_stub(answer)


@pytest.mark.parametrize("noun, name, stub, solution", EXERCISES, ids=id_of)
def test_a_forgotten_return_is_told_from_a_stub(noun, name, stub, solution):
    function = helpers.define(solution, name, MODULES[noun].GIVEN)

    def forgot(*given):
        function(*given)

    mark, message = helpers.answer(noun, name, forgot)
    assert mark == "✗" and "`return` missing" in message


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("noun, name, stub, solution", EXERCISES, ids=id_of)
def test_right_however_it_is_held(noun, name, stub, solution, form):
    function = helpers.define(solution, name, MODULES[noun].GIVEN)

    @functools.wraps(function)
    def other(*given):
        return held(function(*given), *FORMS[form])

    assert helpers.answer(noun, name, other)[0] == "✓"


@pytest.mark.parametrize("row", RIGHT, ids=lambda row: "-".join(row[:2]))
def test_another_right_answer_passes(row):
    assert helpers.answer(*row)[0] == "✓", helpers.answer(*row)


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
