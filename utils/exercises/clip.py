"""Checks of the exercises in lesson 03."""

import torch
import torch.nn.functional as F

from utils.bricks.clip import contrastive_loss
from utils.exercises import close, exercise, expect, tried


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@exercise("who finds whom")
def check_pair_accuracy(pair_accuracy):
    # rows 0 and 1 are right, row 2 is not; columns 1 and 2 are wrong
    logits = torch.tensor([[3.0, 0.0, 2.0], [0.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    answer = tried(pair_accuracy(logits))
    expect(
        isinstance(answer, tuple | list) and len(answer) == 2,
        "return two numbers: the share of rows, then the share of columns",
    )
    rows, columns = (float(value) for value in answer)
    expect(
        rows <= 1 and columns <= 1,
        f"you returned {rows:g} and {columns:g}; a share is the count divided by N",
    )
    expect(
        not (close(rows, 1 / 3, 1e-3) and close(columns, 2 / 3, 1e-3)),
        "rows and columns are swapped: a row is one picture, so its choice is argmax(1)",
    )
    expect(
        close(rows, 2 / 3, 1e-3),
        f"two of three rows choose the diagonal, you found {rows:.2f}",
    )
    expect(
        close(columns, 1 / 3, 1e-3),
        f"one of three columns chooses the diagonal, you found {columns:.2f}: use argmax(0)",
    )
    logits, own = random(6, 6, seed=22), torch.arange(6)
    right = [(logits.argmax(way) == own).float().mean().item() for way in (1, 0)]
    expect(
        close([float(value) for value in pair_accuracy(logits)], right, 1e-3),
        "wrong for 6 random pairs: the diagonal must be the largest entry of its line, "
        "not only a large one",
    )


@exercise("a hard wrong answer")
def check_hard_loss(hard_loss):
    questions, passages, hard = (random(5, 4, seed=s) for s in range(3))
    answer = tried(hard_loss(questions, passages, hard))
    right = torch.arange(5)
    scores = questions @ torch.cat([passages, hard]).T
    expect(torch.as_tensor(answer).ndim == 0, "return one number: the mean over the questions")
    expect(
        not close(answer, F.cross_entropy(questions @ passages.T, right), 1e-4),
        "the hard passages change nothing in your loss; they belong among the choices",
    )
    own = torch.cat([questions @ passages.T, (questions * hard).sum(1, keepdim=True)], 1)
    expect(
        not close(answer, F.cross_entropy(own, right), 1e-4),
        "each question sees only its own hard passage; in a batch it sees all N of them",
    )
    units = [F.normalize(x, dim=1) for x in (questions, passages, hard)]
    cosines = units[0] @ torch.cat(units[1:]).T
    expect(
        not close(answer, F.cross_entropy(cosines, right), 1e-4),
        "you normalised; DPR takes raw dot products",
    )
    expect(
        not close(answer, F.cross_entropy(scores, right, reduction="sum"), 1e-4),
        "this is the sum over the questions; take the mean",
    )
    expect(
        close(answer, F.cross_entropy(scores, right), 1e-4),
        "not the mean of −log softmax over 2·N choices at the right passage",
    )


@exercise("the gradient by hand")
def check_logit_gradient(logit_gradient):
    logits = random(4, 4).double()
    try:
        with torch.no_grad():
            answer = tried(logit_gradient(logits))
    except RuntimeError as error:
        expect("require grad" not in str(error), "this asks autograd; write the formula")
        raise
    expect(tuple(answer.shape) == (4, 4), f"the shape is {tuple(answer.shape)}, not (4, 4)")
    eye = torch.eye(4, dtype=torch.float64)
    rows, columns = logits.softmax(1), logits.softmax(0)
    right = ((rows + columns) / 2 - eye) / 4
    expect(
        not close(answer, (rows - eye) / 4),
        "this is the gradient of the rows' loss alone; the columns choose as well",
    )
    expect(
        not close(answer, (columns - eye) / 4),
        "this is the gradient of the columns' loss alone; the rows choose as well",
    )
    expect(not close(answer, right * 4), "each cross-entropy is a mean over N: divide by N")
    expect(
        not close(answer, right * 2),
        "the loss is the mean of two cross-entropies: divide by 2",
    )
    expect(
        not close(answer, -right),
        "the sign is turned: raising a wrong logit raises the loss, so it is positive there",
    )
    expect(
        not close(answer, (rows + columns) / 8),
        "the one-hot part is missing: the right logit is pushed up, so it is negative",
    )
    expect(close(answer, right), "not softmax − one-hot, averaged over both directions and N")
    free = torch.full((3, 3), 2.0, dtype=torch.float64, requires_grad=True)
    images = torch.eye(3, dtype=torch.float64)
    truth = torch.autograd.grad(contrastive_loss(images, free.T, torch.tensor(1.0)), free)[0]
    expect(close(logit_gradient(free.detach()), truth), "equal logits: autograd disagrees")
