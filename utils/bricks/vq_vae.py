"""The bricks of lesson 05_vq_vae.

Built by `make build` from lessons/05_vq_vae.py: edit them there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.given import takes


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


@takes(pictures="(..., H, W)", reconstructions="(..., H, W)")
def psnr(pictures: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB: (B, 3, H, W) twice → (B,).

    10·log₁₀(1 / mean squared error), for values in [0, 1].
    """
    error = (pictures - reconstructions).square().flatten(1).mean(1)
    return -10 * error.log10()


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
