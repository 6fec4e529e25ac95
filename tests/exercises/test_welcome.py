"""Lesson 00: the solution passes, the stub is not tried, mistakes get their hint."""

from fractions import Fraction

import pytest

from tests.exercises.helpers import answer, define, solutions, stubs
from utils.exercises.welcome import check_chance


def test_solution_passes():
    (code,) = solutions("00")
    said = answer(check_chance, define(code, "chance"))
    assert said == ("✓", "among 150 names luck scores 0.7%")


def test_stub_is_not_tried():
    (code,) = stubs("00")
    assert answer(check_chance, define(code, "chance")) == ("○", "not tried yet")


def test_a_fraction_is_right_too():
    assert answer(check_chance, lambda names: Fraction(1, names))[0] == "✓"


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (lambda names: 100 / names, "in percent"),
        (lambda names: names, "turn it over"),
        (lambda names: 1 / (names + 1), "a coin is right half of the time"),
        (lambda names: 1 / (names - 1), "a coin is right half of the time"),
        (lambda names: 1 // names, "a coin is right half of the time"),
        (lambda names: 0.5, "always right"),
        (lambda names: 1 / names if names < 9 else 0, "drops the fraction"),
        (lambda names: 1 / names**2 * min(names, 2), "one guess in 150"),
        (lambda names: 1 / ("a" + names), "TypeError"),
    ],
)
def test_plausible_mistakes_get_their_hint(wrong, hint):
    mark, message = answer(check_chance, wrong)
    assert mark == "✗" and hint in message
