# ---
# jupyter:
#   brick: dalle
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · DALL·E: words and codes in one stream
#
# ![A prompt becomes words and pads, the picture becomes codes; one Transformer reads
# both as a single row of tokens and writes the codes; a decoder draws
# them](../assets/figures/08_dalle.svg)
#
# In lesson 07 a Transformer wrote pictures, code by code, and one token in front said
# in which style. DALL·E (Ramesh et al. 2021) puts a **whole sentence** there. Nothing
# else is new: words and codes are tokens of one stream, and the model guesses each
# token from those before it. **Is guessing the next token enough to draw what somebody
# asks for, also what nobody ever drew?**

# %%
import math
import random
import time

from utils import checkpoints, data, plots, training, widgets

train = data.load_emoji("train").where(skin_tone="none")
unseen = data.load_emoji("unseen").where(skin_tone="none")

# %% [markdown]
# What the bricks of this lesson are made of:

# %% tags=["brick"]
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import device
from utils.bricks.attention import Block, attend, join_heads
from utils.bricks.clip import CLIP
from utils.bricks.text_encoders import Tokenizer
from utils.bricks.vq_vae import VQVAE
from utils.bricks.vqgan import choose
from utils.bricks.zero_shot import class_vectors, image_vectors
from utils.given import takes

# %% [markdown]
# ## A toy you can check by hand
#
# Three words, prompts of up to four places, a picture of 2×2 with five codes. Both
# halves have a number 0, and that must not be the same token. So everything gets its
# own place in **one table**: first the words, then the *pads* that fill up a short
# prompt, then the codes.

# %%
words = ["a", "red", "heart"]
prompt, grid = ["red", "heart"], [[3, 0], [0, 4]]
ids = [words.index(word) for word in prompt]
pads = [len(words) + place for place in range(len(prompt), 4)]
first_code = len(words) + 4
codes = [first_code + code for row in grid for code in row]
print("words:", ids, "pads:", pads, "codes:", codes)
print("one stream:", ids + pads + codes, "of a table of", first_code + 5)

# %% [markdown]
# Each of the four places has a pad of its own: the pad of place 2 is token 5, that of
# place 3 is token 6. They are learnt like words (sec. 2.2 of the paper); what else
# could they say than *the prompt ended before this place*?
#
# **Predict first.** A prompt of one word comes next. What are its four numbers?
#
# <details><summary>Answer</summary>
#
# The word, and then the pads of places 1, 2 and 3: 4, 5 and 6. Pad 3, that of place 0,
# is used only by an empty prompt.
#
# </details>

# %% tags=["brick", "blank"]
def with_pads(rows: list[list[int]], length: int, first_pad: int) -> Tensor:
    """Ids of texts → (B, length): what is missing at place j becomes first_pad + j.

    rows: ids of each text; what is longer than `length` is cut. Every place has a pad
    of its own, which is learnt like a word. Ramesh et al. 2021, sec. 2.2.
    """
    pads = list(range(first_pad, first_pad + length))
    filled = [row[:length] + pads[len(row) :] for row in rows]
    return torch.tensor(filled, dtype=torch.long).view(-1, length)


# %%
rows = [[words.index("heart")], ids, [], [0, 1, 2, 1, 0]]
print(with_pads(rows, 4, len(words)).tolist())

# %% [markdown]
# The last prompt was too long and was cut.
#
# ## Only what can come
#
# One table means one row of scores for all of it. But after four words comes a code,
# never a word, and we know where the text ends. So the scores of the wrong segment are
# set to −∞ before the softmax. To leave them out altogether is the same, and less work:

# %%
scores = torch.tensor([1.0, 0.2, -0.5, 0.1, 0.3, 0.0, 0.4, 2.0, 1.0, 0.0, -1.0, 0.5])
masked = scores.clone()
masked[:first_code] = -torch.inf
chances = masked.softmax(0)
print("masked: ", [round(x, 3) for x in chances.tolist()])
print("left out:", [round(x, 3) for x in scores[first_code:].softmax(0).tolist()])
lost = scores.softmax(0)[:first_code].sum()
print(f"without the mask, words and pads would get {lost:.0%} of the chances")

# %% [markdown]
# ## A place in the grid
#
# The words have their positions, 0 to 15. The codes stand in a grid, and their position
# is the sum of two vectors: one for the **row**, one for the **column**. What is learnt
# about a row then holds for each of its places.

# %%
side = 8
print("a vector for each place:", side * side, "vectors; rows and columns:", 2 * side)
print("for the paper's 32 × 32:", 32 * 32, "and", 2 * 32)

# %% [markdown]
# ## Three masks
#
# In a causal Transformer each token looks at all before it. For the 1,024 codes of the
# paper that is half a million pairs in each layer and head, so the paper lets a code
# look at all of the *text*, and at few codes. Which? In words (fig. 11):
#
# - **row**: at the last S + 1 codes in raster order, S being the side: back to the same
#   column one row up, wrapping round the left edge;
# - **column**: the same on the transposed grid, as far as it is drawn already;
# - **convolutional**: at a small window around it, wrapping as well.
#
# First by loops, close to the words:


# %%
def may_look(kind: str, asks: int, other: int, side: int) -> bool:
    """Whether code `asks` looks at code `other`, numbers in raster order."""
    if other > asks:
        return False  # not drawn yet
    if kind == "row":
        return asks - other <= side
    if kind == "column":
        turned = [(place % side) * side + place // side for place in (asks, other)]
        return 0 <= turned[0] - turned[1] <= side
    back = asks - other  # convolutional, 3×3
    return any(back == row * side + column for row in (0, 1) for column in (-1, 0, 1))


def by_loops(kind: str, side: int) -> Tensor:
    codes = range(side * side)
    return torch.tensor([[may_look(kind, i, j, side) for j in codes] for i in codes])


# %% tags=["brick", "blank"]
def full_mask(side: int) -> Tensor:
    """Who looks at whom among side·side codes in raster order: all before and itself.

    (L, L) bool, a row for each code that asks.
    """
    return torch.ones(side * side, side * side, dtype=torch.bool).tril()


def row_mask(side: int) -> Tensor:
    """The last side + 1 codes in raster order: back to the same column, one row up.

    (L, L) bool. It wraps round the left edge. Ramesh et al. 2021, fig. 11 a.
    """
    return full_mask(side) & ~full_mask(side).tril(-side - 1)


def column_mask(side: int) -> Tensor:
    """The same on the transposed grid, as far as it is drawn.

    (L, L) bool: the column above a code, and its left neighbour. Ramesh et al. 2021,
    fig. 11 b, c.
    """
    order = torch.arange(side * side).view(side, side).T.flatten()
    return row_mask(side)[order][:, order] & full_mask(side)


def convolution_mask(side: int, kernel: int = 3) -> Tensor:
    """A window of kernel×kernel around a code, as far as it is drawn, with wrap-around.

    (L, L) bool; kernel is odd. Ramesh et al. 2021, fig. 11 d.
    """
    if kernel % 2 == 0 or not 0 < kernel < 2 * side:
        most = 2 * side - 1
        raise ValueError(f"the kernel is {kernel}; choose an odd one from 1 to {most}")
    places = torch.arange(side * side)
    back = places.unsqueeze(1) - places  # how many codes ago
    reach = range(-(kernel // 2), kernel // 2 + 1)
    near = torch.tensor([row * side + column for row in reach for column in reach])
    return torch.isin(back, near) & full_mask(side)


# %% [markdown]
# Row masks are a band below the diagonal, so two triangles are enough; the column mask
# is the row mask with its rows and columns renumbered. Equal to the loops, and drawn
# for the paper's 4×4:

# %%
MASKS = {"row": row_mask, "column": column_mask, "convolution": convolution_mask}
for kind, mask in MASKS.items():
    same = [torch.equal(mask(side), by_loops(kind, side)) for side in (2, 3, 4, 8)]
    print(f"{kind}: as the loops say, for four sides: {all(same)}")
fig, axes = plots.figure(columns=4, width=10, height=2.8)
for ax, (kind, mask) in zip(axes, ({"full": full_mask} | MASKS).items(), strict=True):
    plots.heatmap(mask(4).float(), ax, kind, limit=1.0)
    ax.set(xlabel="looked at", xticks=range(0, 16, 4), yticks=range(0, 16, 4))
axes[0].set_ylabel("asks")
plots.show(fig, "Full attention is a triangle, rows a band, columns stripes with a "
           "neighbour, convolutions two thin bands")  # fmt: skip

# %% [markdown]
# In the grid, for one code that asks (grey) at 8×8:

# %%
asks = 4 * 8 + 2
fig, axes = plots.figure(columns=4, width=10, height=2.6)
for ax, (kind, mask) in zip(axes, ({"full": full_mask} | MASKS).items(), strict=True):
    seen = mask(8)[asks].float().view(8, 8)
    seen[4, 2] = -1
    plots.heatmap(seen, ax, f"{kind}: {int(mask(8)[asks].sum())} codes", limit=1.0)
plots.show(fig, "Code (4, 2) and whom it sees: everything before, a row that wraps, a "
           "column and one neighbour, a window of 3 × 3")  # fmt: skip

# %% [markdown]
# The layers take turns: row, column, row, row, row, column, … and **only the last one
# is convolutional** (app. B.1).

# %% tags=["brick"]
def kind_of_layer(layer: int, depth: int) -> str:
    """Which mask a layer has, 1 … depth: row, column, row, row, …, convolution.

    Ramesh et al. 2021, app. B.1.
    """
    if layer == depth:
        return "convolution"
    return "column" if layer % 4 == 2 else "row"


def layer_masks(attention: str, text: int, side: int, depth: int) -> list[Tensor]:
    """For each layer (L, L) to add to its scores: 0 where it may look, −inf elsewhere.

    attention: "full" or "sparse"; text: how many tokens stand before the codes, which
    see each other causally and are seen by every code. L = text + side·side.
    """
    if attention not in ("full", "sparse"):
        raise ValueError(f"attention is {attention!r}; choose 'full' or 'sparse'")
    codes = {
        "full": full_mask,
        "row": row_mask,
        "column": column_mask,
        "convolution": convolution_mask,
    }
    found = []
    for layer in range(1, depth + 1):
        kind = "full" if attention == "full" else kind_of_layer(layer, depth)
        allowed = torch.ones(text + side * side, text + side * side, dtype=torch.bool)
        allowed = allowed.tril()
        allowed[text:, text:] = codes[kind](side)
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
        found.append(mask)
    return found


# %%
print([kind_of_layer(layer, 64) for layer in (1, 2, 3, 4, 5, 6, 63, 64)])
kinds = [kind_of_layer(layer, 64) for layer in range(1, 65)]
print({kind: kinds.count(kind) for kind in MASKS})

# %% [markdown]
# A well-known DALL·E in PyTorch (lucidrains/DALLE-pytorch) has an `axial_row` that
# looks at the same row alone, without the wrap. The first code of a row then sees no
# code but itself.
#
# ### What it saves
#
# Pairs of codes that look at each other, for one layer, as the grid grows:

# %%
sides = (4, 8, 16, 32)
pairs = {kind: [int(m(s).sum()) for s in sides] for kind, m in MASKS.items()}
pairs = {"full": [int(full_mask(s).sum()) for s in sides]} | pairs
fig, ax = plots.figure(width=6, height=2.6)
colours = ("noise", "code", "shared", "text")
for (kind, counts), colour in zip(pairs.items(), colours, strict=True):
    ax.plot(sides, counts, "o-", color=plots.COLOURS[colour], label=kind)
ax.set(xscale="log", yscale="log", xlabel="side of the grid", ylabel="pairs")
ax.set_xticks(sides, sides)
ax.minorticks_off()
ax.set_title("Full attention grows with the fourth power of the side")
ax.legend()
plots.show(fig, "Pairs against the side: the full mask rises steepest")
print("at 32 × 32, full against row:", round(pairs["full"][-1] / pairs["row"][-1], 1))
print("at 8 × 8:", round(pairs["full"][1] / pairs["row"][1], 1))

# %% [markdown]
# Sixteen times fewer at 32×32; at our 8×8 it is hardly worth it. A mask alone saves
# nothing, though: the scores are computed and thrown away. To pay for n codes only, one
# must fetch those n, and fetching has its own price: a matrix product over all pairs is
# what processors do best. So the saving in time is smaller than that in pairs, and on a
# small grid there is none (`benchmarks/README.md`).

# %% tags=["brick", "blank"]
def sparse_attend(q: Tensor, k: Tensor, v: Tensor, places: Tensor) -> Tensor:
    """`attend` where each token looks at n others alone, and pays for n alone.

    q, k, v: (..., L, d); places: (L, n) int64, whom token i looks at; −1 for nobody.
    Returns (..., L, d).
    """
    near = places.clamp(min=0)
    scores = (q.unsqueeze(-2) * k[..., near, :]).sum(-1)  # (..., L, n)
    scores = scores * q.shape[-1] ** -0.5
    weights = scores.masked_fill(places < 0, -torch.inf).softmax(-1)
    return (weights.unsqueeze(-2) @ v[..., near, :]).squeeze(-2)


def places_of(mask: Tensor) -> Tensor:
    """(L, L) bool → (L, n) int64: the columns allowed in each row, then −1."""
    count = int(mask.sum(1).max())
    order = mask.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    return order.masked_fill(~mask.gather(1, order), -1)


# %%
def ratio(side: int) -> float:
    """How much faster the sparse one is than all pairs with a mask."""
    mask, draw = row_mask(side), device.generator(0)
    q, k, v = (torch.randn(1, 2, side * side, 32, generator=draw) for _ in range(3))
    places = places_of(mask)
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    ways = (lambda: attend(q, k, v, added)), (lambda: sparse_attend(q, k, v, places))
    same = torch.allclose(*(way() for way in ways), atol=1e-5)
    print(f"{side} × {side}: equal:", same)
    took = []
    for way in ways:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
        took.append(min(times))
    return took[0] / took[1]


ratios = [ratio(side) for side in (8, 48)]
print("its advantage grows with the grid:", ratios[1] > ratios[0])

# %% [markdown]
# ## The model
#
# The blocks are those of lesson 01, the quantiser is the VQGAN of lesson 07, frozen.
# In front of everything stands a learnt *start* vector, so that the first word is
# guessed from something, too.
#
# In the brick stands already what makes drawing fast, a *cache*; read over it for now,
# its turn comes below.

# %% tags=["brick", "blank"]
class Cache:
    """Keys and values of what one layer has seen: (B, heads, L, d) both, L grows."""

    def __init__(self):
        self.keys = self.values = None

    def add(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put new ones behind the old; returns all."""
        if self.keys is not None:
            k, v = torch.cat([self.keys, k], 2), torch.cat([self.values, v], 2)
        self.keys, self.values = k, v
        return k, v


def continue_block(block: Block, x: Tensor, mask: Tensor, cache: Cache) -> Tensor:
    """What `block` returns for the newest tokens, given those in the cache before them.

    x: (B, n, width), the newest; mask: (n, L), L with those in the cache.
    """
    q, k, v = block.attention.project(block.norm1(x))  # (B, heads, n, d) each
    k, v = cache.add(k, v)
    x = x + block.attention.out(join_heads(attend(q, k, v, mask)))
    return x + block.mlp(block.norm2(x))


# %% tags=["brick"]
class DALLE(nn.Module):
    """Text and codes as one stream: prompts → pictures, one code after the other.

    quantiser: what makes pictures of codes, frozen; merges: the tokenizer's; text: how
    many places a prompt has; side: of the grid of codes; attention: "full" or "sparse".
    One table holds words, pads and codes: word w is id w, the pad of place j is
    len(tokenizer) + j, code c is `first_code` + c. Ramesh et al. 2021, sec. 2.2.
    """

    def __init__(
        self,
        quantiser: VQVAE,
        merges: list,
        text: int = 16,
        side: int = 8,
        width: int = 224,
        depth: int = 8,
        heads: int = 7,
        attention: str = "full",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.config = {"merges": merges, "text": text, "side": side, "width": width}
        self.config |= {"depth": depth, "heads": heads, "attention": attention}
        self.config["dropout"] = dropout
        self.quantiser = quantiser
        self.tokenizer = Tokenizer(merges, text)
        self.text, self.side = text, side
        self.first_pad = len(self.tokenizer)
        self.first_code = self.first_pad + text
        total = self.first_code + quantiser.codes
        self.tokens = nn.Embedding(total, width)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.places = nn.Parameter(0.02 * torch.randn(text, width))
        self.rows = nn.Parameter(0.02 * torch.randn(side, 1, width))
        self.columns = nn.Parameter(0.02 * torch.randn(side, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, "gelu") for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, total)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        for block in self.blocks:  # a new block adds its biases, no more
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.fc2.weight)
        masks = layer_masks(attention, text + 1, side, depth)
        self.register_buffer("masks", torch.stack(masks), persistent=False)

    # ------------------------------------------------------------ the stream

    @takes(prompts="texts")
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts → ids with pads, (B, text); what does not fit is cut."""
        rows = [self.tokenizer.encode(prompt) for prompt in prompts]
        ids = with_pads(rows, self.text, self.first_pad)
        return ids.to(self.start.device)

    def no_text(self, count: int) -> Tensor:
        """The ids of an empty prompt: nothing but pads, (count, text)."""
        return with_pads([[]] * count, self.text, self.first_pad).to(self.start.device)

    def embed(self, ids: Tensor, codes: Tensor) -> Tensor:
        """(B, text) ids and (B, n) codes → vectors (B, 1 + text + n, width)."""
        start = self.start.expand(len(ids), 1, -1)
        words = self.tokens(ids) + self.places
        grid = (self.rows + self.columns).flatten(0, 1)  # (side·side, width)
        drawn = self.tokens(codes + self.first_code) + grid[: codes.shape[1]]
        return self.dropout(torch.cat([start, words, drawn], 1))

    def forward(self, ids: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the next tokens: of the text (B, text, V), of codes (B, n+1, K).

        ids: (B, text) with pads; codes: (B, n), the first n of a picture, n < side².
        Where a word is due only words and pads count, where a code is due only codes:
        the other part of the table is left out, which is the same as −inf there.
        """
        x = self.embed(ids, codes)
        length = x.shape[1]
        for block, mask in zip(self.blocks, self.masks, strict=True):
            x = block(x, mask[:length, :length])
        x = self.dropout(self.norm(x))
        return self.words(x[:, : self.text]), self.next_codes(x[:, self.text :])

    def words(self, x: Tensor) -> Tensor:
        """States (..., width) → logits of words and pads (..., first_code)."""
        return F.linear(
            x, self.head.weight[: self.first_code], self.head.bias[: self.first_code]
        ).float()

    def next_codes(self, x: Tensor) -> Tensor:
        """States (..., width) → logits of the codes (..., K)."""
        return F.linear(
            x, self.head.weight[self.first_code :], self.head.bias[self.first_code :]
        ).float()

    # ------------------------------------------------------------ pictures

    @takes(prompts="texts", seed="seeds", guidance="finite", temperature="number")
    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        guidance: float = 1.0,
        temperature: float = 0.9,
        cached: bool = True,
        **how,
    ) -> Iterator[Tensor]:
        """Draw code by code; yields the codes so far, (B, 1), (B, 2), … (B, side²).

        seed: one for all prompts, or one for each. guidance: 1 for none; above 1 the
        logits move away from those without a prompt. how: top_k, top_p.
        """
        prompts, seeds = check_prompts(prompts), each_seed(seed, len(prompts))
        count = self.side * self.side
        darts = [torch.rand(count, generator=device.generator(s)) for s in seeds]
        darts = torch.stack(darts).to(self.start.device)  # (B, side²)
        ids = self.encode_text(prompts)
        if guidance != 1:
            ids = torch.cat([ids, self.no_text(len(ids))])
        codes = ids.new_zeros(len(ids), 0)
        caches = [Cache() for _ in self.blocks]
        for place in range(count):
            logits = self.newest(ids, codes, caches if cached else None)
            if guidance != 1:
                asked, free = logits.chunk(2)
                logits = free + guidance * (asked - free)
            drawn = choose(logits, darts[:, place], temperature, **how)
            codes = torch.cat([codes, drawn.repeat(len(ids) // len(drawn))[:, None]], 1)
            yield codes[: len(prompts)]

    def newest(self, ids: Tensor, codes: Tensor, caches: list[Cache] | None) -> Tensor:
        """Logits of the next code (B, K); with caches only what is new is computed."""
        if caches is None:
            return self(ids, codes)[1][:, -1]
        x = self.embed(ids, codes)
        seen = 0 if caches[0].keys is None else caches[0].keys.shape[2]
        length, x = x.shape[1], x[:, seen:]
        for block, mask, cache in zip(self.blocks, self.masks, caches, strict=True):
            x = continue_block(block, x, mask[seen:length, :length], cache)
        return self.next_codes(self.norm(x[:, -1]))

    def codes(self, prompts: Sequence[str], **how) -> Tensor:
        """What `stream` ends with, as grids (B, side, side)."""
        *_, codes = self.stream(prompts, **how)
        return codes.view(-1, self.side, self.side)

    @takes(prompts="texts", seed="seeds", guidance="finite")
    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        guidance: float = 2.0,
        **how,
    ) -> Tensor:
        """Prompts → pictures (B, 3, S, S), one each; see `stream`.

        One seed gives the same picture of a prompt, alone or among others. Raises
        ValueError in one sentence for what is no list of prompts.
        """
        codes = self.codes(prompts, seed=seed, guidance=guidance, **how)
        return self.quantiser.decode(codes)


@takes(prompts="texts")
def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts as a list; ValueError unless each is a string that says something."""
    empty = [place for place, prompt in enumerate(prompts) if not prompt.strip()]
    if empty or not len(prompts):
        what = f"prompt {empty[0]} is empty" if empty else "there are no prompts"
        raise ValueError(f"{what}; say what to draw, e.g. 'a red heart'")
    return prompts


@takes(seed="seeds")
def each_seed(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed for each prompt; ValueError if there are more or fewer."""
    seeds = [seed] * count if isinstance(seed, int) else seed
    if len(seeds) != count:
        raise ValueError(
            f"there are {count} prompts and {len(seeds)} seeds; "
            "give one seed, or one for each prompt"
        )
    return seeds


# %%
device.seed(0)
quantiser = checkpoints.load("vqgan")
merges = [["r", "e"], ["re", "d</w>"], ["h", "e"], ["he", "a"]]
tiny = DALLE(quantiser, merges, text=4, side=3, width=32, depth=2, heads=2)
ids = tiny.encode_text(["red", "a red heart", ""])
word_logits, code_logits = tiny(ids, torch.zeros(3, 5, dtype=torch.long))
print("words:", len(tiny.tokenizer), "pads: 4, codes:", quantiser.codes)
print("ids:", ids.tolist())
print("logits of words and pads:", tuple(word_logits.shape))
print("logits of codes, after five of them:", tuple(code_logits.shape))

# %% [markdown]
# Who depends on whom? Change one token, and see which guesses move. With a start token,
# four places of text and nine codes there are thirteen inputs that can be changed; the
# blocks get random weights first, for a new one adds the same to every token.


# %%
def moves(model: DALLE) -> Tensor:
    """(tokens of the stream, guesses) bool: which guess moves when a token changes."""
    ids, codes = model.encode_text(["red heart"]), torch.arange(9)[None] % 8
    size = model.text + model.side**2
    found = torch.zeros(size, size, dtype=torch.bool)
    before = torch.cat([x.logsumexp(-1) for x in model(ids, codes[:, :-1])], 1)
    for token in range(size - 1):  # the last code is never read
        other_ids, other = ids.clone(), codes.clone()
        if token < model.text:
            other_ids[0, token] = 1
        else:
            other[0, token - model.text] = 9
        after = torch.cat([x.logsumexp(-1) for x in model(other_ids, other[:, :-1])], 1)
        found[token] = (after - before).abs()[0] > 1e-6
    return found


def shaken(**settings) -> DALLE:
    """A tiny DALLE of one layer with random weights."""
    device.seed(1)
    model = DALLE(quantiser, merges, text=4, side=3, width=32, heads=2, **settings)
    for parameter in model.blocks.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False).eval()


found = moves(shaken(depth=1))
fig, ax = plots.figure(width=4.6, height=3.4)
plots.heatmap(found.float(), ax, "A token moves the guesses after it", limit=1.0)
ax.set(xlabel="guess of token", ylabel="changed token")
plots.show(fig, "A triangle above the diagonal: no guess depends on what comes later")
later = torch.ones_like(found).triu(1)
later[-1] = False
print("just the guesses of later tokens:", torch.equal(found, later))

# %% [markdown]
# And with the sparse masks: one layer is the last layer, so it is convolutional. The
# guess of code n sees what code n − 1 sees, and all of the text:

# %%
found = moves(shaken(depth=1, attention="sparse"))
expected = later.clone()
expected[4:, 5:] = convolution_mask(3)[:-1].T
print("just what the mask says:", torch.equal(found, expected))

# %% [markdown]
# ## The loss: one to seven
#
# Each guess costs −ln of the chance that it gave to the right token. The text is short
# and easy, and it is not what we are after: its mean counts ⅛, that of the codes ⅞. By
# hand, with two words and two codes, of which the model is as unsure as can be:
#
# $$L = \tfrac18\,L_\text{text} + \tfrac78\,L_\text{picture}$$

# %%
text, picture = math.log(20), math.log(1024)  # every token alike: ln of how many
together = (text + 7 * picture) / 8
print(f"text {text:.3f}, picture {picture:.3f}, together {together:.3f}")

# %% tags=["brick", "blank"]
def stream_loss(
    model: DALLE, ids: Tensor, codes: Tensor, seen: Tensor | None = None
) -> Tensor:
    """⅛ of the text's mean −log chance and ⅞ of the picture's, a scalar.

    ids: (B, text) with pads; codes: (B, side²), to be predicted; seen: what the model
    is shown in their place, by default the same. Ramesh et al. 2021, sec. 2.2.
    """
    seen = codes if seen is None else seen
    words, drawn = model(ids, seen[:, :-1])
    text = F.cross_entropy(words.flatten(0, 1), ids.flatten())
    picture = F.cross_entropy(drawn.flatten(0, 1), codes.flatten())
    return (text + 7 * picture) / 8


# %%
nn.init.zeros_(tiny.head.weight)  # every token alike
codes = torch.randint(1024, (3, 9), generator=device.generator(0))
found = stream_loss(tiny, ids, codes).item()
text, picture = math.log(tiny.first_code), math.log(1024)
print("as by hand:", math.isclose(found, (text + 7 * picture) / 8, rel_tol=1e-5))

# %% [markdown]
# ## It learns
#
# A small one, live, on the faces and hearts of Emoji-4 and their labels. The codes are
# computed once.

# %%
faces = train.where(group="smileys-emotion")


def as_codes(pairs: data.Pairs) -> Tensor:
    """The codes of pictures, (N, 64)."""
    parts = (pairs.pictures.float() / 255).split(64)
    return torch.cat([quantiser.encode(p.to(device.pick())) for p in parts]).flatten(1)


STYLE = {name: data.with_article(w["en"][0]) for name, w in data.STYLE_WORDS.items()}


def captions(styles: list[str], labels: list[str]) -> list[str]:
    both = zip(styles, labels, strict=True)
    return [f"{STYLE[style]} drawing of {label}" for style, label in both]


shipped = checkpoints.load("dalle")
face_codes = as_codes(faces)
face_captions = captions(faces.table["style"], faces.table["label_en"])
face_ids = shipped.encode_text(face_captions)
print(len(face_codes), "pictures, for example:", face_captions[0])
print("the tokens of it:", [shipped.tokenizer.tokens[i] for i in face_ids[0].tolist()
                            if i < shipped.first_pad])  # fmt: skip


# %%
def new_dalle(**settings) -> DALLE:
    device.seed(0)
    merges = shipped.config["merges"]
    model = DALLE(quantiser, merges, width=128, depth=4, heads=4, **settings)
    return model.to(device.pick())


def train_on(model: DALLE, steps: int, name: str, watch=lambda step: None) -> list:
    def loss(step: int) -> Tensor:
        watch(step)
        draw = device.generator(0, step)
        rows = torch.randint(len(face_codes), (32,), generator=draw)
        return stream_loss(model, face_ids[rows], face_codes[rows])

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = training.adamw(trained, 3e-3, 0.05)
    return training.fit(model, loss, steps, optimizer=optimizer, name=name)


live, STEPS, seen = new_dalle(), 150, {}
wanted = [
    "a 3D drawing of brown heart",
    "a flat drawing of grinning face",
    "an outlined drawing of sleepy face",
    "a shaded drawing of kiss mark",
]


def keep(step: int) -> None:
    """Remember what the prompts give after 1, 10 and 100 % of the run."""
    if step in (STEPS // 100, STEPS // 10, STEPS):
        live.eval()
        seen[step] = live.generate(wanted, seed=1, guidance=1.0, top_p=0.9).cpu()
        live.train()


losses = train_on(live, STEPS, "a small DALL·E", keep)
keep(STEPS)

# %%
plots.picture_rows(
    {f"step {step}": pictures for step, pictures in seen.items()},
    alt="Four prompts at 1, 10 and 100 % of the training: confetti, then things",
)
fig, ax = plots.figure(width=6, height=2.4)
plots.curve(ax, losses, colour="code", smooth=5)
ax.axhline((math.log(shipped.first_code) + 7 * math.log(1024)) / 8, ls="--",
           color=plots.COLOURS["noise"], label="every token alike")  # fmt: skip
ax.set(title="It learns to guess the next token", xlabel="step", ylabel="loss")
ax.legend()
plots.show(fig, "The loss falls from where all tokens are alike")
start, end = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
print("the loss fell by more than a third:", end < 0.67 * start)

# %% [markdown]
# Does it use the words at all? Give it the codes of a picture with the right caption,
# then with the style or the label of another picture. What it does not read can change
# nothing.


# %%
@torch.no_grad()
def picture_loss(model: DALLE, ids: Tensor, codes: Tensor) -> float:
    """Mean −ln chance of the codes, in nats."""
    logits = model(ids, codes[:, :-1])[1]
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten()).item()


some = list(range(0, len(faces), 5))  # one style after the other
styles = [faces.table["style"][i] for i in some]
labels = [faces.table["label_en"][i] for i in some]
given = {
    "the right caption": captions(styles, labels),
    "another label": captions(styles, labels[40:] + labels[:40]),
    "another style": captions(styles[1:] + styles[:1], labels),
}
by_caption = {
    name: picture_loss(live, live.encode_text(texts), face_codes[some])
    for name, texts in given.items()
}
fig, ax = plots.figure(width=6, height=1.7)
title = "A wrong caption makes the codes harder to guess"
plots.bars(ax, by_caption, "text", title, "nats a code")
plots.show(fig, "The loss is smallest with the right caption")
right = by_caption["the right caption"]
print("it reads the label:", by_caption["another label"] > right + 0.1)
print("it reads the style:", by_caption["another style"] > right + 0.1)

# %% [markdown]
# ## The shipped one
#
# The same class, eight layers, all pictures of `train` but 200: its recipe set those
# **aside**, each of another concept, which it was shown in the three other styles. It
# trains with dropout, with a tenth of the codes it sees replaced by random ones, and on
# pictures moved by a pixel or two, all against learning by heart; and it gets no
# caption for one picture in ten (why, below). What its recipe saw at 1, 10, 30, 60 and
# 100 % of the run, for twelve labels (`make pretrain MODEL=dalle`):
#
# ![Twelve prompts at five moments of the training: confetti at first, then shapes, then
# emoji](../assets/checkpoints/dalle.webp)

# %%
card = checkpoints.card("dalle")
looks = {int(step): look for step, look in card["looks"].items()}
fig, axes = plots.figure(columns=3, width=10, height=2.6)
axes[0].plot(*zip(*card["losses"], strict=True), color=plots.COLOURS["code"])
axes[0].set(title="Loss", xlabel="step")
curves = (
    (axes[1], "found_guided", "judge finds it, guided", "image"),
    (axes[1], "found", "judge finds it", "noise"),
    (axes[2], "set_aside_found", "concept, set aside", "image"),
    (axes[2], "set_aside_style", "style, set aside", "text"),
    (axes[2], "copies", "copies", "wrong"),
)
for ax, key, name, colour in curves:
    reached = [look[key] for look in looks.values()]
    ax.plot(list(looks), reached, "o-", color=plots.COLOURS[colour], label=name)
axes[1].axhline(1, color=plots.COLOURS["noise"], ls="--", label="by chance")
axes[1].set(title="What was shown, %", xlabel="step", ylim=(0, 100))
axes[2].set(title="What was not, %", xlabel="step", ylim=(0, 100))
for ax in axes[1:]:
    ax.legend(fontsize=7)
plots.show(fig, "The loss falls; the judge finds more and more of the samples, also of "
           "the pairs that were never shown")  # fmt: skip

# %% [markdown]
# **The judge** is `clip`, which had no part in this: it gets 100 captions, of which one
# is the right one, and the sample counts when that one is the nearest. By chance one in
# a hundred would be found. *Copies* are samples with at least nine in ten codes of one
# training picture. These curves are of 100 labels and were drawn at a temperature of 1;
# the card's last figures are of 400, at 0.9 (below).

# %% tags=["brick"]
@takes(labels="labels", pool="texts", among="from 1", seed="whole")
@torch.no_grad()
def found_among(
    judge: CLIP,
    pictures: Tensor,
    labels: Sequence[str],
    pool: Sequence[str],
    among: int = 100,
    seed: int = 0,
) -> Tensor:
    """Whether a CLIP finds each picture's label first among others: (N,) bool.

    pictures: (N, 3, H, W); labels: N; pool: many labels, of which among − 1 others are
    drawn for each picture.
    """
    pool = sorted(set(pool) | set(labels))
    vectors = class_vectors(judge, pool)  # (P, d)
    scores = image_vectors(judge, pictures) @ vectors.T  # (N, P)
    found = []
    for i, label in enumerate(labels):
        own = pool.index(label)
        order = torch.randperm(len(pool), generator=device.generator(seed, i))
        others = order[order != own][: among - 1].to(scores.device)
        found.append(bool(scores[i, own] > scores[i, others].max()))
    return torch.tensor(found)


# %% [markdown]
#
# ## Drawing, and the cache
#
# To draw is to guess, 64 times. Each guess needs the whole stream before it; yet of
# that, all but the newest token was there last time, and nothing that comes later can
# change it: the mask forbids that. So each layer keeps the keys and values that it has
# computed, and only the newest token passes through: the `Cache`, with which
# `continue_block` above works. Equal, and faster:

# %%
def took(**how) -> tuple[Tensor, float]:
    start = time.perf_counter()
    codes = shipped.codes(["brown heart"] * 4, seed=range(4), **how)
    return codes, time.perf_counter() - start


took()  # the first is always slow
with_cache, without = took(), took(cached=False)
print("the same four pictures:", torch.equal(with_cache[0], without[0]))
print("at least three times as fast:", without[1] > 3 * with_cache[1])

# %% [markdown]
# Drawn at which **temperature**? Lesson 07 divided the logits by one: below 1 the
# likely codes become likelier, above 1 the others do. `stream` takes 0.9 unless told
# otherwise. That was measured: of pairs never shown (further down) the right style came
# out in 63 % of 400 pictures at 0.9, in 58 % at 1; the label was found about as often.

# %% [markdown]
# ## Guidance
#
# The model knows what pictures look like without any caption, for it was trained on
# silence as well: one in ten. So at each step it can guess twice, *with* the prompt and
# without, and go further in the direction that the prompt makes a difference. With the
# logits $c$ and $u$, and a scale $s$:
#
# $$u + s\,(c - u)$$
#
# s = 1 is the plain model, s = 0 ignores the prompt. This **classifier-free guidance**
# is not in the DALL·E paper. It comes from diffusion (lesson 11), and Make-A-Scene and
# Parti used it for tokens in 2022. By hand, for three codes:

# %%
free = torch.tensor([0.5, 0.3, 0.2]).log()
asked = torch.tensor([0.4, 0.4, 0.2]).log()
for scale in (0, 1, 2, 5):
    chances = (free + scale * (asked - free)).softmax(0)
    print(f"s = {scale}:", [round(x, 2) for x in chances.tolist()])

# %% [markdown]
# The second code became likelier through the prompt, from 0.3 to 0.4; guidance carries
# on. The third, to which the prompt made no difference, loses with the first.
#
# **Predict first.** Forty labels, one sample each, at s = 0, 1, 2 and 5: what will the
# judge say?

# %%
LABELS = sorted({label for label, group in zip(train.table["label_en"],
                                               train.table["group"], strict=True)
                 if group != "flags"})  # fmt: skip
asked_for = random.Random(1).sample(LABELS, 40)
judge, guide = checkpoints.load("clip"), checkpoints.load("clip_resnet")


def found_by_judge(groups: list[Tensor], labels: list[list[str]]) -> list[float]:
    """Of groups of pictures, each with its labels: the share found in each."""
    asked = [label for group in labels for label in group]
    found = found_among(judge, torch.cat(groups), asked, LABELS).float()
    return [part.mean().item() for part in found.split([len(x) for x in groups])]


names = train.table["label_en"]
real = train.pictures[[names.index(label) for label in asked_for]].float() / 255
drawn = {
    f"s = {scale:g}": shipped.generate(asked_for, seed=0, guidance=scale)
    for scale in (0.0, 1.0, 2.0, 5.0)
}
drawn["real pictures"] = real.to(device.pick())
shares = found_by_judge([*drawn.values()], [asked_for] * len(drawn))
by_scale = dict(zip(drawn, shares, strict=True))

# %%
plots.picture_rows(
    {name: pictures[:8].cpu() for name, pictures in drawn.items()},
    alt="Eight labels at four scales of guidance, above a picture of each",
)
print("the first eight:", ", ".join(asked_for[:8]))
fig, ax = plots.figure(width=6, height=2.0)
title = "Guidance makes samples easier to recognise"
plots.bars(ax, by_scale, "image", title, "share that the judge finds among 100")
plots.show(fig, "Without the prompt next to none are found, with guidance most")
print("the prompt is heeded:", by_scale["s = 1"] > by_scale["s = 0"] + 0.2)
print("guidance helps:", by_scale["s = 2"] > by_scale["s = 1"])

# %% [markdown]
# ## Draw many, keep the best
#
# The paper draws 512 pictures for each caption and lets CLIP choose (sec. 2.6). Our
# **guide** chooses, `clip_resnet`; the judge, who has no say in it, measures. To let
# the same network choose and measure would prove nothing: more candidates would then
# *always* be better.

# %% tags=["brick"]
@takes(prompt="text")
@torch.no_grad()
def rerank(guide: CLIP, pictures: Tensor, prompt: str) -> Tensor:
    """Numbers of pictures (N, 3, H, W), the one that fits the prompt best first: (N,).

    Ramesh et al. 2021, sec. 2.6.
    """
    scores = image_vectors(guide, pictures) @ guide.encode_text([prompt])[0]
    return scores.argsort(descending=True)


# %%
MANY, few = 16, asked_for[:24]
candidates = {}
for start in widgets.progress(range(0, 24, 6), "sixteen candidates of six labels"):
    six = few[start : start + 6]
    prompts = [label for label in six for _ in range(MANY)]
    pictures = shipped.generate(prompts, seed=[*range(MANY)] * 6, guidance=1.0)
    candidates |= zip(six, pictures.split(MANY), strict=True)


every = [label for label in few for _ in range(MANY)]
found = found_among(judge, torch.cat([*candidates.values()]), every, LABELS)
found = found.view(len(few), MANY).float()
ranked = {label: rerank(guide, c, label).cpu() for label, c in candidates.items()}


def best_of(count: int) -> float:
    """Share found of the guide's choice among the first `count` candidates."""
    chosen = [order[order < count][0] for order in ranked.values()]
    return found[range(len(few)), chosen].mean().item()


counts = (1, 2, 4, 8, 16)
curve, at_random = [best_of(count) for count in counts], found.mean().item()

# %%
fig, ax = plots.figure(width=6, height=2.6)
ax.plot(counts, curve, "o-", color=plots.COLOURS["image"], label="the guide's choice")
ax.axhline(at_random, ls="--", color=plots.COLOURS["noise"], label="any of the 16")
ax.set(title="More to choose from, more that fit", xlabel="candidates", xscale="log")
ax.set(ylabel="found by the judge", ylim=(0, 1))
ax.set_xticks(counts, counts)
ax.legend()
plots.show(fig, "The share found by the judge rises with the number of candidates")
print("sixteen are better than one:", curve[-1] > curve[0])
print("and the choice is better than a random one:", curve[-1] > at_random + 0.1)
label = few[0]
plots.grid(
    candidates[label].cpu()[ranked[label]],
    [f"{place + 1}." for place in range(MANY)],
    alt=f"Sixteen candidates for “{label}”, the guide's favourite first",
)

# %% [markdown]
# ## Is it a copy?
#
# 6,791 pictures is little, and a network with six million weights can learn them by
# heart. So every sample must stand beside the training picture that is nearest to it.
# We count the codes that the two share.

# %% tags=["brick"]
@takes(codes="(B, L) int64", known="(N, L) int64")
def nearest_codes(codes: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The share of codes that each grid has in common with its nearest known one.

    codes: (B, L); known: (N, L). Returns shares (B,) in [0, 1], and which it is, (B,).
    """
    shares = torch.stack([(row == known).float().mean(1) for row in codes])  # (B, N)
    return shares.max(1)


# %%
kept, aside = data.set_aside(train)
known = as_codes(kept)
drawn_codes = shipped.codes(asked_for, seed=0, guidance=1.0)
share, nearest = nearest_codes(drawn_codes.flatten(1), known)
order = share.argsort()[[0, 5, 12, 20, 28, 34, 37, 39]].tolist()
beside = kept.pictures[nearest[order].cpu()].float() / 255
plots.picture_rows(
    {
        "samples": shipped.quantiser.decode(drawn_codes[order]).cpu(),
        "the nearest pictures of the training": beside,
    },
    alt="Samples above their nearest training pictures, the least alike first",
)

# %% [markdown]
# How much is much? Unseen *real* pictures are the yardstick: they can be no copies, and
# still share codes with a training picture, a white margin for example.

# %%
compared = nearest_codes(as_codes(unseen)[::4], known)[0]
fig, ax = plots.figure(width=6, height=2.2)
for found, name, colour in ((share, "samples", "code"), (compared, "unseen", "noise")):
    ax.hist(found.tolist(), bins=[x / 16 for x in range(17)], density=True,
            histtype="step", label=name, color=plots.COLOURS[colour])  # fmt: skip
ax.set(title="Samples are no nearer to the training than new pictures are")
ax.set(xlabel="share of codes in common with the nearest", yticks=[])
ax.legend()
plots.show(fig, "Most samples share about a fifth of their codes with the nearest "
           "picture, as unseen real pictures do")  # fmt: skip
print("no nearer than unseen real ones:", bool(share.mean() < compared.mean() + 0.05))
print("nine codes in ten from one picture: fewer than 5 %:",
      bool((share >= 0.9).float().mean() < 0.05))  # fmt: skip

# %% [markdown]
# A label alone asks for something that was shown four times, so to recite would be no
# mistake there. What was **never shown** is the better question: the 200 pairs set
# aside, a thing in a style in which the model never saw it.

# %%
rows = [aside.row(i) for i in range(0, len(aside), 5)]
labels = [row["label_en"] for row in rows]
prompts = [f"{STYLE[row['style']]} drawing of {row['label_en']}" for row in rows]
never = shipped.generate(prompts, seed=0)
wanted = {"asked for": labels, "another label": labels[1:] + labels[:1]}
found = found_by_judge([never] * 2, [*wanted.values()])
shares = dict(zip(wanted, found, strict=True))
numbers = [data.STYLES.index(row["style"]) for row in rows]

# %%
from utils.bricks.zero_shot import linear_probe, probe_scores

third = kept.take(range(0, len(kept), 3))
styles = torch.tensor([data.STYLES.index(s) for s in third.table["style"]])
features = image_vectors(judge, third.pictures)
probe = linear_probe(features, styles.to(features.device), 4)
told = probe_scores(image_vectors(judge, never), probe).argmax(1).cpu()
shares["its style"] = (told == torch.tensor(numbers)).float().mean().item()
shares["another style"] = (told == torch.tensor(numbers).roll(1)).float().mean().item()
fig, ax = plots.figure(width=6, height=1.9)
plots.bars(ax, shares, "image", "Pairs that were never shown", "share")
plots.show(fig, "Of 40 pairs never shown, the judge finds many by label and style, and "
           "few by a wrong label")  # fmt: skip
print("the label is found far more often than a wrong one:",
      shares["asked for"] > shares["another label"] + 0.2)  # fmt: skip
print("the style, too:", shares["its style"] > shares["another style"] + 0.1)

# %%
seven = [0, 6, 12, 18, 24, 30, 36]
plots.picture_rows(
    {
        "never shown, drawn": never[seven].cpu(),
        "what an artist drew": aside.pictures[[5 * i for i in seven]] / 255,
    },
    alt="Seven pairs never shown: what the model draws, above what the artists drew",
)
print("; ".join(prompts[i] for i in seven))

# %% [markdown]
# ## Where it looks
#
# Which words does a code look at? For one picture, the attention weights from each code
# to each place of the text, averaged over heads and layers, drawn over the grid. As a
# control, the pads: they stand in the same text, and say nothing.


# %%
@torch.no_grad()
def looks_at(model: DALLE, prompt: str, codes: Tensor) -> Tensor:
    """Attention from codes to text: (layers, side² − 1, text), mean over heads."""
    x = model.embed(model.encode_text([prompt]), codes[:, :-1])
    length, found = x.shape[1], []
    for block, mask in zip(model.blocks, model.masks, strict=True):
        q, k, _ = block.attention.project(block.norm1(x))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        weights = (scores + mask[:length, :length]).softmax(-1).mean(1)  # (1, L, L)
        found.append(weights[0, 1 + model.text :, 1 : 1 + model.text])
        x = block(x, mask[:length, :length])
    return torch.stack(found).float().cpu()


prompt = "a flat drawing of red apple"
codes = shipped.codes([prompt], seed=0).flatten(1)
weights = looks_at(shipped, prompt, codes).mean(0)  # (63, text)
ids = shipped.tokenizer.encode(prompt)
names = [shipped.tokenizer.tokens[i].removesuffix("</w>") for i in ids]
fig, axes = plots.figure(columns=len(names) + 1, width=11, height=1.4)
axes[0].imshow(shipped.quantiser.decode(codes.view(1, 8, 8))[0].permute(1, 2, 0).cpu())
axes[0].axis("off")
for place, (ax, name) in enumerate(zip(axes[1:], names, strict=True)):
    looked = F.pad(weights[:, place], (1, 0)).view(8, 8)
    plots.heatmap(looked, ax, name, limit=weights[:, : len(names)].max().item())
plots.show(fig, "A picture and, for each word of its prompt, which codes looked at it")
on_words = weights[:, : len(names)].mean()
on_pads = weights[:, len(names) :].mean()
print("a word gets more than a pad:", bool(on_words > on_pads))

# %% [markdown]
# ## Play: watch it fill in
#
# A prompt, a seed, a temperature, and how many candidates the guide may choose from.
# Press *Start*: the codes come one by one, from the top left; what is not drawn yet is
# grey. At the end stands the guide's favourite.
#
# **Predict first.** At the same seed, from "a 3D drawing of red apple" to "a flat
# drawing of red apple": will the two pictures begin alike?
#
# <details><summary>Answer</summary>
#
# Hardly. The same darts fall, but on other chances: often the very first code is
# another one already, and each code depends on all before it. A seed fixes the picture
# of a prompt; it does not carry over to the next prompt.
#
# </details>


# %%
def shown(codes: Tensor) -> Tensor:
    """Pictures (B, 3, 64, 64) of the first n codes (B, n); the rest is grey."""
    count, total = codes.shape[1], shipped.side**2
    blank = known[:, -1].mode().values.to(codes.device)  # the most common last code
    filled = torch.cat([codes, blank.expand(len(codes), total - count)], 1)
    pictures = shipped.quantiser.decode(filled.view(-1, shipped.side, shipped.side))
    drawn = (torch.arange(total, device=codes.device) < count).float()
    drawn = F.interpolate(drawn.view(1, 1, 8, 8), scale_factor=8)
    return drawn * pictures + (1 - drawn) * 0.8


def frames(prompt, seed, temperature, guidance, count):
    how = {"seed": range(seed, seed + count), "temperature": temperature}
    (prompt,) = widgets.prompts(prompt, most=1)
    for codes in shipped.stream([prompt] * count, guidance=guidance, **how):
        if codes.shape[1] % 2 == 0:
            pictures = shown(codes)
            yield pictures
    yield pictures[rerank(guide, pictures, prompt)]


widgets.film(
    [
        widgets.text("Prompt", "a 3D drawing of red apple"),
        widgets.slider("Seed", 0, 0, 1000),
        widgets.slider("Temperature", 0.9, 0.1, 2.0),
        widgets.slider("Guidance", 2.0, 1.0, 5.0),
        widgets.slider("Candidates", 4, 1, 16),
    ],
    frames,
    "A picture that fills in, code by code.",
    steps=33,
)

# %% [markdown]
# What the film shows, at five moments:

# %%
moments = [c for c in shipped.stream(["a 3D drawing of red apple"], guidance=2.0)]
stills = torch.cat([shown(moments[i]) for i in (7, 23, 31, 47, 63)]).cpu()
names = [f"{count} codes" for count in (8, 24, 32, 48, 64)]
plots.grid(stills, names, alt="An apple fills in from the top left")
print("codes:", [tuple(moments[i].shape) for i in (0, 63)])
two = [f"a {look} drawing of red apple" for look in ("3D", "flat")]
solid, flat = (shipped.codes([p] * 4, seed=range(4), guidance=2.0) for p in two)
print("3D and flat share fewer than half of their codes, seed by seed:",
      bool((solid == flat).float().mean() < 0.5))  # fmt: skip
for bad in ("red apple", [""], []):
    try:
        shipped.generate(bad)
    except ValueError as error:
        print("✗", error)

# %% [markdown]
# ## Break it
#
# The small model again, from the same start and on the same batches, with one thing
# taken out each:
#
# - **no rows and columns**: the codes have no position;
# - **one pad**: all places of the text share one;
# - **no offset**: code 7 and word 7 are the same token;
# - **sparse**: the three masks in place of full attention.
#
# **Predict first.** Which one hurts most, and which hardly?


# %%
class Broken(DALLE):
    """A DALLE with one part taken out."""

    part = ""

    def embed(self, ids: Tensor, codes: Tensor) -> Tensor:
        if self.part == "one pad":
            ids = ids.clamp(max=self.first_pad)
        x = super().embed(ids, codes)
        if self.part == "no rows and columns":
            grid = (self.rows + self.columns).flatten(0, 1)
            x[:, 1 + self.text :] -= grid[: codes.shape[1]]
        if self.part == "no offset":
            x[:, 1 + self.text :] += self.tokens(codes) - self.tokens(
                codes + self.first_code
            )
        return x


def try_without(part: str, **settings) -> float:
    """The loss on the pictures after a short run, in nats a code."""
    device.seed(0)
    merges = shipped.config["merges"]
    model = Broken(quantiser, merges, width=128, depth=4, heads=4, **settings)
    model.part = part
    train_on(model.to(device.pick()), 40, part or "whole")
    return picture_loss(model, face_ids[some], face_codes[some])


parts = ("", "no rows and columns", "one pad", "no offset")
lost = {name: try_without(name) for name in parts}
lost["sparse"] = try_without("sparse", attention="sparse")
lost = {name or "whole": value for name, value in lost.items()}

# %%
fig, ax = plots.figure(width=6, height=2.2)
more = {name: value - lost["whole"] for name, value in lost.items() if name != "whole"}
plots.bars(ax, more, "wrong", "What is lost", "nats a code more than the whole one")
plots.show(fig, "Without rows and columns the loss is far higher")
print("the worst:", max(more, key=more.get))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Without a position a code does not know in which row it stands, and a picture has
# margins. The others change next to nothing in so short a run. A shared pad is still
# told from place to place by the positions of the text, and so are words and codes that
# share tokens. The sparse masks lose nothing here, and at 8 × 8 they save little.
#
# </details>
#
# ## Exercises
#
# > **Exercise 1 · Finish a picture** — difficulty 2 of 3, about 8 minutes. Why it
# > matters: whoever has the top of a picture can let the model draw the rest: the cat
# > above the sketch in the paper's last figure. Write `fixed_first(logits, code)`: for
# > logits (B, K) and one code for each row, (B,), or −1 for "draw freely", the logits
# > with which `choose` must take that code, whatever the dart.


# %% tags=["exercise"]
def fixed_first(logits: Tensor, code: Tensor) -> Tensor:
    """(B, K), (B,) → (B, K)."""
    ...


# %%
from utils.exercises import dalle as exercises

exercises.check_fixed_first(fixed_first)

# %% [markdown]
# <details><summary>Hint</summary>
#
# −∞ everywhere but at the code; rows with −1 stay as they are.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def fixed_first(logits, code):
#     numbers = torch.arange(logits.shape[1], device=logits.device)
#     free = (code < 0).unsqueeze(1)
#     return logits.masked_fill(~free & (numbers != code.unsqueeze(1)), -torch.inf)
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · The mask of a block** — difficulty 2 of 3, about 10 minutes. Why it
# > matters: newer models draw 2 × 2 codes at once. Write `block_mask(side, size)`: the
# > grid is cut into blocks of size × size codes; a code looks at all codes of its own
# > block and of every block before it, blocks counted row by row. (side², side²) bool,
# > codes in raster order; size divides side.


# %% tags=["exercise"]
def block_mask(side: int, size: int) -> Tensor:
    """(side², side²) bool: row = who asks."""
    ...


# %%
exercises.check_block_mask(block_mask)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Number the block of every code first, (side²,). Who looks at whom is then one
# comparison of those numbers with themselves.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def block_mask(side, size):
#     row = torch.arange(side).repeat_interleave(side) // size
#     column = torch.arange(side).repeat(side) // size
#     block = row * (side // size) + column
#     return block.unsqueeze(1) >= block
# ```
#
# </details>

# %% [markdown]
# > **Exercise 3 · The size of a cache** — difficulty 1 of 3, about 5 minutes. Why it
# > matters: it is what limits how many pictures can be drawn at once. Write
# > `cache_bytes(tokens, width, depth, batch, number)`: the bytes of all keys and values
# > after `tokens` tokens, with `number` bytes a number.


# %% tags=["exercise"]
def cache_bytes(tokens: int, width: int, depth: int, batch: int, number: int) -> int:
    """Bytes of the keys and values of all layers."""
    ...


# %%
exercises.check_cache_bytes(cache_bytes)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The heads share the width among them, so their number does not matter.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def cache_bytes(tokens, width, depth, batch, number):
#     return 2 * tokens * width * depth * batch * number
# ```
#
# </details>

# %% [markdown]
# > **Exercise 4 · Away from something** — difficulty 2 of 3, about 8 minutes. Why it
# > matters: "a car, but not red". Write `steer(free, wanted, unwanted, scale, away)`,
# > all logits (B, K): from `free`, `scale` times towards `wanted` and `away` times
# > *away* from `unwanted`. With away = 0 it is guidance; if wanted and unwanted are the
# > same, equal strengths cancel and `free` is left.


# %% tags=["exercise"]
def steer(
    free: Tensor, wanted: Tensor, unwanted: Tensor, scale: float, away: float
) -> Tensor:
    """Three (B, K) → (B, K)."""
    ...


# %%
exercises.check_steer(steer)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Both differences start at `free`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def steer(free, wanted, unwanted, scale, away):
#     return free + scale * (wanted - free) - away * (unwanted - free)
# ```
#
# </details>

# %% [markdown]
# ## Myth check
#
# **"To draw, DALL·E first encodes a picture with its dVAE."** That is training. When it
# draws there is no picture yet: text in, 1,024 codes out, the dVAE's *decoder* makes
# the picture, and CLIP ranks 512 of them. `generate` above never calls `encode`.
#
# **"Stage one and stage two are two steps of drawing."** They are two *trainings*: of
# the codes, and of the stream.
#
# **"All three masks are used throughout."** Convolutional attention is in the last of
# 64 layers only (app. B.1): see `kind_of_layer`.
#
# **"A concept must have appeared in the training for the model to draw it."** Too
# strong, and our 200 pairs set aside say so for combinations: none was shown, many come
# out. For a wholly unknown *thing* there is nothing to combine; try a word of your own
# in the film.
#
# **"It is a copy machine."** It can be, and one can measure when: see the shares of
# common codes.
#
# ## Differs from the paper
#
# | | Ramesh et al. 2021 | here | why |
# |---|---|---|---|
# | codes | 32 × 32 of 8,192, a dVAE | 8 × 8 of 1,024, our VQGAN | small pictures |
# | Transformer | 64 layers, 62 heads, 12 B weights | 8, 7, 6 M | a laptop |
# | text | 256 tokens of 16,384, BPE dropout | 16 of 2,000, none | short captions |
# | masks | sparse | full; sparse can be chosen | 64 codes |
# | loss | ⅛ and ⅞ | the same | |
# | pairs | 250 million | 6,791 and moved copies | our data |
# | against reciting | much data | dropout, random codes, moves | few pictures |
# | optimizer | AdamW (0.9, 0.96) | Muon and AdamW | speed |
# | drawing | temperature, 512 candidates | guidance, 0.9, 16 candidates | came after |
#
# ## Where this goes next
#
# A stream of tokens is one way from words to codes. **Lesson 09** takes another:
# no Transformer at all, CLIP itself pulls at the codes until the picture fits.
#
# ## Read more
#
# - Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, sec. 2.2–2.6, app. B.
# - lucidrains/DALLE-pytorch, `dalle_pytorch/dalle_pytorch.py` (pads, offsets, the mask
#   on the logits), `attention.py`.
# - Ho & Salimans 2022, *Classifier-Free Diffusion Guidance*; Gafni et al. 2022,
#   *Make-A-Scene*, and Yu et al. 2022, *Parti*: the same for tokens.
# - Child et al. 2019, *Generating Long Sequences with Sparse Transformers*.
#
# **Glossary** · 词元 token · 填充 padding · 偏移 offset · 稀疏注意力 sparse attention ·
# 键值缓存 key–value cache · 无分类器引导 classifier-free guidance · 重排序 re-ranking ·
# 候选 candidate · 记忆 memorisation · 自回归 autoregressive
