"""The blanks of lesson 13."""

import torch
import torch.nn.functional as F

from utils.bricks import diffusion_clip as bricks
from utils.bricks.zero_shot import class_vectors
from utils.practice import Checks
from utils.practice.zero_shot import small_clip, units

check = Checks(bricks)

# ---------------------------------------------------------------- the direction of texts


def text_cases(generator):
    clip = small_clip(generator)
    yield clip, ["cat", "dog", "fox"], "a flat {}", "{} in gold"
    yield clip, ["a {brace"], "{}", "the {}, a drawing"


def direction_of(way=lambda one, other: other - one, mean=True, last=True):
    """`text_direction` with a part left out or done in another way."""

    @torch.no_grad()
    def text_direction(clip, labels, source, target):
        away = way(*(class_vectors(clip, labels, [text]) for text in (source, target)))
        away = away.mean(0) if mean else away[0]
        return F.normalize(away, dim=0) if last else away

    return text_direction


check.function(
    "text_direction",
    "`class_vectors(clip, labels, [template])` gives a unit vector for each label. Target less "
    "source, the mean over labels, then `F.normalize` along dim 0.",
    text_cases,
    {
        "from target to source; it goes the other way": direction_of(lambda one, other: one - other),
        "the mean of differences is to be made of length 1": direction_of(last=False),
        "that is the direction of the first label; take the mean over all": direction_of(mean=False),
        "that is the target; take the source from it": direction_of(lambda one, other: other),
    },
)

# ---------------------------------------------------------------- the losses


def vector_cases(generator):
    for rows, width in (4, 3), (1, 8), (6, 5):
        before, after = (units(rows, width, generator) for _ in range(2))
        yield before, after, 2 * torch.randn(width, generator=generator)


check.function(
    "directional_loss",
    "1 less the cosine of after − before and the direction, along the last dimension: "
    "`F.cosine_similarity`.",
    vector_cases,
    {
        "that is the cosine; the loss is 1 less it": (
            lambda before, after, direction: F.cosine_similarity(after - before, direction, dim=-1)
        ),
        "from after to before; it goes the other way": (
            lambda before, after, direction: (
                1 - F.cosine_similarity(before - after, direction, dim=-1)
            )
        ),
        "that is the global loss: where a picture is, not how it moved": (
            lambda before, after, direction: 1 - F.cosine_similarity(after, direction, dim=-1)
        ),
        "a dot product grows with the length of a move; take the cosine": (
            lambda before, after, direction: 1 - (after - before) @ direction
        ),
        "one loss for each picture, (B,); the mean comes later": (
            lambda before, after, direction: (
                1 - F.cosine_similarity(after - before, direction, dim=-1)
            ).mean()
        ),
    },
)


def loss_cases(generator):
    for rows in 1, 5, 8:
        yield (1.98 * torch.rand(rows, generator=generator),)


check.function(
    "log_form",
    "−log of (2 − L)/2, number by number.",
    loss_cases,
    {
        "the sign: a loss that grows with L": lambda loss: ((2 - loss) / 2).log(),
        "the half is missing: it is to be 0 at L = 0": lambda loss: -(2 - loss).log(),
        "this is endless at L = 0, where all is well": lambda loss: -(loss / 2).log(),
    },
)
