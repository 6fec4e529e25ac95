"""Lesson 09: answers that must be refused, and others that are right."""

LESSON = "09"
GIVEN = {}

NEAREST = """
distances = (z.unsqueeze(-2) - codebook).square().sum(-1)
chosen = codebook[distances.argmin(-1)]
return z + (chosen - z).detach()
"""
COSINE = """
cosine = F.cosine_similarity(u, v, dim=-1).clamp(-1 + 1e-7, 1 - 1e-7)
return cosine.acos() ** 2 / 2
"""
WALL = """
(x,) = ctx.saved_tensors
up, down = (x > ctx.high) & (grad < 0), (x < ctx.low) & (grad > 0)
return grad.masked_fill(up | down, 0.0), None, None
"""

WRONG = [
    ("quantised", "z + (chosen - z).detach()", "z * 1", "must get codes"),
    ("quantised", "z + (chosen - z).detach()", "chosen", "gradient"),
    ("quantised", "chosen - z", "z - chosen", "is turned"),
    ("quantised", "return nearest_code(z, codebook)", "return their vectors"),
    ("ClampWithGrad.backward", ">= 0", "<= 0", "sign is turned"),
    ("ClampWithGrad.backward", "grad * outside >= 0", "outside == 0", "plain clamp"),
    ("ClampWithGrad.backward", "return grad, None, None", "everything passes"),
    ("ClampWithGrad.backward", ">= 0", "> 0", "≥ 0, not > 0"),
    ("ClampWithGrad.backward", "(grad * outside >= 0), None, None", "(grad * outside >= 0)",
     "three things"),
    ("spherical_distance", "2 * (chord / 2)", "(chord / 2)", "2·arcsin²"),
    ("spherical_distance", "(chord / 2)", "chord", "half of it"),
    ("spherical_distance", ".square()", "", "this is the angle"),
    ("spherical_distance", "F.normalize(u, dim=-1)", "u", ""),
    ("spherical_distance", "return 1 - F.cosine_similarity(u, v, dim=-1)", "1 − cos θ"),
    ("cut_boxes", "draws[:, 0] ** power * (size - least)",
     "(draws[:, 0] * (size - least)) ** power", "before it is scaled"),
    ("cut_boxes", "size - side + 1", "size - side", "one place more"),
    ("cut_boxes", " + least)", ")", "`least` is missing"),
    ("cut_boxes", "draws[:, 0] ** power", "draws[:, 0] * power", "not power·U"),
    ("cutouts", "top : top + side, left : left + side", "left : left + side, top : top + side",
     "changed places"),
    ("cutouts", "cut.flip(3) if turn else cut", "cut", "nobody is mirrored"),
    ("cutouts", "flip(3)", "flip(2)", "on its head"),
    ("cutouts", '"bilinear"', '"nearest"', "repeated"),
    ("weighted_parts", 'prompt.split("|")', 'prompt.split(" | ")', "separated by '|'"),
    ("weighted_parts", "(part.strip(), 1)", "(part.strip(), 0.5)", ""),
    ("weighted_parts", "return [(prompt, 1.0)]", ""),
]  # fmt: skip
RIGHT = [
    ("quantised", NEAREST),
    ("spherical_distance", COSINE),
    ("ClampWithGrad.backward", WALL),
]  # fmt: skip
