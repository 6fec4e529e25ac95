"""The bricks of lesson 14_latent_diffusion.

Built by `make build` from lessons/14_latent_diffusion.py: edit them there.
"""

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


def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) in nats, summed over each picture: (B, …) twice → (B,)."""
    each = mean.square() + log_variance.exp() - 1 - log_variance
    return each.flatten(1).sum(1) / 2


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


def latent_loss(model: LatentDiffusion, x0: Tensor, text: Said) -> Tensor:
    """The mean squared error of the network's answer, at random times: a scalar.

    x0: scaled latents (B, C, h, w). Rombach et al. 2022, eq. 2.
    """
    t = torch.randint(model.steps, (len(x0),)).to(x0.device)
    noise = torch.randn(x0.shape).to(x0.device)
    signal = model.signal[t]
    said = model(add_noise(x0, noise, signal), t, text)
    return F.mse_loss(said, target(model.predicts, x0, noise, signal))


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
