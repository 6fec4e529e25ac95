"""VQGAN, and what it is compared with: the same network and codes, trained on pixels alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils import device as devices
from utils import training
from utils.bricks.clip import CLIP
from utils.bricks.vq_vae import difference
from utils.bricks.vqgan import (
    PatchCritic,
    PerceptualDistance,
    adaptive_weight,
    critic_loss,
    fooling_loss,
    shifted,
)
from utils.data import Pairs
from utils.recipes import autoencoders, engine
from utils.recipes.autoencoders import batch, clean, device_of


@dataclass(frozen=True, kw_only=True)
class Pixels(autoencoders.Recipe):
    """Squared and absolute error; measured by a judge that guides nobody, the ViT of `clip`."""

    def helpers(self) -> dict[str, str]:
        return {"judge": "clip"}

    def look(self, model, splits, others):
        figures, pictures = super().look(model, splits, others)
        unseen = clean(splits["unseen"])[::4]
        return figures | judged(model, others["judge"], unseen), pictures

    def evaluate(self, model, splits, others):
        metrics = super().evaluate(model, splits, others)
        return metrics | judged(model, others["judge"], clean(splits["unseen"]))


@dataclass(frozen=True, kw_only=True)
class Recipe(Pixels):
    """The same, then with a perceptual distance as well, then with a critic of patches."""

    perceptual: float = 0.2
    perceptual_start: int = 1000
    critic_weight: float = 0.4
    critic_start: int = 2000
    critic_lr: float = 5e-4
    critic_width: int = 32

    def helpers(self) -> dict[str, str]:
        return {"guide": "clip_resnet", **super().helpers()}

    def build(self, train: Pairs, others: dict[str, nn.Module]) -> nn.ModuleDict:
        model = super().build(train, others)
        return nn.ModuleDict({"model": model, "critic": PatchCritic(self.critic_width)})

    def shipped(self, learner: nn.ModuleDict) -> nn.Module:
        return learner["model"]

    def optimizers(self, learner: nn.ModuleDict) -> list[training.MuonAdamW]:
        roles = training.by_role(learner["critic"], {"edge": ["*"]})
        rates = self.critic_lr, self.matrix_lr, 0.0
        critic = training.MuonAdamW(roles, *rates, betas=(0.5, 0.9))
        return [*super().optimizers(learner["model"]), critic]

    def losses(
        self, learner: nn.ModuleDict, train: Pairs, others: dict[str, nn.Module]
    ) -> list[Callable[[int], Tensor]]:
        model, critic = learner["model"], learner["critic"]
        distance, device = PerceptualDistance(others["guide"]), device_of(model)
        last = model.decoder.layers[-2].weight
        seen: list[Tensor] = []  # real and drawn, from the generator's pass to the critic's

        def generator(step: int) -> Tensor:
            pictures = batch(train, self.batch, self.seed, step, device)
            pictures = pictures[engine.share(self.batch)]
            drawn, penalty = self.rebuilt(model, pictures, step)
            nll = difference(drawn, pictures)
            if step >= self.perceptual_start:
                moved = shifted(pictures, drawn, devices.generator(self.seed, step))
                nll = nll + self.perceptual * distance(*moved).mean()
            loss = nll + self.commitment * penalty
            seen[:] = pictures, drawn.detach()
            if step < self.critic_start:
                return loss
            critic.requires_grad_(False)  # it judges here, and learns below
            fooling = fooling_loss(critic(drawn))
            critic.requires_grad_(True)
            weight = self.critic_weight * adaptive_weight(nll, fooling, last)
            return loss + weight * fooling

        def criticism(step: int) -> Tensor:
            if step < self.critic_start:
                return torch.zeros((), device=device, requires_grad=True)
            real, drawn = critic(torch.cat(seen)).chunk(2)
            return critic_loss(real, drawn)

        return [generator, criticism]


@torch.no_grad()
def judged(model: nn.Module, judge: CLIP, pictures: Tensor) -> dict[str, float]:
    """What a CLIP says about reconstructions of pictures (N, 3, S, S) uint8.

    Its mean distance 1 − cosine from each to its original, and in how many of a hundred the
    original is the nearest of all the pictures.
    """
    real, drawn = [], []
    for part in pictures.split(64):
        part = part.to(device_of(model)).float() / 255
        real.append(judge.encode_image(part))
        drawn.append(judge.encode_image(model.decode(model.encode(part))))
    cosines = torch.cat(drawn) @ torch.cat(real).T  # (N, N)
    found = cosines.argmax(1) == torch.arange(len(cosines), device=cosines.device)
    return {
        "judge_distance": round(1 - cosines.diagonal().mean().item(), 4),
        "judge_found": round(100 * found.float().mean().item(), 1),
    }


RECIPES = {
    "vqgan": Recipe(factor=8, codes=1024, steps=4000),
    "vqgan_l2": Pixels(factor=8, codes=1024, steps=4000),
}
