"""The blanks of lesson 09."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from utils.bricks import vqgan_clip as bricks
from utils.bricks.vq_vae import nearest_code
from utils.compare import difference
from utils.exercises import NotTried, expect
from utils.practice import Checks, attempt

check = Checks(bricks)

# ---------------------------------------------------------------- straight through


def latent_cases(generator):
    for shape, codes in ((5, 3), 4), ((2, 4, 4, 6), 9), ((1, 2), 3):
        z = torch.randn(*shape, generator=generator)
        yield z, 2 * torch.randn(codes, shape[-1], generator=generator)


check.function(
    "quantised",
    "`codebook[nearest_code(z, codebook)]` is what comes out. `z + (chosen - z).detach()` has that "
    "value and the slope 1.",
    latent_cases,
    {
        "the latents come out as they are; the decoder must get codes": lambda z, codebook: 1 * z,
        "these are the codes' numbers; return their vectors": lambda z, codebook: nearest_code(
            z, codebook
        ),
        "`z - chosen` is turned: what is added to z is chosen − z": lambda z, codebook: (
            z + (z - codebook[nearest_code(z, codebook)]).detach()
        ),
    },
)

# ---------------------------------------------------------------- the wall with a door


def passing(rule, scale=lambda grad: grad):
    """`ClampWithGrad.backward` with another rule for what passes."""

    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        outside = x - x.clamp(ctx.low, ctx.high)
        return scale(grad) * rule(grad, outside), None, None

    return backward


WALL_MISTAKES = {
    "the sign is turned: descent goes against the gradient, so above `high` a positive one leads "
    "back in": passing(lambda grad, outside: grad * outside <= 0),
    "this is plain clamp: outside, what leads back in must pass": passing(
        lambda grad, outside: outside == 0
    ),
    "everything passes, also what leads further out": passing(lambda grad, outside: 1.0),
    "inside, where `outside` is 0, every gradient passes: ≥ 0, not > 0": passing(
        lambda grad, outside: grad * outside > 0
    ),
}


@check.blank(
    "ClampWithGrad.backward",
    "`outside = x - x.clamp(ctx.low, ctx.high)` is positive above, negative below. The gradient "
    "passes where `grad * outside >= 0`. Three things come back: for x, and None for low and high.",
)
def judge_wall(answer, shipped):
    generator = torch.Generator().manual_seed(0)
    for low, high in (0.0, 1.0), (-2.0, 0.5):
        x, grad = 3 * torch.randn(2, 4, 9, generator=generator)
        ctx = SimpleNamespace()
        ctx.save_for_backward = lambda *tensors, ctx=ctx: setattr(ctx, "saved_tensors", tensors)
        shipped.forward(ctx, x, low, high)
        before = x.clone(), grad.clone()
        seen = attempt(answer.backward, ctx, grad)
        if seen is Ellipsis:
            raise NotTried
        kept = torch.equal(x, before[0]) and torch.equal(grad, before[1])
        expect(kept, "x or the gradient is changed in place; make a new tensor")
        three = isinstance(seen, tuple | list) and len(seen) == 3
        expect(three, "three things come back: the gradient for x, None for low, None for high")
        expect(seen[1] is None and seen[2] is None, "low and high have no gradient: None for both")
        right = shipped.backward(ctx, grad)
        if difference(seen[0], right[0]):
            for text, mistake in WALL_MISTAKES.items():
                expect(difference(seen[0], mistake(ctx, grad)[0]), text)
        found = difference(seen[0], right[0])
        expect(not found, f"the gradient for x: {found} (walls {low} and {high})")
        leaf = x.clone().requires_grad_()
        attempt(answer.apply(leaf, low, high).sum().backward)


# ---------------------------------------------------------------- angles


def vector_cases(generator):
    for one, other in ((3, 4), (3, 4)), ((5, 1, 6), (2, 6)), ((7,), (7,)):
        u = torch.randn(*one, generator=generator)
        yield u, u + 0.3 * torch.randn(*other, generator=generator)  # near: an acute angle


def chord(normal=F.normalize, scale=2.0, half=2.0, square=torch.square):
    """`spherical_distance` with a part left out or done in another way."""

    def distance(u, v):
        gap = (normal(u, dim=-1) - normal(v, dim=-1)).norm(dim=-1)
        return scale * square((gap / half).clamp(max=1 - 1e-7).arcsin())

    return distance


check.function(
    "spherical_distance",
    "Make both unit vectors (`F.normalize(u, dim=-1)`), subtract, take the `norm` along the last "
    "axis: the chord. Half of it, clamped to just below 1, its `arcsin` squared, times 2.",
    vector_cases,
    {
        "the vectors may have any length; normalise them first": chord(lambda x, dim: x),
        "this is θ²/4 or less: 2·arcsin², not arcsin²": chord(scale=1.0),
        "the chord is 2·sin(θ/2): take half of it before arcsin": chord(half=1.0),
        "this is the angle; square its half": chord(square=lambda x: x),
        "this is 1 − cos θ; the squared angle is asked for": lambda u, v: (
            1 - F.cosine_similarity(u, v, dim=-1)
        ),
    },
)

# ---------------------------------------------------------------- cut-outs


def box_cases(generator):
    for size, least, power in (64, 24, 1.0), (32, 8, 0.5), (40, 39, 3.0):
        yield torch.rand(50, 3, generator=generator, dtype=torch.float64), size, least, power


def boxed(side=lambda u, span, p: u**p * span, room=1, least=True):
    """`cut_boxes` with a part left out or done in another way."""

    def cut_boxes(draws, size, least_, power=1.0):
        sides = (side(draws[:, 0], size - least_, power) + (least_ if least else 0)).long()
        corner = (draws[:, 1:] * (size - sides + room).unsqueeze(1)).long()
        return torch.cat([sides.unsqueeze(1), corner], 1)

    return cut_boxes


check.function(
    "cut_boxes",
    "`(draws[:, 0] ** power * (size - least) + least).long()` are the sides. A square of this side "
    "has size − side + 1 places in each direction: `(draws[:, 1:] * (…).unsqueeze(1)).long()`.",
    box_cases,
    {
        "the power belongs to U alone, before it is scaled": boxed(
            side=lambda u, span, p: (u * span) ** p
        ),
        "there is one place more: a square of side s fits size − s + 1 times": boxed(room=0),
        "`least` is missing": boxed(least=False),
        "U^power, not power·U": boxed(side=lambda u, span, p: p * u * span),
    },
)


def cut_cases(generator):
    for size, out in (9, 9), (6, 11):
        draws = torch.rand(5, 3, generator=generator, dtype=torch.float64)
        picture = torch.rand(1, 3, size, size, generator=generator)
        yield picture, bricks.cut_boxes(draws, size, 3), out, torch.arange(5) % 2 == 0


def cutting(
    places=lambda side, top, left: (side, top, left), mode="bilinear", turn=lambda x: x.flip(3)
):
    """`cutouts` with a part left out or done in another way."""

    def cutouts(picture, boxes, out, mirrored):
        cuts = []
        for box, mirror in zip(boxes.tolist(), mirrored.tolist(), strict=True):
            side, top, left = places(*box)
            cut = picture[:, :, top : top + side, left : left + side]
            cut = F.interpolate(cut, (out, out), mode=mode)
            cuts.append(turn(cut) if mirror else cut)
        return torch.cat(cuts)

    return cutouts


check.function(
    "cutouts",
    "For each box: slice rows top to top + side and columns left to left + side, then "
    "`F.interpolate(cut, (out, out), mode='bilinear')`, `flip(3)` if mirrored; `torch.cat`.",
    cut_cases,
    {
        "top and left have changed places": cutting(lambda side, top, left: (side, left, top)),
        "nobody is mirrored": cutting(turn=lambda x: x),
        "it stands on its head: mirror left and right, the last axis": cutting(
            turn=lambda x: x.flip(2)
        ),
        "the mode is not bilinear: pixels are repeated": cutting(mode="nearest"),
    },
)

# ---------------------------------------------------------------- wishes


def prompt_cases(generator):
    del generator
    for prompt in (
        "a heart", "a heart | a face:-0.5", "a:2|b:.25", "flag: France", "keycap: 1 | sun:3",
        "half past 7:30:1",
    ):  # fmt: skip
        yield (prompt,)


def parted(split="|", spaces=True, last=True, kind=float):
    """`weighted_parts` with a part left out or done in another way."""

    def weighted_parts(prompt):
        found = []
        for part in prompt.split(split):
            part = part.strip() if spaces else part
            text, colon, weight = part.rpartition(":") if last else part.partition(":")
            try:
                heavy = kind(weight) if colon and not weight.startswith(" ") else None
            except ValueError:
                heavy = None
            found.append((part, 1.0) if heavy is None else (text, heavy))
        return found

    return weighted_parts


check.function(
    "weighted_parts",
    "Split at '|' and strip each part. `re.fullmatch` with a group for the text, a colon, and a "
    "group for the number at the end; no space between. No match: the weight is 1. An empty text, "
    "or weights that are all 0, raise ValueError.",
    prompt_cases,
    {
        "parts are separated by '|', with or without spaces": parted(split=" | "),
        "strip the spaces around a part": parted(spaces=False),
        "it is the *last* colon that counts": parted(last=False),
    },
)
