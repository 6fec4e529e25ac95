"""The bricks of lesson 07_vqgan.

Built by `make build` from lessons/07_vqgan.py: edit them there.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import device
from utils.bricks.attention import Block
from utils.bricks.clip import CLIP, MEAN, STD
from utils.bricks.text_encoders import causal_mask
from utils.bricks.vq_vae import check_pictures
from utils.given import takes


class PerceptualDistance(nn.Module):
    """How far two pictures are apart in the eyes of a trained ResNet tower.

    (B, 3, H, W) twice, in [0, 1] → (B,). At the end of every stage the features of each
    place become a unit vector; the squared differences are summed over channels,
    averaged over places, and added up over the stages: LPIPS (Zhang et al. 2018, eq. 1)
    with every weight at 1. The tower is frozen and stays in eval mode.
    """

    def __init__(self, clip: CLIP):
        super().__init__()
        if not hasattr(clip.image_tower, "layers"):
            kind = type(clip.image_tower).__name__
            raise ValueError(f"a {kind} has no stages; give a CLIP with a ResNet tower")
        self.tower = clip.image_tower.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "PerceptualDistance":
        # a parent's train() reaches its children: BatchNorm would learn from batches
        return super().train(False)

    @takes(pictures="pictures with noise")
    def features(self, pictures: Tensor) -> list[Tensor]:
        """Unit vectors along the channels of every stage's map: [(B, C, h, w), …]."""
        check_pictures(pictures, 4)
        mean = torch.tensor(MEAN, device=pictures.device).view(3, 1, 1)
        std = torch.tensor(STD, device=pictures.device).view(3, 1, 1)
        x = ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)
        found = []
        for layer in self.tower.layers:
            if isinstance(layer, nn.AvgPool2d):  # a stage ends here
                found.append(x)
            x = layer(x)
        return [F.normalize(x.float(), dim=1, eps=1e-6) for x in [*found, x]]

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        pairs = zip(self.features(one), self.features(other), strict=True)
        # (B, C, h, w) → sum over channels, mean over places → (B,)
        return sum((a - b).square().sum(1).mean((1, 2)) for a, b in pairs)


def shifted(
    one: Tensor, other: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Both pictures, moved round the edge by the same 0 to 3 pixels down and right."""
    move = torch.randint(4, (2,), generator=generator).tolist()
    return one.roll(move, (2, 3)), other.roll(move, (2, 3))


class PatchCritic(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] → one score for each patch, (B, 1, h, w).

    4×4 convolutions: the first `halvings` with stride 2, two more with stride 1. With
    1, 2 or 3 halvings a score sees 16, 34 or 70 pixels. High means real. Isola et al.
    2017, sec. 3.2.2; with GroupNorm in place of BatchNorm, no picture's score depends
    on its neighbours in the batch.
    """

    def __init__(self, width: int = 32, halvings: int = 2):
        super().__init__()
        widths = [width * 2 ** min(i, 3) for i in range(halvings + 1)]
        layers = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (wide, wider) in enumerate(pairwise(widths), 1):
            stride = 1 if i == halvings else 2
            layers += [
                nn.Conv2d(wide, wider, 4, stride, padding=1, bias=False),
                nn.GroupNorm(8, wider),
                nn.LeakyReLU(0.2),
            ]
        layers += [nn.Conv2d(widths[-1], 1, 4, padding=1)]
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, pictures: Tensor) -> Tensor:
        x = (2 * pictures - 1).contiguous(memory_format=torch.channels_last)
        return self.layers(x).float()


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the critic: scores of real patches above 1, of drawn ones below −1.

    Any shapes → a scalar. Lim & Ye 2017; halved as in Esser et al. 2021.
    """
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def fooling_loss(fake: Tensor) -> Tensor:
    """What the generator adds to its loss: drawn patches shall score high. A scalar."""
    return -fake.mean()


def adaptive_weight(
    nll: Tensor, fooling: Tensor, last: Tensor, ceiling: float = 1e4
) -> Tensor:
    """λ = ‖∂nll/∂last‖ / (‖∂fooling/∂last‖ + 1e-4), in [0, ceiling], without gradient.

    nll, fooling: scalars that both depend on `last`, the weight of the decoder's last
    layer. With λ·fooling the critic pulls at that layer as hard as the reconstruction
    does. Esser et al. 2021, eq. 7.
    """
    pulls = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (nll, fooling)
    ]
    return (pulls[0] / (pulls[1] + 1e-4)).clamp(0, ceiling).detach()


class CodeTransformer(nn.Module):
    """Codes so far → logits of every next one: (B, L) in [0, K) → (B, L+1, K).

    codes: K; side: the grid's, which is read row by row; classes: how many first tokens
    there are, of which (B,) say what the pictures shall be. Entry i of the logits sees
    the first token and the codes before i. Esser et al. 2021, sec. 3.2; the layout is
    GPT-2's.
    """

    def __init__(
        self,
        codes: int,
        side: int = 8,
        classes: int = 1,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
    ):
        super().__init__()
        self.side, self.classes = side, classes
        self.first = nn.Embedding(classes, width)
        self.codes = nn.Embedding(codes, width)
        self.positions = nn.Parameter(torch.zeros(side * side, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, activation="gelu") for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codes, bias=False)
        for table in (self.first.weight, self.codes.weight, self.positions):
            nn.init.normal_(table, std=0.02)

    def forward(self, before: Tensor, classes: Tensor) -> Tensor:
        length = before.shape[1] + 1
        if length > len(self.positions):
            raise ValueError(
                f"{length - 1} codes came before, but a picture has "
                f"{len(self.positions)}; leave out the last"
            )
        x = torch.cat([self.first(classes).unsqueeze(1), self.codes(before)], 1)
        x = x + self.positions[:length]  # (B, L+1, width)
        mask = causal_mask(length, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x)).float()


def corrupted(codes: Tensor, keep: float, total: int) -> Tensor:
    """Each code stays with probability `keep`, or gives way to a random one of `total`.

    For inputs alone: the targets stay. `pkeep` of taming-transformers.
    """
    stays = torch.rand(codes.shape, device=codes.device) < keep
    return torch.where(stays, codes, torch.randint_like(codes, total))


def next_code_loss(
    model: CodeTransformer, codes: Tensor, classes: Tensor, keep: float = 1.0
) -> Tensor:
    """Mean −log chance of every code after those before it, a scalar.

    codes: (B, side·side), row by row; classes: (B,).
    """
    before = corrupted(codes[:, :-1], keep, model.codes.num_embeddings)
    logits = model(before, classes)  # (B, side·side, K)
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten())


@takes(logits="(..., K)", k="whole")
def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k largest of each row; −inf in place of the others. (..., K) → (..., K).

    Of equals, as many stay as fit: always exactly k. Fan et al. 2018.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k is {k}; choose from 1 to {logits.shape[-1]}")
    largest = logits.topk(k, -1)
    return torch.full_like(logits, -torch.inf).scatter(
        -1, largest.indices, largest.values
    )


@takes(logits="(..., K)", p="number")
def keep_nucleus(logits: Tensor, p: float) -> Tensor:
    """The fewest of each row whose chances reach p; −inf in place of the others.

    (..., K) → (..., K). The one that crosses p stays, so one is always left. Nucleus or
    top-p sampling: Holtzman et al. 2020, sec. 3.1.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}; choose above 0 and at most 1")
    ordered = logits.sort(-1, descending=True)
    chances = ordered.values.double().softmax(-1)
    before = chances.cumsum(-1) - chances  # what the likelier ones hold
    kept = ordered.values.masked_fill(before >= p, -torch.inf)
    return torch.empty_like(logits).scatter(-1, ordered.indices, kept)


@takes(logits="(B, K)", noise="(B,)", temperature="number")
@takes(top_k="whole", top_p="finite")
def choose(
    logits: Tensor,
    noise: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Draw one code from each row: logits (B, K), noise (B,) in [0, 1) → (B,) int64.

    The chances lie side by side on a line from 0 to 1; the noise says where to look.
    top_k = 0 keeps all. First the temperature, then k, then p.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; choose one above 0")
    logits = logits / temperature
    if top_k:
        logits = keep_top_k(logits, top_k)
    if top_p < 1:
        logits = keep_nucleus(logits, top_p)
    ends = logits.double().softmax(-1).cumsum(-1)  # (B, K): where each piece ends
    places = noise.double().unsqueeze(1) * ends[:, -1:]  # the last end may miss 1
    return torch.searchsorted(ends, places, right=True)[:, 0]


def window(row: int, column: int, height: int, width: int, side: int) -> tuple:
    """Where the window of side×side codes lies that has a place in its middle.

    Returns (top, left). At the edges of the grid the window stops moving. Esser et al.
    2021, fig. 3.
    """
    top = min(max(row - side // 2, 0), height - side)
    left = min(max(column - side // 2, 0), width - side)
    return top, left


@torch.no_grad()
def sample(
    model: CodeTransformer,
    classes: Tensor,
    *,
    seed: int = 0,
    height: int = 0,
    width: int = 0,
    **how,
) -> Tensor:
    """Codes drawn one after the other, row by row: (B,) classes → (B, height, width).

    Picture i is that of seed + i, alone or in a batch. height, width: the grid's, by
    default the model's; a larger one is seen through a window that slides along. how:
    temperature, top_k, top_p.
    """
    side = model.side
    height, width = height or side, width or side
    if min(height, width) < side:
        raise ValueError(
            f"a grid of {height}×{width} codes is smaller than the window of "
            f"{side}×{side}; choose a larger one"
        )
    noise = [
        torch.rand(height, width, generator=device.generator(seed + i))
        for i in range(len(classes))
    ]
    noise = torch.stack(noise).to(classes.device)  # (B, height, width)
    codes = torch.zeros_like(noise, dtype=torch.long)
    for row in range(height):
        for column in range(width):
            top, left = window(row, column, height, width, side)
            seen = codes[:, top : top + side, left : left + side].flatten(1)
            at = (row - top) * side + column - left  # codes of the window drawn so far
            logits = model(seen[:, :at], classes)[:, -1]
            codes[:, row, column] = choose(logits, noise[:, row, column], **how)
    return codes
