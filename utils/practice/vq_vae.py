"""The blanks of lesson 05."""

import torch
import torch.nn.functional as F

from utils.bricks import vq_vae as bricks
from utils.bricks.vq_vae import nearest_code, smoothed
from utils.practice import Checks

check = Checks(bricks)

# ---------------------------------------------------------------- signal and noise


def picture_cases(generator):
    for shape in (2, 3, 4, 4), (3, 3, 2, 6), (1, 3, 5, 3):
        yield torch.rand(2, *shape, generator=generator).unbind()


def ratio(error=lambda e: e.square(), mean=lambda e: e.flatten(1).mean(1), scale=-10, log=None):
    """`psnr` with a part done in another way."""

    def psnr(pictures, reconstructions):
        return scale * (log or torch.log10)(mean(error(pictures - reconstructions)))

    return psnr


check.function(
    "psnr",
    "Square the difference, flatten each picture (`flatten(1)`) and take its mean: (B,). Then "
    "10·log₁₀(1/error) is −10·log₁₀(error).",
    picture_cases,
    {
        "the sign is turned: a smaller error gives more decibels": ratio(scale=10),
        "this is 20·log₁₀; the error is squared already, so 10": ratio(scale=-20),
        "the logarithm is the natural one; decibels take log₁₀": ratio(log=torch.log),
        "the error is the absolute one; square it": ratio(error=torch.abs),
        "this is one number for the whole batch; each picture has its own": ratio(
            mean=torch.mean
        ),
        "the errors of a picture are summed; take their mean": ratio(
            mean=lambda e: e.flatten(1).sum(1)
        ),
    },
)

# ---------------------------------------------------------------- the nearest code


def code_cases(generator):
    for shape, codes in ((5, 3), 4), ((2, 4, 4, 6), 9), ((1, 2), 3):
        z = torch.randn(*shape, generator=generator)
        yield z, 2 * torch.randn(codes, shape[-1], generator=generator)


def nearest(norms=0.5, sign=1.0, best=torch.argmax):
    """`nearest_code` with a part left out or turned."""

    def nearest_code(z, codebook):
        score = sign * (z @ codebook.T) - norms * codebook.square().sum(-1)
        return best(score, -1)

    return nearest_code


check.function(
    "nearest_code",
    "‖z − e‖² = ‖z‖² − 2 z·e + ‖e‖², and ‖z‖² is the same for every code. So the nearest has "
    "the largest `z @ codebook.T - codebook.square().sum(-1) / 2`: `argmax` over the last axis.",
    code_cases,
    {
        "this is the farthest code: the largest score belongs to the nearest": nearest(
            best=torch.argmin
        ),
        "‖e‖² is missing: a long code wins although it lies far away": nearest(norms=0.0),
        "‖e‖² counts twice as much as it should: halve it": nearest(norms=1.0),
        "‖e‖² is added; take it away": nearest(norms=-0.5),
        "z·e has the wrong sign": nearest(sign=-1.0),
    },
)

# ---------------------------------------------------------------- the codebook


def latent_cases(generator):
    for batch, width, codes in (6, 3, 4), (9, 2, 5):
        z = torch.randn(2, batch, width, generator=generator)
        yield {"codes": codes, "width": width, "dead": 0.0}, (z,)


def lookup(passed=lambda z, chosen: z + (chosen - z).detach(), commit=F.mse_loss, moves=True):
    """`Codebook.forward` with a part left out or done in another way."""

    def forward(self, z):
        indices = nearest_code(z, self.vectors)
        chosen = self.vectors[indices]
        if self.training and moves:
            self.update(z.detach().flatten(0, -2), indices.flatten())
        return passed(z, chosen), indices, commit(z, chosen)

    return forward


check.method(
    "Codebook.forward",
    "Find the indices, look the vectors up, and in training call `self.update` with the latents "
    "as (N, width), without their gradient, and the indices as (N,). The commitment is "
    "`F.mse_loss(z, chosen)`. What goes on is `z + (chosen - z).detach()`.",
    latent_cases,
    {
        "the codebook does not move: call `self.update` in training": lookup(moves=False),
        "the latents go on as they are; the decoder must get the codes": lookup(
            passed=lambda z, chosen: z
        ),
        "the commitment is a sum; take the mean": lookup(
            commit=lambda z, chosen: (z - chosen).square().sum()
        ),
    },
)


def update_cases(generator):
    for n, width, codes in (12, 3, 4), (20, 2, 5):
        z = torch.randn(n, width, generator=generator)
        indices = torch.randint(codes, (n,), generator=generator)
        yield {"codes": codes, "width": width, "decay": 0.9, "dead": 0.0}, (z, indices)


def moved(weight=lambda decay: 1 - decay, mean=False, debias=True, divide=True):
    """`Codebook.update` with a part left out or done in another way."""

    @torch.no_grad()
    def update(self, z, indices):
        hot = F.one_hot(indices, len(self.counts)).float()  # (N, K)
        counts, sums = hot.sum(0), hot.T @ z
        if mean:
            sums = sums / counts.clamp(min=1).unsqueeze(1)
        self.updates += 1
        self.counts.lerp_(counts, weight(self.decay))
        self.sums.lerp_(sums, weight(self.decay))
        share = 1 - self.decay**self.updates if debias else 1
        sizes = smoothed(self.counts / share).unsqueeze(1)
        chosen = self.counts.unsqueeze(1) > 0
        new = self.sums / share / sizes if divide else self.sums / share
        self.vectors.copy_(torch.where(chosen, new, self.vectors))

    return update


check.method(
    "Codebook.update",
    "`index_add_` counts and sums by index. `self.counts.lerp_(counts, 1 - self.decay)` moves a "
    "running mean. Count the update, and divide both means by 1 − γᵗ where they are read. The "
    "new vectors are sums over `smoothed` counts; a code without a count stays. Idle codes (fewer "
    "than `self.dead`) move to latents drawn with `torch.randint`.",
    update_cases,
    {
        "the new batch counts γ and the past 1 − γ; it is the other way round": moved(
            weight=lambda decay: decay
        ),
        "`sums` holds means; it is the sum of the latents that chose a code": moved(mean=True),
        "the vectors are the sums; divide them by the counts": moved(divide=False),
    },
)
