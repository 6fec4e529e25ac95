"""Lesson 04: answers that must be refused, each with its hint."""

import numpy as np

from utils.bricks import zero_shot

LESSON = "04"
GIVEN = vars(zero_shot) | {"np": np}  # what a learner has at hand at the end of the lesson

NAME = """
def name_pictures(images, texts, labels):
    best = (images @ texts.T).argmax(1)
    return [labels[i] for i in best.tolist()]
"""
RECALL = """
def recall_at_k(queries, gallery, k):
    found = retrieve(queries, gallery, k)
    own = torch.arange(len(queries))[:, None]
    return (found == own).any(1).float().mean().item()
"""
NONE = """
def or_none(images, texts, threshold):
    cosines = images @ texts.T
    best, index = cosines.max(1)
    return torch.where(best >= threshold, index, -1)
"""
BUT = """
def like_this_but(image, less, more, gallery):
    query = F.normalize(image + more - less, dim=0)
    return (gallery @ query).argmax().item()
"""
WRONG = [
    ("name_pictures", NAME, "argmax(1)", "argmin(1)", "largest cosine"),
    ("name_pictures", NAME, "argmax(1)", "argmax(0)", "not argmax(0)"),
    ("name_pictures", NAME, "[labels[i] for i in best.tolist()]", "best", "look each index up"),
    ("name_pictures", NAME, "for i in best", "for i in [0, 1, 1] or best", "random pictures"),
    ("recall_at_k", RECALL, "any(1)", "sum(1).div(k)", "divided by k"),
    ("recall_at_k", RECALL, "mean()", "sum()", "divided by N"),
    ("recall_at_k", RECALL, "gallery, k)\n    own", "gallery, 1)\n    own", "recall at 1"),
    ("recall_at_k", RECALL, "(queries, gallery, k)\n ", "(gallery, queries, k)\n ", "swapped"),
    ("recall_at_k", RECALL, ".mean().item()", "", "one number"),
    ("or_none", NONE, ">=", "<", "turned round"),
    ("or_none", NONE, "best >= threshold", "best > threshold", "equal to the threshold"),
    ("or_none", NONE, "best >= threshold", "best >= -2", "changes nothing"),
    ("or_none", NONE, "images @ texts.T", "(images @ texts.T).softmax(1)", "never says no"),
    ("or_none", NONE, "torch.where(best >= threshold, index, -1)", "best >= threshold", "whole"),
    ("like_this_but", BUT, "more - less", "less - more", "turned"),
    ("like_this_but", BUT, "more - less", "more", "`less` is missing"),
    ("like_this_but", BUT, "image + more", "image", "`more` is missing"),
    ("like_this_but", BUT, "image + more - less", "image", "change nothing"),
    ("like_this_but", BUT, "argmax", "argmin", "farthest"),
    ("like_this_but", BUT, ".argmax().item()", "", "one index"),
    ("like_this_but", BUT, "more - less", "(more - less) / 2", "the whole difference"),
    ("or_none", NONE, ", index, -1)", ", index, -1).float()", "not float32"),
    ("or_none", NONE, "best >= threshold", "best >= 0.5", "at 0.9 you returned"),
    ("name_pictures", NAME, "[labels[i] for i in best.tolist()]", "'cat'", "return names"),
    ("recall_at_k", RECALL, "(queries, gallery, k)\n", "(queries, gallery, min(k, 3))\n", "at 5"),
    ("like_this_but", BUT, ".argmax().item()", ".argmax().item() + 0.5", "one index"),
]
RIGHT = [
    ("or_none", NONE.replace("return torch.where(best >= threshold, index, -1)",
     "return [i if c >= threshold else -1 for c, i in zip(best.tolist(), index.tolist())]")),
    ("or_none", NONE.replace("index, -1)", "index, -1).int().numpy()")),
    ("or_none", NONE.replace("index, -1)", "index, -1).unbind()")),
    ("name_pictures", NAME.replace("return [", "return np.array([").replace("()]", "()])")),
    ("like_this_but", BUT.replace(".item()", ".numpy()")),
    ("like_this_but", BUT.replace(".argmax()", ".topk(1).indices")),
    ("like_this_but", BUT.replace("query = F.normalize(image + more - less, dim=0)",
     "query = image + more - less")),
]  # fmt: skip
