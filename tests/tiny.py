"""Tiny models by name, and toy pairs: what the tests make small, in one place.

Every model that the course ships has an entry of its name, which test_shipped.py asks what
every shipped model must do; other entries are variants.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import checkpoints
from utils.data import Pairs
from utils.recipes import autoencoders, dalle, diffusion, dvae, engine, latent, unclip, vqgan
from utils.recipes import clip as clips

PROMPTS = [
    "a picture of a red fox",
    "一幅红色的狐狸的画",
    "",
    "🦊",
    "a very long caption " * 9,
    "fox, red, animal",
]
VIT = {"tower": "vit", "image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2}
RESNET = {"tower": "resnet", "image_size": 32, "widths": [8, 16], "depths": [1, 1]}
TRANSFORMER = {"tower": "transformer", "context": 24, "width": 24, "depth": 2, "heads": 3}
BAG = {"tower": "bag_of_words", "context": 24, "width": 24}
DIM = 16


@dataclass(frozen=True)
class Tiny:
    """A recipe of little work, and what its model gives for input that is always the same."""

    recipe: engine.Recipe
    use: Callable[[nn.Module], list[Tensor]]


COLUMNS = ("label_en", "label_zh", "keywords_en", "keywords_zh", "style", "skin_tone")
COLUMNS += "concept", "group"


def pairs(split: str = "train", n: int = 24) -> Pairs:
    """Noise in place of Emoji-4, for each split another; a row a concept, "fox 0" and so on."""
    generator = torch.Generator().manual_seed(len(split))
    noise = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    rows = [
        (f"fox {i}", f"狐狸{i}", ["red"], ["红"], "noto", "none", str(i), "animals-nature")
        for i in range(n)
    ]
    table = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    return Pairs(noise, table)


def pictures() -> Tensor:
    """(3, 3, 32, 32) in [0, 1]."""
    return pairs(n=3).pictures / 255


def clip(image: dict, text: dict, **settings) -> Tiny:
    size = {"dim": DIM, "merges": 40, "steps": 16, "batch": 16, "warmup": 4}
    return Tiny(
        clips.Recipe(image=image, text=text, **size | settings),
        lambda model: [model.encode_image(pictures()), model.encode_text(PROMPTS)],
    )


CODED = {"width": 16, "latent": 8, "steps": 16, "batch": 8, "warmup": 4, "continuous": 2}


def codes(recipe: engine.Recipe) -> Tiny:
    """A model that writes pictures as codes."""

    def use(model: nn.Module) -> list[Tensor]:
        device = next(model.parameters()).device
        grid = torch.arange(2 * 8 * 8, device=device).view(2, 8, 8) % recipe.codes
        return [model.encode(pictures().to(device)), model.decode(grid)]

    return Tiny(recipe, use)


def stream(recipe: dalle.Recipe) -> Tiny:
    """A model that writes codes after words."""

    @torch.no_grad()
    def use(model: nn.Module) -> list[Tensor]:
        prompts = [prompt for prompt in PROMPTS if prompt]
        ids = model.encode_text(prompts)
        codes = torch.arange(len(ids) * 7, device=ids.device).view(-1, 7) % 32
        return [*model(ids, codes), model.generate(prompts, guidance=2.0)]

    return Tiny(recipe, use)


def pixels(recipe: diffusion.Recipe) -> Tiny:
    """A model that takes noise away."""

    @torch.no_grad()
    def use(model: nn.Module) -> list[Tensor]:
        prompts = [prompt for prompt in PROMPTS if prompt]
        device = model.signal.device
        x = torch.linspace(-1, 1, 2 * 3 * 16 * 16, device=device).view(2, 3, 16, 16)
        text = model.encode_text(PROMPTS)
        said = model(x, torch.tensor([3, 7], device=device), text[:2])
        return [text, said, model.generate(prompts, steps=3), model.generate(seed=[5], steps=2)]

    return Tiny(recipe, use)


def smooth(recipe: latent.Autoencoder) -> Tiny:
    """An autoencoder without codes."""

    @torch.no_grad()
    def use(model: nn.Module) -> list[Tensor]:
        given = pictures().to(next(model.parameters()).device)
        return [*model.distribution(given), model.decode(model.encode(given))]

    return Tiny(recipe, use)


def latents(recipe: latent.Recipe) -> Tiny:
    """A model that takes noise out of latents."""

    @torch.no_grad()
    def use(model: nn.Module) -> list[Tensor]:
        prompts = [prompt for prompt in PROMPTS if prompt]
        device = model.signal.device
        vectors, states, _ = model.encode_text(PROMPTS)
        x = torch.linspace(-1, 1, 6 * 4 * 4 * 8, device=device).view(6, 8, 4, 4)
        said = model(x, torch.arange(6, device=device), model.encode_text(PROMPTS))
        drawn = model.generate(prompts, steps=3, unwanted="fox")
        return [vectors, states, said, drawn, model.generate(seed=[5], steps=2)]

    return Tiny(recipe, use)


def vectors(recipe: unclip.PriorRecipe) -> Tiny:
    """A model that guesses the vector of a picture."""

    @torch.no_grad()
    def use(model: nn.Module) -> list[Tensor]:
        prompts = [prompt for prompt in PROMPTS if prompt]
        x = torch.linspace(-1, 1, 6 * DIM, device=model.signal.device).view(6, DIM)
        t = torch.arange(6, device=x.device)
        return [model(x, t, model.encode_text(PROMPTS)), model.generate(prompts, steps=3)]

    return Tiny(recipe, use)


def told(recipe: unclip.Recipe) -> Tiny:
    """A model that draws a vector."""

    @torch.no_grad()
    def use(model: nn.Module) -> list[Tensor]:
        place = model.vector.weight.device
        given = nn.functional.normalize(torch.eye(DIM, device=place)[:3] + 0.1, dim=1)
        return [*model.says(given)[:2], model.draw(given, seed=[1, 2, 3], steps=2)]

    return Tiny(recipe, use)


STREAM = {"merges": 20, "width": 16, "depth": 2, "heads": 2, "steps": 16, "batch": 8}
STREAM |= {"warmup": 4, "moves": 2, "aside": 0, "questions": 3}  # all toys are of one style

PIXELS = {"side": 16, "times": 50, "widths": (16, 32), "depth": 1, "steps": 16, "batch": 8}
PIXELS |= {"warmup": 4, "moves": 2, "aside": 0, "questions": 3, "samples": 3}

SHORT = {"moves": 2, "aside": 0, "questions": 3}
VECTORS = {"width": 24, "depth": 1, "heads": 2, "steps": 16, "batch": 8, "warmup": 4} | SHORT
LATENTS = {"side": 32, "times": 50, "widths": (16, 32), "steps": 16, "batch": 8, "warmup": 4}
LATENTS |= {"moves": 2, "aside": 0, "questions": 3}

MODELS = {
    "clip": clip(VIT | {"keep": 0.5}, TRANSFORMER, seed=3),
    "clip_resnet": clip(RESNET, TRANSFORMER, small=24, small_share=0.5, seed=4),
    "vq_vae": codes(autoencoders.Recipe(factor=4, codes=32, **CODED)),
    "dvae": codes(dvae.Recipe(factor=4, codes=32, **CODED)),
    "vqgan": codes(vqgan.Recipe(factor=8, codes=32, critic_start=8, **CODED)),
    "vqgan_l2": codes(vqgan.Pixels(factor=8, codes=32, **CODED)),
    "dalle": stream(dalle.Recipe(**STREAM)),
    "diffusion": pixels(diffusion.Recipe(**PIXELS)),
    "kl": smooth(latent.Autoencoder(width=16, steps=16, batch=8, warmup=4, perceptual_start=8)),
    "prior": vectors(unclip.PriorRecipe(**VECTORS)),
    "unclip": told(unclip.Recipe(words=2, steps=16, batch=8, warmup=4, **SHORT)),
    "latent_diffusion": latents(latent.Recipe(**LATENTS)),
    "clip_bag": clip(VIT, BAG),
    "clip_resnet_bag": clip(RESNET, BAG),
}


def model(what: str | Tiny = "clip", seed: int = 0) -> nn.Module:
    """A new model, its weights moved by noise: no bias is zero and no gain one."""
    recipe = (MODELS[what] if isinstance(what, str) else what).recipe
    wanted = recipe.borrows() | recipe.helpers()
    others = {key: model(other).eval().requires_grad_(False) for key, other in wanted.items()}
    torch.manual_seed(seed)
    made = recipe.shipped(recipe.build(pairs(), others))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:  # not what is borrowed
                parameter += 0.1 * torch.randn_like(parameter)
    return made


def save(name: str, folder: Path, seed: int = 0) -> nn.Module:
    """Write a model under its name, and first what it borrows; returns it."""
    borrows = MODELS[name].recipe.borrows()
    for other in borrows.values():
        save(other, folder)
    made = model(name, seed)
    checkpoints.save(made, name, {"recipe": name}, folder, borrows)
    return made
