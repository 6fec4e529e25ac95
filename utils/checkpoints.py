"""Checkpoints: one safetensors file (fp16) and one JSON card each, verified on loading.

Knows the shipped models by name; how tensors are read and written is in `tensors`.
"""

import importlib
import json
from pathlib import Path

import torch
from torch import nn

from utils import device as devices
from utils import files
from utils.paths import CHECKPOINTS
from utils.tensors import (
    CheckpointError,
    compare,
    fill,
    outline,
    own_state,
    read,
    sha256,
    write,
    write_text,
)

# name → where its class is defined
MODELS = {
    "clip": "utils.bricks.clip:CLIP",
    "clip_resnet": "utils.bricks.clip:CLIP",
    "vq_vae": "utils.bricks.vq_vae:VQVAE",
    "dvae": "utils.bricks.dvae:DVAE",
    "vqgan": "utils.bricks.vq_vae:VQVAE",
    "vqgan_l2": "utils.bricks.vq_vae:VQVAE",
    "dalle": "utils.bricks.dalle:DALLE",
    "diffusion": "utils.bricks.diffusion:Diffusion",
    "kl": "utils.bricks.latent_diffusion:KLAutoencoder",
    "latent_diffusion": "utils.bricks.latent_diffusion:LatentDiffusion",
    "prior": "utils.bricks.unclip:Prior",
    "unclip": "utils.bricks.unclip:UnCLIP",
}


def save(
    model: nn.Module,
    name: str,
    card: dict,
    folder: Path = CHECKPOINTS,
    borrows: dict[str, str] | None = None,
) -> Path:
    """Write `name.safetensors` in fp16 with the model's config inside, and its card.

    borrows: {attribute: shipped model}. What the model holds there is not written: the card
    names it with its SHA-256, and `load` puts it back.
    """
    borrows = borrows or {}
    own = own_state(model, [getattr(model, attribute) for attribute in borrows])
    half = {
        k: v.detach().cpu().to(torch.float16) if v.is_floating_point() else v.detach().cpu()
        for k, v in own.items()
    }
    path = folder / f"{name}.safetensors"
    write(half, path, {"config": json.dumps(model.config)})
    held = {"borrows": named(borrows, folder)} if borrows else {}
    card = {"name": name, **card, **held}
    card |= {"sha256": sha256(path), "bytes": path.stat().st_size}
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    write_text(text, folder / f"{name}.json")
    return path


def named(borrows: dict[str, str], folder: Path = CHECKPOINTS) -> dict[str, dict]:
    """{attribute: shipped model} as a card has it, with the SHA-256 of the weights borrowed."""
    return {
        attribute: {"name": other, "sha256": card(other, home(other, folder)).get("sha256")}
        for attribute, other in borrows.items()
    }


def home(name: str, folder: Path) -> Path:
    """Where a borrowed model lies: beside its borrower, or else with the shipped ones."""
    return folder if (folder / f"{name}.json").exists() else CHECKPOINTS


def card(name: str, folder: Path = CHECKPOINTS) -> dict:
    """The JSON card of a checkpoint. Raises CheckpointError."""
    remedy = f"restore assets/checkpoints or run `python -m tools.pretrain {name}`"
    try:
        found = json.loads(files.read_text(folder / f"{name}.json"))
    except files.Unreadable as reason:
        raise CheckpointError(f"The card {name}.json {reason}; {remedy}.") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"The card {name}.json is not JSON; {remedy}.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"The card {name}.json is not an object; {remedy}.")
    return found


def load(name: str, device: torch.device | None = None, folder: Path = CHECKPOINTS) -> nn.Module:
    """A shipped model by name, verified, in eval mode, float32, on the chosen device."""
    if name not in MODELS:
        raise CheckpointError(f"There is no model {name!r}; choose one of {', '.join(MODELS)}.")
    path = folder / f"{name}.safetensors"
    told = card(name, folder)
    expected = told.get("sha256")
    remedy = f"restore assets/checkpoints or run `python -m tools.pretrain {name}`"
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing; {remedy}.")
    try:
        found = sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror}); {remedy}.") from None
    if found != expected:
        raise CheckpointError(
            f"{path.name} does not match its card (SHA-256 {found[:12]}…, "
            f"not {str(expected)[:12]}…); {remedy}."
        )
    borrowed = borrow(name, told.get("borrows"), device, folder)
    tensors, metadata = read(path)
    module, _, attribute = MODELS[name].partition(":")
    brick = getattr(importlib.import_module(module), attribute)
    try:
        config = json.loads(metadata["config"])
        shapes = outline(lambda: brick(**config, **borrowed), len(tensors))
        compare(shapes, tensors, path.name, [*borrowed.values()])
        model = brick(**config, **borrowed)
    except CheckpointError:
        raise
    except Exception:  # a wrong argument can fail anywhere in a model
        raise CheckpointError(f"{path.name} describes no {brick.__name__}; {remedy}.") from None
    fill(model, tensors, path.name, [*borrowed.values()])
    return model.eval().to(device or devices.pick())


def borrow(
    name: str, borrows, device: torch.device | None, folder: Path = CHECKPOINTS
) -> dict[str, nn.Module]:
    """The shipped models that a card says `name` holds, by attribute, frozen.

    Raises CheckpointError when one is not the very model that `name` was trained with.
    """
    remedy = f"restore assets/checkpoints or run `python -m tools.pretrain {name}`"
    found = {}
    try:
        wanted = {a: (entry["name"], entry["sha256"]) for a, entry in (borrows or {}).items()}
    except (AttributeError, KeyError, TypeError):
        raise CheckpointError(
            f"The card {name}.json does not say what is borrowed; {remedy}."
        ) from None
    for attribute, (other, hash_) in wanted.items():
        place = home(other, folder)
        if card(other, place).get("sha256") != hash_:
            raise CheckpointError(
                f"{name} was trained with another {other} (SHA-256 {str(hash_)[:12]}…); {remedy}."
            )
        found[attribute] = load(other, device, place).requires_grad_(False)
    return found
