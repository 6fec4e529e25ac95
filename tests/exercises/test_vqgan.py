"""Lesson 07: answers that must be refused, each with its hint, and other right forms."""

import math

from utils.bricks import vqgan

LESSON = "07"
GIVEN = vars(vqgan) | {"math": math}

SEEN = """
def seen_pixels(layers, place):
    first = last = place
    for kernel, stride, padding in reversed(layers):
        first = first * stride - padding
        last = last * stride - padding + kernel - 1
    return first, last
"""
LOGISTIC = """
def logistic_losses(real, fake):
    critic = (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
    return critic, F.softplus(-fake).mean()
"""
BALANCE = """
def balance(losses, last):
    pulls = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm().item()
        for loss in losses
    ]
    return [1.0] + [min(1e4, pulls[0] / (pull + 1e-4)) for pull in pulls[1:]]
"""
BITS = """
def picture_bits(logits, codes):
    logs = logits.log_softmax(-1).gather(-1, codes.unsqueeze(-1))[..., 0]
    return -logs.sum(1) / math.log(2)
"""
MIN_P = """
def keep_min_p(logits, p):
    chances = logits.softmax(-1)
    least = p * chances.amax(-1, keepdim=True)
    return logits.masked_fill(chances < least, -torch.inf)
"""

WRONG = [
    ("seen_pixels", SEEN, "reversed(layers)", "layers", "start with the last layer"),
    ("seen_pixels", SEEN, " + kernel - 1", " + kernel", "is included"),
    ("seen_pixels", SEEN, "return first, last", "return first, last + 1", "is included"),
    ("seen_pixels", SEEN, " - padding", "", "padding moves"),
    ("seen_pixels", SEEN, " - padding", " + padding", "begins *before*"),
    ("seen_pixels", SEEN, "return first, last", "return last, first", "first comes first"),
    ("seen_pixels", SEEN, "return first, last", "return last - first + 1", "two numbers"),
    ("seen_pixels", SEEN, "last = last * stride", "last = first * stride",
     "the last is not"),
    ("logistic_losses", LOGISTIC, "F.softplus(-fake).mean()\n", "-F.softplus(fake).mean()\n",
     "saturates"),
    ("logistic_losses", LOGISTIC, "F.softplus(-fake).mean()\n", "F.softplus(fake).mean()\n",
     "wants the critic to say real"),
    ("logistic_losses", LOGISTIC, " / 2", "", "half the sum"),
    ("logistic_losses", LOGISTIC, "F.softplus(-real).mean() + F.softplus(fake).mean()",
     "F.softplus(real).mean() + F.softplus(-fake).mean()", "the opposite"),
    ("logistic_losses", LOGISTIC, "return critic, F.softplus(-fake).mean()",
     "return F.softplus(-fake).mean(), critic", "other order"),
    ("logistic_losses", LOGISTIC, "return critic, F", "return critic.detach(), F", "detach"),
    ("logistic_losses", LOGISTIC, "F.softplus(-fake).mean()\n",
     "-fake.sigmoid().log().mean()\n", "log 0 is"),
    ("logistic_losses", LOGISTIC, "F.softplus(-fake).mean()\n",
     "-fake.clamp(-50, 50).sigmoid().log().mean()\n", "clamping cuts it off"),
    ("logistic_losses", LOGISTIC, ".mean()\n", "\n", "one number"),
    ("logistic_losses", LOGISTIC, "return critic, F.softplus(-fake).mean()", "return critic",
     "two scalars"),
    ("balance", BALANCE, "pulls[0] / (pull + 1e-4)", "pull / (pulls[0] + 1e-4)", "upside down"),
    ("balance", BALANCE, "min(1e4, pulls[0] / (pull + 1e-4))", "pulls[0] / (pull + 1e-4)",
     "clamp to at most"),
    ("balance", BALANCE, ", retain_graph=True", "", "retain_graph"),
    ("balance", BALANCE, "torch.autograd.grad(loss, last, retain_graph=True)[0].norm().item()",
     "loss.item()", "make the gradients"),
    ("balance", BALANCE, ".norm()", ".square().sum()", "ratio of squares"),
    ("balance", BALANCE, "[1.0] + [", "[", "list of 2"),
    ("balance", BALANCE, "return [1.0] + ", "return [2.0] + ", "first weight is 1"),
    ("balance", BALANCE, "return [1.0] + ", "return [last.sum() for _ in losses] or ",
     "carries a gradient"),
    ("balance", BALANCE, "torch.autograd.grad(loss, last, retain_graph=True)[0]",
     "loss.backward(retain_graph=True) or last.grad", "differ in length"),
    ("picture_bits", BITS, " / math.log(2)", "", "nats"),
    ("picture_bits", BITS, "/ math.log(2)", "* math.log(2)", "do not multiply"),
    ("picture_bits", BITS, "logs.sum(1)", "logs.mean(1)", "sum them"),
    ("picture_bits", BITS, "logs.sum(1)", "logs.sum()", "the shape is"),
    ("picture_bits", BITS, "-logs", "logs", "the sign is turned"),
    ("picture_bits", BITS, "logits.log_softmax(-1)", "logits", "no log chance yet"),
    ("picture_bits", BITS, "logits.log_softmax(-1)", "logits.softmax(-1).log()", "its log"),
    ("picture_bits", BITS, "logits.log_softmax(-1)", "logits.log_softmax(1)", "not −log₂"),
    ("picture_bits", BITS, "-logs.sum(1)", "-logs.detach().sum(1)", "detach"),
    ("keep_min_p", MIN_P, "p * chances.amax(-1, keepdim=True)", "p", "no chance by itself"),
    ("keep_min_p", MIN_P, "logits.softmax(-1)", "logits", "compare chances"),
    ("keep_min_p", MIN_P, "chances.amax(-1, keepdim=True)", "chances.max()", "likeliest"),
    ("keep_min_p", MIN_P, "chances < least", "chances >= least", "kept the unlikely"),
    ("keep_min_p", MIN_P, "chances < least", "chances <= least", "at least, not more than"),
    ("keep_min_p", MIN_P, "-torch.inf", "-1e9", "becomes −inf"),
    ("keep_min_p", MIN_P, "return logits.masked_fill(chances < least, -torch.inf)",
     "return logits[chances >= least]", "the shape is"),
    ("keep_min_p", MIN_P, "logits.masked_fill(", "logits.masked_fill_(", "changed what you"),
]  # fmt: skip
RIGHT = [
    ("seen_pixels", "def seen_pixels(layers, place):\n    start, size, apart = 0, 1, 1\n    "
     "for kernel, stride, padding in layers:\n        start -= padding * apart\n        "
     "size += (kernel - 1) * apart\n        apart *= stride\n    start += place * apart\n"
     "    return [start, start + size - 1]"),
    ("logistic_losses", "def logistic_losses(real, fake):\n    b = "
     "F.binary_cross_entropy_with_logits\n    one, zero = torch.ones_like(real), "
     "torch.zeros_like(fake)\n    return [(b(real, one) + b(fake, zero)) / 2, "
     "b(fake, torch.ones_like(fake))]"),
    ("logistic_losses", LOGISTIC.replace("F.softplus(-fake)", "-F.logsigmoid(fake)")),
    ("balance", BALANCE.replace("return [1.0]", "return [torch.ones(())]")),
    ("balance", "def balance(losses, last):\n    first, weights = losses[0], [1]\n    for "
     "loss in losses[1:]:\n        weights.append(adaptive_weight(first, loss, last))\n    "
     "return weights"),
    ("picture_bits", "def picture_bits(logits, codes):\n    nats = F.cross_entropy("
     "logits.transpose(1, 2), codes, reduction='none')\n    return nats.sum(-1) / "
     "torch.tensor(2.0).log()"),
    ("keep_min_p", "def keep_min_p(logits, p):\n    least = logits.amax(-1, keepdim=True) + "
     "math.log(p)\n    return torch.where(logits >= least, logits, -torch.inf)"),
]  # fmt: skip
