"""The blanks of lesson 15."""

import torch
import torch.nn.functional as F

from utils.bricks import unclip as bricks
from utils.practice import Checks
from utils.practice.zero_shot import small_clip, units

check = Checks(bricks)

# ---------------------------------------------------------------- round a sphere


def ends_of(generator):
    for rows, width, share in (4, 3, 0.3), (2, 8, 0.2), (3, 5, 0.9):
        yield units(rows, width, generator), units(rows, width, generator), share
    shares = torch.rand(3, 1, generator=generator)
    yield units(3, 4, generator), units(3, 4, generator), shares


def turned(parts=None, last=lambda x: x, whole=torch.sin):
    """`slerp` with a part done in another way; parts maps (angle, share) to both factors."""

    def slerp(start, end, share):
        angle = (start * end).sum(-1, keepdim=True).clamp(-1, 1).acos().clamp(1e-3, torch.pi - 1e-3)
        parted = parts or (lambda a, s: (((1 - s) * a).sin(), (s * a).sin()))
        one, other = parted(angle, share)
        return last((one * start + other * end) / whole(angle))

    return slerp


check.function(
    "slerp",
    "With the angle a between both, the arccosine of their dot product: sin((1 − share)·a) of "
    "the start and sin(share·a) of the end, over sin a. Keep the angle off 0 and π by 0.001.",
    ends_of,
    {
        "that is the straight line; go round": lambda start, end, share: torch.lerp(
            start, end, torch.as_tensor(share).expand(len(start), 1)
        ),
        "that is the straight line made of length 1; its pace is uneven": (
            lambda start, end, share: F.normalize((1 - share) * start + share * end, dim=-1)
        ),
        "start and end are swapped: 0 gives the start": turned(
            lambda a, s: ((s * a).sin(), ((1 - s) * a).sin())
        ),
        "sines are to be divided by the sine of the whole angle": turned(whole=torch.ones_like),
        "cosines where sines belong": turned(lambda a, s: (((1 - s) * a).cos(), (s * a).cos())),
    },
)

# ---------------------------------------------------------------- the better of two


class Fake:
    """A prior whose guesses are drawn at random."""

    def __init__(self, generator):
        self.clip, self.width = small_clip(generator), None

    def __repr__(self) -> str:
        return "a prior"

    def generate(self, prompts, seed, guidance, steps):
        width = self.clip.config["dim"]
        rows = [torch.randn(width, generator=torch.Generator().manual_seed(s)) for s in seed]
        return F.normalize(torch.stack(rows) + 0.01 * guidance + 0.001 * steps, dim=1)


def prompt_cases(generator):
    prior = Fake(generator)
    for prompts in ["cat", "dog", "fox", "owl"], ["a red cat"], ["hat", "sun", "sea"]:
        yield prior, prompts


def imagined(best=lambda scores: scores.argmax(0), apart=1000, told=lambda prior, x: x):
    """`imagine` with a part done in another way."""

    @torch.no_grad()
    def imagine(prior, prompts, *, seed=0, candidates=2, guidance=2.0, steps=25):
        texts, each = prior.clip.encode_text(list(prompts)), range(len(prompts))
        seeds = [[seed + apart * turn + i for i in each] for turn in range(candidates)]
        how = {"guidance": guidance, "steps": steps}
        drawn = torch.stack([prior.generate(prompts, seed=s, **how) for s in seeds])
        found = best((drawn * texts).sum(2))
        return told(prior, drawn[found, torch.arange(len(prompts))])

    return imagine


check.function(
    "imagine",
    "Seeds of turn c: seed + 1000·c + 0, 1, 2 …; stack what `prior.generate` gives: (C, B, dim). "
    "Scores are dot products with `prior.clip.encode_text(prompts)`, summed over the last axis; "
    "take, for each prompt, the candidate with the largest.",
    prompt_cases,
    {
        "that is the worse one; take the largest dot product": imagined(
            lambda scores: scores.argmin(0)
        ),
        "that is always the first: give each turn seeds of its own, and take the best": imagined(
            lambda scores: torch.zeros(scores.shape[1], dtype=torch.long)
        ),
        "every prompt has a best of its own; do not take one candidate for all": imagined(
            lambda scores: scores.sum(1).argmax().expand(scores.shape[1])
        ),
        "the seeds of the candidates are 1000 apart": imagined(apart=1),
    },
)

# ---------------------------------------------------------------- a difference of texts


class Told:
    """A decoder of which only the CLIP is asked."""

    def __init__(self, generator):
        self.latent = self
        self.clip = small_clip(generator)

    def __repr__(self) -> str:
        return "a decoder"


def difference_cases(generator):
    model = Told(generator)
    width = model.clip.config["dim"]
    yield model, units(3, width, generator), "red", "a blue", 0.5
    yield model, units(2, width, generator), "cat", "dog", 0.2


def differing(way=lambda one, two: two - one, unit=True, share=lambda s: s, mix=None):
    """`text_difference` with a part done in another way."""

    @torch.no_grad()
    def text_difference(model, vectors, before, after, share_=0.5):
        away = way(*model.latent.clip.encode_text([before, after]))
        away = F.normalize(away, dim=0) if unit else away
        return (mix or bricks.slerp)(vectors, away.expand_as(vectors), share(share_))

    return text_difference


check.function(
    "text_difference",
    "`encode_text([before, after])` gives two vectors. After less before, made of length 1, is "
    "where `slerp` goes to, from the vectors of the pictures.",
    difference_cases,
    {
        "from after to before; it goes the other way": differing(lambda one, two: one - two),
        "that goes to the caption, not along the difference": differing(lambda one, two: two),
        "make the difference of length 1 before you turn": differing(unit=False),
        "the share is turned round: 0 keeps the picture": differing(share=lambda s: 1 - s),
        "that goes straight; turn with `slerp`": differing(mix=torch.lerp),
    },
)
