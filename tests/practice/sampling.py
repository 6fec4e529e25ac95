"""Lesson 11: answers that must be refused, and others that are right."""

LESSON = "11"
GIVEN = {}

BY_DEVIATION = """
now, before = spread(now, x0), spread(before, x0)
if eta == 0:
    return before.sqrt() * x0 + (1 - before).sqrt() * eps
sigma = eta * ((1 - before) / (1 - now)).sqrt() * (1 - now / before).sqrt()
x = before.sqrt() * x0 + (1 - before - sigma**2).clamp(min=0).sqrt() * eps
return x + sigma * noise if noise is not None else x
"""

WRONG = [
    ("ddim_step", "(1 - before - variance)", "(1 - before)", "makes no room"),
    ("ddim_step", "(1 - before - variance)", "(1 - now - variance)", ""),
    ("ddim_step", "x = before.sqrt()", "x = now.sqrt()", ""),
    ("ddim_step", "eta**2", "eta", "its square"),
    ("ddim_step", "(1 - before) / (1 - now) * (1 - now / before)", "(1 - now / before)",
     "of the whole step"),
    ("ddim_step", "    if not eta:\n"
     "        return before.sqrt() * x0 + (1 - before).sqrt() * eps\n", "", ""),
    ("clamped", "x0.clamp(-1, 1)", "x0", ""),
    ("clamped", 'return read_off("x0", x0.clamp(-1, 1), x, signal)',
     'return x0.clamp(-1, 1), read_off("x0", x0, x, signal)[1]', "read it again"),
    ("clamped", "-1, 1", "0, 1", "not in [0, 1]"),
    ("guided", "guidance * (", "(1 + guidance) * (", "one further"),
    ("guided", "return free", "return asked", "one further"),
    ("guided", "(asked - free)", "(free - asked)", "is turned"),
    ("guided", "free + ", "", "begin it at `free`"),
]  # fmt: skip

RIGHT = [
    ("ddim_step", BY_DEVIATION),
    ("clamped", """
x0 = torch.minimum(torch.maximum(x0, torch.tensor(-1.0)), torch.tensor(1.0))
signal = spread(signal, x)
return x0, (x - signal.sqrt() * x0) / (1 - signal).sqrt()
"""),
    ("guided", "return guidance * asked + (1 - guidance) * free"),
]  # fmt: skip
