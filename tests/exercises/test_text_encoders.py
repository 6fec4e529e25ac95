"""Lesson 02: answers that must be refused, each with its hint."""

import math

import torch.nn.functional as F

from utils.bricks import text_encoders

LESSON = "02"
# what a learner has at hand at the end of the lesson
GIVEN = vars(text_encoders) | {"math": math, "F": F}

PADDING = """
def padding_mask(ids, end):
    places = torch.arange(ids.shape[1])
    padding = places > end_positions(ids, end)[:, None]
    return torch.zeros(ids.shape).masked_fill(padding, -torch.inf)[:, None]
"""
NEIGHBOURS = """
def neighbours(table, i, k):
    units = table / table.norm(dim=1, keepdim=True)
    cosines = units @ units[i]
    cosines[i] = -torch.inf
    return cosines.topk(k).indices.tolist()
"""
PARTS = """
def in_parts(ids, context, start, end):
    room = context - 2
    begins = range(0, max(1, len(ids)), room)
    return [[start, *ids[i : i + room], end] for i in begins]
"""
WINDOW = """
def window_mask(length, width):
    place = torch.arange(length)
    back = place[:, None] - place
    seen = (back >= 0) & (back < width)
    return torch.zeros(length, length).masked_fill(~seen, -torch.inf)
"""
NEEDED = """
def merges_needed(texts, merges, target):
    for n in range(len(merges) + 1):
        t = Tokenizer(merges[:n])
        if sum(len(t.encode(text)) for text in texts) / len(texts) <= target:
            return n
    return None
"""

WRONG = [
    ("padding_mask", PADDING, "places > ", "places >= ", "the first END belongs"),
    ("padding_mask", PADDING, "[:, None]\n", "\n", "your code raised"),
    ("padding_mask", PADDING, "-torch.inf)[:, None]", "-torch.inf)", "one row for each prompt"),
    ("padding_mask", PADDING, "-torch.inf", "-1.0", "leaks through"),
    ("padding_mask", PADDING, "padding, -torch.inf", "~padding, -torch.inf", "the first END"),
    ("padding_mask", PADDING, "return ", "return (places <= 0)[None, None] & ~padding[:, None]\n"
     "    ", "0.0 and -inf"),
    ("padding_mask", PADDING, "return ", "return padding[:, None] * -torch.inf\n    ", "NaN"),
    ("padding_mask", PADDING, "places > end_positions(ids, end)[:, None]", "ids == end",
     "the first END"),
    ("padding_mask", PADDING, "end_positions(ids, end)[:, None]",
     "ids.shape[1] - 1 - (ids == end).flip(1).int().argmax(-1, keepdim=True)", "after the first"),
    ("padding_mask", PADDING, "return ", "padding = padding | (places == 0)\n    return ",
     "both ways"),
    ("neighbours", NEIGHBOURS, "    cosines[i] = -torch.inf\n", "", "leave it out"),
    ("neighbours", NEIGHBOURS, "table / table.norm(dim=1, keepdim=True)", "table", "long vectors"),
    ("neighbours", NEIGHBOURS, "units @ units[i]", "-(table - table[i]).norm(dim=1)", "distance"),
    ("neighbours", NEIGHBOURS, "units @ units[i]", "-units @ units[i]", "farthest"),
    ("neighbours", NEIGHBOURS, ".tolist()", ".tolist()[::-1]", "the nearest comes first"),
    ("neighbours", NEIGHBOURS, "topk(k)", "topk(k - 1)", "ids, the nearest first"),
    ("neighbours", NEIGHBOURS, "norm(dim=1", "norm(dim=0", "are nearest to"),
    ("in_parts", PARTS, "context - 2", "context", "START and END count"),
    ("in_parts", PARTS, "max(1, len(ids))", "len(ids)", "without tokens there is one row"),
    ("in_parts", PARTS, "[start, *ids[i : i + room], end]", "ids[i : i + room]", "begins with"),
    ("in_parts", PARTS, "max(1, len(ids))", "max(1, len(ids) - room + 1)", "fell away"),
    ("in_parts", PARTS, "max(1, len(ids))", "len(ids) + 1", "is empty"),
    ("in_parts", PARTS, "context - 2", "max(1, context - 3)", "fit into"),
    ("in_parts", PARTS, "in begins]", "in reversed(begins)]", "in the order given"),
    ("in_parts", PARTS, "return [[start, *ids[i : i + room], end] for i in begins]",
     "return [start, *ids, end]", "list of rows"),
    ("window_mask", WINDOW, "back < width", "back <= width", "yours sees 3"),
    (
        "window_mask",
        WINDOW,
        "place[:, None] - place",
        "place - place[:, None]",
        "comes after",
    ),
    (
        "window_mask",
        WINDOW,
        "(back >= 0) & (back < width)",
        "back.abs() < width",
        "comes after",
    ),
    ("window_mask", WINDOW, "back >= 0", "back > 0", "0 on the diagonal"),
    ("window_mask", WINDOW, "-torch.inf", "-1.0", "leaks through"),
    ("window_mask", WINDOW, "return ", "return seen\n    ", "0.0 and -inf"),
    ("window_mask", WINDOW, "return ", "return ~seen * -torch.inf\n    ", "NaN"),
    ("window_mask", WINDOW, "(length, length)", "(1, length, length)", "not (5, 5)"),
    ("window_mask", WINDOW, "back < width", "back < 2", "plain causal mask"),
    ("window_mask", WINDOW, "back < width", "back <= width // 2", "yours sees 2"),
    ("window_mask", "def window_mask(n, w):\n    return [[0.0] * n] * n", "not a list"),
    ("window_mask", WINDOW, "-torch.inf)", "-torch.inf).numpy()", "not a ndarray"),
    ("window_mask", WINDOW, "-torch.inf)", "-torch.inf).exp().int()", "0.0 and -inf"),
    ("merges_needed", NEEDED, "<= target", "< target", "one too many"),
    ("merges_needed", NEEDED, "return n\n", "return max(0, n - 1)\n", "one too few"),
    ("merges_needed", NEEDED, "/ len(texts)", "", "you returned None"),
    ("merges_needed", NEEDED, "merges[:n]", "merges[-n:]", "the first merges"),
    ("merges_needed", NEEDED, "return None", "return len(merges)", "cannot be had"),
    ("merges_needed", NEEDED, "range(len", "range(1, len", "bytes alone"),
    ("merges_needed", NEEDED, "return n\n", "return float(n)\n", "is an int"),
]
RIGHT = [
    ("merges_needed", NEEDED),
    ("window_mask", WINDOW.replace("(length, length)", "(length, length).double()")),
    ("window_mask", "def window_mask(n, w):\n    rows = [[0.0 if 0 <= i - j < w else -math.inf "
     "for j in range(n)] for i in range(n)]\n    return torch.tensor(rows)"),
    ("padding_mask", PADDING.replace("(ids.shape)", "(ids.shape).double()")),
    ("padding_mask", "def padding_mask(ids, end):\n    after = (ids == end).cumsum(1) - "
     "(ids == end).int() > 0\n    return torch.where(after, -torch.inf, 0.0).unsqueeze(1)"),
    ("neighbours", NEIGHBOURS.replace(".tolist()", "")),
    ("neighbours", "def neighbours(table, i, k):\n    order = torch.cosine_similarity(table, "
     "table[i : i + 1]).argsort(descending=True)\n    return [j for j in order.tolist() if j != i]"
     "[:k]"),
    ("in_parts", PARTS.replace("[[start", "[(start").replace("end] for", "end) for")),
]  # fmt: skip
