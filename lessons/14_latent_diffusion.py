# ---
# jupyter:
#   brick: latent_diffusion
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14 · Latent diffusion: Stable Diffusion, built small
#
# ![A picture is squeezed to a small map of numbers; noise comes into the map and is
# taken out again by a network that looks at the words; the map is unfolded to a
# picture](../assets/figures/14_latent_diffusion.svg)
#
# Lesson 10's network learnt two trades at once: what a caption means, and what every
# pixel of an edge looks like. Rombach et al. 2022 part them. An autoencoder learns
# pixels, once; diffusion learns pictures, in the *latents* of that autoencoder. **What
# does it cost to draw where nobody can see the picture?** The answer went round the
# world in August 2022 as Stable Diffusion.

# %%
import math

from utils import checkpoints, data, plots, training, widgets

train = data.load_emoji("train").where(skin_tone="none")
unseen = data.load_emoji("unseen").where(skin_tone="none")

# %% [markdown]
# What the bricks of this lesson are made of:

# %% tags=["brick"]
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import device
from utils.bricks.attention import attend, join_heads, split_heads
from utils.bricks.clip import CLIP
from utils.bricks.diffusion import (
    Diffusion,
    Mixer,
    UNet,
    add_noise,
    betas,
    check_kind,
    read_off,
    signal_left,
    target,
)
from utils.bricks.sampling import ddim_step, look, signal_at, walk
from utils.bricks.text_encoders import Tokenizer, each_word, end_positions
from utils.bricks.vq_vae import Decoder, Encoder, check_pictures
from utils.given import takes

# %% [markdown]
# ## A toy: two numbers in place of sixty-four
#
# Four thousand *hills*: pictures of one row, 64 pixels wide. Each is no more than a
# place and a width, and both can be worked out from the pixels: an autoencoder by hand.
# The small network of lesson 10 learns to take noise away, once in 64 pixels, once in
# those two numbers. **Predict first:** with the same steps of training, which draws the
# better hills?

# %%
draw = device.generator(0)
row = torch.linspace(-1, 1, 64)


def decode(z: Tensor) -> Tensor:
    """Place and width (N, 2) → hills (N, 64)."""
    return torch.exp(-((row - z[:, :1]) / z[:, 1:]).square() / 2)


def encode(hills: Tensor) -> Tensor:
    """Hills (N, 64) → where they stand, and how wide they are: (N, 2)."""
    share = hills / hills.sum(1, keepdim=True)
    place = (share * row).sum(1, keepdim=True)
    width = (share * (row - place) ** 2).sum(1, keepdim=True).sqrt()
    return torch.cat([place, width], 1)


sides = torch.randint(2, (4000, 2), generator=draw)
z = torch.stack([sides[:, 0] - 0.5, 0.08 + 0.1 * sides[:, 1]], 1)
hills = decode(z * (1 + 0.1 * torch.randn(z.shape, generator=draw)))


def learn_to_draw(points: Tensor, steps: int = 600) -> Tensor:
    """Points (N, d) → 400 new ones, by lesson 10's toy: (400, d)."""
    device.seed(0)
    d, middle, scale = points.shape[1], points.mean(0), points.std(0)
    layers = [nn.Linear(d + 1, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
    net = nn.Sequential(*layers, nn.Linear(128, d))
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)

    def guess(x: Tensor, level: Tensor) -> Tensor:
        correction = net(torch.cat([x, 4 * level - 2], 1))
        return (1 - level).sqrt() * x + level.sqrt() * correction

    for step in range(steps):
        x0 = (points[torch.randint(len(points), (256,))] - middle) / scale
        level = (1.57 * torch.rand(256, 1)).sin().square().clamp(1e-4, 0.9999)
        x = (1 - level).sqrt() * x0 + level.sqrt() * torch.randn(256, d)
        loss = ((guess(x, level) - x0).square() / level).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        optimizer.step()
    levels = torch.linspace(1.55, 0.02, 60).sin().square()
    x = torch.randn(400, d)
    with torch.no_grad():
        for level, less in zip(levels, [*levels[1:], torch.zeros(())], strict=True):
            x0 = guess(x, level.expand(400, 1))
            noise = (x - (1 - level).sqrt() * x0) / level.sqrt()
            x = (1 - less).sqrt() * x0 + less.sqrt() * noise
    return x * scale + middle


# %%
new = {"drawn in 64 pixels": learn_to_draw(hills)}
new["drawn in two numbers"] = decode(learn_to_draw(encode(hills)))
fig, axes = plots.figure(columns=3, width=10, height=2.2)
for ax, (name, drawn) in zip(axes, {"real hills": hills, **new}.items(), strict=True):
    ax.plot(row, drawn[:12].T, lw=1)
    ax.set(title=name, ylim=(-0.4, 1.3), xticks=[])
plots.show(fig, "Smooth hills; rough ones of pixels; smooth ones of two numbers")
off = [torch.cdist(drawn, hills).amin(1).mean().item() for drawn in new.values()]
print("in two numbers several times nearer to a real hill:", off[0] > 3 * off[1])

# %% [markdown]
# <details><summary>Answer</summary>
#
# Those drawn in two numbers. In pixels a network must learn that neighbours agree, that
# a hill has one top and is flat elsewhere. The decoder knows all that, whatever it is
# given; only *which* hills there are is left to learn. Pictures are such data, too: of
# 64 × 64 × 3 numbers hardly any are free. Here a network finds the few.
#
# </details>
#
# ## The autoencoder
#
# Lesson 05 had one with means and variances, a VAE, and made it discrete. Lesson 07
# taught it to look right. Here the first comes back with the loss of the second: no
# codebook, 8 × 8 places with 8 numbers each, and the KL term at a **millionth** of its
# place in a VAE. Nobody will sample from N(0, 1), diffusion does that; the term is only
# there so that no number runs away. **Predict first:** how wide are its normals then,
# and does a picture look other that is drawn from them?


# %% tags=["brick"]
class KLAutoencoder(nn.Module):
    """Pictures (B, 3, S, S) ↔ latents (B, latent, S/factor, S/factor), without codes.

    The encoder answers with a mean and a log variance for each number. Rombach et al.
    2022, sec. 3.1 and app. G.
    """

    def __init__(self, factor: int, width: int, latent: int):
        super().__init__()
        self.config = {"factor": factor, "width": width, "latent": latent}
        self.factor, self.latent = factor, latent
        self.encoder = Encoder(factor, width, 2 * latent)
        self.decoder = Decoder(factor, width, latent)

    @takes(pictures="pictures")
    def distribution(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each latent, (B, latent, h, w) each."""
        check_pictures(pictures, self.factor)
        mean, log_variance = self.encoder(pictures).float().chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def draw(self, z: Tensor) -> Tensor:
        """Latents → pictures (B, 3, S, S), not clamped."""
        return (self.decoder(z).float() + 1) / 2

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] → the means, (B, latent, h, w)."""
        return self.distribution(pictures)[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, latent, h, w) → pictures (B, 3, S, S) in [0, 1]."""
        return self.draw(z).clamp(0, 1)


# %% tags=["brick", "blank"]
def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) in nats, summed over each picture: (B, …) twice → (B,)."""
    each = mean.square() + log_variance.exp() - 1 - log_variance
    return each.flatten(1).sum(1) / 2


# %%
from utils.bricks.vq_vae import psnr

kl, vqgan = checkpoints.load("kl"), checkpoints.load("vqgan")
here = next(kl.parameters()).device
some = (unseen.pictures[::40][:9] / 255).to(here)
draw = device.generator(0)
with torch.no_grad():
    mean, log_variance = kl.distribution(some)
deviation = (log_variance / 2).exp()
noisy = mean + deviation * torch.randn(mean.shape, generator=draw).to(here)
rebuilt = {
    "original": some,
    "kl, 512 numbers": kl.decode(mean),
    "kl, drawn from its normals": kl.decode(noisy),
    "vqgan, 64 codes": vqgan.decode(vqgan.encode(some)),
}
rows = {name: x.cpu() for name, x in rebuilt.items()}
plots.picture_rows(rows, alt="Originals, and three ways to rebuild them", size=56)
quality = {name: psnr(some, x).mean().item() for name, x in rebuilt.items()}
print("without codes, more is left:",
      quality["kl, 512 numbers"] > quality["vqgan, 64 codes"])  # fmt: skip
print("its normals are narrow:", (deviation.mean() / mean.std()).item() < 0.2)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Narrow, and no: the second and third row are one to the eye. It is a VAE by name, an
# autoencoder in practice. What the codebook cost is seen in the fourth row.
#
# </details>
#
# ### Why the latents are scaled
#
# Nothing tells an encoder in what units to answer, and diffusion cares: all of lesson
# 10's schedules are for data of variance 1. **Predict first:** latents five times too
# large; what does a schedule do to them that ends at ᾱ = 0.005?

# %%
parts = (train.pictures[::14] / 255).split(64)
latents = torch.cat([kl.encode(part.to(here)).cpu() for part in parts])
spread_of = latents.std((0, 2, 3))
fig, axes = plots.figure(columns=2, width=10, height=2.4)
axes[0].bar(range(len(spread_of)), spread_of, color=plots.COLOURS["image"])
axes[0].axhline(1, color=plots.COLOURS["noise"], ls="--")
axes[0].set(title="Each channel has units of its own", xlabel="channel", ylabel="σ")
left = signal_left(betas("scaled_linear"))
for factor, colour in ((0.2, "image"), (1.0, "noise"), (5.0, "wrong")):
    snr = 10 * (factor**2 * left / (1 - left)).log10()
    axes[1].plot(snr, color=plots.COLOURS[colour], label=f"σ = {factor:g}")
axes[1].set(title="Signal to noise, in dB", xlabel="step t", ylim=(-50, 50))
axes[1].legend()
plots.show(fig, "Channels of several widths; wide latents are never quite noise")
print("no two channels of one width:",
      bool((spread_of.sort().values.diff() > 1e-3).all()))  # fmt: skip

# %% [markdown]
# <details><summary>Answer</summary>
#
# Even at the end a tenth of the variance is signal: noise alone, with which every walk
# begins, was never seen in training. So latents are divided by their deviation. Stable
# Diffusion's **0.18215** is nothing else, one factor for all four channels, from the
# first batch. Copied to another autoencoder, it is just a wrong number; ours is
# computed, and for each channel (exercise 1).
#
# </details>

# %% [markdown]
# ## Noise that is no grain
#
# The same picture, dissolved in pixels and in latents, at equal shares of signal.
# **Predict first:** what does a decoder make of noise?

# %%
one = (train.where(style="fluent", label_en="cat face").pictures[:1] / 255).to(here)
middle, width = latents.mean((0, 2, 3))[:, None, None], spread_of[:, None, None]
z = (kl.encode(one) - middle.to(here)) / width.to(here)
shares = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.1, 0.0]).to(here)
draw = device.generator(1)
pixels, dots = 2 * one - 1, torch.randn(one.shape, generator=draw).to(here)
noise = torch.randn(z.shape, generator=draw).to(here)
dissolved = add_noise(z.expand(6, -1, -1, -1), noise, shares)
rows = {
    "in pixels": add_noise(pixels.expand(6, -1, -1, -1), dots, shares) / 2 + 0.5,
    "in latents": kl.decode(dissolved * width.to(here) + middle.to(here)),
}
alt = "Grain over a cat; a cat that turns into another thing"
plots.picture_rows({k: x.clamp(0, 1).cpu() for k, x in rows.items()}, alt=alt)


def grain(x: Tensor) -> float:
    """How much pixels differ from their right neighbours."""
    return x.diff(dim=3).square().mean().item()


print("noise alone: less grain in latents than in pixels:",
      grain(rows["in latents"][5:]) < grain(rows["in pixels"][5:]) / 2)  # fmt: skip

# %% [markdown]
# <details><summary>Answer</summary>
#
# Patches of colour with edges: whatever stands in the latents, the decoder draws
# something drawable. The network has to learn *what*; how edges look it is given.
#
# </details>
#
# ## Words, one by one
#
# Lesson 10 gave its U-Net one vector for a whole caption. Here every place of the map
# looks at **every word**: queries come from places, keys and values from the states
# that the text tower has for its tokens, all of them, not only the one at END.
#
# **By hand.** One place asks (1, 0). Two words: *red* has the key (2, 0) and the value
# 10, *cat* the key (0, 2) and the value 20.

# %%
place, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
scores = place @ keys.T / math.sqrt(2)
share = scores.softmax(1)
print("scores:", [round(s, 2) for s in scores[0].tolist()],
      "shares:", [round(s, 2) for s in share[0].tolist()],
      "answer:", round((share @ torch.tensor([[10.0], [20.0]])).item(), 2))  # fmt: skip


# %% tags=["brick", "blank"]
class CrossAttention(nn.Module):
    """Places look at words: (B, L, width), (B, M, context) → (B, L, width).

    No bias in queries, keys and values, as in Stable Diffusion. Rombach et al. 2022,
    sec. 3.3.
    """

    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(context, width, bias=False)
        self.v = nn.Linear(context, width, bias=False)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        parts = self.q(x), self.k(states), self.v(states)
        q, k, v = (split_heads(part, self.heads) for part in parts)
        return self.out(join_heads(attend(q, k, v, mask[:, None, None])))


# %%
from diffusers.models.attention_processor import Attention as Theirs

ours, theirs = CrossAttention(32, 20, 4), Theirs(32, 20, heads=4, dim_head=8)
nn.init.normal_(ours.out.weight)
with torch.no_grad():
    for name, other in {"q": "to_q", "k": "to_k", "v": "to_v"}.items():
        getattr(theirs, other).weight.copy_(getattr(ours, name).weight)
    theirs.to_out[0].load_state_dict(ours.out.state_dict())
x, states = torch.randn(2, 9, 32, generator=draw), torch.randn(2, 5, 20, generator=draw)
mask = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, -torch.inf, -torch.inf]])
answer = ours(x, states, mask)
same = torch.allclose(answer, theirs(x, states, mask[:, None]), atol=1e-5)
print("as diffusers has it:", same)
states[1, 3:] += 100  # what stands behind the mask
print("padding counts for nothing:", torch.equal(answer, ours(x, states, mask)))

# %% [markdown]
# The mixer of lesson 10 gets a second half, and the U-Net takes it as it is: it was
# built to hand on what comes beside the time.


# %% tags=["brick"]
class TextMixer(Mixer):
    """A Mixer whose places look at the words of a caption, too."""

    def __init__(self, width: int, context: int):
        super().__init__(width)
        self.norm2 = nn.GroupNorm(16, width)
        self.cross = CrossAttention(width, context, self.attention.heads)

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        x = super().forward(x)
        tokens = self.norm2(x).flatten(2).transpose(1, 2)  # (B, H·W, width)
        return x + self.cross(tokens, states, mask).transpose(1, 2).view_as(x)


# %% [markdown]
# ## The whole model
#
# A `Diffusion` whose x are latents. Three things are new: the scale, the words (a
# vector, as before, and states with their mask), and that an empty prompt has states,
# too, so guidance asks with the caption and with `""`.


# %% tags=["brick"]
Said = tuple[Tensor, Tensor, Tensor]  # vectors, token states and their mask, of prompts


def padded(text: Said, length: int) -> Said:
    """The same, with so many token states; those that are new are masked."""
    vectors, states, mask = text
    more = length - mask.shape[1]
    mask = F.pad(mask, (0, more), value=-torch.inf)
    return vectors, F.pad(states, (0, 0, 0, more)), mask


class LatentDiffusion(Diffusion):
    """Noise → latents → pictures (B, 3, side, side), by the words of a caption.

    clip: whose token states and vector say what to draw; autoencoder: whose latents are
    drawn; both frozen. Latents are shifted and scaled, channel by channel, to mean 0
    and variance 1, see `fit_scale`. The others: see `UNet`. Rombach et al. 2022.
    """

    def __init__(
        self,
        clip: CLIP,
        autoencoder: KLAutoencoder,
        side: int,
        schedule: str = "cosine",
        steps: int = 1000,
        predicts: str = "v",
        widths: Sequence[int] = (128, 192),
        depth: int = 1,
        mixed: Sequence[int] = (0, 1),
    ):
        nn.Module.__init__(self)
        check_kind(predicts)
        self.config = {"side": side, "schedule": schedule, "steps": steps}
        self.config |= {"predicts": predicts, "widths": list(widths), "depth": depth}
        self.config |= {"mixed": list(mixed)}
        self.clip, self.autoencoder = clip, autoencoder
        self.side, self.steps, self.predicts = side, steps, predicts
        channels, places = autoencoder.latent, side // autoencoder.factor
        self.shape = (channels, places, places)
        signal = signal_left(betas(schedule, steps)).float()
        self.register_buffer("signal", signal, persistent=False)  # ᾱ
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))
        self.dim = clip.config["dim"]
        mixer = partial(TextMixer, context=clip.text_tower.width)
        self.unet = UNet(channels, widths, depth, 1, mixed, self.dim, mixer)

    def fit_scale(self, latents: Tensor) -> None:
        """Remember mean and deviation of each channel of latents (N, C, h, w)."""
        latents = latents.cpu().double()  # else the order of the sum shows
        self.mean.copy_(latents.mean((0, 2, 3))[:, None, None])
        self.deviation.copy_(latents.std((0, 2, 3))[:, None, None])

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] → scaled latents (B, C, h, w)."""
        return (self.autoencoder.encode(pictures) - self.mean) / self.deviation

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) → pictures (B, 3, S, S) in [0, 1]."""
        return self.autoencoder.decode(z * self.deviation + self.mean)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Said:
        """Prompts → vectors (B, dim), token states (B, L, width), their mask (B, L).

        "" has a vector of zeros and the states of an empty caption. The mask is 0 up to
        END and −inf after it.
        """
        ids = self.clip.tokenizer(list(prompts)).to(self.signal.device)
        tower = self.clip.text_tower
        states, ends = tower.states(ids), end_positions(ids, tower.end)
        places = torch.arange(ids.shape[1], device=ids.device)
        mask = torch.zeros(ids.shape, device=ids.device)
        mask = mask.masked_fill(places > ends[:, None], -torch.inf)
        said = torch.tensor([[bool(prompt.strip())] for prompt in prompts])
        vectors = self.clip.encode_tokens(ids) * self.dim**0.5 * said.to(ids.device)
        return vectors, states.float(), mask

    def forward(self, x: Tensor, t: Tensor, text: Said) -> Tensor:
        """The network's answer about x_t (B, C, h, w); t: (B,); text: `encode_text`."""
        return self.unet(x, t, *text)

    def beside(self, text: Said, unwanted: str = "") -> Said:
        """What prompts say, (B, …), and below it B times another: (2·B, …)."""
        rows, length = text[2].shape
        other = self.encode_text([unwanted])
        other = tuple(part.expand(rows, *part.shape[1:]) for part in other)
        length = max(length, other[2].shape[1])
        pairs = zip(padded(text, length), padded(other, length), strict=True)
        return tuple(torch.cat(pair) for pair in pairs)

    def begin(
        self,
        prompts: Sequence[str] | None,
        seed: int | Sequence[int],
        unwanted: str = "",
    ) -> tuple[Callable[[], Tensor], Said | None]:
        """See `Diffusion.begin`; below the text comes what guidance leads away from."""
        noise, text = super().begin(prompts, seed)
        return noise, text and self.beside(text, unwanted)

    def read(
        self, x: Tensor, t: Tensor, text: Said | None = None, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(x₀, ε) as the network sees them in x_t; see `Diffusion.read`.

        text: of B prompts, or of 2·B, see `beside`; None: what an empty one says.
        """
        rows = len(x)
        text = text or self.encode_text([""] * rows)
        with device.half_precision(x.device):
            if guidance == 1:
                said = self(x, t, tuple(part[:rows] for part in text))
            else:
                both = text if len(text[0]) == 2 * rows else self.beside(text)
                asked, free = self(torch.cat([x, x]), t.repeat(2), both).chunk(2)
                said = free + guidance * (asked - free)
        return read_off(self.predicts, said, x, self.signal[t])

    @takes(seed="seeds", steps="whole", unwanted="text")
    @takes(guidance="finite", eta="finite")
    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[str] | None = None,
        *,
        seed: int | Sequence[int] = 0,
        guidance: float = 3.0,
        steps: int = 25,
        eta: float = 0.0,
        unwanted: str = "",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """From noise to latents by DDIM's steps; yields (x, x₀ as seen in it).

        unwanted: a negative prompt, from which guidance leads away in place of the
        empty one; the others: see `walk`. x may be decoded at any step.
        """
        noise, text = self.begin(prompts, seed, unwanted)
        how = {"guidance": guidance, "eta": eta, "clamp": False, "noise": noise}
        yield from walk(self, noise(), self.times(steps), text, **how)

    def generate(self, prompts: Sequence[str] | None = None, **how) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1], for each prompt or seed; see `stream`."""
        *_, (x, _) = self.stream(prompts, **how)
        return self.decode(x)


# %% tags=["brick", "blank"]
def latent_loss(model: LatentDiffusion, x0: Tensor, text: Said) -> Tensor:
    """The mean squared error of the network's answer, at random times: a scalar.

    x0: scaled latents (B, C, h, w). Rombach et al. 2022, eq. 2.
    """
    t = torch.randint(model.steps, (len(x0),)).to(x0.device)
    noise = torch.randn(x0.shape).to(x0.device)
    signal = model.signal[t]
    said = model(add_noise(x0, noise, signal), t, text)
    return F.mse_loss(said, target(model.predicts, x0, noise, signal))

# %%
guiding, judge = checkpoints.load("clip_resnet"), checkpoints.load("clip")
device.seed(0)
live = LatentDiffusion(guiding, kl, 64, widths=(64, 96)).to(here)
live.fit_scale(latents.to(here))
x = live.encode(some)
print("latents of variance one:", bool((x.std((0, 2, 3)) - 1).abs().max() < 0.25))
same = torch.allclose(live.decode(x), kl.decode(mean), atol=1e-4)
print("decoding is the way back:", same)
text = live.encode_text(["a red heart", "red", ""])
print("words that count, with START and END:", (text[2] == 0).sum(1).tolist())
print("a vector for two, none for the last:", text[0].norm(dim=1).gt(1).tolist())

# %% [markdown]
# ## Train it
#
# Live, on every fourteenth picture, for a hundred steps; one caption in ten is left
# out, for guidance (lesson 11). **Predict first:** with v and a cosine schedule, lesson
# 10's network ends at a loss of 0.1. Will this come as low?

# %%
captions = train.table["label_en"][::14]
z_all = ((latents - live.mean.cpu()) / live.deviation.cpu()).float()
optimizer = training.adamw(live.unet, 3e-3, 0.01)


def learn(step: int) -> Tensor:
    draw = device.generator(0, step)
    pick = torch.randint(len(z_all), (32,), generator=draw).tolist()
    words = [captions[i] if (i + step) % 10 else "" for i in pick]
    return latent_loss(live, z_all[pick].to(here), live.encode_text(words))


losses = training.fit(live, learn, 100, optimizer=optimizer, name="latents")
start, end = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
print("it learns, but is far from that:", end < 0.9 * start, end > 0.3)

# %% [markdown]
# <details><summary>Answer</summary>
#
# No, nor does the shipped one. Most of a pixel can be told from its neighbours; the
# encoder has taken just that out, and what it leaves is hard to guess. **Losses of two
# spaces cannot be compared.** Pictures can.
#
# </details>
#
# How much is left to guess? Each number, told by least squares from the four places
# around it, in pixels and in latents:


# %%
def left_over(maps: Tensor) -> float:
    """The share of variance (N, C, h, w) that four neighbours do not tell."""
    maps = (maps - maps.mean((0, 2, 3), True)) / maps.std((0, 2, 3), keepdim=True)
    above, below = maps[:, :, :-2, 1:-1], maps[:, :, 2:, 1:-1]
    beside = torch.cat([above, below, maps[:, :, 1:-1, :-2], maps[:, :, 1:-1, 2:]], 1)
    near = beside.permute(0, 2, 3, 1).flatten(0, 2)  # (places, 4·C)
    own = maps[:, :, 1:-1, 1:-1].permute(0, 2, 3, 1).flatten(0, 2)  # (places, C)
    half = len(own) // 2  # fitted to one half, looked at on the other
    weights = torch.linalg.lstsq(near[:half], own[:half]).solution
    return (own[half:] - near[half:] @ weights).var().item() / own[half:].var().item()


pixels = F.adaptive_avg_pool2d(train.pictures[::14] / 255, 32)
hard = {"pixels, 32 × 32": left_over(pixels), "latents, 8 × 8": left_over(latents)}
fig, ax = plots.figure(width=6, height=1.2)
plots.bars(ax, hard, "noise", "What neighbours do not tell", "share of variance",
           numbers="{:.0%}")  # fmt: skip
plots.show(fig, "Little of a pixel is new beside its neighbours, half of a latent is")
print("in latents at least five times as much is left to guess:",
      hard["latents, 8 × 8"] > 5 * hard["pixels, 32 × 32"])  # fmt: skip

# %% [markdown]
# ## The shipped model
#
# The same, wider, with an hour or two of training. **Predict first:** the text tower
# has seen *purple* and *apple*, the U-Net never a purple apple. What will it draw?

# %%
shipped, pixel = checkpoints.load("latent_diffusion"), checkpoints.load("diffusion")
dalle = checkpoints.load("dalle")
PROMPTS = ["red heart", "pizza", "rocket", "a 3D drawing of a cat face",
           "a flat drawing of a snowman", "purple apple", "brown heart",
           "crying green face"]  # fmt: skip
seeds = range(len(PROMPTS))
rows = {
    "in latents, 64 px": shipped.generate(PROMPTS, seed=seeds),
    "in pixels, lesson 10": pixel.generate(PROMPTS, seed=seeds),
    "in codes, lesson 08": dalle.generate(PROMPTS, seed=seeds, guidance=3.0),
    "in latents, lesson's own": live.generate(PROMPTS, seed=seeds),
}
alt = "Clear pictures at the top, blobs of colour at the bottom"
plots.picture_rows({name: x.cpu() for name, x in rows.items()}, alt=alt, size=64)

# %%
figures = {"latent diffusion": "latent_diffusion", "diffusion": "diffusion"}
figures["DALL·E"] = "dalle"
cards = {name: checkpoints.card(model)["metrics"] for name, model in figures.items()}
fig, axes = plots.figure(columns=3, width=11, height=2)
kinds = {"found": "no guidance", "found_guided": "with guidance",
         "set_aside_found": "in a style never shown"}  # fmt: skip
for ax, (key, title) in zip(axes, kinds.items(), strict=True):
    share = {name: metrics[key] / 100 for name, metrics in cards.items()}
    plots.bars(ax, share, "text", title, "found", numbers="{:.0%}")
plots.show(fig, "How often the judge finds the caption among 100, for three models")
ours, theirs = cards["latent diffusion"], cards["diffusion"]
print("found more often than what is drawn in pixels, each way:",
      all(ours[key] > theirs[key] for key in kinds))  # fmt: skip

# %% [markdown]
# <details><summary>Answer</summary>
#
# Something purple and round, rather a plum. The brown heart is red, the green face
# cries and stays yellow: things hold, colours that they never had do not. DALL·E, whose
# codes follow words in one stream, mixes them better. All else comes out clearer here
# than in pixels. (DALL·E's bars are of 400 labels, the others' of 100.)
#
# </details>
#
# ### And the style?
#
# A judge of styles is a linear probe on the features of lesson 03's CLIP (lesson 04).
# Sixty-seven pairs that were set aside, a thing in a style in which the network never
# saw it, are drawn twice: with the word for the style, and with the label alone.
# **Predict first:** drawn from the label alone, how many have the style that was set
# aside? Chance is a quarter.

# %%
from utils.bricks.zero_shot import image_vectors, linear_probe, probe_scores

kept, aside = data.set_aside(train, 200)


def styles_of(pairs: data.Pairs) -> Tensor:
    return torch.tensor([data.STYLES.index(s) for s in pairs.table["style"]]).to(here)


few, third = kept.take(range(0, len(kept), 8)), aside.take(range(0, 200, 3))
probe = linear_probe(image_vectors(judge, few.pictures), styles_of(few), 4)
labels, seeds = third.table["label_en"], range(len(third))
words = [data.STYLE_WORDS[s]["en"][0] for s in third.table["style"]]
styled = [f"{data.with_article(word)} drawing of {label}"
          for word, label in zip(words, labels, strict=True)]  # fmt: skip
drawings = {
    "real drawings": third.pictures,
    "rebuilt": shipped.decode(shipped.encode((third.pictures / 255).to(here))),
    "drawn, with the word": shipped.generate(styled, seed=seeds, steps=15),
    "drawn from the label": shipped.generate(labels, seed=seeds, steps=15),
}
seen = {name: probe_scores(image_vectors(judge, pictures), probe).argmax(1)
        for name, pictures in drawings.items()}  # fmt: skip
asked = styles_of(third)
right = {name: (style == asked).float().mean().item() for name, style in seen.items()}
fig, ax = plots.figure(width=7, height=1.7)
plots.bars(ax, right, "image", "Told the style that was set aside", "share",
           numbers="{:.0%}")  # fmt: skip
ax.axvline(0.25, color="black", lw=0.8, ls=":")
plots.show(fig, "Of real drawings most are told; with the word for a style nearly as "
           "many, without it fewer than by chance")  # fmt: skip
print("the word for the style more than doubles it:",
      right["drawn, with the word"] > 2 * right["drawn from the label"])  # fmt: skip
print("from the label alone less than chance:", right["drawn from the label"] < 0.25)
print("of real drawings the probe misses some, too:", right["real drawings"] < 0.9)
wrong = seen["real drawings"] != asked
alike = (asked < 2) & (seen["real drawings"] < 2)  # Noto and Twemoji
print("at least half of these are Noto taken for Twemoji, or the other way:",
      (alike & wrong).sum().item() >= wrong.sum().item() / 2)  # fmt: skip

# %% [markdown]
# <details><summary>Answer</summary>
#
# Fewer than a quarter: asked for a thing, the network draws it as it has seen it, in
# one of its three other styles. Asked for the style as well, it comes near to what the
# probe says of **real** drawings, of which it gets a quarter or more wrong: Noto and
# Twemoji draw many things alike. A share means little without that bar.
#
# </details>
#
# ### What it costs
#
# **By hand.** A 3 × 3 convolution from 128 channels to 128 takes 9·128·128 = 147,456
# multiplications a place. Latents have 8 × 8 = 64 places, pixels 4,096. The decoder,
# which works on pixels, is asked once for a picture, the U-Net 25 times, and with
# guidance twice each.

# %%
from torch.utils.flop_counter import FlopCounterMode

from utils import costs


def products(run: Callable) -> float:
    """Millions of multiplications."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e6


def step_of(model, side: int) -> Callable:
    """One step of a U-Net on one picture."""
    shape = shipped.shape if model is shipped else (3, side, side)
    x, t = torch.zeros(1, *shape).to(here), torch.zeros(1).long().to(here)
    said = model.encode_text(["red heart"])
    return torch.no_grad()(lambda: model(x, t, said))


ways = {
    "latents of 64 px": step_of(shipped, 64),
    "pixels, 32 px": step_of(pixel, 32),
    "pixels, 64 px": step_of(pixel, 64),
    "decoding, once": lambda: kl.decode(torch.zeros(1, 8, 8, 8).to(here)),
}
work = {name: products(run) for name, run in ways.items()}
networks = {"in latents": shipped.unet, "in pixels": pixel.unet}
weights = {
    name: sum(p.numel() for p in network.parameters()) / 1e6
    for name, network in networks.items()
}
fig, axes = plots.figure(columns=2, width=10, height=2)
plots.bars(axes[0], work, "noise", "Millions of products a step", "", numbers="{:,.0f}")
plots.bars(axes[1], weights, "image", "Millions of weights", "", numbers="{:.1f}")
plots.show(fig, "A step in latents is the cheapest, with the most weights; decoding is "
           "dear, and done once")  # fmt: skip
gain = work["pixels, 64 px"] / work["latents of 64 px"]
more = weights["in latents"] / weights["in pixels"]
print(f"a step at 64 px: {gain:.1f} times fewer products; {more:.1f} times the weights")
once = work["decoding, once"] / work["latents of 64 px"]
print(f"decoding costs as much as {once:.1f} steps")
print("by the clock, too, a step is faster:",
      costs.speedup(ways["pixels, 64 px"], ways["latents of 64 px"]) > 1.1)  # fmt: skip

# %% [markdown]
# So latents buy twice the weights and four times the pixels for the price of 32 × 32.
# Of one picture alone much of the time is not arithmetic; in batches the clock comes
# nearer to the products ([measured](../benchmarks/README.md)).

# %% [markdown]
# ### Is it a copy?
#
# A model that draws well might have learnt its pictures by heart. For each sample: the
# distance to the nearest training picture over that to the second nearest. Near 1, it
# lies between many; near 0, it *is* one of them. **Compared with what?** With real
# pictures that were set aside, and with training pictures under a little grain, which
# are copies by construction.

# %%
from utils.bricks.diffusion import picture_distances


def small(pictures: Tensor) -> Tensor:
    """At 32 px; a uint8 tensor or one in [0, 1]."""
    pictures = pictures / 255 if pictures.dtype == torch.uint8 else pictures.cpu()
    return F.adaptive_avg_pool2d(pictures, 32)


def ratios(pictures: Tensor, known: Tensor) -> Tensor:
    """Nearest over second nearest: (B,)."""
    distances = picture_distances(small(pictures), known)
    first, second = distances.topk(2, largest=False).values.T
    return first / second


known = small(kept.pictures)
labels = sorted({x for x in kept.table["label_en"] if "flag" not in x})[::55][:32]
samples = shipped.generate(labels, seed=range(len(labels)), steps=15)
grainy = kept.pictures[::99][:32] / 255
grainy = grainy + 0.02 * torch.randn(grainy.shape, generator=draw)
compared = {"samples": samples, "set aside": aside.pictures, "with grain": grainy}
found = {name: ratios(x, known) for name, x in compared.items()}
fig, ax = plots.figure(width=7, height=2.2)
colours = "image", "noise", "wrong"
for (name, values), colour in zip(found.items(), colours, strict=True):
    look_of = {"histtype": "step", "lw": 2, "color": plots.COLOURS[colour]}
    ax.hist(values, 20, range=(0, 1), density=True, label=name, **look_of)
ax.axvline(1 / 3, color="black", lw=0.8, ls=":")
ax.set(xlabel="nearest over second nearest", yticks=[])
ax.legend()
plots.show(fig, "Samples lie at the right as real new pictures do, copies at the left")
share = {name: (x < 1 / 3).float().mean().item() for name, x in found.items()}
print("copies show:", share["with grain"] > 0.9)
print("samples are copies no more often than new real pictures:",
      share["samples"] <= share["set aside"])  # fmt: skip
near = picture_distances(small(samples[:10]), known).topk(2, largest=False)[1]
first, second = (kept.pictures[place] / 255 for place in near.T)
rows = {"samples": samples[:10].cpu(), "nearest": first, "second": second}
alt = "Samples, and two training pictures each that look a little alike"
plots.picture_rows(rows, alt=alt, size=56)

# %% [markdown]
# A few real pictures that were set aside have a twin among the others. **Predict
# first:** whose twins are they?

# %%
twins = (found["set aside"] < 1 / 3).nonzero().flatten()
nearest = picture_distances(small(aside.pictures[twins]), known).argmin(1)
rows = {"set aside": aside.pictures[twins] / 255,
        "nearest": kept.pictures[nearest] / 255}  # fmt: skip
plots.picture_rows(rows, alt="Pairs that look the same, most of them people", size=56)
pairs = [[aside.row(i), kept.row(j)]
         for i, j in zip(twins.tolist(), nearest.tolist(), strict=True)]  # fmt: skip
for one, other in pairs:
    print(f"{one['label_en']} = {other['label_en']}")
print("in one style:", all(one["style"] == other["style"] for one, other in pairs))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Of others in the same style, people above all: *pilot* and *man pilot* are two labels
# of one drawing, or nearly. Whoever sets data aside by name has such leaks. What
# matters here: samples lie where new pictures lie, not where copies do.
#
# </details>
#
# ### What early stopping changes
#
# It *can* learn by heart. The shipped network goes on with **eight** pictures only, and
# is looked at on the way: samples of their captions, from seeds that it has not met.

# %%
import copy

lot = kept.take(range(5, len(kept), len(kept) // 8)[:8])
names, z_lot = lot.table["label_en"], shipped.encode((lot.pictures / 255).to(here))
student = copy.deepcopy(shipped)
for name, parameter in student.named_parameters():
    parameter.requires_grad_(name.startswith("unet."))
optimizer = training.adamw(student.unet, 2e-3, 0.0)


def by_heart(step: int) -> Tensor:
    pick = torch.randint(8, (16,), generator=device.generator(1, step)).tolist()
    text = student.encode_text([names[i] for i in pick])
    return latent_loss(student, z_lot[pick], text)


looks, how = {}, {"seed": range(100, 108), "steps": 15}
looks[0] = student.generate(names, **how)
for name, more in {"eight pictures": 15, "eight pictures, on": 45}.items():
    settings = {"optimizer": optimizer, "seed": more, "name": name, "warmup": 5}
    training.fit(student, by_heart, more, **settings)
    looks[more + max(looks)] = student.generate(names, **how)

# %%
near = {steps: ratios(x, known).mean().item() for steps, x in looks.items()}
rows = {f"after {steps} steps": x.cpu() for steps, x in looks.items()}
alt = "Own drawings at first, in the end nearly the training pictures"
plots.picture_rows(rows | {"the eight": lot.pictures / 255}, alt=alt, size=48)
print("the ratio sinks, and less if one stops early:",
      near[0] > near[15] + 0.03 > near[60] + 0.06)  # fmt: skip

# %% [markdown]
# So the ratio sees it when pictures are learnt by heart, and a run that stops early has
# learnt less of them. The shipped run had 6,791 pictures, each seen some 37 times, half
# the time moved by a pixel or two, and its card has a look now and then: is there a
# copy? Stable Diffusion's copies are of pictures that stood in its data many times
# (Carlini et al. 2023).

# %%
history = checkpoints.card("latent_diffusion")["looks"]
print("copies at each look, in %:", [look["copies"] for look in history.values()])
print("found, guided, in %:", [look["found_guided"] for look in history.values()])

# %% [markdown]
# ## From a picture
#
# A picture need not begin at noise. Give its latents the noise of a time half-way, and
# walk on from there with a caption: the later the time, the freer the walk. **Predict
# first:** a red heart, and the words "green apple". What is kept at half the way?


# %% tags=["brick"]
def starting(
    model: LatentDiffusion, pictures: Tensor, prompts: Sequence[str], seed
) -> tuple[Tensor, Callable[[], Tensor], Said]:
    """Latents of pictures, and noise and text of as many prompts; see `begin`."""
    if pictures.shape[2:] != (model.side, model.side):
        found = "×".join(map(str, pictures.shape[2:]))
        raise ValueError(f"pictures are {found} pixels; scale them to {model.side}")
    noise, text = model.begin(prompts, seed)
    if 2 * len(pictures) != len(text[0]):
        found = f"{len(pictures)} pictures and {len(text[0]) // 2} prompts"
        raise ValueError(f"there are {found}; give one prompt for each picture")
    return model.encode(pictures.to(model.signal.device)), noise, text


# %% tags=["brick"]
@takes(pictures="pictures", prompts="texts", seed="seeds", strength="finite")
@takes(steps="from 1", guidance="finite")
@torch.no_grad()
def redraw(
    model: LatentDiffusion,
    pictures: Tensor,
    prompts: Sequence[str],
    *,
    strength: float = 0.6,
    seed: int | Sequence[int] = 0,
    guidance: float = 3.0,
    steps: int = 25,
) -> Iterator[tuple[Tensor, Tensor]]:
    """From pictures to others by captions; yields (x, x₀ as seen in it).

    pictures: (B, 3, S, S) in [0, 1], one for each prompt; strength: where the walk
    begins, as a share of the way, in (0, 1]: 1 forgets the picture. Meng et al. 2022,
    *SDEdit*.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"the strength is {strength}; give a share above 0, up to 1")
    z, noise, text = starting(model, pictures, prompts, seed)
    first = max(1, round(strength * model.steps)) - 1
    times = model.times(min(first + 1, max(1, round(strength * steps))), first)
    x = add_noise(z, noise(), signal_at(model, first, len(z)))
    yield from walk(model, x, times, text, guidance=guidance, clamp=False)


# %%
hearts = train.where(label_en="red heart").pictures[:4] / 255
first = {"pictures": hearts, "rebuilt": kl.decode(kl.encode(hearts.to(here))).cpu()}
moved = {}
for strength in (0.3, 0.5, 0.7, 0.9):
    *_, (x, _) = redraw(shipped, hearts, ["green apple"] * 4, strength=strength)
    first[f"strength {strength}"] = moved[strength] = shipped.decode(x).cpu()
alt = "Hearts that turn green, then round, then into apples"
plots.picture_rows(first, alt=alt, size=56)
off = [(x - first["rebuilt"]).abs().mean().item() for x in moved.values()]
print("the stronger, the farther from the picture:", off == sorted(off))


def greener(x: Tensor) -> float:
    """How much more green than red there is."""
    return (x[:, 1] - x[:, 0]).mean().item()


print("greener than the hearts were:", greener(moved[0.9]) > greener(hearts) + 0.05)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Nearly all. Place, outline and even the colour hold up to 0.7; at 0.9 it is an apple,
# in the place and size of the heart. What a walk decides first, at most noise, can only
# be changed by going back so far. Further down two walks show it.
#
# </details>
#
# ## Only here
#
# A mask says what may change. At every step the rest is put back: the picture's own
# latents, with as much noise as belongs to that time. No network is trained for it.


# %% tags=["brick"]
@takes(pictures="pictures", prompts="texts", seed="seeds", steps="from 1")
@takes(guidance="finite", mask="(B, 1, S, S)")
@torch.no_grad()
def inpaint(
    model: LatentDiffusion,
    pictures: Tensor,
    mask: Tensor,
    prompts: Sequence[str],
    *,
    seed: int | Sequence[int] = 0,
    guidance: float = 3.0,
    steps: int = 25,
) -> Iterator[tuple[Tensor, Tensor]]:
    """New pictures in a mask, the old ones outside; yields (x, x₀ as seen in it).

    pictures: (B, 3, S, S) in [0, 1]; mask: (B, 1, S, S), 1 where it may change, else 0.
    A place of the latents may change if any of its pixels may. After Lugmayr et al.
    2022, eq. 8.
    """
    wanted = (len(pictures), 1, *pictures.shape[2:])
    if mask.shape != wanted:
        raise ValueError(f"the mask is {tuple(mask.shape)}; give one of {wanted}")
    z, noise, text = starting(model, pictures, prompts, seed)
    free = F.max_pool2d((mask.to(z) > 0.5).float(), model.autoencoder.factor)
    x = grain = noise()
    times = model.times(steps)
    for now, then in zip(times, times[1:], strict=False):
        x0, eps = look(model, x, now, text, guidance, clamp=False)
        yield x, x0
        before, after = (signal_at(model, t, len(x)) for t in (now, then))
        old = add_noise(z, grain, after)
        x = free * ddim_step(x0, eps, before, after) + (1 - free) * old
    yield x, x


# %%
faces = train.where(label_en="grinning face").pictures[:4] / 255
mask = torch.zeros(4, 1, 64, 64)
mask[:, :, 32:] = 1  # the lower half
asked = ["crying face", "face with medical mask", "angry face", "face with tongue"]
*_, (x, _) = inpaint(shipped, faces, mask, asked)
inside = shipped.decode(x).cpu()
*_, (x, _) = redraw(shipped, faces, asked, strength=0.9)
rebuilt = shipped.decode(shipped.encode(faces.to(here))).cpu()
free = shipped.decode(x).cpu()
rows = {"pictures": faces, "may change": faces * (1 - 0.6 * mask)}
rows |= {"inpainted": inside, "redrawn at 0.9": free}
alt = "The same eyes over new mouths; redrawn, all is new"
plots.picture_rows(rows, alt=alt, size=56)


def change(x: Tensor, part: Tensor) -> float:
    """How far from the rebuilt pictures, in a part of them."""
    return ((x - rebuilt).abs() * part).sum().item() / (3 * part.sum().item())


upper = 1 - mask
upper[:, :, 24:] = 0  # the decoder looks a little over the edge
print("outside the mask nearly nothing changes, inside much does:",
      change(inside, upper) < change(inside, mask) / 4)  # fmt: skip
print("redrawing has no such edge:", change(free, upper) > 2 * change(inside, upper))

# %% [markdown]
# ## Which word is where
#
# Cross-attention has said at every place how much each word counted. The maps of one
# word, averaged over heads, layers and steps, are a picture of it (Hertz et al. 2022).


# %% tags=["brick"]
class Watching:
    """Within a `with`: what places look at, as a model's cross-attentions are called.

    maps: one for each call, (B, h·w, M), the mean over heads.
    """

    def __init__(self, model: LatentDiffusion):
        mixers = [m for m in model.unet.modules() if hasattr(m, "cross")]
        self.layers = [mixer.cross for mixer in mixers]
        self.maps: list[Tensor] = []

    def __enter__(self) -> "Watching":
        self.hooks = [layer.register_forward_hook(self.look) for layer in self.layers]
        return self

    def __exit__(self, *error) -> None:
        for hook in self.hooks:
            hook.remove()

    def look(self, layer: CrossAttention, given: tuple, answer: Tensor) -> None:
        x, states, mask = given
        q, k = layer.q(x), layer.k(states)
        q, k = (split_heads(part.float(), layer.heads) for part in (q, k))
        scores = q @ k.mT / q.shape[-1] ** 0.5 + mask[:, None, None]
        self.maps.append(scores.softmax(-1).mean(1))


# %% tags=["brick", "blank"]
def word_maps(maps: Sequence[Tensor], rows: int, side: int) -> Tensor:
    """How much places look at each word, the mean over calls: (rows, M, side, side).

    maps: of `Watching`, (B, h·w, M), h = w, of whose rows the first `rows` count:
    guidance asks the others without the caption. All are scaled to side, bilinearly.
    """
    scaled = []
    for part in maps:
        part = part[:rows].transpose(1, 2)  # (rows, M, h·w)
        part = part.unflatten(2, (round(part.shape[2] ** 0.5), -1))
        scaled.append(F.interpolate(part, (side, side), mode="bilinear"))
    return torch.stack(scaled).mean(0)


# %% tags=["brick"]
@takes(prompt="text", word="text")
def word_places(tokenizer: Tokenizer, prompt: str, word: str) -> list[int]:
    """Where the tokens of a word stand in a prompt; START stands at 0.

    Raises ValueError if the prompt has no such word.
    """
    found, place = [], 1
    for each in each_word(prompt):
        tokens = range(place, place := place + len(tokenizer.encode(each)))
        if [each] == [*each_word(word)]:
            found += [i for i in tokens if i < tokenizer.context - 1]
    if not found:
        known = ", ".join(each_word(prompt))
        raise ValueError(f"the prompt has no word {word!r:.40}; choose of {known:.200}")
    return found


# %%
def watched(prompt: str, steps: int = 12) -> tuple[Tensor, Tensor]:
    """A picture (1, 3, S, S), and a map for each token (M, S, S)."""
    with Watching(shipped) as seen:
        picture = shipped.generate([prompt], steps=steps)
    return picture.cpu(), word_maps(seen.maps, 1, 64)[0].cpu()


tokenizer = shipped.clip.tokenizer
SAID = ["a 3D drawing of a cat face", "green apple"]
for prompt in SAID:
    picture, maps = watched(prompt)
    tokens = [tokenizer.tokens[i] for i in tokenizer([prompt])[0].tolist()]
    columns = len(tokens) + 1
    fig, axes = plots.figure(columns=columns, width=0.9 * columns, height=1.1)
    for ax, title in zip(axes, ["picture", *tokens], strict=True):
        ax.set_title(title.replace("</w>", "").strip("<|>"), fontsize=7)
        ax.axis("off")
    axes[0].imshow(picture[0].permute(1, 2, 0))
    for ax, part in zip(axes[1:], F.avg_pool2d(maps, 4), strict=True):
        most = part.max().item()
        ax.imshow(part, cmap=plots.CMAP, vmin=-most, vmax=most)
    plots.show(fig, f"The picture, and what looks at each token of: {prompt}")
print("what a place looks at sums to one:",
      torch.allclose(maps.sum(0), torch.ones(64, 64), atol=1e-3))  # fmt: skip
thing = picture[0].mean(0) < 0.9  # what is not white


def within(token: int) -> float:
    """How much more the thing looks at a token than the white around it does."""
    return (maps[token][thing].mean() / maps[token][~thing].mean()).item()


(apple,) = word_places(tokenizer, prompt, "apple")
print("the apple looks at its word, the white less:", within(apple) > 1.3)
print("all look at START alike:", abs(within(0) - 1) < 0.15)

# %% [markdown]
# Each map is scaled for itself: purple is where most of it is. START takes what nobody
# needs, everywhere alike; the name of the thing is looked at from where the thing is,
# and nobody told the network where that should be.
#
# ## Two prompts, one seed
#
# The same noise, two captions that differ in one word. **Predict first:** do the two
# walks part at once, or late? Control: the same caption in other words.

# %%
PAIR, SAME = ["red apple", "green apple"], ["red apple", "a picture of red apple"]
OTHER = ["red apple", "rocket"]


def parting(prompts: list[str], seed: int) -> tuple[list[float], Tensor]:
    """How far apart two walks of one seed are at every step, and what is seen then."""
    frames = [*shipped.stream(prompts, seed=seed)]
    apart = [(x[0] - x[1]).square().mean().sqrt().item() for x, _ in frames]
    return apart, torch.stack([x0 for _, x0 in frames[::4]], 1)  # (2, frames, C, h, w)


kinds = {"another thing": OTHER, "another colour": PAIR, "other words": SAME}
walks = {
    name: [parting(pair, seed) for seed in (3, 4, 5)] for name, pair in kinds.items()
}
apart = {
    name: torch.tensor([distances for distances, _ in three]).mean(0)
    for name, three in walks.items()
}
fig, ax = plots.figure(width=6, height=2.4)
colours = "wrong", "text", "noise"
for (name, values), colour in zip(apart.items(), colours, strict=True):
    ax.plot(values, color=plots.COLOURS[colour], label=name)
ax.set(title="Two walks from one noise", xlabel="step", ylabel="distance of x")
ax.legend()
plots.show(fig, "They part fast at first, then slowly; other words hardly part")
thing, colour, words = apart.values()
print("other words end in nearly the same:", bool(3 * words[-1] < thing[-1]))
print("others part at once: a fifth of the way, a third of the distance:",
      bool(colour[5] > colour[-1] / 3), bool(thing[5] > thing[-1] / 3))  # fmt: skip
seen = walks["another colour"][0][1]
rows = dict(zip(PAIR, (shipped.decode(row).cpu() for row in seen), strict=True))
plots.picture_rows(rows, alt="What is seen on the way: blurs, then two apples")

# %% [markdown]
# <details><summary>Answer</summary>
#
# At once. In the very first look one blur is red and the other green; place and size
# follow, edges come last. So whoever wants to change a colour must begin early.
#
# </details>

# %% [markdown]
# ## Play
#
# All of it at once. A **negative prompt** takes the place of the empty one: guidance
# leads away from it. At the right, lit, where the chosen word is looked at. **Predict
# first:** "fruit", and away from "red apple": what will you get?


# %%
def frames(prompt, unwanted, word, seed, guidance, steps):
    asked = word.strip() and word in prompt  # else the picture is shown alone
    places = word_places(tokenizer, prompt, word) if asked else []
    how = {"seed": seed, "guidance": guidance, "steps": steps, "unwanted": unwanted}
    with Watching(shipped) as seen:
        for _, x0 in shipped.stream([prompt], **how):
            picture = shipped.decode(x0).cpu()
            if not places:
                yield picture
                continue
            lit = word_maps(seen.maps, 1, 64)[:, places].sum(1, keepdim=True).cpu()
            yield torch.cat([picture, picture * lit / lit.max()])


steps_taken = widgets.slider("Steps", 25, 1, 100)
widgets.film(
    [
        widgets.text("Prompt", "a 3D drawing of a cat face"),
        widgets.text("Away from", ""),
        widgets.text("Word", "cat"),
        widgets.slider("Seed", 0, 0, 1000),
        widgets.slider("Guidance", 3.0, 0.0, 10.0),
        steps_taken,
    ],
    frames,
    "Latent diffusion: words, what to keep away from, and where one word is seen.",
    steps=steps_taken,
    strip=8,
)

# %%
plain, away = (shipped.generate(["fruit"] * 8, seed=range(8), unwanted=unwanted).cpu()
               for unwanted in ("", "red apple"))  # fmt: skip
plots.picture_rows({"fruit": plain, "fruit, away from red apple": away},
                   alt="Fruits, and the same seeds with less red in them")  # fmt: skip
print("less red than before:", greener(away) > greener(plain))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Green and yellow things that are hardly round: away from red, and from apples, too.
# A negative prompt knows no *but*.
#
# </details>

# %% [markdown]
# ## Break it
#
# The shipped network, asked for twenty things, each time with one part spoilt:
#
# 1. **scaled back by 0.18215**, copied from Stable Diffusion;
# 2. **one vector, no words**: the states of an empty caption, the right vector;
# 3. **words, no vector**, as in Stable Diffusion v1;
# 4. **padding not masked**: what stands behind END counts, too;
# 5. **guidance away from zeros**, no empty caption's states.
#
# **Predict first.** Which hurts most? Which not at all?

# %%
from utils.bricks.dalle import found_among

pool = sorted({x for x in kept.table["label_en"] if "flag" not in x})
wanted = pool[7::75][:20]
noise, text = shipped.begin(wanted, range(20))
vectors, states, mask = text  # of the captions, and below them of twenty empty ones
nothing = torch.cat([states[20:]] * 2), torch.cat([mask[20:]] * 2)
spoilt = {
    "whole": text,
    "no words": (vectors, *nothing),
    "no vector": (torch.zeros_like(vectors), states, mask),
    "padding counts": (vectors, states, torch.zeros_like(mask)),
    "away from zeros": (vectors, torch.cat([states[:20], 0 * states[20:]]), mask),
}
drawings, begun = {}, noise()
for name, said in spoilt.items():
    how = {"text": said, "guidance": 3.0, "clamp": False}
    *_, (x, _) = walk(shipped, begun, shipped.times(15), **how)
    drawings[name] = shipped.decode(x)
    if name == "whole":
        drawings["0.18215"] = kl.decode(x / 0.18215)
rows = {name: x[:10].cpu() for name, x in drawings.items()}
plots.picture_rows(rows, alt="Whole, and with five faults", size=48)
scores = {
    name: found_among(judge, x, wanted, pool, 20).float().mean().item()
    for name, x in drawings.items()
}
fig, ax = plots.figure(width=6, height=2.2)
plots.bars(ax, scores, "text", "Is it what was asked for?", "found among 20")
plots.show(fig, "How often the judge finds what was asked for, with each fault")
contrast = {name: x.std().item() for name, x in drawings.items()}
print("the copied factor is garish:", contrast["0.18215"] > 1.1 * contrast["whole"])
lost = scores["no words"] - scores["no vector"]
print("no vector hurts more than no words:", lost > 0.2)
print("padding hardly counts:", abs(scores["padding counts"] - scores["whole"]) < 0.11)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The missing vector. The copied factor is only garish. This network has two ears and
# listens to the vector first: without words it still draws most things, without the
# vector few. Stable Diffusion v1 has no such vector, and had to learn it all from
# words. Padding repeats END, and one END more tells nothing new. Zeros were never
# what the text tower said: guidance leads away from nowhere, and edges fray.
#
# </details>

# %% [markdown]
# ## Exercises
#
# > **Exercise 1 · The factor** — difficulty 2 of 3, about 10 minutes. Why it
# > matters: 0.18215 was taken from *one* batch. Latents of a large data set come batch
# > by batch and cannot all be held. Write `scale_factor(batches)`: one over the
# > deviation of **all** numbers of a generator of batches, seen once, none of them
# > kept. Mind that batches may differ in size and in mean.


# %% tags=["exercise"]
def scale_factor(batches: Iterator[Tensor]) -> float:
    """Batches (B, C, h, w) → the number that gives them all together variance 1."""
    ...


# %%
from utils.exercises import latent_diffusion as exercises

exercises.check_scale_factor(scale_factor)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Three sums are enough: of how many numbers there are, of the numbers, of their
# squares. The variance is the mean of the squares less the square of the mean. Sum in
# float64.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def scale_factor(batches):
#     count, total, squares = 0, 0.0, 0.0
#     for batch in batches:
#         batch = batch.double()
#         count += batch.numel()
#         total += batch.sum().item()
#         squares += batch.square().sum().item()
#     return (squares / count - (total / count) ** 2) ** -0.5
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · Two wishes and a dislike** — difficulty 1 of 3, about 6 minutes.
# > Why it matters: interfaces let you weigh several captions against each other, some
# > of them negative. Each caption has its own answer of the network; guidance adds the
# > *differences* to the answer for the empty caption. Write `weighed(free, answers,
# > weights)`; with one caption it is lesson 11's formula, a negative weight leads away.


# %% tags=["exercise"]
def weighed(free: Tensor, answers: list[Tensor], weights: list[float]) -> Tensor:
    """free: (B, …); answers: as many as weights, (B, …) each → (B, …)."""
    ...


# %%
exercises.check_weighed(weighed)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `free + weight * (answer - free)`, and one more such term for each further caption.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def weighed(free, answers, weights):
#     return free + sum(w * (a - free) for a, w in zip(answers, weights))
# ```
#
# </details>

# %% [markdown]
# > **Exercise 3 · What may surely change** — difficulty 2 of 3, about 10 minutes. Why
# > it matters: `inpaint` frees a place if *any* of its pixels may change, and so
# > redraws a margin that nobody asked for. The careful way frees it only if **all**
# > may. Write `strict_mask(mask, factor)`: (B, 1, S, S) of 0 and 1 →
# > (B, 1, S/factor, S/factor).


# %% tags=["exercise"]
def strict_mask(mask: Tensor, factor: int) -> Tensor:
    """1 for a place all of whose pixels are 1, else 0."""
    ...


# %%
exercises.check_strict_mask(strict_mask)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The least of numbers is minus the greatest of their negatives, and for the greatest
# there is `F.max_pool2d`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def strict_mask(mask, factor):
#     return -F.max_pool2d(-mask, factor)
# ```
#
# </details>

# %% [markdown]
# ## Myth check
#
# **"Stable Diffusion is VQGAN with another Transformer."** Half true of the paper's
# models whose autoencoder has a codebook, which is looked up only in the decoder.
# Stable Diffusion's has none: four channels of continuous numbers, all places denoised
# at once. What is left of VQGAN is how the autoencoder is *trained*.
#
# **"The U-Net reads CLIP's shared embedding."** Stable Diffusion v1 reads the last
# hidden *states* of a frozen CLIP ViT-L/14 text tower, 77 × 768, before the
# projection, padding and all. Our prompts say as many words as they have:

# %%
_, states, mask = shipped.encode_text(["red heart", "a 3D drawing of a cat face"])
print("states that count:", (mask == 0).sum(1).tolist(), "of width", states.shape[2])
print("the shared embedding is another width:", shipped.dim != states.shape[2])

# %% [markdown]
# **"Stable Diffusion is a CVPR 2022 paper."** That is Rombach et al., *latent
# diffusion*. Stable Diffusion is a release of August 2022 that was built on it.
#
# ## Differs from the paper
#
# | | Stable Diffusion v1 | here | why |
# |---|---|---|---|
# | pictures, latents | 512 px, 64 × 64 × 4 | 64 px, 8 × 8 × 8 | a laptop |
# | autoencoder | L1, LPIPS, a critic | begins at `vqgan`'s weights, no critic | time |
# | scale | 0.18215 for all | mean and deviation of each channel | computed, exactly |
# | U-Net | 860 M, self → cross → GEGLU | a few M, self → cross | fits |
# | text | 77 × 768 states, no mask | states, masked; the vector, too | a small net |
# | target, schedule | ε, scaled linear | v, cosine | lesson 10 |
# | sampler | 50 steps, w = 7.5 | 25 steps, w = 3 | measured |
# | data | LAION, billions | 6,791 drawings | offline |
#
# Straight paths between picture and noise, with their velocity as the target, came
# later (Stable Diffusion 3). The form of DDPM was kept, so that all that lessons 10 to
# 13 built holds without a change.
#
# ## Where this goes next
#
# Here a *text* said what to draw. **Lesson 15** puts CLIP's own picture vector in its
# place, learns to guess it from a caption, and ends the course: DALL·E 2.
#
# ## Read more
#
# - Rombach et al. 2022, *High-Resolution Image Synthesis with Latent Diffusion Models*.
# - Meng et al. 2022, *SDEdit: Guided Image Synthesis and Editing with Stochastic
#   Differential Equations*.
# - Lugmayr et al. 2022, *RePaint: Inpainting using Denoising Diffusion Probabilistic
#   Models*.
# - Hertz et al. 2022, *Prompt-to-Prompt Image Editing with Cross Attention Control*.
# - Carlini et al. 2023, *Extracting Training Data from Diffusion Models*.
#
# **Glossary** · 潜在扩散 latent diffusion · 潜变量 latent · 交叉注意力
# cross-attention · 词元状态 token states · 反向提示词 negative prompt · 图像修补
# inpainting · 图生图 image-to-image · 记忆 memorisation
