"""The bricks of lesson 10_diffusion.

Built by `make build` from lessons/10_diffusion.py: edit them there.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import device
from utils.bricks.attention import Attention
from utils.bricks.clip import CLIP
from utils.bricks.dalle import check_prompts, each_seed


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


def spread(values: Tensor, x: Tensor) -> Tensor:
    """A number for each row of x, (B,), in a shape that multiplies x: (B, 1, …, 1)."""
    return values.to(x).view(-1, *[1] * (x.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """x_t = √ᾱ·x₀ + √(1 − ᾱ)·ε, in one step.

    x0, noise: (B, …); signal: ᾱ of each row, (B,). Ho et al. 2020, eq. 4.
    """
    signal = spread(signal, x0)
    return signal.sqrt() * x0 + (1 - signal).sqrt() * noise


def check_kind(kind: str) -> None:
    """Raise ValueError unless `kind` is what a network can be asked for."""
    if kind not in ("eps", "x0", "v"):
        raise ValueError(f"the target is {kind!r}; choose eps, x0 or v")


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


def timestep_embedding(t: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Steps as waves: (B,) → (B, width), cosines and then sines.

    The periods grow from 2π to 2π·longest. Vaswani et al. 2017, sec. 3.5.
    """
    half = width // 2
    places = torch.arange(half, dtype=torch.float32, device=t.device)
    speeds = torch.exp(-math.log(longest) * places / half)  # 1 … 1 / longest
    angles = t.float().unsqueeze(1) * speeds  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], 1)


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


def picture_distances(pictures: Tensor, known: Tensor) -> Tensor:
    """The root of the mean squared difference of every pair of pictures, (B, N).

    pictures: (B, 3, S, S); known: (N, 3, S, S).
    """
    one, other = pictures.flatten(1).float(), known.flatten(1).float()
    return torch.cdist(one, other) / one.shape[1] ** 0.5


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
