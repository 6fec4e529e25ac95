"""Lesson 13: answers that must be refused, each with its hint, and other right forms."""

from utils.bricks import diffusion_clip

LESSON = "13"
GIVEN = vars(diffusion_clip)

COMBINED = """
def combined(directions, weights):
    units = [F.normalize(d, dim=0) for d in directions]
    return F.normalize(sum(w * u for u, w in zip(units, weights)), dim=0)
"""
PULLS = """
def pulls(cosine):
    return torch.ones_like(cosine), 1 / (1 + cosine)
"""
PARTS = """
def slope_by_parts(steps, x, loss):
    kept = [x.detach()]
    with torch.no_grad():
        for step in steps:
            kept.append(step(kept[-1]))
    last = kept.pop().requires_grad_()
    (slope,) = torch.autograd.grad(loss(last), last)
    for step in reversed(steps):
        before = kept.pop().requires_grad_()
        (slope,) = torch.autograd.grad(step(before), before, slope)
    return slope
"""
WHOLE = """
def slope_by_parts(steps, x, loss):
    x = begin = x.detach().requires_grad_()
    for step in steps:
        x = step(x)
    return torch.autograd.grad(loss(x), begin)[0]
"""
SUM = "F.normalize(sum(w * u for u, w in zip(units, weights)), dim=0)"

WRONG = [
    ("combined", COMBINED, SUM, "sum(w * u for u, w in zip(units, weights))", "make the sum, too"),
    ("combined", COMBINED, SUM, "sum(w * u for u, w in zip(units, weights)) / len(units)",
     "that is a mean"),
    ("combined", COMBINED, "F.normalize(d, dim=0) for d", "d for d", "the longer one wins"),
    ("combined", COMBINED, "w * u", "u", "the weights do not count"),
    ("combined", COMBINED, "w * u", "abs(w) * u", "turns it round"),
    ("combined", COMBINED, "return ", "return -", "it is another one"),
    ("pulls", PULLS, "torch.ones_like(cosine)", "-torch.ones_like(cosine)", "is 1 everywhere"),
    ("pulls", PULLS, "1 / (1 + cosine)", "-1 / (1 + cosine)", "without a sign"),
    ("pulls", PULLS, "1 / (1 + cosine)", "2 / (1 + cosine)", "the inner slope is ½"),
    ("pulls", PULLS, "1 / (1 + cosine)", "0.5 / (1 + cosine)", "u = (1 + cos)/2"),
    ("pulls", PULLS, "1 / (1 + cosine)", "1 / (1 - cosine)", "endless at cos = 1"),
    ("pulls", PULLS, "1 / (1 + cosine)", "1 / (2 - cosine)", "with L = 1 − cos"),
    ("pulls", PULLS, "1 / (1 + cosine)", "-((1 + cosine) / 2).log()", "that is the loss"),
    ("pulls", PULLS, "1 / (1 + cosine)", "1 + cosine", "another one"),
    ("pulls", PULLS, ", 1 / (1 + cosine)", "", "return two slopes"),
    ("slope_by_parts", PARTS, PARTS, WHOLE, "holds all steps at once"),
    ("slope_by_parts", PARTS, "before, slope)", "before, torch.ones_like(slope))",
     "not the gradient by x"),
    ("slope_by_parts", PARTS, "reversed(steps)", "steps", "not the gradient by x"),
    ("slope_by_parts", PARTS, "with torch.no_grad():", "with torch.enable_grad():",
     "on the way back"),
    ("slope_by_parts", PARTS, "    last = kept", "    with torch.no_grad():\n"
     "        [step(k) for step, k in zip(steps, kept)]\n    last = kept", "keep each x"),
]  # fmt: skip

RIGHT = [
    ("combined", """
def combined(directions, weights):
    total = torch.zeros_like(directions[0])
    for direction, weight in zip(directions, weights):
        total = total + weight * direction / direction.norm()
    return total / total.norm()
"""),
    ("pulls", """
def pulls(cosine):
    cosine = cosine.clone().requires_grad_()
    loss = -((1 + cosine) / 2).log().sum()
    return [torch.full_like(cosine, 1.0), torch.autograd.grad(loss, cosine)[0].abs()]
"""),
    ("pulls", """
def pulls(cosine):
    return torch.stack([torch.ones_like(cosine), (1 + cosine).reciprocal()])
"""),
    ("slope_by_parts", """
def slope_by_parts(steps, x, loss):
    kept = []
    with torch.no_grad():
        for step in steps:
            kept.append(x)
            x = step(x)
    x = x.requires_grad_()
    loss(x).backward()
    slope = x.grad
    for step, x in zip(steps[::-1], kept[::-1]):
        x = x.clone().requires_grad_()
        step(x).backward(slope)
        slope = x.grad
    return slope
"""),
]  # fmt: skip
