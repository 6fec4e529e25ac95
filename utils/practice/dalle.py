"""The blanks of lesson 08."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.bricks import dalle as bricks
from utils.bricks.attention import Block, attend, join_heads
from utils.bricks.dalle import Cache, full_mask, places_of
from utils.bricks.dalle import row_mask as row_mask_of
from utils.compare import difference, equal
from utils.exercises import NotTried, expect
from utils.practice import Checks, attempt

check = Checks(bricks)

# ---------------------------------------------------------------- pads


def text_cases(generator):
    yield [[7], [3, 1], [], [5, 6, 7, 8], [9, 8, 7, 6, 5]], 4, 100
    for length, first_pad in (3, 20), (16, 500):
        sizes = torch.randint(0, length + 3, (6,), generator=generator).tolist()
        yield [list(range(2, 2 + size)) for size in sizes], length, first_pad


def padded(pads, cut=lambda row, length: row[:length], before=False):
    """`with_pads` with other pads; pads(first, filled, length) are those of one text."""

    def with_pads(rows, length, first_pad):
        filled = []
        for row in rows:
            row = cut(row, length)
            more = pads(first_pad, len(row), length)
            filled.append(more + row if before else row + more)
        return torch.tensor(filled)

    return with_pads


def own_pads(first: int, filled: int, length: int) -> list[int]:
    return list(range(first + filled, first + length))


check.function(
    "with_pads",
    "The pads of all places are `range(first_pad, first_pad + length)`. Of a text with n ids the "
    "first n places are taken, so the pads from n on follow. A slice `row[:length]` cuts what is "
    "too long, and does nothing to what is not.",
    text_cases,
    {
        "all places share one pad; place j has pad first_pad + j": padded(
            lambda first, filled, length: [first] * (length - filled)
        ),
        "the pads of each text begin at first_pad; they go by their place, not by their number": (
            padded(lambda first, filled, length: own_pads(first, 0, length - filled))
        ),
        "the pads stand in front; they come after the text": padded(
            lambda first, filled, length: own_pads(first, 0, length - filled), before=True
        ),
        "of a long text the end is kept; keep the beginning": padded(
            own_pads, cut=lambda row, length: row[-length:]
        ),
    },
)

# ---------------------------------------------------------------- masks


def side_cases(generator):
    for side in 4, 2, 3, 8:
        yield (side,)


def same_row(side):
    row = torch.arange(side * side) // side
    return (row.unsqueeze(1) == row) & full_mask(side)


def band(first, last=0):
    """The codes from `first(side)` to `last` places ago."""
    return lambda side: full_mask(side).tril(-last) & ~full_mask(side).tril(-first(side) - 1)


check.function(
    "row_mask",
    "`full_mask(side)` allows all before. `full_mask(side).tril(-k)` keeps what lies at least k "
    "codes back; what lies side + 1 codes back or more is not allowed any more.",
    side_cases,
    {
        "this is the same row only; the mask reaches back to the same column one row up": same_row,
        "these are `side` codes; the last side + 1 reach the same column one row up": band(
            lambda side: side - 1
        ),
        "these are side + 2 codes: one too many": band(lambda side: side + 1),
        "a code looks at itself, too": band(lambda side: side, 1),
        "codes after the one that asks are not drawn yet": (
            lambda side: row_mask_of(side) | row_mask_of(side).T
        ),
        "a row of the mask is the code that asks; yours is transposed": (
            lambda side: row_mask_of(side).T
        ),
        "this is full attention: it reaches back to the first code": full_mask,
    },
)


def turned(side):
    order = torch.arange(side * side).view(side, side).T.flatten()
    return row_mask_of(side)[order][:, order]


def same_column(side):
    column = torch.arange(side * side) % side
    return (column.unsqueeze(1) == column) & full_mask(side)


def half_turned(side):
    order = torch.arange(side * side).view(side, side).T.flatten()
    return row_mask_of(side)[order] & full_mask(side)


check.function(
    "column_mask",
    "`torch.arange(side * side).view(side, side).T.flatten()` is the number of each code when one "
    "counts column by column. Take the row mask at these numbers, its rows and its columns, and "
    "leave out what is not drawn yet.",
    side_cases,
    {
        "on the transposed grid some of these codes come later in raster order: leave them out": (
            turned
        ),
        "this is the column alone; on the transposed grid the last side + 1 codes wrap, to the "
        "left neighbour": same_column,
        "this is the row mask; transpose the grid": row_mask_of,
        "the row mask's rows are renumbered and its columns are not": half_turned,
    },
)

# ---------------------------------------------------------------- fetching the few


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that comes about inside."""

    size = 0

    def __torch_dispatch__(self, function, types, given=(), named=None):
        out = function(*given, **named or {})
        several = out if isinstance(out, list | tuple) else [out]
        sizes = [x.numel() for x in several if isinstance(x, Tensor)]
        self.size = max([self.size, *sizes])
        return out


def fetch_cases(generator):
    for side, shape in ((2, (3,)), (3, (2, 2)), (4, (1, 2))):
        for mask in (row_mask_of(side), bricks.column_mask(side)):
            draws = torch.randn(3, *shape, side * side, 4, generator=generator)
            yield *draws.unbind(), places_of(mask)


def fetched(scale=True, nobody=-torch.inf):
    """`sparse_attend` with a part left out."""

    def sparse_attend(q, k, v, places):
        near = places.clamp(min=0)
        scores = (q.unsqueeze(-2) * k[..., near, :]).sum(-1)
        scores = scores * q.shape[-1] ** -0.5 if scale else scores
        scores = scores if nobody is None else scores.masked_fill(places < 0, nobody)
        weights = scores.softmax(-1)
        return (weights.unsqueeze(-2) @ v[..., near, :]).squeeze(-2)

    return sparse_attend


check.function(
    "sparse_attend",
    "`k[..., near, :]` with `near = places.clamp(min=0)` fetches n keys for each token: "
    "(..., L, n, d). Multiply by `q.unsqueeze(-2)` and sum over d: the scores (..., L, n). Divide "
    "by √d, put −∞ where a place is −1, softmax, and the weighted sum of the values fetched "
    "likewise.",
    fetch_cases,
    {
        "the scores are not divided by √d": fetched(scale=False),
        "a place of −1 is nobody: give it −∞ before the softmax": fetched(nobody=None),
        "a score of 0 still gets a weight; nobody has −∞": fetched(nobody=0.0),
    },
)
of_values = check.blanks["sparse_attend"]


@check.blank("sparse_attend", of_values.hint)
def judge_fetching(answer, shipped):
    of_values.judge(answer, shipped)
    q, k, v = torch.randn(3, 400, 2).unbind()
    places = torch.arange(400).unsqueeze(1) - torch.arange(3)
    with Largest() as seen:
        attempt(answer, q, k, v, places.clamp(min=-1))
    expect(
        seen.size < 400 * 400,
        "the values are right, but it builds 400 × 400 scores for 400 tokens that look at 3 each: "
        "fetch those 3 alone",
    )


# ---------------------------------------------------------------- the cache


def going_on(norms=(True, True), skip=True, masked=True, cached=True):
    """`continue_block` with a part left out."""

    def continue_block(block, x, mask, cache):
        q, k, v = block.attention.project(block.norm1(x) if norms[0] else x)
        if cached:
            k, v = cache.add(k, v)
        else:
            mask = mask[:, -x.shape[1] :]
        change = block.attention.out(join_heads(attend(q, k, v, mask if masked else None)))
        x = x + change if skip else change
        return x + block.mlp(block.norm2(x) if norms[1] else x)

    return continue_block


MISTAKES = {
    "the first norm is missing: queries, keys and values are those of `block.norm1(x)`": going_on(
        norms=(False, True)
    ),
    "the second norm is missing: the MLP reads `block.norm2(x)`": going_on(norms=(True, False)),
    "x itself is lost: add what the attention says to it": going_on(skip=False),
    "the mask is not used": going_on(masked=False),
    "the new tokens see no others than themselves; take what `cache.add` returns": going_on(
        cached=False
    ),
}


def parts(continue_block, block: nn.Module, x: Tensor, mask: Tensor) -> tuple[Tensor, Cache]:
    """The whole stream in three parts, and the cache as it is afterwards."""
    cache, found = Cache(), []
    for start, end in ((0, 4), (4, 5), (5, 7)):
        part = x[:, start:end].clone()
        value = attempt(continue_block, block, part, mask[start:end, :end], cache)
        if value is Ellipsis:
            raise NotTried
        fits = isinstance(value, Tensor) and value.shape == part.shape
        expect(fits, difference(value, part))
        found.append(value)
    return torch.cat(found, 1), cache


@check.blank(
    "continue_block",
    "As in `Block.forward`, x + attention(norm(x)), then x + mlp(norm(x)). Queries, keys and "
    "values are `block.attention.project(block.norm1(x))`; `cache.add(k, v)` puts the new ones "
    "behind the old and returns all. Then `attend`, `join_heads` and `block.attention.out`.",
)
def judge_going_on(answer, shipped):
    torch.manual_seed(0)
    block = Block(8, 2, "gelu").requires_grad_(False)
    for parameter in block.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    x = torch.randn(2, 7, 8)
    mask = torch.full((7, 7), -torch.inf).triu(1)
    mask[5, 1] = mask[6, 2] = -torch.inf  # not all that came before
    seen, cache = parts(answer, block, x, mask)
    right, wanted = parts(shipped, block, x, mask)
    if not equal(seen, right):
        for text, mistake in MISTAKES.items():
            expect(not equal(seen, parts(mistake, block, x, mask)[0]), text)
    found = difference(seen, right)
    expect(not found, f"{found} (7 tokens in parts of 4, 1 and 2)")
    expect(
        equal((cache.keys, cache.values), (wanted.keys, wanted.values)),
        "the values are right, but the cache does not hold each token once: call `add` once",
    )


# ---------------------------------------------------------------- one to seven


class Guesser(nn.Module):
    """Logits that depend on what is shown: of words (B, T, 5), of codes (B, n + 1, 4)."""

    def __init__(self, text: int):
        super().__init__()
        self.text = nn.Parameter(torch.randn(text, 5))
        self.codes = nn.Parameter(torch.randn(5, 4))  # by the code before, or none

    def forward(self, ids, codes):
        before = F.pad(codes, (1, 0), value=4)
        return self.text.expand(len(ids), -1, -1), self.codes[before]


def weighed(text=1.0, picture=7.0, by=8.0, targets=True, shown=True, each=False):
    """`stream_loss` with other weights, or other codes as targets or inputs."""

    def stream_loss(model, ids, codes, seen=None):
        seen = codes if seen is None or not shown else seen
        words, drawn = model(ids, seen[:, :-1])
        due = codes if targets else seen
        losses = [
            F.cross_entropy(logits.flatten(0, 1), right.flatten(), reduction="none")
            for logits, right in ((words, ids), (drawn, due))
        ]
        if each:
            return torch.cat(losses).mean()
        return (text * losses[0].mean() + picture * losses[1].mean()) / by

    return stream_loss


WEIGHTS = {
    "text and picture count the same; ⅛ and ⅞": weighed(4, 4),
    "the two have changed places: the picture counts ⅞": weighed(7, 1),
    "divide by 8, so that the weights are ⅛ and ⅞": weighed(by=1),
    "this is the mean over all tokens; the text's mean counts ⅛, the picture's ⅞": weighed(
        each=True
    ),
    "the targets are `codes`; `seen` is only what the model is shown": weighed(targets=False),
    "show the model `seen` where it is given": weighed(shown=False),
}


@check.blank(
    "stream_loss",
    "Show the model all but the last code, for nothing comes after it. `F.cross_entropy` takes "
    "logits (N, C) and targets (N,): flatten batch and places into one axis. The text's mean "
    "counts one, the picture's seven, their sum by 8.",
)
def judge_loss(answer, shipped):
    for seed, (batch, text, length) in enumerate([(2, 3, 4), (1, 5, 9), (3, 2, 2)]):
        torch.manual_seed(seed)
        model = Guesser(text)
        ids = torch.randint(5, (batch, text))
        codes, seen = torch.randint(4, (2, batch, length)).unbind()
        for given in (ids, codes), (ids, codes, seen):
            ours = attempt(answer, model, *given)
            if ours is Ellipsis:
                raise NotTried
            right, inputs = shipped(model, *given), f"ids {batch, text}, codes {batch, length}"
            if not equal(ours, right):
                for message, mistake in WEIGHTS.items():
                    expect(not equal(ours, mistake(model, *given)), message)
            found = difference(ours, right)
            expect(not found, f"{found} ({inputs})")
            expect(ours.requires_grad, "the value is right, but no gradient flows back")
            weights = list(model.parameters())
            slopes = [
                torch.autograd.grad(loss, weights, materialize_grads=True) for loss in (ours, right)
            ]
            expect(all(map(equal, *slopes)), "the value is right, but a part of it has no gradient")
