"""The blanks of lesson 03."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.bricks import clip as bricks
from utils.bricks.clip import MEAN, STD, preprocess
from utils.compare import difference
from utils.exercises import NotTried, expect
from utils.practice import Checks, attempt

check = Checks(bricks)


def units(rows: int, width: int, generator) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=generator), dim=1)


# ---------------------------------------------------------------- the loss


def loss_cases(generator):
    for rows, width, scale in (5, 3, 4.0), (2, 8, 14.3), (9, 4, 1.0):
        yield units(rows, width, generator), units(rows, width, generator), torch.tensor(scale)


def loss(rows=1 / 2, columns=1 / 2, diagonal=1.0, scaled=lambda scale: scale, total=False):
    """`contrastive_loss` with other parts of each cross-entropy."""

    def contrastive_loss(images, texts, scale):
        logits = scaled(scale) * images @ texts.T
        each = rows * logits.logsumexp(1) + columns * logits.logsumexp(0)
        each = each - diagonal * logits.diagonal()
        return each.sum() if total else each.mean()

    return contrastive_loss


check.function(
    "contrastive_loss",
    "The logits are scale · images · textsᵀ, (N, N). A cross-entropy is `logsumexp` of a line "
    "minus the entry on the diagonal, averaged over the lines. There is one over the rows and "
    "one over the columns; return their mean.",
    loss_cases,
    {
        "only the rows choose here; the columns do so as well": loss(rows=1, columns=0),
        "only the columns choose here; the rows do so as well": loss(rows=0, columns=1),
        "this is the sum of both cross-entropies; take their mean": loss(1, 1, 2),
        "this is the sum over the pairs; take the mean": loss(total=True),
        "the scale is missing": loss(scaled=lambda scale: 1),
        "`scale` is exp(logit_scale) already": loss(scaled=torch.exp),
        "the scale multiplies the cosines; a temperature would divide them": loss(
            scaled=lambda scale: 1 / scale
        ),
        "the right logits are not taken off: minus the mean of the diagonal": loss(diagonal=0),
        "logsumexp minus the right logit, not plus": loss(diagonal=-1),
    },
)


def pair_loss(halved=True, scaled=True, chained=True, turned=True):
    """`PairLoss.backward` with a factor or the transpose left out."""

    def backward(ctx, grad_loss):
        images, texts, scale, grad_logits = ctx.saved_tensors
        grad_images = grad_logits @ texts
        grad_texts = (grad_logits.T if turned else grad_logits) @ images
        factor = (grad_loss if chained else 1) / (2 * len(images) if halved else 1)
        grad_scale = factor * (grad_images * images).sum()
        factor = factor * scale if scaled else factor
        return factor * grad_images, factor * grad_texts, grad_scale

    return backward


PAIR_MISTAKES = {
    "divide by 2N: the loss is a mean over N pairs and two directions": pair_loss(halved=False),
    "every gradient is multiplied by `grad_loss`, which comes from above": pair_loss(chained=False),
    "the logits are scale · cosine: the way to images and texts passes the scale": pair_loss(
        scaled=False
    ),
    "logits = images @ texts.T: on the way to the texts `grad_logits` is transposed": pair_loss(
        turned=False
    ),
}


@check.blank(
    "PairLoss.backward",
    "What is saved is 2N times ∂L/∂logits: divide by 2N, multiply by `grad_loss`. With logits = "
    "scale · images @ texts.T the chain rule gives scale · grad_logits @ texts for the images, "
    "scale · grad_logits.T @ images for the texts, and for the scale the sum of grad_logits · "
    "cosines, which is the sum of (grad_logits @ texts) · images.",
)
def judge_pair_loss(answer, shipped):
    generator = torch.Generator().manual_seed(0)
    for rows, width, scale in (4, 3, 5.0), (6, 2, 14.3):
        given = units(rows, width, generator), units(rows, width, generator), torch.tensor(scale)
        ctx = SimpleNamespace()
        ctx.save_for_backward = lambda *tensors, ctx=ctx: setattr(ctx, "saved_tensors", tensors)
        shipped.forward(ctx, *given)
        before, grad = [x.clone() for x in ctx.saved_tensors], torch.tensor(0.7)
        seen = attempt(answer.backward, ctx, grad)
        if seen is Ellipsis:
            raise NotTried
        changed = any(map(difference, ctx.saved_tensors, before))
        expect(not changed, "a tensor of `ctx.saved_tensors` is changed in place; make a new one")
        three = isinstance(seen, tuple | list) and len(seen) == 3
        expect(three, "three gradients come back, for images, texts and scale, in this order")
        right = shipped.backward(ctx, grad)
        if any(map(difference, seen, right)):
            for text, mistake in PAIR_MISTAKES.items():
                expect(any(map(difference, seen, mistake(ctx, grad))), text)
        for name, mine, true in zip(("images", "texts", "scale"), seen, right, strict=True):
            found = difference(mine, true)
            expect(not found, f"the gradient for the {name}: {found} (N = {rows}, d = {width})")
        inputs = [x.clone().requires_grad_() for x in given]
        attempt(answer.apply(*inputs).backward)


# ---------------------------------------------------------------- the model


def picture_cases(generator):
    for height, width, size in (8, 8, 8), (10, 16, 8), (20, 13, 8), (5, 9, 16), (7, 7, 5):
        yield torch.rand(2, 3, height, width, generator=generator), size


def prepared(
    mode="bicubic",
    antialias=True,
    clamp=True,
    middle=True,
    crop=True,
    normal=lambda x, m, s: (x - m) / s,
):
    """`preprocess` with a part left out or done in another way."""

    def preprocess(pictures, size):
        height, width = pictures.shape[2:]
        if (height, width) != (size, size):
            ratio = size / min(height, width)
            shape = max(size, round(height * ratio)), max(size, round(width * ratio))
            shape = shape if crop else (size, size)
            pictures = F.interpolate(pictures, shape, mode=mode, antialias=antialias)
            pictures = pictures.clamp(0, 1) if clamp else pictures
            top, left = ((n - size) // 2 if middle else 0 for n in shape)
            pictures = pictures[:, :, top : top + size, left : left + size]
        return normal(pictures, *(torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD)))

    return preprocess


check.function(
    "preprocess",
    "Three steps. Unless it has the size: `F.interpolate` so that the shorter side has `size` "
    "pixels (bicubic, antialias, clamped to [0, 1] as bicubic overshoots), then a crop from the "
    "middle. At last minus MEAN, divided by STD, each as (3, 1, 1).",
    picture_cases,
    {
        "this squeezes the picture into a square; resize the shorter side and crop": prepared(
            crop=False
        ),
        "the crop starts at the corner; take it from the middle": prepared(middle=False),
        "bicubic resizing leaves [0, 1]; clamp before the normalisation": prepared(clamp=False),
        "without `antialias=True` a smaller picture keeps only some of its pixels": prepared(
            antialias=False
        ),
        "this resizes bilinearly; CLIP does it bicubically": prepared(mode="bilinear"),
        "the pictures are not normalised: minus MEAN, divided by STD": prepared(
            normal=lambda x, m, s: x
        ),
        "MEAN is taken off, but nothing is divided by STD": prepared(normal=lambda x, m, s: x - m),
        "first minus MEAN, then divided by STD": prepared(normal=lambda x, m, s: x / s - m),
        "minus MEAN, divided by STD; this is the way back": prepared(
            normal=lambda x, m, s: x * s + m
        ),
    },
)

TOWER = {"width": 8, "depth": 1, "heads": 2}
VIT = {
    "image": {"tower": "vit", "image_size": 16, "patch_size": 8, **TOWER},
    "text": {"tower": "transformer", "context": 12, **TOWER},
    "merges": [],
    "dim": 6,
}
RESNET = {
    "image": {"tower": "resnet", "image_size": 16, "widths": (4, 8), "depths": (1, 1)},
    "text": {"tower": "bag_of_words", "context": 12, "width": 8},
    "merges": [],
    "dim": 6,
}


def image_cases(generator):
    pictures = torch.rand(3, 3, 20, 16, generator=generator)
    yield VIT, (pictures,)
    yield RESNET, (pictures,)
    yield RESNET, (pictures, 24)


def encode_image(normal=-1, sized=True, pixels=preprocess):
    def encode_image(self, pictures, size=0):
        features = self.image_tower(pixels(pictures, (sized and size) or self.image_size))
        vectors = self.image_projection(features).float()
        return vectors if normal is None else F.normalize(vectors, dim=normal)

    return encode_image


check.method(
    "CLIP.encode_image",
    "`preprocess` to `size`, or to `self.image_size` if it is 0; the image tower; its "
    "projection, as `.float()`; `F.normalize` along the last axis.",
    image_cases,
    {
        "these are no unit vectors: `F.normalize` is missing": encode_image(normal=None),
        "this normalises down the batch; a vector is a row: dim=-1": encode_image(normal=0),
        "`size` is ignored; it goes before `self.image_size`": encode_image(sized=False),
        "the tower sees the raw pixels; `preprocess` comes first": encode_image(
            pixels=lambda x, size: (
                x * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
            )
        ),
    },
)


def token_cases(generator):
    for settings in (VIT, RESNET):
        for rows in (1, 5, 40) if settings is VIT else (6,):
            prompts = []
            for _ in range(rows):
                length = torch.randint(0, 9, (), generator=generator)
                letters = torch.randint(97, 123, (int(length),), generator=generator)
                prompts.append("".join(map(chr, letters.tolist())))
            yield settings, (bricks.Tokenizer([], 12)(prompts),)


def encode_tokens(normal=-1):
    def encode_tokens(self, ids):
        vectors = self.text_projection(self.text_tower(ids)).float()
        return vectors if normal is None else F.normalize(vectors, dim=normal)

    return encode_tokens


check.method(
    "CLIP.encode_tokens",
    "`self.text_tower(ids)`, or `encode_by_length(self.text_tower, ids)`, which gives the same "
    "with less padding; its projection as `.float()`; `F.normalize` along the last axis.",
    token_cases,
    {
        "these are no unit vectors: `F.normalize` is missing": encode_tokens(normal=None),
        "this normalises down the batch; a vector is a row: dim=-1": encode_tokens(normal=0),
    },
)


def logit_cases(generator):
    for settings in (VIT, RESNET):
        pictures = torch.rand(3, 3, 16, 16, generator=generator)
        yield settings, (pictures, ["a", "fox", "b c", "dd"])


def logits(scaled=lambda x: x.exp(), turned=False):
    def forward(self, pictures, prompts):
        images, texts = self.encode_image(pictures), self.encode_text(prompts)
        table = scaled(self.logit_scale) * images @ texts.T
        return table.T if turned else table

    return forward


check.method(
    "CLIP.forward",
    "Encode both sides. All cosines at once are `images @ texts.T`. `logit_scale` is a logarithm.",
    logit_cases,
    {
        "`logit_scale` is the log of the scale: take `.exp()`": logits(lambda x: x),
        "these are cosines; the scale is missing": logits(lambda x: 1),
        "the scale multiplies; a temperature would divide": logits(lambda x: 1 / x.exp()),
        "rows are pictures and columns prompts; yours is the transpose": logits(turned=True),
    },
)


@check.blank(
    "CLIP.clamp_scale",
    "`clamp_`, with the underscore, changes a tensor in place. The bounds 1 and 100 are those of "
    "exp(logit_scale); what are they for its logarithm?",
)
def judge_clamp_scale(answer, shipped):
    became = {}
    for start in (0.5, 4.0, -1.0, 4.7, 90.0):
        model = attempt(answer, *RESNET.values())
        weight = model.logit_scale
        weight.data.fill_(start)
        if attempt(model.clamp_scale) is Ellipsis:
            raise NotTried
        expect(
            model.logit_scale is weight and weight.requires_grad,
            "`logit_scale` is a new tensor now, or no longer learns, and the optimizer holds the "
            "old one: change it in place, with `clamp_`",
        )
        became[start] = weight.item()
    expect(
        any(abs(now - start) > 1e-4 for start, now in became.items()),
        "the scale stays what it is: `clamp` returns a new tensor, `clamp_` changes the old one",
    )
    for start, now in became.items():
        right = min(max(start, 0.0), math.log(100))
        said = f"logit_scale = {start:g} becomes {now:.4g}; it is {right:.4g}"
        linear = min(max(start, 1.0), 100.0)
        if abs(now - linear) < 1e-4:
            said += ": 1 and 100 are the bounds of exp(logit_scale), and this is its logarithm"
        expect(abs(now - right) < 1e-4, said)
