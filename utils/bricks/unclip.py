"""The bricks of lesson 15_unclip.

Built by `make build` from lessons/15_unclip.py: edit them there.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.bricks.attention import Block
from utils.bricks.clip import CLIP
from utils.bricks.diffusion import betas, signal_left, timestep_embedding
from utils.bricks.latent_diffusion import LatentDiffusion, Said
from utils.bricks.sampling import walk
from utils.bricks.text_encoders import causal_mask
from utils.bricks.zero_shot import image_vectors
from utils.given import takes


class Prior(LatentDiffusion):
    """Captions → the vector that CLIP would give pictures of them, by diffusion.

    A Transformer reads the words, the caption's vector, the time, the noisy vector and
    a last token, whose state is the answer: x₀. It walks as latent diffusion does, in
    vectors (B, dim) scaled by √dim. Ramesh et al. 2022, sec. 2.2.
    """

    def __init__(
        self,
        clip: CLIP,
        width: int,
        depth: int,
        heads: int,
        schedule: str = "cosine",
        steps: int = 1000,
    ):
        nn.Module.__init__(self)
        self.config = {"width": width, "depth": depth, "heads": heads}
        self.config |= {"schedule": schedule, "steps": steps}
        self.clip, self.steps, self.predicts = clip, steps, "x0"
        self.dim, self.width = clip.config["dim"], width
        self.shape = (self.dim,)
        signal = signal_left(betas(schedule, steps)).float()
        self.register_buffer("signal", signal, persistent=False)  # ᾱ
        self.words = nn.Linear(clip.text_tower.width, width)
        self.vector = nn.Linear(self.dim, width)
        self.time = nn.Linear(width, width)
        self.noisy = nn.Linear(self.dim, width)
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.places = nn.Parameter(0.02 * torch.randn(4, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, self.dim)

    def forward(self, x: Tensor, t: Tensor, text: Said) -> Tensor:
        """The vector as it is seen in x_t (B, dim); t: (B,); text: `encode_text`."""
        vectors, states, mask = text
        time = self.time(timestep_embedding(t, self.width))
        query = self.query.expand(len(x), -1)
        last = torch.stack([self.vector(vectors), time, self.noisy(x), query], 1)
        tokens = torch.cat([self.words(states), last + self.places], 1)
        before = causal_mask(tokens.shape[1], x.device)
        seen = (before + F.pad(mask, (0, 4))[:, None])[:, None]  # (B, 1, L, L)
        for block in self.blocks:
            tokens = block(tokens, seen)
        return self.out(self.norm(tokens[:, -1])).float()

    @takes(pictures="pictures")
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] → scaled vectors (B, dim)."""
        return self.clip.encode_image(pictures) * self.dim**0.5

    def decode(self, z: Tensor) -> Tensor:
        """Scaled vectors → vectors of length 1, as CLIP has them: (B, dim)."""
        return F.normalize(z, dim=1)


@takes(prompts="texts", seed="whole", candidates="from 1", guidance="finite")
@torch.no_grad()
def imagine(
    prior: Prior,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    candidates: int = 2,
    guidance: float = 2.0,
    steps: int = 25,
) -> Tensor:
    """The vector of a picture for each prompt, (B, dim), of length 1.

    Of so many candidates that one which has the largest dot product with the caption's
    vector. Ramesh et al. 2022, sec. 2.2.
    """
    texts = prior.clip.encode_text(prompts)
    how, each = {"guidance": guidance, "steps": steps}, range(len(prompts))
    seeds = [[seed + 1000 * turn + i for i in each] for turn in range(candidates)]
    drawn = torch.stack([prior.generate(prompts, seed=s, **how) for s in seeds])
    best = (drawn * texts).sum(2).argmax(0)  # (B,)
    return drawn[best, torch.arange(len(best))]


class UnCLIP(nn.Module):
    """Vectors of CLIP → pictures: latent diffusion that is told one, not words.

    latent: frozen; words: how many tokens a vector becomes. After Ramesh et al. 2022,
    sec. 2.1.
    """

    def __init__(self, latent: LatentDiffusion, words: int):
        super().__init__()
        self.config, self.latent, self.words = {"words": words}, latent, words
        self.tokens = nn.Linear(latent.dim, words * latent.clip.text_tower.width)
        self.vector = nn.Linear(latent.dim, latent.dim)
        nn.init.eye_(self.vector.weight)  # as if a caption's vector came
        nn.init.zeros_(self.vector.bias)

    def says(self, vectors: Tensor) -> Said:
        """Vectors of CLIP, (B, dim), of length 1 → what a caption would say."""
        x = vectors.to(self.vector.weight.device) * self.latent.dim**0.5
        states = self.tokens(x).unflatten(1, (self.words, -1))
        return self.vector(x), states, x.new_zeros(len(x), self.words)

    @takes(vectors="(B, d)", seed="seeds", guidance="finite")
    @torch.no_grad()
    def stream(
        self,
        vectors: Tensor,
        *,
        seed: int | Sequence[int] = 0,
        guidance: float = 2.0,
        steps: int = 25,
        noise: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """From noise to latents of pictures; yields (x, x₀ as seen in it).

        vectors: (B, dim); seed: one for all, or one for each; noise: where the walk
        begins, (B, C, h, w), or None for that of the seeds. Raises ValueError in one
        sentence.
        """
        count, dim = vectors.shape
        if not count or dim != self.latent.dim:
            given = f"vectors are {count} × {dim}"
            raise ValueError(f"{given}; give one or more of {self.latent.dim} numbers")
        text = self.latent.beside(self.says(vectors))
        if noise is None:
            seeds = [seed] * count if isinstance(seed, int) else seed
            noise = self.latent.begin(None, seeds)[0]()
        if noise.shape != (count, *self.latent.shape):
            given = f"there are {count} vectors and {len(noise)} seeds or noises"
            raise ValueError(f"{given}; give one for each, {self.latent.shape}")
        how = {"guidance": guidance, "clamp": False}
        yield from walk(self.latent, noise, self.latent.times(steps), text, **how)

    def draw(self, vectors: Tensor, **how) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] of vectors; see `stream`."""
        *_, (x, _) = self.stream(vectors, **how)
        return self.latent.decode(x)


@takes(pictures="pictures", seed="whole", guidance="finite", steps="from 1")
@torch.no_grad()
def variations(
    model: UnCLIP, pictures: Tensor, *, seed: int = 0, guidance=2.0, steps: int = 25
) -> Tensor:
    """Other pictures of what pictures (B, 3, S, S) in [0, 1] show, as many, 64 px wide.

    A picture becomes a vector, and the vector a picture. After Ramesh et al. 2022,
    sec. 3.1, where the walk begins at the picture's own noise, with dice.
    """
    vectors = image_vectors(model.latent.clip, pictures)
    seeds = range(seed, seed + len(pictures))
    return model.draw(vectors, seed=seeds, guidance=guidance, steps=steps)


@takes(start="(B, d)", end="(B, d)")
def slerp(start: Tensor, end: Tensor, share: float | Tensor) -> Tensor:
    """Round a sphere from start to end, (B, d) each, of length 1: (B, d).

    share: of the way, 0 for start and 1 for end, a number or (B, 1). Between opposite
    ends there is no one way. Shoemake 1985.
    """
    angle = (start * end).sum(-1, keepdim=True).clamp(-1, 1).acos()
    angle = angle.clamp(1e-3, torch.pi - 1e-3)  # none and half a turn have no direction
    parts = ((1 - share) * angle).sin(), (share * angle).sin()
    return (parts[0] * start + parts[1] * end) / angle.sin()


@takes(vectors="(B, d)", before="text", after="text", share="finite")
@torch.no_grad()
def text_difference(
    model: UnCLIP, vectors: Tensor, before: str, after: str, share: float = 0.5
) -> Tensor:
    """Vectors of pictures (B, dim), turned the way from one caption to another.

    share: how far, 0 for not at all. Raises ValueError where both captions say the
    same. Ramesh et al. 2022, sec. 3.3.
    """
    one, two = model.latent.clip.encode_text([before, after])
    if torch.allclose(one, two):
        raise ValueError(f"{before!r:.40} and {after!r:.40} say the same; give others")
    vectors = vectors.to(one.device)
    return slerp(vectors, F.normalize(two - one, dim=0).expand_as(vectors), share)


@takes(pictures="pictures", steps="from 1")
def noise_of(model: UnCLIP, pictures: Tensor, steps: int = 25) -> Tensor:
    """The noise from which the decoder comes to pictures (B, 3, S, S) as they are.

    By DDIM, backwards; the way there is one without guidance. Raises ValueError for
    pictures of another size. Ramesh et al. 2022, sec. 3.
    """
    latent = model.latent
    if pictures.shape[2:] != (latent.side, latent.side):
        found = "×".join(map(str, pictures.shape[2:]))
        raise ValueError(f"pictures are {found} pixels; scale them to {latent.side}")
    text = model.says(image_vectors(latent.clip, pictures))
    z = latent.encode(pictures.to(latent.signal.device))
    *_, (x, _) = walk(latent, z, latent.times(steps)[::-1], text, clamp=False)
    return x
