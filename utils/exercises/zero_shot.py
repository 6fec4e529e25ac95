"""Checks of the exercises in lesson 04."""

import torch
import torch.nn.functional as F

from utils.exercises import exercise, expect, tried


def units(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def numbers(answer, length: int) -> list[int]:
    """The answer as whole numbers, whether it is a tensor or a list."""
    expect(
        isinstance(answer, torch.Tensor | list | tuple) and len(answer) == length,
        f"return {length} numbers, one a picture",
    )
    values = torch.as_tensor(answer)
    expect(
        values.ndim == 1 and not values.is_floating_point() and values.dtype != torch.bool,
        f"return whole numbers (N,), not {values.dtype} of shape {tuple(values.shape)}",
    )
    return values.tolist()


@exercise("name it")
def check_name_pictures(name_pictures):
    # picture 0 chooses text 0, pictures 1 and 2 choose text 1
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.28, 0.96]])
    texts = torch.tensor([[0.96, 0.28], [0.0, 1.0]])
    answer = tried(name_pictures(images, texts, ["cat", "dog"]))
    expect(
        not isinstance(answer, torch.Tensor) and all(isinstance(a, str) for a in answer),
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
    images, texts = units(20, 8, seed=1), units(6, 8, seed=2)
    labels = [f"label {i}" for i in range(6)]
    right = [labels[i] for i in (images @ texts.T).argmax(1).tolist()]
    expect(list(name_pictures(images, texts, labels)) == right, "wrong for 20 random pictures")


@exercise("recall")
def check_recall_at_k(recall_at_k):
    queries = units(40, 6, seed=3)
    gallery = F.normalize(queries + 1.5 * units(40, 6, seed=4), dim=1)
    ranks = (queries @ gallery.T).argsort(1, descending=True)
    own = torch.arange(40)[:, None]
    for k in (1, 3, 5):
        answer = tried(recall_at_k(queries, gallery, k))
        expect(
            isinstance(answer, float | int | torch.Tensor) and torch.as_tensor(answer).ndim == 0,
            "return one number, the share of queries",
        )
        answer, right = float(answer), (ranks[:, :k] == own).any(1).double().mean().item()
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
    answer = numbers(tried(or_none(images, texts, 0.9)), 4)
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
    answer = numbers(or_none(images, texts, 0.5), 4)
    expect(answer == [0, 1, 1, -1], f"at 0.5 you returned {answer}, not [0, 1, 1, -1]")
    answer = numbers(or_none(images[:1], texts, 1.0), 1)
    expect(answer == [0], "a cosine equal to the threshold is not below it")


@exercise("like this, but")
def check_like_this_but(like_this_but):
    gallery = F.normalize(torch.eye(4)[:, :3] + 0.05, dim=1)
    image, less, more = torch.eye(3)
    image = F.normalize(image + less, dim=0)  # a bit of `less` is in it
    answer = tried(like_this_but(image, less, more, gallery))
    expect(
        isinstance(answer, int | torch.Tensor) and torch.as_tensor(answer).numel() == 1,
        "return one index",
    )
    cases = []
    for seed in range(200):
        image, less, more = units(3, 8, seed=seed)
        gallery = units(50, 8, seed=seed + 1000)

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
        if len({right, *wrong.values()}) > len(wrong):  # no two mistakes look alike
            cases.append((int(like_this_but(image, less, more, gallery)), right, wrong))
    for hint in wrong:
        expect(any(answer != mistakes[hint] for answer, _, mistakes in cases), hint)
    expect(
        all(answer == right for answer, right, _ in cases),
        "not the item nearest to image − less + more: add the whole difference, "
        "then normalise the sum",
    )
