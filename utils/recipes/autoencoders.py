"""Autoencoders with a codebook: `vq_vae`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils import device as devices
from utils import training
from utils.bricks.vq_vae import VQVAE, difference, psnr, roles
from utils.data import Pairs
from utils.recipes import engine


@dataclass(frozen=True, kw_only=True)
class Coded(engine.Recipe):
    """What all that write pictures as codes have in common: their size, how they are measured."""

    factor: int
    codes: int
    width: int = 96
    latent: int = 16
    batch: int = 32
    weight_decay: float = 0.01
    warmup: int = 100
    continuous: int = 200  # first steps without codes

    def look(self, model, splits, others):
        pictures = clean(splits["unseen"])
        return measure(model, pictures[::4]), rows(model, pictures[:: len(pictures) // 12][:12])

    def evaluate(self, model, splits, others):
        metrics = measure(model, clean(splits["unseen"]))
        metrics["train_psnr"] = measure(model, clean(splits["train"])[::9])["psnr"]
        return metrics


@dataclass(frozen=True, kw_only=True)
class Recipe(Coded):
    commitment: float = 0.025

    def build(self, train: Pairs, others: dict[str, nn.Module]) -> VQVAE:
        return VQVAE(self.factor, self.codes, self.width, self.latent)

    def optimizers(self, learner: nn.Module) -> list[training.MuonAdamW]:
        return [self.muon(learner, roles(learner))]

    def losses(
        self, model: nn.Module, train: Pairs, others: dict[str, nn.Module]
    ) -> list[Callable[[int], Tensor]]:
        def loss(step: int) -> Tensor:
            pictures = batch(train, self.batch, self.seed, step, device_of(model))
            pictures = pictures[engine.share(self.batch)]
            drawn, penalty = self.rebuilt(model, pictures, step)
            return difference(drawn, pictures) + self.commitment * penalty

        return [loss]

    def rebuilt(self, model: VQVAE, pictures: Tensor, step: int) -> tuple[Tensor, Tensor | float]:
        """Reconstructions (B, 3, S, S) and the commitment loss; at first without the lookup."""
        if step < self.continuous:
            return model.draw(model.latents(pictures)), 0.0
        drawn, _, penalty = model(pictures)
        return drawn, penalty


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def batch(train: Pairs, size: int, seed: int, step: int, device) -> Tensor:
    """The pictures of one step, (B, 3, S, S) in [0, 1]: every picture once in each epoch."""
    epoch, place = divmod(step, max(1, len(train) // size))
    order = torch.randperm(len(train), generator=devices.generator(seed, epoch))
    chosen = train.pictures[order[place * size : (place + 1) * size]]
    return chosen.to(device).float().div_(255)


def clean(pairs: Pairs) -> Tensor:
    """The pictures without skin tone, (N, 3, S, S) uint8."""
    return pairs.where(skin_tone="none").pictures


@torch.no_grad()
def measure(model: VQVAE, pictures: Tensor) -> dict[str, float]:
    """Mean PSNR in dB, the share of codes in use and their perplexity, in percent."""
    device, values, used = device_of(model), [], torch.zeros(model.codes)
    for part in pictures.split(64):
        part = part.to(device).float() / 255
        codes = model.encode(part)
        values.append(psnr(part, model.decode(codes)))
        used += torch.bincount(codes.flatten().cpu(), minlength=model.codes)
    shares = used / used.sum()
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
    return {
        "psnr": round(torch.cat(values).mean().item(), 2),
        "codes_used": round(100 * (used > 0).float().mean().item(), 1),
        "perplexity": round(math.exp(entropy), 1),
    }


@torch.no_grad()
def rows(model: VQVAE, pictures: Tensor) -> Tensor:
    """Reconstructions (N, 3, S, S)."""
    part = pictures.to(device_of(model)).float() / 255
    return model.decode(model.encode(part))


RECIPES = {"vq_vae": Recipe(factor=4, codes=1024, steps=6000)}
