"""Lesson 03: answers that must be refused, each with its hint."""

import numpy as np

from utils.bricks import clip

LESSON = "03"
GIVEN = vars(clip) | {"np": np}  # what a learner has at hand at the end of the lesson

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
FUNCTIONAL = """
def logit_gradient(logits):
    right = torch.arange(len(logits))
    def loss(x):
        return (F.cross_entropy(x, right) + F.cross_entropy(x.T, right)) / 2
    return torch.func.grad(loss)(logits)
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
        "random pairs",
    ),
    ("pair_accuracy", SHARES, "logits.argmax(0)", "logits.softmax(1).argmax(0)", "over the rows"),
    ("pair_accuracy", SHARES, "logits.argmax(1)", "logits.softmax(0).argmax(1)", "the columns"),
    ("pair_accuracy", SHARES, "return rows, columns", "return rows + columns", "two numbers"),
    ("hard_loss", HARD, "torch.cat([passages, hard])", "passages", "change nothing"),
    ("hard_loss", HARD, "len(questions))", "len(questions)) + len(questions)", "N further"),
    ("hard_loss", HARD, "[passages, hard]", "[hard, passages]", "N further"),
    ("hard_loss", HARD, "len(questions))", "len(questions)) + 1", "next passage"),
    ("hard_loss", HARD, "(scores,", "(scores.softmax(1),", "gave it a softmax"),
    ("hard_loss", HARD, "return F", "return -scores.softmax(1).diagonal().mean()\n    F",
     "log is missing"),
    ("hard_loss", HARD, "return F", "return scores.softmax(1).diagonal().mean()\n    F",
     "so is the minus"),
    ("hard_loss", HARD, "return F", "return (1 - scores.softmax(1).diagonal()).mean()\n    F",
     "1 − the share"),
    ("hard_loss", HARD, "return F", "return -scores.softmax(1).diagonal().mean().log()\n    F",
     "mean of the logs"),
    ("hard_loss", HARD, "return F", "return -F", "sign is turned"),
    ("hard_loss", HARD, "return F", "return -scores.log_softmax(0).diagonal().mean()\n    F",
     "over the questions"),
    ("hard_loss", HARD, "questions @", "questions.shape[1] ** -0.5 * questions @", "√d"),
    ("hard_loss", HARD, "(questions)))", '(questions)), reduction="none")', "one number"),
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
    ("logit_gradient", BY_AUTOGRAD.replace("    logits =", "    torch.set_grad_enabled(True)\n"
     "    logits ="), "asks autograd"),
    *(("logit_gradient", FUNCTIONAL.replace("grad(", f"{way}("), "asks autograd")
      for way in ("grad", "jacrev", "jacfwd")),
    ("logit_gradient", FUNCTIONAL.replace("torch.func.grad(loss)(logits)",
     "torch.autograd.functional.jacobian(loss, logits)"), "asks autograd"),
    ("logit_gradient", GRADIENT, "logits.softmax(0)", "logits.T.softmax(1)", "on its side"),
    ("logit_gradient", GRADIENT, "both / 2 - torch.eye(n)", "(both - torch.eye(n)) / 2",
     "once for each direction"),
    ("logit_gradient", GRADIENT, ") / n", ") / n**2", "N twice"),
    ("logit_gradient", GRADIENT, "(both / 2 - torch.eye(n)) / n", "both - 2 * torch.eye(n)",
     "divide by 2·N"),
    ("logit_gradient", GRADIENT, ".softmax", ".log_softmax", "no share"),
    ("logit_gradient", GRADIENT, "return (both / 2 - torch.eye(n)) / n",
     "return ((both / 2 - torch.eye(n)) / n).diagonal()", "the shape is"),
    ("logit_gradient", GRADIENT, " - torch.eye(n)", "", "one-hot part is missing"),
]  # fmt: skip
RIGHT = [
    ("pair_accuracy", SHARES.replace("return rows, columns", "return np.array([rows, columns])")),
    ("hard_loss", "def hard_loss(questions, passages, hard):\n    near, far = "
     "questions @ passages.T, questions @ hard.T\n    total = torch.logaddexp("
     "near.logsumexp(1), far.logsumexp(1))\n"
     "    return (total - near.diag()).mean()"),
    ("hard_loss", HARD.replace("(questions)))", "(questions))).item()")),
    ("logit_gradient", "def logit_gradient(logits):\n    n = len(logits)\n    rows = "
     "logits.exp() / logits.exp().sum(1, keepdim=True)\n    turned = logits.T.softmax(1).T\n"
     "    out = (rows + "
     "turned) / (2 * n)\n    out[range(n), range(n)] -= 1 / n\n    return out"),
]  # fmt: skip
