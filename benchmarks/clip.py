"""Our CLIP against transformers.CLIPModel of the same shape and weights."""

import contextlib
import dataclasses
import random
import tempfile
from collections.abc import Callable, Iterator

import torch
import transformers
from torch import Tensor

from benchmarks.measure import Row, agree, race
from utils import device as devices
from utils import training
from utils.bricks.clip import CLIP, contrastive_loss, preprocess
from utils.data import Pairs, draw, load_emoji
from utils.recipes import clip as recipes

TITLE = "CLIP"
LIBRARIES = ("transformers",)
METHOD = """\
- CLIP has the shape of the recipe `clip` in `utils/recipes/clip.py`, and the image tower
  sees all patches. Theirs is `transformers.CLIPModel`, loaded from the folder that
  `save_pretrained` writes, with its default attention. Both get the same ids, padded to
  the longest caption of the batch and without an attention mask, which gives the library
  least to do. Its pictures are normalised beforehand; ours are normalised in the step.
- Equal means that logits and loss are within 0.0001 in float32, 0.1 in bfloat16.
- A training step is forward, loss, backward and a step of the same fused AdamW. bfloat16
  means autocast, as the course trains where the machine multiplies it in hardware.
- Logits are those of both encoders, without gradients.
"""
SIZE = 64  # pairs in a batch


def twin(clip: CLIP) -> transformers.CLIPModel:
    """transformers' model with our weights, as its user gets it."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        clip.save_pretrained(folder)
        return transformers.CLIPModel.from_pretrained(folder)


def batch(pairs: Pairs, clip: CLIP, size: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, S, S) and the ids of a caption of each (B, L), as in pretraining."""
    rng = random.Random(0)
    rows = draw(pairs, size, rng)
    ids = clip.tokenizer([pairs.caption(i, rng) for i in rows])
    return pairs.pictures[torch.tensor(rows)].float().div(255), ids


def precisions(device: torch.device) -> dict[str, tuple[object, float]]:
    """Name → (context, how far logits and loss may be apart)."""
    half = devices.half_precision(device)
    found = {"float32": (contextlib.nullcontext(), 1e-4)}
    if isinstance(half, torch.autocast):
        found["bfloat16"] = half, 0.1  # it keeps 8 bits, and logits go to 14
    return found


def training_step(
    optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], precision
) -> Callable[[], None]:
    def step() -> None:
        with precision:
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def inference(logits: Callable[[], Tensor], precision) -> Callable[[], Tensor]:
    def infer() -> Tensor:
        with torch.no_grad(), precision:
            return logits()

    return infer


def rows(
    device: torch.device,
    seconds: float,
    recipe: recipes.Recipe = recipes.RECIPES["clip"],
    pairs: Pairs | None = None,
    size: int = SIZE,
) -> Iterator[Row]:
    """A training step and an inference batch, in every precision that the device is good at."""
    pairs = pairs or load_emoji("train")
    # a comparison of equals: transformers has no way to drop patches
    recipe = dataclasses.replace(recipe, image=recipe.image | {"keep": 1.0})
    devices.seed(recipe.seed)
    clip = recipe.build(pairs, {}).to(device)
    model = twin(clip).to(device)
    pictures, ids = (tensor.to(device) for tensor in batch(pairs, clip, size))
    inputs = {"input_ids": ids, "pixel_values": preprocess(pictures, clip.image_size)}

    def our_loss() -> Tensor:
        images, texts = clip.encode_image(pictures), clip.encode_tokens(ids)
        return contrastive_loss(images, texts, clip.logit_scale.exp())

    def their_loss() -> Tensor:
        return model(**inputs, return_loss=True).loss

    def our_logits() -> Tensor:
        return clip.logit_scale.exp() * clip.encode_image(pictures) @ clip.encode_tokens(ids).T

    def their_logits() -> Tensor:
        return model(**inputs).logits_per_image

    found = precisions(device)
    for name, (precision, tolerance) in found.items():
        for what, ours, theirs in (
            ("loss", our_loss, their_loss),
            ("logits", our_logits, their_logits),
        ):
            both = (inference(side, precision)() for side in (ours, theirs))
            agree(f"{what} in {name}", *both, tolerance)

    clip.train(), model.train()
    optimizers = [training.adamw(m, recipe.lr, recipe.weight_decay) for m in (clip, model)]
    for name, (precision, _) in found.items():
        losses = zip(optimizers, (our_loss, their_loss), strict=True)
        ours, theirs = (training_step(o, loss, precision) for o, loss in losses)
        yield race(f"training step of CLIP, {size} pairs, {name}", ours, theirs, device, seconds)

    clip.eval(), model.eval()
    for name, (precision, _) in found.items():
        ours, theirs = (inference(side, precision) for side in (our_logits, their_logits))
        what = f"logits of CLIP, {size} pictures × {size} prompts, {name}"
        yield race(what, ours, theirs, device, seconds)
