"""Checks of the exercises in lesson 03."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.bricks.clip import contrastive_loss
from utils.exercises import (
    Calls,
    Wrong,
    close,
    draws,
    exercise,
    expect,
    judge,
    number,
    several,
    tensor,
)

SHARES = "return two numbers: the share of rows, then the share of columns"


def share(choices: Tensor) -> float:
    return (choices == torch.arange(len(choices))).double().mean().item()


@exercise("who finds whom")
def check_pair_accuracy(pair_accuracy):
    # rows 0 and 1 are right, row 2 is not; columns 1 and 2 are wrong
    logits = torch.tensor([[3.0, 0.0, 2.0], [0.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    rows, columns = several(pair_accuracy(logits), 2, SHARES)
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
    rng = random.Random(0)
    for seed in range(20):
        n = rng.randint(2, 30)
        logits = 2 * draws(n, n, seed=seed) + 3 * torch.eye(n)
        rows, columns = share(logits.argmax(1)), share(logits.argmax(0))
        judge(
            several(pair_accuracy(logits), 2, SHARES),
            [rows, columns],
            {
                "a column chooses among the logits; a softmax over the rows has changed which of "
                "its entries is the largest": [rows, share(logits.softmax(1).argmax(0))],
                "a row chooses among the logits; a softmax over the columns has changed which of "
                "its entries is the largest": [share(logits.softmax(0).argmax(1)), columns],
            },
            f"wrong for {n} random pairs: the diagonal must be the largest entry of its line, "
            "not only a large one",
            1e-3,
        )


@exercise("a hard wrong answer")
def check_hard_loss(hard_loss):
    rng = random.Random(0)
    for seed in range(6):
        n, d = rng.randint(3, 9), rng.randint(3, 8)
        given = questions, passages, hard = [draws(n, d, seed=3 * seed + i) for i in range(3)]
        answer = number(hard_loss(*given), "return one number: the mean over the questions")
        right = torch.arange(n)
        scores = questions @ torch.cat([passages, hard]).T
        own = torch.cat([questions @ passages.T, (questions * hard).sum(1, keepdim=True)], 1)
        units = [F.normalize(x, dim=1) for x in given]
        shares = scores.softmax(1)
        both = [F.cross_entropy(x, right) for x in (passages @ questions.T, hard @ questions.T)]
        chosen = shares.diagonal()
        judge(
            answer,
            F.cross_entropy(scores, right),
            {
                "the hard passages change nothing in your loss; they belong among the choices": (
                    F.cross_entropy(questions @ passages.T, right)
                ),
                "each question sees only its own hard passage; in a batch it sees all N of them": (
                    F.cross_entropy(own, right)
                ),
                "you normalised; DPR takes raw dot products": F.cross_entropy(
                    units[0] @ torch.cat(units[1:]).T, right
                ),
                "this is the sum over the questions; take the mean": F.cross_entropy(
                    scores, right, reduction="sum"
                ),
                "this is the mean over all 2·N² entries; every question has one loss": (
                    F.cross_entropy(scores, right) / (2 * n)
                ),
                "the right choice of question i is number i; yours is N further, where the hard "
                "ones stand": F.cross_entropy(scores, right + n),
                "the right choice of question i is number i; yours is the next passage": (
                    F.cross_entropy(scores, right + 1)
                ),
                "this is the mean share of the right passage; its −log is missing": -chosen.mean(),
                "this is the mean share of the right passage; its −log is missing, and so is the "
                "minus": chosen.mean(),
                "this is 1 − the share of the right passage; a loss is its −log": (
                    1 - chosen
                ).mean(),
                "the log of the mean share is not the mean of the logs": -chosen.mean().log(),
                "cross_entropy takes the scores; you gave it a softmax": F.cross_entropy(
                    shares, right
                ),
                "the sign is turned: a loss is −log of a share": -F.cross_entropy(scores, right),
                "the scores are divided by √d; DPR takes raw dot products": F.cross_entropy(
                    scores / d**0.5, right
                ),
                "the softmax runs over the questions; every question chooses among the passages": (
                    -scores.log_softmax(0).diagonal().mean()
                ),
                "two losses are added; one softmax runs over all 2·N choices": both[0] + both[1],
            },
            "not the mean of −log softmax over 2·N choices at the right passage",
        )


@exercise("the gradient by hand")
def check_logit_gradient(logit_gradient):
    rng = random.Random(0)
    for seed in range(5):
        n = 4 if not seed else rng.randint(2, 9)
        logits = 2 * draws(n, n, seed=seed).double()
        answer = tensor(logit_gradient(logits), (n, n))
        asked = Calls(logit_gradient, logits).torch & {"grad", "backward", "_make_dual"}
        expect(not asked, "this asks autograd; write the formula")
        eye = torch.eye(n, dtype=torch.float64)
        rows, columns = logits.softmax(1), logits.softmax(0)
        right = ((rows + columns) / 2 - eye) / n
        judge(
            answer,
            right,
            {
                "this is the gradient of the rows' loss alone; the columns choose as well": (
                    (rows - eye) / n
                ),
                "this is the gradient of the columns' loss alone; the rows choose as well": (
                    (columns - eye) / n
                ),
                "each cross-entropy is a mean over N: divide by N": right * n,
                "the loss is the mean of two cross-entropies: divide by 2": right * 2,
                "the loss is the mean of two cross-entropies, each a mean over N: divide by 2·N": (
                    right * 2 * n
                ),
                "divided by N twice: each cross-entropy is a mean over N rows, not N²": right / n,
                "the sign is turned: raising a wrong logit raises the loss, so it is positive "
                "there": -right,
                "the one-hot part is missing: the right logit is pushed up, so it is negative": (
                    (rows + columns) / 2 / n
                ),
                "the one-hot part counts once for each direction: two of them, halved": (
                    (rows + columns - eye) / 2 / n
                ),
                "the softmax of logits.T lies on its side; turn it back with .T before you add": (
                    ((rows + columns.T) / 2 - eye) / n
                ),
                "this is the gradient lying on its side: row i belongs to picture i": right.T,
                "log_softmax is no share; the gradient holds the softmax itself": (
                    ((logits.log_softmax(1) + logits.log_softmax(0)) / 2 - eye) / n
                ),
                "one softmax over the whole matrix is none: each row and each column has its own": (
                    (logits.flatten().softmax(0).view(n, n) - eye) / n
                ),
            },
            "not softmax − one-hot, averaged over both directions and N",
        )
    free = torch.full((3, 3), 2.0, dtype=torch.float64, requires_grad=True)
    images = torch.eye(3, dtype=torch.float64)
    truth = torch.autograd.grad(contrastive_loss(images, free.T, torch.tensor(1.0)), free)[0]
    if not close(logit_gradient(free.detach()), truth):
        raise Wrong("equal logits: autograd disagrees")
