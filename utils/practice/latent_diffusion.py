"""The blanks of lesson 14."""

import torch
import torch.nn.functional as F
from torch import nn

from utils.bricks import latent_diffusion as bricks
from utils.bricks.attention import attend, join_heads, split_heads
from utils.bricks.diffusion import add_noise
from utils.practice import Checks

check = Checks(bricks)

# ---------------------------------------------------------------- the autoencoder


def normals(generator):
    for shape in (3, 4, 2, 2), (1, 5), (4, 2, 3, 1):
        yield torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def kl_of(mean=torch.square, spread=torch.exp, one=1.0, log=1.0, half=0.5, over=torch.sum):
    """`kl_to_normal` with a part done in another way."""

    def kl_to_normal(mu, log_variance):
        each = mean(mu) + spread(log_variance) - one - log * log_variance
        return half * over(each.flatten(1), 1)

    return kl_to_normal


check.function(
    "kl_to_normal",
    "½·Σ(μ² + σ² − 1 − log σ²): `log_variance.exp()` is σ². Flatten all but the first axis, then "
    "sum.",
    normals,
    {
        "the half is missing": kl_of(half=1.0),
        "sum over the numbers of a picture, do not take their mean": kl_of(over=torch.mean),
        "what comes in is log σ², so σ² is its exp; no square is needed": kl_of(
            spread=lambda log_variance: (2 * log_variance).exp()
        ),
        "it must be 0 at μ = 0, σ = 1; the −1 is missing": kl_of(one=0.0),
        "the sign of log σ²": kl_of(log=-1.0),
        "μ counts squared": kl_of(mean=torch.abs),
        "one number for each picture, (B,)": lambda mean, log_variance: (
            kl_of()(mean, log_variance).sum()
        ),
    },
)

# ---------------------------------------------------------------- cross-attention


def attention_cases(generator):
    for width, context, heads, places in (8, 6, 2, 5), (6, 4, 3, 3):
        x = torch.randn(2, places, width, generator=generator)
        states = torch.randn(2, 4, context, generator=generator)
        mask = torch.zeros(2, 4)
        mask[1, 2:] = -torch.inf
        yield {"width": width, "context": context, "heads": heads}, (x, states, mask)


def own_values(self, states):
    return self.v(states)


def without_last(self, x, states, mask):
    parts = self.q(x), self.k(states), self.v(states)
    q, k, v = (split_heads(part, self.heads) for part in parts)
    return join_heads(attend(q, k, v, mask[:, None, None]))


def crossing(masked=lambda mask: mask[:, None, None], heads=None, values=None, way=None):
    """`CrossAttention.forward` with a part left out or done in another way."""

    def forward(self, x, states, mask):
        parts = self.q(x), self.k(states), (values or own_values)(self, states)
        q, k, v = (split_heads(part, heads or self.heads) for part in parts)
        seen = self.out(join_heads(attend(q, k, v, masked(mask))))
        return way(x, seen) if way else seen

    return forward


check.method(
    "CrossAttention.forward",
    "Queries are `self.q(x)`, keys and values `self.k(states)` and `self.v(states)`; split each "
    "into heads. The mask (B, M) becomes (B, 1, 1, M), the same for all heads and places. Then "
    "`attend`, `join_heads`, `self.out`.",
    attention_cases,
    {
        "the mask is left out": crossing(masked=lambda mask: None),
        "the mask is added, and −inf turned round lets look where nothing is": crossing(
            masked=lambda mask: (mask == 0)[:, None, None].float()
        ),
        "split into heads first": crossing(heads=1),
        "values come from `self.v`, not from the keys' layer": crossing(
            values=lambda self, states: self.k(states)
        ),
        "x is added later, in the mixer, not here": crossing(way=lambda x, seen: x + seen),
        "the last layer, `self.out`, is missing": without_last,
    },
)

# ---------------------------------------------------------------- the loss


class Small(nn.Module):
    """A latent diffusion model of one layer, all that the loss asks for."""

    def __init__(self, predicts, steps, generator):
        super().__init__()
        self.predicts, self.steps = predicts, steps
        self.register_buffer("signal", torch.linspace(0.95, 0.05, steps))
        self.layer = nn.Conv2d(4, 4, 1)
        for weight in self.layer.parameters():
            weight.data = torch.randn(weight.shape, generator=generator)

    def forward(self, x, t, text):
        vectors, states, mask = text
        return self.layer(x) * (1 + t / self.steps)[:, None, None, None] + vectors[:, :, None, None]


def loss_cases(generator):
    for predicts in "v", "eps", "x0":
        model = Small(predicts, 9, generator)
        text = torch.randn(6, 4, generator=generator), torch.zeros(6, 2, 3), torch.zeros(6, 2)
        yield model, torch.randn(6, 4, 2, 2, generator=generator), text


def lossy(predicts=None, level=lambda signal, t: signal[t], told=lambda t: t, error=F.mse_loss):
    """`latent_loss` with a part done in another way."""

    def latent_loss(model, x0, text):
        t = torch.randint(model.steps, (len(x0),)).to(x0.device)
        noise = torch.randn(x0.shape).to(x0.device)
        signal = level(model.signal, t)
        said = model(add_noise(x0, noise, signal), told(t), text)
        return error(said, bricks.target(predicts or model.predicts, x0, noise, model.signal[t]))

    return latent_loss


check.function(
    "latent_loss",
    "Draw t with `torch.randint` (B,), then the noise with `torch.randn`, as large as x0. "
    "`add_noise` with ᾱ at t, ask the model about it, and compare with `target`.",
    loss_cases,
    {
        "the answer is compared with the noise; ask `target` what the model predicts": lossy("eps"),
        "the answer is compared with the latents; ask `target` what the model predicts": lossy("x0"),
        "one time for each row, not the same for all": lossy(
            level=lambda signal, t: signal[t[:1].expand_as(t)]
        ),
        "`signal` is ᾱ already; `add_noise` takes its roots": lossy(
            level=lambda signal, t: signal[t].sqrt()
        ),
        "the network must be told the time": lossy(told=torch.zeros_like),
        "a mean of squares, not a sum": lossy(
            error=lambda said, wanted: (said - wanted).square().sum()
        ),
    },
)

# ---------------------------------------------------------------- the maps of words


def map_cases(generator):
    for rows, tokens, sides in (2, 5, (4, 2)), (1, 3, (2, 2, 1)):
        maps = [
            torch.rand(2 * rows, side**2, tokens, generator=generator).softmax(-1) for side in sides
        ]
        yield maps, rows, 8


def mapped(which=lambda part, rows: part[:rows], end=lambda maps: maps.mean(0), mode="bilinear"):
    """`word_maps` with a part done in another way."""

    def word_maps(maps, rows, side):
        scaled = []
        for part in maps:
            part = which(part, rows).transpose(1, 2)
            part = part.unflatten(2, (round(part.shape[2] ** 0.5), -1))
            scaled.append(F.interpolate(part, (side, side), mode=mode))
        return end(torch.stack(scaled))

    return word_maps


check.function(
    "word_maps",
    "Of each map the first rows, its tokens before its places: (rows, M, h·w), then (rows, M, h, "
    "w). `F.interpolate(part, (side, side), mode=\"bilinear\")`; the mean over all maps.",
    map_cases,
    {
        "those are the rows without the caption; take the first": mapped(
            lambda part, rows: part[rows:]
        ),
        "the mean over calls, not their sum": mapped(end=lambda maps: maps.sum(0)),
        "that is the last call alone; take the mean over all": mapped(end=lambda maps: maps[-1]),
        "scale them bilinearly, for smooth maps": mapped(mode="nearest"),
    },
)
