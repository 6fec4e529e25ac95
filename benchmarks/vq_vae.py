"""Our codebook against VectorQuantize of vector-quantize-pytorch, from the same state."""

from collections.abc import Iterator

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from benchmarks.measure import Row, agree, race
from utils import device as devices
from utils.bricks.vq_vae import Codebook
from utils.recipes import RECIPES

TITLE = "The codebook of a VQ-VAE"
LIBRARIES = ("vector_quantize_pytorch",)
CODES, DIM, BATCH = RECIPES["vqgan"].codes, RECIPES["vqgan"].latent, RECIPES["vqgan"].batch
BETA = 0.25
METHOD = f"""\
- One codebook of {CODES:,} vectors, {DIM} wide, on the latents of a batch of {BATCH} pictures, in
  training: the nearest codes, the gradient of the latents, the running means. Theirs is
  `VectorQuantize` without what ours does not do: no rotation trick, no start by k-means, the same
  decay and weight of the commitment. No code is revived on either side, so that both do the same.
- Equal means that vectors, commitment, gradient and the codebook after the step are within 0.0001.
"""
SIDES = (8, 16)  # of the grid of a picture


def twins(vectors: Tensor) -> tuple[Codebook, VectorQuantize]:
    """Two codebooks with these vectors (K, d), each counted once so far."""
    codes, width = vectors.shape
    ours = Codebook(codes, width, dead=0.0)
    theirs = VectorQuantize(
        dim=width,
        codebook_size=codes,
        decay=ours.decay,
        commitment_weight=BETA,
        rotation_trick=False,
        kmeans_init=False,
        threshold_ema_dead_code=0,
    )
    ours.vectors.copy_(vectors), ours.sums.copy_(vectors), ours.counts.fill_(1)
    ours.updates.fill_(10**6)  # a mean that has forgotten its start, as theirs pretends
    book = theirs._codebook
    book.embed.data.copy_(vectors), book.embed_avg.data.copy_(vectors)
    book.cluster_size.data.fill_(1)
    return ours.train(), theirs.train()


def rows(
    device: torch.device,
    seconds: float,
    codes: int = CODES,
    width: int = DIM,
    batch: int = BATCH,
    sides: tuple[int, ...] = SIDES,
) -> Iterator[Row]:
    """Forward and backward in training, at several sizes of the grid."""
    for side in sides:
        draw = devices.generator(0, side)
        ours, theirs = (m.to(device) for m in twins(torch.randn(codes, width, generator=draw)))
        z = torch.randn(batch, side * side, width, generator=draw).to(device).requires_grad_()
        pull = torch.randn(z.shape, generator=draw).to(device)  # what comes from the decoder

        def our_step(book=ours, z=z, pull=pull):
            passed, _, commitment = book(z)
            loss = BETA * commitment
            return passed, loss, torch.autograd.grad((passed * pull).sum() + loss, z)[0]

        def their_step(book=theirs, z=z, pull=pull):
            passed, _, loss = book(z)
            return passed, loss.sum(), torch.autograd.grad((passed * pull).sum() + loss.sum(), z)[0]

        what = f"{batch} × {side} × {side} latents"
        results = zip(("vectors", "commitment", "gradient"), our_step(), their_step(), strict=True)
        for name, one, other in results:
            agree(f"{name} of {what}", one, other)
        agree(f"codebook after {what}", ours.vectors, theirs._codebook.embed[0])
        yield race(f"codebook, forward and backward, {what}", our_step, their_step, device, seconds)
