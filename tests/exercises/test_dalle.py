"""Lesson 08: answers that must be refused, each with its hint, and other right forms."""

from utils.bricks import dalle

LESSON = "08"
GIVEN = vars(dalle)

FIXED = """
def fixed_first(logits, code):
    numbers = torch.arange(logits.shape[1], device=logits.device)
    free = (code < 0).unsqueeze(1)
    return logits.masked_fill(~free & (numbers != code.unsqueeze(1)), -torch.inf)
"""
BLOCKS = """
def block_mask(side, size):
    row = torch.arange(side).repeat_interleave(side) // size
    column = torch.arange(side).repeat(side) // size
    block = row * (side // size) + column
    return block.unsqueeze(1) >= block
"""
CACHE = """
def cache_bytes(tokens, width, depth, batch, number):
    return 2 * tokens * width * depth * batch * number
"""
STEER = """
def steer(free, wanted, unwanted, scale, away):
    return free + scale * (wanted - free) - away * (unwanted - free)
"""

WRONG = [
    ("fixed_first", FIXED, "~free & ", "", "drawn freely"),
    ("fixed_first", FIXED, "(numbers != code.unsqueeze(1))", "(numbers >= 0)", "no code left"),
    ("fixed_first", FIXED, "-torch.inf", "-1.0", "can still be drawn"),
    ("fixed_first", FIXED, "numbers != code", "numbers == code", "another code"),
    ("fixed_first", FIXED, "masked_fill", "masked_fill_", "changed what you were given"),
    ("fixed_first", FIXED, "-torch.inf)", "-torch.inf).argmax(-1)", "the shape is"),
    ("block_mask", BLOCKS, ">= block", "> block", "its own block, too"),
    ("block_mask", BLOCKS, "block.unsqueeze(1) >= block", "block >= block.unsqueeze(1)",
     "transposed"),
    ("block_mask", BLOCKS, "row * (side // size) + column", "column * (side // size) + row",
     "column by column"),
    ("block_mask", BLOCKS, "block.unsqueeze(1) >= block",
     "(block.unsqueeze(1) >= block).tril()", "after it"),
    ("block_mask", BLOCKS, " // size", " // 1", "single codes"),
    ("block_mask", BLOCKS, "block.unsqueeze(1) >= block",
     "(block.unsqueeze(1) >= block).float()", "a mask is bool"),
    ("cache_bytes", CACHE, "2 * ", "", "keys *and* values"),
    ("cache_bytes", CACHE, " * number", "", "how many bytes"),
    ("cache_bytes", CACHE, " * depth", "", "every layer"),
    ("cache_bytes", CACHE, " * batch", "", "every picture"),
    ("steer", STEER, "- away", "+ away", "*towards*"),
    ("steer", STEER, "away * (unwanted - free)", "away * unwanted", "starts at `free`, too"),
    ("steer", STEER, "(unwanted - free)", "(unwanted - wanted)", "both differences"),
    ("steer", STEER, "return free", "return wanted", "not at `wanted`"),
]  # fmt: skip
RIGHT = [
    ("fixed_first", "def fixed_first(logits, code):\n    out = logits.clone()\n"
     "    for i, c in enumerate(code.tolist()):\n        if c >= 0:\n"
     "            out[i] = -torch.inf\n            out[i, c] = 0\n    return out"),
    ("block_mask", "def block_mask(side, size):\n    n = side * side\n"
     "    b = [i // side // size * side + i % side // size for i in range(n)]\n"
     "    return torch.tensor([[b[j] <= b[i] for j in range(n)] for i in range(n)])"),
    ("steer", STEER.replace("free + scale * (wanted - free)",
                            "torch.lerp(free, wanted, scale)")),
]  # fmt: skip
