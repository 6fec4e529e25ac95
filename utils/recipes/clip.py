"""The two CLIPs: every picture against an English and against a Chinese caption."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import device as devices
from utils import training
from utils.bricks.clip import CLIP, contrastive_loss
from utils.bricks.text_encoders import learn_merges
from utils.bricks.zero_shot import TEMPLATES, class_vectors, image_vectors, top_k_accuracy
from utils.data import LANGUAGES, Pairs, augment, draw
from utils.recipes import engine

BLOCKS = ("*.attention.qkv.weight", "*.attention.out.weight", "*.fc1.weight", "*.fc2.weight")
ROLES = {
    "vit": {
        "matrix": (*BLOCKS, "*_projection.weight"),
        "edge": ("image_tower.patch.weight", "*.positions", "text_tower.tokens.weight"),
    },
    "resnet": {
        "matrix": (*BLOCKS, "*_projection.weight", "image_tower.layers.[1-9]*.weight"),
        "edge": ("image_tower.layers.0.weight", "*.positions", "text_tower.tokens.weight"),
    },
}


@dataclass(frozen=True, kw_only=True)
class Recipe(engine.Recipe):
    image: dict
    text: dict
    dim: int = 256
    merges: int = 3582  # with 512 byte symbols and START and END, a vocabulary of 4,096
    steps: int = 2400
    batch: int = 256
    small: int = 64  # picture size in the first steps; small pictures cost less
    small_share: float = 0.0

    def build(self, train: Pairs, others: dict[str, nn.Module]) -> CLIP:
        """A new CLIP with a tokenizer learnt on the training pairs alone."""
        merges = learn_merges(vocabulary_texts(train), self.merges)
        return CLIP(self.image, self.text, [list(pair) for pair in merges], self.dim)

    def optimizers(self, clip: CLIP) -> list[training.MuonAdamW]:
        return [self.muon(clip, ROLES[self.image["tower"]])]

    def losses(
        self, clip: CLIP, train: Pairs, others: dict[str, nn.Module]
    ) -> list[Callable[[int], Tensor]]:
        """Each process encodes its share of the same batch; the loss is that of the whole."""
        device = clip.logit_scale.device
        part = engine.share(self.batch)

        def loss(step: int) -> Tensor:
            rng = random.Random(f"{self.seed}/{step}")
            rows = draw(train, self.batch, rng)
            captions = [[train.caption(i, rng, [lang]) for i in rows] for lang in LANGUAGES]
            pictures = train.pictures[torch.tensor(rows)].to(device).float().div_(255)
            if step < self.small_share * self.steps:
                pictures = F.interpolate(pictures, (self.small,) * 2, mode="area")
            pictures = augment(pictures, devices.generator(self.seed, step))
            ids = clip.tokenizer([c for texts in captions for c in texts[part]]).to(device)
            texts = clip.encode_tokens(ids).chunk(len(LANGUAGES))
            images = engine.gathered(clip.encode_image(pictures[part], pictures.shape[-1]))
            scale = clip.logit_scale.exp()
            losses = [contrastive_loss(images, engine.gathered(t), scale) for t in texts]
            return torch.stack(losses).mean()

        return [loss]

    def after_step(self, clip: CLIP) -> None:
        clip.clamp_scale()

    def evaluate(
        self, clip: CLIP, splits: dict[str, Pairs], others: dict[str, nn.Module]
    ) -> dict[str, float]:
        """Zero-shot accuracy of every split among its own concepts, in percent."""
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

    def notes(self) -> dict:
        return {"templates": TEMPLATES}


def vocabulary_texts(pairs: Pairs) -> list[str]:
    """The labels and keywords of every concept, once, in both languages."""
    texts = []
    for group in pairs.concepts:
        row = pairs.row(group[0])
        for language in LANGUAGES:
            texts += [row[f"label_{language}"], *row[f"keywords_{language}"]]
    return texts


VIT = {
    "tower": "vit",
    "image_size": 64,
    "patch_size": 8,
    "width": 192,
    "depth": 6,
    "heads": 3,
    "keep": 0.4,
}
RESNET = {"tower": "resnet", "image_size": 64, "widths": [64, 128, 256], "depths": [2, 2, 2]}
TEXT = {"tower": "transformer", "context": 32, "width": 192, "depth": 4, "heads": 3}
RECIPES = {
    "clip": Recipe(image=VIT, text=TEXT),
    "clip_resnet": Recipe(image=RESNET, text=TEXT, small=48, small_share=0.8, seed=1),
}
