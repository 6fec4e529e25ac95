"""Lesson 03: answers that must be refused, each with its hint."""

from utils.bricks import clip

LESSON = "03"
GIVEN = vars(clip)  # what a learner has at hand at the end of the lesson

SHARES = """
def pair_accuracy(logits):
    right = torch.arange(len(logits))
    rows = (logits.argmax(1) == right).float().mean().item()
    columns = (logits.argmax(0) == right).float().mean().item()
    return rows, columns
"""
HARD = """
def hard_loss(questions, passages, hard):
    scores = questions @ torch.cat([passages, hard]).T
    return F.cross_entropy(scores, torch.arange(len(questions)))
"""
GRADIENT = """
def logit_gradient(logits):
    n = len(logits)
    both = logits.softmax(1) + logits.softmax(0)
    return (both / 2 - torch.eye(n)) / n
"""
BY_AUTOGRAD = """
def logit_gradient(logits):
    logits = logits.clone().requires_grad_()
    right = torch.arange(len(logits))
    loss = F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)
    return torch.autograd.grad(loss / 2, logits)[0]
"""
WRONG = [
    ("pair_accuracy", SHARES, "rows, columns\n", "columns, rows\n", "swapped"),
    ("pair_accuracy", SHARES, "argmax(0)", "argmax(1)", "use argmax(0)"),
    ("pair_accuracy", SHARES, "mean()", "sum()", "divided by N"),
    ("pair_accuracy", SHARES, "return rows, columns", "return rows", "two numbers"),
    (
        "pair_accuracy",
        SHARES,
        "logits.argmax(1) == right",
        "logits.diagonal() > logits.mean(1)",
        "6 random pairs",
    ),
    ("hard_loss", HARD, "torch.cat([passages, hard])", "passages", "change nothing"),
    ("hard_loss", HARD, "questions @", "F.normalize(questions, dim=1) @", "not the mean"),
    (
        "hard_loss",
        HARD,
        "torch.cat([passages, hard]).T",
        "passages.T\n    scores = torch.cat([scores, (questions * hard).sum(1, True)], 1)",
        "only its own",
    ),
    (
        "hard_loss",
        HARD,
        "    scores",
        "    questions, passages, hard = (\n"
        "        F.normalize(x, dim=1) for x in (questions, passages, hard)\n    )\n    scores",
        "raw dot products",
    ),
    ("hard_loss", HARD, "(questions)))", '(questions)), reduction="sum")', "take the mean"),
    ("logit_gradient", GRADIENT, "both = logits.softmax(1) + ", "both = 2 * ", "columns' loss"),
    ("logit_gradient", GRADIENT, " + logits.softmax(0)", " * 2", "rows' loss alone"),
    ("logit_gradient", GRADIENT, ") / n", ")", "divide by N"),
    ("logit_gradient", GRADIENT, "return (", "return 2 * (", "divide by 2"),
    ("logit_gradient", GRADIENT, "return (", "return -(", "sign"),
    ("logit_gradient", BY_AUTOGRAD, "asks autograd"),
    ("logit_gradient", GRADIENT, " - torch.eye(n)", "", "one-hot part is missing"),
]
