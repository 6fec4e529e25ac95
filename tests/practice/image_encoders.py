"""Lesson 01: answers that must be refused, and others that are right."""

LESSON = "01"
GIVEN = {}

RESIDUAL = """
residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
return F.relu(x + residual)
"""
ATTEND = """
scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
if mask is not None:
    scores = scores + mask
return scores.softmax(-1) @ v
"""
HEADS = """
q, k, v = self.project(x)
return self.out(join_heads(attend(q, k, v, mask)))
"""
BLOCK = """
x = x + self.attention(self.norm1(x), mask)
return x + self.mlp(self.norm2(x))
"""
TOWER = """
x = self.patch(pictures).flatten(2).mT + self.positions[1:]
if self.training and self.keep < 1:
    x = self.drop_patches(x)
first = self.class_token + self.positions[0]
x = self.norm_pre(torch.cat([first.expand(len(x), 1, -1), x], 1))
for block in self.blocks:
    x = block(x)
return self.norm_post(x[:, 0])
"""
STATE = """
for block in blocks[:-1]:
    x = block(x, mask)
last = blocks[-1]
rows = torch.arange(len(x))
q, k, v = last.attention.project(last.norm1(x))
q = q[rows, :, places][:, :, None]
row = None if mask is None else mask[places][:, None, None]
change = last.attention.out(join_heads(attend(q, k, v, row)))[:, 0]
x = x[rows, places] + change
return x + last.mlp(last.norm2(x))
"""

WRONG = [
    ("ResidualBlock.forward", RESIDUAL.replace("x + residual", "residual"), "way round"),
    ("ResidualBlock.forward", RESIDUAL.replace("F.relu(x", "(x"), "ReLU after the sum"),
    ("ResidualBlock.forward", RESIDUAL.replace("F.relu(x + ", "x + F.relu("), "not before it"),
    ("ResidualBlock.forward", RESIDUAL.replace("F.relu(self.", "(self."), "between the two"),
    ("ResidualBlock.forward", RESIDUAL.replace("self.norm1(", "("), "`norm1` is missing"),
    ("ResidualBlock.forward", RESIDUAL.replace("self.norm2(", "("), "`norm2` is missing"),
    ("ResidualBlock.forward", RESIDUAL.replace("norm2", "norm1"), "used twice"),
    ("ResidualBlock.forward", RESIDUAL.replace("x + ", "x - "), "at [0"),
    (
        "ResidualBlock.forward",
        RESIDUAL.replace("x + residual", "x + residual.detach()"),
        "no gradient reaches `conv1.weight`",
    ),
    ("ResidualBlock.forward", RESIDUAL.replace("(x + ", "(x.relu_() + "), "changes its input `x`"),
    ("plain_attend", ATTEND.replace(" / q.shape[-1] ** 0.5", ""), "not divided by √d"),
    ("plain_attend", ATTEND.replace("q.shape[-1] ** 0.5", "q.shape[-1]"), "divide by its root"),
    ("plain_attend", ATTEND.replace("/ q.shape", "* q.shape"), "multiplies by √d"),
    ("plain_attend", ATTEND.replace("q.shape[-1]", "q.shape[-2]"), "divides by √L"),
    ("plain_attend", ATTEND.replace("softmax(-1)", "softmax(-2)"), "each row sums to 1"),
    ("plain_attend", ATTEND.replace(".softmax(-1)", ""), "softmax is missing"),
    ("plain_attend", ATTEND.replace("@ v", "@ k"), "mix the values"),
    ("plain_attend", ATTEND.replace("scores + mask", "scores"), "mask is ignored"),
    ("plain_attend", ATTEND.replace("scores + mask", "scores * mask"), "nan or infinite"),
    ("plain_attend", ATTEND.replace("(-1) @ v", "(-1).detach() @ v"), "no gradient reaches `q`"),
    (
        "plain_attend",
        ATTEND.replace("scores = q @", "q *= 1; q += 1; scores = q @"),
        "changes its input `q`",
    ),
    ("plain_attend", ATTEND.replace("return ", "return -"), "the sign is turned"),
    ("plain_attend", ATTEND.replace("@ v", "@ v.double()"), "RuntimeError"),
    ("plain_attend", ATTEND.replace("transpose(-2, -1)", "transpose(0, 1)"), "RuntimeError"),
    ("split_heads", "return x.reshape(len(x), heads, x.shape[1], -1)", "whole tokens"),
    ("split_heads", "return x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)", "(d, heads)"),
    ("split_heads", "return x.unflatten(-1, (heads, -1))", "swap axes 1 and 2"),
    (
        "split_heads",
        "return x.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)",
        "two axes are swapped",
    ),
    ("join_heads", "return x.reshape(len(x), x.shape[2], -1)", "tokens are mixed"),
    ("join_heads", "return x.permute(0, 2, 3, 1).flatten(2)", "threaded into each other"),
    ("join_heads", "return x.transpose(1, 2)", "not one yet"),
    ("join_heads", "return x.transpose(1, 2).sum(2)", "the shape is"),
    ("Attention.forward", HEADS.replace("q, k, v = ", "k, q, v = "), "keys first"),
    ("Attention.forward", HEADS.replace("q, k, v = ", "v, k, q = "), "values first"),
    ("Attention.forward", HEADS.replace("self.out(", "("), "`self.out` is missing"),
    ("Attention.forward", HEADS.replace("v, mask)", "v)"), "mask is not passed on"),
    (
        "Attention.forward",
        HEADS.replace(
            "join_heads(attend(q, k, v, mask))", "attend(q, k, v, mask).reshape(x.shape)"
        ),
        "`join_heads`",
    ),
    ("Attention.forward", HEADS.replace("self.project(x)", "(x, x, x)"), "Attention.forward: "),
    ("Block.forward", BLOCK.replace("x = x + ", "x = "), "round attention is missing"),
    ("Block.forward", BLOCK.replace("return x + ", "return "), "round the MLP is missing"),
    ("Block.forward", BLOCK.replace("norm2", "norm1"), "`norm1` is used twice"),
    (
        "Block.forward",
        BLOCK.replace("self.norm1(x)", "x").replace("self.norm2(x)", "x"),
        "norms are missing",
    ),
    ("Block.forward", BLOCK.replace(", mask)", ")"), "mask is not passed on"),
    (
        "Block.forward",
        "x = self.norm1(x + self.attention(x, mask))\nreturn self.norm2(x + self.mlp(x))",
        "norms come before",
    ),
    (
        "Block.forward",
        "return x + self.attention(self.norm1(x), mask) + self.mlp(self.norm2(x))",
        "not on the x from before",
    ),
    (
        "ViT.forward",
        TOWER.replace(" + self.positions[1:]", "").replace(" + self.positions[0]", ""),
        "no positions: the tower",
    ),
    ("ViT.forward", TOWER.replace(" + self.positions[1:]", ""), "no positions: add"),
    ("ViT.forward", TOWER.replace(" + self.positions[0]", ""), "has a position, too"),
    ("ViT.forward", TOWER.replace("self.norm_pre(", "("), "`norm_pre`"),
    ("ViT.forward", TOWER.replace("self.norm_post(", "("), "`norm_post`"),
    ("ViT.forward", TOWER.replace("x[:, 0]", "x.mean(1)"), "mean of all tokens"),
    ("ViT.forward", TOWER.replace("x[:, 0]", "x[:, -1]"), "the last token"),
    ("ViT.forward", TOWER.replace(".flatten(2)", ".mT.flatten(2)"), "row by row"),
    (
        "ViT.forward",
        TOWER.replace("self.training and self.keep < 1", "False"),
        "leaves some patches out",
    ),
    ("state_at", STATE.replace("last.norm1(x)", "x"), "after `norm1`"),
    (
        "state_at",
        STATE.replace("x[rows, places] + change", "change"),
        "way round the last attention",
    ),
    (
        "state_at",
        STATE.replace("x + last.mlp(last.norm2(x))", "x"),
        "MLP of the last block is missing",
    ),
    ("state_at", STATE.replace("mask[places][:, None, None]", "None"), "mask is ignored"),
    ("state_at", STATE.replace("q[rows, :, places]", "q[:, :, 0]"), "token 0 asks"),
    ("state_at", STATE.replace("blocks[:-1]", "blocks"), "comes twice"),
    ("state_at", STATE.replace("[:, 0]\nx =", "\nx ="), "the shape is"),
    (
        "state_at",
        "for block in blocks:\n    x = block(x, mask)\nreturn x[torch.arange(len(x)), places]",
        "not faster: for 3 rows 15 tokens",
    ),
]
RIGHT = [
    (
        "ResidualBlock.forward",
        """
        y = self.conv1(x)
        y = self.norm1(y).relu()
        y = self.conv2(y)
        return torch.clamp(self.norm2(y) + x, min=0)
        """,
    ),
    ("plain_attend", ATTEND),
    ("plain_attend", "return F.scaled_dot_product_attention(q, k, v, mask)"),
    (
        "plain_attend",
        """
        scores = torch.einsum("...id,...jd->...ij", q, k) * q.size(-1) ** -0.5
        scores = scores if mask is None else mask + scores
        powers = (scores - scores.amax(-1, keepdim=True)).exp()
        return (powers / powers.sum(-1, keepdim=True)) @ v
        """,
    ),
    ("split_heads", "return x.view(*x.shape[:2], heads, -1).permute(0, 2, 1, 3)"),
    ("split_heads", "return torch.stack(x.chunk(heads, -1), 1)"),
    (
        "join_heads",
        "b, h, length, d = x.shape\nreturn x.permute(0, 2, 1, 3).reshape(b, length, h * d)",
    ),
    ("join_heads", "return torch.cat(list(x.unbind(1)), -1)"),
    ("Attention.forward", HEADS),
    (
        "Attention.forward",
        """
        heads = [attend(*qkv, mask) for qkv in zip(*(y.unbind(1) for y in self.project(x)))]
        return self.out(torch.cat(heads, -1))
        """,
    ),
    ("Block.forward", BLOCK),
    ("ViT.forward", TOWER),
    ("state_at", STATE),
    (
        "state_at",
        STATE.replace(
            "x = x[rows, places] + change",
            "x = x.gather(1, places.view(-1, 1, 1).expand(-1, 1, x.shape[2]))[:, 0] + change",
        ),
    ),
]
