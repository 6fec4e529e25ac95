"""Lesson 00: answers that must be refused, and others that are right."""

from utils.practice.welcome import glossy

LESSON = "00"
GIVEN = {"glossy": glossy()}

INSIDE = 'word in labels + row["keywords_en"] + row["keywords_zh"]'

WRONG = [
    ("matches", INSIDE, f"any(word in text for {INSIDE.replace('word', 'text', 1)})", "whole"),
    ("matches", "labels + row", "row", "only keywords"),
    ("matches", ' + row["keywords_zh"]', "", "Chinese keywords"),
    ("matches", ' + row["keywords_en"] + row["keywords_zh"]', "", "only labels"),
    ("matches", "hits.append(i)", 'hits.append(row["label_en"])', "numbers of their rows"),
    ("matches", "return hits", "return len(hits)", "a list of their rows"),
    ("matches", "return hits", "return tuple(hits)", "a tuple comes back; it is a list"),
    ("matches", "return hits", "hits", "nothing comes back"),
]
RIGHT = [
    (
        "matches",
        """
        table = glossy.table
        columns = [table[name] for name in ("label_en", "label_zh", "keywords_en", "keywords_zh")]
        return [
            i for i, (a, b, c, d) in enumerate(zip(*columns, strict=True))
            if word in (a, b, *c, *d)
        ]
        """,
    ),
]
