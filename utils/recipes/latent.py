"""Latent diffusion: an autoencoder without codes, and a U-Net that draws in its latents."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils import device as devices
from utils import training
from utils.bricks.dalle import found_among
from utils.bricks.latent_diffusion import (
    KLAutoencoder,
    LatentDiffusion,
    kl_to_normal,
    latent_loss,
)
from utils.bricks.vq_vae import difference, psnr, roles
from utils.bricks.vqgan import PerceptualDistance, shifted
from utils.data import Pairs
from utils.recipes import engine
from utils.recipes.autoencoders import batch as some_pictures
from utils.recipes.autoencoders import clean, device_of
from utils.recipes.drawing import (
    AMONG,
    FromNoise,
    asked,
    batch,
    drawn,
    moved,
    percent,
    shown,
)
from utils.recipes.vqgan import judged


@dataclass(frozen=True, kw_only=True)
class Autoencoder(engine.Recipe):
    """Begins at the weights of `vqgan`, but for the layers beside the latents."""

    factor: int = 8
    width: int = 96
    latent: int = 8
    kl: float = 1e-6  # a nat's worth
    perceptual: float = 0.2
    perceptual_start: int = 400
    weight_decay: float = 0.01

    def helpers(self) -> dict[str, str]:
        return {"guide": "clip_resnet", "judge": "clip", "begin": "vqgan"}

    def build(self, train: Pairs, others: dict[str, nn.Module]) -> KLAutoencoder:
        model = KLAutoencoder(self.factor, self.width, self.latent)
        known, own = others["begin"].state_dict(), model.state_dict()
        last = [name for name in own if name.startswith("encoder.")][-2:]  # says other things now
        for name, value in own.items():
            if name in known and known[name].shape == value.shape and name not in last:
                value.copy_(known[name])
        return model

    def optimizers(self, learner: nn.Module) -> list[training.MuonAdamW]:
        return [self.muon(learner, roles(learner))]

    def losses(
        self, model: KLAutoencoder, train: Pairs, others: dict[str, nn.Module]
    ) -> list[Callable[[int], Tensor]]:
        distance, device = PerceptualDistance(others["guide"]), device_of(model)

        def loss(step: int) -> Tensor:
            pictures = some_pictures(train, self.batch, self.seed, step, device)
            pictures = pictures[engine.share(self.batch)]
            mean, log_variance = model.distribution(pictures)
            noise = torch.randn(mean.shape).to(device)
            rebuilt = model.draw(mean + (log_variance / 2).exp() * noise)
            nll = difference(rebuilt, pictures)
            if step >= self.perceptual_start:
                moved = shifted(pictures, rebuilt, devices.generator(self.seed, step))
                nll = nll + self.perceptual * distance(*moved).mean()
            return nll + self.kl * kl_to_normal(mean, log_variance).mean()

        return [loss]

    def look(self, model, splits, others):
        pictures = clean(splits["unseen"])[::4]
        some = pictures[:: max(1, len(pictures) // 12)][:12]
        figures = measure(model, pictures) | judged(model, others["judge"], pictures)
        return figures, model.decode(model.encode(some.to(device_of(model)).float() / 255))

    def evaluate(self, model, splits, others):
        unseen = clean(splits["unseen"])
        return measure(model, unseen) | judged(model, others["judge"], unseen)


@torch.no_grad()
def measure(model: KLAutoencoder, pictures: Tensor) -> dict[str, float]:
    """Mean PSNR in dB, and the nats of the latents of a picture."""
    values, nats = [], []
    for part in pictures.split(64):
        part = part.to(device_of(model)).float() / 255
        nats.append(kl_to_normal(*model.distribution(part)))
        values.append(psnr(part, model.decode(model.encode(part))))
    found = torch.cat(values).mean().item(), torch.cat(nats).mean().item()
    return {"psnr": round(found[0], 2), "nats": round(found[1])}


@dataclass(frozen=True, kw_only=True)
class Recipe(FromNoise):
    side: int = 64
    widths: tuple[int, ...] = (128, 192)
    mixed: tuple[int, ...] = (0, 1)

    def borrows(self) -> dict[str, str]:
        return {"clip": "clip_resnet", "autoencoder": "kl"}

    def helpers(self) -> dict[str, str]:
        return {"judge": "clip"}

    def build(self, train: Pairs, others: dict[str, nn.Module]) -> LatentDiffusion:
        return LatentDiffusion(
            others["clip"],
            others["autoencoder"],
            self.side,
            self.noise,
            self.times,
            self.predicts,
            self.widths,
            self.depth,
            self.mixed,
        )

    def losses(
        self, model: LatentDiffusion, train: Pairs, others: dict[str, nn.Module]
    ) -> list[Callable[[int], Tensor]]:
        kept, _ = shown(train, self.aside)
        latents, device = encoded(model, kept, self.moves), model.signal.device
        model.fit_scale(latents[0].float().to(device))

        def loss(step: int) -> Tensor:
            rows, words, moves = batch(kept, self.batch, self.seed, step, self.silent, self.moves)
            part = engine.share(self.batch)
            text = model.encode_text(words[part])
            z = latents[moves[part], rows[part]].to(device).float()
            return latent_loss(model, (z - model.mean) / model.deviation, text)

        return [loss]

    def copied(self, model, pictures, kept):
        return copies(model, pictures, encoded(model, kept, self.moves))

    def evaluate(self, model, splits, others):
        figures = super().evaluate(model, splits, others)
        labels, pool = asked(splits["unseen"].where(skin_tone="none"), self.questions)
        pictures = drawn(model, labels, self.guidance)
        found = found_among(others["judge"], pictures, labels, pool, AMONG)
        return figures | {"unseen_found": percent(found)}


@torch.no_grad()
def encoded(model: LatentDiffusion, pairs: Pairs, moves: int) -> Tensor:
    """The latents of pictures as they are and moved: (1 + moves, N, C, h, w) float16."""

    def encode() -> dict[str, Tensor]:
        found = []
        for move in range(moves + 1):
            parts = moved(pairs.pictures, move).split(128)
            means = [model.autoencoder.encode(p.to(model.signal.device) / 255) for p in parts]
            found.append(torch.cat(means).half().cpu())
        return {"latents": torch.stack(found)}

    encoder = training.digest(model.autoencoder.state_dict(), "")
    pictures = training.digest({"pictures": pairs.pictures}, "")
    made_of = {"pictures": pictures, "autoencoder": encoder, "moves": moves}
    return engine.cached("latents", made_of, encode)["latents"]


def copies(model: LatentDiffusion, pictures: Tensor, known: Tensor) -> float:
    """The share that are three times nearer to one training latent than to any other, in %.

    pictures: (B, 3, S, S); known: (1 + moves, N, C, h, w). Distances are between scaled latents.
    """
    z = model.encode(pictures).cpu()
    scale = model.deviation.cpu()
    each = []
    for part in known:
        part = (part.float() - model.mean.cpu()) / scale
        each.append(torch.cdist(z.flatten(1), part.flatten(1)))
    first, second = torch.stack(each).amin(0).topk(2, largest=False).values.unbind(1)
    return percent(first < second / 3)


RECIPES = {
    "kl": Autoencoder(steps=600, batch=32),
    "latent_diffusion": Recipe(steps=2600, batch=96),
}
