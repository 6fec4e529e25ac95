"""Lesson 07: answers that must be refused, and others that are right."""

LESSON = "07"
GIVEN = {}

BACKWARD = """
nll.backward(retain_graph=True)
one = last.grad.norm()
last.grad = None
fooling.backward(retain_graph=True)
return (one / (last.grad.norm() + 1e-4)).clamp(0, ceiling).detach()
"""
BY_SUM = """
chances = (logits / temperature)
if top_k:
    chances = keep_top_k(chances, top_k)
if top_p < 1:
    chances = keep_nucleus(chances, top_p)
ends = chances.double().softmax(-1).cumsum(-1)
return (ends <= noise.double()[:, None] * ends[:, -1:]).sum(-1)
"""
CLAMPED = """
places = []
for place, size in ((row, height), (column, width)):
    places.append(sorted((0, place - side // 2, size - side))[1])
return tuple(places)
"""

WRONG = [
    ("critic_loss", " / 2", "", "halve the sum"),
    ("critic_loss", "1 + fake", "1 - fake", "1 + D"),
    ("critic_loss", "return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2",
     "return (F.relu(1 + real).mean() + F.relu(1 - fake).mean()) / 2", "changed places"),
    ("critic_loss", "F.relu", "", "for ever"),
    ("critic_loss", "return ((-real).relu().mean() + fake.relu().mean()) / 2", "margin is 1"),
    ("critic_loss", "F.relu(1 - real).mean()", "F.relu(1 - real).mean().detach()",
     "no gradient reaches `real`"),
    ("adaptive_weight", "pulls[0] / (pulls[1] + 1e-4)", "pulls[1] / (pulls[0] + 1e-4)",
     "upside down"),
    ("adaptive_weight", ".norm()", ".square().sum()", "a norm has a root"),
    ("adaptive_weight", ".clamp(0, ceiling)", "", "clamp it"),
    ("adaptive_weight", "return (nll / fooling).detach()", "take their gradients"),
    ("adaptive_weight", " + 1e-4", "", "add 1e-4 below"),
    ("adaptive_weight", BACKWARD, "leaves a gradient"),
    ("adaptive_weight", ".detach()", " * last.sum() / last.sum().detach()", "carries a gradient"),
    ("keep_nucleus", " - chances", "", "crosses p"),
    ("keep_nucleus", "descending=True", "descending=False", "unlikely end"),
    ("keep_nucleus", "return logits.masked_fill(logits.softmax(-1) < p, -torch.inf)",
     "with their sum"),
    ("keep_nucleus", "before >= p", "before > p + 1", "it is -inf"),
    ("choose", "logits / temperature", "logits * temperature", "divide"),
    ("choose", "return logits.argmax(-1)", "always the likeliest"),
    ("choose", "if top_k:", "if False:", ""),
    ("choose", "right=True)[:, 0]", "right=True)", "shape"),
    ("window", " - side // 2", "", "in its middle"),
    ("window", "max(row - side // 2, 0)", "row - side // 2", ""),
    ("window", "min(max(column - side // 2, 0), width - side)", "max(column - side // 2, 0)", ""),
    ("window", "return top, left", "return left, top", ""),
]  # fmt: skip
RIGHT = [
    ("choose", BY_SUM),
    ("window", CLAMPED),
    ("critic_loss", "return (1 - real).clamp(min=0).mean() / 2 + "
     "torch.maximum(1 + fake, 0 * fake).mean() / 2"),
]  # fmt: skip
