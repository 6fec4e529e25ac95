"""Lesson 10: answers that must be refused, and others that are right."""

LESSON = "10"
GIVEN = {}

POWERS = """
shape = [-1] + [1] * (x0.ndim - 1)
return signal.view(shape) ** 0.5 * x0 + (1 - signal.view(shape)) ** 0.5 * noise
"""
ROTATED = """
check_kind(kind)
a = spread(signal, x)
if kind == "x0":
    return said, (x - a.sqrt() * said) / (1 - a).sqrt()
if kind == "v":
    x0 = a.sqrt() * x - (1 - a).sqrt() * said
    return x0, a.sqrt() * said + (1 - a).sqrt() * x
return (x - (1 - a).sqrt() * said) / a.sqrt(), said
"""
BY_PRECISION = """
now, before = spread(now, x), spread(before, x)
alpha = now / before
small = (1 - before) * (1 - alpha) / (1 - now)
mean = before.sqrt() * (1 - alpha) / (1 - now) * x0
mean = mean + alpha.sqrt() * (1 - before) / (1 - now) * x
return mean, small, 1 - alpha
"""
OUTER = """
half = width // 2
speeds = torch.tensor([math.exp(-math.log(longest) * i / half) for i in range(half)])
angles = torch.outer(t.float(), speeds.to(t.device))
return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
"""

WRONG = [
    ("add_noise", "return signal.sqrt() * x0 + (1 - signal).sqrt() * noise",
     "return signal * x0 + (1 - signal) * noise", "their roots"),
    ("add_noise", "(1 - signal).sqrt()", "(1 - signal.sqrt())", "√(1 − ᾱ)"),
    ("add_noise", "signal.sqrt() * x0 + (1 - signal).sqrt() * noise",
     "(1 - signal).sqrt() * x0 + signal.sqrt() * noise", "changed places"),
    ("add_noise", "signal.sqrt() * x0", "x0", "does not shrink"),
    ("add_noise", "x0 + (", "x0 - (", ""),
    ("read_off", "(x - rest * said) / root, said", "x - rest * said, said", "divided by √ᾱ"),
    ("read_off", "(x - root * said) / rest", "x - root * said", "divided by √(1−ᾱ)"),
    ("read_off", "root * x - rest * said", "root * x + rest * said", "v in x₀"),
    ("read_off", "rest * x + root * said", "rest * x - root * said", "v in ε"),
    ("read_off", "root * x - rest * said, rest * x + root * said",
     "rest * x - root * said, root * x + rest * said", "changed places"),
    ("posterior", "before.sqrt() * beta", "before * beta", "√ᾱ_s belongs"),
    ("posterior", "kept.sqrt()", "kept", "√α belongs"),
    ("posterior", "before.sqrt() * beta", "now.sqrt() * beta", "in the place of √ᾱ_s"),
    ("posterior", "beta * (1 - before) / (1 - now)", "beta", "the same as the large one"),
    ("posterior", "mean / (1 - now)", "mean", "not divided"),
    ("posterior", "now / before", "now", ""),
    ("timestep_embedding", "[angles.cos(), angles.sin()]", "[angles.sin(), angles.cos()]",
     "cosines come first"),
    ("timestep_embedding", "torch.cat([angles.cos(), angles.sin()], 1)",
     "torch.stack([angles.cos(), angles.sin()], 2).flatten(1)", "take turns"),
    ("timestep_embedding", "-math.log", "math.log", "they fall from 1"),
    ("timestep_embedding", "* places / half", "* places / width", "by half of it"),
]  # fmt: skip
RIGHT = [
    ("add_noise", POWERS),
    ("read_off", ROTATED),
    ("posterior", BY_PRECISION),
    ("timestep_embedding", OUTER),
]
