"""Checks of the exercises in lesson 04."""

import numbers
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.exercises import draws, exercise, expect, number, several, whole


def units(*shape: int, seed: int = 0) -> Tensor:
    """Random unit vectors."""
    return F.normalize(draws(*shape, seed=seed), dim=-1)


def indices(answer, length: int) -> list[int]:
    """The answer as whole numbers, whether it is a tensor, an array or a list."""

    def index(value, what):
        kind = str(getattr(value, "dtype", type(value).__name__))
        integer = isinstance(value, numbers.Integral) or "int" in kind
        expect(integer, f"{what}, not {kind.removeprefix('torch.')}")
        return whole(value, what)

    return several(answer, length, f"return {length} whole numbers (N,), one a picture", index)


@exercise("name it")
def check_name_pictures(name_pictures):
    # picture 0 chooses text 0, pictures 1 and 2 choose text 1
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.28, 0.96]])
    texts = torch.tensor([[0.96, 0.28], [0.0, 1.0]])
    answer = name_pictures(images, texts, ["cat", "dog"])
    expect(
        not isinstance(answer, Tensor | str) and all(isinstance(a, str) for a in answer),
        "return names: look each index up in labels",
    )
    answer = list(answer)
    expect(
        len(answer) == 3,
        f"three pictures need three names, you returned {len(answer)}: argmax(1), not argmax(0)",
    )
    expect(
        answer != ["dog", "cat", "cat"],
        "these are the labels that fit worst: take the largest cosine, not the smallest",
    )
    expect(answer == ["cat", "dog", "dog"], f"you returned {answer}, not ['cat', 'dog', 'dog']")
    rng = random.Random(0)
    for seed in range(5):
        n, c, d = rng.randint(2, 30), rng.randint(2, 9), rng.randint(3, 8)
        images, texts = units(n, d, seed=2 * seed), units(c, d, seed=2 * seed + 1)
        labels = [f"label {i}" for i in range(c)]
        right = [labels[i] for i in (images @ texts.T).argmax(1).tolist()]
        found = list(name_pictures(images, texts, labels))
        expect(found == right, f"wrong for {n} random pictures and {c} labels")


@exercise("recall")
def check_recall_at_k(recall_at_k):
    rng = random.Random(0)
    for seed, k in enumerate((1, 3, 5, 2, 4)):
        n, d = (40, 6) if seed < 3 else (rng.randint(20, 60), rng.randint(4, 8))
        queries = units(n, d, seed=3)
        gallery = F.normalize(queries + 1.5 * units(n, d, seed=4 + seed), dim=1)
        ranks = (queries @ gallery.T).argsort(1, descending=True)
        own = torch.arange(n)[:, None]
        answer = number(recall_at_k(queries, gallery, k), "return one number, the share of queries")
        right = (ranks[:, :k] == own).any(1).double().mean().item()
        turned = (gallery @ queries.T).argsort(1, descending=True)[:, :k]
        turned = (turned == own).any(1).double().mean().item()
        if abs(answer - right) < 1e-5:
            continue
        expect(answer <= 1, f"at {k} you returned {answer:g}; a share is the count divided by N")
        expect(
            k == 1 or abs(answer - right / k) > 1e-5,
            f"at {k} you divided by k as well: a query counts once, wherever its item stands",
        )
        expect(
            k == 1 or abs(answer - (ranks[:, :1] == own).double().mean().item()) > 1e-5,
            f"at {k} you returned the recall at 1: look at the first k, not at the best alone",
        )
        expect(
            abs(answer - turned) > 1e-5,
            "the two sides are swapped: a query is a row and chooses from the gallery",
        )
        expect(False, f"at {k} you returned {answer:.3f}, it is {right:.3f}")


@exercise("none of these")
def check_or_none(or_none):
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    # best cosines 1.0, 0.6, 0.96, −0.8; nearest 0, 1, 1, 1
    answer = indices(or_none(images, texts, 0.9), 4)
    expect(
        answer != [-1, 1, -1, 1],
        "turned round: a cosine below the threshold means none, one above it counts",
    )
    expect(
        answer != [0, 1, 1, 1],
        "the threshold changes nothing: the last picture is far from both prompts",
    )
    likeliest = (images @ texts.T).softmax(1).max(1)
    expect(
        answer != torch.where(likeliest.values >= 0.9, likeliest.indices, -1).tolist(),
        "compare the cosine with the threshold; a softmax never says no",
    )
    expect(answer == [0, -1, 1, -1], f"at 0.9 you returned {answer}, not [0, -1, 1, -1]")
    answer = indices(or_none(images, texts, 0.5), 4)
    expect(answer == [0, 1, 1, -1], f"at 0.5 you returned {answer}, not [0, 1, 1, -1]")
    answer = indices(or_none(images[:1], texts, 1.0), 1)
    expect(answer == [0], "a cosine equal to the threshold is not below it")
    rng = random.Random(0)
    for seed in range(5):
        n, c, d = rng.randint(1, 30), rng.randint(1, 9), rng.randint(3, 8)
        images, texts = units(n, d, seed=2 * seed), units(c, d, seed=2 * seed + 1)
        threshold = rng.uniform(-0.3, 0.7)
        best, index = (images @ texts.T).max(1)
        answer = indices(or_none(images, texts, threshold), n)
        expect(
            answer == torch.where(best >= threshold, index, -1).tolist(),
            f"wrong for {n} random pictures, {c} prompts and the threshold {threshold:.2f}",
        )


@exercise("like this, but")
def check_like_this_but(like_this_but):
    rng = random.Random(0)
    cases = []
    for seed in range(200):
        n, d = rng.randint(20, 60), rng.randint(5, 9)
        image, less, more = units(3, d, seed=seed)
        gallery = units(n, d, seed=seed + 1000)

        def index(query, gallery=gallery):
            return (gallery @ query).argmax().item()

        wrong = {
            "the direction is turned: away from `less`, to `more`": index(image + less - more),
            "`less` is missing: take its vector away": index(image + more),
            "`more` is missing: add its vector": index(image - less),
            "the picture is missing: start from `image`": index(more),
            "the prompts change nothing in your query": index(image),
            "this is the item farthest away: take argmax": index(less - image - more),
        }
        right = index(image + more - less)
        if not seed or len({right, *wrong.values()}) > len(wrong):  # no two mistakes look alike
            answer = like_this_but(image, less, more, gallery)
            cases.append((whole(answer, "return one index"), right, wrong))
    for hint in wrong:
        expect(any(answer != mistakes[hint] for answer, _, mistakes in cases), hint)
    expect(
        all(answer == right for answer, right, _ in cases),
        "not the item nearest to image − less + more: add the whole difference, "
        "then normalise the sum",
    )
