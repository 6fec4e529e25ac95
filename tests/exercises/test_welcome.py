"""Lesson 00: answers that must be refused, each with its hint, and others that are right."""

from fractions import Fraction

from tests.exercises.helpers import answer, solutions

LESSON = "00"
GIVEN = {}

WRONG = [
    ("chance", lambda names: 100 / names, "in percent"),
    ("chance", lambda names: names, "turn it over"),
    ("chance", lambda names: 1 / (names + 1), "a coin is right half of the time"),
    ("chance", lambda names: 1 / (names - 1), "a coin is right half of the time"),
    ("chance", lambda names: 1 // names, "a coin is right half of the time"),
    ("chance", lambda names: 0.5, "always right"),
    ("chance", lambda names: 1 / names if names < 9 else 0, "drops the fraction"),
    ("chance", lambda names: 1 / names**2 * min(names, 2), "one guess in 150"),
    ("chance", lambda names: 1 / ("a" + names), "TypeError"),
    ("chance", lambda names: [1 / names], "return one number"),
    ("chance", lambda names: f"{1 / names}", "return one number"),
    ("chance", lambda names: {1: 1.0, 2: 0.5}.get(names, 1 / 150), "one guess in"),
]
RIGHT = [("chance", lambda names: Fraction(1, names))]


def test_luck_is_shown_as_a_share():
    (code,) = solutions(LESSON)
    assert answer("welcome", "chance", code) == ("✓", "among 150 names luck scores 0.7%")
