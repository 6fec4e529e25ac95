# ---
# jupyter:
#   brick: diffusion
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Diffusion: noise, step by step, and back
#
# ![A photograph dissolves into noise in fixed steps; a network learns, at every step,
# what was there before; from pure noise it walks back to a picture that was never
# there](../assets/figures/10_diffusion.svg)
#
# Parts I and II wrote pictures as codes. Now there are no codes: a picture is pixels,
# and to make one is to take noise away. **How can a network that only ever cleans
# pictures invent one?** The answer is Ho et al. 2020, *Denoising Diffusion
# Probabilistic Models* (DDPM): it cleans a little, many times, beginning with nothing
# but noise.

# %%
import functools
import html

from utils import checkpoints, data, pictures, plots, training, widgets

train = data.load_emoji("train").where(skin_tone="none")
unseen = data.load_emoji("unseen").where(skin_tone="none")

# %% [markdown]
# What the bricks of this lesson are made of:

# %% tags=["brick"]
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import device
from utils.bricks.attention import Attention
from utils.bricks.clip import CLIP
from utils.bricks.dalle import check_prompts, each_seed

# %% [markdown]
# ## A toy to play with
#
# Draw points with the keyboard: every `#` is a place where points may lie. A network of
# three layers sees points to which noise was added, and how much, and guesses where
# each was. Its guess is the only thing that is learnt. Then the way back: begin with
# noise alone, let it guess, put back **a little less noise** than there was, let it
# guess again.

# %%
ART = """
 ##   ##
#  # #  #
#   #   #
 #     #
  #   #
   # #
    #
"""
ANGLES = torch.linspace(1.55, 0.02, 60)
LEVELS = ANGLES.sin().square()  # the share of noise, from nearly all to hardly any


def as_points(art: str) -> Tensor:
    """Where the # stand, (P, 2), about 0 and of spread 1."""
    rows = art.strip("\n").splitlines()
    places = [(x, -y) for y, row in enumerate(rows)
              for x, sign in enumerate(row) if sign == "#"]  # fmt: skip
    if len(places) < 2:
        raise ValueError("There are fewer than two points; type some more # signs.")
    points = torch.tensor(places, dtype=torch.float32)
    return (points - points.mean(0)) / points.std()


def guess(net: nn.Module, x: Tensor, level: Tensor) -> Tensor:
    """Where points (N, 2) with a share of noise (N, 1) were, by a network: (N, 2)."""
    # x itself, paler, and a correction that counts more the more noise there is
    correction = net(torch.cat([x, 4 * level - 2], 1))
    return (1 - level).sqrt() * x + level.sqrt() * correction


@functools.lru_cache(maxsize=8)
def way_of_points(art: str, steps: int = 900, count: int = 400) -> Tensor:
    """Learn to guess, then walk from noise to points: (61, count, 2)."""
    device.seed(0)
    points = as_points(art)
    layers = [nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
    net = nn.Sequential(*layers, nn.Linear(128, 2))
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for step in range(steps):
        x0 = points[torch.randint(len(points), (256,))]
        level = (1.57 * torch.rand(256, 1)).sin().square().clamp(1e-4, 0.9999)
        x = (1 - level).sqrt() * x0 + level.sqrt() * torch.randn(256, 2)
        loss = ((guess(net, x, level) - x0).square() / level).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        optimizer.step()
    x, way = torch.randn(count, 2), []
    with torch.no_grad():
        for level, less in zip(LEVELS, [*LEVELS[1:], torch.zeros(())], strict=True):
            way.append(x)
            x0 = guess(net, x, level.expand(count, 1))
            noise = (x - (1 - level).sqrt() * x0) / level.sqrt()
            x = (1 - less).sqrt() * x0 + less.sqrt() * noise  # a little less of it
    return torch.stack([*way, x])


# %% [markdown]
# **Predict first.** Will a point wander about, or will it know early where it belongs?

# %%
way, goal = way_of_points(ART), as_points(ART)
fig, axes = plots.figure(columns=6, width=11, height=2.1)
for ax, step in zip(axes, (0, 20, 35, 45, 52, 60), strict=True):
    ax.plot(*way[step].T, ".", markersize=2, color=plots.COLOURS["image"])
    ax.plot(*goal.T, "o", markersize=6, mfc="none", color=plots.COLOURS["noise"])
    ax.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")
    ax.set_title(f"step {step}")
plots.show(fig, "A cloud of points draws together, and at the end it is a heart")
off = [torch.cdist(way[step], goal).amin(1).mean() for step in (0, 60)]
print("they arrive: less than half as far as noise is:", bool(off[1] < off[0] / 2))
near = torch.cdist(way[60], goal).argmin(1).bincount(minlength=len(goal))
print("and not all at the same place:", int((near > 0).sum()) == len(goal))

# %% [markdown]
# The grey rings are the points that were drawn. At first all guesses are the middle of
# everything: with so much noise no other is better. The less noise there is, the fewer
# points are possible, and the guess makes up its mind. (They come near the rings, not
# onto them: a network this small draws smooth curves.)
#
# **Play.** Draw something of your own, press Tab, and scrub through time. The network
# learns anew, which takes seconds.


# %%
def scatter(art: str, step: int) -> str:
    points, target_points = way_of_points(art)[step], as_points(art)
    dots = [(*p, "image", 1.4) for p in points.tolist()]
    dots += [(*p, "noise", 3.0) for p in target_points.tolist()]
    drawn = "".join(
        f'<circle cx="{150 + 48 * x:.1f}" cy="{150 - 48 * y:.1f}" r="{r}" '
        f'fill="{plots.COLOURS[colour]}" fill-opacity="0.7"/>'
        for x, y, colour, r in dots
    )
    return (
        '<svg width="300" height="300" role="img" aria-label="points at this step" '
        f'style="background:white">{drawn}</svg><p>step {step} of 60</p>'
    )


widgets.live(
    [widgets.text("points", ART, lines=9), widgets.slider("step", 60, 0, 60)],
    scatter,
    "Points that come out of noise, and a field to draw others.",
)

# %% [markdown]
# ## How a cup of coffee dissolves
#
# Now pixels. Diffusion adds noise to a photograph, step by step, until nothing is left
# of it. People like to explain it by milk that spreads in coffee. Here are both: above,
# what a diffusion model does; below, what milk does, each pixel mixing with its
# neighbours. **Predict first:** in which of the two does a pixel learn anything of the
# pixel beside it?

# %%
coffee = pictures.photo("coffee")
coffee = F.interpolate(coffee[None], (96, 144), mode="area")[0]  # (3, 96, 144)
x0 = 2 * coffee - 1  # in [−1, 1], so that 0 is grey
draw = device.generator(0)
eps = torch.randn(x0.shape, generator=draw)


def milk(x: Tensor, times: int) -> Tensor:
    """Every pixel becomes the mean of nine, again and again."""
    for _ in range(times):
        x = F.avg_pool2d(F.pad(x[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
    return x


shares = (1.0, 0.9, 0.6, 0.3, 0.1, 0.0)  # of the variance, that is still signal
noisy = [share**0.5 * x0 + (1 - share) ** 0.5 * eps for share in shares]
mixed = [milk(x0, times) for times in (0, 2, 8, 30, 120, 500)]
plots.picture_rows(
    {"diffusion": torch.stack(noisy) / 2 + 0.5, "milk": torch.stack(mixed) / 2 + 0.5},
    alt="Noise covers the cup everywhere at once; milk blurs it to a single colour",
    size=84,
)

# %% [markdown]
# Two measurements tell them apart. **Does anything move sideways?** In the picture of
# noise, each pixel is what it was, made paler, plus noise that no neighbour shares. In
# the blur, neighbours become alike.


# %%
def alike(x: Tensor) -> float:
    """How strongly a pixel's change goes with that of its right neighbour."""
    left, right = x[..., :-1].flatten(), x[..., 1:].flatten()
    return torch.corrcoef(torch.stack([left, right]))[0, 1].item()


added = noisy[3] - shares[3] ** 0.5 * x0
print("neighbours share the noise that comes in:", abs(alike(added)) > 0.1)
print("neighbours share what a blur changes:", alike(mixed[3] - x0) > 0.1)
one = x0.clone()
one[:, 48, 72] = 1.0  # one pixel more
moved = ((milk(one, 2) - milk(x0, 2)).abs().sum(0) > 1e-4).sum()
kept = (shares[3] ** 0.5 * (one - x0)).abs().sum(0) > 1e-4
print(
    "places that a pixel reaches: by milk", int(moved), "by diffusion", int(kept.sum())
)

# %% [markdown]
# Nothing moves. The **signal shrinks**, and **independent noise comes in**, so that the
# whole variance stays about what it was. (The equation of heat is in the name for
# another reason: what spreads is the *probability*, in a space with one axis for each
# number of a picture.)
#
# ## Step by step
#
# A step takes the picture a little down and adds a little noise, with a number β that
# says how much:
#
# $$x_t = \sqrt{1-\beta_t}\;x_{t-1} + \sqrt{\beta_t}\;\varepsilon_t$$
#
# Why the roots? Variances add, and the factor of a variance is the square of that of
# the numbers. (1 − β) + β = 1: what had variance one keeps it. By hand, three steps:

# %%
variance, signal = 1.0, 1.0
for beta in (0.1, 0.2, 0.5):
    variance = (1 - beta) * variance + beta
    signal = (1 - beta) * signal
    print(f"β = {beta}: variance {variance:.2f}, of it signal {signal:.2f}")

# %% [markdown]
# Of the signal, the product of all 1 − β is left. It has a name, ᾱ ("alpha bar"):
#
# $$\bar\alpha_t = (1-\beta_1)(1-\beta_2)\cdots(1-\beta_t)$$
#
# Which β, then? Three schedules are in use. *Linear* is DDPM's; *scaled linear*, that
# is linear in √β, is that of Stable Diffusion; *cosine* (Nichol & Dhariwal 2021) is
# made so that ᾱ falls evenly.


# %% tags=["brick"]
def betas(schedule: str = "cosine", steps: int = 1000) -> Tensor:
    """How much noise each step brings, β₁ … β_T: (T,) in (0, 0.999].

    schedule: "linear" from 1e-4 to 0.02 (Ho et al. 2020, sec. 4), "scaled_linear", that
    is linear in √β from 0.00085 to 0.012 (Rombach et al. 2022), or "cosine" (Nichol &
    Dhariwal 2021, eq. 17). The first two are for 1,000 steps; with fewer, each step
    brings more.
    """
    if steps < 1:
        raise ValueError(f"there are {steps} steps; give at least one")
    if schedule == "linear":
        found = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * 1000 / steps
    elif schedule == "scaled_linear":
        roots = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64)
        found = roots.square() * 1000 / steps
    elif schedule == "cosine":
        share = torch.arange(steps + 1, dtype=torch.float64) / steps  # t / T
        left = ((share + 0.008) / 1.008 * math.pi / 2).cos().square()
        found = 1 - left[1:] / left[:-1]
    else:
        known = "linear, scaled_linear or cosine"
        raise ValueError(f"the schedule is {schedule!r}; choose {known}")
    return found.clamp(max=0.999)


def signal_left(betas: Tensor) -> Tensor:
    """The share of the variance that is signal after each step, ᾱ: (T,) → (T,).

    ᾱ_t = (1 − β₁) … (1 − β_t). Ho et al. 2020, eq. 4.
    """
    return (1 - betas).cumprod(0)


# %%
LINES = {"linear": "noise", "scaled_linear": "code", "cosine": "image"}
table = {name: signal_left(betas(name)) for name in LINES}
fig, axes = plots.figure(columns=3, width=11, height=2.7)
for name, colour in LINES.items():
    left = table[name]
    curves = (betas(name), left, 10 * (left / (1 - left)).log10())
    for ax, values in zip(axes, curves, strict=True):
        ax.plot(values, color=plots.COLOURS[colour], label=name)
axes[0].set(title="β: cosine ends steeply", xlabel="step t", ylim=(0, 0.06))
axes[1].set(title="ᾱ: linear has little left at half", xlabel="step t")
axes[2].set(title="Signal to noise, in dB", xlabel="step t", ylim=(-50, 40))
axes[0].legend()
plots.show(fig, "Three schedules; the cosine's signal falls evenly, the linear one's "
           "is gone after two thirds")  # fmt: skip
late = {name: (left < 0.1).float().mean().item() for name, left in table.items()}
print("steps with less than a tenth of signal:",
      {name: f"{share:.0%}" for name, share in late.items()})  # fmt: skip
print("left at the end:", {name: f"{left[-1]:.0e}" for name, left in table.items()})

# %% [markdown]
# Note the green curve's end: Stable Diffusion's schedule leaves half a percent of the
# variance as signal, so the network never sees pure noise in training, and is given
# pure noise when it draws. Mean brightness leaks through that hole (Lin et al. 2024).
#
# ### In one step
#
# Nobody needs the steps in between. Normal noise on normal noise is normal noise again,
# so x_t comes out of x₀ at once:
#
# $$x_t = \sqrt{\bar\alpha_t}\;x_0 + \sqrt{1-\bar\alpha_t}\;\varepsilon$$


# %% tags=["brick", "blank"]
def spread(values: Tensor, x: Tensor) -> Tensor:
    """A number for each row of x, (B,), in a shape that multiplies x: (B, 1, …, 1)."""
    return values.to(x).view(-1, *[1] * (x.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """x_t = √ᾱ·x₀ + √(1 − ᾱ)·ε, in one step.

    x0, noise: (B, …); signal: ᾱ of each row, (B,). Ho et al. 2020, eq. 4.
    """
    signal = spread(signal, x0)
    return signal.sqrt() * x0 + (1 - signal).sqrt() * noise


# %% [markdown]
# First as numbers: what do t steps do to the mean of a pixel, and to its variance, and
# what does the closed form say? Then as draws: 20,000 pixels of value 0.7.

# %%
factor, spread_out, worst = 1.0, 0.0, 0.0
for beta, left in zip(betas("linear").tolist(), table["linear"].tolist(), strict=True):
    factor = (1 - beta) ** 0.5 * factor  # of the mean
    spread_out = (1 - beta) * spread_out + beta  # the variance
    worst = max(worst, abs(factor - left**0.5), abs(spread_out - (1 - left)))
print("1,000 steps and the closed form, mean and variance: apart by", f"{worst:.0e}")
x = torch.full((20_000,), 0.7)
for beta in betas("linear")[:300].tolist():
    x = (1 - beta) ** 0.5 * x + beta**0.5 * torch.randn(x.shape, generator=draw)
left = table["linear"][299].item()
once = torch.full((20_000, 1), 0.7)
once = add_noise(once, torch.randn(once.shape, generator=draw),
                 torch.full((20_000,), left))  # fmt: skip
for name, found in (("step by step", x), ("at once", once)):
    right_mean = abs(found.mean().item() - left**0.5 * 0.7) < 0.03
    right_variance = abs(found.var().item() - (1 - left)) < 0.03
    print(f"{name}, 300 steps: mean {right_mean}, variance {right_variance}")

# %% [markdown]
# And against the library that everybody uses:

# %%
from diffusers import DDPMScheduler

THEIRS = {"linear": (1e-4, 0.02, "linear"), "cosine": (1e-4, 0.02, "squaredcos_cap_v2"),
          "scaled_linear": (0.00085, 0.012, "scaled_linear")}  # fmt: skip
batch, t = x0[None].repeat(3, 1, 1, 1), torch.tensor([0, 400, 999])
noise = torch.randn(batch.shape, generator=draw)
for name, (start, end, kind) in THEIRS.items():
    scheduler = DDPMScheduler(1000, start, end, kind)
    wanted = scheduler.add_noise(batch, noise, t)
    found = add_noise(batch, noise, table[name].float()[t])
    print(f"{name}: as diffusers has it:", torch.allclose(found, wanted, atol=1e-5))

# %% [markdown]
# ### Play: any picture, any time
#
# Move the time. **Predict first:** at which t can you no longer tell what it is, under
# *linear* and under *cosine*? Give it a picture of your own.


# %%
PHOTOS = ("coffee", "chelsea", "astronaut", "rocket")
which = widgets.choice("picture", PHOTOS, "coffee")


def dissolve(name, own, schedule, t) -> str:
    x = own if own is not None else pictures.photo(name or "coffee")
    side = 160 / max(x.shape[1:])
    size = [max(1, round(side * length)) for length in x.shape[1:]]
    x = 2 * F.interpolate(x[None], size, mode="area") - 1
    left = signal_left(betas(schedule))[t - 1 : t] if t else torch.ones(1)
    noise = torch.randn(x.shape, generator=device.generator(0))
    row = torch.cat([x, add_noise(x, noise, left.float())]) / 2 + 0.5
    share = left.item()
    told = f"ᾱ = {share:.4f}: {share**0.5:.3f} of the picture, "
    told += f"{(1 - share) ** 0.5:.3f} of noise"
    images = [
        widgets.thumbnail(p, 200, f"t = {s}") for p, s in zip(row, (0, t), strict=True)
    ]
    return f"<p>{''.join(images)}</p><p>{html.escape(told)}</p>"


widgets.live(
    [which, widgets.upload(which), widgets.choice("schedule", list(LINES), "linear"),
     widgets.slider("time t", 300, 0, 1000)],
    dissolve,
    "A picture and what is left of it at a time, by three schedules.",
)  # fmt: skip

# %% [markdown]
# The same at five times, and in print what the page of a machine without widgets shows:

# %%
times = torch.tensor([100, 300, 500, 700, 900])
rows = {
    name: add_noise(x0.expand(5, -1, -1, -1), eps.expand(5, -1, -1, -1),
                    table[name].float()[times - 1]) / 2 + 0.5
    for name in ("linear", "cosine")
}  # fmt: skip
plots.picture_rows(
    {f"{name}, t = 100, 300, 500, 700, 900": row for name, row in rows.items()},
    alt="Under linear the cup is gone at 500, under cosine at 900", size=84,
)  # fmt: skip
print(
    "signal at 500:", {n: round(table[n][499].item(), 3) for n in ("linear", "cosine")}
)

# %% [markdown]
# ## What is left to learn at each t
#
# Noise cannot be undone. But one can guess: of all pictures that there are, which could
# this have been? For a *finite* set of pictures the best guess is known exactly. Each
# picture counts as much as it is likely to have given this x_t, and the guess is their
# mean:
#
# $$\hat x_0 = \sum_i w_i\,x^{(i)},\qquad
#   w = \mathrm{softmax}\Big(-\frac{\|x_t-\sqrt{\bar\alpha_t}\,x^{(i)}\|^2}
#   {2\,(1-\bar\alpha_t)}\Big)$$
#
# No network can have a smaller squared error on these pictures. Here it is for the
# faces and hearts of the shaded style, at 32 pixels, and for one that is *not* among
# them.

# %%
faces = train.where(group="smileys-emotion")


def shrink(pairs: data.Pairs, side: int = 32) -> Tensor:
    """Pictures (N, 3, side, side) in [0, 1], each pixel the mean of those it covers."""
    return F.adaptive_avg_pool2d(pairs.pictures.float() / 255, side)


def best_guess(x: Tensor, known: Tensor, left: float) -> tuple[Tensor, Tensor]:
    """The best guess (B, …) about x, and the largest weight in it, (B,)."""
    scaled = left**0.5 * known.flatten(1)
    apart = torch.cdist(x.flatten(1), scaled).square()  # (B, N)
    weights = (-apart / (2 * (1 - left))).softmax(1)
    return (weights @ known.flatten(1)).view_as(x), weights.amax(1)


small = 2 * shrink(faces) - 1
known, other = small[1:], small[:1]  # one is kept out
left = table["cosine"].float()[[50, 300, 600, 850, 990]]
seen = torch.randn((5, *other.shape[1:]), generator=device.generator(1))
seen = add_noise(other.expand(5, -1, -1, -1), seen, left)
guesses, weights = zip(
    *(best_guess(x[None], known, a.item()) for x, a in zip(seen, left, strict=True)),
    strict=True,
)
plots.picture_rows(
    {
        "with noise, t = 50, 300, 600, 850, 990": seen / 2 + 0.5,
        f"the best guess from {len(known)} other pictures": torch.cat(guesses) / 2
        + 0.5,
    },
    alt="With little noise the guess is one picture, with much a mean of many",
)
print("one picture has more than 0.9 of the weight:", [bool(w > 0.9) for w in weights])

# %% [markdown]
# Read it from the right. Nearly all is noise: the guess is the mean of everything, and
# there is nothing to learn but that mean. In the middle: what kind of thing is it,
# which colour? There most is decided. On the left the picture is there already; what is
# left to learn is a little noise.
#
# And note what the best guess *is* on the left: **one training picture**, even for a
# face that is none of them. A network that reached the smallest possible error would
# recite. It makes new pictures *because* it cannot: it is too small, too short in
# training, and its convolutions see neighbourhoods first (Kamb & Ganguli 2024).
#
# ## Noise, picture or velocity
#
# What shall the network say? Three answers are in use, and each can be turned into the
# others, for x_t is given:
#
# - **ε**, the noise, as DDPM asks. With nearly no signal it must be divided by √ᾱ to
#   become a picture: at the last step of *cosine* a small error becomes a huge one.
# - **x₀**, the picture. With nearly no noise that is the other way round.
# - **v** = √ᾱ·ε − √(1−ᾱ)·x₀ (Salimans & Ho 2022): at the noisy end it is the picture
#   with a minus, at the clean end the noise. Never is anything divided.
#
# The three form a circle: with √ᾱ = cos φ, x is picture·cos φ + noise·sin φ, and v is
# the direction in which x moves when φ grows.


# %% tags=["brick"]
def check_kind(kind: str) -> None:
    """Raise ValueError unless `kind` is what a network can be asked for."""
    if kind not in ("eps", "x0", "v"):
        raise ValueError(f"the target is {kind!r}; choose eps, x0 or v")


# %% tags=["brick", "blank"]
def target(kind: str, x0: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """What a network shall say of x_t: the noise, the picture, or the velocity.

    kind: "eps", "x0", or "v", which is √ᾱ·ε − √(1 − ᾱ)·x₀ (Salimans & Ho 2022,
    app. D). x0, noise: (B, …); signal: ᾱ of each row, (B,). Returns (B, …).
    """
    check_kind(kind)
    signal = spread(signal, x0)
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * x0
    return {"eps": noise, "x0": x0, "v": velocity}[kind]


def read_off(
    kind: str, said: Tensor, x: Tensor, signal: Tensor
) -> tuple[Tensor, Tensor]:
    """(x₀, ε) as a network's answer about x_t has them; `target` backwards.

    said, x: (B, …); signal: ᾱ of each row, (B,), below 1 for "x0" and above 0 for
    "eps", which divide by what is missing there.
    """
    check_kind(kind)
    signal = spread(signal, x)
    root, rest = signal.sqrt(), (1 - signal).sqrt()  # √ᾱ and √(1 − ᾱ)
    if kind == "eps":
        return (x - rest * said) / root, said
    if kind == "x0":
        return said, (x - root * said) / rest
    return root * x - rest * said, rest * x + root * said


# %% [markdown]
# By hand, then: a picture of one pixel, 2, noise 10, ᾱ = 0.36. Whoever knows the right
# answer, of whichever kind, knows picture and noise.

# %%
pixel, grain, left = torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.tensor([0.36])
x = add_noise(pixel, grain, left)
print("x =", f"0.6 · 2 + 0.8 · 10 = {x.item():.1f}")
for kind in ("eps", "x0", "v"):
    said = target(kind, pixel, grain, left)
    back = [round(part.item(), 3) + 0.0 for part in read_off(kind, said, x, left)]
    print(f"{kind}: {said.item():+.1f} → picture and noise {back}")

# %% [markdown]
# So it does not matter? It does, for the *loss*. One and the same wrong guess costs
# differently, depending on the answer in which it is measured. From the formulas, with
# SNR = ᾱ/(1−ᾱ), the signal-to-noise ratio:
#
# $$\|\varepsilon-\hat\varepsilon\|^2=\mathrm{SNR}\cdot\|x_0-\hat x_0\|^2,\qquad
#   \|v-\hat v\|^2=(\mathrm{SNR}+1)\cdot\|x_0-\hat x_0\|^2$$

# %%
left = table["cosine"].float()[[20, 200, 500, 800, 980]]
right, grain, wrong = (torch.randn(5, 3, 8, 8, generator=draw) for _ in range(3))
x, snr = add_noise(right, grain, left), left / (1 - left)
wrong_eps = read_off("x0", wrong, x, left)[1]
error = {
    kind: (target(kind, right, grain, left) - target(kind, wrong, wrong_eps, left))
    .square().flatten(1).sum(1)
    for kind in ("eps", "x0", "v")
}  # fmt: skip
print(
    "ε costs SNR times x₀:", torch.allclose(error["eps"] / error["x0"], snr, rtol=1e-3)
)
print("v costs SNR + 1 times:", torch.allclose(error["v"] / error["x0"], snr + 1))
fig, ax = plots.figure(width=6, height=2.6)
ratio = table["cosine"] / (1 - table["cosine"])
ax.plot(ratio, color=plots.COLOURS["noise"], label="ε: SNR")
ax.plot(ratio + 1, color=plots.COLOURS["image"], label="v: SNR + 1")
ax.plot(ratio.clamp(max=5), "--", color=plots.COLOURS["code"], label="at most 5")
ax.axhline(1, color=plots.COLOURS["text"], label="x₀: 1")
ax.set(yscale="log", ylim=(1e-3, 1e4), xlabel="step t", ylabel="weight")
ax.set_title("The same wrong picture, as dear as its answer makes it")
ax.legend(fontsize=8)
plots.show(fig, "The weight of a wrong picture: by noise it falls to nothing at the "
           "noisy end, by velocity it stays above one")  # fmt: skip

# %% [markdown]
# ε forgives whatever is wrong where there is mostly noise, and there the *composition*
# is decided. v never goes below 1. Both spend enormous weights on the last grains at
# the clean end; to cap it (the dashed line, Hang et al. 2023, γ = 5) is exercise 3. The
# course's recipe (`utils/recipes/diffusion.py`) asks for v.
#
# ## A small U-Net
#
# The network gets a noisy picture and the time, and answers with a picture. It must see
# the whole (is it a face?) and leave every pixel where it is. A **U-Net** does both:
# down to small maps and up again, and on the way up it is shown once more what it saw
# on the way down.
#
# **The time first.** A number from 0 to 999 is a poor input; as waves of many lengths
# it is a good one. It is the position embedding of the Transformer.


# %% tags=["brick", "blank"]
def timestep_embedding(t: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Steps as waves: (B,) → (B, width), cosines and then sines.

    The periods grow from 2π to 2π·longest. Vaswani et al. 2017, sec. 3.5.
    """
    half = width // 2
    places = torch.arange(half, dtype=torch.float32, device=t.device)
    speeds = torch.exp(-math.log(longest) * places / half)  # 1 … 1 / longest
    angles = t.float().unsqueeze(1) * speeds  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], 1)


# %%
from diffusers.models.embeddings import get_timestep_embedding

waves = timestep_embedding(torch.arange(1000), 64)
fig, ax = plots.figure(width=6, height=2)
ax.imshow(waves[:100].T, cmap=plots.CMAP, aspect="auto", vmin=-1, vmax=1)
ax.set(title="Each time has waves of its own", xlabel="step t", yticks=[0, 32, 63])
plots.show(fig, "Cosines above, sines below; quick at the top of each half, then slow")
theirs = get_timestep_embedding(torch.arange(1000), 64, True, 0)
print("as diffusers has it:", torch.allclose(waves, theirs, atol=1e-6))
apart = torch.cdist(waves, waves) + 10 * torch.eye(1000)
print("no two times look alike:", apart.min().item() > 0.1)

# %% [markdown]
# **Two bricks.** `TimeBlock` is the `ConvBlock` of lesson 05, and the vector of the
# time turns its channels up and down. `Mixer` is the attention of lesson 01 over the
# places of a map: convolutions see neighbours, and two eyes should match.


# %% tags=["brick"]
class TimeBlock(nn.Module):
    """Two convolutions that know the time, beside a path without.

    (B, wide, H, W) and the vector of the time (B, time) → (B, width, H, W). The vector
    scales and shifts what the second norm gives. The second convolution starts at 0, so
    that a new block changes nothing. Ho et al. 2020, app. B; the scale: Dhariwal &
    Nichol 2021, sec. 3.
    """

    def __init__(self, wide: int, width: int, time: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(16, wide)
        self.conv1 = nn.Conv2d(wide, width, 3, padding=1)
        self.time = nn.Linear(time, 2 * width)
        self.norm2 = nn.GroupNorm(16, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(wide, width, 1) if wide != width else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        change = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        change = self.norm2(change) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(change))


class Mixer(nn.Module):
    """Every place of a map looks at every other: (B, width, H, W) → the same shape.

    It starts by changing nothing. A subclass may look elsewhere, too: what a UNet is
    given beyond the time comes here.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(16, width)
        self.attention = Attention(width, 1 if width % 32 else width // 32)
        nn.init.zeros_(self.attention.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H·W, width)
        return x + self.attention(tokens).transpose(1, 2).view_as(x)


# %% [markdown]
# **And the network.** At the top, 2 × 2 pixels become one place (`patch`), for
# convolutions on the full picture cost most and give least. A vector may come in beside
# the time: that of a caption.


# %% tags=["brick"]
class UNet(nn.Module):
    """Noisy maps and their times → maps of the same shape: (B, C, H, W), (B,).

    widths: of the levels, each at half the side of the one before; depth: blocks on
    every level, on the way down and on the way up; patch: as many pixels by as many
    become one place first; mixed: levels that have a Mixer after each block; condition:
    width of a vector (B, condition) that is added to the time's, 0 for none; mixer:
    their class. Ronneberger et al. 2015; Ho et al. 2020, app. B.
    """

    def __init__(
        self,
        channels: int = 3,
        widths: Sequence[int] = (64, 128, 160),
        depth: int = 2,
        patch: int = 1,
        mixed: Sequence[int] = (1,),
        condition: int = 0,
        mixer: type[Mixer] = Mixer,
    ):
        super().__init__()
        self.first, time = widths[0], 4 * widths[0]
        self.time = nn.Sequential(
            nn.Linear(self.first, time), nn.SiLU(), nn.Linear(time, time)
        )
        self.condition = nn.Linear(condition, time, bias=False) if condition else None
        self.cut, self.join = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.enter = nn.Conv2d(channels * patch**2, self.first, 3, padding=1)

        def level(number: int, wide: int) -> nn.ModuleList:
            width = widths[number]
            blocks = [TimeBlock(wide, width, time) for _ in range(depth)]
            mixers = [mixer(width) for _ in range(depth if number in mixed else 0)]
            return nn.ModuleList([nn.ModuleList(blocks), nn.ModuleList(mixers)])

        numbers = range(len(widths))
        self.down = nn.ModuleList(level(i, widths[i]) for i in numbers)
        self.smaller = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 2, stride=2) for i in numbers[:-1]
        )
        last = widths[-1]
        self.middle = nn.ModuleList([TimeBlock(last, last, time) for _ in range(2)])
        self.between = mixer(last)
        self.up = nn.ModuleList(level(i, 2 * widths[i]) for i in numbers)
        self.larger = nn.ModuleList(
            nn.Conv2d(widths[i + 1], 4 * widths[i], 1) for i in numbers[:-1]
        )
        self.norm = nn.GroupNorm(16, self.first)
        self.leave = nn.Conv2d(self.first, channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, x: Tensor, t: Tensor, condition: Tensor | None = None, *others
    ) -> Tensor:
        time = self.time(timestep_embedding(t, self.first))  # (B, time)
        if condition is not None:
            time = time + self.condition(condition)
        time = F.silu(time)
        # channels last is the memory order in which convolutions run fastest
        x = self.enter(self.cut(x).contiguous(memory_format=torch.channels_last))
        seen = []  # what the way up is shown again
        for i, (blocks, mixers) in enumerate(self.down):
            x = self.smaller[i - 1](x) if i else x
            for j, block in enumerate(blocks):
                x = block(x, time)
                x = mixers[j](x, *others) if mixers else x
                seen.append(x)
        x = self.between(self.middle[0](x, time), *others)
        x = self.middle[1](x, time)
        for i in reversed(range(len(self.up))):
            blocks, mixers = self.up[i]
            for j, block in enumerate(blocks):
                x = block(torch.cat([x, seen.pop()], 1), time)
                x = mixers[j](x, *others) if mixers else x
            x = F.pixel_shuffle(self.larger[i - 1](x), 2) if i else x
        return self.join(self.leave(F.silu(self.norm(x)))).float()


# %%
device.seed(0)
unet = UNet(3, widths=(32, 64), depth=1, patch=2)
shapes = []
hooks = [
    module.register_forward_hook(lambda *io: shapes.append(tuple(io[-1].shape[1:])))
    for module in unet.modules() if isinstance(module, TimeBlock)
]  # fmt: skip
answer = unet(torch.randn(2, 3, 32, 32), torch.tensor([3, 900]))
for hook in hooks:
    hook.remove()
print("down, middle, up:", shapes)
print("a new network says 0 everywhere:", answer.abs().max().item() == 0)
print("weights:", sum(p.numel() for p in unet.parameters()))

# %% [markdown]
# ## One step back
#
# We know how to go from x₀ to x_t. To draw, we go the other way: from x_t to x_s, a
# little less noisy. If x₀ were known, the answer would be plain Bayes, and for normal
# distributions it is normal again. On a fine grid, for one pixel:

# %%
now, before, pixel, seen_x = 0.3, 0.6, 0.8, -0.5  # ᾱ_t, ᾱ_s, x₀, x_t
kept = now / before  # what a step from s to t keeps of the variance
places = torch.linspace(-5, 5, 20_001, dtype=torch.float64)  # x_s


def bell(value, mean, variance):
    return torch.exp(-((value - mean) ** 2) / (2 * variance))


likely = bell(seen_x, kept**0.5 * places, 1 - kept)  # x_t, if x_s were this
prior = bell(places, before**0.5 * pixel, 1 - before)  # x_s, knowing x₀
product = likely * prior / (likely * prior).sum()
grid_mean = (product * places).sum().item()
grid_variance = (product * (places - grid_mean) ** 2).sum().item()
fig, ax = plots.figure(width=6.5, height=2.4)
for curve, name, colour in ((likely, "what would have given x_t", "noise"),
                            (prior, "what x₀ would have become", "image"),
                            (product, "both", "shared")):  # fmt: skip
    ax.plot(places, curve / curve.max(), color=plots.COLOURS[colour], label=name)
ax.set(title="Where x_s lies: their product is narrower than both", xlim=(-3, 3))
ax.set(xlabel="x_s", yticks=[])
ax.legend(fontsize=8)
plots.show(fig, "Two bells and their product between them, which is narrower")

# %% [markdown]
# The product has a closed form. With α = ᾱ_t/ᾱ_s and β = 1 − α:
#
# $$\mu=\frac{\sqrt{\bar\alpha_s}\,\beta}{1-\bar\alpha_t}\,x_0+
#   \frac{\sqrt{\alpha}\,(1-\bar\alpha_s)}{1-\bar\alpha_t}\,x_t,\qquad
#   \tilde\beta=\frac{1-\bar\alpha_s}{1-\bar\alpha_t}\,\beta$$


# %% tags=["brick", "blank"]
def posterior(
    x0: Tensor, x: Tensor, now: Tensor, before: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where x_s lies, if x_t and x₀ are known, s < t: its mean and two variances.

    x0, x: (B, …); now, before: ᾱ_t and ᾱ_s of each row, (B,). Returns the mean (B, …),
    β̃, the variance that the known x₀ leaves, and β, that of the step itself, both
    (B, 1, …, 1). At s = 0, ᾱ_s is 1 and β̃ is 0. Ho et al. 2020, eq. 6, 7.
    """
    now, before = spread(now, x), spread(before, x)
    kept = now / before  # α, or the product of all α between s and t
    beta = 1 - kept
    mean = before.sqrt() * beta * x0 + kept.sqrt() * (1 - before) * x
    return mean / (1 - now), beta * (1 - before) / (1 - now), beta


# %%
given = (torch.tensor([[v]], dtype=torch.float64) for v in (pixel, seen_x))
levels = (torch.tensor([v], dtype=torch.float64) for v in (now, before))
mean, narrow, wide = (part.item() for part in posterior(*given, *levels))
print(f"mean: grid {grid_mean:.4f}, closed form {mean:.4f}")
print(
    f"variance: grid {grid_variance:.4f}, closed form {narrow:.4f}, "
    f"of the step {wide:.4f}"
)
last = posterior(
    torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([0.9]), torch.ones(1)
)
print("the last step ends at x₀, with variance", last[1].item())

# %% [markdown]
# x₀ is not known; the network's guess takes its place. That leaves a choice. β̃ is right
# if the guess is; if all pictures were pure noise of variance 1, β would be. The truth
# lies between, and DDPM found both to work. In the first steps they hardly differ:

# %%
left = table["linear"]
before = torch.cat([left.new_ones(1), left[:-1]])
_, narrow, wide = posterior(torch.zeros(1000, 1), torch.zeros(1000, 1), left, before)
share = (narrow / wide).flatten()
print(
    "β̃ / β at t = 1, 2, 10, 100:",
    [round(share[t - 1].item(), 2) for t in (1, 2, 10, 100)],
)

# %% [markdown]
# ## The whole model
#
# A U-Net, a schedule, and a walk. Three details of `stream` carry it:
#
# - The guess is **clamped** to [−1, 1], for no pixel lies beyond. (The mean by way of
#   the clamped x₀ and that by way of ε then differ; the paper's code clamps, too.)
# - **No noise at the last step.** Nobody would take it away any more.
# - It may take **fewer steps** than it was trained on, for `posterior` takes any two
#   times. Unless told otherwise it takes 25 of the thousand.
#
# With a caption it is guided as in lesson 08: asked twice, with the text and without,
# and going further in the direction of the difference. Lesson 11 looks into that.


# %% tags=["brick"]
class Diffusion(nn.Module):
    """Noise → pictures (B, 3, side, side), with a caption or without.

    clip: whose text vector says what to draw, frozen; side: of the pictures; schedule,
    steps: see `betas`; predicts: what the network is asked for, see `target`; the
    others: see `UNet`. Ho et al. 2020.
    """

    def __init__(
        self,
        clip: CLIP,
        side: int,
        schedule: str = "cosine",
        steps: int = 1000,
        predicts: str = "v",
        widths: Sequence[int] = (64, 128, 160),
        depth: int = 2,
        patch: int = 2,
        mixed: Sequence[int] = (1,),
    ):
        super().__init__()
        check_kind(predicts)
        self.config = {"side": side, "schedule": schedule, "steps": steps}
        self.config |= {"predicts": predicts, "widths": list(widths), "depth": depth}
        self.config |= {"patch": patch, "mixed": list(mixed)}
        self.clip, self.side, self.steps, self.predicts = clip, side, steps, predicts
        self.shape = (3, side, side)  # of what noise is added to
        signal = signal_left(betas(schedule, steps)).float()
        self.register_buffer("signal", signal, persistent=False)  # ᾱ
        self.dim = clip.config["dim"]
        self.unet = UNet(3, widths, depth, patch, mixed, condition=self.dim)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts → (B, dim), numbers of variance one; "" becomes zeros: no prompt."""
        said = torch.tensor([[bool(prompt.strip())] for prompt in prompts])
        # a unit vector of d numbers has numbers of size 1/√d
        vectors = self.clip.encode_text(list(prompts)) * self.dim**0.5
        return vectors * said.to(vectors)

    def forward(self, x: Tensor, t: Tensor, text: Tensor | None = None) -> Tensor:
        """The network's answer about x_t (B, 3, S, S) in about [−1, 1]; t: (B,)."""
        return self.unet(x, t, text)

    def read(
        self, x: Tensor, t: Tensor, text: Tensor | None = None, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(x₀, ε) as the network sees them in x_t.

        guidance: how many times the difference that the text makes counts; 1 for none,
        else the network is asked twice, with the text and without.
        """
        with device.half_precision(x.device):
            if text is None or guidance == 1:
                said = self(x, t, text)
            else:
                both = torch.cat([text, torch.zeros_like(text)])
                asked, free = self(x.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
                said = free + guidance * (asked - free)
        return read_off(self.predicts, said, x, self.signal[t])

    def times(self, steps: int, first: int | None = None) -> list[int]:
        """Where to stop on the way from `first` to 0; the last is −1, a picture.

        first: T − 1, noise, if None. Raises ValueError unless 0 ≤ first < T and 1 ≤
        steps ≤ first + 1.
        """
        first = self.steps - 1 if first is None else first
        if not 0 <= first < self.steps:
            raise ValueError(f"the first is {first}; choose 0 to {self.steps - 1}")
        if not 1 <= steps <= first + 1:
            raise ValueError(f"there are {steps} steps; choose 1 to {first + 1}")
        stops = torch.linspace(first, 0, steps, dtype=torch.float64)
        return [*stops.round().int().tolist(), -1]

    def begin(
        self, prompts: Sequence[str] | None, seed: int | Sequence[int]
    ) -> tuple[Callable[[], Tensor], Tensor | None]:
        """What gives new noise, (B, 3, S, S), at each call, and what prompts say.

        Each picture has the noise of its own seed, whoever stands beside it.
        """
        if prompts is None:
            seeds, text = [seed] if isinstance(seed, int) else list(seed), None
            if not seeds:
                raise ValueError("there is no seed; give one for each picture")
        else:
            prompts = check_prompts(prompts)
            seeds, text = each_seed(seed, len(prompts)), self.encode_text(prompts)
        draws = [device.generator(s) for s in seeds]

        def noise() -> Tensor:
            each = [torch.randn(self.shape, generator=draw) for draw in draws]
            return torch.stack(each).to(self.signal.device)

        return noise, text

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[str] | None = None,
        *,
        seed: int | Sequence[int] = 0,
        guidance: float = 2.0,
        steps: int = 25,
        variance: str = "small",
        clamp: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """From noise to pictures; yields (x_t, x₀ as seen in it) for t = T … 0.

        prompts: None for pictures of anything, one for each seed. steps: how many of
        the T are taken; variance: of the noise that is added at each, "small" (β̃) or
        "large" (β); clamp: keep what is seen within [−1, 1]. Ho et al. 2020, alg. 2.
        """
        if variance not in ("small", "large"):
            raise ValueError(f"the variance is {variance!r}; choose small or large")
        if not math.isfinite(guidance):
            raise ValueError(f"the guidance is {guidance}; give a number, e.g. 2.0")
        noise, text = self.begin(prompts, seed)
        x, times = noise(), self.times(steps)
        for now, before in zip(times, times[1:], strict=False):
            t = torch.full((len(x),), now, device=x.device)
            x0, _ = self.read(x, t, text, guidance)
            x0 = x0.clamp(-1, 1) if clamp else x0
            yield x, x0
            signal = self.signal[t]
            left = self.signal[before] if before >= 0 else signal.new_ones(())
            x, small, large = posterior(x0, x, signal, left.expand_as(signal))
            if before >= 0:  # what is added at the last step would stay
                x = x + (small if variance == "small" else large).sqrt() * noise()
        yield x, x

    def generate(self, prompts: Sequence[str] | None = None, **how) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1], one for each prompt, or seed; see `stream`.

        One seed gives the same picture of a prompt, alone or among others.
        """
        *_, (x, _) = self.stream(prompts, **how)
        return ((x + 1) / 2).clamp(0, 1)


# %% [markdown]
# A test of the walk without any training. Put an *oracle* in the network's place that
# knows the picture: whatever noise we begin with, it must arrive.

# %%
clip = checkpoints.load("clip_resnet").requires_grad_(False)
device.seed(0)
walker = Diffusion(clip, side=32, predicts="x0", widths=(16,), mixed=())
wanted = small[5].to(walker.signal.device)


class Oracle(nn.Module):
    def forward(self, x: Tensor, t: Tensor, text=None) -> Tensor:
        return wanted.expand_as(x)


walker.unet = Oracle()
for variance in ("small", "large"):
    found = walker.generate(seed=[1, 2, 3], variance=variance)
    print(
        f"{variance} variance: it arrives:",
        torch.allclose(found, wanted / 2 + 0.5, atol=1e-5),
    )
way = [x for x, _ in walker.stream(seed=range(64), steps=50)]
middle = walker.times(50)[25]
rest = way[25] - walker.signal[middle].sqrt() * wanted
fits = rest.std().item() / (1 - walker.signal[middle]).sqrt().item()
print("halfway, there is as much noise as belongs there:", abs(fits - 1) < 0.03)

# %% [markdown]
# ## The loss, and learning
#
# A random time for every picture, noise, and the squared error of the answer:


# %% tags=["brick"]
def diffusion_loss(
    model: Diffusion, pictures: Tensor, text: Tensor | None = None
) -> Tensor:
    """The mean squared error of the network's answer, at random times: a scalar.

    pictures: (B, 3, S, S) in [0, 1]; text: (B, dim) or None. Ho et al. 2020, alg. 1.
    """
    x0 = 2 * pictures - 1
    t = torch.randint(model.steps, (len(x0),)).to(x0.device)
    noise = torch.randn(x0.shape).to(x0.device)
    signal = model.signal[t]
    said = model(add_noise(x0, noise, signal), t, text)
    return F.mse_loss(said, target(model.predicts, x0, noise, signal))


# %% [markdown]
# Live: the faces and hearts, 32 pixels, a U-Net of two levels, without captions. It is
# asked for x₀: to say v, it would first have to learn to pass every grain of noise from
# its input to its output, and so short a run has no time for that. The *average of the
# weights* (lesson 06) is what draws.

# %%
face_pictures = shrink(faces)
STEPS, BATCH = 300, 16


def new_diffusion() -> Diffusion:
    device.seed(0)
    model = Diffusion(clip, side=32, predicts="x0", widths=(32, 64), depth=1)
    return model.to(device.pick())


def train_on(model: Diffusion, steps: int, name: str, after=lambda step: None) -> list:
    here, done = model.signal.device, [0]

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(faces), (BATCH,), generator=device.generator(0, step))
        return diffusion_loss(model, face_pictures[rows].to(here))

    def count() -> None:
        done[0] += 1
        after(done[0])

    how = {"optimizer": training.adamw(model.unet, 3e-3, 0.01), "after_step": count}
    return training.fit(model, loss, steps, name=name, **how)


live, kept = new_diffusion(), {}
average = training.Average(live, 0.98, [clip])


def keep(step: int) -> None:
    """Average the weights; at 1, 10 and 100 % of the run, draw with them."""
    average.update(live, step - 1)
    if step in (STEPS // 100, STEPS // 10, STEPS):
        with average.applied(live):
            kept[step] = live.generate(seed=range(8), steps=25).cpu()


losses = train_on(live, STEPS, "a small diffusion model", keep)

# %%
scaled = 2 * face_pictures - 1
mean_error = (scaled - scaled.mean(0)).square().mean().item()
plots.picture_rows(
    {f"step {step}": row for step, row in kept.items()}
    | {"real ones": face_pictures[::90][:8]},
    alt="Eight samples at 1, 10 and 100 % of the training, above real pictures",
)
fig, ax = plots.figure(width=6, height=2.4)
plots.curve(ax, losses, colour="image", smooth=15)
ax.axhline(mean_error, ls="--", color=plots.COLOURS["noise"], label="the mean picture")
ax.set(title="It learns to see the picture in the noise", xlabel="step", ylabel="loss")
ax.legend()
plots.show(fig, "The loss falls well below that of always saying the mean picture")
end = sum(losses[-30:]) / 30
print("better than the mean picture by half:", end < mean_error / 2)
white = {step: (row > 0.9).float().mean().item() for step, row in kept.items()}
print("the background turned white:", white[STEPS] > white[STEPS // 100] + 0.1)

# %% [markdown]
# ### Both variances
#
# The same seeds, with β̃ and with β, in 25 steps. What is the difference? The network's
# guess is not certain; β puts more noise back and hopes that it will be taken away.
# Here it is next to nothing: β̃ and β differ in the last steps only, and the very last
# one ends at the guess.


# %%
def rough(x: Tensor) -> float:
    """The mean step from a pixel to its right neighbour."""
    return x.diff(dim=-1).abs().mean().item()


with average.applied(live):
    both = {
        f"{name} variance": live.generate(seed=range(8), steps=25, variance=name).cpu()
        for name in ("small", "large")
    }
plots.picture_rows(both, alt="With both variances nearly the same eight samples")
small_one, large_one = both.values()
change = (small_one - large_one).abs().mean().item()
other_seed = (small_one - small_one.roll(1, 0)).abs().mean().item()
print("the variance changes less than the seed does:", change < other_seed / 2)

# %% [markdown]
# With all 1,000 steps the two are nearly one, and DDPM's best figures are with the
# large one (FID 3.17 on CIFAR-10). With few steps the large one is far worse (Song et
# al. 2021, tab. 1: 367 against 13 in ten steps, the latter without any noise).
#
# ## Is it a copy?
#
# The best possible guess recites. Does ours? Each sample beside the training picture
# nearest to it, and as a yardstick real pictures that were not in the training.


# %% tags=["brick"]
def picture_distances(pictures: Tensor, known: Tensor) -> Tensor:
    """The root of the mean squared difference of every pair of pictures, (B, N).

    pictures: (B, 3, S, S); known: (N, 3, S, S).
    """
    one, other = pictures.flatten(1).float(), known.flatten(1).float()
    return torch.cdist(one, other) / one.shape[1] ** 0.5


# %%
with average.applied(live):
    samples = live.generate(seed=range(100, 148), steps=25).cpu()
others = shrink(unseen.where(group="smileys-emotion"))
near, which_one = picture_distances(samples, face_pictures).topk(2, largest=False)
yard = picture_distances(others, face_pictures).topk(2, largest=False).values
order = near[:, 0].argsort()[[0, 6, 12, 18, 24, 30, 36, 47]]
plots.picture_rows(
    {
        "samples, the nearest to a training picture first": samples[order],
        "the training picture that is nearest": face_pictures[which_one[order, 0]],
    },
    alt="Samples above their nearest training pictures",
)
copied = (near[:, 0] < near[:, 1] / 3).float().mean().item()
print("three times nearer to one than to any other: fewer than 5 %:", copied < 0.05)
print("no nearer than real new ones are:",
      near[:, 0].mean().item() > 0.8 * yard[:, 0].mean().item())  # fmt: skip

# %% [markdown]
# *Three times nearer to one training picture than to the next* is how we count copies;
# Carlini et al. 2023 use a relative distance for the same reason: a plain yellow face
# is near to many, and that is no copy.
#
# ## How good is it?
#
# Samples have no right answer to compare with. One compares *clouds*: the features of
# many samples, seen by a judge, against those of real pictures. The **Fréchet
# distance** takes both as normal distributions and asks how far mean and spread are
# apart:
#
# $$d=\|\mu_1-\mu_2\|^2+
#   \mathrm{tr}\big(\Sigma_1+\Sigma_2-2\,(\Sigma_1\Sigma_2)^{1/2}\big)$$
#
# With the features of an Inception network it is the FID of every paper; our judge is
# `clip`.


# %% tags=["brick"]
def frechet_distance(one: Tensor, other: Tensor) -> float:
    """How far two clouds of features are apart, as normal distributions.

    one: (N, d); other: (M, d). |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½). Few features look
    farther apart than many: compare only with as many. Heusel et al. 2017, eq. 6.
    """
    one, other = one.double(), other.double()
    shift = (one.mean(0) - other.mean(0)).square().sum()
    first, second = one.T.cov(), other.T.cov()  # (d, d)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # Σ₁^½
    # Σ₁Σ₂ has the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric
    both = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return (shift + first.trace() + second.trace() - 2 * both).item()


# %%
from utils.bricks.zero_shot import image_vectors

judge = checkpoints.load("clip")
half = torch.randperm(len(faces), generator=device.generator(3))
real, rest = face_pictures[half[:336]], face_pictures[half[336:384]]
clouds = {
    "48 other real ones": rest,
    "our 48 samples": samples,
    "48 real ones, blurred": F.interpolate(F.avg_pool2d(rest, 4), 32, mode="bicubic"),
    "48 of noise": torch.rand(48, 3, 32, 32, generator=draw),
}
features = image_vectors(judge, real)
apart = {
    name: frechet_distance(image_vectors(judge, cloud.clamp(0, 1)), features)
    for name, cloud in clouds.items()
}
fig, ax = plots.figure(width=6, height=1.9)
plots.bars(
    ax, apart, "image", "How far from real faces, in the judge's eyes", "distance"
)
plots.show(fig, "Real ones are nearest, noise farthest, our samples between")
print("real ones are nearest:", min(apart, key=apart.get) == "48 other real ones")
print("noise is farthest:", max(apart, key=apart.get) == "48 of noise")

# %% [markdown]
# Real pictures are not at 0 either: 48 is few, and few look far away. So compare only
# with as many.

# %% [markdown]
# ## The shipped model
#
# The same class with three levels, all pictures of `train` but the 200 pairs that
# lesson 08 set aside, and captions: the vector of the course's CLIP goes in beside the
# time, and one picture in ten comes without. It says v. What its recipe saw at 1, 10,
# 30, 60 and 100 % of the run, for twelve labels (`make pretrain MODEL=diffusion`):
#
# ![Twelve prompts at five moments of the training: noise, specks of colour, then blots
# that take shape](../assets/checkpoints/diffusion.webp)

# %%
shipped = checkpoints.load("diffusion")
card = checkpoints.card("diffusion")
looks = {int(step): look for step, look in card["looks"].items()}
fig, axes = plots.figure(columns=2, width=9, height=2.5)
axes[0].plot(*zip(*card["losses"], strict=True), color=plots.COLOURS["image"])
axes[0].set(title="Loss", xlabel="step")
for key, name, colour in (("found_guided", "judge finds it, guided", "image"),
                          ("found", "judge finds it", "noise"),
                          ("copies", "copies", "wrong")):  # fmt: skip
    reached = [look[key] for look in looks.values()]
    axes[1].plot(list(looks), reached, "o-", color=plots.COLOURS[colour], label=name)
axes[1].axhline(1, color=plots.COLOURS["noise"], ls="--", label="by chance")
axes[1].set(title="Single samples, %", xlabel="step", ylim=(0, 100))
axes[1].legend(fontsize=7)
plots.show(fig, "The loss falls; the judge finds more and more of the samples; none is "
           "a copy")  # fmt: skip

# %% [markdown]
# Without a caption it draws anything; with one, that. Each sample again beside the
# training picture nearest to it:

# %%
everything = shrink(train)
asked = ["cat face", "red heart", "pizza", "rocket", "key", "bus", "umbrella", "books"]
drawn = {
    "without a caption": shipped.generate(seed=range(8), steps=20).cpu(),
    "asked: " + ", ".join(asked): shipped.generate(asked, seed=7, steps=20).cpu(),
}
rows = {}
for name, x in drawn.items():
    rows[name] = x
    nearest = picture_distances(x, everything).argmin(1)
    rows["nearest in training" + " " * len(rows)] = everything[nearest]
alt = "Samples above the training pictures nearest to them"
plots.picture_rows(rows, alt=alt, size=48)

# %% [markdown]
# Is it better than Part II? The fair opponent is the prior over codes: `dalle`, asked
# for nothing. Its recipe drew 600 pictures of each without a caption, in four groups,
# and measured their Fréchet distances to the training pictures, times 1,000; beside
# them as many *training pictures*, the least that so few can have.

# %%
metrics = card["metrics"]
distances = {
    "training pictures": metrics["frechet_real"],
    "dalle, scaled to 32 pixels": metrics["frechet_codes"],
    "diffusion": metrics["frechet"],
}
fig, ax = plots.figure(width=6, height=1.6)
plots.bars(ax, distances, "image", "Not yet as near to real pictures as the codes",
           "Fréchet distance × 1,000", "{:.0f}")  # fmt: skip
plots.show(fig, "Real pictures are nearest, then the prior over codes, then diffusion")
at_least = metrics["frechet"] - 2 * metrics["frechet_error"]
print("farther than the prior over codes:", at_least > metrics["frechet_codes"])

# %% [markdown]
# No, it is not, and the pictures show why: colours and outlines are there, details are
# not. Two things are compared here. Codes come with a decoder that has already learnt
# what an edge or a petal looks like; a diffusion model in pixels must learn all that as
# well, in one network, in two hours on one core: 38 passes over the pictures. And
# without a caption it has nobody to lean on; lesson 11 leans on captions. **Lesson 14**
# will do both: noise, but in the small space of an autoencoder.
#
# ## Play: out of noise
#
# The live model, step by step: on the left the noisy picture x_t, on the right what the
# network sees in it, x̂₀. **Predict first:** which of the two shows a face first? And is
# it the same face to the end?


# %%
def frames(seed, steps, variance):
    with average.applied(live):
        for x, guess in live.stream(seed=seed, steps=steps, variance=variance):
            yield torch.cat([x, guess]) / 2 + 0.5


steps_taken = widgets.slider("Steps", 50, 5, 500)
widgets.film(
    [
        widgets.slider("Seed", 0, 0, 1000),
        steps_taken,
        widgets.choice("Variance", ["small", "large"], "small"),
    ],
    frames,
    "A face out of noise: what is there, and what is seen in it.",
    steps=steps_taken,
    strip=8,
)

# %%
with average.applied(live):
    film = list(live.stream(seed=[5], steps=50))
stops = (0, 10, 20, 30, 40, 50)
x, guesses = (torch.cat([film[i][part] for i in stops]) for part in (0, 1))
plots.picture_rows(
    {
        "x, after 0, 10, 20, 30, 40 and 50 steps": x.cpu() / 2 + 0.5,
        "what the network sees in it": guesses.cpu() / 2 + 0.5,
    },
    alt="The noise clears late; what is seen in it has its colours early",
)
last = film[-1][0]
seen_off = [(film[i][1] - last).square().mean().item() for i in (0, 25, 45)]
x_off = [(film[i][0] - last).square().mean().item() for i in (0, 25, 45)]
print("what is seen is nearer to the end than x is, at three times:",
      all(a < b for a, b in zip(seen_off, x_off, strict=True)))  # fmt: skip
print("and it comes nearer:", seen_off[0] > seen_off[1] > seen_off[2])

# %% [markdown]
# ## Break it
#
# Four things to spoil, each against the same without the fault:
#
# 1. **noise at the last step**: what is put in there, nobody takes away;
# 2. **the wrong √**: in the mean of the step back, ᾱ_s in place of √ᾱ_s;
# 3. **a network that is not told the time**: trained anew, every t shown as 500;
# 4. **no average of the weights**: the live model as the optimizer left it.
#
# **Predict first.** Which will make pictures grainy, which will fill the page?


# %%
def walk(
    model: Diffusion, last_noise: bool = False, wrong_root: bool = False
) -> Tensor:
    """Eight pictures by 11 steps, written out, with a fault if asked for."""
    generator, times = device.generator(7), model.times(12)
    here = model.signal.device
    times = [t for t in times if t]  # the last jump starts at a time above 0
    x = torch.randn(8, 3, 32, 32, generator=generator).to(here)
    for now, before in zip(times, times[1:], strict=False):
        signal = model.signal[now].expand(8)
        left = model.signal[before] if before >= 0 else torch.ones((), device=here)
        guess = model.read(x, torch.full((8,), now, device=here))[0].clamp(-1, 1)
        mean, small_one, large_one = posterior(guess, x, signal, left.expand(8))
        if wrong_root:  # ᾱ_s·x₀ where √ᾱ_s·x₀ belongs
            beta = 1 - signal / left
            factor = (left - left.sqrt()) * beta / (1 - signal)
            mean = mean + factor.view(-1, 1, 1, 1) * guess
        noise = torch.randn(x.shape, generator=generator).to(here)
        spread_of = large_one if last_noise else small_one
        x = mean + spread_of.sqrt() * noise * (before >= 0 or last_noise)
    return (x / 2 + 0.5).clamp(0, 1).cpu()


with torch.no_grad(), average.applied(live):
    spoilt = {
        "as it should be": walk(live),
        "noise at the last step": walk(live, last_noise=True),
        "the wrong √": walk(live, wrong_root=True),
    }
plots.picture_rows(spoilt, alt="Whole; covered with grain; overgrown, the page filled")
grain = {name: rough(x) for name, x in spoilt.items()}
print(
    "noise at the end makes it grainy:",
    grain["noise at the last step"] > 1.2 * grain["as it should be"],
)


white = {name: (x > 0.9).float().mean().item() for name, x in spoilt.items()}
print(
    "with the wrong √ less of the page stays white:",
    white["the wrong √"] < 0.9 * white["as it should be"],
)

# %% [markdown]
# Now the other two, by their loss: 60 steps with the time and without, from the same
# start and on the same batches, and the live model with its average and without. **Will
# it be as bad?**


# %%
class Timeless(UNet):
    """A U-Net that is told 500, whatever the time is."""

    def forward(self, x: Tensor, t: Tensor, *others) -> Tensor:
        return super().forward(x, torch.full_like(t, 500), *others)


@torch.no_grad()
def measured(model: Diffusion, count: int = 256) -> float:
    """The loss on the same pictures, times and noise for every model."""
    here, draw = model.signal.device, device.generator(9)
    x0 = 2 * face_pictures[:count] - 1
    t = torch.randint(1000, (count,), generator=draw)
    x = add_noise(x0, torch.randn(x0.shape, generator=draw), model.signal.cpu()[t])
    parts = zip(x.to(here).split(64), t.to(here).split(64), strict=True)
    with device.half_precision(here):
        said = torch.cat([model(*part) for part in parts])
    return F.mse_loss(said.cpu(), x0).item()


def try_run(name: str, unet: type[UNet] = UNet) -> float:
    model = new_diffusion()
    model.unet.__class__ = unet
    train_on(model, 60, name)
    return measured(model)


tried = {
    "60 steps, told the time": try_run("told the time"),
    "60 steps, not told": try_run("not told the time", Timeless),
    "the live model, as it is": measured(live),
}
with average.applied(live):
    tried["the live model, averaged"] = measured(live)
fig, ax = plots.figure(width=6, height=1.9)
plots.bars(ax, tried, "wrong", "Loss on the same pictures, times and noise", "loss")
plots.show(fig, "Neither the time nor the average changes the loss by much")
told, untold, raw, averaged = tried.values()
print("without the time, worse by less than a fifth:", untold < 1.2 * told)
print("without the average, too:", raw < 1.2 * averaged)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Noise at the end makes them grainy. The wrong root takes signal away at every step;
# the network, told a time at which more should be left, takes noise for picture and
# fills the page. Without the time the network must guess from the picture how noisy it
# is. It can: noise is easy to see, so the loss hardly changes. And the average is worth
# most where weights jump about, at a high learning rate; here the rate has gone to 0,
# the weights stand still, and their average is nearly the same.
#
# </details>
#
# ## Exercises
#
# > **Exercise 1 · A schedule for larger pictures** — difficulty 2 of 3, about 8
# > minutes. Why it matters: neighbouring pixels of a large picture say nearly the same,
# > so the same noise hides less; large pictures need more of it. Write
# > `shifted(signal, scale)`: the ᾱ whose signal-to-noise ratio is that of `signal`
# > divided by scale². Take care at ᾱ = 1 (Hoogeboom et al. 2023, sec. 3.1).


# %% tags=["exercise"]
def shifted(signal: Tensor, scale: float) -> Tensor:
    """ᾱ (T,) in [0, 1] → another ᾱ (T,)."""
    ...


# %%
from utils.exercises import diffusion as exercises

exercises.check_shifted(shifted)

# %% [markdown]
# <details><summary>Hint</summary>
#
# From SNR = ᾱ/(1−ᾱ) follows ᾱ = SNR/(1+SNR). Put one into the other before you divide:
# then nothing is divided by 0.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def shifted(signal, scale):
#     return signal / (signal + scale**2 * (1 - signal))
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · From ε to v** — difficulty 2 of 3, about 8 minutes. Why it matters: a
# > checkpoint that says ε can be used by a sampler that wants v. Write
# > `as_velocity(eps, x, signal)` from the answer ε about x_t, without going by way of a
# > picture.


# %% tags=["exercise"]
def as_velocity(eps: Tensor, x: Tensor, signal: Tensor) -> Tensor:
    """ε and x_t (B, 3, H, W), ᾱ (B,) above 0 → v (B, 3, H, W)."""
    ...


# %%
exercises.check_as_velocity(as_velocity)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Put x₀ = (x − √(1−ᾱ)·ε)/√ᾱ into the definition of v, and gather what belongs to ε:
# ᾱ + (1 − ᾱ) is 1.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def as_velocity(eps, x, signal):
#     signal = signal.view(-1, 1, 1, 1)
#     return (eps - (1 - signal).sqrt() * x) / signal.sqrt()
# ```
#
# </details>

# %% [markdown]
# > **Exercise 3 · At most γ** — difficulty 2 of 3, about 10 minutes. Why it matters:
# > the last grains of noise should not drown all else. Write
# > `capped_weight(signal, kind, most)`: by what to multiply the squared error of the
# > answer `kind` ("eps", "x0" or "v"), so that a wrong *picture* costs min(SNR, most),
# > whichever answer it is (Hang et al. 2023).


# %% tags=["exercise"]
def capped_weight(signal: Tensor, kind: str, most: float = 5.0) -> Tensor:
    """ᾱ (B,) strictly between 0 and 1 → weights (B,)."""
    ...


# %%
exercises.check_capped_weight(capped_weight)

# %% [markdown]
# <details><summary>Hint</summary>
#
# What a wrong picture costs already in each answer stands above: SNR, 1, SNR + 1.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def capped_weight(signal, kind, most=5.0):
#     snr = signal / (1 - signal)
#     cost = {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}[kind]
#     return snr.clamp(max=most) / cost
# ```
#
# </details>

# %% [markdown]
# > **Exercise 4 · Keep what is known** — difficulty 3 of 3, about 10 minutes. Why it
# > matters: a model that never learnt to fill holes can do so (Lugmayr et al. 2022,
# > *RePaint*). At each step, what is known is put back, *as noisy as it has to be*.
# > Write `keep_known(x, picture, mask, noise, signal)`: x_t, but where the mask is 1,
# > the picture with `noise` at the level of x_t.


# %% tags=["exercise"]
def keep_known(
    x: Tensor, picture: Tensor, mask: Tensor, noise: Tensor, signal: Tensor
) -> Tensor:
    """x, picture, noise (B, 3, H, W); mask (B, 1, H, W) of 0 and 1; signal: ᾱ (B,)."""
    ...


# %%
exercises.check_keep_known(keep_known)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `add_noise` makes the known part as noisy as x. Then take it where the mask is 1, and
# x elsewhere.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def keep_known(x, picture, mask, noise, signal):
#     return torch.where(mask == 1, add_noise(picture, noise, signal), x)
# ```
#
# </details>

# %% [markdown]
# ## Myth check
#
# **"Diffusion mixes a picture, as milk mixes with coffee."** Nothing moves sideways: a
# pixel reaches one place, its own. See the two rows above.
#
# **"The noise is added in a thousand steps in training."** One line adds it, for any
# step. The thousand are in the mathematics, not in the work.
#
# **"The network is run a thousand times in training, too."** Once for each picture, at
# one random time.
#
# **"Diffusion is a multimodal model."** It is a way to make samples of anything;
# points in the plane, above, had no words. What makes a picture fit a text is the
# vector that comes in beside the time.
#
# **"A diffusion model cannot copy, for it starts from noise."** The *best* one does
# nothing else: see the best guess, which ends at a training picture.
#
# ## Differs from the paper
#
# | | Ho et al. 2020 | here | why |
# |---|---|---|---|
# | pictures | 32 px CIFAR-10, 256 px | 32 px of Emoji-4 | our data |
# | schedule | linear | cosine | signal falls evenly |
# | answer | ε | v; x₀ in the live run | good at both ends; short |
# | network | 36 M, 4 levels | 0.6 M, 2 levels | seconds |
# | first layer | every pixel | 2 × 2 pixels to a place | speed |
# | time | added to the channels | scales and shifts them | Dhariwal & Nichol 2021 |
# | text | none | in the recipe: a CLIP vector, dropped one in ten | later lessons |
# | steps to draw | 1,000 | 25 to 50 of 1,000 | speed |
# | optimizer | Adam | AdamW live, Muon in the recipe | speed |
#
# ## Where this goes next
#
# A thousand steps, twenty-five, can it be ten? And what if no noise is put back at all?
# **Lesson 11** makes the walk deterministic and short, turns it round, and looks at
# guidance.
#
# ## Read more
#
# - Ho et al. 2020, *Denoising Diffusion Probabilistic Models*, sec. 2–3, alg. 1–2.
# - Sohl-Dickstein et al. 2015, *Deep Unsupervised Learning using Nonequilibrium
#   Thermodynamics*: where it began.
# - Nichol & Dhariwal 2021, *Improved Denoising Diffusion Probabilistic Models*, sec. 3;
#   Salimans & Ho 2022, *Progressive Distillation*, app. D (v).
# - Hang et al. 2023, *Efficient Diffusion Training via Min-SNR Weighting*; Lin et al.
#   2024, *Common Diffusion Noise Schedules and Sample Steps Are Flawed*.
# - Carlini et al. 2023, *Extracting Training Data from Diffusion Models*; Kamb &
#   Ganguli 2024, *An Analytic Theory of Creativity in Convolutional Diffusion Models*.
# - huggingface/diffusers, `schedulers/scheduling_ddpm.py`.
#
# **Glossary** · 扩散模型 diffusion model · 前向过程 forward process · 噪声调度 noise
# schedule · 信噪比 signal-to-noise ratio · 去噪 denoising · 后验 posterior · 速度预测
# v-prediction · 时间步嵌入 timestep embedding · 滑动平均 moving average · 弗雷歇距离
# Fréchet distance
