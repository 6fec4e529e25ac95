"""The blanks of lesson 01."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from utils.bricks import attention, image_encoders
from utils.bricks.attention import Block, attend, join_heads
from utils.exercises import expect
from utils.practice import Checks, Trial, same

plain = SimpleNamespace()  # what is a plain version alone: no brick of its name is shipped
check = Checks(plain, attention, image_encoders)

# ---------------------------------------------------------------- the residual block


def map_cases(generator):
    for batch, width, side in (2, 4, 6), (3, 2, 5):
        x = torch.randn(batch, width, side, side, generator=generator)
        yield {"width": width}, (x,)


def residual(way=True, middle=F.relu, end=F.relu, norms=("norm1", "norm2"), inside=False):
    """`ResidualBlock.forward` with a part left out or at another place."""

    def forward(self, x):
        first, second = (self.get_submodule(n) if n else nn.Identity() for n in norms)
        change = second(self.conv2(middle(first(self.conv1(x)))))
        return x + end(change) if inside else end(x + change if way else change)

    return forward


def unchanged(x):
    return x


check.method(
    "ResidualBlock.forward",
    "conv1, norm1, ReLU, conv2, norm2: that is the residual. Then x + residual, and a last ReLU.",
    map_cases,
    {
        "the way round is missing: add x to what the layers return": residual(way=False),
        "the last ReLU comes after the sum, not before it": residual(inside=True),
        "the ReLU after the sum is missing": residual(end=unchanged),
        "the ReLU between the two convolutions is missing": residual(middle=unchanged),
        "`norm1` is missing": residual(norms=(None, "norm2")),
        "`norm2` is missing": residual(norms=("norm1", None)),
        "`norm1` is used twice; each convolution has its own": residual(norms=("norm1", "norm1")),
    },
)

# ---------------------------------------------------------------- attention


def qkv_cases(generator):
    for batch, asking, seen, width in ((), 5, 5, 3), ((2,), 6, 4, 4), ((2, 3), 4, 7, 8):
        q = torch.randn(*batch, asking, width, generator=generator)
        k, v = torch.randn(2, *batch, seen, width, generator=generator)
        yield q, k, v
        yield q, k, v, torch.full((asking, seen), -torch.inf).triu(1)
        yield q, k, v, torch.randn(asking, seen, generator=generator)


def attending(
    scale=lambda q: q.shape[-1] ** -0.5,
    share=lambda scores: scores.softmax(-1),
    mix=lambda weights, k, v: weights @ v,
    masked=lambda scores, mask, scale: scores * scale + mask,
):
    """`plain_attend`, or a form of it with a part left out or done in another way."""

    def plain_attend(q, k, v, mask=None):
        scores = q @ k.transpose(-2, -1)  # (..., L, M)
        mask = torch.zeros(scores.shape[-2:], device=q.device) if mask is None else mask
        return mix(share(masked(scores, mask, scale(q))), k, v)

    return plain_attend


plain.plain_attend = attending()
check.function(
    "plain_attend",
    "From the inside out: the scores are `q @ k.transpose(-2, -1)`, (..., L, L), divided by √d, "
    "the root of `q.shape[-1]`. Add the mask if there is one. A softmax over the last axis makes "
    "each row the weights with which `v` is mixed.",
    qkv_cases,
    {
        "the scores are not divided by √d": attending(scale=lambda q: 1),
        "this divides by d; divide by its root": attending(scale=lambda q: 1 / q.shape[-1]),
        "this divides by √L; d is the width of a query, `q.shape[-1]`": attending(
            scale=lambda q: q.shape[-2] ** -0.5
        ),
        "this multiplies by √d; divide by it": attending(scale=lambda q: q.shape[-1] ** 0.5),
        "the softmax runs down the columns; each row sums to 1: dim=-1": attending(
            share=lambda scores: scores.softmax(-2)
        ),
        "the scores are no weights yet: the softmax is missing": attending(share=unchanged),
        "the keys are mixed; mix the values": attending(mix=lambda weights, k, v: weights @ k),
        "the mask is ignored": attending(masked=lambda scores, mask, scale: scores * scale),
        "the mask is divided by √d as well; add it after the division": attending(
            masked=lambda scores, mask, scale: (scores + mask) * scale
        ),
    },
)

check.function(
    "split_heads",
    "`unflatten` cuts the last axis into (heads, d). Then the heads change places with the tokens.",
    lambda generator: [
        (torch.randn(2, 5, 12, generator=generator), 3),
        (torch.randn(1, 4, 8, generator=generator), 2),
        (torch.randn(3, 2, 4, generator=generator), 4),
    ],
    {
        "the shape is right, but a head gets whole tokens instead of a part of each: cut the last "
        "axis, then swap": lambda x, heads: x.reshape(len(x), heads, x.shape[1], -1),
        "a head is a run of neighbours in the width; yours takes every so many-th number: "
        "(heads, d), not (d, heads)": lambda x, heads: x.unflatten(-1, (-1, heads)).permute(
            0, 3, 1, 2
        ),
        "the heads still stand behind the tokens: swap axes 1 and 2": (
            lambda x, heads: x.unflatten(-1, (heads, -1))
        ),
    },
)

check.function(
    "join_heads",
    "The way back of `split_heads`: swap heads and tokens, then `flatten` the last two axes.",
    lambda generator: [
        (torch.randn(2, 3, 5, 4, generator=generator),),
        (torch.randn(1, 2, 4, 4, generator=generator),),
    ],
    {
        "the shape is right, but tokens are mixed: swap heads and tokens first": (
            lambda x: x.reshape(len(x), x.shape[2], -1)
        ),
        "the heads stand side by side; yours are threaded into each other: (heads, d), not "
        "(d, heads)": lambda x: x.permute(0, 2, 3, 1).flatten(2),
        "the last two axes are not one yet: `flatten(2)`": lambda x: x.transpose(1, 2),
    },
)


def token_cases(generator):
    for batch, length, width, heads in (1, 3, 4, 1), (2, 5, 12, 3), (3, 4, 8, 4):
        x = torch.randn(batch, length, width, generator=generator)
        settings = {"width": width, "heads": heads}
        yield settings, (x,)
        yield settings, (x, torch.full((length, length), -torch.inf).triu(1))


def self_attention(order=(0, 1, 2), out=True, masked=True, joined=join_heads):
    """`Attention.forward` with a part left out or in another order."""

    def forward(self, x, mask=None):
        parts = self.project(x)
        answer = joined(attend(*(parts[i] for i in order), mask if masked else None))
        return self.out(answer) if out else answer

    return forward


check.method(
    "Attention.forward",
    "`self.project(x)` gives queries, keys and values of all heads. `attend` with the mask, "
    "`join_heads`, and at last `self.out`, which lets the heads talk to each other.",
    token_cases,
    {
        "`self.project` gives queries, keys, values in this order; yours has the keys first": (
            self_attention(order=(1, 0, 2))
        ),
        "`self.project` gives queries, keys, values in this order; yours has the values first": (
            self_attention(order=(2, 1, 0))
        ),
        "`self.out` is missing at the end": self_attention(out=False),
        "the mask is not passed on to `attend`": self_attention(masked=False),
        "heads and tokens are mixed: `join_heads` puts the heads side by side": self_attention(
            joined=lambda x: x.reshape(len(x), x.shape[2], -1)
        ),
    },
)

# ---------------------------------------------------------------- the block and the tower


def block(order="pre", first=True, second=True, norms=("norm1", "norm2"), masked=True):
    """`Block.forward` with its norms, ways round or mask in another way."""

    def forward(self, x, mask=None):
        norm1, norm2 = (self.get_submodule(name) for name in norms)
        mask = mask if masked else None
        if order == "post":
            x = norm1(x + self.attention(x, mask))
            return norm2(x + self.mlp(x))
        if order == "none":
            x = x + self.attention(x, mask)
            return x + self.mlp(x)
        change = self.attention(norm1(x), mask)
        if order == "parallel":
            return x + change + self.mlp(norm2(x))
        x = x + change if first else change
        return x + self.mlp(norm2(x)) if second else self.mlp(norm2(x))

    return forward


check.method(
    "Block.forward",
    "Two steps of one form, x + layers(norm(x)): first `norm1` and `self.attention` with the "
    "mask, then `norm2` and `self.mlp`.",
    token_cases,
    {
        "the norms come before the layers, not after the sums": block("post"),
        "the norms are missing": block("none"),
        "the MLP works on what attention has changed, not on the x from before": block("parallel"),
        "the way round attention is missing: x + change": block(first=False),
        "the way round the MLP is missing: x + change": block(second=False),
        "`norm1` is used twice": block(norms=("norm1", "norm1")),
        "the mask is not passed on to the attention": block(masked=False),
    },
)


def tower_cases(generator):
    for patch_size, heads, keep in (4, 1, 1.0), (2, 2, 1.0), (2, 2, 0.5):
        settings = {"image_size": 8, "patch_size": patch_size, "width": 8, "depth": 2}
        settings |= {"heads": heads, "keep": keep}
        yield settings, (torch.rand(3, 3, 8, 8, generator=generator),)


def tower(
    read=lambda self, x: self.norm_post(x[:, 0]),
    pre=True,
    placed=True,
    class_placed=True,
    turned=False,
    late=False,
    drop=True,
    last=False,
):
    """`ViT.forward` with a part left out or at another place."""

    def forward(self, pictures):
        x = self.patch(pictures)
        x = (x.transpose(2, 3) if turned else x).flatten(2).transpose(1, 2)
        places = self.positions[:-1] if last else self.positions[1:]
        x = x + (0 if late or not placed else places)
        if self.training and self.keep < 1 and drop:
            x = self.drop_patches(x)
        x = x + (places[: x.shape[1]] if late else 0)
        mine = self.positions[-1 if last else 0] if class_placed else 0
        first = (self.class_token + mine).expand(len(x), 1, -1)
        x = torch.cat([x, first] if last else [first, x], 1)
        x = self.norm_pre(x) if pre else x
        for layer in self.blocks:
            x = layer(x)
        return read(self, x)

    return forward


check.method(
    "ViT.forward",
    "`self.patch` gives (B, width, rows, columns); flatten the places and put them before the "
    "width. Add `positions[1:]`; in training with keep < 1, `self.drop_patches`. In front comes "
    "class token + positions[0], `expand`ed to the batch. Then norm_pre, the blocks, and "
    "norm_post on the class token alone; `state_at` does both in one with the places, all 0.",
    tower_cases,
    {
        "no positions: the tower could not tell one patch from another": tower(
            placed=False, class_placed=False
        ),
        "the patches have no positions: add `positions[1:]`": tower(placed=False),
        "the class token has a position, too, the first one": tower(class_placed=False),
        "the class token stands in front of the patches, with the first position": tower(
            read=lambda self, x: self.norm_post(x[:, -1]), last=True
        ),
        "patches are dropped before they have their positions, and then get those of others": (
            tower(late=True)
        ),
        "in training with keep < 1, `self.drop_patches` leaves some patches out": tower(drop=False),
        "patches are read row by row; yours run down the columns": tower(turned=True),
        "`norm_pre` before the first block is missing": tower(pre=False),
        "`norm_post` on the class token is missing": tower(read=lambda self, x: x[:, 0]),
        "this is the mean of all tokens; the class token collects the answer": tower(
            read=lambda self, x: self.norm_post(x.mean(1))
        ),
        "this reads the last token; the class token is the first": tower(
            read=lambda self, x: self.norm_post(x[:, -1])
        ),
    },
)


def place_cases(generator):
    for depth, batch, length, masked in (1, 2, 4, False), (2, 3, 5, False), (2, 3, 5, True):
        blocks = nn.ModuleList(Block(8, heads=2) for _ in range(depth))
        for weight in blocks.parameters():
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
        x = torch.randn(batch, length, 8, generator=generator)
        places = torch.randint(0, length, (batch,), generator=generator)
        mask = (torch.full((length, length), -torch.inf).triu(1),) if masked else ()
        yield blocks, x, places, *mask


def asking(normed=True, way=True, masked=True, mlp=True, some=lambda places: places, all_but=1):
    """`state_at` with a part left out or done in another way."""

    def state_at(blocks, x, places, mask=None):
        for layer in blocks[:-all_but] if all_but else blocks:
            x = layer(x, mask)
        last, rows = blocks[-1], torch.arange(len(x))
        q, k, v = last.attention.project(last.norm1(x) if normed else x)
        q = q[rows, :, some(places)].unsqueeze(2)
        mask = None if mask is None or not masked else mask[places, None, None]
        change = last.attention.out(join_heads(attend(q, k, v, mask))).squeeze(1)
        x = x[rows, places] + change if way else change
        return x + last.mlp(last.norm2(x)) if mlp else x

    return state_at


ASKING = {
    "in the last block, too, the attention comes after `norm1`": asking(normed=False),
    "the way round the last attention is missing: x[rows, places] + change": asking(way=False),
    "the MLP of the last block is missing": asking(mlp=False),
    "the mask is ignored in the last block: the row of each asking token, `mask[places]`": asking(
        masked=False
    ),
    "token 0 asks in every row; the one at `places` should": asking(some=torch.zeros_like),
    "the last block comes twice": asking(all_but=0),
}


@check.blank(
    "state_at",
    "All blocks but the last as they are. In the last, `project` of `norm1(x)` gives q, k, v of "
    "every token; keep only the query at `places`, (B, h, 1, d), and of the mask only its row, "
    "(B, 1, 1, L). What attention returns is (B, 1, width): add it to `x[rows, places]`, and let "
    "that pass through the MLP.",
)
def judge_state_at(answer, shipped):
    trials = [Trial(x) for x in place_cases(torch.Generator().manual_seed(0))]
    same(answer, shipped, trials, ASKING)
    passed, (blocks, x, places) = [], trials[1].arguments
    blocks[-1].fc1.register_forward_hook(lambda layer, inputs, _: passed.append(inputs[0][..., 0]))
    answer(blocks, x, places)
    count = sum(tokens.numel() for tokens in passed)
    expect(
        count <= len(x),
        f"the states are right, but not faster: for {len(x)} rows {count} tokens pass through the "
        "last MLP; only the one that is read of each row has to",
    )
