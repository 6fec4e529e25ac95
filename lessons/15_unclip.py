# ---
# jupyter:
#   brick: unclip
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 15 · unCLIP: DALL·E 2, built small
#
# ![A caption becomes a text vector; the prior guesses a picture vector from it, across
# the gap; the decoder draws a picture of that vector](../assets/figures/15_unclip.svg)
#
# CLIP turns pictures into vectors. **Can one go back?** A vector says what is in a
# picture and forgets where each pixel lay, so there are many ways back, and each is
# another picture of the same thing. Ramesh et al. 2022 draw from *picture* vectors, and
# learn to guess those from captions: unCLIP, known as DALL·E 2. Here ends the road that
# began with two towers in lesson 03.

# %%
import random

from utils import checkpoints, data, plots, training, widgets

guide, judge = checkpoints.load("clip_resnet"), checkpoints.load("clip")
latent = checkpoints.load("latent_diffusion")
here = latent.signal.device
train = data.load_emoji("train").where(skin_tone="none")
unseen = data.load_emoji("unseen").where(skin_tone="none")
kept, aside = data.set_aside(train, 200)

# %% [markdown]
# What the bricks of this lesson are made of:

# %% tags=["brick"]
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import device
from utils.bricks.attention import Block
from utils.bricks.clip import CLIP
from utils.bricks.diffusion import betas, signal_left, timestep_embedding
from utils.bricks.latent_diffusion import LatentDiffusion, Said, latent_loss
from utils.bricks.sampling import walk
from utils.bricks.text_encoders import causal_mask
from utils.bricks.zero_shot import image_vectors
from utils.given import takes

# %% [markdown]
# ## A toy: two rings and a gap
#
# Twelve things. Each has one caption (orange) and pictures of two styles (blue), flat
# ones on the inner ring, 3D ones on the outer. As in lesson 03, captions and pictures
# lie in two clouds with a gap between. A decoder has learnt to draw from blue points.
# Somebody hands in a caption. **Predict first:** which point to draw from is guessed
# better, by a network of the least squared error, or by diffusion? (Diffusion learns by
# squared error, too, but among noise: what it begins with decides *which* is drawn.)

# %%
draw = device.generator(0)
thing = torch.randint(12, (3000,), generator=draw)
angle = 0.2 + thing / 11 * 1.6
radius = 1.0 + 0.6 * torch.randint(2, (3000,), generator=draw)
radius = radius + 0.03 * torch.randn(3000, generator=draw)
seen = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
said = -1.2 * torch.stack([angle.cos(), angle.sin()], 1)  # the same way round, across


def learn_prior(steps: int = 1500) -> Tensor:
    """For 300 captions a point each, by a small diffusion model: (300, 2)."""
    device.seed(0)
    layers = [nn.Linear(5, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU()]
    net = nn.Sequential(*layers, nn.Linear(96, 2))
    optimizer = torch.optim.Adam(net.parameters())

    # level: 1 − ᾱ; the network says −v, and the loss is that of v (lesson 10)
    def guess(x: Tensor, level: Tensor, captions: Tensor) -> Tensor:
        correction = net(torch.cat([x, 4 * level - 2, captions], 1))
        return (1 - level).sqrt() * x + level.sqrt() * correction

    for step in range(steps):
        rows = torch.randint(3000, (256,))
        level = (1.57 * torch.rand(256, 1)).sin().square().clamp(1e-4, 0.9999)
        x = (1 - level).sqrt() * seen[rows] + level.sqrt() * torch.randn(256, 2)
        off = guess(x, level, said[rows]) - seen[rows]
        loss = (off.square() / level).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.015 * (1 - step / steps)
        optimizer.step()
    levels = torch.linspace(1.55, 0.02, 50).sin().square()
    x = torch.randn(300, 2)
    with torch.no_grad():
        for level, less in zip(levels, [*levels[1:], torch.zeros(())], strict=True):
            x0 = guess(x, level.expand(300, 1), said[:300])
            noise = (x - (1 - level).sqrt() * x0) / level.sqrt()
            x = (1 - less).sqrt() * x0 + less.sqrt() * noise
    return x


# %%
means = [seen[thing == i].mean(0) for i in range(12)]  # of the least squared error
means = torch.stack(means)
guesses = {"the captions themselves": said[:300], "the means": means[thing[:300]]}
guesses["diffusion"] = learn_prior()
fig, axes = plots.figure(columns=3, width=10, height=2.8)
off = {}
for ax, (name, points) in zip(axes, guesses.items(), strict=True):
    ax.plot(*seen[:600].T, ".", ms=2, color=plots.COLOURS["image"])
    ax.plot(*points.T, ".", ms=5, color=plots.COLOURS["text"])
    ax.set(title=name, xlim=(-1.9, 1.9), ylim=(-1.9, 1.9), xticks=[], yticks=[])
    off[name] = torch.cdist(points, seen).amin(1).mean().item()
plots.show(fig, "Captions across the gap, means between the rings, diffusion on them")
far, between, near = off.values()
print("from far to near: captions, means, diffusion:", far > between > 2 * near)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Diffusion. The least squared error is the mean, and the mean of a flat apple and one
# in 3D is no apple that anybody drew. A **prior** that samples picks one of them: as in
# lesson 05, it draws what the decoder gets, and this one listens to a caption. The
# caption's own point is farther off than both: it lies across the gap.
#
# </details>
#
# ## The gap, for real

# %%
names = sorted({x for x in kept.table["label_en"] if "flag" not in x})
names = random.Random(0).sample(names, 150)
styles = {style: kept.where(style=style) for style in ("twemoji", "fluent")}
places = {style: pairs.table["label_en"] for style, pairs in styles.items()}
names = [name for name in names if all(name in p for p in places.values())]
flat, solid = (
    image_vectors(guide, pairs.pictures[[places[style].index(n) for n in names]]).cpu()
    for style, pairs in styles.items()
)  # (N, d) each
texts = guide.encode_text(names).cpu()
pairs = {
    "a picture and its caption": (flat, texts),
    "two styles of one thing": (flat, solid),
    "two things": (flat, flat.roll(1, 0)),
    "two captions": (texts, texts.roll(1, 0)),
}
cosines = {name: (a * b).sum(1).mean().item() for name, (a, b) in pairs.items()}
fig, ax = plots.figure(width=6, height=1.8)
plots.bars(ax, cosines, "shared", "", "cosine", numbers="{:.2f}")
plots.show(fig, "Two styles of one thing are nearer than a picture and its caption")
apart = cosines["two styles of one thing"] - cosines["a picture and its caption"]
print("a picture is nearer to its other style than to its caption:", apart > 0.05)
gap, step = (flat.mean(0) - x.mean(0) for x in (texts, solid))
print("from pictures to captions is farther than from style to style:",
      bool(gap.norm() > step.norm() + 0.05))  # fmt: skip

# %% [markdown]
# CLIP was only asked to *rank* captions, and for that a constant gap does no harm. A
# decoder that knows picture vectors has never seen one on the other side.
#
# ## The prior
#
# A vector has no rows and columns, so no U-Net: a small Transformer reads a row of
# tokens, and the state of the last is its answer.
#
# | words of the caption | caption's vector | time | noisy vector | *what is it?* |
# |---|---|---|---|---|
#
# Three traps. The first and the last are a line each in the paper (sec. 2.2), the
# second is not said at all:
#
# - It predicts **x₀**, not the noise.
# - The vectors are **scaled**. **By hand:** a vector of length 1 has d = 256 numbers of
#   size 1/√256 = 0.06. Schedules are made for numbers of size 1, so it is multiplied by
#   √256 = 16. Unscaled, noise would be larger after some thirty of 1,000 times
#   (exercise 3).
# - It is asked **twice**, and the vector that is nearer to the caption is taken.


# %% tags=["brick"]
class Prior(LatentDiffusion):
    """Captions → the vector that CLIP would give pictures of them, by diffusion.

    A Transformer reads the words, the caption's vector, the time, the noisy vector and
    a last token, whose state is the answer: x₀. It walks as latent diffusion does, in
    vectors (B, dim) scaled by √dim. Ramesh et al. 2022, sec. 2.2.
    """

    def __init__(
        self,
        clip: CLIP,
        width: int,
        depth: int,
        heads: int,
        schedule: str = "cosine",
        steps: int = 1000,
    ):
        nn.Module.__init__(self)
        self.config = {"width": width, "depth": depth, "heads": heads}
        self.config |= {"schedule": schedule, "steps": steps}
        self.clip, self.steps, self.predicts = clip, steps, "x0"
        self.dim, self.width = clip.config["dim"], width
        self.shape = (self.dim,)
        signal = signal_left(betas(schedule, steps)).float()
        self.register_buffer("signal", signal, persistent=False)  # ᾱ
        self.words = nn.Linear(clip.text_tower.width, width)
        self.vector = nn.Linear(self.dim, width)
        self.time = nn.Linear(width, width)
        self.noisy = nn.Linear(self.dim, width)
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.places = nn.Parameter(0.02 * torch.randn(4, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, self.dim)

    def forward(self, x: Tensor, t: Tensor, text: Said) -> Tensor:
        """The vector as it is seen in x_t (B, dim); t: (B,); text: `encode_text`."""
        vectors, states, mask = text
        time = self.time(timestep_embedding(t, self.width))
        query = self.query.expand(len(x), -1)
        last = torch.stack([self.vector(vectors), time, self.noisy(x), query], 1)
        tokens = torch.cat([self.words(states), last + self.places], 1)
        before = causal_mask(tokens.shape[1], x.device)
        seen = (before + F.pad(mask, (0, 4))[:, None])[:, None]  # (B, 1, L, L)
        for block in self.blocks:
            tokens = block(tokens, seen)
        return self.out(self.norm(tokens[:, -1])).float()

    @takes(pictures="pictures")
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] → scaled vectors (B, dim)."""
        return self.clip.encode_image(pictures) * self.dim**0.5

    def decode(self, z: Tensor) -> Tensor:
        """Scaled vectors → vectors of length 1, as CLIP has them: (B, dim)."""
        return F.normalize(z, dim=1)


# %% [markdown]
# Everything else it has from lesson 14: the loss, the walk, guidance and the prompts.


# %% tags=["brick", "blank"]
@takes(prompts="texts", seed="whole", candidates="from 1", guidance="finite")
@torch.no_grad()
def imagine(
    prior: Prior,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    candidates: int = 2,
    guidance: float = 2.0,
    steps: int = 25,
) -> Tensor:
    """The vector of a picture for each prompt, (B, dim), of length 1.

    Of so many candidates that one which has the largest dot product with the caption's
    vector. Ramesh et al. 2022, sec. 2.2.
    """
    texts = prior.clip.encode_text(prompts)
    how, each = {"guidance": guidance, "steps": steps}, range(len(prompts))
    seeds = [[seed + 1000 * turn + i for i in each] for turn in range(candidates)]
    drawn = torch.stack([prior.generate(prompts, seed=s, **how) for s in seeds])
    best = (drawn * texts).sum(2).argmax(0)  # (B,)
    return drawn[best, torch.arange(len(best))]


# %% [markdown]
# ## The decoder
#
# Ramesh et al. train a large diffusion model for it. We have one: latent diffusion
# knows how to draw, and only waits to be told *what*, by a vector and a row of word
# states. So a picture's vector learns to **speak in words**: one layer makes four
# tokens of it, which in the paper stand beside the caption's, another the vector that
# goes to the time. Nothing else is trained. (IP-Adapter, Ye et al. 2023, freezes a
# U-Net in the same way, and gives the new tokens attention layers of their own.)


# %% tags=["brick"]
class UnCLIP(nn.Module):
    """Vectors of CLIP → pictures: latent diffusion that is told one, not words.

    latent: frozen; words: how many tokens a vector becomes. After Ramesh et al. 2022,
    sec. 2.1.
    """

    def __init__(self, latent: LatentDiffusion, words: int):
        super().__init__()
        self.config, self.latent, self.words = {"words": words}, latent, words
        self.tokens = nn.Linear(latent.dim, words * latent.clip.text_tower.width)
        self.vector = nn.Linear(latent.dim, latent.dim)
        nn.init.eye_(self.vector.weight)  # as if a caption's vector came
        nn.init.zeros_(self.vector.bias)

    def says(self, vectors: Tensor) -> Said:
        """Vectors of CLIP, (B, dim), of length 1 → what a caption would say."""
        x = vectors.to(self.vector.weight.device) * self.latent.dim**0.5
        states = self.tokens(x).unflatten(1, (self.words, -1))
        return self.vector(x), states, x.new_zeros(len(x), self.words)

    @takes(vectors="(B, d)", seed="seeds", guidance="finite")
    @torch.no_grad()
    def stream(
        self,
        vectors: Tensor,
        *,
        seed: int | Sequence[int] = 0,
        guidance: float = 2.0,
        steps: int = 25,
        noise: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """From noise to latents of pictures; yields (x, x₀ as seen in it).

        vectors: (B, dim); seed: one for all, or one for each; noise: where the walk
        begins, (B, C, h, w), or None for that of the seeds. Raises ValueError in one
        sentence.
        """
        count, dim = vectors.shape
        if not count or dim != self.latent.dim:
            given = f"vectors are {count} × {dim}"
            raise ValueError(f"{given}; give one or more of {self.latent.dim} numbers")
        text = self.latent.beside(self.says(vectors))
        if noise is None:
            seeds = [seed] * count if isinstance(seed, int) else seed
            noise = self.latent.begin(None, seeds)[0]()
        if noise.shape != (count, *self.latent.shape):
            given = f"there are {count} vectors and {len(noise)} seeds or noises"
            raise ValueError(f"{given}; give one for each, {self.latent.shape}")
        how = {"guidance": guidance, "clamp": False}
        yield from walk(self.latent, noise, self.latent.times(steps), text, **how)

    def draw(self, vectors: Tensor, **how) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] of vectors; see `stream`."""
        *_, (x, _) = self.stream(vectors, **how)
        return self.latent.decode(x)


# %% [markdown]
# ### Train it
#
# Live: forty steps on five hundred pictures. **Predict first:** the U-Net has never
# been told a picture's vector. Where will the loss begin: at that of an empty caption,
# or at that of the right label? And where will it end?

# %%
some = kept.take(range(0, len(kept), len(kept) // 500))
parts = (some.pictures / 255).split(64)
z_some = torch.cat([latent.encode(part.to(here)) for part in parts])
v_some = image_vectors(guide, some.pictures)
captions = some.table["label_en"]
device.seed(0)
live = UnCLIP(latent, 4).to(here)
latent.requires_grad_(False)


@torch.no_grad()
def told(text: Said) -> float:
    """The loss on 96 pictures that are told so, always with the same noise."""
    losses = []
    for seed in range(1, 4):
        device.seed(seed)
        losses.append(latent_loss(latent, z_some[:96], text).item())
    return sum(losses) / len(losses)


unclip = checkpoints.load("unclip")
heard = {
    "nothing": told(latent.encode_text([""] * 96)),
    "the label": told(latent.encode_text(captions[:96])),
    "a vector, at first": told(live.says(v_some[:96])),
}


def learn(step: int) -> Tensor:
    rows = torch.randint(len(some), (32,), generator=device.generator(0, step))
    return latent_loss(latent, z_some[rows], live.says(v_some[rows]))


own = nn.ModuleList([live.tokens, live.vector])
optimizer = training.adamw(own, 3e-3, 0.0)
training.fit(own, learn, 40, optimizer=optimizer, name="words for a vector", warmup=5)
heard["a vector, 40 steps"] = told(live.says(v_some[:96]))
heard["a vector, shipped"] = told(unclip.says(v_some[:96]))
fig, ax = plots.figure(width=6, height=1.9)
plots.bars(ax, heard, "image", "What it helps to hear", "loss", "{:.2f}")
plots.show(fig, "A vector begins at the loss of nothing and ends below the label's")
half = (heard["nothing"] + heard["the label"]) / 2
print("at first it helps less than half as much as the label:",
      heard["a vector, at first"] > half)  # fmt: skip
print("after forty steps more than half as much:", heard["a vector, 40 steps"] < half)
print("the shipped one helps more than the label:",
      heard["a vector, shipped"] < heard["the label"])  # fmt: skip

# %% [markdown]
# <details><summary>Answer</summary>
#
# At that of an empty one: the four words are random at first, and drown what the vector
# might say. After forty steps it helps, and after a longer run, in the shipped decoder,
# *more* than the label: a picture's vector knows the style, too, and the pose. (All of
# that on pictures which both have been trained on.)
#
# </details>
#
# ### Variations
#
# The shipped decoder, and pictures of things that it never saw. Each row is another
# seed. **Compared with what?** With every other thing of the same group that it never
# saw, an animal for an animal: which of the two is nearer to the source, in the eyes of
# the judge?

# %% tags=["brick"]
@takes(pictures="pictures", seed="whole", guidance="finite", steps="from 1")
@torch.no_grad()
def variations(
    model: UnCLIP, pictures: Tensor, *, seed: int = 0, guidance=2.0, steps: int = 25
) -> Tensor:
    """Other pictures of what pictures (B, 3, S, S) in [0, 1] show, as many, 64 px wide.

    A picture becomes a vector, and the vector a picture. After Ramesh et al. 2022,
    sec. 3.1, where the walk begins at the picture's own noise, with dice.
    """
    vectors = image_vectors(model.latent.clip, pictures)
    seeds = range(seed, seed + len(pictures))
    return model.draw(vectors, seed=seeds, guidance=guidance, steps=steps)


# %%
source = unseen.take(range(3, len(unseen), len(unseen) // 40))
shown = source.pictures / 255
drawn = {
    seed: variations(unclip, shown, seed=seed, steps=15).cpu() for seed in (0, 100)
}
rows = {"pictures": shown[::4]} | {f"seed {s}": x[::4] for s, x in drawn.items()}
plots.picture_rows(rows, alt="Pictures, and others of the same colour and kind")
vectors = image_vectors(judge, shown)
everything = image_vectors(judge, unseen.pictures)
wins = []
for i, vector in enumerate(image_vectors(judge, drawn[0])):
    own = source.row(i)
    other = [
        j for j in range(len(unseen))
        if unseen.table["group"][j] == own["group"]
        and unseen.table["concept"][j] != own["concept"]
    ]  # fmt: skip
    beaten = vector @ vectors[i] > everything[other] @ vectors[i]
    wins.append(beaten.float().mean().item())
print("nearer than another of its group, in four cases of five:",
      sum(wins) > 0.8 * len(wins))  # fmt: skip

# %% [markdown]
# What is kept: colour, kind, roughly the style and the pose. What is lost is detail:
# faces, fingers and all that is small come out anew, and another way with each seed.
#
# ## What the prior is for
#
# A caption can be handed to the decoder as its own vector, straight across the gap, or
# as the one that the prior imagines. **Compared with what?** If the gap were the same
# for all, it would do to move every caption by the mean way across, as measured on
# other captions. And with the vector of a real picture: more cannot be had. The prior
# is guided, w = 2 (lesson 11): in its training one caption in ten was left out.

# %%
prior = checkpoints.load("prior")
asked = names[:30]
to_pictures = (solid[30:] - texts[30:]).mean(0)  # the mean way across
ways = {
    "text vector, no prior": texts[:30],
    "text vector, moved": F.normalize(texts[:30] + to_pictures, dim=1),
    "prior, no guidance": imagine(prior, asked, guidance=1.0),
    "prior": imagine(prior, asked),
    "picture vector": solid[:30],
}
pictures = {
    name: unclip.draw(vectors, seed=range(30), steps=15).cpu()
    for name, vectors in ways.items()
}
rows = {name: x[:10] for name, x in pictures.items()}
plots.picture_rows(rows, alt="Captions drawn five ways: the prior's rows "
                   "are more like the last than the first two")  # fmt: skip

# %%
from utils.bricks.dalle import found_among

pool = sorted(set(kept.table["label_en"]))
rows = [places["fluent"].index(label) for label in asked]  # as those of `solid`
real = image_vectors(judge, styles["fluent"].pictures[rows])
like = {name: (image_vectors(judge, x) * real).sum(1).mean().item()
        for name, x in pictures.items()}  # fmt: skip
near = {
    name: (vectors.cpu() * solid[:30]).sum(1).mean().item()
    for name, vectors in ways.items() if name != "picture vector"
}  # fmt: skip
fig, axes = plots.figure(columns=2, width=11, height=2)
title = "Drawn: how like a real picture, says the judge?"
plots.bars(axes[0], like, "text", title, "cosine", "{:.2f}")
title = "Imagined: how near to a real picture's vector?"
plots.bars(axes[1], near, "shared", title, "cosine", "{:.2f}")
plots.show(fig, "The prior's vectors are nearer to real ones, and so are its pictures")
print("the prior's vectors are nearer:",
      near["prior"] > near["text vector, no prior"] + 0.05)  # fmt: skip
print("and the pictures of them more like real ones:",
      like["prior"] > like["text vector, no prior"])  # fmt: skip

# %% [markdown]
# Thirty are few. The card of `unclip` has 400, and two more measures: how often the
# judge finds the label among 100, and how far the pictures are from real ones as a
# crowd, the Fréchet distance of lesson 10. It is the paper's measure: there captions'
# vectors handed to the same decoder give 16.55, the prior 7.99, and a rival that we do
# not build, a decoder trained on captions' vectors, 9.16 (sec. 5.1).

# %%
measured = checkpoints.card("unclip")["metrics"]
fig, axes = plots.figure(columns=3, width=12, height=1.6)
asks = {"found": "Found, %", "like_real": "Like a real one, cosine"}
asks["frechet"] = "Fréchet distance × 1,000: less is better"
for ax, (key, title) in zip(axes, asks.items(), strict=True):
    both = {"without": measured[f"{key}_without_prior"], "with": measured[key]}
    numbers = "{:.2f}" if key == "like_real" else "{:.0f}"
    plots.bars(ax, both, "text", title, "", numbers)
plots.show(fig, "With the prior more is found, and pictures are more like real ones")

# %% [markdown]
# Does the prior know more than the caption did? Its card has 200 captions of things
# that it was shown, and one for each new thing of `unseen`, without guidance: how near
# its guess is to the thing's picture, and whether that is the nearest picture of all.

# %%
card = checkpoints.card("prior")
known = card["metrics"]
fig, axes = plots.figure(columns=3, width=12, height=2.4)
axes[0].plot(*zip(*card["losses"], strict=True), color=plots.COLOURS["shared"])
axes[0].set(title="Its training", xlabel="step", ylabel="squared error")
asks = {"cosine": "How near is its picture?", "found": "Is that the nearest one? %"}
for ax, (key, title) in zip(axes[1:], asks.items(), strict=True):
    values = {
        f"{name}, {kind}": known[f"{split}{way}_{key}"]
        for split, kind in (("train", "shown"), ("unseen", "new"))
        for way, name in (("_text", "caption"), ("", "prior"))
    }
    plots.bars(ax, values, "text", title, "", "{:.2f}" if key == "cosine" else "{:.0f}")
plots.show(fig, "Its guesses are nearer to pictures and tell them apart no better")

# %% [markdown]
# It comes nearer, also for new things, and tells them apart no better than the caption
# itself, which is what CLIP was trained for. So by this measure the prior adds nothing
# to what the caption says. It carries it to where the decoder listens.
#
# ## Between two pictures
#
# Vectors of length 1 lie on a sphere. A straight line between two of them cuts through
# the ball: half way it is shorter than 1, and CLIP never gives such a vector. **Slerp**
# goes round on the surface, at an even pace. **By hand:** from (1, 0) to (0, 1) the
# straight half is (.5, .5), of length .71; the round one (.71, .71).


# %% tags=["brick", "blank"]
@takes(start="(B, d)", end="(B, d)")
def slerp(start: Tensor, end: Tensor, share: float | Tensor) -> Tensor:
    """Round a sphere from start to end, (B, d) each, of length 1: (B, d).

    share: of the way, 0 for start and 1 for end, a number or (B, 1). Between opposite
    ends there is no one way. Shoemake 1985.
    """
    angle = (start * end).sum(-1, keepdim=True).clamp(-1, 1).acos()
    angle = angle.clamp(1e-3, torch.pi - 1e-3)  # none and half a turn have no direction
    parts = ((1 - share) * angle).sin(), (share * angle).sin()
    return (parts[0] * start + parts[1] * end) / angle.sin()


# %% tags=["brick", "blank"]
@takes(vectors="(B, d)", before="text", after="text", share="finite")
@torch.no_grad()
def text_difference(
    model: UnCLIP, vectors: Tensor, before: str, after: str, share: float = 0.5
) -> Tensor:
    """Vectors of pictures (B, dim), turned the way from one caption to another.

    share: how far, 0 for not at all. Raises ValueError where both captions say the
    same. Ramesh et al. 2022, sec. 3.3.
    """
    one, two = model.latent.clip.encode_text([before, after])
    if torch.allclose(one, two):
        raise ValueError(f"{before!r:.40} and {after!r:.40} say the same; give others")
    vectors = vectors.to(one.device)
    return slerp(vectors, F.normalize(two - one, dim=0).expand_as(vectors), share)


# %%
ends = F.normalize(torch.randn(2, 256, generator=draw), dim=1)
for name, way in {"straight": torch.lerp, "round": slerp}.items():
    half = way(ends[:1], ends[1:], 0.5)
    print(f"{name}: half way the length is {half.norm().item():.2f}")

# %% [markdown]
# Two pictures, one noise, and shares of the way. Below, the same way straight through
# the *pixels*. **Predict first:** what lies half way between a heart and a cat?

# %%
def picture_of(label: str, style: str) -> Tensor:
    """One picture of `train`, (1, 3, 64, 64) in [0, 1]."""
    return train.where(label_en=label, style=style).pictures[:1] / 255


PAIRS = [("red heart", "cat face"), ("green apple", "tennis"), ("rocket", "carrot")]
shares = torch.linspace(0, 1, 8)[:, None]
rows = {}
for one, other in PAIRS:
    pixels = picture_of(one, "fluent"), picture_of(other, "fluent")
    ends = [image_vectors(guide, x).cpu().expand(8, -1) for x in pixels]
    rows[f"{one} to {other}"] = unclip.draw(slerp(*ends, shares), seed=5).cpu()
    rows[f"{one} to {other}, in pixels"] = torch.lerp(*pixels, shares[..., None, None])
plots.picture_rows(rows, alt="Things that turn into each other; below, two blended")

# %% [markdown]
# <details><summary>Answer</summary>
#
# A thing of its own, with something of both; in pixels, both at once, half transparent.
#
# </details>
#
# ### From one caption to another
#
# A difference of *texts* is a direction, as in lesson 13; here it turns a vector, and
# nothing is trained for it. So that the rest stays, the walk begins at the noise to
# which the picture's own latents walk back (lesson 11).

# %% tags=["brick"]
@takes(pictures="pictures", steps="from 1")
def noise_of(model: UnCLIP, pictures: Tensor, steps: int = 25) -> Tensor:
    """The noise from which the decoder comes to pictures (B, 3, S, S) as they are.

    By DDIM, backwards; the way there is one without guidance. Raises ValueError for
    pictures of another size. Ramesh et al. 2022, sec. 3.
    """
    latent = model.latent
    if pictures.shape[2:] != (latent.side, latent.side):
        found = "×".join(map(str, pictures.shape[2:]))
        raise ValueError(f"pictures are {found} pixels; scale them to {latent.side}")
    text = model.says(image_vectors(latent.clip, pictures))
    z = latent.encode(pictures.to(latent.signal.device))
    *_, (x, _) = walk(latent, z, latent.times(steps)[::-1], text, clamp=False)
    return x


# %%
STARTS = ["red apple", "red heart", "cat face", "house"]
starts = torch.cat([picture_of(label, "noto") for label in STARTS])
vectors, noise = image_vectors(guide, starts), noise_of(unclip, starts)
rows = {"pictures": starts}
for share in (0.0, 0.25, 0.4):
    turned = text_difference(unclip, vectors, "red", "blue", share)
    drawn = unclip.draw(turned, noise=noise, guidance=1.5)
    rows[f"red to blue, {share:g}"] = drawn.cpu()
plots.picture_rows(rows, alt="The same shapes, ever bluer")


def bluer(x: Tensor) -> float:
    """How much more blue than red there is."""
    return (x[:, 2] - x[:, 0]).mean().item()


back = text_difference(unclip, vectors, "blue", "red", 0.4)
back = unclip.draw(back, noise=noise, guidance=1.5)
print("bluer, the farther it is turned:",
      bluer(rows["red to blue, 0"]) < bluer(rows["red to blue, 0.4"]))  # fmt: skip
print("and not, turned from blue to red:", bluer(back) < bluer(rows["red to blue, 0"]))

# %% [markdown]
# ## Play
#
# Two pictures and a slider between them. **Predict first:** does one seed keep the pose
# all the way? Does another seed change the thing?

# %%
CARDS = ["red heart", "cat face", "green apple", "rocket", "pizza", "house", "crab"]
cards = {label: picture_of(label, "fluent") for label in CARDS}
known = {label: image_vectors(guide, card).cpu() for label, card in cards.items()}


def between(one: str, other: str, share: float, seed: int, guidance: float) -> str:
    vector = slerp(known[one], known[other], share)
    drawn = unclip.draw(vector, seed=int(seed), guidance=guidance, steps=15)
    shown = torch.cat([cards[one], drawn.cpu(), cards[other]])
    return widgets.captioned(shown, [one, f"{share:.2f} of the way", other], size=128)


widgets.live(
    [
        widgets.choice("From", CARDS),
        widgets.choice("To", CARDS[1:] + CARDS[:1]),
        widgets.slider("Share", 0.5, 0.0, 1.0),
        widgets.slider("Seed", 0, 0, 1000),
        widgets.slider("Guidance", 2.0, 0.0, 6.0),
    ],
    between,
    "Two pictures, and what the decoder draws of a vector between theirs.",
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# One seed keeps the place and much of the outline, as in the rows above; another seed
# gives the same thing with other details. What it is, is in the vector.
#
# </details>
#
# ## Break it
#
# Each against the same, whole, for the thirty captions:
#
# 1. **the prior's vectors, three times too long**;
# 2. **the worse of two**;
# 3. **another CLIP's vectors**: the judge's, of the very pictures.
#
# **Predict first.** Two CLIPs were trained on the same data. Does one understand the
# other?

# %%
said = guide.encode_text(asked)
both = [imagine(prior, asked, candidates=1, seed=seed) for seed in (0, 1000)]
better = (both[0] * said).sum(1) > (both[1] * said).sum(1)
worse = torch.where(better[:, None], both[1], both[0])
spoilt = {
    "too long": 3 * ways["prior"],
    "the worse of two": worse,
    "the judge's": real,
}
broken = {
    name: unclip.draw(vectors, seed=range(30), steps=15).cpu()
    for name, vectors in spoilt.items()
}
broken = {"whole": pictures["prior"], **broken}
rows = {name: x[:10] for name, x in broken.items()}
plots.picture_rows(rows, alt="Whole, and with three faults")
scores = {
    name: found_among(judge, x, asked, pool, 100).float().mean().item()
    for name, x in broken.items()
}
fig, ax = plots.figure(width=6, height=1.8)
plots.bars(ax, scores, "text", "Is it what was asked for?", "found among 100")
plots.show(fig, "How often the judge finds what was asked for, with each fault")
print("another CLIP's vectors say nothing:", scores["the judge's"] < 0.1)
print("too long is worse than whole:", scores["too long"] < scores["whole"] - 0.15)

# %% [markdown]
# <details><summary>Answer</summary>
#
# No. Both spaces were learnt from scratch, and their axes have nothing in common: the
# decoder draws something else, with all confidence. Vectors that are too long are
# shouted; shapes break up. The worse of two is no worse than thirty pictures can tell:
# both are guesses of the same prior.
#
# </details>
#
# ## The end of the road
#
# One sentence, and every machine that you built. The judge, who helped none of them,
# says how near each picture is to the sentence, on a scale where 0 is the middle one of
# all real pictures and 1 the nearest. Beside it, what each has cost: multiplications in
# convolutions and linear layers, and as many again where a gradient comes back to the
# picture. One sentence and one seed: this ranks nobody.

# %%
from utils.bricks import clip_guidance, vqgan_clip
from utils.bricks.dalle import rerank

SENTENCE = "a 3D drawing of a purple octopus"
shipped = {name: checkpoints.load(name) for name in ("dalle", "diffusion")}


def best_of_16(sentence: str) -> Tensor:
    drawn = shipped["dalle"].generate([sentence] * 16, seed=range(16), guidance=3.0)
    return drawn[rerank(guide, drawn, sentence)[:1]]


def last_of(frames: Iterator) -> Tensor:
    *_, picture = frames
    return picture


guided = {"guidance": 3.0}
MACHINES = {
    "DALL·E, best of 16": best_of_16,
    "VQGAN-CLIP": lambda said: last_of(vqgan_clip.optimise([said], steps=60)),
    "diffusion, guided": lambda said: shipped["diffusion"].generate([said], **guided),
    "diffusion led by CLIP": lambda said: last_of(clip_guidance.guide([said])),
    "latent diffusion": lambda said: latent.generate([said]),
    "unCLIP": lambda said: unclip.draw(imagine(prior, [said])),
}


def drawn_by(machine) -> tuple[Tensor, float]:
    """The sentence's picture (1, 3, S, S), and its cost in billions of products."""
    total = 0

    def count(layer: nn.Module, given: tuple, answer: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear | nn.Conv2d):
            ways = 2 if answer.requires_grad else 1  # there, and back to the picture
            total += ways * answer.numel() * layer.weight[0].numel()

    with nn.modules.module.register_module_forward_hook(count):
        picture = machine(SENTENCE)
    return picture.float().cpu(), total / 1e9


strip, work = {}, {}
for name, machine in MACHINES.items():
    drawn, work[name] = drawn_by(machine)
    strip[name] = F.interpolate(drawn, (64, 64), mode="nearest")
wish = F.normalize(judge.encode_text([SENTENCE]), dim=1)
scale = (image_vectors(judge, kept.pictures) @ wish.T).flatten().sort().values
low, high = scale.median().item(), scale[-1].item()
verdict = {
    name: ((image_vectors(judge, x) @ wish.T).item() - low) / (high - low)
    for name, x in strip.items()
}

# %%
drawn = torch.cat([*strip.values()])
plots.grid(drawn, list(strip), columns=6, alt=f"Six pictures of {SENTENCE}")
fig, axes = plots.figure(columns=2, width=11, height=2.4)
plots.bars(axes[0], verdict, "text", "What the judge says", "", numbers="{:.2f}")
plots.bars(axes[1], work, "noise", "Billions of products", "", numbers="{:.0f}")
plots.show(fig, "Six machines: how near each is to the sentence, and what it cost")
print("each is nearer than most real pictures:", min(verdict.values()) > 0)
asking = [work.pop("VQGAN-CLIP"), work.pop("diffusion led by CLIP")]
print("what asks CLIP at every step costs most:", min(asking) > max(work.values()))

# %% [markdown]
# Two towers that learnt to agree; codes; streams of codes; a gradient that pulls at a
# picture; noise, and a network that takes it away; words that steer. Each of them you
# have seen fail without one of its parts. What has come since is larger, and drawn from
# these pieces.
#
# ## Exercises
#
# > **Exercise 1 · The better of n** — difficulty 1 of 3, about 8 minutes. Why it
# > matters: the paper takes the better of two. How good would the best of *n* be? From
# > a table of scores of many candidates, say what the mean best of n is, without
# > drawing again. Write `mean_best(scores, n)`: for each row the mean, over **all**
# > choices of n different columns, of the largest score; then the mean over rows.


# %% tags=["exercise"]
def mean_best(scores: Tensor, n: int) -> float:
    """scores: (B, C) of C candidates for each of B captions; 1 ≤ n ≤ C."""
    ...


# %%
from utils.exercises import unclip as exercises

exercises.check_mean_best(mean_best)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `itertools.combinations(range(C), n)` gives all choices.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# from itertools import combinations
#
# def mean_best(scores, n):
#     choices = combinations(range(scores.shape[1]), n)
#     best = [scores[:, list(columns)].amax(1) for columns in choices]
#     return torch.stack(best).mean().item()
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · The middle of many** — difficulty 2 of 3, about 10 minutes. Why it
# > matters: a mood board is several pictures at once. `slerp` knows two ends. The
# > middle of many points on a sphere is the point from which the ways there, each as an
# > arrow as long as the angle, cancel out. Write `middle(vectors, steps)`: begin at the
# > first vector, and in each step go along the mean of the arrows.


# %% tags=["exercise"]
def middle(vectors: Tensor, steps: int) -> Tensor:
    """(N, d) of length 1, each within a right angle of all others → (d,), length 1."""
    ...


# %%
exercises.check_middle(middle)

# %% [markdown]
# <details><summary>Hint</summary>
#
# From m to v the arrow is v − (v·m)m, made as long as the angle between them; for v = m
# it is zero. Going along an arrow a: cos|a|·m + sin|a|·a/|a|.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def middle(vectors, steps):
#     m = vectors[0]
#     for _ in range(steps):
#         dots = (vectors @ m).clamp(-1, 1)
#         ways = F.normalize(vectors - dots[:, None] * m, dim=1)
#         a = (ways * dots.acos()[:, None]).mean(0)
#         m = a.norm().cos() * m + a.norm().sin() * F.normalize(a, dim=0)
#     return m
# ```
#
# </details>

# %% [markdown]
# > **Exercise 3 · What a unit vector hides** — difficulty 2 of 3, about 8 minutes. Why
# > it matters: unscaled, a prior that always answers zeros has a loss of 1/dim, and
# > looks trained. Write `lost_at(dim, scaled, signal)`: the first time t at which noise
# > is larger than signal, that is, at which √(1 − ᾱ) is above √ᾱ times the size of one
# > number of the vector. The vector's length is 1 if it is not scaled, √dim if it is.


# %% tags=["exercise"]
def lost_at(dim: int, scaled: bool, signal: Tensor) -> int:
    """signal: ᾱ of each time, falling, (T,) → the first t at which noise is larger."""
    ...


# %%
exercises.check_lost_at(lost_at)

# %% [markdown]
# <details><summary>Hint</summary>
#
# One number has the size length/√dim: 1 if scaled. `(a > b).int().argmax()` is the
# first place where it is so.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def lost_at(dim, scaled, signal):
#     size = 1.0 if scaled else dim**-0.5
#     return ((1 - signal).sqrt() > signal.sqrt() * size).int().argmax().item()
# ```
#
# </details>

# %% [markdown]
# ## Myth check
#
# **"DALL·E 2 inverts CLIP."** So the paper says, and means a sampler: many pictures
# have nearly one vector, and its decoder draws *one* of them.
#
# **"The prior turns a text vector into a picture vector."** It reads the words, too,
# and draws one of many; ask it twice:

# %%
one, other = (imagine(prior, ["cat face"], seed=seed, candidates=1) for seed in (1, 2))
print("the same caption, another vector:", (one * other).sum().item() < 0.99)

# %% [markdown]
# **"Without the prior it does not work."** It does, less well, in the paper and here.
# And **"DALL·E 2 is DALL·E, larger."** No codes, no stream. DALL·E used CLIP to choose
# among its pictures; DALL·E 2 draws from it.
#
# ## Differs from the paper
#
# | | DALL·E 2 | here | why |
# |---|---|---|---|
# | CLIP | ViT-H/16, 1,024 numbers | our ResNet, 256 | our own |
# | prior | 1 B weights, 64 steps; another kind writes codes | 2 M, 25 steps | fits |
# | decoder | 3.5 B, in pixels, 64 px | latent diffusion, frozen, a way in | minutes |
# | captions in the decoder | half the time | none | shows what a vector says |
# | variations | from the picture's noise, η > 0 | from new noise | the vector alone |
# | guidance away from | a vector of zeros | an empty caption | the U-Net knows it |
# | larger | two upsamplers, to 1,024 px | none | one chain is enough |
#
# ## Read more
#
# - Ramesh et al. 2022, *Hierarchical Text-Conditional Image Generation with CLIP
#   Latents*.
# - Ye et al. 2023, *IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image
#   Diffusion Models*.
# - Shoemake 1985, *Animating Rotation with Quaternion Curves*.
# - Liang et al. 2022, *Mind the Gap* (lesson 03).
#
# **Glossary** · 先验 prior · 解码器 decoder · 模态间隙 modality gap · 球面插值 slerp ·
# 变体 variation · 文本差 text difference
