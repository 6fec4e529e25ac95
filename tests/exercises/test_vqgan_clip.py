"""Lesson 09: answers that must be refused, each with its hint, and other right forms."""

import math

from utils.bricks import vqgan_clip

LESSON = "09"
GIVEN = vars(vqgan_clip) | {"math": math}

STOP = """
def with_stop(distances, weight, stop):
    values = weight * distances
    return torch.where(values > stop, values, values.detach()).mean()
"""
VARIATION = """
def total_variation(pictures):
    right = pictures[:, :, :, 1:] - pictures[:, :, :, :-1]
    down = pictures[:, :, 1:] - pictures[:, :, :-1]
    return right.square().mean((1, 2, 3)) + down.square().mean((1, 2, 3))
"""
POWER = """
def power_for(share, least, most, side):
    return math.log((side - least) / (most - least)) / math.log(share)
"""
BEST = """
def best_so_far(frames):
    best = None
    for picture, score in frames:
        if best is None or score > best[1]:
            best = picture.clone(), score
        yield best
"""

WRONG = [
    ("with_stop", STOP, "torch.where(values > stop, values, values.detach())", "values",
     "still pulls"),
    ("with_stop", STOP, "values > stop, values, values.detach()",
     "values > stop, values.detach(), values", "other way round"),
    ("with_stop", STOP, "values.detach())", "torch.zeros_like(values))", "left out of the value"),
    ("with_stop", STOP, "torch.where(values > stop, values, values.detach())",
     "values.clamp(min=stop)", "cut off as well"),
    ("with_stop", STOP, "mean()", "sum()", "take the mean"),
    ("with_stop", STOP, "values > stop, values,", "distances > stop, values,",
     "compare the distance"),
    ("with_stop", STOP, ".mean()", ".mean().detach()", "no gradient"),
    ("with_stop", STOP, ".mean()", ".mean().item()", "return a tensor"),
    ("total_variation", VARIATION, ".square()", ".abs()", "square them"),
    ("total_variation", VARIATION, "mean((1", "sum((1", "take means"),
    ("total_variation", VARIATION, " + down.square().mean((1, 2, 3))", "", "one direction"),
    ("total_variation", VARIATION, "mean((1, 2, 3))", "mean()", "each has its own"),
    ("total_variation", "def total_variation(x):\n    a = (x - x.roll(1, 3)).square()\n"
     "    b = (x - x.roll(1, 2)).square()\n    return (a + b).mean((1, 2, 3))", "wraps round"),
    ("total_variation", VARIATION, "    right", "    pictures = pictures.detach()\n    right",
     "no gradient"),
    ("power_for", POWER, "math.log(share)", "math.log(1 - share)", "*larger*"),
    ("power_for", POWER, "math.log((side - least) / (most - least)) / math.log(share)",
     "math.log(share) / math.log((side - least) / (most - least))", "upside down"),
    ("power_for", POWER, "(side - least) / (most - least)", "side / most", "take it away"),
    ("power_for", POWER, "math.log((side - least) / (most - least)) / math.log(share)",
     "(most - least) / (side - least) - 1", "is the mean"),
    ("best_so_far", BEST, "picture.clone()", "picture", "keep a copy"),
    ("best_so_far", BEST, "score > best", "score >= best", "earlier stays"),
    ("best_so_far", BEST, "score > best", "score < best", "lowest"),
    ("best_so_far", BEST, "        yield best", "    yield best", "yield in each turn"),
    ("best_so_far", BEST.replace("        yield best", "    return [best]"), "no generator"),
]  # fmt: skip
RIGHT = [
    ("with_stop", "def with_stop(d, weight, stop):\n    v = weight * d\n"
     "    live = (v > stop).float()\n    return (v * live + v.detach() * (1 - live)).mean()"),
    ("with_stop", "def with_stop(d, w, s):\n    v = w * d\n    m = v.clamp(min=s)\n"
     "    return (m + (v - m).detach()).mean()"),
    ("total_variation", "def total_variation(x):\n    return sum(x.diff(dim=i).square()"
     ".flatten(1).mean(1) for i in (2, 3))"),
    ("power_for", POWER.replace("math.log(share)", "math.log(share)").replace(
        "return ", "return torch.tensor(").rstrip() + ")"),
    ("best_so_far", "def best_so_far(frames):\n    kept = []\n    for p, s in frames:\n"
     "        if not kept or s > kept[1]:\n            kept = [p.clone(), s]\n"
     "        yield tuple(kept)"),
]  # fmt: skip
