"""Tiny models by name, and toy pairs: what the tests make small, in one place.

A model that the course ships has an entry of its name in MODELS, and other entries are
variants of it. Every entry is tested as the shipped models must be (test_shipped.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.bricks.clip import CLIP
from utils.bricks.text_encoders import learn_merges
from utils.data import Pairs

PROMPTS = [
    "a picture of a red fox",
    "一幅红色的狐狸的画",
    "",
    "🦊",
    "a very long caption " * 9,
    "fox, red, animal",
]
MERGES = [list(pair) for pair in learn_merges(PROMPTS, 40)]
VIT = {"tower": "vit", "image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2}
RESNET = {"tower": "resnet", "image_size": 32, "widths": [8, 16], "depths": [1, 1]}
TRANSFORMER = {"tower": "transformer", "context": 16, "width": 24, "depth": 2, "heads": 3}
BAG = {"tower": "bag_of_words", "context": 16, "width": 24}
DIM = 16


@dataclass(frozen=True)
class Tiny:
    """How a tiny model is made, and what it gives for input that is always the same."""

    make: Callable[[], nn.Module]
    use: Callable[[nn.Module], list[Tensor]]


def pictures(n: int = 3, size: int = 32) -> Tensor:
    """Noise (n, 3, size, size) in [0, 1], always the same."""
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def clip(image: dict, text: dict) -> Tiny:
    return Tiny(
        lambda: CLIP(image, text, MERGES, DIM),
        lambda model: [model.encode_image(pictures()), model.encode_text(PROMPTS)],
    )


MODELS = {
    "clip": clip(VIT, TRANSFORMER),
    "clip_resnet": clip(RESNET, TRANSFORMER),
    "clip_bag": clip(VIT, BAG),
    "clip_resnet_bag": clip(RESNET, BAG),
}


def model(what: str | Tiny = "clip", seed: int = 0) -> nn.Module:
    """A random model in which no bias is zero and no gain one."""
    torch.manual_seed(seed)
    made = (MODELS[what] if isinstance(what, str) else what).make()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


COLUMNS = ("label_en", "label_zh", "keywords_en", "keywords_zh", "style", "skin_tone", "concept")


def pairs(split: str = "train", n: int = 24) -> Pairs:
    """Noise in place of Emoji-4, for each split another; a row a concept, "fox 0" and so on."""
    generator = torch.Generator().manual_seed(len(split))
    noise = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    rows = [(f"fox {i}", f"狐狸{i}", ["red"], ["红"], "noto", "none", str(i)) for i in range(n)]
    table = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    return Pairs(noise, table)
