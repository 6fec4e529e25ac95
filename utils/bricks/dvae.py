"""The bricks of lesson 06_dvae.

Built by `make build` from lessons/06_dvae.py: edit them there.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.bricks.vq_vae import Decoder, Encoder, check_codes, check_pictures
from utils.bricks.vq_vae import roles as autoencoder_roles
from utils.given import takes


def gumbel_noise(logits: Tensor) -> Tensor:
    """Gumbel noise −log E, E exponential, in the shape and type of `logits`.

    The draws of F.gumbel_softmax, in its order, from torch's global generator.
    """
    exponential = torch.empty_like(logits, memory_format=torch.contiguous_format)
    return -exponential.exponential_().log()


def gumbel_max(logits: Tensor) -> Tensor:
    """A draw from softmax(logits) by argmax: (..., K) → (...) int64."""
    return (logits + gumbel_noise(logits)).argmax(-1)


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


def kl_from_uniform(logits: Tensor) -> Tensor:
    """KL(q ‖ uniform) in nats, q = softmax(logits): (..., K) → (...), in [0, ln K]."""
    log_q = logits.log_softmax(-1)  # no logarithm of a share that was rounded to 0
    return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])


def logit_laplace(x: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """ln f(x | μ, b), when logit(x) has a Laplace distribution; x in (0, 1).

    All of one shape, as the result. Ramesh et al. 2021, app. A.3.
    """
    stretch = x.log() + (-x).log1p()  # ln x(1 − x)
    return -math.log(2) - log_b - stretch - (x.logit() - mu).abs() / log_b.exp()


EDGE = 0.1  # ε in the paper


def map_pixels(pictures: Tensor) -> Tensor:
    """[0, 1] → [0.1, 0.9], where the logit is finite. Ramesh et al. 2021, app. A.3."""
    return (1 - 2 * EDGE) * pictures + EDGE


def unmap_pixels(values: Tensor) -> Tensor:
    """The way back, (0, 1) → [0, 1]: what lies beyond an edge becomes the edge."""
    return ((values - EDGE) / (1 - 2 * EDGE)).clamp(0, 1)


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


def negative_elb(
    pictures: Tensor, mu: Tensor, log_b: Tensor, logits: Tensor, beta: float = 1.0
) -> Tensor:
    """−ELB per colour value, a scalar: β·KL(q ‖ uniform) − ln p(x | z).

    pictures, mu, log_b: (B, 3, S, S), pictures in [0, 1]; logits: (B, h, w, K).
    """
    density = logit_laplace(map_pixels(pictures), mu, log_b)
    return (beta * kl_from_uniform(logits).sum() - density.sum()) / pictures.numel()


def annealed(step: int, start: float, end: float, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at `steps`; then it stays."""
    share = min(1.0, step / steps)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
