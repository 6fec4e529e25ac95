"""Pretraining of the models that the course ships: `python -m tools.pretrain NAME`.

Shows progress, survives a kill (run it again and it resumes), uses CUDA and bfloat16 when
they are there, and runs under `torchrun` unchanged. A recipe is everything that decides
the weights; the models themselves are bricks.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from utils import checkpoints, tensors, training
from utils import device as devices
from utils.bricks.clip import CLIP, contrastive_loss
from utils.bricks.text_encoders import learn_merges
from utils.bricks.zero_shot import TEMPLATES, class_vectors, image_vectors, top_k_accuracy
from utils.data import LANGUAGES, Pairs, augment, draw, emoji_hash, load_emoji
from utils.paths import CHECKPOINTS, RUNS


@dataclass(frozen=True)
class Recipe:
    """The arguments of one run, as printed on the card."""

    image: dict
    text: dict
    dim: int = 256
    merges: int = 3582  # with 512 byte symbols and START and END, a vocabulary of 4,096
    steps: int = 2400
    batch: int = 256
    lr: float = 1e-3
    matrix_lr: float = 0.02
    weight_decay: float = 0.05
    warmup: int = 100
    average: float = 0.998
    small: int = 64  # picture size in the first steps; small pictures cost less
    small_share: float = 0.0
    seed: int = 0


TEXT = {"tower": "transformer", "context": 32, "width": 192, "depth": 4, "heads": 3}
RECIPES = {
    "clip": Recipe(
        image={
            "tower": "vit",
            "image_size": 64,
            "patch_size": 8,
            "width": 192,
            "depth": 6,
            "heads": 3,
            "keep": 0.4,
        },
        text=TEXT,
    ),
    "clip_resnet": Recipe(
        image={
            "tower": "resnet",
            "image_size": 64,
            "widths": [64, 128, 256],
            "depths": [2, 2, 2],
        },
        text=TEXT,
        small=48,
        small_share=0.8,
        seed=1,
    ),
}


def vocabulary_texts(pairs: Pairs) -> list[str]:
    """The labels and keywords of every concept, once, in both languages."""
    texts = []
    for group in pairs.concepts:
        row = pairs.row(group[0])
        for language in LANGUAGES:
            texts += [row[f"label_{language}"], *row[f"keywords_{language}"]]
    return texts


def build(recipe: Recipe, pairs: Pairs) -> CLIP:
    """A new CLIP, seeded, with a tokenizer learnt on the training pairs alone."""
    merges = learn_merges(vocabulary_texts(pairs), recipe.merges)
    devices.seed(recipe.seed)
    return CLIP(recipe.image, recipe.text, [list(pair) for pair in merges], recipe.dim)


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(vectors: Tensor) -> Tensor:
    """The vectors of all processes in rank order, with gradients to each of them."""
    return torch.cat(all_gather(vectors)) if world()[1] > 1 else vectors


def clip_loss(clip: CLIP, pairs: Pairs, recipe: Recipe) -> Callable[[int], Tensor]:
    """loss(step): every picture against an English and against a Chinese caption.

    Each process encodes its share of the same batch; the loss is that of the whole batch.
    """
    device = clip.logit_scale.device
    rank, processes = world()

    def loss(step: int) -> Tensor:
        rng = random.Random(f"{recipe.seed}/{step}")
        rows = draw(pairs, recipe.batch, rng)
        captions = [[pairs.caption(i, rng, [lang]) for i in rows] for lang in LANGUAGES]
        pictures = pairs.pictures[torch.tensor(rows)].to(device).float().div_(255)
        if step < recipe.small_share * recipe.steps:
            pictures = F.interpolate(pictures, (recipe.small,) * 2, mode="area")
        pictures = augment(pictures, devices.generator(recipe.seed, step))
        share = slice(rank * recipe.batch // processes, (rank + 1) * recipe.batch // processes)
        ids = clip.tokenizer([c for texts in captions for c in texts[share]]).to(device)
        texts = clip.encode_tokens(ids).chunk(len(LANGUAGES))
        images = gathered(clip.encode_image(pictures[share], pictures.shape[-1]))
        scale = clip.logit_scale.exp()
        losses = [contrastive_loss(images, gathered(t), scale) for t in texts]
        return torch.stack(losses).mean()

    return loss


def average_gradients(clip: CLIP) -> None:
    """Sum gradients over processes; each holds `processes` times its share of them."""
    processes = world()[1]
    if processes > 1:
        for parameter in clip.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= processes


def evaluate(clip: CLIP, splits: dict[str, Pairs]) -> dict[str, float]:
    """Zero-shot accuracy of every split among its own concepts, in percent."""
    clip.eval()
    results = {}
    for name, pairs in splits.items():
        targets = torch.empty(len(pairs), dtype=torch.long)
        for concept, group in enumerate(pairs.concepts):
            targets[group] = concept
        vectors = image_vectors(clip, pairs.pictures).cpu()
        for language in LANGUAGES:
            labels = [pairs.table[f"label_{language}"][g[0]] for g in pairs.concepts]
            classes = class_vectors(clip, labels, TEMPLATES[language]).cpu()
            scores = vectors @ classes.T
            for k in (1, 5):
                value = top_k_accuracy(scores, targets, k)
                results[f"{name}_{language}_top{k}"] = round(100 * value, 1)
    return results


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{world()[1]} × {torch.cuda.get_device_name(device)}"
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


def resume(state: Path, arguments: dict, clip: CLIP, optimizer, average) -> dict:
    """Load a state if it is one of this recipe and data; returns its note, or ValueError."""
    remedy = f"delete {state.parent} to start anew"
    try:
        note = json.loads(tensors.read(state)[1]["note"])
        if (note["recipe"], note["data"]) == (arguments, emoji_hash()):
            return training.load_state(state, clip, optimizer, average)
    except (ValueError, KeyError, TypeError, RuntimeError):
        raise ValueError(f"{state.name} is not a whole state of this model; {remedy}.") from None
    raise ValueError(f"{state.name} belongs to another recipe or data set; {remedy}.")


def pretrain(name: str, recipe: Recipe, folder: Path, runs: Path = RUNS, save_every=60.0) -> dict:
    """Train a recipe to its end, resuming if a state is there; writes weights and card.

    Raises ValueError in one sentence for a state that does not belong here.
    """
    device = devices.pick()
    rank = world()[0]
    splits = {split: load_emoji(split) for split in ("train", "unseen")}
    clip = build(recipe, splits["train"]).to(device)
    optimizer = training.MuonAdamW(clip, recipe.lr, recipe.matrix_lr, recipe.weight_decay)
    average = training.Average(clip, recipe.average)
    arguments = json.loads(json.dumps(asdict(recipe)))
    state = runs / name / "state.safetensors"
    start, seconds = 0, 0.0
    if state.exists():
        note = resume(state, arguments, clip, optimizer, average)
        start, seconds = note["step"], note["seconds"]
        if not rank:
            report(f"{name}: resuming at step {start} of {recipe.steps}\n")
    began = saved = time.monotonic()
    clip.train()
    for step, loss in training.run(
        optimizer,
        clip_loss(clip, splits["train"], recipe),
        recipe.steps,
        seed=recipe.seed,
        start=start,
        warmup=recipe.warmup,
        before_step=lambda: average_gradients(clip),
        after_step=clip.clamp_scale,
    ):
        average.update(clip, step)
        if rank:
            continue
        now = time.monotonic()
        done = step + 1
        left = (recipe.steps - done) * (now - began) / (done - start)
        report(f"\r{name}: step {done}/{recipe.steps}, loss {loss:.3f}, {left / 60:.1f} min left ")
        if now - saved > save_every or done == recipe.steps:
            note = {
                "step": done,
                "seconds": seconds + now - began,
                "recipe": arguments,
                "data": emoji_hash(),
            }
            training.save_state(state, clip, optimizer, average, note)
            saved = now
    seconds += time.monotonic() - began
    if rank:
        return {}
    # what is evaluated is what is shipped: averaged weights, rounded to fp16
    rounded = {
        k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in average.values.items()
    }
    clip.load_state_dict(rounded)
    card = {
        "recipe": name,
        "arguments": arguments,
        "steps": recipe.steps,
        "minutes": round(seconds / 60, 1),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "data": {"name": "Emoji-4", "split": "train", "sha256": emoji_hash()},
        "templates": TEMPLATES,
        "metrics": evaluate(clip, splits),
        "licence": "MIT; trained on Emoji-4, see assets/emoji/README.md for the pictures' licences",
    }
    checkpoints.save(clip, name, card, folder)
    return card


def report(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain one of the course's models.")
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, help="where weights go")
    arguments = parser.parse_args()
    try:
        if "RANK" in os.environ:
            cuda = devices.pick().type == "cuda"
            if cuda:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if cuda else "gloo")
        card = pretrain(arguments.name, RECIPES[arguments.name], arguments.out)
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; run the same command again to go on") from None
    except ValueError as error:
        raise SystemExit(f"\n{error}") from None
    except (OSError, SafetensorError) as error:
        raise SystemExit(f"\n{error}; mend that and run the same command again to go on") from None
    if card:
        report("\n")
        for metric, value in card["metrics"].items():
            print(f"{metric}: {value:.1f} %")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
