# ---
# jupyter:
#   brick: vqgan_clip
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · The VQGAN-CLIP loop: steering a decoder
#
# ![Latents are rounded to codes and drawn; random cut-outs of the picture are compared
# with the prompt; the error goes back to the latents, past frozen
# networks](../assets/figures/09_vqgan_clip.svg)
#
# DALL·E of lesson 08 had to learn how to go from words to codes. Here nobody learns
# anything. CLIP can say how well a picture fits a sentence, and that number has a
# gradient. VQGAN-CLIP (Crowson et al. 2022) follows it: back through CLIP, back through
# the decoder, to the codes. **Can a network that only judges be made to draw, and can
# we believe it when it says that it likes the result?**

# %%
import contextlib
import itertools
import math

from utils import data, plots, widgets

train = data.load_emoji("train").where(skin_tone="none")

# %% [markdown]
# What the bricks of this lesson are made of:

# %% tags=["brick"]
import re
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import checkpoints, device
from utils.bricks.clip import CLIP
from utils.bricks.dalle import check_prompts, each_seed
from utils.bricks.vq_vae import VQVAE, nearest_code
from utils.bricks.zero_shot import class_vectors
from utils.given import takes

# %% [markdown]
# Three networks, all shipped and all frozen: the decoder and codes of lesson 07, and
# two CLIPs. The ResNet is the **guide**; its gradient draws. The ViT is the **judge**;
# it never guides, and that makes it worth asking.

# %%
here = device.pick()
vqgan = checkpoints.load("vqgan")
guide, judge = checkpoints.load("clip_resnet"), checkpoints.load("clip")
codebook = vqgan.codebook.vectors  # (1024, 16)
print("codes:", tuple(codebook.shape), "one picture: 8 × 8 of them")

# %% [markdown]
# ## A toy you can check by hand
#
# A picture of one pixel. There are three codes: 0, 0.5 and 1, and the decoder draws a
# code as it is. The prompt wants 0.9, so the loss is (picture − 0.9)². We keep a latent
# z, draw its nearest code, and move z.
#
# **Predict first.** z starts at 0.1, its code is 0. By how much does z move when we
# follow the gradient of the loss?
#
# <details><summary>Answer</summary>
#
# Not at all. A little more z gives the same code, so the same picture and the same
# loss: the slope of rounding is 0, but for the jumps.
#
# </details>

# %%
three = torch.tensor([[0.0], [0.5], [1.0]])
z = torch.tensor([[0.1]], requires_grad=True)
code = nearest_code(z, three)  # a number, and a number has no gradient
loss = (three[code] - 0.9).square().sum()
print(
    f"code {code.item()}, loss {loss.item():.2f}, has a gradient: {loss.requires_grad}"
)

# %% [markdown]
# The way out is that of lesson 05, the **straight-through** gradient: forward, the
# code; backward, as if the picture had been drawn from z itself.
#
# $$\hat z = z + \mathrm{sg}[e - z], \qquad \frac{\partial \hat z}{\partial z} = 1$$


# %% tags=["brick", "blank"]
def quantised(z: Tensor, codebook: Tensor) -> Tensor:
    """The nearest code of every latent; backward, as if z had not been touched.

    z: (..., d); codebook: (K, d). Returns (..., d). van den Oord et al. 2017, sec. 3.2.
    """
    chosen = codebook[nearest_code(z, codebook)]
    return z + (chosen - z).detach()


# %%
z = torch.tensor([[0.1]], requires_grad=True)
for _ in range(8):
    picture = quantised(z, three)
    loss = (picture - 0.9).square().sum()
    (slope,) = torch.autograd.grad(loss, z)
    print(f"z {z.item():.2f}, picture {picture.item():.1f}, slope {slope.item():+.1f}")
    z = (z - 0.2 * slope).detach().requires_grad_()

# %% [markdown]
# The slope is 2·(picture − 0.9): it is the *drawn* pixel that is too dark, and z pays
# for it. z climbs, its code jumps to 0.5 and then to 1. Then 1 is too bright, z comes
# back, and its code falls to 0.5 again. A loop over codes does not come to rest, it
# hops, and the last picture need not be the best. Remember that.
#
# Held against lesson 05, where the same trick trains an encoder:

# %%
draw = device.generator(0)
some = torch.randn(2, 8, 8, 16, generator=draw).to(here).requires_grad_()
out, _, _ = vqgan.codebook(some)  # lesson 05's, in eval mode
print("same as in the codebook:", torch.equal(quantised(some, codebook), out))
(slope,) = torch.autograd.grad(quantised(some, codebook).sum(), some)
print("every slope is 1:", bool((slope == 1).all()))

# %% [markdown]
# ## A wall with a door
#
# The decoder may draw 1.2, which is no colour; the picture is clamped to [0, 1].
# `clamp` has the slope 0 outside, so a pixel at 1.2 that should be *darker* gets no
# gradient, and it stays there for good. We want a wall with a door: who is outside may
# come back in, and may not go further out.
#
# Gradient descent moves *against* the gradient. Above 1, a positive gradient leads back
# in and must pass, a negative one leads further out and must not. Below 0 it is the
# other way round. So pass if and only if
#
# $$g \cdot (x - \mathrm{clamp}(x)) \ge 0$$


# %% tags=["brick", "blank"]
class ClampWithGrad(torch.autograd.Function):
    """x.clamp(low, high); backward, a gradient passes unless it leads further out.

    nerdyrodent/VQGAN-CLIP, generate.py.
    """

    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        outside = x - x.clamp(
            ctx.low, ctx.high
        )  # above 0 beyond high, below 0 under low
        return grad * (grad * outside >= 0), None, None


# %%
def slopes(clamp, wanted: float) -> list[float]:
    """The slope of (clamp(x) − wanted)² at four places."""
    x = torch.tensor([-0.3, 0.2, 0.8, 1.2], requires_grad=True)
    (slope,) = torch.autograd.grad((clamp(x) - wanted).square().sum(), x)
    return [round(value, 1) for value in slope.tolist()]


def with_door(x: Tensor) -> Tensor:
    return ClampWithGrad.apply(x, 0.0, 1.0)


print("x                         [-0.3, 0.2, 0.8, 1.2]")
print("clamp, 0.5 wanted        ", slopes(lambda x: x.clamp(0, 1), 0.5))
print("ClampWithGrad, 0.5 wanted", slopes(with_door, 0.5))
print("ClampWithGrad, 1.5 wanted", slopes(with_door, 1.5))
print("ClampWithGrad, −0.5      ", slopes(with_door, -0.5))

# %% [markdown]
# In the second row the two outer pixels are called back in; `clamp` leaves them. In the
# last two rows something impossible is wanted: what is outside *on that side* stays
# where it is, all others move.
#
# (EleutherAI's `main.py` imports this function, and then from `masking.py` another of
# the same name, which is a plain clamp.)
#
# ## How far is a picture from a sentence?
#
# CLIP's vectors have length 1, so they lie on a sphere, and the honest distance on a
# sphere is the angle θ between two of them. Three losses know the angle:
#
# $$1 - \cos\theta \qquad\qquad \theta = \arccos(u \cdot v) \qquad\qquad
# 2 \arcsin^2 \frac{\lVert u - v \rVert}{2} = \frac{\theta^2}{2}$$
#
# The third is what VQGAN-CLIP uses. Why it is θ²/2: two points of the circle at the
# angle θ are the ends of a *chord* of length 2·sin(θ/2).


# %% tags=["brick", "blank"]
def spherical_distance(u: Tensor, v: Tensor) -> Tensor:
    """2·arcsin²(‖u − v‖/2) = θ²/2, θ the angle between u and v: (..., d) twice → (...).

    Any lengths; they broadcast. nerdyrodent/VQGAN-CLIP, generate.py.
    """
    chord = (F.normalize(u, dim=-1) - F.normalize(v, dim=-1)).norm(dim=-1)
    # opposite vectors: arcsin has an infinite slope at 1
    return 2 * (chord / 2).clamp(max=1 - 1e-7).arcsin().square()


# %%
for degrees in (0, 60, 90, 120):
    theta = math.radians(degrees)
    u, v = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(theta), math.sin(theta)])
    both = spherical_distance(u, v).item(), theta**2 / 2
    print(f"{degrees:3}°: chord {(u - v).norm():.3f}, {both[0]:.4f} = {both[1]:.4f}")

# %% [markdown]
# What matters is the *pull*, the slope along the sphere. **Predict first.** At the
# start the picture has nothing to do with the prompt, at the end it nearly fits. Which
# of the three pulls hard when far and softly when near?


# %%
def pulls(distance) -> list[float]:
    """The length of the gradient along the circle, at angles from 1° to 179°."""
    found = []
    for degrees in range(1, 180, 2):
        theta = torch.tensor(math.radians(degrees), requires_grad=True)
        moving = torch.stack([theta.cos(), theta.sin()])
        value = distance(moving, torch.tensor([1.0, 0.0]))
        found.append(torch.autograd.grad(value, theta)[0].item())
    return found


kinds = {
    "1 − cosine": lambda u, v: 1 - (u * v).sum(),
    "angle": lambda u, v: (u * v).sum().clamp(-1 + 1e-6, 1 - 1e-6).acos(),
    "θ²/2": spherical_distance,
}
fig, ax = plots.figure(width=6, height=2.6)
for (name, kind), colour in zip(
    kinds.items(), ("image", "noise", "shared"), strict=True
):
    ax.plot(range(1, 180, 2), pulls(kind), color=plots.COLOURS[colour], label=name)
ax.set(title="θ²/2 pulls in proportion to the angle", xlabel="angle, °", ylabel="pull")
ax.legend()
plots.show(fig, "1 − cosine lets go beyond 90°, the angle pulls alike everywhere, θ²/2 "
           "pulls harder the farther it is")  # fmt: skip
linear = all(math.isclose(pull, math.radians(degrees), abs_tol=2e-3)
             for degrees, pull in zip(range(1, 180, 2), pulls(spherical_distance),
                                      strict=True))  # fmt: skip
print("the pull of θ²/2 is θ:", linear)

# %% [markdown]
# <details><summary>Answer</summary>
#
# θ²/2: its pull is θ itself. 1 − cos θ pulls with sin θ and grows *weaker* beyond 90°.
# The plain angle pulls just as hard when nearly there, so it cannot settle.
#
# </details>
#
# ## Cut-outs
#
# If CLIP sees the whole picture, it sees it always in the same way, and the gradient
# finds pixels that please *this* view and mean nothing to anybody else. So CLIP never
# sees the whole picture twice alike. At each step it gets several **cut-outs**: squares
# of random size at random places, enlarged to the size it reads. The size of each, with
# a random number $U$ between 0 and 1, is
#
# $$s = \lfloor U^{p} \cdot (\mathrm{max} - \mathrm{min}) + \mathrm{min} \rfloor$$
#
# The power p says whether large or small ones come more often.


# %% tags=["brick", "blank"]
def cut_boxes(draws: Tensor, size: int, least: int, power: float = 1.0) -> Tensor:
    """Random squares inside of a picture of size × size: (N, 3) int64, side, top, left.

    draws: (N, 3) float64 in [0, 1), one row a square. The side is
    int(U^power·(size − least) + least); places are uniform. nerdyrodent/VQGAN-CLIP.
    """
    side = (draws[:, 0] ** power * (size - least) + least).long()
    corner = (draws[:, 1:] * (size - side + 1).unsqueeze(1)).long()
    return torch.cat([side.unsqueeze(1), corner], 1)


# %%
draws = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.999, 0.0, 0.999]]).double()
print("size 64, at least 24:", cut_boxes(draws, 64, 24).tolist())
many = torch.rand(4000, 3, dtype=torch.float64, generator=device.generator(0))
fig, ax = plots.figure(width=6, height=2.2)
for power, colour in ((0.5, "text"), (1.0, "image"), (3.0, "code")):
    sides = cut_boxes(many, 64, 24, power)[:, 0]
    ax.hist(sides.tolist(), bins=range(24, 65, 2), histtype="step",
            label=f"p = {power:g}", color=plots.COLOURS[colour])  # fmt: skip
    right = 24 + 40 / (power + 1)
    print(f"p = {power:g}: mean side as by calculus, {right:.0f}:",
          abs(sides.double().mean().item() + 0.5 - right) < 1)  # fmt: skip
ax.set(
    title="A small power prefers large cuts", xlabel="side of the cut", ylabel="cuts"
)
ax.legend()
plots.show(fig, "Sides of 4,000 cuts: p = 0.5 piles up at 64, p = 3 at 24")

# %% [markdown]
# To enlarge is to mix neighbours. A row of two pixels, 0 and 1, at twice the length:
# the middles of the new pixels lie at ¼ and ¾ of the old ones, so the inner two are
# mixed 3 to 1, and the outer two have no neighbour to mix with.

# %%
row = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
print(F.interpolate(row, (1, 4), mode="bilinear").flatten().tolist())


# %% tags=["brick", "blank"]
def cutouts(picture: Tensor, boxes: Tensor, out: int, mirrored: Tensor) -> Tensor:
    """Squares of a picture (1, 3, S, S), each enlarged to `out`: (N, 3, out, out).

    boxes: (N, 3) int64, side, top, left; mirrored: which to turn around, (N,) bool.
    """
    cuts = []
    for (side, top, left), turn in zip(boxes.tolist(), mirrored.tolist(), strict=True):
        cut = picture[:, :, top : top + side, left : left + side]
        cut = F.interpolate(cut, (out, out), mode="bilinear")
        cuts.append(cut.flip(3) if turn else cut)
    return torch.cat(cuts)


# %%
cat = train.where(style="fluent", label_en="cat").pictures[:1].to(here).float() / 255
boxes = cut_boxes(many[:7], 64, 24)
view = torch.cat([cat, cutouts(cat, boxes, 64, boxes[:, 0] % 2 == 0)])
names = ["the picture"] + [f"side {side}" for side, _, _ in boxes.tolist()]
alt = "A cat and seven cut-outs: nearly all of it, its head, its stripes; some mirrored"
plots.grid(view, names, alt=alt)
whole_cat = cutouts(cat, torch.tensor([[64, 0, 0]]), 64, torch.tensor([False]))
print("a cut of 64 is the picture:", torch.allclose(whole_cat, cat, atol=1e-5))

# %% [markdown]
# What a pixel's gradient is, follows from what it gave: a pixel in three cut-outs is
# told three times what to do, and one in none is told nothing in this step.

# %%
moving = cat.clone().requires_grad_()
(told,) = torch.autograd.grad(cutouts(moving, boxes, 64, boxes[:, 0] < 0).sum(), moving)
inside = torch.zeros(64, 64)
for side, top, left in boxes.tolist():
    inside[top : top + side, left : left + side] += 1
fig, axes = plots.figure(columns=2, width=6, height=2.6)
plots.heatmap(inside, axes[0], "in how many cut-outs")
plots.heatmap(told[0].sum(0), axes[1], "gradient of the sum")
plots.show(fig, "The middle lies in most cut-outs and gets most of the gradient")
print("just those in a cut-out are told anything:",
      torch.equal(told[0].sum(0).cpu() > 1e-6, inside > 0))  # fmt: skip

# %% [markdown]
# ### And noise
#
# Every cut gets noise, each of another strength, up to a tenth:
# $x + 0.1\,U\,\varepsilon$. A pattern that is finer than the noise earns nothing any
# more. The reference also turns, shears and recolours the cuts; mirroring and noise are
# enough here.


# %% tags=["brick"]
def views(
    picture: Tensor,
    generator: torch.Generator,
    out: int,
    cuts: int = 8,
    least: int = 24,
    power: float = 1.0,
    noise: float = 0.1,
) -> Tensor:
    """What the guide gets to see of a picture (1, 3, S, S): (cuts, 3, out, out).

    Random cut-outs with sides from `least` on, half of them mirrored, each with noise
    of a strength of its own, up to `noise`.
    """
    draws = torch.rand(cuts, 5, dtype=torch.float64, generator=generator)
    grains = torch.randn(cuts, 3, out, out, generator=generator).to(picture.device)
    boxes = cut_boxes(draws[:, :3], picture.shape[2], least, power)
    strength = (noise * draws[:, 4]).to(picture).view(-1, 1, 1, 1)
    return cutouts(picture, boxes, out, draws[:, 3] < 0.5) + strength * grains


# %%
seen = [views(cat, device.generator(0, step), 64, cuts=4) for step in range(2)]
both = {"step 0": seen[0], "step 1": seen[1]}
plots.picture_rows(both, alt="Two steps, other cuts in each")
print("values stay near [0, 1]:", bool(seen[0].min() > -0.6 and seen[0].max() < 1.6))

# %% [markdown]
# ## Several wishes
#
# A prompt may hold several, each with a weight, as in the reference:
# `a red heart | a face:-0.5`. A negative weight turns the pull around. The sum is
#
# $$L = \sum_i w_i \cdot \tfrac12\theta_i^2$$


# %% tags=["brick", "blank"]
@takes(prompt="text")
def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    """A prompt's parts: "a sun | a face:-0.5" → [("a sun", 1), ("a face", -0.5)].

    A weight stands right behind a colon, at the end: "flag: France" and "keycap: 1"
    have none. For a text that ends like a weight, write one: "half past 7:30:1".
    Raises ValueError if a part is empty or every weight is 0.
    """
    found = []
    for part in prompt.split("|"):
        match = re.fullmatch(
            r"(.*\S):([-+]?(?:\d{1,4}(?:\.\d{0,4})?|\.\d{1,4}))", part.strip()
        )
        text, weight = match.groups() if match else (part.strip(), 1)
        if not text:
            raise ValueError(
                f"a part of {prompt!r:.60} is empty; write 'a heart | a face:-0.5'"
            )
        found.append((text, float(weight)))
    if not any(weight for _, weight in found):
        raise ValueError(f"every weight of {prompt!r:.60} is 0; give one part another")
    return found


# %%
for prompt in ("a red heart", "sun:2 | cloud:-0.5", "flag: France | keycap: 1:0.3"):
    print(weighted_parts(prompt))

# %% [markdown]
# Each text becomes a vector as in lesson 04: the mean over four templates. Then the
# loss of one picture is a few lines:


# %% tags=["brick"]
@torch.no_grad()
def targets(guide: CLIP, prompt: str) -> tuple[Tensor, Tensor]:
    """The vectors (P, d) and the weights (P,) of a prompt's parts."""
    texts, weights = zip(*weighted_parts(prompt), strict=True)
    vectors = class_vectors(guide, list(texts))
    return vectors, torch.tensor(weights, device=vectors.device)


def prompt_loss(guide: CLIP, seen: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
    """Σ w·θ²/2, θ² averaged over what the guide sees: (N, 3, S, S) → a scalar."""
    angles = spherical_distance(
        guide.encode_image(seen).unsqueeze(1), vectors
    )  # (N, P)
    return angles.mean(0) @ weights


# %%
asked = targets(guide, "cat")
loss = prompt_loss(guide, seen[0], *asked)
angle = (guide.encode_image(seen[0]) @ asked[0][0]).acos()  # (4,)
print("by hand:", torch.allclose(loss, angle.square().mean() / 2, atol=1e-4))
other = prompt_loss(guide, seen[0], *targets(guide, "waffle"))
print("the cat is nearer to its own name:", bool(loss < other))
both = prompt_loss(guide, seen[0], *targets(guide, "cat:2 | waffle:-0.5"))
print("weights add up:", torch.allclose(both, 2 * loss - 0.5 * other, atol=1e-4))

# %% [markdown]
# ## Where to start, and where to stay
#
# Without a picture to start from, z is a grid of **random codes**. With one, z is the
# grid of *its* codes. And a latent may not run away: what lies beyond all codes is
# rounded to the same one as at the rim, so going further changes nothing, and the way
# back gets long. After each step z is clamped to the **range of the codebook**, in each
# of its 16 channels:


# %% tags=["brick"]
def within(z: Tensor, codebook: Tensor) -> Tensor:
    """Latents (..., d), each channel clamped to what the codes (K, d) span."""
    return z.clamp(codebook.amin(0), codebook.amax(0))


def random_codes(codes: int, side: int, seeds: Sequence[int]) -> Tensor:
    """A grid for each seed, all codes alike likely: (B, side, side) int64."""
    grids = [
        torch.randint(codes, (side, side), generator=device.generator(s)) for s in seeds
    ]
    return torch.stack(grids)


def starting_pictures(start: Tensor, count: int, side: int) -> Tensor:
    """One picture for all prompts, or one each, of any size → (count, 3, side, side).

    start: (3, H, W) or (1 or count, 3, H, W), float in [0, 1]; what is not square gets
    white at two sides. Raises ValueError in one sentence for what is no such thing.
    """
    remedy = "give a float tensor (3, H, W) in [0, 1], e.g. of utils.pictures.read"
    if not isinstance(start, Tensor):
        raise ValueError(f"start is a {type(start).__name__}; {remedy}")
    shape, start = tuple(start.shape), start.unsqueeze(0) if start.ndim == 3 else start
    fits = start.ndim == 4 and start.shape[1] == 3 and 0 not in shape
    if not fits or not start.is_floating_point():
        raise ValueError(f"start is {start.dtype} {shape}; {remedy}")
    if len(start) not in (1, count):
        raise ValueError(
            f"there are {count} prompts and {len(start)} pictures to start from; "
            "give one picture, or one for each prompt"
        )
    if not (start.isfinite().all() and start.min() >= 0 and start.max() <= 1):
        raise ValueError(f"start holds values outside of [0, 1]; {remedy}")
    height, width = (
        max(1, round(x * side / max(start.shape[2:]))) for x in start.shape[2:]
    )
    small = F.interpolate(
        start.float(), (height, width), mode="bicubic", antialias=True
    )
    left, top = (side - width) // 2, (side - height) // 2
    edges = (left, side - width - left, top, side - height - top)
    return F.pad(small.clamp(0, 1), edges, value=1.0).expand(count, -1, -1, -1)


# %%
wide = data.load_emoji("train").pictures[0][:, 20:40].float() / 255  # (3, 20, 64)
begin = torch.cat(
    [
        vqgan.decode(random_codes(vqgan.codes, 8, [0, 1]).to(here)),
        vqgan.decode(vqgan.encode(starting_pictures(wide, 1, 64).to(here))),
    ]
)
names = ["random codes", "others", "a wide picture"]
plots.grid(
    begin.cpu(), names, alt="Two grids of random codes are blots; a wide picture"
)
print("z of a code is never moved by the clamp:",
      torch.equal(within(codebook, codebook), codebook))  # fmt: skip

# %% [markdown]
# ## The loop
#
# Now all of it, in the order of the figure: round, draw, look, compare, step. Adam
# moves z and nothing else: `torch.autograd.grad` is asked for the gradient of z alone,
# so that no weight of a network gets one.
#
# With a picture to start from, `pull` adds the squared distance between its latents and
# ours: a leash. Several
# prompts run side by side, but each picture goes through the networks alone. In a batch
# the sums are rounded otherwise, and a loop that hops from code to code makes another
# picture of the least difference.


# %% tags=["brick"]
@takes(prompts="texts", seed="seeds", steps="from 1", start="a picture")
@takes(pull="finite", lr="finite")
def optimise(
    prompts: Sequence[str],
    *,
    seed: int | Sequence[int] = 0,
    steps: int = 200,
    start: Tensor | None = None,
    pull: float = 0.3,
    lr: float = 0.15,
    guide: CLIP | None = None,
    vqgan: VQVAE | None = None,
    **how,
) -> Iterator[Tensor]:
    """Pictures (B, 3, S, S), one after each step, of latents that a CLIP pulls at.

    prompts: one for each picture, with parts and weights, see `weighted_parts`; seed:
    one for all, or one each; start: pictures instead of random codes; pull: how much
    the latents are then held to them. guide, vqgan: `clip_resnet` and `vqgan` by
    default. how: see `views`. One seed gives the same picture alone or among others.
    Raises ValueError in one sentence. Crowson et al. 2022, sec. 3.
    """
    prompts, seeds = check_prompts(prompts), each_seed(seed, len(prompts))
    guide = guide or checkpoints.load("clip_resnet")
    vqgan = vqgan or checkpoints.load("vqgan")
    guide.eval(), vqgan.eval()  # BatchNorm must not learn from batches of cut-outs
    wishes = [targets(guide, prompt) for prompt in prompts]
    side = guide.image_size
    if not 1 <= how.get("least", 1) <= side or how.get("cuts", 1) < 1:
        raise ValueError(
            f"a cut-out has sides from 1 to {side}, and there is at least one"
        )
    place = vqgan.codebook.vectors.device
    if start is None:
        codes = random_codes(vqgan.codes, side // vqgan.factor, seeds).to(place)
        pull = 0.0  # there is nothing to hold to
    else:
        codes = vqgan.encode(starting_pictures(start, len(prompts), side).to(place))
    return walk(guide, vqgan, wishes, codes, seeds, steps, pull, lr, how)


def walk(guide, vqgan, wishes, codes, seeds, steps, pull, lr, how) -> Iterator[Tensor]:
    """The steps of `optimise`, from grids of codes (B, h, w)."""
    codebook = vqgan.codebook.vectors
    first = codebook[codes].split(1)
    latents = [z.clone().requires_grad_() for z in first]  # (1, h, w, d) each
    optimizer = torch.optim.Adam(latents, lr)
    for step in range(steps):
        with torch.enable_grad():  # whoever asks for pictures may have switched it off
            for z, z0, wish, seed in zip(latents, first, wishes, seeds, strict=True):
                drawn = vqgan.draw(quantised(z, codebook))
                picture = ClampWithGrad.apply(drawn, 0.0, 1.0)
                seen = views(
                    picture, device.generator(seed, step + 1), guide.image_size, **how
                )
                loss = prompt_loss(guide, seen, *wish) + pull * F.mse_loss(z, z0)
                (z.grad,) = torch.autograd.grad(loss, z)
        optimizer.step()
        with torch.no_grad():
            for z in latents:
                z.copy_(within(z, codebook))
            found = nearest_code(torch.cat(latents), codebook)
        yield vqgan.decode(found)


# %% [markdown]
# What a user may get wrong comes back as one sentence:

# %%
nothing = torch.full((3, 64, 64), math.nan)
for given in (
    {"prompts": "a cat"},
    {"prompts": ["a cat", " "]},
    {"prompts": ["a cat |"]},
    {"prompts": ["a cat"], "steps": 0},
    {"prompts": ["a cat"], "start": nothing},
    {"prompts": ["a cat"], "start": train.pictures[0]},
):
    try:
        optimise(given.pop("prompts"), guide=guide, vqgan=vqgan, **given)
    except ValueError as error:
        print("✗", error)

# %% [markdown]
# ## Watch it
#
# Four labels that CLIP has seen, as prompts, 50 steps each. **Predict first.** Will
# the pictures look like the emoji of those names?

# %%
LABELS = ["red apple", "cat face", "pizza", "tulip"]
STEPS = 50


def follow(prompts: list[str], steps: int, name: str, **how) -> list[Tensor]:
    """The pictures of every step, on the CPU."""
    loop = optimise(prompts, steps=steps, guide=guide, vqgan=vqgan, **how)
    turns = widgets.progress(range(steps), name)
    return [pictures.cpu() for _, pictures in zip(turns, loop, strict=True)]


seeds = list(range(len(LABELS)))
way = follow(LABELS, STEPS, "four pictures", seed=seeds)
start = vqgan.decode(random_codes(vqgan.codes, 8, seeds).to(here)).cpu()

# %%
moments = {f"step {step}": way[step - 1] for step in (1, STEPS // 10, STEPS)}
plots.picture_rows(
    {"random codes": start} | moments,
    alt="From confetti to broad shapes in the colours of the thing, with parts of it",
)
print("asked for:", ", ".join(LABELS))

# %% [markdown]
# <details><summary>Answer</summary>
#
# No. Colours and parts are there, a slice, a petal, a whisker, sometimes several times
# over and all across the page. Nobody said that there must be *one* apple, in the
# middle, on white. CLIP asks "is there something of an apple in it?", and that is what
# we got.
#
# </details>
#
# Is it getting anywhere? The guide's cosine between each picture and its label, and the
# judge's; and beside them what each says of real pictures of these labels, and of the
# same pictures with the labels mixed up.


# %%
def cosines(clip, pictures: Tensor, labels: list[str]) -> float:
    """The mean cosine of pictures and their labels, in the eyes of a CLIP."""
    vectors = image_vectors(clip, pictures)
    return (vectors * class_vectors(clip, labels)).sum(1).mean().item()


from utils.bricks.dalle import found_among
from utils.bricks.zero_shot import image_vectors

names = train.table["label_en"]
real = train.pictures[[names.index(label) for label in LABELS]].float() / 255
wrong = LABELS[1:] + LABELS[:1]
every = range(0, STEPS, 5)
fig, axes = plots.figure(columns=2, width=9, height=2.6)
curves = {}
for ax, (name, clip) in zip(
    axes, {"guide": guide, "judge": judge}.items(), strict=True
):
    for labels, kind in ((LABELS, "its label"), (wrong, "another label")):
        curves[name, kind] = [cosines(clip, way[step], labels) for step in every]
        colour = "shared" if kind == "its label" else "noise"
        ax.plot(every, curves[name, kind], color=plots.COLOURS[colour], label=kind)
    ax.axhline(cosines(clip, real, LABELS), ls="--", color=plots.COLOURS["image"],
               label="real pictures")  # fmt: skip
    ax.set(title=f"The {name}", xlabel="step", ylabel="cosine")
axes[0].legend()
plots.show(fig, "The guide's cosine rises to nearly that of real pictures, the judge's "
           "to about half of it; with another label both stay low")  # fmt: skip
for name in ("guide", "judge"):
    own, another = curves[name, "its label"], curves[name, "another label"]
    print(f"{name}: rises {own[-1] > own[0] + 0.1}, above another label "
          f"{own[-1] > another[-1] + 0.1}")  # fmt: skip

# %% [markdown]
# The two disagree. To the guide our pictures are soon nearly as good as real ones. The
# judge, whom nobody tried to please, sees something in them, and finds the real ones
# much better. Which of the two would you believe?
#
# ## Cheating
#
# A network that is *asked* is not a network that is *obeyed*. Gradient descent looks
# for whatever raises the number, and the cheapest way is seldom a better picture: small
# patterns that nobody sees and that push one network's numbers far up. Such pictures
# are called *adversarial* (Goodfellow et al. 2015). Two things in the loop stand
# against it: the decoder, which can only draw from codes, and the cut-outs with their
# noise. Take away the one, the other, and both:
#
# | | cut-outs and noise | the picture as it is |
# |---|---|---|
# | **codes**, a decoder | the loop above | one view, always the same |
# | **pixels** of a grey page | moved by Adam, seen in cut-outs | both taken away |
#
# **Predict first.** Which of the four will the guide like best, and which the judge?


# %%
@contextlib.contextmanager
def instead(**others):
    """Other functions under the names of bricks, for a while."""
    before = {name: globals()[name] for name in others}
    globals().update(others)
    try:
        yield
    finally:
        globals().update(before)


def as_it_is(picture, generator, out, **how):
    """In place of `views`."""
    return picture


def paint(label: str, steps: int, see) -> Tensor:
    """Pixels (1, 3, 64, 64) moved by the guide's gradient, from grey."""
    pixels = torch.full((1, 3, 64, 64), 0.5, device=here, requires_grad=True)
    optimizer, wish = torch.optim.Adam([pixels], 0.03), targets(guide, label)
    for step in range(steps):
        picture = ClampWithGrad.apply(pixels, 0.0, 1.0)
        seen = see(picture, device.generator(0, step), 64)
        loss = prompt_loss(guide, seen, *wish)
        (pixels.grad,) = torch.autograd.grad(loss, pixels)
        optimizer.step()
    return pixels.detach().clamp(0, 1).cpu()


# %%
results = {"codes, cut-outs": way[-1]}
with instead(views=as_it_is):
    alone = follow(LABELS, STEPS, "codes, as it is", seed=seeds)
results["codes, as it is"] = alone[-1]
for name, see in (("pixels, cut-outs", views), ("pixels, as it is", as_it_is)):
    painted = [paint(x, STEPS, see) for x in widgets.progress(LABELS, name)]
    results[name] = torch.cat(painted)

# %%
alt = "Codes give strong colours with cut-outs and pale ones without; pixels give a "
alt += "drawing in grain with cut-outs and mere grain without"
plots.picture_rows(results, alt=alt)
likes = {}
fig, axes = plots.figure(columns=2, width=9, height=2.6)
shown = {"random codes": start, **results, "real pictures": real}
for ax, (name, clip) in zip(
    axes, {"guide": guide, "judge": judge}.items(), strict=True
):
    likes[name] = {kind: cosines(clip, x, LABELS) for kind, x in shown.items()}
    plots.bars(ax, likes[name], "shared", f"The {name} likes", "cosine")
plots.show(fig, "The guide likes mere pixels best, better than real ones; the judge "
           "sees nothing in them, and something where there are cut-outs")  # fmt: skip

# %%
guides, judges = likes["guide"], likes["judge"]
gaps = {kind: guides[kind] - judges[kind] for kind in shown}
print("the guide likes pixels as they are better than real pictures:",
      guides["pixels, as it is"] > guides["real pictures"] + 0.1)  # fmt: skip
print("the judge sees nothing in them:",
      judges["pixels, as it is"] < judges["random codes"] + 0.1)  # fmt: skip
print("with cut-outs it does:",
      judges["pixels, cut-outs"] > judges["pixels, as it is"] + 0.08)  # fmt: skip
print("without them guide and judge lie further apart:",
      gaps["codes, as it is"] > gaps["codes, cut-outs"] + 0.03)  # fmt: skip

# %% [markdown]
# Pixels as they are become nothing but grain, and the guide is surer of them than of
# any real picture. To the judge they are nothing. Since the guide drew them, its praise
# is worth nothing; the judge's is worth something, because nobody bent anything for it.
# Cut-outs cost the guide's praise and earn the judge's, and so does the decoder. **So:
# never let the network that guides also measure.**
#
# And if the judge guides? It can be fooled as well as any other. The roles changed, on
# the picture as it is, for three labels:

# %%
few = LABELS[:3]
with instead(views=as_it_is, guide=judge):  # `follow` asks whoever is called guide
    cheated = follow(few, 40, "the judge guides")[-1]
own, others = (
    cosines(clip, cheated, few) / cosines(clip, real[:3], few)
    for clip in (judge, guide)
)  # as shares of what each says of real pictures
print("the judge praises its own work, the guide does not:", own > others + 0.2)

# %% [markdown]
# ### Does it draw what was asked?
#
# The measure of lesson 08: the judge gets a hundred labels, and a picture counts as
# found if its own is the nearest. By chance 1 in 100 is found.

# %%
groups = zip(names, train.table["group"], strict=True)
pool = sorted({label for label, group in groups if group != "flags"})[::6]
found = {
    name: found_among(judge, pictures, LABELS, pool).float().mean().item()
    for name, pictures in shown.items()
}
fig, ax = plots.figure(width=6, height=2.2)
plots.bars(ax, found, "image", "Found by the judge among 100", "share")
plots.show(fig, "Of codes with cut-outs some are found, of mere pixels and random "
           "codes none, of real pictures nearly all")  # fmt: skip
print("mere pixels are not found:", found["pixels, as it is"] < 0.2)
print("real pictures are:", found["real pictures"] > 0.8)

# %% [markdown]
# Four pictures are too few to tell loops apart. For fifty labels, measured once (eight
# minutes on one core), the judge found 36, 40 and 40 % after 50, 100 and 200 steps,
# and the guide 88, 96 and 98 %. Compare it with the curves of lesson 08.

# %% [markdown]
# ## From a picture
#
# Start from the codes of a picture, ask for something else, and the loop changes what
# it must. How far may it go? `pull` is the leash.
#
# **Predict first.** Three pictures, each to become a relative of itself, without a
# leash and on one. And a fourth start, for all three: a white page. What will be left
# of the first? What will the white page become?

# %%
FROM = ["cat face", "red apple", "house"]
INTO = ["tiger face", "green apple", "church"]
fluent = train.where(style="fluent")
rows = [fluent.table["label_en"].index(label) for label in FROM]
origin = fluent.pictures[rows].float() / 255
changed = {
    f"pull {pull}": follow(INTO, 30, f"pull {pull}", start=origin, pull=pull)[-1]
    for pull in (0, 0.3)
}
page = torch.ones(3, 64, 64)  # white
blank = follow(INTO, 30, "from a white page", start=page, pull=0)[-1]

# %%
plots.picture_rows({"start": origin} | changed | {"from a white page": blank},
           alt="Without a leash the shapes dissolve; on one, a cat keeps its face and "
           "an apple turns partly green; on white, shapes appear alone")  # fmt: skip
print("asked for:", ", ".join(INTO))


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared differences of all pairs: (A, 3, H, W), (B, 3, H, W) → (A, B)."""
    return (one.unsqueeze(1) - other).square().flatten(2).mean(2)


strangers = train.pictures[::40].float() / 255
for name, pictures in changed.items():
    own = apart(pictures, origin).diagonal().unsqueeze(1)
    share = (own < apart(pictures, strangers)).float().mean().item()
    print(f"{name}: nearer to its start than to most others: {share > 0.8}")
moved = [apart(x, origin).diagonal().mean().item() for x in changed.values()]
print("the leash holds it nearer:", moved[1] < 0.8 * moved[0])

# %% [markdown]
# A white page is a starting picture, too, and a good one, if you give it some more
# steps. Random codes are a page full of colours, each of which must be driven out. On
# white, only what is asked for has to appear, and around it stays what emoji stand on.
#
# ## More than one wish
#
# A second wish may be a colour, and the colour can be counted without any CLIP.
#
# **Predict first.** "car", "car | blue", "car | red" and "car | red:-0.7": order them
# by the redness of their pictures.

# %%
wishes = ["car", "car | blue", "car | red", "car | red:-0.7"]
cars = follow(wishes, 40, "four wishes", start=page, pull=0)[-1]
plots.grid(cars, wishes, columns=4, size=96, alt="A car with some red, one all blue, "
           "one all red, one without red")  # fmt: skip
redness = cars[:, 0] - (cars[:, 1] + cars[:, 2]) / 2
plain, blue, red, not_red = redness.mean((1, 2)).tolist()
print("red asked for, redder than refused:", red > not_red + 0.1)
print("refused, less red than not mentioned:", plain > not_red + 0.05)
print("blue is least red:", blue < not_red - 0.1)

# %% [markdown]
# ## Play
#
# A prompt with parts and weights, the number of steps and of cut-outs, where to start
# and how short the leash is. *Start* shows every step; *Stop* ends it and shows the
# **best so far**. Best for whom? Each step's loss is measured on other cut-outs, so a
# step may have been lucky. The score below always uses the same sixteen.


# %% tags=["brick"]
@takes(pictures="pictures", prompt="text")
@torch.no_grad()
def score(guide: CLIP, pictures: Tensor, prompt: str) -> Tensor:
    """How well pictures (B, 3, S, S) fit a prompt in the guide's eyes: (B,).

    Minus the loss over sixteen views, the same for all: the higher the better.
    """
    wish = targets(guide, prompt)
    seen = [
        views(picture.unsqueeze(0), device.generator(0), guide.image_size, cuts=16)
        for picture in pictures
    ]
    return -torch.stack([prompt_loss(guide, look, *wish) for look in seen])


# %%
beginnings = {"a white page": page, "random codes": None}
beginnings |= dict(zip(FROM, origin, strict=True))


def frames(prompt, seed, steps, cuts, begin, pull):
    (prompt,), start = widgets.prompts(prompt, most=1), beginnings[begin]
    how = {"seed": seed, "steps": steps, "cuts": cuts, "start": start, "pull": pull}
    for pictures in optimise([prompt], guide=guide, vqgan=vqgan, **how):
        yield pictures, score(guide, pictures, prompt)


steps_control = widgets.slider("Steps", 80, 1, 300)
widgets.film(
    [
        widgets.text("Prompt", "red apple"),
        widgets.slider("Seed", 0, 0, 1000),
        steps_control,
        widgets.slider("Cut-outs", 8, 1, 32),
        widgets.choice("Start", list(beginnings)),
        widgets.slider("Pull", 0.0, 0.0, 2.0),
    ],
    frames,
    "A picture that forms under CLIP's eyes.",
    steps=steps_control,
    strip=10,
)

# %% [markdown]
# What it shows, at five moments, and its score at each:

# %%
shots = list(frames("red apple", 0, 60, 8, "a white page", 0.0))
scores = [value.item() for _, value in shots]
best = scores.index(max(scores))
stills = torch.cat([shots[i][0].cpu() for i in (0, 5, 20, 59, best)])
captions = ["step 1", "step 6", "step 21", "step 60", "the best"]
alt = "A white page, a blush, a red shape, an apple"
plots.grid(stills, captions, columns=5, alt=alt)
fig, ax = plots.figure(width=6, height=2.2)
plots.curve(ax, scores, colour="shared")
ax.plot(best, scores[best], "o", color=plots.COLOURS["text"])
ax.set(title="It rises, not at every step", xlabel="step", ylabel="score")
plots.show(fig, "The score rises fast, then slower and in hops; the best is marked")
print("the end is far above the start:", scores[-1] > scores[0] + 0.2)

# %% [markdown]
# ## Break it
#
# From the same random codes, with one part taken out each:
#
# - **no straight-through**: the code as it is, with a slope of 0;
# - **no codes**: z goes to the decoder as it is, and is rounded only for the picture
#   that we see;
# - **no range**: nothing stops z from running away;
# - **plain clamp**: no door in the wall.
#
# **Predict first.** Which one stands still? Which one moves, but hops less?


# %%
class PlainClamp:
    apply = staticmethod(torch.clamp)


def looked_up(z: Tensor, codebook: Tensor) -> Tensor:
    return codebook[nearest_code(z, codebook)] + 0 * z  # 0: a gradient, of nothing


parts = {
    "whole": {},
    "no straight-through": {"quantised": looked_up},
    "no codes": {"quantised": lambda z, codebook: z},
    "no range": {"within": lambda z, codebook: z},
    "plain clamp": {"ClampWithGrad": PlainClamp},
}
broken = {}
for name, others in parts.items():
    with instead(**others):
        broken[name] = follow(LABELS[:2], 1 if "through" in name else 24, name)

# %%
last = {name: pictures[-1] for name, pictures in broken.items()}
alt = "Without straight-through still random codes; all others draw"
plots.picture_rows(last, alt=alt)
blots = vqgan.decode(random_codes(vqgan.codes, 8, [0] * 2).to(here)).cpu()
still = torch.allclose(broken["no straight-through"][-1], blots, atol=1e-4)
print("no straight-through: not a pixel has moved:", still)


def hops(pictures: list[Tensor]) -> float:
    """How much a picture changes from step to step, over the last twenty."""
    pairs = itertools.pairwise(pictures[-20:])
    return sum((a - b).abs().mean().item() for a, b in pairs)


print("no codes: hops less:", hops(broken["no codes"]) < hops(broken["whole"]))
far = (last["plain clamp"] - last["whole"]).abs().mean()
print("another clamp is enough for another picture:", bool(far > 0.02))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Without the straight-through gradient nothing moves at all, however long one waits (so
# we wait for one step). Without codes the guide pulls smoothly: there is nothing to hop
# between, but what it pulls at is not what we get to see in the end.
#
# The last two are honest disappointments: the pictures are others, and not visibly
# worse. Our decoder seldom leaves [0, 1], and in 24 steps z does not run far. Two
# labels could not tell anyway, for the smallest change leads to another picture; to
# compare such parts takes many runs.
#
# </details>

# %% [markdown]
# ## Exercises
#
# > **Exercise 1 · Enough is enough** — difficulty 2 of 3, about 8 minutes. Why it
# > matters: a wish with a negative weight is never fulfilled; it pushes for ever. The
# > reference lets a wish stop. Write `with_stop(distances, weight, stop)`: for
# > distances (N,), return the mean of weight · distance, a scalar. Its gradient flows
# > only through those distances whose weight · distance lies above `stop`; the value is
# > the same as without.


# %% tags=["exercise"]
def with_stop(distances: Tensor, weight: float, stop: float) -> Tensor:
    """(N,) → a scalar."""
    ...


# %%
from utils.exercises import vqgan_clip as exercises

exercises.check_with_stop(with_stop)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `torch.where` chooses, for each distance, the value itself or its `detach()`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def with_stop(distances, weight, stop):
#     values = weight * distances
#     return torch.where(values > stop, values, values.detach()).mean()
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · Smooth, please** — difficulty 1 of 3, about 6 minutes. Why it
# > matters: many loops add a *total variation*, so that grain costs something. Write
# > `total_variation(pictures)`: for each picture (B, 3, H, W) the mean squared
# > difference of horizontal neighbours plus that of vertical ones, (B,). Nothing wraps
# > round the edge.


# %% tags=["exercise"]
def total_variation(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) → (B,)."""
    ...


# %%
exercises.check_total_variation(total_variation)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `x[..., 1:] - x[..., :-1]` are the differences of columns. Each direction has its own
# mean: there is one column less than columns.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def total_variation(pictures):
#     right = pictures[:, :, :, 1:] - pictures[:, :, :, :-1]
#     down = pictures[:, :, 1:] - pictures[:, :, :-1]
#     return right.square().mean((1, 2, 3)) + down.square().mean((1, 2, 3))
# ```
#
# </details>

# %% [markdown]
# > **Exercise 3 · Cuts of the size you want** — difficulty 2 of 3, about 8 minutes. Why
# > it matters: one thinks in sizes, not in powers. Leave the rounding out: a side is
# > U^p·(most − least) + least. Write `power_for(share, least, most, side)`: the power p
# > with which a `share` of all cuts is smaller than `side`.


# %% tags=["exercise"]
def power_for(share: float, least: float, most: float, side: float) -> float:
    """0 < share < 1, least < side < most → p."""
    ...


# %%
exercises.check_power_for(power_for)

# %% [markdown]
# <details><summary>Hint</summary>
#
# U is below u in a share of u of all cases. The side grows with U, so the cut for
# U = share has just the size `side`. Solve for p with logarithms.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def power_for(share, least, most, side):
#     return math.log((side - least) / (most - least)) / math.log(share)
# ```
#
# </details>

# %% [markdown]
# > **Exercise 4 · Keep the best** — difficulty 2 of 3, about 10 minutes. Why it
# > matters: a loop that hops may end in a bad moment. Write a generator
# > `best_so_far(frames)`: for an iterator of (picture, score) it yields, at each step,
# > the pair with the highest score up to there. Of equal ones the earlier stays. It
# > must not wait for the end of `frames`, and a loop changes its pictures in place, so
# > keep a copy of the best.


# %% tags=["exercise"]
def best_so_far(frames):
    """(picture, score), (picture, score), … → as many pairs."""
    ...


# %%
exercises.check_best_so_far(best_so_far)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `best = None` at first; `picture.clone()` whenever there is a better one; a `yield` in
# each turn.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def best_so_far(frames):
#     best = None
#     for picture, score in frames:
#         if best is None or score > best[1]:
#             best = picture.clone(), score
#         yield best
# ```
#
# </details>

# %% [markdown]
# ## Myth check
#
# **"VQGAN-CLIP trains the generator until the cosine converges."** Three mistakes. The
# distance is the squared angle, over cut-outs. Nothing converges: the number of steps
# is fixed, and the loop hops. And no network changes, only the latents do:

# %%
networks = {"decoder": vqgan, "guide": guide}
before = {name: [p.clone() for p in net.parameters()] for name, net in networks.items()}
buffers = [b.clone() for b in guide.buffers()]
for _ in optimise(["a cat"], steps=2, guide=guide, vqgan=vqgan):
    pass
for name, net in networks.items():
    same = all(map(torch.equal, before[name], net.parameters()))
    print(f"{name}: unchanged {same}, no gradients:",
          all(p.grad is None for p in net.parameters()))  # fmt: skip
print(
    "the guide's BatchNorm saw nothing:",
    all(map(torch.equal, buffers, guide.buffers())),
)

# %% [markdown]
# **"It starts from noise, like diffusion."** From random *codes*, or from a picture.
# Pixel noise is where diffusion starts, in lesson 10.
#
# **"Cut-outs are crops."** In the best-known implementation the default cutter, called
# `latest`, crops nothing: it makes 32 pooled copies of the whole picture, which differ
# only by their augmentation. `original` is the one that cuts, as here.
#
# **"`init_weight` keeps the picture near its start."** There it pulls z towards *zero*,
# and less and less so. Our `pull` goes to the start.
#
# **"A high CLIP score means a good picture."** See the pixels.
#
# ## Differs from the paper
#
# | | VQGAN-CLIP (code of nerdyrodent) | here | why |
# |---|---|---|---|
# | decoder | ImageNet VQGAN, 16 × 16 pixels a code | lesson 07's, 8 × 8 | our own |
# | CLIP | ViT-B/32 of OpenAI | our ResNet; a ViT judges | nobody measures itself |
# | prompt | its text alone | mean of four templates | lesson 04 |
# | latents | anywhere, clamped to the range | the same; codes lie near a sphere | |
# | Adam | 0.1, 500 steps | 0.15, 200 steps or fewer | small pictures |
# | cut-outs | 32, pooled to 224 | 8 of 24 to 64, enlarged to 64 | our CLIP reads 64 |
# | power | 1 | 1 | |
# | augmentation | turned, sheared, recoloured, erased | mirrored | enough here |
# | noise | up to 0.1 | the same | |
# | pull | to zero, decaying | to the start | what its name says |
# | several pictures | one at a time | each on its own, in one loop | |
#
# ## Where this goes next
#
# Part II ends here. There were two ways from words to a picture: learn to write codes
# (lesson 08), or ask a critic at every step (this one). The next part has a third, and
# it starts where nothing is drawn yet: **lesson 10** takes pictures apart into noise.
# In **lesson 12** a guide comes back, cut-outs and all, and steers a diffusion model.
#
# ## Read more
#
# - Crowson et al. 2022, *VQGAN-CLIP: Open Domain Image Generation and Editing with
#   Natural Language Guidance*, sec. 3.
# - nerdyrodent/VQGAN-CLIP, `generate.py` (cutters, `ReplaceGrad`, `ClampWithGrad`,
#   `Prompt`); EleutherAI/vqgan-clip, `main.py`, `masking.py`.
# - Goodfellow, Shlens, Szegedy 2015, *Explaining and Harnessing Adversarial Examples*.
#
# **Glossary** · 直通梯度 straight-through gradient · 码本 codebook · 潜变量 latents ·
# 随机裁剪 random cut-outs · 数据增强 augmentation · 球面距离 spherical distance · 引导
# guidance · 对抗样本 adversarial example · 评判模型 judge · 负权重提示词 negative
# prompt
