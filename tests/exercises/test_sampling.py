"""Lesson 11: answers that must be refused, each with its hint, and other right forms."""

from utils.bricks import sampling

LESSON = "11"
GIVEN = vars(sampling)

SEVERAL = """
def several(free, asked, weights):
    return free + sum(w * (a - free) for a, w in zip(asked, weights))
"""
RESCALED = """
def rescaled(guided, asked, share=0.7):
    wanted, found = asked.flatten(1).std(1), guided.flatten(1).std(1)
    return guided * spread(share * wanted / found + 1 - share, guided)
"""
SLOPE = """
def next_slope(slopes):
    n = len(slopes)
    places = -torch.arange(n, dtype=torch.float64)
    powers = torch.arange(n, dtype=torch.float64)
    weights = torch.linalg.solve(places ** powers[:, None], 1 / (powers + 1))
    return sum(w * s for w, s in zip(weights.tolist(), reversed(slopes)))
"""
WALKED = "[free := free + w * (a - free) for a, w in zip(asked, weights)][-1]"
ALL = "free + sum(w * (a - free) for a, w in zip(asked, weights))"
MIX = "guided * spread(share * wanted / found + 1 - share, guided)"

WRONG = [
    ("several", SEVERAL, ALL, "sum(w * a for a, w in zip(asked, weights))", "a sum of answers"),
    ("several", SEVERAL, "free + sum(", "0 * free + sum(", "start it at `free`"),
    ("several", SEVERAL, "(a - free)", "a", "weight the *difference*"),
    ("several", SEVERAL, ALL, f"({ALL} - free) / max(1, len(asked)) + free", "add them up"),
    ("several", SEVERAL, ALL, WALKED, "not at the last"),
    ("several", SEVERAL, "w * (", "abs(w) * (", "walks away"),
    ("several", SEVERAL, "(a - free)", "(free - a)", "free + Σ"),
    ("rescaled", RESCALED, "share * wanted / found + 1 - share",
     "(1 - share) * wanted / found + share", "the shares are turned"),
    ("rescaled", RESCALED, "share * wanted / found + 1 - share", "wanted / found",
     "mix it with the unscaled"),
    ("rescaled", RESCALED, MIX, "guided * (share * asked.std() / guided.std() + 1 - share)",
     "a deviation of its own"),
    ("rescaled", RESCALED, "wanted / found", "found / wanted", "wanted over found"),
    ("rescaled", RESCALED, MIX,
     "guided * (share * asked.std((2, 3), keepdim=True)"
     " / guided.std((2, 3), keepdim=True) + 1 - share)",
     "not one a channel"),
    ("rescaled", RESCALED, ".std(1)", ".var(1)", "take their roots"),
    ("rescaled", RESCALED, "+ 1 - share", "- share", "another mixture"),
    ("next_slope", SLOPE, "return sum(", "return slopes[-1] + 0 * sum(", "the newest one alone"),
    ("next_slope", SLOPE, "-torch.arange", "torch.arange", "*behind*"),
    ("next_slope", SLOPE, "1 / (powers + 1)", "torch.ones(n, dtype=torch.float64)",
     "at the end of the step"),
    ("next_slope", SLOPE, "return sum(", "if n > 2: return sum(slopes) / n\n    return sum(",
     "look ahead"),
    ("next_slope", SLOPE, "reversed(slopes)", "slopes", "stands last"),
    ("next_slope", SLOPE, "n = len(slopes)", "slopes = slopes[-2:]; n = len(slopes)",
     "there are more"),
    ("next_slope", SLOPE, "n = len(slopes)", "slopes = slopes[-3:]; n = len(slopes)",
     "with 4 slopes"),
]  # fmt: skip

RIGHT = [
    ("several", """
def several(free, asked, weights):
    way = torch.zeros_like(free)
    for answer, weight in zip(asked, weights):
        way += weight * (answer - free)
    return free + way
"""),
    ("rescaled", """
def rescaled(guided, asked, share=0.7):
    std = lambda x: x.std((1, 2, 3), keepdim=True)
    scaled = guided * (std(asked) / std(guided))
    return torch.lerp(guided, scaled, share)
"""),
    ("next_slope", """
def next_slope(slopes):
    tables = [[1], [3, -1], [23, -16, 5], [55, -59, 37, -9]]
    table, below = tables[len(slopes) - 1], [1, 2, 12, 24][len(slopes) - 1]
    return sum(w * s for w, s in zip(table, slopes[::-1])) / below
"""),
]  # fmt: skip
