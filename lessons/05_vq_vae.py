# ---
# jupyter:
#   brick: vq_vae
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · VAE to VQ-VAE: codebooks
#
# ![A picture goes through an encoder to a grid of vectors; each vector is replaced by
# the nearest of a codebook; the grid of code numbers is all that the decoder
# gets](../assets/figures/05_vq_vae.svg)
#
# A sentence is a row of symbols from a list. A picture of this course is 12,288
# numbers. **Can a picture be written as a short row of symbols, too, and who makes the
# list?** If so, whatever writes sentences can write pictures: that is lesson 08.

# %%
import io
import math

from utils import checkpoints, costs, data, device, pictures, plots, training, widgets

train = data.load_emoji("train").where(skin_tone="none")
unseen = data.load_emoji("unseen").where(skin_tone="none")
print(f"{len(train)} pictures to learn from, {len(unseen)} kept aside")

# %% [markdown]
# What the bricks of this lesson are made of:

# %% tags=["brick"]
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.given import takes

# %% [markdown]
# ## A toy: a palette is a codebook
#
# Four shades of grey, and two we may keep. Each shade takes the nearer one; then each
# of the two moves to the mean of those that took it. Do it by hand first.

# %%
shades, palette = [0.1, 0.2, 0.8, 1.0], [0.4, 0.5]


def nearest(value: float, codes: list[float]) -> int:
    distances = [abs(value - code) for code in codes]
    return distances.index(min(distances))


for _ in range(3):
    chosen = [nearest(shade, palette) for shade in shades]
    print(f"palette {palette}, chosen {chosen}")
    for code in range(2):
        mine = [s for s, c in zip(shades, chosen, strict=True) if c == code]
        palette[code] = round(sum(mine) / len(mine), 2)

# %% [markdown]
# That is *k-means*, and `palette` is a **codebook**. The row `[0, 0, 1, 1]` says which
# **code** each shade became: two symbols, so one bit each, where a float takes 32. With
# K codes a symbol costs log₂ K bits.
#
# The same with the colours of a picture: every pixel is a point with three coordinates.


# %%
def palette_of(pixels: Tensor, size: int, turns: int = 8) -> tuple[Tensor, Tensor]:
    """k-means: pixels (N, 3) → (codes (size, 3), the nearest for each pixel (N,))."""
    order = torch.randperm(len(pixels), generator=device.generator(0))
    codes = pixels[order[:size]].clone()
    for _ in range(turns):
        chosen = torch.cdist(pixels, codes).argmin(1)
        for code in range(size):
            if (chosen == code).any():
                codes[code] = pixels[chosen == code].mean(0)
    return codes, chosen


rainbow = train.where(label_en="rainbow", style="fluent").pictures[0].float() / 255
pixels = rainbow.flatten(1).T  # (4096, 3)
versions, captions = [rainbow], ["original"]
print("24 bits a pixel:", 64 * 64 * 3, "bytes")
for bits in (1, 2, 4):
    codes, chosen = palette_of(pixels, 2**bits)
    versions.append(codes[chosen].T.view(3, 64, 64))
    captions.append(f"{2**bits} colours")
    print(f"{2**bits} colours, {bits} bits a pixel:", 64 * 64 * bits // 8, "bytes")
alt = "A rainbow with 2, 4, 16 colours"
plots.grid(torch.stack(versions), captions, alt=alt, columns=4, size=64)

# %% [markdown]
# A palette writes each pixel by itself. Neighbours are alike, so most of those symbols
# say again what the one before said. Better: let a network turn each *patch* into a
# vector, and keep a palette **of such vectors**. First the network.
#
# ## An autoencoder
#
# Two networks, one behind the other: an *encoder* makes a picture small, a *decoder*
# makes the small thing a picture again, and both learn from the difference. What is in
# between is called the **latents**. Their block is a residual block as in lesson 01.

# %% tags=["brick"]
class ConvBlock(nn.Module):
    """x + two 3×3 convolutions of x, each after GroupNorm and SiLU: the same shape.

    (B, width, H, W). The second convolution starts at 0, so that a new block changes
    nothing. He et al. 2016 (pre-activation); GroupNorm: Wu & He 2018.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(16, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(16, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        change = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(change)))

# %% [markdown]
# *GroupNorm* averages over a group of channels of one picture, so that pictures of a
# batch do not mix, as they do in BatchNorm. *SiLU* is x·σ(x), a smooth ReLU.
#
# A convolution at the full 64×64 costs most and finds least: one pixel knows little. So
# the first layer takes every 4×4 pixels as 48 channels of one place. That is
# *pixel-unshuffle*; its way back is *pixel-shuffle*. Nothing is lost on the way:

# %%
small = torch.arange(16.0).view(1, 1, 4, 4)
print("4×4 pixels:", small[0, 0].int().tolist())
folded = F.pixel_unshuffle(small, 2)  # (1, 4, 2, 2)
print("4 channels of 2×2:", folded[0].int().tolist())
print("and back:", torch.equal(F.pixel_shuffle(folded, 2), small))

# %% tags=["brick"]
class Encoder(nn.Module):
    """Pictures (B, 3, S, S) in [0, 1] → latents (B, latent, S/factor, S/factor).

    factor: 4 or 8. Every 4×4 pixels become 48 channels at once (pixel-unshuffle), for
    convolutions on the full picture cost most and give least.
    """

    def __init__(self, factor: int, width: int, latent: int, depth: int = 2):
        super().__init__()
        if factor not in (4, 8):
            raise ValueError(f"the factor is {factor}; choose 4 or 8")
        layers = [nn.PixelUnshuffle(4), nn.Conv2d(48, width, 3, padding=1)]
        layers += [ConvBlock(width) for _ in range(depth)]
        if factor == 8:
            layers += [nn.Conv2d(width, 2 * width, 2, stride=2)]
            width = 2 * width
            layers += [ConvBlock(width) for _ in range(depth)]
        layers += [nn.GroupNorm(16, width), nn.SiLU(), nn.Conv2d(width, latent, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        # channels last is the memory order in which convolutions run fastest
        x = (2 * pictures - 1).contiguous(memory_format=torch.channels_last)
        return self.layers(x)


class Decoder(nn.Module):
    """Latents (B, latent, h, w) → maps (B, channels, factor·h, factor·w).

    The encoder's way back, with pixel-shuffle; nothing bounds the output.
    """

    def __init__(
        self, factor: int, width: int, latent: int, channels: int = 3, depth: int = 3
    ):
        super().__init__()
        if factor not in (4, 8):
            raise ValueError(f"the factor is {factor}; choose 4 or 8")
        layers = []
        if factor == 8:
            layers += [nn.Conv2d(latent, 2 * width, 3, padding=1)]
            layers += [ConvBlock(2 * width) for _ in range(depth)]
            layers += [nn.Conv2d(2 * width, 4 * width, 1), nn.PixelShuffle(2)]
        else:
            layers += [nn.Conv2d(latent, width, 3, padding=1)]
        layers += [ConvBlock(width) for _ in range(depth)]
        layers += [nn.GroupNorm(16, width), nn.SiLU()]
        layers += [nn.Conv2d(width, 4 * 32, 3, padding=1), nn.PixelShuffle(2)]
        layers += [ConvBlock(32), nn.GroupNorm(16, 32), nn.SiLU()]
        layers += [nn.Conv2d(32, 4 * channels, 3, padding=1), nn.PixelShuffle(2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        x = latents.contiguous(memory_format=torch.channels_last)
        return self.layers(x)

# %% [markdown]
# How near is a reconstruction? The usual measure is the **peak signal-to-noise ratio**,
# the mean squared error on a scale of decibels:
#
# $$\mathrm{PSNR} = 10 \log_{10} \frac{1}{\frac{1}{n}\sum_i (x_i - \hat x_i)^2}$$
#
# An error of 0.1 in every number is 20 dB, of 0.01 is 40 dB. More is better.

# %% tags=["brick", "blank"]
@takes(pictures="(..., H, W)", reconstructions="(..., H, W)")
def psnr(pictures: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB: (B, 3, H, W) twice → (B,).

    10·log₁₀(1 / mean squared error), for values in [0, 1].
    """
    error = (pictures - reconstructions).square().flatten(1).mean(1)
    return -10 * error.log10()

# %%
grey = torch.full((1, 3, 8, 8), 0.5)
print("off by 0.1 everywhere:", psnr(grey, grey + 0.1).round(decimals=2).tolist())
print("off by 0.01 everywhere:", psnr(grey, grey + 0.01).round(decimals=2).tolist())

# %% [markdown]
# To see the idea quickly, the next two networks are small: linear layers on pictures of
# 16×16, and a whole picture goes through **32 numbers**. `latents` gives two rows of
# them, since the second network needs two.

# %%
SIZE = 32  # of the latents of one picture


class Bottleneck(nn.Module):
    """Pictures (B, 3, 16, 16) → two rows of SIZE numbers → pictures."""

    def __init__(self, width: int = 512):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 16 * 16, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2 * SIZE),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(SIZE, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * 16 * 16),
        )  # fmt: skip

    def latents(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(2 * pictures - 1).float().chunk(2, 1)

    def draw(self, z: Tensor) -> Tensor:
        return self.decoder(z).float().view(-1, 3, 16, 16) / 2 + 0.5


def shrunk(pairs: data.Pairs, size: int) -> Tensor:
    """The pictures at another size, float in [0, 1]."""
    return F.interpolate(pairs.pictures.float() / 255, (size, size), mode="area")


tiny_train, tiny_unseen = shrunk(train, 16), shrunk(unseen, 16)


def some(pictures: Tensor, step: int, size: int = 32) -> Tensor:
    """The batch of a step."""
    rows = torch.randint(len(pictures), (size,), generator=device.generator(0, step))
    return pictures[rows].to(device.pick())


# %%
def fit_bottleneck(loss, name: str) -> Bottleneck:
    """A new Bottleneck, trained by loss(model, pictures); same start, same batches."""
    device.seed(0)
    model = Bottleneck().to(device.pick())

    def of_step(step: int) -> Tensor:
        return loss(model, some(tiny_train, step, 128))

    training.fit(model, of_step, 500, weight_decay=0.01, name=name)
    return model


def squared_error(drawn: Tensor, pictures: Tensor) -> Tensor:
    """Summed over a picture's numbers, averaged over the batch."""
    return (drawn - pictures).square().flatten(1).sum(1).mean()


def plain(model: Bottleneck, pictures: Tensor) -> Tensor:
    mean, _ = model.latents(pictures)
    return squared_error(model.draw(mean), pictures)


autoencoder = fit_bottleneck(plain, "an autoencoder")

# %%
SHOWN = ["brown heart", "farmer", "red circle"]
shown = [i for i in range(len(unseen)) if unseen.table["style"][i] == "fluent"]
shown = [i for i in shown if unseen.table["label_en"][i] in SHOWN]
shown += [i for i in range(0, len(unseen), 60) if i not in shown][: 4 - len(shown)]


@torch.no_grad()
def rebuilt(model: Bottleneck, pictures: Tensor) -> Tensor:
    drawn = model.draw(model.latents(pictures.to(device.pick()))[0])
    return drawn.clamp(0, 1).cpu()


originals = tiny_unseen[shown]
drawn = rebuilt(autoencoder, originals)
plots.grid(
    torch.cat([originals, drawn]),
    ["original"] * 4 + ["32 numbers"] * 4,
    alt="Four unseen pictures, and what an autoencoder makes of each from 32 numbers",
    columns=4,
    size=64,
)
mean_picture = tiny_train.mean(0, keepdim=True).expand(len(tiny_unseen), -1, -1, -1)
ours = psnr(tiny_unseen, rebuilt(autoencoder, tiny_unseen)).mean()
trivial = psnr(tiny_unseen, mean_picture).mean()
print("nearer than the mean picture, by more than 2 dB:", bool(ours > trivial + 2))

# %% [markdown]
# Blurred, but from 32 numbers, for pictures it never saw. Now the other direction.
# **Can it draw something new?** Give the decoder 32 random numbers.
#
# **Predict first.** What will four rows of random numbers look like?

# %%
noise = torch.randn(4, SIZE, generator=device.generator(3))


@torch.no_grad()
def drawn_from(model: Bottleneck, z: Tensor) -> Tensor:
    return model.draw(z.to(device.pick())).clamp(0, 1).cpu()


@torch.no_grad()
def all_latents(model: Bottleneck) -> Tensor:
    return model.latents(tiny_train.to(device.pick()))[0].cpu()


found = all_latents(autoencoder)
spread = found.std(0).mean().item()
print("its latents are spread as the noise, to a fifth:", abs(spread - 1) < 0.2)
fitted = found.mean(0) + noise * found.std(0)  # the same noise, moved and stretched
plots.grid(
    torch.cat([drawn_from(autoencoder, noise), drawn_from(autoencoder, fitted)]),
    ["standard noise"] * 4 + ["noise, fitted"] * 4,
    alt="An autoencoder draws shapes on grey from noise, and shapes that are nearly "
    "things from noise fitted to its latents",
    columns=4,
    size=64,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Shapes on a page that is grey and not white: the latents of real pictures lie
# elsewhere than the noise, and the decoder guesses. Fitted to their mean and spread,
# number by number, the noise gives a white page and something that is nearly a thing.
# Nobody asked the encoder to fill the space in between: it put pictures wherever the
# error was small.
#
# </details>
#
# ## The variational autoencoder
#
# Kingma and Welling (2014) ask for it. The encoder gives a mean μ **and a spread σ**
# for each number, the decoder gets a random draw from there, and a second term in the
# loss pulls every such cloud towards the standard normal, the **prior**:
#
# $$L = \underbrace{\tfrac{1}{2s^2}\lVert x - \hat x\rVert^2}_{\text{reconstruction}}
# + \underbrace{D_{KL}\big(\mathcal N(\mu, \sigma^2)\,\Vert\,\mathcal N(0, 1)\big)}_{
# \text{prior}}$$
#
# A draw has no gradient. **The reparameterisation trick** moves the dice out of the
# way: draw ε from the standard normal, and compute z = μ + σ·ε. Now z is a formula of μ
# and σ: its slopes are 1 and ε.


# %%
def draw_latents(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """z = μ + σ·ε. The logarithm of σ² may be any number, so a network can give it."""
    return mean + (log_variance / 2).exp() * noise


mean = torch.tensor([1.0, -2.0], requires_grad=True)
log_variance = torch.tensor([0.0, math.log(4.0)], requires_grad=True)
epsilon = torch.tensor([0.5, -1.0])
z = draw_latents(mean, log_variance, epsilon)
z.sum().backward()
print("z:", z.tolist())
print("slopes for the mean:", mean.grad.tolist())
sigma = (log_variance.detach() / 2).exp()
print("slopes for σ:", (2 * log_variance.grad / sigma).tolist())  # chain rule
(lost,) = torch.autograd.grad(torch.normal(mean, sigma).sum(), mean)
print("slopes for the mean through torch.normal(μ, σ):", lost.tolist())

# %% [markdown]
# The second term has a closed form, summed over the numbers of one picture (Kingma &
# Welling 2014, app. B):
#
# $$D_{KL} = \tfrac12 \sum_i \big(\mu_i^2 + \sigma_i^2 - 1 - \log \sigma_i^2\big)$$


# %%
def kl_to_standard(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) in nats: (B, d) twice → (B,)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2


mean = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, -2.0]])
log_variance = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, math.log(4.0)]])
ours = kl_to_standard(mean, log_variance)
print("ours:", [round(nats, 4) for nats in ours.tolist()])
normal = torch.distributions.Normal
theirs = torch.distributions.kl_divergence(
    normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)
)
assert torch.allclose(ours, theirs.sum(1), atol=1e-6)
dice = torch.randn(200_000, 2, generator=device.generator(0))
z = draw_latents(mean[2], log_variance[2], dice)
cloud = normal(mean[2], (log_variance[2] / 2).exp())
counted = (cloud.log_prob(z) - normal(0.0, 1.0).log_prob(z)).sum(1).mean()
print("counted with 200,000 draws, within 0.02:", bool(abs(counted - ours[2]) < 0.02))

# %% [markdown]
# The first row by hand: a cloud that is the prior costs nothing. Now train: the same
# network, the same batches, one thing changed. `s` says how exact a picture must be;
# with 0.2, an error of 0.2 in one number costs half a nat.


# %%
def variational(model: Bottleneck, pictures: Tensor, s: float = 0.2) -> Tensor:
    mean, log_variance = model.latents(pictures)
    noise = torch.randn_like(mean)
    drawn = model.draw(draw_latents(mean, log_variance, noise))
    reconstruction = squared_error(drawn, pictures) / (2 * s**2)
    return reconstruction + kl_to_standard(mean, log_variance).mean()


vae = fit_bottleneck(variational, "a variational autoencoder")

# %%
rows = [drawn_from(autoencoder, noise), drawn_from(vae, noise), rebuilt(vae, originals)]
plots.grid(
    torch.cat(rows),
    ["AE, noise"] * 4 + ["VAE, noise"] * 4 + ["VAE, rebuilt"] * 4,
    alt="From the same noise the autoencoder draws shapes on grey, the VAE something "
    "between a face and a thing, on white",
    columns=4,
    size=64,
)


@torch.no_grad()
def total_spread(model: Bottleneck) -> float:
    """The mean standard deviation of a number of z, the clouds' own included."""
    mean, log_variance = model.latents(tiny_train.to(device.pick()))
    return (mean.var(0) + log_variance.exp().mean(0)).sqrt().mean().item()


def to_real(drawn: Tensor) -> float:
    """The mean squared error to the nearest training picture, averaged over `drawn`."""
    distances = torch.cdist(drawn.flatten(1), tiny_train.flatten(1))
    return distances.min(1).values.square().mean().item() / drawn[0].numel()


print("VAE: z is spread as the noise, to a fifth:", abs(total_spread(vae) - 1) < 0.2)
dice = torch.randn(64, SIZE, generator=device.generator(4))
far, near = (to_real(drawn_from(model, dice)) for model in (autoencoder, vae))
print("what it draws is nearer to real pictures, by a quarter:", near < 0.75 * far)
both = (autoencoder, vae)
sharp, soft = (psnr(tiny_unseen, rebuilt(m, tiny_unseen)).mean() for m in both)
print("its reconstructions are worse, by less than 2 dB:", bool(0 < sharp - soft < 2))

# %% [markdown]
# That is what the prior buys: the decoder has seen something at every place where noise
# may land. It pays with sharpness, for a cloud of places has to give one picture.
#
# ## Why discrete?
#
# The VAE's noise says nothing: which 32 numbers are a fox? A model that writes has to
# learn the *distribution* of latents, and for that there is a machine that works very
# well, the one that writes text: it gives a probability to each entry of a list. It
# needs a list. And a list counts in bits:

# %%
print("32 floats:", 32 * 32, "bits")
print("8×8 codes of 1,024:", 8 * 8 * 10, "bits")
print("16×16 codes of 1,024:", 16 * 16 * 10, "bits =", 16 * 16 * 10 // 8, "bytes")
print("the picture:", 64 * 64 * 3 * 8, "bits")

# %% [markdown]
# So: no cloud for a whole picture, but one vector for each place of a grid, and each is
# replaced by the nearest of K vectors (van den Oord et al. 2017). The grid of code
# numbers is the picture's text.
#
# ### Nearest code
#
# The beginner's version, eq. 1 of the paper:


# %%
def nearest_by_loops(z: Tensor, codebook: Tensor) -> Tensor:
    found = []
    for vector in z:
        distances = [(vector - code).square().sum().item() for code in codebook]
        found.append(distances.index(min(distances)))
    return torch.tensor(found)


# %% [markdown]
# The brick multiplies out the square: ‖z−e‖² = ‖z‖² − 2 z·e + ‖e‖². Now all distances
# are one matrix product.

# %% tags=["brick", "blank"]
def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the closest codebook vector for every latent vector.

    z: (..., d) latents; codebook: (K, d). Returns (...) int64 in [0, K).
    Raises ValueError if the widths differ. van den Oord et al. 2017, eq. 1.
    """
    if z.shape[-1] != codebook.shape[-1]:
        raise ValueError(
            f"latents are {z.shape[-1]} wide, codes {codebook.shape[-1]}; "
            "give both the same width"
        )
    # ‖z−e‖² = ‖z‖² − 2z·e + ‖e‖²; ‖z‖² is the same for every code, so it cannot
    # change the winner
    score = z @ codebook.T - codebook.square().sum(-1) / 2  # (..., K)
    return score.argmax(-1)  # (...)


# %%
generator = device.generator(0)
z, codebook = (torch.randn(n, 16, generator=generator) for n in (4000, 512))
by_loops = nearest_by_loops(z[:40], codebook)
print("as the loops say:", torch.equal(nearest_code(z[:40], codebook), by_loops))
by_cdist = torch.cdist(z, codebook).argmin(1)
print("as torch.cdist says:", torch.equal(nearest_code(z, codebook), by_cdist))
gain = costs.speedup(
    lambda: nearest_by_loops(z[:20], codebook), lambda: nearest_code(z[:20], codebook)
)
print("more than 50 times faster:", gain > 50)

# %% [markdown]
# ### A step without a slope
#
# An index is a whole number. Move z a little, and nothing happens; move it on, and the
# index jumps. The slope is 0 or does not exist, so an encoder in front of it would
# learn nothing. **The straight-through estimator** (Bengio et al. 2013) pretends: on
# the way forward the code, on the way back as if z had gone through unchanged.


# %%
def straight_through(z: Tensor, chosen: Tensor) -> Tensor:
    """Forward: the code. Backward: the gradient goes to z as it is. sg is .detach()."""
    return z + (chosen - z).detach()


codes = torch.tensor([[0.0], [1.0]])
z = torch.tensor([[0.2], [0.7]], requires_grad=True)
chosen = codes[nearest_code(z, codes)]
passed = straight_through(z, chosen)
(3 * passed).sum().backward()
print("forward:", passed.flatten().tolist(), "backward:", z.grad.flatten().tolist())
print("without the trick the codes carry a gradient to z:", chosen.requires_grad)

# %% [markdown]
# ### Three terms, and who moves
#
# The trick leaves the codes themselves without a gradient: nothing goes through them.
# So the paper adds two terms (eq. 3), which differ only in where the gradient is
# stopped (sg):
#
# $$L = \lVert x - \hat x\rVert^2
# + \underbrace{\lVert \mathrm{sg}[z] - e\rVert^2}_{\text{codebook: } e \text{ moves}}
# + \beta\,\underbrace{\lVert z - \mathrm{sg}[e]\rVert^2}_{\text{commitment: } z
# \text{ moves}}$$
#
# **Predict first.** z = 0.6 has chosen e = 1.0, and β is 0.25. In which direction does
# each move, and which one faster?


# %%
def code_terms(z: Tensor, e: Tensor, beta: float = 0.25) -> Tensor:
    codebook, commitment = (z.detach() - e).square(), (z - e.detach()).square()
    return (codebook + beta * commitment).sum()


def misplaced(z: Tensor, e: Tensor, beta: float = 0.25) -> Tensor:
    """The same number, with β on the other term."""
    codebook, commitment = (z.detach() - e).square(), (z - e.detach()).square()
    return (beta * codebook + commitment).sum()


for terms in (code_terms, misplaced):
    z, e = torch.tensor(0.6, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    value = terms(z, e)
    value.backward()
    print(f"{terms.__name__}: value {value:.2f}, z {z.grad:+.2f}, e {e.grad:+.2f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# They go towards each other: down the slope, z up and e down. The code is four times
# faster: it should follow the encoder, not the encoder the code.
#
# </details>
#
# The second line is a real mistake. It stood for years in the code of VQGAN
# (CompVis/taming-transformers, issues 46 and 57) and stands as `legacy=True` in
# libraries that must stay as they were. **The value is the same**, so no test of values
# finds it; only the gradients do.
#
# ### A codebook that needs no gradient
#
# The codebook term says: go to the mean of those who chose you. k-means goes there at
# once. In between lies a **running mean** over batches (van den Oord et al. 2017, app.
# A.1), with n how many latents chose a code and Σz their sum:
#
# $$N \leftarrow \gamma N + (1-\gamma)\, n \qquad
# m \leftarrow \gamma m + (1-\gamma) \textstyle\sum z \qquad
# e = m / N$$
#
# Three details decide whether it works.
#
# - **Debias.** Both means start at 0, so at first they are too small, by 1 − γᵗ after t
#   steps. In m/N that cancels; where N itself is read, as below, it does not.
# - **Smooth.** A code that nobody chose has N = 0. *Laplace smoothing* adds a little ε
#   to every count and keeps their sum.
# - **Revive.** A code that nobody chooses does not move, so nobody will choose it: it
#   is dead. Put it on a random latent of the batch.
#
# The commitment term remains, for the encoder.

# %% tags=["brick", "blank"]
class Codebook(nn.Module):
    """K vectors; every latent is replaced by the nearest, and gradients pass through.

    (..., width) → the codes' vectors (..., width), their indices (...), and the
    commitment loss, a scalar: the mean of (z − sg[e])². In training each code moves to
    the running mean of the latents that chose it, and a code that nobody chooses is
    put on a random latent of the batch. van den Oord et al. 2017, eq. 1–3 and app. A.1;
    the averages are debiased as in sonnet.nets.VectorQuantizerEMA.
    """

    def __init__(
        self, codes: int, width: int, decay: float = 0.98, dead: float = 0.05
    ):
        super().__init__()
        self.decay, self.dead = decay, dead
        self.register_buffer("vectors", torch.randn(codes, width))  # e
        self.register_buffer("counts", torch.zeros(codes))  # N, a running mean
        self.register_buffer("sums", torch.zeros(codes, width))  # m, a running mean
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()  # bfloat16 would mistake near codes for one another
            indices = nearest_code(z, self.vectors)
            chosen = self.vectors[indices]
            if self.training:
                self.update(z.detach().flatten(0, -2), indices.flatten())
            commitment = F.mse_loss(z, chosen)
            # sg: forward the code, backward as if nothing had happened
            return z + (chosen - z).detach(), indices, commitment

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor) -> None:
        """Move the codes. z: (N, width); indices: (N,)."""
        counts = torch.zeros_like(self.counts)
        counts.index_add_(0, indices, torch.ones_like(indices, dtype=counts.dtype))
        sums = torch.zeros_like(self.sums).index_add_(0, indices, z)
        self.updates += 1
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        share = 1 - self.decay**self.updates  # a mean that started at 0 is too small
        sizes = smoothed(self.counts / share).unsqueeze(1)  # (K, 1)
        chosen = self.counts.unsqueeze(1) > 0  # the others stay where they are
        self.vectors.copy_(torch.where(chosen, self.sums / share / sizes, self.vectors))
        idle = (self.counts / share < self.dead).nonzero().flatten()
        if len(idle):
            fresh = z[torch.randint(len(z), (len(idle),)).to(z.device)]
            self.vectors[idle], self.sums[idle] = fresh, fresh * share
            self.counts[idle] = share


def smoothed(counts: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Laplace smoothing: no count is 0, and the sum stays. (K,) → (K,)."""
    total = counts.sum()
    return (counts + epsilon) / (total + len(counts) * epsilon) * total

# %% [markdown]
# Check it against the formulas, in plain numbers: one code at a time, three batches.

# %%
device.seed(0)
book = Codebook(4, 2, decay=0.9, dead=0.0).train()
vectors, N, m = book.vectors.tolist(), [0.0] * 4, [[0.0, 0.0] for _ in range(4)]
for step in range(3):
    z = torch.randn(50, 2, generator=device.generator(1, step))
    chosen = [int(i) for i in nearest_code(z, torch.tensor(vectors))]
    book(z)
    for k in range(4):
        mine = [v for v, c in zip(z.tolist(), chosen, strict=True) if c == k]
        N[k] = 0.9 * N[k] + 0.1 * len(mine)
        m[k] = [0.9 * m[k][d] + 0.1 * sum(v[d] for v in mine) for d in range(2)]
        vectors[k] = [m[k][d] / N[k] for d in range(2)]
    same = torch.allclose(book.vectors, torch.tensor(vectors), atol=1e-4)
    print(f"batch {step + 1}: as by hand: {same}")

# %% [markdown]
# ### The model
#
# Encoder, codebook, decoder. One thing is not in the paper of 2017: the latents are
# scaled to the same length, so that they lie on a sphere and none can run away from the
# codes (Yu et al. 2022).

# %% tags=["brick"]
class VQVAE(nn.Module):
    """Pictures ↔ a grid of codes: (B, 3, S, S) ↔ (B, S/factor, S/factor) in [0, codes).

    The latents are scaled to length √latent before the lookup, so that none can run
    away from the codes. van den Oord et al. 2017; the sphere: Yu et al. 2022, sec. 3.2.
    """

    def __init__(self, factor: int, codes: int, width: int = 96, latent: int = 16):
        super().__init__()
        self.config = {"factor": factor, "width": width, "latent": latent}
        self.config["codes"] = codes
        self.factor, self.codes = factor, codes
        self.encoder = Encoder(factor, width, latent)
        self.codebook = Codebook(codes, latent)
        self.decoder = Decoder(factor, width, latent)

    @takes(pictures="pictures")
    def latents(self, pictures: Tensor) -> Tensor:
        """Latents before the lookup, (B, 3, S, S) in [0, 1] → (B, h, w, latent)."""
        check_pictures(pictures, self.factor)
        z = self.encoder(pictures).permute(0, 2, 3, 1).float()
        return F.normalize(z, dim=-1) * z.shape[-1] ** 0.5

    def draw(self, z: Tensor) -> Tensor:
        """Latents or vectors of codes (B, h, w, latent) → pictures, not clamped."""
        return (self.decoder(z.permute(0, 3, 1, 2)).float() + 1) / 2

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction (B, 3, S, S), codes (B, h, w), commitment loss."""
        z, codes, commitment = self.codebook(self.latents(pictures))
        return self.draw(z), codes, commitment

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] → codes (B, h, w)."""
        return nearest_code(self.latents(pictures), self.codebook.vectors)

    @takes(codes="(B, h, w) int64")
    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) → pictures (B, 3, factor·h, factor·w) in [0, 1].

        Raises ValueError for a code that the codebook does not have.
        """
        check_codes(codes, self.codes)
        return self.draw(self.codebook.vectors[codes]).clamp(0, 1)


def check_codes(codes: Tensor, count: int) -> None:
    """Raise ValueError unless these are codes of a codebook with `count` vectors."""
    if codes.numel() and not 0 <= codes.min() <= codes.max() < count:
        bad = codes.min() if codes.min() < 0 else codes.max()
        raise ValueError(
            f"code {bad} is not in the codebook of {count}; "
            f"choose from 0 to {count - 1}"
        )


def check_pictures(pictures: Tensor, factor: int) -> None:
    """Raise ValueError unless `factor` divides both sides of these pictures."""
    if pictures.shape[2] % factor or pictures.shape[3] % factor:
        size = "×".join(map(str, pictures.shape[2:]))
        raise ValueError(f"a side of {size} is no multiple of {factor}; resize first")

# %% [markdown]
# ## It learns
#
# The loss is squared and absolute error, and a little of the commitment. *Muon* makes
# the hidden matrices learn several times faster than AdamW does (Jordan et al. 2024);
# AdamW has the rest. Every parameter gets a role, so that none is forgotten.


# %% tags=["brick"]
def difference(drawn: Tensor, pictures: Tensor) -> Tensor:
    """4 × squared + absolute error, (B, 3, H, W) twice → a scalar.

    The one keeps colours right, the other edges sharp.
    """
    error = drawn - pictures
    return 4 * error.square().mean() + error.abs().mean()


def roles(model: nn.Module) -> dict[str, list[str]]:
    """Names of an autoencoder's parameters by role, see `utils.training.by_role`.

    Edges read or write pixels: the encoder's first layer and the decoder's last.
    """
    names = [name for name, p in model.named_parameters() if p.ndim > 1]
    first = next(name for name in names if name.startswith("encoder."))
    last = next(name for name in reversed(names) if name.startswith("decoder."))
    hidden = [name for name in names if name not in (first, last)]
    return {"matrix": hidden, "edge": [first, last]}


# %% [markdown]
# A small one first, live, on whole pictures: 16×16 codes of a list of 256.


# %%
def optimizer_of(model: nn.Module) -> training.MuonAdamW:
    found = training.by_role(model, roles(model))
    return training.MuonAdamW(found, lr=2e-3, matrix_lr=0.02, weight_decay=0.01)


device.seed(0)
live = VQVAE(factor=4, width=32, codes=256).to(device.pick())
big_train = train.pictures.float() / 255
four = unseen.pictures[shown].float() / 255
STEPS = 100
seen = {}


@torch.no_grad()
def keep(step: int) -> None:
    """Remember four unseen pictures at about 1, at 10 and at 100 % of the steps."""
    if step in (STEPS // 75, STEPS // 10, STEPS):
        live.eval()
        seen[step] = live.decode(live.encode(four.to(device.pick()))).cpu()
        live.train()


def loss(step: int) -> Tensor:
    keep(step)
    batch = some(big_train, step)
    drawn, _, commitment = live(batch)
    return difference(drawn, batch) + 0.025 * commitment


fitted = {"optimizer": optimizer_of(live), "name": "a VQ-VAE"}
losses = training.fit(live, loss, STEPS, **fitted)
keep(STEPS)

# %%
plots.grid(
    torch.cat([four, *seen.values()]),
    ["original"] * 4 + [f"step {s}" for s in seen for _ in range(4)],
    alt="Unseen pictures after 1, 10 and 100 % of the training: from blots to things",
    columns=4,
    size=64,
)
fig, ax = plots.figure(width=6, height=2.4)
plots.curve(ax, losses, colour="code", smooth=5)
ax.set(xlabel="step", ylabel="loss", title="Steep at first, then slow", yscale="log")
plots.show(fig, "The loss falls steeply for thirty steps, then slowly")
quality = [psnr(four, drawn).mean() for drawn in seen.values()]
print("each look is better than the one before:", quality == sorted(quality))
print("the last is above 18 dB:", bool(quality[-1] > 18))

# %% [markdown]
# Now the one that the course ships: the same class, three times as wide, 1,024 codes,
# sixty times as many steps (`make pretrain MODEL=vq_vae`; its card says the rest).
# The recipe looked at it on the way, so you can compare yours with it when you train.

# %%
model = checkpoints.load("vq_vae")
card = checkpoints.card("vq_vae")
looks = {int(step): look for step, look in card["looks"].items()}
print("steps:", card["steps"], "| codes in use on unseen pictures, above 80 %:",
      card["metrics"]["codes_used"] > 80)  # fmt: skip
fig, axes = plots.figure(columns=2, width=9, height=2.6)
axes[0].plot(*zip(*card["losses"], strict=True), color=plots.COLOURS["code"])
axes[0].set(title="The loss that you should see", xlabel="step", yscale="log")
reached = [look["psnr"] for look in looks.values()]
axes[1].plot([*looks], reached, "o-", color=plots.COLOURS["code"])
axes[1].set(title="Unseen pictures, dB", xlabel="step", xscale="log")
plots.show(fig, "The shipped VQ-VAE: its loss and its quality over training")

# %% [markdown]
# What its recipe saw at 1, 10, 30, 60 and 100 % of the run, one row each:
#
# ![Twelve unseen pictures, rebuilt at five moments of the training: blots at 1 %, clear
# shapes from 10 % on, fine lines at the end](../assets/checkpoints/vq_vae.webp)

# %%
@torch.no_grad()
def rebuild(model: VQVAE, pictures: Tensor) -> Tensor:
    parts = (p.to(device.pick()) for p in pictures.split(64))
    return torch.cat([model.decode(model.encode(p)).cpu() for p in parts])


some_unseen = unseen.pictures[::3].float() / 255
drawn = rebuild(model, some_unseen)
ours = psnr(some_unseen, drawn).mean()
device.seed(0)
untrained = VQVAE(**model.config).to(device.pick()).eval()
nothing = psnr(some_unseen, rebuild(untrained, some_unseen)).mean()
mean_picture = big_train.mean(0, keepdim=True).expand_as(some_unseen)
print("above 26 dB on unseen pictures:", bool(ours > 26))
print("untrained, below 10 dB:", bool(nothing < 10))
trivial = psnr(some_unseen, mean_picture).mean()
print("the mean picture, below 14 dB:", bool(trivial < 14))

# %% [markdown]
# ## Counted in bits
#
# 256 codes of 10 bits are 320 bytes. What does a good codec make of 320 bytes? For each
# picture below WebP gets the best quality that stays within them, and 30 bytes more for
# the container around its data; where even its worst does not fit, it takes more.
#
# **Predict first.** Who wins, the network of a laptop or the codec of every browser?


# %%
def webp(picture: Tensor, most: int) -> tuple[Tensor, int]:
    """The best WebP of at most so many bytes, or the smallest: picture and bytes."""
    best = None
    for quality in range(0, 101, 4):
        buffer = io.BytesIO()
        pictures.to_pil(picture).save(buffer, "WEBP", quality=quality, method=6)
        if best and buffer.tell() > most:
            break
        best = buffer
    return pictures.read(best.getvalue()), best.tell()


sample = some_unseen[::4]  # enough to compare, and quick
packed = [webp(picture, 320 + 30) for picture in sample]
theirs = psnr(sample, torch.stack([picture for picture, _ in packed]))
tiny = F.interpolate(sample, (16, 16), mode="area")  # three bytes a pixel
coarse = F.interpolate(tiny, (64, 64), mode="bicubic").clamp(0, 1)
bars = {
    "VQ-VAE, 320 bytes": psnr(sample, rebuild(model, sample)).mean().item(),
    "WebP, 320 bytes where it can": theirs.mean().item(),
    "16×16 pixels, 768 bytes": psnr(sample, coarse).mean().item(),
}
fig, ax = plots.figure(width=7, height=1.8)
plots.bars(ax, bars, "code", "As good as WebP, far better than few pixels", "dB")
plots.show(fig, "PSNR on unseen pictures: VQ-VAE and WebP alike, few pixels far below")
ours, codec, few = bars.values()
print("VQ-VAE and WebP are within 2 dB:", abs(ours - codec) < 2)
print("16×16 pixels are more than 5 dB worse, with more bytes:", few < ours - 5)
over = sum(size > 350 for _, size in packed) / len(packed)
print("WebP kept to its bytes for nine pictures in ten:", over < 0.1)

# %% [markdown]
# <details><summary>Answer</summary>
#
# A draw. That is remarkable, and no victory: WebP knows nothing of emoji, while our
# decoder has seen thousands, and its million weights, 2 MB, are needed to read any of
# its codes.
#
# </details>
#
# What the codes have and WebP's bits have not: every picture is a row of 256 entries
# from **one list**. That is what a model of text can learn, and it is why we are here.
# It also saves bits, as the next part shows.
#
# ## A prior over the codes
#
# To *draw*, we need rows of codes that go together. Three ways to choose them: any code
# is as likely as another; each as often as in training; or each given its neighbours
# above and to the left. For the last, a small convolution that may not look ahead, a
# *PixelCNN* (van den Oord et al. 2016), as in the paper.


# %%
class Masked(nn.Conv2d):
    """A convolution that sees only places before its own, in reading order.

    (B, C, H, W) → the same; with `own`, its own place as well.
    """

    def __init__(self, channels: int, size: int, own: bool):
        super().__init__(channels, channels, size, padding=size // 2)
        middle = size * size // 2
        before = (torch.arange(size * size) < middle + own).view(size, size)
        self.register_buffer("mask", before.float())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Prior(nn.Module):
    """Codes (B, h, w) → logits of each code given those before it, (B, h, w, K)."""

    def __init__(self, codes: int, width: int = 64, depth: int = 4):
        super().__init__()
        self.embed = nn.Embedding(codes, width)
        self.first = Masked(width, 5, own=False)
        self.rest = nn.ModuleList(Masked(width, 3, own=True) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.out = nn.Linear(width, codes)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.first(self.embed(codes).permute(0, 3, 1, 2))
        for norm, layer in zip(self.norms, self.rest, strict=True):
            x = x + layer(F.silu(norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))
        return self.out(F.silu(x).permute(0, 2, 3, 1))


# %% [markdown]
# Does it keep its word? Change one code and see which predictions move.

# %%
device.seed(0)
prior = Prior(model.codes).to(device.pick())
grid = torch.zeros(1, 16, 16, dtype=torch.long, device=device.pick())
changed = grid.clone()
changed[0, 7, 7] = 1
with torch.no_grad():
    moved = (prior(grid) != prior(changed)).any(-1)[0].cpu().flatten()
place = 7 * 16 + 7
print("nothing up to the changed place moves:", not moved[: place + 1].any())
print("the next place does:", bool(moved[place + 1]))

# %%
order = torch.randperm(len(train), generator=device.generator(0))
texts = torch.cat(
    [model.encode(p.to(device.pick())) for p in big_train[order[:1600]].split(64)]
)
heard = model.encode(some_unseen[:96].to(device.pick()))  # codes of unseen pictures


def prior_loss(step: int) -> Tensor:
    batch = some(texts, step, 32)
    return F.cross_entropy(prior(batch).flatten(0, 2).float(), batch.flatten())


losses = training.fit(prior, prior_loss, 80, lr=3e-3, name="a prior")

# %%
counts = torch.bincount(texts.flatten(), minlength=model.codes) + 1.0
frequency = counts.log() - counts.log().logsumexp(0)
with torch.no_grad():
    logits = prior(heard).flatten(0, 2).float()
    given = F.cross_entropy(logits, heard.flatten()).item() / math.log(2)
alone = -frequency[heard].mean().item() / math.log(2)
fig, ax = plots.figure(width=7, height=1.8)
most = math.log2(model.codes)
bits = {"any code": most, "by frequency": alone, "by neighbours": given}
title = "What is left to say once the neighbours are known"
plots.bars(ax, bits, "code", title, "bits")
plots.show(fig, "Bits for a code of an unseen picture: 10, fewer by frequency, fewest "
           "by its neighbours")  # fmt: skip
print("any code:", most, "bits")
print("frequency saves less than the neighbours do:", given < alone < most)
print("the neighbours save more than two bits of ten:", given < 8)
print("so 256 codes take less than 256 bytes:", 32 * given < 256)

# %% [markdown]
# Drawing takes 256 turns: predict, draw one code, put it in, go on.


# %%
@torch.no_grad()
def sample_codes(prior: Prior, pictures: int, generator, temperature: float = 0.9):
    grid = torch.zeros(pictures, 16, 16, dtype=torch.long, device=device.pick())
    for row in range(16):
        for column in range(16):
            upper = grid[:, : row + 1]  # rows below do not matter yet
            logits = prior(upper)[:, row, column].float().cpu() / temperature
            codes = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            grid[:, row, column] = codes[:, 0].to(grid.device)
    return grid


generator = device.generator(5)
uniform = torch.randint(model.codes, (3, 16, 16), generator=generator)
loose = torch.multinomial(frequency.exp().cpu(), 3 * 256, True, generator=generator)
grids = [uniform, loose.view(3, 16, 16), sample_codes(prior, 3, generator).cpu()]
drawn = [model.decode(codes.to(device.pick())).cpu() for codes in grids]
plots.grid(
    torch.cat(drawn),
    ["any"] * 3 + ["frequent"] * 3 + ["prior"] * 3,
    alt="Random codes are confetti, frequent ones confetti on white; the prior draws a "
    "few patches that hold together on clean white",
    columns=3,
    size=64,
)
edges = [(x[..., 1:] - x[..., :-1]).abs().mean().item() for x in drawn]
print("neighbouring pixels differ least with the prior:", edges[2] < min(edges[:2]))

# %% [markdown]
# Patches that hold together on clean white, and not yet a thing: five thin layers see a
# few neighbours. Lesson 07 puts a Transformer in their place, lesson 08 lets it read a
# sentence first.
#
# ## Play: the codebook browser
#
# Choose a picture. Slide **K**: only the K most used codes may be chosen. Then choose a
# place and a **code**, and it is put in there; below stand places in other pictures
# that chose this code. Look for: what do the places of one code have in common? How far
# around its place does a swapped code change the picture?
#
# **Predict first.** Will a code change just its 4×4 pixels?

# %%
usage = torch.bincount(texts.flatten(), minlength=model.codes).cpu()
by_use = usage.argsort(descending=True)
gallery = unseen.where(style="fluent")
gallery_pictures = gallery.pictures[:60].float() / 255
gallery_codes = model.encode(gallery_pictures.to(device.pick())).cpu()


def with_few_codes(picture: Tensor, most: int) -> Tensor:
    """Codes (16, 16) of a picture (3, 64, 64) from the `most` most used ones."""
    z = model.latents(picture.unsqueeze(0).to(device.pick()))[0]
    kept = by_use[:most].to(z.device)
    return kept[nearest_code(z, model.codebook.vectors[kept])].cpu()


def where_used(code: int, most: int = 10) -> list[Tensor]:
    """Patches of 16×16 pixels around places of the gallery that chose a code."""
    found = (gallery_codes == code).nonzero()[:: max(1, int(usage[code]) // 400)][:most]
    padded = F.pad(gallery_pictures, (6, 6, 6, 6), value=1.0)
    return [padded[n, :, 4 * r : 4 * r + 16, 4 * c : 4 * c + 16] for n, r, c in found]


# %%
@torch.no_grad()
def browse(name: str, log_k: int, row: int, column: int, code: int) -> str:
    index = gallery.table["label_en"].index(name)
    picture = gallery.pictures[index].float() / 255
    codes = with_few_codes(picture, 2**log_k)
    swapped = codes.clone()
    swapped[row, column] = code
    both = model.decode(torch.stack([codes, swapped]).to(device.pick())).cpu()
    quality = psnr(picture.unsqueeze(0), both[:1]).item()
    changed = ((both[0] - both[1]).abs().amax(0) > 0.02).sum().item()
    alts = ("original", "rebuilt", "one code swapped")
    images = zip([picture, *both], alts, strict=True)
    shown = "".join(widgets.thumbnail(p, 128, alt) for p, alt in images)
    uses = "".join(widgets.thumbnail(p, 48, "a place") for p in where_used(code))
    return (
        f"<p>{shown}</p><p>K = {2**log_k}: {log_k * 32} bytes, {quality:.1f} dB. Code "
        f"{int(codes[row, column])} at ({row}, {column}) became {code}: {changed} of "
        f"4096 pixels changed.</p><p>Where code {code} is used: {uses or 'nowhere'}</p>"
    )


names = sorted(set(gallery.table["label_en"]))
controls = [
    widgets.choice("picture", names, "brown heart"),
    widgets.slider("log₂ K", 10, 1, 10),
    widgets.slider("row", 7, 0, 15),
    widgets.slider("column", 7, 0, 15),
    widgets.slider("code", int(by_use[1]), 0, model.codes - 1),
]
widgets.live(controls, browse, "A browser of the codebook.")

# %% [markdown]
# <details><summary>Answer</summary>
#
# No: the decoder's convolutions look at neighbours, so the change spreads over a dozen
# pixels on each side and fades. A code is no tile of a mosaic. It is one word of a
# sentence.
#
# </details>
#
# The same as a picture, for fewer and fewer codes:

# %%
heart = gallery.pictures[gallery.table["label_en"].index("brown heart")].float() / 255
grids = torch.stack([with_few_codes(heart, 2**k) for k in (1, 3, 5, 7, 10)])
versions = model.decode(grids.to(device.pick())).cpu()
captions = [f"K = {2**k}, {32 * k} bytes" for k in (1, 3, 5, 7, 10)]
alt = "A heart from 2 codes to 1,024: a blot becomes a heart"
plots.grid(versions, captions, alt=alt)
quality = psnr(heart.expand_as(versions), versions).tolist()
print("with all the codes it is best:", max(quality) == quality[-1])
swapped = grids[-1:].clone()
swapped[0, 7, 7] = by_use[1]
twice = model.decode(swapped.to(device.pick())).cpu()
spread = ((twice[0] - versions[-1]).abs().amax(0) > 0.02).nonzero()
height = int(spread[:, 0].max() - spread[:, 0].min() + 1) if len(spread) else 0
print("one code changes more than its own 4 rows of pixels:", height > 4)

# %% [markdown]
# ## Break it
#
# The same small network on the small pictures, five times: whole; **without the
# stop-gradient** (z + (e − z) without `.detach()` is just e, and no gradient comes
# back); **without commitment**, and without the sphere, which does the same work; and
# with a **codebook started far away**, as it is and with revival switched off.
# Everything else is the same.
#
# **Predict first.** Which of them notices nothing?


# %%
small_train, small_unseen = shrunk(train, 32), shrunk(unseen, 32)


class Broken(VQVAE):
    """A VQVAE with one part taken out."""

    def __init__(self, part: str = "", dead: float = 0.05):
        super().__init__(factor=4, width=32, codes=128)
        self.part = part
        self.codebook.dead = dead
        if "far" in part:
            self.codebook.vectors += 20

    def latents(self, pictures: Tensor) -> Tensor:
        if "commitment" not in self.part:
            return super().latents(pictures)
        return self.encoder(pictures).permute(0, 2, 3, 1).float()  # no sphere

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.latents(pictures)
        passed, codes, commitment = self.codebook(z)
        if self.part == "no stop-gradient":
            passed = self.codebook.vectors[codes]
        return self.draw(passed), codes, commitment


def try_without(part: str, weight: float = 0.025, **changes) -> dict:
    device.seed(0)
    net = Broken(part, **changes).to(device.pick())
    used, distance = [], []

    def loss(step: int) -> Tensor:
        batch = some(small_train, step)
        drawn, codes, commitment = net(batch)
        used.append(len(codes.unique()))
        distance.append(commitment.item())
        return difference(drawn, batch) + weight * commitment

    name = part.strip() or "whole"
    training.fit(net, loss, 80, optimizer=optimizer_of(net), name=name)
    quality = psnr(small_unseen, rebuild(net.eval(), small_unseen)).mean().item()
    return {"used": used, "distance": distance, "psnr": quality}


# %%
runs = {
    "whole": try_without(""),
    "no stop-gradient": try_without("no stop-gradient"),
    "no commitment, no sphere": try_without("no commitment", weight=0.0),
    "far start, revival": try_without("far start"),
    "far start, no revival": try_without("far start ", dead=0.0),
}

# %%
fig, axes = plots.figure(columns=3, width=9, height=2.6)
qualities = {name: result["psnr"] for name, result in runs.items()}
plots.bars(axes[0], qualities, "code", "Unseen pictures", "dB")
shades = ("code", "wrong", "text", "image", "noise")
for (name, result), colour in zip(runs.items(), shades, strict=True):
    plots.curve(axes[1], result["used"], name, colour)
    plots.curve(axes[2], result["distance"], name, colour)
axes[1].set(title="Codes in use, of 128", xlabel="step")
axes[2].set(title="Distance to the codes", xlabel="step", yscale="log")
axes[1].legend(fontsize=6)
plots.show(
    fig,
    "Without the stop-gradient the quality stays low; without commitment the distance "
    "to the codes grows; a codebook that starts far away and is not revived uses one",
)

# %%
whole = runs["whole"]["psnr"]
print("no stop-gradient costs more than 1 dB:",
      runs["no stop-gradient"]["psnr"] < whole - 1)  # fmt: skip
growth = {name: r["distance"][-1] / r["distance"][5] for name, r in runs.items()}
print("no commitment: the distance to the codes more than doubles:",
      growth["no commitment, no sphere"] > 2)  # fmt: skip
print("whole: it does not grow:", growth["whole"] < 1.2)
print("far start: codes in use at the end, with and without revival:",
      runs["far start, revival"]["used"][-1] > 64,
      runs["far start, no revival"]["used"][-1] > 64)  # fmt: skip
print("and that costs more than 1 dB:",
      runs["far start, no revival"]["psnr"] < whole - 1)  # fmt: skip

# %% [markdown]
# <details><summary>Answer</summary>
#
# The run without commitment, at first sight: its pictures are as good. But its latents
# run away, step by step, and the codes run after them; in a long training the codes
# stay behind. Without the stop-gradient the encoder learns nothing of pictures: the
# commitment alone is left, and pulls all latents onto a few codes. A codebook that
# starts far away has a code or two that are nearest for everything; with revival it
# recovers in a few steps. None of the four raises an error.
#
# </details>

# %% [markdown]
# ## Exercises
#
# > **Exercise 1 · Dead codes** — difficulty 2 of 3, about 8 minutes. Why it matters: a
# > codebook that nobody uses is capacity you paid for, and a plain count of codes in
# > use hides how unevenly they are used. Write `perplexity(indices, K)`: the effective
# > number of codes, 2 to the entropy in bits of how often each is used. Equal use of
# > all K gives K, one code alone gives 1.


# %% tags=["exercise"]
def perplexity(indices: Tensor, K: int) -> float:
    """The effective number of codes in use; indices: int64, of any shape."""
    ...


# %%
from utils.exercises import vq_vae as exercises

exercises.check_perplexity(perplexity)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `torch.bincount` counts. A code that is never used has p = 0, and 0·log 0 counts as 0:
# leave those out.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def perplexity(indices, K):
#     shares = torch.bincount(indices.flatten(), minlength=K) / indices.numel()
#     shares = shares[shares > 0]
#     return 2 ** -(shares * shares.log2()).sum().item()
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · Say it more exactly** — difficulty 2 of 3, about 10 minutes. Why it
# > matters: a second small codebook for what the first left over beats one huge
# > codebook; speech codecs are built so (*residual quantisation*). Write
# > `residual_codes(z, books)`: for latents (N, d) and a list of codebooks (K, d), the
# > indices (N, L), one column a codebook. The first codes z, each next one what is
# > still missing.


# %% tags=["exercise"]
def residual_codes(z: Tensor, books: list[Tensor]) -> Tensor:
    """(N, d) → (N, len(books)) int64."""
    ...


# %%
exercises.check_residual_codes(residual_codes)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Keep a `rest`, which starts as z. After each codebook take the chosen vectors away
# from it.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def residual_codes(z, books):
#     rest, columns = z, []
#     for book in books:
#         chosen = nearest_code(rest, book)
#         columns.append(chosen)
#         rest = rest - book[chosen]
#     return torch.stack(columns, 1)
# ```
#
# </details>

# %% [markdown]
# > **Exercise 3 · A grid instead of a codebook** — difficulty 3 of 3, about 12 minutes.
# > Why it matters: *finite scalar quantisation* (Mentzer et al. 2023) needs no codebook
# > and so has no dead codes. Write `fsq(z, levels)`: squash each number of z (..., d)
# > into (−1, 1) with tanh, round it to the nearest of `levels` values spread evenly
# > from −1 to 1 (an odd number of them, ends included), and let the gradient through as
# > if the *rounding* had not happened; that of tanh stays.


# %% tags=["exercise"]
def fsq(z: Tensor, levels: int) -> Tensor:
    """(..., d) → the same shape, each number one of `levels`."""
    ...


# %%
exercises.check_fsq(fsq)

# %% [markdown]
# <details><summary>Hint</summary>
#
# With `half = (levels - 1) / 2`, `(x * half).round() / half` rounds to the grid. Then
# the line of `straight_through`, around the rounding alone.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def fsq(z, levels):
#     half = (levels - 1) / 2
#     bounded = z.tanh()
#     rounded = (bounded * half).round() / half
#     return bounded + (rounded - bounded).detach()
# ```
#
# </details>

# %% [markdown]
# > **Exercise 4 · Between two clouds** — difficulty 2 of 3, about 8 minutes. Why it
# > matters: in diffusion (lesson 10) every step compares two Gaussians, and neither is
# > the standard one. Write `kl(mean1, log_variance1, mean2, log_variance2)`: for
# > diagonal Gaussians given as (B, d) each, KL(first ‖ second) in nats, summed over d:
# > (B,).


# %% tags=["exercise"]
def kl(
    mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor
) -> Tensor:
    """(B, d) four times → (B,)."""
    ...


# %%
exercises.check_kl(kl)

# %% [markdown]
# <details><summary>Hint</summary>
#
# For one number: ½(log σ₂² − log σ₁² + (σ₁² + (μ₁ − μ₂)²)/σ₂² − 1). With the second
# standard, it must be `kl_to_standard`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def kl(mean1, log_variance1, mean2, log_variance2):
#     gap = log_variance2 - log_variance1
#     distance = (mean1 - mean2).square() / log_variance2.exp()
#     return (gap + (-gap).exp() + distance - 1).sum(1) / 2
# ```
#
# </details>

# %% [markdown]
# ## Myth check
#
# **"The VQ-VAE has lost the VAE's prior."** It has one, and a simple one: while the
# codebook is trained, every code counts as equally likely. Choosing one code for sure
# then costs log K nats, whichever it is:

# %%
K = 8
for sure in (0, 5):
    q = torch.zeros(K).index_fill(0, torch.tensor([sure]), 1.0)
    divergence = (q[sure] * (q[sure] / (1 / K)).log()).item()
    print(f"all on code {sure}: KL {divergence:.4f}, log K = {math.log(K):.4f}")

# %% [markdown]
# A constant has no gradient, so the term is left out (van den Oord et al. 2017, sec.
# 3.2). A better prior is learnt afterwards, as above.
#
# **"More codes, better pictures."** Only if they are used. Look at K = 128 against
# 1,024 in the browser, and at the broken run with one code of 128.
#
# **"A running mean must be debiased."** In m/N the bias cancels. It matters for what
# reads N alone: smoothing and the search for dead codes. Well-known code leaves it out
# (zalandoresearch/pytorch-vq-vae) and also writes the smoothed counts back into the
# running ones; sonnet, from the paper's authors, debiases.
#
# **"β is a matter of taste."** Its place is not. See *Three terms*.
#
# ## Differs from the paper
#
# | | van den Oord et al. 2017 | here | why |
# |---|---|---|---|
# | network | strides from full size | pixel-unshuffle by 4 first | faster |
# | latents | free | scaled to one length | no drift (Yu et al. 2022) |
# | codebook | gradient, or running mean | running mean | steadier |
# | dead codes | – | put on latents of the batch | every code is used |
# | β | 0.25 | 0.025 of a smaller loss | the sphere does most of it |
# | loss | squared error over variance | squared and absolute error | sharper edges |
# | K, grid | 512, 32×32 for ImageNet | 1,024, 16×16 | 64-pixel pictures |
# | optimizer | Adam | AdamW; Muon for hidden matrices | speed |
# | prior | PixelCNN of 15 layers and more | 5 thin layers, live | lessons 07 and 08 |
#
# ## Where this goes next
#
# The codebook here moves by a rule of its own, beside the gradient. **Lesson 06** finds
# a way to let gradients choose: every place holds a whole distribution over codes,
# which hardens while it trains.
#
# ## Read more
#
# - Kingma & Welling 2014, *Auto-Encoding Variational Bayes*, sec. 2 and app. B.
# - van den Oord, Vinyals, Kavukcuoglu 2017, *Neural Discrete Representation Learning*,
#   eq. 1–3, sec. 3.2 and app. A.1; sonnet, `sonnet/src/nets/vqvae.py`.
# - Bengio, Léonard, Courville 2013: the straight-through estimator.
# - van den Oord, Kalchbrenner et al. 2016: PixelCNN.
# - Yu et al. 2022, *Vector-quantized Image Modeling with Improved VQGAN*, sec. 3.2.
# - Mentzer et al. 2023: finite scalar quantisation.
#
# **Glossary** · 自编码器 autoencoder · 变分自编码器 variational autoencoder ·
# 重参数化 reparameterisation · KL 散度 KL divergence · 先验 prior · 潜变量 latents ·
# 矢量量化 vector quantisation · 码本 codebook · 直通估计 straight-through estimator ·
# 承诺损失 commitment loss · 指数移动平均 running mean · 困惑度 perplexity
