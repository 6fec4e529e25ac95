"""Diffusion in pixels: noise into pictures, with a caption's vector or without."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.bricks.diffusion import (
    Diffusion,
    diffusion_loss,
    frechet_distance,
    picture_distances,
)
from utils.bricks.zero_shot import image_vectors
from utils.data import Pairs
from utils.recipes import engine
from utils.recipes.drawing import FromNoise, batch, moved, percent, shown

GROUPS = 4  # of samples, for the error of the Fréchet distance


@dataclass(frozen=True, kw_only=True)
class Recipe(FromNoise):
    side: int = 32
    widths: tuple[int, ...] = (48, 96, 160)
    patch: int = 2
    mixed: tuple[int, ...] = (1, 2)
    guidance: float = 2.0
    samples: int = 150  # in each group

    def borrows(self) -> dict[str, str]:
        return {"clip": "clip_resnet"}

    def helpers(self) -> dict[str, str]:
        return {"judge": "clip", "codes": "dalle"}

    def build(self, train: Pairs, others: dict[str, nn.Module]) -> Diffusion:
        return Diffusion(
            others["clip"],
            self.side,
            self.noise,
            self.times,
            self.predicts,
            self.widths,
            self.depth,
            self.patch,
            self.mixed,
        )

    def losses(
        self, model: Diffusion, train: Pairs, others: dict[str, nn.Module]
    ) -> list[Callable[[int], Tensor]]:
        kept, _ = shown(train, self.aside)
        pictures, device = small(kept, self.moves, self.side), model.signal.device

        def loss(step: int) -> Tensor:
            rows, words, moves = batch(kept, self.batch, self.seed, step, self.silent, self.moves)
            part = engine.share(self.batch)
            text = model.encode_text(words[part])
            right = pictures[moves[part], rows[part]].to(device).float() / 255
            return diffusion_loss(model, right, text)

        return [loss]

    def copied(self, model, pictures, kept):
        return copies(pictures, small(kept, self.moves, self.side))

    def evaluate(self, model, splits, others):
        kept, _ = shown(splits["train"], self.aside)
        return super().evaluate(model, splits, others) | self.distances(model, kept, others)

    def distances(self, model: Diffusion, kept: Pairs, others: dict) -> dict[str, float]:
        """Fréchet distances to the training pictures on the judge's features, times 1,000.

        Of pictures without a caption, of as many that `dalle` draws without one (the VQ prior),
        and of as many training pictures themselves: the least that so few can have.
        """
        real = small(kept, 0, self.side)[0]
        chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(self.seed))
        known = image_vectors(others["judge"], real)
        found = {"frechet": [], "frechet_codes": [], "frechet_real": []}
        for group in range(GROUPS):
            rows = range(group * self.samples, (group + 1) * self.samples)
            free = [model.generate(seed=part) for part in split(rows)]
            codes = [others["codes"].generate(["?"] * len(p), seed=p, **FREE) for p in split(rows)]
            groups = torch.cat(free), resized(torch.cat(codes), self.side), real[chosen[rows]]
            for name, pictures in zip(found, groups, strict=True):
                vectors = image_vectors(others["judge"], pictures)
                found[name].append(1000 * frechet_distance(vectors, known))
        figures = {name: round(mean(values), 1) for name, values in found.items()}
        return figures | {"frechet_error": round(torch.tensor(found["frechet"]).std().item(), 1)}


FREE = {"guidance": 0.0, "temperature": 1.0}  # DALL·E without a prompt, as it learnt


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def split(numbers: range, size: int = 100) -> list[range]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def resized(pictures: Tensor, side: int) -> Tensor:
    """Pictures (N, 3, S, S) by the means of their pixels, (N, 3, side, side)."""
    return F.adaptive_avg_pool2d(pictures.float(), side)


def small(pairs: Pairs, moves: int, side: int) -> Tensor:
    """The pictures as they are and moved, scaled down: (1 + moves, N, 3, side, side) uint8."""
    found = []
    for move in range(moves + 1):
        parts = moved(pairs.pictures, move).split(512)
        found.append(torch.cat([resized(part, side).round().byte() for part in parts]))
    return torch.stack(found)


def copies(pictures: Tensor, known: Tensor) -> float:
    """The share that are three times nearer to one training picture than to any other, in %.

    pictures: (B, 3, S, S) in [0, 1]; known: (1 + moves, N, 3, S, S) uint8.
    """
    each = [picture_distances(pictures.cpu(), part.float() / 255) for part in known]
    first, second = torch.stack(each).amin(0).topk(2, largest=False).values.unbind(1)
    return percent(first < second / 3)


RECIPES = {"diffusion": Recipe(steps=4000, batch=64)}
