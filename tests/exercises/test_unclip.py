"""Lesson 15: answers that must be refused, each with its hint, and other right forms."""

from utils.bricks import unclip

LESSON = "15"
GIVEN = vars(unclip)

BEST = """
from itertools import combinations

def mean_best(scores, n):
    choices = combinations(range(scores.shape[1]), n)
    best = [scores[:, list(columns)].amax(1) for columns in choices]
    return torch.stack(best).mean().item()
"""
REPEATED = """
from itertools import product

def mean_best(scores, n):
    choices = product(range(scores.shape[1]), repeat=n)
    best = [scores[:, list(columns)].amax(1) for columns in choices]
    return torch.stack(best).mean().item()
"""
MIDDLE = """
def middle(vectors, steps):
    m = vectors[0]
    for _ in range(steps):
        dots = (vectors @ m).clamp(-1, 1)
        arrows = F.normalize(vectors - dots[:, None] * m, dim=1) * dots.acos()[:, None]
        a = arrows.mean(0)
        m = F.normalize(a.norm().cos() * m + a.norm().sin() * F.normalize(a, dim=0), dim=0)
    return m
"""
LOST = """
def lost_at(dim, scaled, signal):
    size = 1.0 if scaled else dim**-0.5
    return ((1 - signal).sqrt() > signal.sqrt() * size).int().argmax().item()
"""
TAKEN = "scores[:, list(columns)].amax(1)"
STACKED = "torch.stack(best).mean().item()"

WRONG = [
    ("mean_best", BEST, STACKED, "scores[:, :n].amax(1).mean().item()", "the first n alone"),
    ("mean_best", BEST, STACKED, "scores.amax(1).mean().item()", "the best of C"),
    ("mean_best", BEST, STACKED, "scores.mean().item()", "the mean score"),
    ("mean_best", BEST, "amax", "amin", "the worst of n"),
    ("mean_best", BEST, STACKED, "torch.stack(best).mean(0).sum().item()", "not their sum"),
    ("mean_best", BEST, BEST, REPEATED, "different columns"),
    ("mean_best", BEST, STACKED, "torch.stack(best).mean(0)", "return one number"),
    ("middle", MIDDLE, "return m", "return vectors[0]", "the first vector"),
    ("middle", MIDDLE, "return m", "return F.normalize(vectors.mean(0), dim=0)", "as its angle"),
    ("middle", MIDDLE, "return m", "return -m", "away from the others"),
    ("middle", MIDDLE, "return m", "return 2 * m", "length 1"),
    ("middle", MIDDLE, "arrows.mean(0)", "arrows.sum(0)", ""),
    ("middle", MIDDLE, "return m", "return vectors.mean(0)", "length 1"),
    ("lost_at", LOST, "1.0 if scaled else dim**-0.5", "dim**-0.5 if scaled else 1.0",
     "turned round"),
    ("lost_at", LOST, "dim**-0.5", "1 / dim", "not 1/dim"),
    ("lost_at", LOST, "sqrt() >", "sqrt() <", "the signal is larger"),
    ("lost_at", LOST, "(1 - signal).sqrt() > signal.sqrt()", "(1 - signal) > signal",
     "the roots"),
    ("lost_at", LOST, ".item()", ".item() + 1", "begin at 0"),
]  # fmt: skip

RIGHT = [
    ("mean_best", """
from math import comb

def mean_best(scores, n):
    ordered = scores.sort(1).values
    count = scores.shape[1]
    chances = torch.tensor([comb(i, n - 1) / comb(count, n) for i in range(count)])
    return float((ordered * chances).sum(1).mean())
"""),
    ("middle", """
def middle(vectors, steps):
    m = vectors[0]
    for _ in range(steps):
        total = torch.zeros_like(m)
        for v in vectors:
            dot = (v @ m).clamp(-1, 1)
            rest = v - dot * m
            if rest.norm() > 1e-6:
                total += dot.acos() * rest / rest.norm()
        m = m + total / len(vectors)
        m = m / m.norm()
    return m
"""),
    ("lost_at", """
def lost_at(dim, scaled, signal):
    length = dim**0.5 if scaled else 1.0
    for t, left in enumerate(signal.tolist()):
        if (1 - left) ** 0.5 > left**0.5 * length / dim**0.5:
            return t
"""),
]  # fmt: skip
