"""Our contrastive loss against the plain formula with two cross-entropies."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Row, agree, race, weigh
from utils import device as devices
from utils.bricks.clip import contrastive_loss
from utils.recipes import RECIPES

TITLE = "The contrastive loss"
LIBRARIES = ("torch",)
DIM = RECIPES["clip"].dim
METHOD = f"""\
- The loss is that of vectors {DIM} wide, against two calls of `F.cross_entropy` on the same
  matrix of logits, with the gradients of pictures, texts and scale.
- Equal means that the losses are within 0.0001.
"""
SIZES = (256, 1024, 4096)  # pairs in a batch


def plain_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The usual formula: images, texts (N, d), scale a number → a scalar."""
    logits = scale * images @ texts.T  # (N, N)
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def rows(
    device: torch.device, seconds: float, sizes: tuple[int, ...] = SIZES, dim: int = DIM
) -> Iterator[Row]:
    """Time and peak memory of forward and backward, at several batch sizes."""
    # Apple's GPU does not tell its peak
    countable = torch.device("cpu") if device.type == "mps" else device
    memory = []
    for size in sizes:
        draws = torch.randn(2, size, dim, generator=devices.generator(0, size))
        scale = torch.tensor(1 / 0.07)
        inputs = [*F.normalize(draws, dim=-1), scale]

        def both(place: torch.device, inputs=inputs):
            here = [x.detach().to(place).requires_grad_() for x in inputs]
            for loss in (contrastive_loss, plain_loss):
                yield lambda loss=loss: torch.autograd.grad(loss(*here), here)

        agree(f"loss of {size} pairs", contrastive_loss(*inputs), plain_loss(*inputs))
        what = f"loss and gradients, {size:,} pairs"
        yield race(what, *both(device), device, seconds)
        memory.append(weigh(f"{what}: peak memory", *both(countable), countable))
    yield from memory
