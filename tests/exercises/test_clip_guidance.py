"""Lesson 12: answers that must be refused, each with its hint, and other right forms."""

import re

from utils.bricks import clip_guidance

LESSON = "12"
GIVEN = vars(clip_guidance) | {"re": re}

SCHEDULE = """
def schedule(text):
    found = []
    for part in text.split("+"):
        match = re.fullmatch(r"\\[(\\d+)\\]\\*(\\d+)", part.replace(" ", ""))
        if not match:
            raise ValueError(f"{part!r} is no part like [12]*400")
        value, times = match.groups()
        found += [int(value)] * int(times)
    return found
"""
SYMMETRY = """
def symmetry(x, upto, t):
    apart = (x - x.flip(3)).square().mean((1, 2, 3))
    return apart if t >= upto else 0 * apart
"""
SLOPE = """
def cheap_slope(slope0, signal):
    return slope0 / spread(signal, slope0).sqrt()
"""

WRONG = [
    ("schedule", "def schedule(text):\n    return eval(text)", "raise ValueError"),
    ("schedule", SCHEDULE, "[int(value)] * int(times)", "[value] * int(times)", "whole numbers"),
    ("schedule", SCHEDULE, "[int(value)] * int(times)", "[int(value)]", "as often as it says"),
    ("schedule", SCHEDULE, "re.fullmatch", "re.match", "is no schedule"),
    ("schedule", SCHEDULE, "return found", "return found[::-1]", "you returned"),
    ("schedule", SCHEDULE, "raise ValueError(f", "raise TypeError(f", "was TypeError"),
    ("schedule", SCHEDULE, "raise ValueError(f\"{part!r} is no part like [12]*400\")", "continue",
     "is no schedule"),
    ("symmetry", SYMMETRY, "flip(3)", "flip(2)", "left and right"),
    ("symmetry", SYMMETRY, "square()", "abs()", "square them"),
    ("symmetry", SYMMETRY, "mean((1", "sum((1", "take means"),
    ("symmetry", SYMMETRY, "mean((1, 2, 3))", "mean()", "its own number"),
    ("symmetry", SYMMETRY, "t >= upto", "t > upto", "still count"),
    ("symmetry", SYMMETRY, "t >= upto", "t < upto", "large t"),
    ("symmetry", SYMMETRY, "apart if t >= upto else 0 * apart", "apart", "should be zeros"),
    ("symmetry", SYMMETRY, "else 0 * apart", "else 0 * apart.sum()", "give zeros"),
    ("symmetry", SYMMETRY, "(x - x.flip(3))", "(x - x.flip(3)).detach()", "no gradient"),
    ("cheap_slope", SLOPE, "slope0 / spread(signal, slope0).sqrt()", "slope0", "by x̂₀"),
    ("cheap_slope", SLOPE, "slope0 / ", "slope0 * ", "other way round"),
    ("cheap_slope", SLOPE, ".sqrt()", "", "not by ᾱ"),
    ("cheap_slope", SLOPE, "slope0 / spread(signal, slope0).sqrt()",
     "-slope0 * (1 / spread(signal, slope0) - 1).sqrt()", "held fixed"),
]  # fmt: skip
RIGHT = [
    ("schedule", "def schedule(text):\n    if not re.fullmatch("
     "r'\\s*\\[\\d+\\]\\s*\\*\\s*\\d+\\s*(\\+\\s*\\[\\d+\\]\\s*\\*\\s*\\d+\\s*)*', "
     "text.replace('[ ', '[').replace(' ]', ']')):\n        raise ValueError(text)\n"
     "    return [int(v) for v, n in re.findall(r'(\\d+)\\s*\\]\\s*\\*\\s*(\\d+)', text) "
     "for _ in range(int(n))]"),
    ("symmetry", "def symmetry(x, upto, t):\n    n = x.shape[3]\n"
     "    m = x[..., torch.arange(n - 1, -1, -1)]\n"
     "    return (t >= upto) * F.mse_loss(x, m, reduction='none').flatten(1).mean(1)"),
    ("cheap_slope", "def cheap_slope(slope0, signal):\n"
     "    return slope0 * signal.rsqrt()[:, None, None, None]"),
]  # fmt: skip
