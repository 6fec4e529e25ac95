# ---
# jupyter:
#   brick: dvae
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · dVAE: Gumbel-softmax and the logit-Laplace
#
# ![A picture goes through an encoder; every place of a grid gets a distribution over
# codes; noise picks a mixture of codes, which hardens as the temperature falls; the
# decoder draws from it](../assets/figures/06_dvae.svg)
#
# In lesson 05 the encoder pointed, the nearest code answered, and the gradient was
# waved past the gap between the two. The first stage of DALL·E, the *discrete
# variational autoencoder* (dVAE, Ramesh et al. 2021), does as the VAE does: it gives a
# **distribution** for every place of the grid, and one code is drawn. **How can a
# gradient pass through the choice of one thing out of many?**

# %%
import copy
import random
import time

from utils import checkpoints, data, device, plots, training, widgets

train = data.load_emoji("train").where(skin_tone="none")
unseen = data.load_emoji("unseen").where(skin_tone="none")

# %% [markdown]
# What the bricks of this lesson are made of:

# %% tags=["brick"]
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.bricks.vq_vae import Decoder, Encoder, check_codes, check_pictures
from utils.bricks.vq_vae import roles as autoencoder_roles
from utils.given import takes

# %% [markdown]
# ## A toy: three codes for one pixel
#
# A pixel is nearly white, 0.9. Three codes can stand for it: code 0 draws black, 1
# draws grey, 2 draws white. An encoder gives each a *logit*, a softmax makes **shares**
# q of them, and each code has its loss, the squared error.

# %%
def rounded(values: Tensor, digits: int = 3) -> list[float]:
    return [round(x, digits) for x in values.flatten().tolist()]


levels, pixel = torch.tensor([0.0, 0.5, 1.0]), 0.9
logits = torch.tensor([1.0, 0.5, 0.0], requires_grad=True)
q = logits.softmax(0)
losses = (pixel - levels).square()
print("shares:", rounded(q))
print("losses:", rounded(losses, 2))
print(f"expected loss: {(q * losses).sum():.4f}")

# %% [markdown]
# The encoder likes black best, and that is wrong. The **expected** loss Σ q·L says how
# the logits should move, and its slope has a short form: a code whose loss is above the
# mean goes down.
#
# $$\frac{\partial}{\partial l_k} \sum_j q_j L_j
# = q_k \Big(L_k - \sum_j q_j L_j\Big)$$

# %%
(truth,) = torch.autograd.grad((q * losses).sum(), logits)
by_hand = (q * (losses - (q * losses).sum())).detach()
print("by hand: ", rounded(by_hand, 4))
print("autograd:", rounded(truth, 4))

# %% [markdown]
# Why not train on that? Because it tries every code. A picture of this course has 256
# places with 1,024 codes each, and what a code draws depends on its neighbours: there
# are 1,024²⁵⁶ grids to try. So one code is *chosen* for each place, and there the
# gradient ends:

# %%
print("argmax carries a gradient:", logits.argmax().requires_grad)
print("a draw carries a gradient:", torch.multinomial(q, 1).requires_grad)
for nudge in (0.0, 0.1, 0.4, 0.6):  # on the logit of code 1
    moved = logits.detach() + torch.tensor([0.0, nudge, 0.0])
    chosen = int(moved.argmax())
    print(f"+{nudge}: code {chosen}, loss {losses[chosen]:.2f}")

# %% [markdown]
# A nudge of the logit changes nothing, and then all at once everything. Between the
# jumps the slope is 0, so no encoder would ever move.
#
# ## The Gumbel-max trick
#
# Lesson 05 moved the dice out of the way: z = μ + σ·ε, with noise that knows nothing of
# μ and σ. Is there such noise for a choice? Think of K alarm clocks. Clock k rings
# after a random time, at a rate of exp(lₖ): a high logit rings soon. **Which one rings
# first?** Clock k does with the chance of its share of all rates, exp(lₖ) / Σ exp(lⱼ):
# that is the softmax.


# %%
def draw_by_clocks(logits: list[float], dice: random.Random) -> int:
    """The number of the clock that rings first; clock k has the rate exp(logits[k])."""
    times = [dice.expovariate(math.exp(logit)) for logit in logits]
    return times.index(min(times))


toy = [1.0, 0.5, 0.0]
dice = random.Random(0)
rung = [draw_by_clocks(toy, dice) for _ in range(20_000)]
counted = [rung.count(code) / len(rung) for code in range(3)]
gap = max(abs(a - b) for a, b in zip(counted, q.tolist(), strict=True))
print("20,000 mornings, as the softmax says to 0.02:", gap < 0.02)

# %% [markdown]
# A clock of rate r rings after E/r, with E a draw at rate 1. Take −log of the times Eₖ
# / exp(lₖ): the first clock is now the one with the *largest* lₖ − log Eₖ. So
#
# $$\arg\max_k\,(l_k + g_k) \;\sim\; \mathrm{softmax}(l), \qquad g_k = -\log E_k$$
#
# This g is **Gumbel noise** (Gumbel 1954): the same for every logit, known before any
# encoder has spoken.


# %% tags=["brick", "blank"]
def gumbel_noise(logits: Tensor) -> Tensor:
    """Gumbel noise −log E, E exponential, in the shape and type of `logits`.

    The draws of F.gumbel_softmax, in its order, from torch's global generator.
    """
    exponential = torch.empty_like(logits, memory_format=torch.contiguous_format)
    return -exponential.exponential_().log()


def gumbel_max(logits: Tensor) -> Tensor:
    """A draw from softmax(logits) by argmax: (..., K) → (...) int64."""
    return (logits + gumbel_noise(logits)).argmax(-1)


# %% [markdown]
# **Predict first.** Does it have to be Gumbel noise? Below, 200,000 draws with it, and
# as many with other noise of the same spread (π/√6), flat and normal. Which code gets
# too little, and which noise comes closest?

# %%
many = torch.tensor([3.0, 1.5, 0.0]).expand(200_000, 3)
spread = math.pi / 6**0.5
device.seed(0)
draws = {
    "Gumbel": gumbel_max(many),
    "normal": (many + spread * torch.randn_like(many)).argmax(1),
    "flat": (many + 12**0.5 * spread * torch.rand_like(many)).argmax(1),
}
shares = {name: torch.bincount(d, minlength=3) / len(d) for name, d in draws.items()}
shares = {"softmax": many[0].softmax(0)} | shares
fig, ax = plots.figure(width=7, height=2.6)
colours = ("shared", "code", "noise", "text")
for i, (name, share) in enumerate(shares.items()):
    x = torch.arange(3) + 0.2 * i - 0.3
    ax.bar(x, share, 0.18, label=name, color=plots.COLOURS[colours[i]])
ax.set(xticks=range(3), xticklabels=["code 0", "code 1", "code 2"], yscale="log")
ax.set(title="Only Gumbel noise draws the rare code as often as it should")
ax.legend()
plots.show(fig, "Shares of three codes: Gumbel noise gives those of the softmax, "
           "normal and flat noise draw the rare code too seldom")  # fmt: skip

# %%
off = {name: (share - shares["softmax"]).abs().max() for name, share in shares.items()}
print("Gumbel, as the softmax says to 0.005:", bool(off["Gumbel"] < 0.005))
rare = shares["softmax"][2]
for name in ("normal", "flat"):
    print(f"{name}: the rare code less than 3/4 as often:",
          bool(shares[name][2] < 0.75 * rare))  # fmt: skip

# %% [markdown]
# <details><summary>Answer</summary>
#
# The rarest code suffers. Gumbel noise has a long tail to the right, as long as the
# logits are logarithms: now and then it lifts even a hopeless code to the top. Normal
# noise comes close, and fails where it matters; flat noise has an end.
#
# </details>
#
# ## Gumbel-softmax
#
# The dice are out of the way, but the argmax is still there. **So replace it by its
# soft relative**, with a *temperature* τ (Jang et al. 2017, eq. 2; Maddison et al.
# 2017):
#
# $$y_k = \frac{\exp\big((l_k + g_k)/\tau\big)}{\sum_j \exp\big((l_j + g_j)/\tau\big)}$$
#
# The y are weights that add up to 1. At low τ the largest takes all, and y is
# *one-hot*: 1 for the drawn code, 0 for the others. At high τ all are alike. First by
# loops:


# %%
def gumbel_softmax_by_loops(logits, noise, tau) -> list[float]:
    pairs = zip(logits, noise, strict=True)
    powers = [math.exp((logit + g) / tau) for logit, g in pairs]
    return [power / sum(powers) for power in powers]


device.seed(3)
noise = gumbel_noise(torch.tensor(toy)).tolist()
print("noise:", [round(g, 2) for g in noise])
for tau in (4, 1, 1 / 4, 1 / 16):
    weights = gumbel_softmax_by_loops(toy, noise, tau)
    print(f"τ = {tau:<7}", [round(w, 3) for w in weights])


# %% tags=["brick", "blank"]
@takes(logits="(..., K)", tau="number")
def gumbel_softmax(logits: Tensor, tau: float, hard: bool = False) -> Tensor:
    """A relaxed draw from softmax(logits): (..., K) → weights (..., K), their sum is 1.

    tau: the temperature; towards 0 the weights become one-hot. hard: forward the
    one-hot, backward the gradient of the weights (straight-through).
    Raises ValueError for a temperature that is not above 0.
    Jang et al. 2017, eq. 2; Maddison et al. 2017, sec. 3.3.
    """
    if not tau > 0:
        raise ValueError(f"the temperature is {tau}; it must be above 0")
    weights = ((logits + gumbel_noise(logits)) / tau).softmax(-1)
    if not hard:
        return weights
    one_hot = torch.zeros_like(weights).scatter_(-1, weights.argmax(-1, True), 1.0)
    return one_hot - weights.detach() + weights


# %% [markdown]
# The loops, the brick and PyTorch's own, from the same seed:

# %%
device.seed(3)
ours = gumbel_softmax(torch.tensor(toy), 0.25)
print("as by loops:", torch.allclose(ours, torch.tensor(
    gumbel_softmax_by_loops(toy, noise, 0.25))))  # fmt: skip
table = torch.randn(4, 16, 16, 32, generator=device.generator(0))
for hard in (False, True):
    device.seed(7)
    ours = gumbel_softmax(table, 0.5, hard)
    device.seed(7)
    theirs = F.gumbel_softmax(table, 0.5, hard)
    print(f"hard={hard}: as F.gumbel_softmax, bit for bit: {torch.equal(ours, theirs)}")


# %%
def seconds(function, times: int = 5) -> float:
    took = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        took.append(time.perf_counter() - start)
    return min(took)


rows = table[0].flatten(0, 1).tolist()  # 256 places of 32 codes
by_loops = seconds(lambda: [gumbel_softmax_by_loops(r, r, 0.5) for r in rows])
by_brick = seconds(lambda: gumbel_softmax(table[0], 0.5))
print("noise included, more than 3 times faster:", by_loops > 3 * by_brick)

# %% [markdown]
# What the temperature does is best seen with three codes: their weights are a point in
# a triangle, and the corners are the codes.

# %%
corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
names = ("code 0", "code 1", "code 2")
fig, axes = plots.figure(columns=4, width=10, height=2.6)
winners, inside = [], []
for ax, tau in zip(axes, (2.0, 1.0, 0.25, 1 / 16), strict=True):
    device.seed(0)
    weights = gumbel_softmax(torch.tensor(toy).expand(600, 3), tau)  # (600, 3)
    winners.append(weights.argmax(1))
    inside.append((weights.max(1).values < 0.9).float().mean().item())
    points = weights @ corners
    ax.fill(*corners.T, fill=False, color=plots.COLOURS["noise"])
    ax.scatter(*points.T, s=4, alpha=0.4, color=plots.COLOURS["code"])
    for name, corner in zip(names, corners, strict=True):
        ax.annotate(name, corner, fontsize=7, ha="center", xytext=(0, -9),
                    textcoords="offset points")  # fmt: skip
    ax.set(title=f"τ = {tau:g}", aspect="equal")
    ax.axis("off")
plots.show(fig, "600 relaxed draws in a triangle: a cloud at a high temperature, "
           "points in the corners at a low one")  # fmt: skip
print("fewer between the corners, the colder:", inside == sorted(inside, reverse=True))
same = all(torch.equal(winners[0], other) for other in winners)
print("the same noise has the same winner at every temperature:", same)

# %% [markdown]
# So this *is* a reparameterisation: noise that needs no encoder, and then a smooth
# formula of the logits. It is a **relaxed** one. Only at τ → 0 is y a draw from q;
# above that it is a mixture, something no codebook has.
#
# ## What the relaxation costs
#
# Is the slope it gives the right one? For the toy we know the truth. Thousands of
# relaxed draws say how far their *mean* slope is off (the **bias**) and how much single
# ones differ (the **spread**). Three ways to ask for a slope:
#
# - **relaxed**: the decoder sees the mixture y, forward and backward;
# - **straight-through** (`hard=True`): forward the one-hot, backward the slope of y;
# - **score function**, or REINFORCE (Williams 1992): draw a code, and take its loss
#   times the slope of its log share. No relaxation at all, and no bias.


# %%
def slopes(estimate, draws: int = 20_000) -> tuple[float, float]:
    """Bias and spread of an estimate of the slope, in lengths of the true slope."""
    device.seed(0)
    logits = torch.tensor(toy).repeat(draws, 1).requires_grad_()
    (found,) = torch.autograd.grad(estimate(logits).sum(), logits)
    found, target = found / truth.norm(), truth / truth.norm()
    return (found.mean(0) - target).norm().item(), found.std(0).norm().item()


def relaxed(tau: float, hard: bool = False):
    """The loss of what the toy decoder draws from a mixture."""
    return lambda logits: (pixel - gumbel_softmax(logits, tau, hard) @ levels).square()


def score_function(logits: Tensor) -> Tensor:
    code = gumbel_max(logits)
    return losses[code] * logits.log_softmax(1).gather(1, code[:, None])[:, 0]


# %%
taus = [4, 2, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32]
found = {
    "relaxed": [slopes(relaxed(tau)) for tau in taus],
    "straight-through": [slopes(relaxed(tau, hard=True)) for tau in taus],
    "score function": [slopes(score_function)] * len(taus),
}
fig, axes = plots.figure(columns=2, width=9.5, height=3.0)
colours = ("code", "shared", "noise")
for (name, pairs), colour in zip(found.items(), colours, strict=True):
    style = "--" if name == "score function" else "o-"
    for ax, values in zip(axes, zip(*pairs, strict=True), strict=True):
        ax.plot(taus, values, style, color=plots.COLOURS[colour], label=name)
axes[0].set_title("Bias falls with τ …")
axes[1].set_title("… and the spread grows")
for ax in axes:
    ax.set(xlabel="temperature τ", xscale="log", yscale="log")
    ax.invert_xaxis()
axes[0].set_ylabel("lengths of the true slope")
axes[1].legend()
plots.show(fig, "As the temperature falls, the slope of a relaxed draw loses its bias "
           "and gains spread; the score function has no bias")  # fmt: skip

# %%
soft = {tau: pair for tau, pair in zip(taus, found["relaxed"], strict=True)}
print("relaxed, bias at 1 above a quarter, at 1/16 below a tenth:",
      soft[1][0] > 0.25, soft[1 / 16][0] < 0.1)  # fmt: skip
print("relaxed, spread at 1/16 more than three times that at 1:",
      soft[1 / 16][1] > 3 * soft[1][1])  # fmt: skip
print("score function, bias below a tenth:", found["score function"][0][0] < 0.1)

# %% [markdown]
# Hot, the slope is calm and wrong; cold, it is right on average and wild. Hence the
# habit to **anneal**: begin warm, where there is something to learn from, and cool
# down, until mixtures are draws.
#
# DALL·E relaxes in both passes and never goes straight through (its author, in
# openai/DALL-E, issue 1). So in training its decoder never sees a pure code, and when
# it is used, by `argmax`, it sees nothing else. Only the cold end makes the two meet.
#
# ## The prior is uniform, the posterior is not
#
# As in the VAE, a second term pulls each distribution q towards a prior. Here the prior
# is the uniform one, 1/K for every code, and
#
# $$\mathrm{KL}(q \,\Vert\, \text{uniform}) = \sum_k q_k \ln \frac{q_k}{1/K}
# = \ln K - H(q)$$
#
# with H the entropy of q, in nats. By hand, for K = 4:


# %%
def kl_by_loops(q: list[float]) -> float:
    return sum(share * math.log(share * len(q)) for share in q if share > 0)


for q in ([0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [1, 0, 0, 0]):
    print(q, f"{kl_by_loops(q):.4f} nats, {kl_by_loops(q) / math.log(2):.0f} bits")

# %% [markdown]
# To say nothing is free. To say for sure which of four costs 2 bits, half a say costs
# 1. So the KL is the number of bits that a place really uses.


# %% tags=["brick", "blank"]
def kl_from_uniform(logits: Tensor) -> Tensor:
    """KL(q ‖ uniform) in nats, q = softmax(logits): (..., K) → (...), in [0, ln K]."""
    log_q = logits.log_softmax(-1)  # no logarithm of a share that was rounded to 0
    return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])


# %%
table = 3 * torch.randn(4, 3, 3, 8, generator=device.generator(0))  # 4 grids of 3×3
ours = kl_from_uniform(table)  # (4, 3, 3)
q = table.softmax(-1)
by_loops = torch.tensor([kl_by_loops(row) for row in q.view(-1, 8).tolist()])
print("as by loops:", torch.allclose(ours.flatten(), by_loops, atol=1e-5))
log_uniform = torch.full((8,), -math.log(8.0))
arguments = {"log_target": True, "reduction": "none"}
theirs = F.kl_div(log_uniform, table.log_softmax(-1), **arguments).sum(-1)
print("as F.kl_div:", torch.allclose(ours, theirs, atol=1e-5))

# %% [markdown]
# A trap lies in `F.kl_div`: its *first* argument is the prior, and `"batchmean"`
# divides by the length of that first argument. A much-used DALL·E in PyTorch
# (lucidrains/DALLE-pytorch, `dalle_pytorch.py`) hands it one number for the prior: so
# it divides by 1, and batch and places are summed. There the weight of the KL grows
# with the batch; issues 92 and 99 of that project wonder why it hurts.

# %%
prior = torch.tensor([1 / 8]).log()  # one number
arguments = {"log_target": True, "reduction": "batchmean"}
theirs = F.kl_div(prior, table.log_softmax(-1), **arguments)
print("its KL is the sum over everything:", torch.allclose(theirs, ours.sum()))
ratio = theirs / ours.sum((1, 2)).mean()
print(f"the mean over four pictures is {ratio:.0f} times less")

# %% [markdown]
# Both terms together are the **evidence lower bound** (ELB). With β = 1 it lies below
# the log probability of the picture:
#
# $$\ln p(x) \;\ge\; \underbrace{\mathbb E_{z \sim q}\,[\ln p(x \mid z)]}_{
# \text{reconstruction}} - \beta\, \underbrace{\sum_{\text{places}}
# \mathrm{KL}(q \,\Vert\, \text{uniform})}_{\text{prior}}$$
#
# DALL·E takes β = 6.6, so what it maximises is no bound any more; the paper found that
# more codes get used that way. Now for ln p(x | z).
#
# ## Pixels in a box
#
# Absolute error is the −ln of a Laplace distribution, squared error that of a normal
# one. Both spread over all numbers. A pixel lies in [0, 1], and a white one at its very
# edge:


# %%
def laplace(x: Tensor, mu: float, b: float) -> Tensor:
    return (-(x - mu).abs() / b).exp() / (2 * b)


step = 1e-5
inside = torch.arange(step / 2, 1, step, dtype=torch.float64)  # the middle of each cell
for mu in (0.5, 0.9, 1.0):
    print(f"μ = {mu}: {laplace(inside, mu, 0.1).sum() * step:.2f} lies between 0 and 1")

# %% [markdown]
# On white, half of what the distribution has to give is for colours that do not exist.
# The paper stretches the box first (app. A.3). The logit, ln x/(1 − x), takes (0, 1) to
# all numbers; there a Laplace distribution has room. Back in the box its density is
#
# $$f(x \mid \mu, b) = \frac{1}{2b\,x(1-x)}
# \exp\left(-\frac{|\mathrm{logit}(x) - \mu|}{b}\right)$$
#
# The x(1 − x) is the price of the stretch: where the logit is steep, there is more
# room.


# %%
def logit_laplace_by_hand(x: float, mu: float, b: float) -> float:
    logit = math.log(x / (1 - x))
    return math.exp(-abs(logit - mu) / b) / (2 * b * x * (1 - x))


print(f"x = 0.5, μ = 0, b = 1: {logit_laplace_by_hand(0.5, 0.0, 1.0)}")  # 1/(2·¼)
print(f"x = 0.9, μ = 0, b = 1: {logit_laplace_by_hand(0.9, 0.0, 1.0):.4f}")


# %% tags=["brick", "blank"]
def logit_laplace(x: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """ln f(x | μ, b), when logit(x) has a Laplace distribution; x in (0, 1).

    All of one shape, as the result. Ramesh et al. 2021, app. A.3.
    """
    stretch = x.log() + (-x).log1p()  # ln x(1 − x)
    return -math.log(2) - log_b - stretch - (x.logit() - mu).abs() / log_b.exp()


# %% [markdown]
# Does it integrate to 1? Cut (0, 1) into cells and add up. Beside it the same without
# x(1 − x), the part that one forgets.

# %%
for mu, b in ((0.0, 1.0), (2.2, 0.3), (-1.0, 0.1)):
    centre, log_b = torch.tensor(mu).double(), torch.tensor(b).double().log()
    density = logit_laplace(inside, centre, log_b).exp()
    total = density.sum() * step
    without = (density * inside * (1 - inside)).sum() * step
    print(f"μ = {mu:4}, b = {b}: {total:.3f}, without x(1 − x): {without:.3f}")
one = logit_laplace(torch.tensor(0.9), torch.tensor(0.0), torch.tensor(0.0)).exp()
print("as by hand:", math.isclose(one, logit_laplace_by_hand(0.9, 0, 1), rel_tol=1e-5))

# %%
fig, axes = plots.figure(columns=2, width=9, height=2.6)
for mu, colour in ((0.0, "code"), (1.0, "image"), (2.197, "shared")):
    for ax, density in (
        (axes[0], laplace(inside, 1 / (1 + math.exp(-mu)), 0.1)),
        (axes[1], logit_laplace(inside, torch.tensor(mu), torch.tensor(-0.7)).exp()),
    ):
        ax.plot(inside, density, color=plots.COLOURS[colour])
axes[0].set(title="Laplace: cut off at the edge", xlabel="pixel")
axes[1].set(title="Logit-Laplace: bends to stay inside", xlabel="pixel")
for ax in axes:
    ax.set(xlim=(0, 1), ylim=(0, None))
plots.show(fig, "Three Laplace densities, cut off at 1, and three logit-Laplace ones "
           "that fall to 0 at the edge")  # fmt: skip

# %% [markdown]
# One thing is left: the logit of 0 or 1 is infinite, and emoji are full of pure white.
# So pixels move in from the edge first, from [0, 1] to [0.1, 0.9].

# %% tags=["brick", "blank"]
EDGE = 0.1  # ε in the paper


def map_pixels(pictures: Tensor) -> Tensor:
    """[0, 1] → [0.1, 0.9], where the logit is finite. Ramesh et al. 2021, app. A.3."""
    return (1 - 2 * EDGE) * pictures + EDGE


def unmap_pixels(values: Tensor) -> Tensor:
    """The way back, (0, 1) → [0, 1]: what lies beyond an edge becomes the edge."""
    return ((values - EDGE) / (1 - 2 * EDGE)).clamp(0, 1)


# %%
greys = torch.tensor([0.0, 0.5, 1.0])
print("mapped:", rounded(map_pixels(greys)))
print("and back:", rounded(unmap_pixels(map_pixels(greys))))
print("logits before:", greys.logit().tolist())
print("logits after:", rounded(map_pixels(greys).logit()))

# %% [markdown]
# The decoder gives **six maps**: μ and ln b for each of three colours. b says how sure
# it is. To draw, take the median, σ(μ), and leave b.
#
# **Predict first.** A white page is known exactly. What does the best b become there,
# and what happens to −ln f?
#
# <details><summary>Answer</summary>
#
# b goes to 0 and −ln f to −∞: the loss of a density has no lower end. A network can win
# without limit by being ever surer of the page. In photographs no two whites are alike;
# our page is 255 everywhere. So the brick keeps ln b above a *floor*.
#
# </details>

# %%
white = map_pixels(torch.tensor(1.0))
for log_b in (0.0, -2.0, -4.0, -8.0):
    value = -logit_laplace(white, white.logit(), torch.tensor(log_b))
    print(f"ln b = {log_b:4}: −ln f on a white pixel {value:.2f}")
edges = map_pixels(torch.tensor([[0.0, 1], [127, 128], [254, 255]]) / 255).logit()
widths = rounded(edges.diff(dim=1))
print("one of 255 steps, as a logit, in black, grey, white:", widths)

# %% [markdown]
# A b far below one grey step claims more than 8 bits can hold.
#
# ## The model
#
# The parts together. Encoder and codes are those of lesson 05: latents and codes on a
# sphere. There the nearest code was *it*; here the nearest is the likeliest, and how
# fast the chances fall with the squared distance, the *sharpness* s, is learnt:
#
# $$q_k \propto \exp\left(-\tfrac s2\,\lVert z - e_k\rVert^2\right)$$
#
# A relaxed draw then mixes the codes for the decoder. (DALL·E's encoder gives the K
# logits directly, from a convolution. In our trials of 500 steps that used as few of
# the 1,024 codes as if there were a dozen.)


# %% tags=["brick"]
class DVAE(nn.Module):
    """Pictures ↔ a grid of codes: (B, 3, S, S) ↔ (B, S/factor, S/factor) in [0, codes).

    The encoder gives a distribution over the codes for every place: the nearer to its
    latent, the likelier. The decoder takes mixtures of codes and gives μ and ln b of
    the logit-Laplace for every pixel and colour. sharpness: how fast chances fall with
    distance, at first; floor: the least ln b. Ramesh et al. 2021, sec. 2.1, app. A.
    """

    def __init__(
        self,
        factor: int,
        codes: int,
        width: int = 96,
        latent: int = 16,
        sharpness: float = 4.0,
        floor: float = -1.0,
    ):
        super().__init__()
        self.config = {"factor": factor, "codes": codes, "width": width}
        self.config |= {"latent": latent, "sharpness": sharpness, "floor": floor}
        self.factor, self.codes, self.floor = factor, codes, floor
        self.encoder = Encoder(factor, width, latent)
        self.vectors = nn.Parameter(torch.randn(codes, latent))
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))
        self.decoder = Decoder(factor, width, latent, channels=6)

    def codebook(self) -> Tensor:
        """The codes' vectors, all of length √latent: (codes, latent)."""
        return F.normalize(self.vectors, dim=-1) * self.vectors.shape[1] ** 0.5

    @takes(pictures="pictures")
    def latents(self, pictures: Tensor) -> Tensor:
        """Latents of that length, too: (B, 3, S, S) in [0, 1] → (B, h, w, latent)."""
        check_pictures(pictures, self.factor)
        z = self.encoder(pictures).permute(0, 2, 3, 1).float()
        return F.normalize(z, dim=-1) * z.shape[-1] ** 0.5

    def logits(self, pictures: Tensor) -> Tensor:
        """Logits of q: (B, 3, S, S) in [0, 1] → (B, h, w, codes)."""
        return self.closeness(self.latents(pictures))

    def closeness(self, z: Tensor) -> Tensor:
        """Logits of q at latents: (..., latent) → (..., codes)."""
        # bfloat16 would mistake near codes for one another
        with torch.autocast(z.device.type, enabled=False):
            # on a sphere z·e is −‖z − e‖²/2 and a constant, which the softmax drops
            return self.log_sharpness.exp() * z @ self.codebook().float().T

    def draw(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Codes' vectors or mixtures (B, h, w, latent) → μ and ln b, (B, 3, S, S)."""
        maps = self.decoder(vectors.permute(0, 3, 1, 2)).float()  # (B, 6, S, S)
        mu, log_b = maps.chunk(2, 1)
        return mu, log_b.clamp(min=self.floor)

    def forward(
        self, pictures: Tensor, tau: float, hard: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """μ and ln b (B, 3, S, S) after a relaxed draw; logits (B, h, w, codes)."""
        logits = self.logits(pictures)
        return *self.draw(gumbel_softmax(logits, tau, hard) @ self.codebook()), logits

    @torch.no_grad()
    def start_from(self, pictures: Tensor) -> None:
        """Put the codes on latents of these pictures, drawn at random."""
        z = self.latents(pictures).flatten(0, 2)
        self.vectors.copy_(z[torch.randint(len(z), (self.codes,)).to(z.device)])

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] → the likeliest codes (B, h, w)."""
        return self.logits(pictures).argmax(-1)

    @takes(codes="(B, h, w) int64")
    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) → pictures (B, 3, factor·h, factor·w) in [0, 1].

        Raises ValueError for a code that the model does not have.
        """
        check_codes(codes, self.codes)
        return unmap_pixels(self.draw(self.codebook()[codes])[0].sigmoid())


def roles(model: DVAE) -> dict[str, list[str]]:
    """Names of its parameters by role; as of lesson 05, and the codes are an edge."""
    found = autoencoder_roles(model)
    matrix = [name for name in found["matrix"] if name != "vectors"]
    return {"matrix": matrix, "edge": [*found["edge"], "vectors"]}


# %% [markdown]
# DALL·E's paper divides its loss by the number of colour values, so that it does not
# depend on the size of a picture. With 192 values for each place, β = 6.6 weighs one
# nat of a place as 6.6/192 = 0.034. We have 48 values for each place.


# %% tags=["brick"]
def negative_elb(
    pictures: Tensor, mu: Tensor, log_b: Tensor, logits: Tensor, beta: float = 1.0
) -> Tensor:
    """−ELB per colour value, a scalar: β·KL(q ‖ uniform) − ln p(x | z).

    pictures, mu, log_b: (B, 3, S, S), pictures in [0, 1]; logits: (B, h, w, K).
    """
    density = logit_laplace(map_pixels(pictures), mu, log_b)
    return (beta * kl_from_uniform(logits).sum() - density.sum()) / pictures.numel()


# %%
device.seed(0)
tiny = DVAE(factor=4, codes=8, width=16, latent=4)
x = torch.rand(2, 3, 16, 16, generator=device.generator(0))
mu, log_b, logits = tiny(x, tau=1.0)
print("maps:", tuple(mu.shape), "logits:", tuple(logits.shape))
total = 0.0  # by loops: two pictures, 16 places each, 768 values each
for n in range(2):
    for place in logits[n].flatten(0, 1).softmax(-1).tolist():
        total += 6.6 * kl_by_loops(place)
    values = (t[n].flatten().tolist() for t in (x, mu, log_b))
    for value, m, s in zip(*values, strict=True):
        total -= math.log(logit_laplace_by_hand(0.8 * value + 0.1, m, math.exp(s)))
found = negative_elb(x, mu, log_b, logits, 6.6).item()
print("as by loops:", math.isclose(found, total / (2 * 768), rel_tol=1e-4))

# %% [markdown]
# ## What one code sees
#
# The grid has 16×16 places, and each stands where 4×4 pixels are. Is a code then a
# *patch* of 4×4 pixels, as in a ViT? Ask the other way round: change one pixel, and see
# at which places the logits move. GroupNorm averages over the whole picture, so it is
# taken out here, to see the convolutions alone. As a control, an encoder of real
# patches.


# %%
def places_moved(encoder: nn.Module) -> Tensor:
    """Where an encoder's output moves with one pixel in the middle: (16, 16) bool."""
    picture = torch.rand(3, 64, 64, generator=device.generator(0))
    pictures = torch.stack([picture, picture])
    pictures[1, :, 33, 33] = 1 - pictures[1, :, 33, 33]
    with torch.no_grad():
        before, after = encoder(pictures)
    return (before - after).abs().amax(0) > 0


def without_norms(module: nn.Module) -> nn.Module:
    """A copy without GroupNorm, whose convolutions are all random."""
    module = copy.deepcopy(module)
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.GroupNorm):
            module.set_submodule(name, nn.Identity())
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.05)
    return module


device.seed(0)
convolutions = without_norms(Encoder(4, 32, 8))
patches = nn.Conv2d(3, 8, kernel_size=4, stride=4)
moved = {"our encoder": places_moved(convolutions), "patches": places_moved(patches)}
fig, axes = plots.figure(columns=2, width=6, height=2.8)
for ax, (name, places) in zip(axes, moved.items(), strict=True):
    plots.heatmap(places.float(), ax, f"{name}: {int(places.sum())} of 256 places")
plots.show(fig, "One pixel moves 121 places of the convolutional encoder, 1 of patches")

# %% [markdown]
# 11×11 places, 44×44 pixels: each code sees two thirds of the picture's width, and its
# neighbours see most of the same. OpenAI's encoder has a 7×7 convolution, 24 of 3×3 and
# three max-pools (`dall_e/encoder.py`): there a code sees 194×194 of 256×256 pixels,
# and the 32×32 are the *grid* that comes out. Exercise 4 computes that number.
#
# ## Schedules
#
# Two numbers move while the dVAE trains. The temperature falls, and the weight of the
# prior grows from 0, so that the encoder may first learn to say something at all
# (Bowman et al. 2016). DALL·E draws both with half a cosine; a linear one for τ mostly
# diverged (app. A.2).


# %% tags=["brick", "blank"]
def annealed(step: int, start: float, end: float, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at `steps`; then it stays."""
    share = min(1.0, step / steps)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


# %%
print("τ at 0, ½ and 1 of its way, and later:",
      [annealed(step, 1.0, 1 / 16, 100) for step in (0, 50, 100, 300)])  # fmt: skip
card = checkpoints.card("dvae")
ours, STEPS = card["arguments"], card["steps"]
their_steps = 3_000_000
fig, axes = plots.figure(columns=2, width=9, height=2.4)
along = [i / 200 for i in range(201)]
for share, steps, name, colour in (
    (150_000 / their_steps, their_steps, "DALL·E", "noise"),
    (ours["cool"], STEPS, "here", "code"),
):
    tau = [annealed(a * steps, 1.0, 1 / 16, share * steps) for a in along]
    axes[0].plot(along, tau, color=plots.COLOURS[colour], label=name)
for share, beta, name, colour in (
    (5_000 / their_steps, 6.6 / 192, "DALL·E", "noise"),
    (ours["grow"], ours["beta"] / 48, "here", "code"),
):
    weight = [annealed(a, 0.0, beta, share) for a in along]
    axes[1].plot(along, weight, color=plots.COLOURS[colour], label=name)
axes[0].set(title="The temperature falls …", xlabel="share of the run", ylabel="τ")
axes[1].set(title="… and the prior comes in", xlabel="share of the run")
axes[1].set_ylabel("weight of one nat")
axes[1].legend()
plots.show(fig, "The temperature falls from 1 to 1/16 and the KL weight grows from 0; "
           "both faster in DALL·E's three million steps")  # fmt: skip

# %% [markdown]
# Their run has 3,000,000 updates, of which τ takes 150,000 and β 5,000. Ours has a
# thousandth of that, so both take a larger share of it.

# %% [markdown]
# ## It learns
#
# A small one, live: pictures of 32×32, a grid of 8×8, 128 codes. One step, written out:

# %%
from utils.bricks.vq_vae import psnr

small_train, small_unseen = (
    F.interpolate(pairs.pictures.float() / 255, (32, 32), mode="area")
    for pairs in (train, unseen)
)


def new_dvae(seed: int = 0) -> DVAE:
    device.seed(seed)
    return DVAE(factor=4, codes=128, width=32, latent=8).to(device.pick())


def new_optimizer(model: DVAE) -> training.MuonAdamW:
    found = training.by_role(model, roles(model))
    return training.MuonAdamW(found, lr=4e-3, matrix_lr=0.02, weight_decay=0.01)


def one_hot(logits: Tensor) -> Tensor:
    """1 for the likeliest code of each place, 0 for the others."""
    return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()


def some(step: int, size: int = 32) -> Tensor:
    """The batch of a step, (size, 3, 32, 32)."""
    rows = torch.randint(len(small_train), (size,), generator=device.generator(0, step))
    return small_train[rows].to(device.pick())


live = new_dvae()
optimizer = new_optimizer(live)
batch = some(0)
logits = live.logits(batch)  # (32, 8, 8, 128)
weights = gumbel_softmax(logits, tau=1.0)  # the noise is new at every step
mu, log_b = live.draw(weights @ live.codebook())  # (32, 3, 32, 32) each
loss = negative_elb(batch, mu, log_b, logits, beta=0.0)
optimizer.zero_grad()
loss.backward()
optimizer.step()
reached = live.encoder.layers[-1].weight.grad.abs().sum().item()
mu, _ = live.draw(one_hot(live.logits(batch)) @ live.codebook())
cut = torch.autograd.grad(mu.sum(), live.encoder.layers[-1].weight, allow_unused=True)
print("through a relaxed draw a gradient reaches the encoder:", reached > 0)
print("through argmax none does:", cut == (None,))

# %% [markdown]
# And 110 of them, with both schedules. At first the codes know nothing, and most
# would lie where no latent ever comes. So in the first 20 steps the decoder draws from
# the latents themselves, and then every code is put on some latent (`start_from`).


# %%
RUN, START = 110, 20


def loss_of(model: DVAE, tau, beta, hard: bool = False):
    """loss(step); tau and beta are functions of the share of the run, 0 to 1."""

    def loss(step: int) -> Tensor:
        batch, share = some(step), step / RUN
        if step == START:
            model.start_from(batch)
        z = model.latents(batch)
        logits = model.closeness(z)
        if step < START:
            return negative_elb(batch, *model.draw(z), logits, beta=0.0)
        mixture = gumbel_softmax(logits, tau(share), hard) @ model.codebook()
        return negative_elb(batch, *model.draw(mixture), logits, beta(share))

    return loss


def cooling(share: float) -> float:
    return annealed(share, 1.0, 1 / 16, 0.5)


def growing(share: float) -> float:
    return annealed(share, 0.0, 0.5, 0.5)


fluent = [i for i, style in enumerate(unseen.table["style"]) if style == "fluent"]
heart_at = next(i for i in fluent if unseen.table["label_en"][i] == "brown heart")
shown = [heart_at, *fluent[4::25]][:7]
seven = small_unseen[shown]
seen = {}


@torch.no_grad()
def rebuilt(model: DVAE, pictures: Tensor) -> Tensor:
    """Encode by argmax, decode: (N, 3, S, S) → the same."""
    model.eval()
    parts = (part.to(device.pick()) for part in pictures.split(64))
    drawn = torch.cat([model.decode(model.encode(part)).cpu() for part in parts])
    model.train()
    return drawn


def keep(done: int) -> None:
    """Remember the seven after 1, 10 and 100 % of the run."""
    if done in (RUN // 100, RUN // 10, RUN):
        seen[done] = rebuilt(live, seven)


# %%
live = new_dvae()
whole = loss_of(live, cooling, growing)


def loss(step: int) -> Tensor:
    keep(step)
    return whole(step)


losses = training.fit(
    live, loss, RUN, optimizer=new_optimizer(live), name="a small dVAE"
)
keep(RUN)

# %%
plots.picture_rows(
    {"original": seven} | {f"step {step}": drawn for step, drawn in seen.items()},
    alt="Unseen pictures after 1, 10 and 100 % of the training: from nothing to "
    "blurred things",
)
fig, ax = plots.figure(width=6, height=2.4)
plots.curve(ax, losses, colour="code", smooth=10)
ax.set(
    xlabel="step",
    ylabel="−ELB per value",
    title="Below 0, for densities may be above 1",
)
plots.show(fig, "The loss falls below 0")
quality = [psnr(seven, drawn).mean() for drawn in seen.values()]
print("each look is better than the one before:", quality == sorted(quality))
trivial = psnr(small_unseen, small_train.mean(0, keepdim=True).expand_as(small_unseen))
gain = psnr(small_unseen, rebuilt(live, small_unseen)).mean() - trivial.mean()
print("more than 3 dB better than the mean picture:", bool(gain > 3))

# %% [markdown]
# Now the one that the course ships: three times as wide, 1,024 codes on 16×16 places,
# as many steps as its card says (`make pretrain MODEL=dvae`). If you train it yourself,
# this is the curve that you should see.

# %%
shipped, vq_vae = checkpoints.load("dvae"), checkpoints.load("vq_vae")
looks = {int(step): look for step, look in card["looks"].items()}
fig, axes = plots.figure(columns=3, width=10, height=2.6)
axes[0].plot(*zip(*card["losses"], strict=True), color=plots.COLOURS["code"])
axes[0].set(title="−ELB per value", xlabel="step")
for ax, key, title in (
    (axes[1], "psnr", "Unseen pictures, dB"),
    (axes[2], "codes_used", "Codes in use there, %"),
):
    reached = [look[key] for look in looks.values()]
    ax.plot(list(looks), reached, "o-", color=plots.COLOURS["code"])
    ax.set(title=title, xlabel="step", xscale="log")
plots.show(fig, "The shipped dVAE: its loss, quality and codes in use over training")

# %% [markdown]
# What its recipe saw at 1, 10, 30, 60 and 100 % of the run, one row each:
#
# ![Twelve unseen pictures, rebuilt at five moments of the training: grey at 1 %, clear
# shapes later, fine lines at the end](../assets/checkpoints/dvae.webp)
#
# ## What a grid of distributions looks like
#
# At last, look at q itself. How sure is the encoder at each place, and between which
# codes does it waver?

# %%
some_unseen = unseen.pictures[::3].float() / 255
heart = unseen.pictures[heart_at].float() / 255  # (3, 64, 64)
with torch.no_grad():
    logits = shipped.logits(heart[None].to(device.pick()))[0].cpu()  # (16, 16, K)
q = logits.softmax(-1)
likeliest = q.max(-1).values  # (16, 16)
bits = kl_from_uniform(logits) / math.log(2)
places = {"sure": int(likeliest.argmax()), "unsure": int(likeliest.argmin())}
fig, axes = plots.figure(columns=4, width=10, height=2.5)
axes[0].imshow(heart.permute(1, 2, 0))
axes[0].axis("off")
plots.heatmap(bits, axes[1], "Bits used at a place, of 10", limit=10)
for ax, (name, place) in zip(axes[2:], places.items(), strict=True):
    row, column = divmod(place, 16)
    top = q[row, column].sort(descending=True).values[:8]
    ax.bar(range(8), top, color=plots.COLOURS["code"])
    ax.axhline(1 / 1024, color=plots.COLOURS["noise"], ls="--")
    ax.set(title=f"the most {name} place", xlabel="its 8 likeliest codes")
    axes[0].plot(4 * column + 1.5, 4 * row + 1.5, "o", color=plots.COLOURS["wrong"])
plots.show(fig, "A heart, the bits used at each place, and the likeliest codes of a "
           "sure and of an unsure place")  # fmt: skip
print("shares add up to 1:", torch.allclose(q.sum(-1), torch.ones(16, 16), atol=1e-4))
print("the uniform prior would give each:", 1 / 1024)
print("the most sure place gives one code above 0.9:", bool(likeliest.max() > 0.9))
print("the dearest place uses more than 9 bits:", bool(bits.max() > 9))
print("the white corner uses 3 bits fewer:", bool(bits[0, 0] < bits.max() - 3))

# %% [markdown]
# Where there is most to say, the encoder uses nearly all of its ten bits. On white it
# does not matter which of many codes is taken, and the prior makes it say so.

# %% [markdown]
# ## Do mixture and draw meet?
#
# In training the decoder saw relaxed draws, and in use it sees the likeliest code. Here
# are unseen pictures through relaxed draws at several temperatures, against one pure
# draw and against argmax. **Predict first:** at which temperature is the picture best?


# %%
@torch.no_grad()
def quality_of(model: DVAE, pictures: Tensor, weights_of) -> float:
    """Mean PSNR when `weights_of(logits)` mixes the codes."""
    found = []
    for part in pictures.split(32):
        part = part.to(device.pick())
        mu, _ = model.draw(weights_of(model.logits(part)) @ model.codebook())
        found.append(psnr(part, unmap_pixels(mu.sigmoid())))
    return torch.cat(found).mean().item()


sample = some_unseen[::3]
device.seed(0)
warm = [64.0, 16.0, 4.0, 1.0, 1 / 4, 1 / 16]
by_tau = [
    quality_of(shipped, sample, lambda x, t=t: gumbel_softmax(x, t)) for t in warm
]
drawn = quality_of(shipped, sample, lambda x: gumbel_softmax(x, 1.0, hard=True))
argmax = quality_of(shipped, sample, one_hot)
fig, ax = plots.figure(width=6.5, height=2.6)
ax.plot(warm, by_tau, "o-", color=plots.COLOURS["code"], label="relaxed draw")
ax.axhline(drawn, color=plots.COLOURS["noise"], ls="--", label="pure draw")
ax.axhline(argmax, color=plots.COLOURS["shared"], ls="--", label="argmax")
ax.set(
    title="A lukewarm mixture beats the codes", xlabel="temperature", xscale="log"
)
ax.set_ylabel("dB")
ax.invert_xaxis()
ax.legend()
plots.show(fig, "PSNR of relaxed draws against temperature: far lower at 64, above "
           "argmax at 1, that of pure draws at 1/16")  # fmt: skip
print("at 1/16, within 0.3 dB of a pure draw:", abs(by_tau[-1] - drawn) < 0.3)
print("at 64, more than 3 dB below it:", by_tau[0] < drawn - 3)
print("at 1, better than the likeliest code:", by_tau[3] > argmax + 0.2)

# %% [markdown]
# Hot, the decoder gets the mean of everything. But at τ = 1 the picture is **better**
# than with the likeliest code everywhere! A mixture of a few near codes is a point
# *between* them. It says more than 10 bits can say, so a decoder that leans on it leans
# on something that will not be there. Cooling takes it away in time.

# %% [markdown]
# ## Against the VQ-VAE, at equal bits
#
# Both write a picture as 256 codes of 1,024: 320 bytes. Encoder and decoder are the
# same classes of the same width. What differs is how the codes learn. (Lesson 05 has
# WebP at these bits.) As controls: the dVAE untrained, and the codes of *another*
# picture.


# %%
def through(model, pictures: Tensor) -> Tensor:
    parts = (part.to(device.pick()) for part in pictures.split(64))
    return torch.cat([model.decode(model.encode(part)).cpu() for part in parts])


device.seed(0)
untrained = DVAE(**shipped.config).to(device.pick()).eval()
rebuilt_by = {
    "VQ-VAE": through(vq_vae, some_unseen),
    "dVAE": through(shipped, some_unseen),
    "dVAE, codes of another": through(shipped, some_unseen).roll(1, 0),
    "dVAE, untrained": through(untrained, some_unseen),
}
decibels = {n: psnr(some_unseen, x).mean().item() for n, x in rebuilt_by.items()}
fig, ax = plots.figure(width=7, height=1.9)
plots.bars(ax, decibels, "code", "320 bytes a picture, unseen pictures", "dB")
plots.show(fig, "VQ-VAE and dVAE are close, above the codes of another picture and an "
           "untrained dVAE")  # fmt: skip
codes = shipped.encode(some_unseen.to(device.pick())).cpu()
used = len(codes.unique()) / shipped.codes
print("within 1.5 dB of the VQ-VAE:", decibels["dVAE"] > decibels["VQ-VAE"] - 1.5)
print("10 dB above the codes of another picture:",
      decibels["dVAE"] > decibels["dVAE, codes of another"] + 10)  # fmt: skip
print("more than half of the codes in use on these pictures:", used > 0.5)

# %%
first = [unseen.pictures[i].float() / 255 for i in shown]
first = torch.stack(first)
drawn = {"VQ-VAE": through(vq_vae, first), "dVAE": through(shipped, first)}
plots.picture_rows(
    {"original": first} | drawn,
    alt="Unseen pictures, rebuilt by the VQ-VAE and by the dVAE from 320 bytes",
)

# %% [markdown]
# ## Play: from a mixture to one code
#
# A picture through the shipped dVAE, with a relaxed draw at any temperature. Slide
# **τ** from warm to cold, then change the **dice**. Look for: where does the picture
# break first? At which τ do the dice stop mattering, and why there?
#
# **Predict first.** The noise is the same at every τ. At τ = 64, will the picture be
# noisy, or pale?

# %%
gallery = unseen.where(style="fluent")
names = sorted(set(gallery.table["label_en"]))


@torch.no_grad()
def relax(name: str, log_tau: float, dice: int) -> str:
    """The picture, its relaxed draw, and what argmax gives, side by side."""
    index = gallery.table["label_en"].index(name)
    picture = gallery.pictures[index : index + 1].float().to(device.pick()) / 255
    logits = shipped.logits(picture)
    device.seed(dice)
    weights = gumbel_softmax(logits, 2**log_tau)
    mu, _ = shipped.draw(torch.cat([weights, one_hot(logits)]) @ shipped.codebook())
    images = torch.cat([picture, unmap_pixels(mu.sigmoid())]).cpu()
    alts = ("original", "relaxed draw", "argmax")
    shown = "".join(
        widgets.thumbnail(x, 160, alt) for x, alt in zip(images, alts, strict=True)
    )
    largest = weights.max(-1).values.mean().item()
    mixed = (1 / weights.square().sum(-1)).mean().item()
    quality = psnr(images[:1], images[1:2]).item()
    return (
        f"<p>{shown}</p><p>τ = {2**log_tau:.3f}: {quality:.1f} dB. The largest weight "
        f"of a place is {largest:.0%} on average; about {mixed:.1f} codes are mixed."
        "</p>"
    )


controls = [
    widgets.choice("picture", names, "brown heart"),
    widgets.slider("log₂ τ", -1.0, -6.0, 7.0),
    widgets.slider("dice", 0, 0, 50),
]
widgets.live(controls, relax, "A relaxed draw at any temperature.")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Pale: at τ = 64 every code gets a share, whatever the noise says, and all places move
# towards one and the same mean. The dice matter most when it is cold: there one code is
# taken whole, and the noise decides among those that the encoder finds alike.
#
# </details>

# %%
stops = (64.0, 16.0, 4.0, 1.0, 1 / 16)
with torch.no_grad():
    logits = shipped.logits(heart[None].to(device.pick()))
    mixes = []
    for tau in stops:
        device.seed(0)
        mixes.append(gumbel_softmax(logits, tau))
    mixes.append(one_hot(logits))
    mu, _ = shipped.draw(torch.cat(mixes) @ shipped.codebook())
steps = torch.cat([heart[None], unmap_pixels(mu.sigmoid()).cpu()])
plots.grid(
    steps,
    ["original", *(f"τ = {tau:g}" for tau in stops), "argmax"],
    alt="A heart at falling temperatures: pale at 64, itself from 16 on",
)
quality = psnr(heart.expand(7, -1, -1, -1), steps)[1:]
print("the warmest is the worst:", int(quality.argmin()) == 0)
largest = [mix.max(-1).values.mean().item() for mix in mixes]
print("the largest weight grows as it cools:", largest == sorted(largest))

# %% [markdown]
# ## Break it
#
# The small dVAE again, four more times, one thing changed each. Same start, same
# batches, same learning rates, same 110 steps:
#
# - **never cooled**: τ = 1 to the end;
# - **cold from the start**: τ = 1/16 all along;
# - **a heavy prior**: a KL weight a hundred times as large;
# - **straight through**: `hard=True`, with the same cooling.
#
# And a VQ-VAE of the same size, for comparison. Three things are measured on unseen
# pictures: the quality with relaxed draws at the run's last temperature, the quality
# with argmax, and how many of the 128 codes are used.
#
# **Predict first.** Which one looks better while it trains than when it is used?


# %%
def try_with(name: str, tau=cooling, beta=growing, hard: bool = False) -> dict:
    model = new_dvae()
    optimizer = new_optimizer(model)
    training.fit(
        model, loss_of(model, tau, beta, hard), RUN, optimizer=optimizer, name=name
    )
    return judged(model, tau(1.0))


@torch.no_grad()
def judged(model: DVAE, tau: float) -> dict:
    device.seed(0)
    pictures = small_unseen[::2]
    codes = torch.cat([model.encode(p.to(device.pick())) for p in pictures.split(64)])
    return {
        "relaxed": quality_of(model, pictures, lambda x: gumbel_softmax(x, tau)),
        "argmax": psnr(pictures, rebuilt(model, pictures)).mean().item(),
        "used": len(codes.unique()),
    }


runs = {
    "whole": judged(live, 1 / 16),
    "never cooled": try_with("never cooled", tau=lambda share: 1.0),
    "cold from the start": try_with("cold from the start", tau=lambda share: 1 / 16),
    "a heavy prior": try_with("a heavy prior", beta=lambda s: 100 * growing(s)),
    "straight through": try_with("straight through", hard=True),
}

# %%
from utils.bricks.vq_vae import VQVAE, difference

device.seed(0)
other = VQVAE(factor=4, width=32, latent=8, codes=128).to(device.pick())


def vq_loss(step: int) -> Tensor:
    drawn, _, commitment = other(some(step))
    return difference(drawn, some(step)) + 0.025 * commitment


optimizer = training.MuonAdamW(
    training.by_role(other, autoencoder_roles(other)), 4e-3, 0.02, 0.01
)
training.fit(other, vq_loss, RUN, optimizer=optimizer, name="a VQ-VAE of that size")
theirs = psnr(small_unseen[::2], through(other, small_unseen[::2])).mean().item()

# %%
fig, axes = plots.figure(columns=2, width=10, height=2.8)
y = torch.arange(len(runs))
for shift, key, colour in ((-0.2, "relaxed", "noise"), (0.2, "argmax", "code")):
    lengths = [result[key] for result in runs.values()]
    axes[0].barh(y + shift, lengths, 0.36, color=plots.COLOURS[colour], label=key)
axes[0].axvline(theirs, color=plots.COLOURS["shared"], ls="--", label="VQ-VAE")
axes[0].set(title="Unseen pictures, dB", yticks=y, yticklabels=runs)
axes[0].invert_yaxis()
axes[0].legend(fontsize=7)
plots.bars(
    axes[1], {n: r["used"] for n, r in runs.items()}, "code", "Codes in use, of 128"
)
plots.show(fig, "A heavy prior costs most and leaves codes unused; all others come "
           "close to one another and to a VQ-VAE")  # fmt: skip

# %%
whole, warm, heavy = runs["whole"], runs["never cooled"], runs["a heavy prior"]
print("whole: relaxed and argmax agree to 0.5 dB:",
      abs(whole["relaxed"] - whole["argmax"]) < 0.5)  # fmt: skip
gaps = [run["relaxed"] - run["argmax"] for run in (whole, warm)]
print("never cooled: relaxed draws flatter it more:", gaps[1] > gaps[0])
print("a heavy prior costs more than 1 dB:", heavy["argmax"] < whole["argmax"] - 1)
print("and uses fewer codes:", heavy["used"] < whole["used"])

# %% [markdown]
# <details><summary>Answer</summary>
#
# The one that is never cooled: it is measured by mixtures while it trains, and used
# with codes. Does it lose by that? Not here: in a run of 110 steps it comes out well by
# its codes, too. The paper cools in the first twentieth of a long run, to close just
# this gap between what is measured and what is used (sec. 2.1).
#
# </details>
#
# ## Exercises
#
# > **Exercise 1 · Several at once** — difficulty 2 of 3, about 8 minutes. Why it
# > matters: candidates for a place should differ from one another, and the same trick
# > gives them all in one go. Write `draw_several(logits, k)`: for logits (N, K), k
# > *different* codes each, (N, k) int64, distributed as if drawn one after the other
# > from softmax(logits), each time among those still left.


# %% tags=["exercise"]
def draw_several(logits: Tensor, k: int) -> Tensor:
    """(N, K) → (N, k) int64, no code twice in a row."""
    ...


# %%
from utils.exercises import dvae as exercises

exercises.check_draw_several(draw_several)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Think of the clocks. The first one rings; the others go on running. Who is second?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def draw_several(logits, k):
#     return (logits + gumbel_noise(logits)).topk(k, -1).indices
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · What a code tells** — difficulty 3 of 3, about 10 minutes. Why it
# > matters: an encoder that is sure of *the same* code everywhere has a large KL and
# > says nothing. What a code tells is how far the distribution of a place differs from
# > the *average* one, not from the uniform one (the *mutual information*). Write
# > `information(logits)`: for N places, logits (N, K), the mean over places of KL(q ‖
# > q̄) in **bits**, one number, where q̄ is the mean of the N distributions q.


# %% tags=["exercise"]
def information(logits: Tensor) -> Tensor:
    """(N, K) → a scalar in [0, log₂ K]."""
    ...


# %%
exercises.check_information(information)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Average the *shares*, not the logits. Then Σ q·(ln q − ln q̄) for each place, and 1
# bit is ln 2 nats.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def information(logits):
#     log_q = logits.log_softmax(-1)
#     average = log_q.exp().mean(0)
#     divergence = (log_q.exp() * (log_q - average.log())).sum(-1)  # (N,)
#     return divergence.mean() / math.log(2)
# ```
#
# </details>

# %% [markdown]
# > **Exercise 3 · Dice for colours** — difficulty 2 of 3, about 10 minutes. Why it
# > matters: we threw b away. With it one can *draw* a colour instead of taking the
# > median, and a gradient still passes, since this is a reparameterisation, too. Write
# > `draw_colours(mu, log_b, u)`, all of one shape, u uniform in (0, 1): colours in [0,
# > 1], such that u = 0.5 gives the median and a share u of all draws lies below the
# > answer. For a Laplace distribution that point is μ − b·s·ln(1 − 2|u − ½|), with s
# > the sign of u − ½.


# %% tags=["exercise"]
def draw_colours(mu: Tensor, log_b: Tensor, u: Tensor) -> Tensor:
    """Three tensors of one shape → colours in [0, 1]."""
    ...


# %%
exercises.check_draw_colours(draw_colours)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The formula gives a logit. From there to a colour are the two steps of `decode`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def draw_colours(mu, log_b, u):
#     away = u - 0.5
#     logit = mu - log_b.exp() * away.sign() * (-2 * away.abs()).log1p()
#     return unmap_pixels(logit.sigmoid())
# ```
#
# </details>

# %% [markdown]
# > **Exercise 4 · How far a code sees** — difficulty 2 of 3, about 8 minutes. Why it
# > matters: it settles the quarrel about patches. Write `receptive_field(layers)`: for
# > layers in order, each a pair (kernel, stride), how many pixels in a row one place of
# > the output sees. One 3×3 convolution of stride 1 sees 3, two see 5; after a stride
# > of 2, every step aside is 2 pixels wide.


# %% tags=["exercise"]
def receptive_field(layers: list[tuple[int, int]]) -> int:
    """Pixels along one side that one place of the output depends on."""
    ...


# %%
exercises.check_receptive_field(receptive_field)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Keep two numbers: the size so far, from 1, and the width of a step, from 1. A layer
# adds (kernel − 1) steps, and *then* its stride makes the steps wider.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def receptive_field(layers):
#     size, step = 1, 1
#     for kernel, stride in layers:
#         size += (kernel - 1) * step
#         step *= stride
#     return size
# ```
#
# </details>

# %% [markdown]
# ## Myth check
#
# **"The dVAE cuts a picture into 32×32 patches and encodes each."** It is a CNN whose
# receptive fields overlap; 32×32 is the grid that comes out (openai/DALL-E,
# `dall_e/encoder.py`). See *What one code sees*: 121 places moved with one pixel,
# against 1 of patches.
#
# **"The posterior of the dVAE is uniform."** The *prior* is. The posterior q is the
# softmax of the encoder's logits, and in the heart above its likeliest code has over
# nine tenths at some place. Were q uniform, the codes would say nothing: that is the
# run with the heavy prior.
#
# **"Reparameterisation is impossible for discrete codes, so they use Gumbel-softmax."**
# The paper says that *the* reparameterisation gradient cannot be used, which means the
# ordinary one. Gumbel-softmax is a reparameterisation as well, a relaxed one: noise
# first, then a smooth formula.
#
# **"The temperature makes draws more or less random."** In sampling from a language
# model it does. Here it does not change who wins, only how much the losers keep: the
# triangles above had the same winners at each τ.
#
# **"DALL·E trains through hard codes."** Relaxed in both passes; hard only in use.
#
# **"A relaxed draw costs what the KL says."** The KL is that of the categorical q, also
# while the decoder gets mixtures. The author says so: they "pretend" (openai/DALL-E,
# issue 26).
#
# ## Differs from the paper
#
# | | Ramesh et al. 2021 | here | why |
# |---|---|---|---|
# | grid, codes | 32×32 of 8,192, 256 px | 16×16 of 1,024, 64 px | small pictures |
# | networks | 98 M parameters | those of lesson 05, 1 M | speed |
# | input | pixels in [0.1, 0.9] | in [−1, 1] | as lesson 05 |
# | logits | a convolution to 8,192 maps | closeness to the codes | it learns faster |
# | β; weight of a nat | 6.6; 0.034 | 0.5; 0.010 | not tuned |
# | τ | 1 to 1/16 in 5 % of the run | in a larger share | a short run |
# | floor of ln b | none | −1 | our page is pure white |
# | steps, batch | 3,000,000 of 512 | see the card | a laptop |
# | optimizer | AdamW | AdamW; Muon for hidden matrices | speed |
#
# A well-known DALL·E in PyTorch (lucidrains/DALLE-pytorch) differs more, and people who
# train with it should know: its temperature stops at 0.5, where mixtures are not draws
# yet, and its decay compounds (`train_vae.py` multiplies the *last* temperature by
# exp(−rate·step)); its KL weight is 0; it takes the squared error instead of the
# logit-Laplace; and its KL is a sum over the batch. What compounding does:

# %%
tau, wanted, rate = 1.0, 1.0, 1e-6
for step in range(0, 3001, 100):
    tau, wanted = tau * math.exp(-rate * step), math.exp(-rate * step)
print(f"after 3,000 steps: meant {wanted:.3f}, compounded {tau:.3f}")

# %% [markdown]
# ## Where this goes next
#
# VQ-VAE and dVAE both ask for the right colour of each pixel. At 16×16 codes that goes
# well. **Lesson 07** leaves a quarter of them, where it does not, and asks for
# something else. **Lesson 08** writes such codes behind a sentence, as DALL·E does.
#
# ## Read more
#
# - Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, sec. 2.1 and app. A;
#   openai/DALL-E, `dall_e/encoder.py`, `decoder.py`, `utils.py`, and its author's
#   answers in issues 1, 8 and 26.
# - Jang, Gu, Poole 2017, *Categorical Reparameterization with Gumbel-Softmax*;
#   Maddison, Mnih, Teh 2017, *The Concrete Distribution*: the same idea in the same
#   month.
# - Gumbel 1954, *Statistical Theory of Extreme Values*.
# - Williams 1992 (REINFORCE): slopes without a relaxation.
# - Bowman et al. 2016, *Generating Sentences from a Continuous Space*: a KL weight that
#   grows.
#
# **Glossary** · 离散变分自编码器 discrete VAE · 类别分布 categorical distribution ·
# Gumbel 噪声 Gumbel noise · 温度 temperature · 退火 annealing · 松弛 relaxation ·
# 独热 one-hot · 直通 straight-through · 均匀先验 uniform prior · 后验 posterior ·
# 证据下界 evidence lower bound · 熵 entropy · 感受野 receptive field
