"""Lesson 06: answers that must be refused, each with its hint."""

from utils.bricks import dvae

LESSON = "06"
GIVEN = vars(dvae)  # what a learner has at hand at the end of the lesson

SEVERAL = """
def draw_several(logits, k):
    return (logits + gumbel_noise(logits)).topk(k, -1).indices
"""
BY_MULTINOMIAL = """
def draw_several(logits, k):
    return torch.multinomial(logits.softmax(-1), k, replacement=False)
"""
BY_TURNS = """
def draw_several(logits, k):
    left, chosen = logits.clone(), []
    for _ in range(k):
        code = gumbel_max(left)
        chosen.append(code)
        left = left.scatter(-1, code[:, None], -math.inf)
    return torch.stack(chosen, -1)
"""
INFORMATION = """
def information(logits):
    log_q = logits.log_softmax(-1)
    average = log_q.exp().mean(0)
    divergence = (log_q.exp() * (log_q - average.log())).sum(-1)
    return divergence.mean() / math.log(2)
"""
BY_ENTROPIES = """
def information(logits):
    entropy = lambda q: -torch.xlogy(q, q).sum(-1) / math.log(2)
    q = logits.softmax(-1)
    return (entropy(q.mean(0)) - entropy(q).mean()).item()
"""
COLOURS = """
def draw_colours(mu, log_b, u):
    away = u - 0.5
    logit = mu - log_b.exp() * away.sign() * (-2 * away.abs()).log1p()
    return unmap_pixels(logit.sigmoid())
"""
BY_SIDES = """
def draw_colours(mu, log_b, u):
    b = log_b.exp()
    logit = torch.where(u < 0.5, mu + b * (2 * u).log(), mu - b * (2 - 2 * u).log())
    return ((1 / (1 + (-logit).exp()) - 0.1) / 0.8).clamp(0, 1)
"""
FIELD = """
def receptive_field(layers):
    size, step = 1, 1
    for kernel, stride in layers:
        size += (kernel - 1) * step
        step *= stride
    return size
"""
BACKWARDS = """
def receptive_field(layers):
    size = 1
    for kernel, stride in reversed(layers):
        size = (size - 1) * stride + kernel
    return torch.tensor(size)
"""
WRONG = [
    ("draw_several", SEVERAL, "logits + gumbel_noise(logits)", "logits", "same"),
    ("draw_several", SEVERAL, "gumbel_noise(logits)", "torch.randn_like(logits)", "−log of"),
    ("draw_several", SEVERAL, "logits + ", "0 * logits + ", "is any code"),
    ("draw_several", SEVERAL, ".indices", ".values", "the values, not the places"),
    ("draw_several", SEVERAL, "topk(k, -1)", "topk(k, 0)", "the shape is (3, 7)"),
    ("draw_several", BY_MULTINOMIAL, "replacement=False", "replacement=True", "twice"),
    ("draw_several", BY_MULTINOMIAL, "softmax(-1)", "softmax(-1).sqrt()", "drawn with shares"),
    ("draw_several", BY_TURNS, "torch.stack(chosen, -1)", "chosen", "return a tensor"),
    (
        "draw_several",
        BY_TURNS,
        "gumbel_max(left)",
        "gumbel_max(left if not chosen else 0.1 * left)",
        "from what is left",
    ),
    ("information", INFORMATION, " / math.log(2)", "", "nats"),
    ("information", INFORMATION, "divergence.mean()", "divergence.sum()", "the sum over"),
    ("information", INFORMATION, "divergence.mean()", "divergence", "return one number"),
    (
        "information",
        INFORMATION,
        "log_q.exp().mean(0)",
        "torch.full_like(log_q[0], 1 / log_q.shape[1])",
        "KL to the uniform",
    ),
    (
        "information",
        INFORMATION,
        "log_q.exp().mean(0)",
        "logits.mean(0).softmax(-1)",
        "average the shares",
    ),
    (
        "information",
        INFORMATION,
        "(log_q.exp() * (log_q - average.log()))",
        "(average * (average.log() - log_q))",
        "swapped",
    ),
    ("information", BY_ENTROPIES, "torch.xlogy(q, q)", "(q * q.log())", "0·log 0"),
    ("draw_colours", COLOURS, "unmap_pixels(logit.sigmoid())", "logit", "are logits"),
    ("draw_colours", COLOURS, "unmap_pixels(logit.sigmoid())", "logit.sigmoid()", "takes them"),
    ("draw_colours", COLOURS, "log_b.exp()", "log_b", "exp makes b"),
    ("draw_colours", COLOURS, "mu - ", "mu + ", "larger u"),
    ("draw_colours", COLOURS, "mu - log_b", "mu - 0 * log_b", "depend on u"),
    ("draw_colours", COLOURS, "logit.sigmoid())", "logit.sigmoid().detach())", "no gradient"),
    ("draw_colours", COLOURS, "log_b.exp()", "log_b.detach().exp()", "both mu and log_b"),
    ("draw_colours", BY_SIDES, ".clamp(0, 1)", "", "clamp them"),
    ("draw_colours", BY_SIDES, "(2 * u).log()", "u.log()", "not unmap_pixels"),
    ("receptive_field", FIELD, "(kernel - 1)", "kernel", "sees 3"),
    ("receptive_field", FIELD, "step *= stride", "pass", "2 + 2·2"),
    (
        "receptive_field",
        FIELD,
        "        size += (kernel - 1) * step\n        step *= stride",
        "        step *= stride\n        size += (kernel - 1) * step",
        "own stride",
    ),
    ("receptive_field", FIELD, "step *= stride", "step += stride - 1", "sees"),
    ("receptive_field", BACKWARDS, "reversed(layers)", "layers", "a step aside"),
    ("receptive_field", FIELD, "return size", "return [size]", "return one number"),
]
RIGHT = [
    ("draw_several", BY_MULTINOMIAL),
    ("draw_several", BY_TURNS),
    ("information", BY_ENTROPIES),
    ("draw_colours", BY_SIDES),
    ("receptive_field", BACKWARDS),
]
