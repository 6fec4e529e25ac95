"""Lesson 12: answers that must be refused, and others that are right."""

LESSON = "12"
GIVEN = {}

WRONG = [
    ("blended", "share * x0 + (1 - share) * x", "share * x + (1 - share) * x0", "are changed"),
    ("blended", "(1 - spread(signal, x)).sqrt()", "spread(signal, x).sqrt()", "yours is √ᾱ"),
    ("blended", ".sqrt()", "", "root is missing"),
    ("blended", "(1 - share) * x", "spread(signal, x).sqrt() * x", "add up to 1"),
    ("blended", "spread(signal, x)", "signal", ""),
    ("cut_counts", "t >= 0.6", "t < 0.6", "where it is large"),
    ("cut_counts", "0.6", "0.4", "40 % of the way"),
    ("cut_counts", ">=", ">", "still early"),
    ("cut_counts", "cuts // 4", "-(-cuts // 4)", "rounded down"),
    ("cut_counts", "(cuts - few, few)", "(3 * cuts // 4, few)", ""),
    ("limited", "(most / size).clamp(max=1)", "most / size", "are enlarged"),
    ("limited", "grad.flatten(1).square().mean(1).sqrt()",
     "grad.square().mean().sqrt().expand(len(grad))", "of its own"),
    ("limited", ".mean(1)", ".sum(1)", "length of the row"),
    ("limited", "return grad * spread((most / size).clamp(max=1), grad)",
     "return grad.clamp(-most, most)", "bends the direction"),
]  # fmt: skip

RIGHT = [
    ("blended", "return x + (1 - spread(signal, x)).sqrt() * (x0 - x)"),
    ("cut_counts", """
large = cuts - cuts // 4
early = 10 * t >= 6 * times
return (large if early else cuts - large), (cuts - large if early else large)
"""),
    ("limited", """
size = grad.flatten(1).norm(dim=1) / grad[0].numel() ** 0.5
factor = torch.where(size > most, most / size, torch.ones_like(size))
return grad * factor.reshape(-1, *[1] * (grad.ndim - 1))
"""),
]  # fmt: skip
