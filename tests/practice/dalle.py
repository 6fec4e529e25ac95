"""Lesson 08: answers that must be refused, and others that are right."""

LESSON = "08"
GIVEN = {}

FILLED = """
table = torch.arange(first_pad, first_pad + length).repeat(len(rows), 1)
for place, row in enumerate(rows):
    part = torch.tensor(row[:length], dtype=torch.long)
    table[place, : len(part)] = part
return table
"""
LOOPS = """
mask = torch.zeros(side * side, side * side, dtype=torch.bool)
for i in range(side * side):
    mask[i, max(0, i - side) : i + 1] = True
return mask
"""
BACK = """
places = torch.arange(side * side)
back = places.unsqueeze(1) - places
return (back >= 0) & (back <= side)
"""
COLUMN = """
row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
turned = column * side + row
back = turned.unsqueeze(1) - turned
return (back >= 0) & (back <= side) & full_mask(side)
"""
EINSUM = """
scores = torch.einsum("...ld,...lnd->...ln", q, k[..., places, :]) / q.shape[-1] ** 0.5
weights = scores.masked_fill(places == -1, float("-inf")).softmax(-1)
return torch.einsum("...ln,...lnd->...ld", weights, v[..., places, :])
"""
DENSE = """
rows = torch.arange(len(places)).unsqueeze(1).expand_as(places)
mask = torch.full((len(places), len(places)), -torch.inf)
mask[rows[places >= 0], places[places >= 0]] = 0
return attend(q, k, v, mask)
"""
GOING_ON = """
normed = block.norm1(x)
q, k, v = block.attention.project(normed)
keys, values = cache.add(k, v)
weights = (q @ keys.mT / q.shape[-1] ** 0.5 + mask).softmax(-1)
x = x + block.attention.out(join_heads(weights @ values))
return x + block.fc2(block.activation(block.fc1(block.norm2(x))))
"""
BY_CHANCES = """
if seen is None:
    seen = codes
words, drawn = model(ids, seen[:, : codes.shape[1] - 1])
text = -words.log_softmax(-1).gather(-1, ids[..., None]).mean()
picture = F.nll_loss(drawn.log_softmax(-1).transpose(1, 2), codes)
return 0.125 * text + 0.875 * picture
"""

WRONG = [
    ("with_pads", "pads[len(row) :]", "[first_pad] * (length - len(row))", "share one pad"),
    ("with_pads", "pads[len(row) :]", "pads[: max(0, length - len(row))]",
     "go by their place"),
    ("with_pads", "row[:length] + pads[len(row) :]",
     "pads[: max(0, length - len(row))] + row[:length]", "in front"),
    ("with_pads", "row[:length]", "row[-length:]", "keep the beginning"),
    ("with_pads", "row[:length]", "row", "raised"),
    ("with_pads", "torch.tensor(filled, dtype=torch.long)", "torch.tensor(filled).float()",
     "dtype"),
    ("row_mask", "& ~full_mask(side).tril(-side - 1)", "& ~full_mask(side).tril(-side)",
     "one row up"),
    ("row_mask", "-side - 1", "-side - 2", "one too many"),
    ("row_mask", "return same_row if (same_row := (torch.arange(side * side)[:, None] // side == "
     "torch.arange(side * side) // side).tril()) is not None else 0", "same row only"),
    ("row_mask", " & ~full_mask(side).tril(-side - 1)", "", "full attention"),
    ("row_mask", "return full_mask(side) & ~", "return full_mask(side).tril(-1) & ~",
     "itself, too"),
    ("row_mask", LOOPS.replace("return mask", "return mask.T"), "transposed"),
    ("row_mask", LOOPS.replace("i + 1]", "i + side + 1]"), "not drawn yet"),
    ("row_mask", LOOPS.replace("return mask", "return mask.float()"), "dtype"),
    ("column_mask", " & full_mask(side)", "", "leave them out"),
    ("column_mask", "row_mask(side)[order][:, order]", "row_mask(side)[order]",
     "columns are not"),
    ("column_mask", ".T.flatten()", ".flatten()", "transpose the grid"),
    ("column_mask", "column = torch.arange(side * side) % side\n"
     "return (column[:, None] == column).tril()", "left neighbour"),
    ("sparse_attend", "    scores = scores * q.shape[-1] ** -0.5\n", "", "by √d"),
    ("sparse_attend", "scores.masked_fill(places < 0, -torch.inf)", "scores", "is nobody"),
    ("sparse_attend", "-torch.inf", "0.0", "still gets a weight"),
    ("sparse_attend", ".softmax(-1)", ".softmax(-2)", ""),
    ("sparse_attend", "q.unsqueeze(-2)", "q.detach().unsqueeze(-2)", "no gradient reaches `q`"),
    ("sparse_attend", DENSE, "fetch those 3"),
    ("continue_block", "project(block.norm1(x))", "project(x)", "first norm"),
    ("continue_block", "block.mlp(block.norm2(x))", "block.mlp(x)", "second norm"),
    ("continue_block", "x = x + block.attention", "x = block.attention", "x itself is lost"),
    ("continue_block", "attend(q, k, v, mask)", "attend(q, k, v)", "the mask is not used"),
    ("continue_block", "k, v = cache.add(k, v)",
     "cache.add(k, v)\n    mask = mask[:, -x.shape[1] :]", "no others than themselves"),
    ("continue_block", "return x + block.mlp(block.norm2(x))",
     "cache.add(k, v)\n    return x + block.mlp(block.norm2(x))", ""),
    ("continue_block", "return x + block.mlp(block.norm2(x))",
     "cache.keys = cache.keys.clone() if mask.shape[1] < 7 else None\n"
     "    return x + block.mlp(block.norm2(x))", "each token once"),
    ("continue_block", "return block(x, mask[:, -x.shape[1] :])", "no others than themselves"),
    ("stream_loss", "(text + 7 * picture) / 8", "(text + picture) / 2", "count the same"),
    ("stream_loss", "(text + 7 * picture)", "(7 * text + picture)", "changed places"),
    ("stream_loss", " / 8", "", "divide by 8"),
    ("stream_loss", "codes.flatten())", "seen.flatten())", "the targets are `codes`"),
    ("stream_loss", "seen = codes if seen is None else seen", "seen = codes", "show the model"),
    ("stream_loss", "seen[:, :-1]", "seen", "raised"),
    ("stream_loss", "(text + 7 * picture)", "(text.detach() + 7 * picture)",
     "has no gradient"),
    ("stream_loss", "(text + 7 * picture) / 8", "((text + 7 * picture) / 8).item()", "a float"),
]  # fmt: skip
RIGHT = [
    ("with_pads", FILLED),
    ("row_mask", LOOPS),
    ("row_mask", BACK),
    ("column_mask", COLUMN),
    ("sparse_attend", EINSUM),
    ("continue_block", GOING_ON),
    ("stream_loss", BY_CHANCES),
]
