"""The bricks of lesson 08_dalle.

Built by `make build` from lessons/08_dalle.py: edit them there.
"""

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


def with_pads(rows: list[list[int]], length: int, first_pad: int) -> Tensor:
    """Ids of texts → (B, length): what is missing at place j becomes first_pad + j.

    rows: ids of each text; what is longer than `length` is cut. Every place has a pad
    of its own, which is learnt like a word. Ramesh et al. 2021, sec. 2.2.
    """
    pads = list(range(first_pad, first_pad + length))
    filled = [row[:length] + pads[len(row) :] for row in rows]
    return torch.tensor(filled, dtype=torch.long).view(-1, length)


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


@takes(prompt="text")
@torch.no_grad()
def rerank(guide: CLIP, pictures: Tensor, prompt: str) -> Tensor:
    """Numbers of pictures (N, 3, H, W), the one that fits the prompt best first: (N,).

    Ramesh et al. 2021, sec. 2.6.
    """
    scores = image_vectors(guide, pictures) @ guide.encode_text([prompt])[0]
    return scores.argsort(descending=True)


@takes(codes="(B, L) int64", known="(N, L) int64")
def nearest_codes(codes: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The share of codes that each grid has in common with its nearest known one.

    codes: (B, L); known: (N, L). Returns shares (B,) in [0, 1], and which it is, (B,).
    """
    shares = torch.stack([(row == known).float().mean(1) for row in codes])  # (B, N)
    return shares.max(1)
