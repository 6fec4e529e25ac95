"""The blank of lesson 00, which builds no brick: one small function to try the checks on."""

import functools
import sys

from utils import data
from utils.practice import Checks

check = Checks(sys.modules[__name__])


@functools.cache
def glossy() -> data.Pairs:
    return data.load_emoji("train").where(skin_tone="none").where(style="fluent")


def found(word: str, fields=("label_en", "label_zh", "keywords_en", "keywords_zh"), inside=False):
    """The rows of the glossy pictures that have this word in one of these fields."""
    hits = []
    for i in range(len(glossy())):
        row = glossy().row(i)
        texts = [row[f] for f in fields if isinstance(row[f], str)]
        texts += [text for f in fields if not isinstance(row[f], str) for text in row[f]]
        if any(word in text for text in texts) if inside else word in texts:
            hits.append(i)
    return hits


def matches(word: str) -> list[int]:
    """What the notebook goes on with until the learner's own is right."""
    return found(word)


check.function(
    "matches",
    "Go through `range(len(glossy))`. `glossy.row(i)` is a dictionary: `label_en` and `label_zh` "
    "are texts, `keywords_en` and `keywords_zh` are lists of texts. `in` says whether a list holds "
    "a text.",
    lambda generator: [("猫",), ("cat",), ("cat face",), ("drink",), ("something to drink",)],
    {
        "`in` looks inside words here: a cat is found in `education`; compare whole keywords": (
            lambda word: found(word, inside=True)
        ),
        "only labels are compared; keywords count as well": (
            lambda word: found(word, ("label_en", "label_zh"))
        ),
        "only keywords are compared; a label counts as well": (
            lambda word: found(word, ("keywords_en", "keywords_zh"))
        ),
        "only English is compared; Chinese counts as well": (
            lambda word: found(word, ("label_en", "keywords_en"))
        ),
        "the Chinese keywords are left out": (
            lambda word: found(word, ("label_en", "label_zh", "keywords_en"))
        ),
        "the English keywords are left out": (
            lambda word: found(word, ("label_en", "label_zh", "keywords_zh"))
        ),
        "these are labels; the numbers of their rows are asked for": (
            lambda word: [glossy().table["label_en"][i] for i in found(word)]
        ),
        "this is how many there are; a list of their rows is asked for": (
            lambda word: len(found(word))
        ),
    },
)
