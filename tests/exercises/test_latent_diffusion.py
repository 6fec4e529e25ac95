"""Lesson 14: answers that must be refused, each with its hint, and other right forms."""

from utils.bricks import latent_diffusion

LESSON = "14"
GIVEN = vars(latent_diffusion)

FACTOR = """
def scale_factor(batches):
    count, total, squares = 0, 0.0, 0.0
    for batch in batches:
        batch = batch.double()
        count += batch.numel()
        total += batch.sum().item()
        squares += batch.square().sum().item()
    return (squares / count - (total / count) ** 2) ** -0.5
"""
MEAN = """
def scale_factor(batches):
    each = [batch.double().var(correction=0) for batch in batches]
    return torch.stack(each).mean() ** -0.5
"""
ALL = """
def scale_factor(batches):
    return 1 / torch.cat(list(batches)).std(correction=0)
"""
FIRST = """
def scale_factor(batches):
    return 1 / next(batches).std(correction=0)
"""
WEIGHED = """
def weighed(free, answers, weights):
    return free + sum(w * (a - free) for a, w in zip(answers, weights))
"""
TURNS = """
def weighed(free, answers, weights):
    for answer, weight in zip(answers, weights):
        free = free + weight * (answer - free)
    return free
"""
STRICT = """
def strict_mask(mask, factor):
    return -F.max_pool2d(-mask, factor)
"""
POWER = "** -0.5"
POOLED = "-F.max_pool2d(-mask, factor)"

WRONG = [
    ("scale_factor", FACTOR, POWER, "** 0.5", "return one over it"),
    ("scale_factor", FACTOR, POWER, "** -1", "take its root"),
    ("scale_factor", FACTOR, " - (total / count) ** 2", "", "the square of the mean"),
    ("scale_factor", FACTOR, FACTOR, MEAN, "how far apart they lie"),
    ("scale_factor", FACTOR, FACTOR, MEAN.replace("var", "std").replace("-0.5", "-1"),
     "how far apart they lie"),
    ("scale_factor", FACTOR, FACTOR, FIRST, "of one batch"),
    ("scale_factor", FACTOR, FACTOR, ALL, "keep only sums"),
    ("scale_factor", FACTOR, "return (", "return 2 * (", "is not 1"),
    ("scale_factor", FACTOR, "    return (", "    return batch, (", "return one number"),
    ("weighed", WEIGHED, "(a - free)", "a", "not the answers"),
    ("weighed", WEIGHED, "free + ", "", "begin at it"),
    ("weighed", WEIGHED, "w * (a", "(1 + w) * (a", "one more"),
    ("weighed", WEIGHED, "(a - free)", "(free - a)", "the other way"),
    ("weighed", WEIGHED, "weights))", "weights)) / len(weights)", "not their mean"),
    ("weighed", WEIGHED, "w * (a", "abs(w) * (a", "keep its sign"),
    ("weighed", WEIGHED, "zip(answers, weights)", "[(answers[0], weights[0])]",
     "the first caption alone"),
    ("weighed", WEIGHED, WEIGHED, TURNS, "the caption before"),
    ("strict_mask", STRICT, POOLED, "F.max_pool2d(mask, factor)", "not any"),
    ("strict_mask", STRICT, POOLED, "F.avg_pool2d(mask, factor)", "a share"),
    ("strict_mask", STRICT, POOLED, "F.avg_pool2d(mask, factor).round()", "not all"),
    ("strict_mask", STRICT, POOLED, "mask[:, :, ::factor, ::factor]", "one pixel"),
    ("strict_mask", STRICT, POOLED, "F.max_pool2d(-mask, factor)", "the sign"),
    ("strict_mask", STRICT, POOLED, "F.max_pool2d(1 - mask, factor)", "turn it round"),
    ("strict_mask", STRICT, POOLED, "mask", "the shape is"),
]  # fmt: skip

RIGHT = [
    ("scale_factor", """
def scale_factor(batches):
    count = mean = spread = 0.0
    for batch in batches:  # Chan et al. 1979
        n, m = batch.numel(), batch.double().mean()
        both = count + n
        spread = spread + batch.double().var(correction=0) * n
        spread = spread + (m - mean) ** 2 * count * n / both
        mean = mean + (m - mean) * n / both
        count = both
    return 1 / (spread / count).sqrt()
"""),
    ("weighed", """
def weighed(free, answers, weights):
    total = free.clone()
    for answer, weight in zip(answers, weights):
        total += weight * answer - weight * free
    return total
"""),
    ("weighed", """
def weighed(free, answers, weights):
    w = torch.tensor(weights)
    return (1 - w.sum()) * free + torch.einsum("n,n...->...", w, torch.stack(answers))
"""),
    ("strict_mask", """
def strict_mask(mask, factor):
    parts = mask.unflatten(3, (-1, factor)).unflatten(2, (-1, factor))
    return parts.amin((3, 5))
"""),
    ("strict_mask", """
def strict_mask(mask, factor):
    return (F.avg_pool2d(mask, factor) > 1 - 1e-6).float()
"""),
]  # fmt: skip
