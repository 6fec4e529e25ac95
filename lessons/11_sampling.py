# ---
# jupyter:
#   brick: sampling
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · Sampling and guidance: fewer steps, and a push
#
# ![Two walks from the same noise: one staggers, one glides; the gliding one can be
# walked backwards. Beside them an arrow without a caption, one with, and one that goes
# on in the same direction](../assets/figures/11_sampling.svg)
#
# Lesson 10 walked from noise to pictures and rolled dice at every step. The network
# only ever answers one question: *what was here?* **What else can be done with its
# answers?** The dice can be left out (DDIM, Song et al. 2021), and then ten steps are
# enough and the walk can be turned round. And the answers with and without a caption
# can be played against each other, so that a picture says more clearly what was asked
# for (classifier-free guidance, Ho & Salimans 2022).

# %%
import torch.nn.functional as F

from utils import checkpoints, data, device, plots, widgets
from utils.bricks import diffusion

model = checkpoints.load("diffusion")
here = model.signal.device
train = data.load_emoji("train").where(skin_tone="none")
unseen = data.load_emoji("unseen").where(skin_tone="none")

# %% [markdown]
# What the bricks of this lesson are made of:

# %% tags=["brick"]
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from utils.bricks.diffusion import Diffusion, read_off, spread
from utils.given import takes

# %% [markdown]
# ## A toy: where the best answer is known
#
# Pictures of one pixel, and only two of them: −1 and +1. What was here, given x_t? The
# mean of the two, each weighted by how likely it is to have become x_t (lesson 10). For
# two points of equal weight that is one line:
#
# $$\hat x_0 = \tanh\!\Big(\frac{\sqrt{\bar\alpha_t}\;x_t}{1-\bar\alpha_t}\Big)$$

# %%
signal = model.signal.cpu()  # ᾱ of 1,000 steps, cosine
stops = model.times(50)


def best_answer(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """(x₀, ε) for x (N,), if all pictures are −1 or +1."""
    left = signal[t]
    x0 = torch.tanh(left.sqrt() * x / (1 - left))
    return x0, (x - left.sqrt() * x0) / (1 - left).sqrt()


def with_dice(x: Tensor, draw) -> Tensor:
    """Lesson 10's walk: the mean of what could come before, and noise."""
    way = [x]
    for now, before in zip(stops, stops[1:], strict=False):
        left = signal[before] if before >= 0 else torch.ones(())
        x0, _ = best_answer(x, now)
        levels = (signal[now].expand(len(x)), left.expand(len(x)))
        x, variance, _ = diffusion.posterior(x0, x, *levels)
        x = x + variance.flatten().sqrt() * torch.randn(len(x), generator=draw)
        way.append(x)
    return torch.stack(way)


def without_dice(x: Tensor) -> Tensor:
    """Put back exactly the noise that was seen, only less of it."""
    way = [x]
    for now, before in zip(stops, stops[1:], strict=False):
        left = signal[before] if before >= 0 else torch.ones(())
        x0, eps = best_answer(x, now)
        x = left.sqrt() * x0 + (1 - left).sqrt() * eps
        way.append(x)
    return torch.stack(way)


# %% [markdown]
# **Predict first.** Forty walks begin at forty places. Without dice: can two of them
# cross?

# %%
begin = torch.linspace(-2, 2, 40)
walks = {"with dice": with_dice(begin, device.generator(0)),
         "without": without_dice(begin)}  # fmt: skip
fig, axes = plots.figure(columns=2, width=10, height=2.8)
for ax, (name, way) in zip(axes, walks.items(), strict=True):
    ax.plot(way, color=plots.COLOURS["noise"], lw=0.8)
    ax.plot([50] * 40, way[-1], "o", ms=4, color=plots.COLOURS["image"])
    ax.set(title=f"{name}: from noise (left) to ±1", xlabel="step", ylim=(-3, 3))
plots.show(fig, "With dice the walks stagger and cross; without they glide apart")
for name, way in walks.items():
    ordered = bool((way[-1].diff() >= -1e-4).all())
    print(f"{name}: all arrive: {bool((way[-1].abs() > 0.99).all())},",
          f"in the order in which they began: {ordered}")  # fmt: skip

# %% [markdown]
# <details><summary>Answer</summary>
#
# No. The step depends on the place alone, so two walks that meet would go on together,
# and back as well. Whoever begins above 0 ends at +1. The noise at the beginning
# decides everything, and that makes it a *name* for the picture: a latent.
#
# </details>

# %% [markdown]
# ## One step, with as many dice as you like
#
# The rule of the gliding walk in words: *the picture that is seen, at its new strength,
# plus the noise that is seen, at its new strength*. By hand, for one pixel:

# %%
left_now, left_before = 0.36, 0.64  # ᾱ_t, ᾱ_s
x0, eps = 2.0, 10.0  # what the network sees in x_t
x_t = 0.6 * x0 + 0.8 * eps
x_s = 0.8 * x0 + 0.6 * eps
print(f"x_t = 0.6 · 2 + 0.8 · 10 = {x_t:.1f}; x_s = 0.8 · 2 + 0.6 · 10 = {x_s:.1f}")

# %% [markdown]
# A part of that noise may be rolled anew. Its share must then be taken from the old
# noise, so that their variances still add up to what belongs at s:
#
# $$x_s=\sqrt{\bar\alpha_s}\,\hat x_0+\sqrt{1-\bar\alpha_s-\sigma^2}\;\hat\varepsilon
#   +\sigma z,\qquad
#   \sigma=\eta\,\sqrt{\tfrac{1-\bar\alpha_s}{1-\bar\alpha_t}}
#   \sqrt{1-\tfrac{\bar\alpha_t}{\bar\alpha_s}}$$
#
# η (eta) = 0 rolls nothing: DDIM. η = 1 rolls exactly the β̃ of lesson 10: DDPM.


# %% tags=["brick", "blank"]
def ddim_step(
    x0: Tensor,
    eps: Tensor,
    now: Tensor,
    before: Tensor,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """From x_t to x_s, s < t: picture and noise as they are seen, at new strengths.

    x0, eps: (B, …), as seen in x_t; now, before: ᾱ_t and ᾱ_s of each row, (B,); eta:
    how much of the noise is new, 0 for none, 1 for DDPM's β̃; noise: (B, …), the new
    one, None for none. Song et al. 2021, eq. 12 and 16.
    """
    now, before = spread(now, x0), spread(before, x0)
    if not eta:
        return before.sqrt() * x0 + (1 - before).sqrt() * eps
    variance = eta**2 * (1 - before) / (1 - now) * (1 - now / before)  # σ²
    old = (1 - before - variance).clamp(min=0).sqrt()  # rounding may end below 0
    x = before.sqrt() * x0 + old * eps
    return x if noise is None else x + variance.sqrt() * noise


# %% [markdown]
# Three proofs. With η = 1 it is lesson 10's step. Whatever η, the noise at s has the
# variance that belongs there. And diffusers has the same numbers.

# %%
from diffusers import DDIMScheduler

draw = device.generator(1)
shape = (6, 3, 8, 8)
x0, eps, new = (torch.randn(shape, generator=draw) for _ in range(3))
t = torch.tensor([1, 20, 300, 500, 700, 990])
now, before = signal[t], signal[t - 1]
x = spread(now, x0).sqrt() * x0 + (1 - spread(now, x0)).sqrt() * eps
mean, small, _ = diffusion.posterior(x0, x, now, before)
ours = ddim_step(x0, eps, now, before, 1.0, new)
print("η = 1 is DDPM:", torch.allclose(ours, mean + small.sqrt() * new, atol=1e-4))
nothing, ones = torch.zeros(6, 1), torch.ones(6, 1)
for eta in (0.0, 0.5, 1.0):
    old = ddim_step(nothing, ones, now, before, eta)  # the strength of the old noise
    fresh = ddim_step(nothing, nothing, now, before, eta, ones) if eta else nothing
    left = (old.square() + fresh.square()).squeeze(1)
    print(f"η = {eta}: variances add up:", torch.allclose(left, 1 - before, atol=1e-6))
theirs = DDIMScheduler(1000, beta_schedule="squaredcos_cap_v2", clip_sample=False)
theirs.set_timesteps(50)
for eta in (0.0, 0.5, 1.0):
    pairs = []
    for step in (980, 500, 20):  # each goes down by 20
        levels = (theirs.alphas_cumprod[[s]].expand(6) for s in (step, step - 20))
        seen = theirs.add_noise(x0, eps, torch.tensor([step]))
        told = theirs.step(eps, step, seen, eta=eta, variance_noise=new)
        levels = [*levels]
        pictured = theirs.step(eps, step, seen).pred_original_sample
        pairs.append((ddim_step(pictured, eps, *levels, eta, new), told.prev_sample))
    same = all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in pairs)
    print(f"η = {eta}: as diffusers has it: {same}")

# %% [markdown]
# ## The walk
#
# Now with the model that the course ships. `look` asks it, and `walk` goes from stop to
# stop. One detail of `look` is a trap, and gets its own section below: when the picture
# is clamped, **the noise must be read again from the clamped picture**.


# %% tags=["brick", "blank"]
def clamped(x0: Tensor, x: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """The picture within [−1, 1], and the noise that x_t holds beside *it*.

    x0, x: (B, …); signal: ᾱ of each row, (B,), below 1. Returns both, (B, …).
    """
    return read_off("x0", x0.clamp(-1, 1), x, signal)


# %% tags=["brick"]
def look(
    model: Diffusion,
    x: Tensor,
    t: int,
    text: Tensor | None = None,
    guidance: float = 1.0,
    clamp: bool = True,
) -> tuple[Tensor, Tensor]:
    """(x₀, ε) as the model sees them in x (B, 3, S, S) at time t.

    text: (B, dim) or None; guidance: see `Diffusion.read`; clamp: no pixel lies beyond
    [−1, 1], and the noise is what is left of x then.
    """
    times = torch.full((len(x),), t, device=x.device)
    x0, eps = model.read(x, times, text, guidance)
    return clamped(x0, x, model.signal[times]) if clamp else (x0, eps)


# %% tags=["brick"]
def signal_at(model: Diffusion, t: int, rows: int) -> Tensor:
    """ᾱ at a time, (rows,); −1 stands for the picture itself, where it is 1."""
    left = model.signal[t] if t >= 0 else model.signal.new_ones(())
    return left.expand(rows)


@torch.no_grad()
def walk(
    model: Diffusion,
    x: Tensor,
    times: Sequence[int],
    text: Tensor | None = None,
    *,
    guidance: float = 1.0,
    eta: float = 0.0,
    clamp: bool = True,
    noise=None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """From x at times[0] to times[-1]; yields (x, x₀ as seen in it), and the end twice.

    times: falling from noise to −1, a picture, as `Diffusion.times` gives them; or
    rising, from a picture back to its noise (eta 0). eta: in [0, 1], see `ddim_step`;
    noise: a function without arguments that gives new noise, needed if eta is not 0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; give a share from 0, no dice, to 1, DDPM's")
    if eta and (noise is None or times[0] < times[-1]):
        raise ValueError("dice need noise and a walk to a picture; give an eta of 0")
    for now, then in zip(times, times[1:], strict=False):
        # a picture has no time of its own: the network is told the least
        x0, eps = look(model, x, max(now, 0), text, guidance, clamp)
        yield x, x0
        levels = signal_at(model, now, len(x)), signal_at(model, then, len(x))
        x = ddim_step(x0, eps, *levels, eta, noise() if eta and then >= 0 else None)
    yield x, x


@takes(seed="seeds", steps="whole", guidance="number", eta="number")
@torch.no_grad()
def sample(
    model: Diffusion,
    prompts: Sequence[str] | None = None,
    *,
    seed: int | Sequence[int] = 0,
    guidance: float = 2.0,
    steps: int = 20,
    eta: float = 0.0,
    clamp: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """From noise to pictures, as `Diffusion.stream`, by DDIM's steps; see `walk`.

    A seed gives the same noise, and with eta 0 nearly the same picture, in any number
    of steps. Raises ValueError for what the model or `walk` refuses.
    """
    if not math.isfinite(guidance):
        raise ValueError(f"the guidance is {guidance}; give a number, e.g. 2.0")
    noise, text = model.begin(prompts, seed)
    how = {"guidance": guidance, "eta": eta, "clamp": clamp, "noise": noise}
    yield from walk(model, noise(), model.times(steps), text, **how)


def last(frames: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """The pictures (B, 3, S, S) in [0, 1] at which a walk ends."""
    *_, (x, _) = frames
    return ((x + 1) / 2).clamp(0, 1)


# %% [markdown]
# An *oracle* in the network's place that knows the picture, as in lesson 10: with any η
# and any number of steps the walk must arrive. And one seed, alone or among others,
# gives one picture.

# %%
wanted = 2 * F.adaptive_avg_pool2d(unseen.pictures[:1] / 255, 32) - 1


class Oracle(torch.nn.Module):
    def forward(self, x: Tensor, t: Tensor, text=None) -> Tensor:
        """The velocity of `wanted`: what the shipped model is asked for."""
        known, left = wanted.to(x), spread(model.signal[t], x)
        noise = (x - left.sqrt() * known) / (1 - left).sqrt()
        return left.sqrt() * noise - (1 - left).sqrt() * known


trained, model.unet = model.unet, Oracle()
for eta, steps in ((0.0, 5), (0.5, 20), (1.0, 50)):
    found = last(sample(model, seed=[1, 2], eta=eta, steps=steps)).cpu()
    arrived = torch.allclose(found, (wanted + 1) / 2, atol=1e-3)
    print(f"η = {eta}, {steps} steps: it arrives: {arrived}")
model.unet = trained
one = last(sample(model, ["cat face"], seed=5, steps=5))
among = last(sample(model, ["pizza", "cat face"], seed=[4, 5], steps=5))
print("alone or among others:", torch.allclose(one[0], among[1], atol=1e-2))

# %% [markdown]
# ## From a thousand steps to ten
#
# The same noise, walked in 25, 10 and 5 steps, without dice and with. **Predict
# first.** Which row shows the same pictures again and again?

# %%
PROMPTS = ["cat face", "red heart", "pizza", "rocket", "key", "bus"]
SEEDS = list(range(6))
ends = {
    (eta, steps): last(sample(model, PROMPTS, seed=SEEDS, eta=eta, steps=steps)).cpu()
    for eta in (0.0, 1.0) for steps in (25, 10, 5)
}  # fmt: skip
names = {0.0: "without dice", 1.0: "with dice"}
plots.picture_rows(
    {f"{names[eta]}, {steps} steps": x for (eta, steps), x in ends.items()},
    alt="Without dice the pictures stay the same from 25 steps to 10; with dice each "
    "number of steps gives others",
)

# %%
steps_tried = [10, 5]
fig, ax = plots.figure(width=6, height=2.6)
for eta, colour in ((0.0, "image"), (1.0, "noise")):
    off = [(ends[eta, s] - ends[eta, 25]).square().mean().sqrt() for s in steps_tried]
    ax.plot(steps_tried, off, "o-", color=plots.COLOURS[colour], label=names[eta])
strangers = (ends[0.0, 25] - ends[0.0, 25].roll(1, 0)).square().mean().sqrt()
ax.axhline(strangers, ls="--", color=plots.COLOURS["text"], label="another picture")
ax.set(title="Without dice, few steps nearly end where many do", xlabel="steps")
ax.set(ylabel="distance to 25 steps", ylim=(0, None))
ax.legend(fontsize=8, loc="center")
plots.show(fig, "The distance grows slowly without dice; with dice it is large at once")
glide = (ends[0.0, 10] - ends[0.0, 25]).square().mean().sqrt()
stagger = (ends[1.0, 10] - ends[1.0, 25]).square().mean().sqrt()
print("10 steps without dice, nearer to 25 than with dice:", bool(glide < stagger))
print("and nearer than another picture by half:", bool(glide < strangers / 2))

# %% [markdown]
# <details><summary>Answer</summary>
#
# The rows without dice. The noise names the picture, and the number of steps only says
# how finely it is walked to. With dice every step rolls, and other numbers of steps
# roll other dice. Measured once against *all* thousand steps, for two pictures without
# dice: 50 steps end 0.01 away, 25 end 0.02, ten 0.04 and five 0.08.
#
# </details>
#
# Is a picture in ten steps also as *good*? Ask the judge, `clip`, which had no part in
# the training: among 20 labels, does it find the one that was asked for? Every bar has
# its error: a share p of n draws is uncertain by √(p(1−p)/n).

# %%
from utils.bricks.dalle import found_among

judge = checkpoints.load("clip")
groups = zip(train.table["label_en"], train.table["group"], strict=True)
labels = sorted({label for label, group in groups if group != "flags"})
asked = labels[:: len(labels) // 24][:24]


def found(pictures: Tensor, names: list[str]) -> tuple[float, float]:
    """The share of names that the judge finds among 20, and its standard error."""
    hits = found_among(judge, pictures, names, labels, 20).float()
    share = hits.mean().item()
    return share, (share * (1 - share) / len(hits)) ** 0.5


shares = {}
for eta in (0.0, 1.0):
    for steps in (4, 10):
        how = {"seed": range(24), "eta": eta, "steps": steps, "guidance": 1.0}
        shares[eta, steps] = found(last(sample(model, asked, **how)), asked)
grey = found(torch.rand(24, 3, 32, 32, generator=device.generator(3)), asked)

# %%
fig, ax = plots.figure(width=6, height=2.6)
for eta, colour in ((0.0, "image"), (1.0, "noise")):
    x, (y, error) = [4, 10], zip(*(shares[eta, s] for s in (4, 10)), strict=True)
    ax.errorbar(x, y, error, fmt="o-", capsize=3, color=plots.COLOURS[colour],
                label=names[eta])  # fmt: skip
ax.axhline(grey[0], ls="--", color=plots.COLOURS["text"], label="noise as a picture")
ax.set(title="Few labels hardly tell them apart", xlabel="steps", ylim=(0, 1))
ax.set_ylabel("found among 20")
ax.legend(fontsize=8)
plots.show(fig, "All are found more often than noise; their error bars overlap")
print("10 steps find more than noise does:", shares[0.0, 10][0] > grey[0] + 0.2)

# %% [markdown]
# The bars overlap: twenty-four labels cannot tell dice from no dice, nor four steps
# from ten. Fifty thousand pictures can. On CIFAR-10, by FID, ten steps gave 13.4
# without dice and 41.1 with, and a thousand 4.0 and 4.7 (Song et al. 2021, tab. 1).
#
# ## Back to the noise
#
# A glide depends on the place alone, so it can be walked the other way: from a picture
# to the noise that names it. The step is the same formula with the times rising. It is
# not exact: what the network sees at s stands in for what it would see at t. The finer
# the steps, the less that matters.


# %% tags=["brick"]
@takes(pictures="pictures", steps="whole", first="whole")
def invert(
    model: Diffusion,
    pictures: Tensor,
    steps: int = 50,
    text: Tensor | None = None,
    first: int | None = None,
) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1] → the noise from which `walk` comes to them.

    text: (B, dim), what the pictures show, or None; first: the time to which it goes,
    see `Diffusion.times`. Without clamping or guidance, which lose what is needed for
    the way back. Song et al. 2021, sec. 4.3.
    """
    if pictures.shape[2:] != (model.side, model.side):
        found = "×".join(map(str, pictures.shape[2:]))
        raise ValueError(f"pictures are {found} pixels; scale them to {model.side}")
    rising = model.times(steps, first)[::-1]
    *_, (noise, _) = walk(model, 2 * pictures - 1, rising, text, clamp=False)
    return noise


# %%
def there_and_back(pictures: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The noise of pictures (B, 3, 32, 32), and the pictures that come of it."""
    noise = invert(model, pictures.to(here), steps)
    again = last(walk(model, noise, model.times(steps), clamp=False))
    return noise.cpu(), again.cpu()


def shrink(pairs: data.Pairs) -> Tensor:
    """Pictures (N, 3, 32, 32) in [0, 1]."""
    return F.adaptive_avg_pool2d(pairs.pictures / 255, 32)


new = shrink(unseen.where(style="fluent"))[::25][:6]  # never seen in training
trips = {steps: there_and_back(new, steps) for steps in (5, 10, 20, 40)}
plots.picture_rows(
    {"new pictures": new, "their noise, 40 steps": trips[40][0] / 4 + 0.5}
    | {f"back again, {steps} steps": again for steps, (_, again) in trips.items()},
    alt="With 40 steps each way the pictures come back; with five they are strangers",
)

# %%
errors = {s: (a - new).square().mean().sqrt().item() for s, (_, a) in trips.items()}
fig, axes = plots.figure(columns=2, width=10, height=2.6)
plots.line(axes[0], [*errors], [*errors.values()], colour="image")
axes[0].set(title="The way back misses by less, the finer the steps", xlabel="steps")
axes[0].set(ylabel="error of a pixel", ylim=(0, None))
noise = trips[40][0]
axes[1].hist(noise.flatten(), 60, density=True, color=plots.COLOURS["noise"])
z = torch.linspace(-4, 4, 100)
axes[1].plot(z, torch.exp(-z.square() / 2) / math.tau**0.5, color="black")
axes[1].set(title="What is found is no perfect noise", xlim=(-4, 4), yticks=[])
plots.show(fig, "The error falls with the steps; the noise found is calmer than a bell "
           "in the middle")  # fmt: skip
print("each doubling helps:", errors[5] > errors[10] > errors[20] > errors[40])
apart = (new - new.roll(1, 0)).square().mean().sqrt().item()
print("40 steps: nearer than another picture by five:", errors[40] < apart / 5)
white = torch.randn(noise.shape, generator=device.generator(9))
still = [F.cosine_similarity(x.flatten(1), new.flatten(1) - 0.5).abs().mean().item()
         for x in (noise, white)]  # fmt: skip
print("the picture can still be seen in it:", still[0] > 2 * still[1])

# %% [markdown]
# So every picture has a name in noise, also one that the model never saw. The name is
# not quite noise: white paper came out too calm, edges too loud, and you can make out
# the picture. Lesson 13 begins here: find the noise of a picture, change the model a
# little, and walk back.
#
# ## The trap of clamping
#
# A pixel lies in [−1, 1]; a guess may not, least of all under strong guidance. So it is
# clamped. But ε̂ was read together with the *unclamped* x̂₀. Whoever goes on with it
# puts picture and noise together that never made up this x_t. Three walks, strongly
# guided. **Predict first:** which one is worst?

# %%
def trapped(text: Tensor, seeds: Sequence[int], guidance: float, how: str) -> Tensor:
    """Pictures in 20 steps; `how` is "none", "clamped only" or "read again"."""
    each = [torch.randn(3, 32, 32, generator=device.generator(s)) for s in seeds]
    x, times = torch.stack(each).to(here), model.times(20)
    with torch.no_grad():
        for now, before in zip(times, times[1:], strict=False):
            x0, eps = look(model, x, now, text, guidance, how == "read again")
            x0 = x0.clamp(-1, 1) if how == "clamped only" else x0
            levels = signal_at(model, now, len(x)), signal_at(model, before, len(x))
            x = ddim_step(x0, eps, *levels)
    return x.cpu()


text = model.encode_text(PROMPTS)
ways = ("none", "clamped only", "read again")
traps = {how: trapped(text, SEEDS, 6.0, how) for how in ways}
plots.picture_rows(
    {how: (x / 2 + 0.5).clamp(0, 1) for how, x in traps.items()},
    alt="Without clamping and with the noise read again nearly the same; clamped only, "
    "washed out",
)
away = {how: (traps[how] - traps["read again"]).square().mean().item() for how in ways}
print("clamped only ends farther off than not clamped:",
      away["clamped only"] > 3 * away["none"])  # fmt: skip

# %% [markdown]
# Clamping and reading again changes little here. Clamping *alone* is worse than not
# clamping at all. And in numbers, without any walk: picture and noise, put together at
# the strengths of t, must make up the x_t in which they were seen.

# %%
x = torch.randn(6, 3, 32, 32, generator=device.generator(5)).to(here)
t = 800
with torch.no_grad():
    answers = {"none": look(model, x, t, text, 6.0, clamp=False)}
x0, eps = answers["none"]
answers["clamped only"] = x0.clamp(-1, 1), eps
answers["read again"] = clamped(x0, x, model.signal[[t] * 6])
for how, (x0, eps) in answers.items():
    again = diffusion.add_noise(x0, eps, model.signal[[t] * 6])
    print(f"{how}: they make up x again: {torch.allclose(again, x, atol=0.05)}")

# %% [markdown]
# diffusers' `DDIMScheduler` clamps by default and does *not* read the noise again
# unless told to (`use_clipped_model_output=True`); denoising-diffusion-pytorch did not
# either, until a pull request (84) mended it.
#
# ## Guidance
#
# Ask for a pizza: the model that has learnt from loose captions gives pictures that are
# *somewhat* likelier to be pizza. One would like to turn that up. In lesson 08 guidance
# was a trick on logits; here is where it comes from. By Bayes, how much likelier a
# caption c makes a picture is p(c|x), and asking for a *sharper* caption means raising
# that to a power w:
#
# $$p_w(x)\;\propto\;p(x)\,p(c\mid x)^w=p(x)^{1-w}\,p(x\mid c)^w$$
#
# The noise that a network sees is the slope of log p, turned round. So slopes add, and
# the guided noise is a straight line through two answers:
#
# $$\hat\varepsilon_w=\hat\varepsilon(x)+w\,\big(\hat\varepsilon(x,c)-
#   \hat\varepsilon(x)\big)$$
#
# w = 0 forgets the caption, w = 1 is the model as it learnt, w > 1 exaggerates. (Ho &
# Salimans write 1 + w for our w.) No classifier is needed, only a network that has
# sometimes been asked *without* a caption: in the recipe one in ten is left out.


# %% tags=["brick", "blank"]
def guided(asked: Tensor, free: Tensor, guidance: float) -> Tensor:
    """The answer that goes from `free` through `asked`, guidance times as far.

    asked, free: (B, …), a network's answers with the caption and without; guidance: 0
    for `free`, 1 for `asked`. Ho & Salimans 2022, eq. 6, whose w is guidance − 1.
    """
    return free + guidance * (asked - free)


# %% [markdown]
# As noise, as picture or as velocity, it is the same line, for each of them is a linear
# function of the others at a given x. And it is what `Diffusion.read` does:

# %%
x = torch.randn(2, 3, 32, 32, generator=device.generator(2)).to(here)
times, few = torch.tensor([600, 300]).to(here), text[:2]
with torch.no_grad():
    free, told = model.read(x, times), model.read(x, times, few)
    for w in (0.0, 1.0, 3.0):
        both = model.read(x, times, few, w)
        lines = [guided(a, f, w) for a, f in zip(told, free, strict=True)]
        same = [torch.allclose(b, line, atol=0.05)
                for b, line in zip(both, lines, strict=True)]  # fmt: skip
        print(f"w = {w:g}: picture and noise: {same}")

# %% [markdown]
# What that does to a distribution can be worked out in the toy. Three pictures are
# possible, −1, 0 and +1. Without a caption all are alike; with the caption *right*
# their chances are 10, 30 and 60 %. **Predict first:** with w = 3, will 0 become more
# frequent, or less?

# %%
points = torch.tensor([-1.0, 0.0, 1.0])
chances = {"free": torch.tensor([1 / 3, 1 / 3, 1 / 3]),
           "right": torch.tensor([0.1, 0.3, 0.6])}  # fmt: skip


def mean_of(x: Tensor, t: int, weights: Tensor) -> Tensor:
    """x̂₀ for x (N,), if the three points have these chances."""
    left = signal[t]
    apart = (x[:, None] - left.sqrt() * points).square() / (2 * (1 - left))
    return (weights.log() - apart).softmax(1) @ points


def draw_points(w: float, count: int = 4000) -> Tensor:
    """How often each point comes out, (3,)."""
    x = torch.randn(count, generator=device.generator(4))
    times = model.times(100)
    for now, before in zip(times, times[1:], strict=False):
        x0 = guided(*(mean_of(x, now, chances[c]) for c in ("right", "free")), w)
        eps = read_off("x0", x0, x, signal[now].expand(count))[1]
        left = signal[before] if before >= 0 else torch.ones(())
        x = ddim_step(x0, eps, signal[now].expand(count), left.expand(count))
    return (x[:, None] - points).abs().argmin(1).bincount(minlength=3) / count


came = {w: draw_points(w) for w in (0.0, 1.0, 2.0, 3.0)}
told = {w: chances["free"] ** (1 - w) * chances["right"] ** w for w in came}
fig, axes = plots.figure(columns=4, width=11, height=2.2)
for ax, (w, share) in zip(axes, came.items(), strict=True):
    ax.bar([0, 1, 2], share, color=plots.COLOURS["image"])
    ax.plot([0, 1, 2], told[w] / told[w].sum(), "_", ms=24, color="black")
    ax.set(title=f"w = {w:g}", ylim=(0, 1), xticks=[0, 1, 2])
    ax.set_xticklabels(["−1", "0", "+1"])
plots.show(fig, "From even chances to nearly all at +1, as the weight grows")
drawn_as_told = (came[1.0] - chances["right"]).abs().max().item()
print("w = 1 draws as the caption says:", drawn_as_told < 0.05)
print("+1 wins ever more:", bool(torch.stack([*came.values()])[:, 2].diff().min() > 0))
print("0 comes less often at w = 3 than at 1:", bool(came[3.0][1] < came[1.0][1]))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Less. What is likely becomes likelier and all else rarer: **guidance buys clarity with
# diversity.** The black marks are the formula above, p(x)¹⁻ʷ·p(x|c)ʷ. The walks do not
# quite keep to it: the line through the two answers is right for a *slightly noisy*
# x only in the limit, since noise is added to p, not to pʷ. Nobody minds.
#
# </details>
#
# ### Measured
#
# With the shipped model: is it what was asked for, and how different are four pictures
# of one caption from each other, both in the judge's eyes?

# %%
from utils.bricks.zero_shot import image_vectors

WEIGHTS, EACH = (0.0, 1.0, 2.0, 4.0), 4  # so many pictures of each caption
captions = [prompt for prompt in PROMPTS for _ in range(EACH)]
clarity, diversity = {}, {}
for w in WEIGHTS:
    how = {"seed": range(len(captions)), "steps": 8, "guidance": w}
    drawn = last(sample(model, captions, **how))
    clarity[w] = found(drawn, captions)
    v = image_vectors(judge, drawn).unflatten(0, (-1, EACH))  # (captions, EACH, d)
    cosines = (v @ v.mT)[:, ~torch.eye(EACH, dtype=torch.bool)]
    apart = 1 - cosines.mean(1)  # of each caption
    diversity[w] = apart.mean().item(), apart.std().item() / len(apart) ** 0.5

# %%
fig, axes = plots.figure(columns=2, width=10, height=2.6)
kinds = ((clarity, "found among 20", "text"), (diversity, "1 − cosine", "image"))
for ax, (values, label, colour) in zip(axes, kinds, strict=True):
    y, error = zip(*values.values(), strict=True)
    ax.errorbar(WEIGHTS, y, error, fmt="o-", capsize=3, color=plots.COLOURS[colour])
    ax.set(xlabel="guidance w", ylabel=label, ylim=(0, None))
axes[0].set_title("More guidance, clearer …")
axes[1].set_title("… and less diverse")
plots.show(fig, "As guidance grows the judge finds more, and pictures grow alike")
print("w = 2 is found more often than w = 0:", clarity[2.0][0] > clarity[0.0][0] + 0.2)
print("pictures of one caption are more alike at 4 than at 1:",
      diversity[4.0][0] < diversity[1.0][0])  # fmt: skip
show = {
    f"w = {w:g}": last(sample(model, PROMPTS, seed=SEEDS, steps=10, guidance=w)).cpu()
    for w in (0.0, 1.0, 2.0, 5.0)
}
plots.picture_rows(show, alt="At w = 0 anything, then what was asked for, at 5 glaring")

# %% [markdown]
# ## Play
#
# A caption, and everything that this lesson turned. **Predict first:** at w = 2 and one
# seed, move the steps from 50 to 10: same picture? Now set η to 1 and move them again.


# %%
def frames(prompt, seed, steps, eta, guidance):
    text = prompt if prompt.strip() else None
    prompts = [text] if text else None
    how = {"seed": [seed], "steps": steps, "eta": eta, "guidance": guidance}
    for x, guess in sample(model, prompts, **how):
        yield torch.cat([x, guess]) / 2 + 0.5


steps_taken = widgets.slider("Steps", 20, 1, 200)
widgets.film(
    [
        widgets.text("Prompt", "a 3D drawing of a cat face"),
        widgets.slider("Seed", 0, 0, 1000),
        steps_taken,
        widgets.slider("η", 0.0, 0.0, 1.0),
        widgets.slider("Guidance w", 2.0, 0.0, 8.0),
    ],
    frames,
    "A walk from noise to a picture, with steps, dice and guidance to turn.",
    steps=steps_taken,
    strip=8,
)

# %% [markdown]
# ## Break it
#
# Each against the same without the fault, one seed, 20 steps:
#
# 1. **the noise with the wrong sign** in the step;
# 2. **dice without making room**: new noise is added, the old keeps its strength;
# 3. **inverting with a caption, walking back without**.
#
# **Predict first.** Which of them still gives pictures?


# %%
def spoilt_walk(fault: str) -> Tensor:
    """Six pictures in 20 steps with dice, and one fault."""
    draw = device.generator(11)
    x = torch.randn(6, 3, 32, 32, generator=draw).to(here)
    times = model.times(20)
    with torch.no_grad():
        for now, before in zip(times, times[1:], strict=False):
            x0, eps = look(model, x, now, text, 2.0)
            eps = -eps if fault == "the wrong sign" else eps
            levels = signal_at(model, now, 6), signal_at(model, before, 6)
            new_noise = torch.randn(x.shape, generator=draw).to(here)
            if fault == "no room for the dice":
                whole = ddim_step(x0, eps, *levels)
                spread_of = ddim_step(0 * x0, 0 * eps, *levels, 1.0, new_noise)
                x = whole + spread_of
            else:
                x = ddim_step(x0, eps, *levels, 1.0, new_noise if before >= 0 else None)
    return (x / 2 + 0.5).clamp(0, 1).cpu()


broken = {
    fault: spoilt_walk(fault)
    for fault in ("as it should be", "the wrong sign", "no room for the dice")
}
with_words = model.encode_text(["a drawing"] * len(new))
named = invert(model, new.to(here), 20, with_words)
ways_back = {
    words: last(walk(model, named, model.times(20), said, clamp=False)).cpu()
    for words, said in {"with": with_words, "without": None}.items()
}
broken["back without the caption"] = ways_back["without"]
plots.picture_rows(broken, alt="Whole; flat shapes; noise; nearly as they were")

# %%
def detail(x: Tensor) -> float:
    """How much neighbouring pixels differ."""
    return x.diff(dim=3).square().mean().item()


whole, flat, grain = (detail(x) for x in [*broken.values()][:3])
print("the wrong sign leaves less detail:", flat < 0.8 * whole)
print("no room for the dice, far more grain:", grain > 5 * whole)
off = {words: (x - new).square().mean().item() for words, x in ways_back.items()}
print("back without the caption misses by more:", off["without"] > off["with"])

# %% [markdown]
# <details><summary>Answer</summary>
#
# With the wrong sign, surprisingly: noise that is turned round is still noise, and of
# the right strength. But whatever the network had not told from noise yet, every
# detail, is in ε̂ too and gets turned against itself: flat shapes are left.
# Without room for the dice more noise is left at every step than the network is told,
# and it ends in noise. Walking back without the caption gives pictures near the old
# ones, but not the old ones: the noise was their name *under that caption*.
#
# </details>
#
# ## Exercises
#
# > **Exercise 1 · Several captions at once** — difficulty 1 of 3, about 6 minutes. Why
# > it matters: "a cat" and "red", each with a weight of its own, or a caption to stay
# > away from, as the negative prompts of every program. Write
# > `several(free, asked, weights)`: from the answer without a caption, go along every
# > caption's difference, weighted (Liu et al. 2022, *Composable Diffusion*, eq. 11).


# %% tags=["exercise"]
def several(free: Tensor, asked: list[Tensor], weights: list[float]) -> Tensor:
    """free, each of asked: (B, 3, H, W); a weight for each. Returns such a one."""
    ...


# %%
from utils.exercises import sampling as exercises

exercises.check_several(several)

# %% [markdown]
# <details><summary>Hint</summary>
#
# With one caption it is `guided`. A negative weight walks away.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def several(free, asked, weights):
#     return free + sum(w * (a - free) for a, w in zip(asked, weights))
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · Not so glaring** — difficulty 2 of 3, about 10 minutes. Why it
# > matters: a line that goes on beyond the answer also makes it *larger*; colours
# > glare. Write `rescaled(guided, asked, share)`: give each picture of `guided` the
# > standard deviation that `asked` has there, and mix that with the unscaled answer,
# > `share` of it (Lin et al. 2024, sec. 3.4).


# %% tags=["exercise"]
def rescaled(guided: Tensor, asked: Tensor, share: float = 0.7) -> Tensor:
    """guided, asked: (B, 3, H, W). Returns (B, 3, H, W)."""
    ...


# %%
exercises.check_rescaled(rescaled)

# %% [markdown]
# <details><summary>Hint</summary>
#
# One number for each picture: `x.flatten(1).std(1)`, then in a shape that multiplies
# (`spread`).
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def rescaled(guided, asked, share=0.7):
#     wanted, found = asked.flatten(1).std(1), guided.flatten(1).std(1)
#     return guided * spread(share * wanted / found + 1 - share, guided)
# ```
#
# </details>

# %% [markdown]
# > **Exercise 3 · Learn from the last steps** — difficulty 3 of 3, about 15 minutes.
# > Why it matters: the network's last answers tell where the next will lie, so fewer
# > steps do (Liu et al. 2022, *Pseudo Numerical Methods*). Evenly spaced steps of one;
# > `slopes` are those at the last one to four places, the newest last. Write
# > `next_slope(slopes)`: the slope for the coming step that is exact when the slope is
# > a polynomial with as many coefficients as there are slopes.


# %% tags=["exercise"]
def next_slope(slopes: list[Tensor]) -> Tensor:
    """One to four tensors of one shape → the slope to take for the step ahead."""
    ...


# %%
exercises.check_next_slope(next_slope)

# %% [markdown]
# <details><summary>Hint</summary>
#
# With one slope: that. With two, a line through them, whose mean over the step ahead is
# (3·new − old)/2. In general: choose weights so that ∫₀¹ of every power xᵏ comes out
# right from its values at 0, −1, −2 and −3. These are the formulas of Adams and
# Bashforth.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def next_slope(slopes):
#     n = len(slopes)
#     places = -torch.arange(n, dtype=torch.float64)  # the newest first
#     powers = torch.arange(n, dtype=torch.float64)
#     weights = torch.linalg.solve(places ** powers[:, None], 1 / (powers + 1))
#     return sum(w * s for w, s in zip(weights.tolist(), reversed(slopes)))
# ```
#
# </details>

# %% [markdown]
# ## Myth check
#
# **"DDIM is another model."** It is another walk with the same network; nothing is
# trained anew.
#
# **"More steps are better."** Up to some number, and then nothing changes: see the
# rows without dice.
#
# **"Without dice all pictures are the same."** The dice are rolled once, at the start.
#
# **"Guidance makes a model understand the caption better."** It knows what it knew. It
# exaggerates the difference that the caption makes, right or wrong.
#
# **"7.5 is the right guidance."** It is Stable Diffusion's default. What is right
# depends on the model, on the answer it gives and on how much diversity you would
# give up; measure it.
#
# ## Differs from the paper
#
# | | DDIM; classifier-free guidance | here | why |
# |---|---|---|---|
# | stops | evenly or quadratically spaced | evenly, both ends | no tuning |
# | last step | to ᾱ₀ or 1 | to 1, a picture | no noise is left |
# | clamping | off in the paper's code | on, and ε read again | strong guidance |
# | guidance | 1 + w | w | 0 and 1 mean something |
# | caption | a class label | a CLIP vector | captions |
# | dropped | 10 to 20 % | 10 % | |
#
# ## Where this goes next
#
# Guidance needs a network that was trained with captions. **Lesson 12** steers one that
# never saw any: CLIP itself says at every step which way to go.
#
# ## Read more
#
# - Song, Meng & Ermon 2021, *Denoising Diffusion Implicit Models*, sec. 4, tab. 1.
# - Ho & Salimans 2022, *Classifier-Free Diffusion Guidance*.
# - Liu et al. 2022, *Pseudo Numerical Methods for Diffusion Models on Manifolds*; Lu et
#   al. 2022, *DPM-Solver*: a dozen steps.
# - Liu et al. 2022, *Compositional Visual Generation with Composable Diffusion Models*.
# - Lin et al. 2024, *Common Diffusion Noise Schedules and Sample Steps Are Flawed*.
# - huggingface/diffusers, `schedulers/scheduling_ddim.py`.
#
# **Glossary** · 去噪扩散隐式模型 DDIM · 确定性采样 deterministic sampling · 反演
# inversion · 无分类器引导 classifier-free guidance · 引导强度 guidance scale · 多样性
# diversity · 截断 clamping
