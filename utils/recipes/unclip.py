"""unCLIP: a prior from captions to CLIP's vectors of pictures, a decoder from those."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils import training
from utils.bricks.dalle import found_among
from utils.bricks.diffusion import frechet_distance
from utils.bricks.latent_diffusion import latent_loss
from utils.bricks.unclip import Prior, UnCLIP, imagine, variations
from utils.bricks.zero_shot import image_vectors
from utils.data import Pairs
from utils.recipes import engine
from utils.recipes.drawing import (
    AMONG,
    FromCaptions,
    Generator,
    asked,
    batch,
    moved,
    percent,
    shown,
)
from utils.recipes.latent import encoded


@dataclass(frozen=True, kw_only=True)
class PriorRecipe(FromCaptions):
    width: int = 192
    depth: int = 4
    heads: int = 3
    weight_decay: float = 0.05
    warmup: int = 100
    questions: int = 200

    def borrows(self) -> dict[str, str]:
        return {"clip": "clip_resnet"}

    def build(self, train: Pairs, others: dict[str, nn.Module]) -> Prior:
        return Prior(others["clip"], self.width, self.depth, self.heads)

    def optimizers(self, learner: nn.Module) -> list[training.MuonAdamW]:
        return [self.muon(learner, ROLES)]

    def losses(self, model, train, others) -> list[Callable[[int], Tensor]]:
        kept, _ = shown(train, self.aside)
        vectors, device = seen_by(model, kept, self.moves), model.signal.device

        def loss(step: int) -> Tensor:
            rows, words, moves = batch(kept, self.batch, self.seed, step, self.silent, self.moves)
            part = engine.share(self.batch)
            z = vectors[moves[part], rows[part]].to(device).float() * model.dim**0.5
            return latent_loss(model, z, model.encode_text(words[part]))

        return [loss]

    def look(self, model, splits, others):
        kept, _ = shown(splits["train"], self.aside)
        figures = {}
        unseen = splits["unseen"].where(skin_tone="none")
        for name, pairs in {"train": kept, "unseen": unseen}.items():
            labels, _ = asked(pairs, self.questions)
            first = [pairs.table["label_en"].index(x) for x in labels]
            real = image_vectors(model.clip, pairs.pictures[first])
            text = model.clip.encode_text(labels)
            guess = model.generate(labels, seed=range(len(labels)), guidance=1.0, steps=12)
            for way, vectors in {"": guess, "_text": text}.items():
                cosines = vectors @ real.T  # (N, N), those of pairs on the diagonal
                figures[f"{name}{way}_cosine"] = round(cosines.diag().mean().item(), 3)
                found = cosines.argmax(1).cpu() == torch.arange(len(labels))
                figures[f"{name}{way}_found"] = percent(found)
        return figures, None

    def evaluate(self, model, splits, others):
        return self.look(model, splits, others)[0]


@dataclass(frozen=True, kw_only=True)
class Recipe(Generator):
    words: int = 4
    weight_decay: float = 0.0
    warmup: int = 20
    questions: int = 100

    def borrows(self) -> dict[str, str]:
        return {"latent": "latent_diffusion"}

    def helpers(self) -> dict[str, str]:
        return {"judge": "clip", "prior": "prior"}

    def build(self, train: Pairs, others: dict[str, nn.Module]) -> UnCLIP:
        return UnCLIP(others["latent"], self.words)

    def optimizers(self, learner: nn.Module) -> list[training.MuonAdamW]:
        return [self.muon(learner, {"edge": ["tokens.weight", "vector.weight"]})]

    def losses(self, model, train, others) -> list[Callable[[int], Tensor]]:
        kept, _ = shown(train, self.aside)
        latent = model.latent
        latents, vectors = encoded(latent, kept, self.moves), seen_by(latent, kept, self.moves)

        def loss(step: int) -> Tensor:
            rows, _, moves = batch(kept, self.batch, self.seed, step, 0.0, self.moves)
            part = engine.share(self.batch)
            z = latents[moves[part], rows[part]].to(latent.mean.device).float()
            z = (z - latent.mean) / latent.deviation
            return latent_loss(latent, z, model.says(vectors[moves[part], rows[part]].float()))

        return [loss]

    def look(self, model, splits, others):
        pairs, judge = splits["unseen"].where(skin_tone="none"), others["judge"]
        pictures = pairs.pictures / 255
        some = list(range(0, len(pairs), max(1, len(pairs) // self.questions)))[: self.questions]
        drawn = torch.cat([variations(model, part) for part in pictures[some].split(50)])
        known, seen = image_vectors(judge, pictures).cpu(), image_vectors(judge, drawn).cpu()
        group, concept = pairs.table["group"], pairs.table["concept"]
        wins = []
        for row, vector in zip(some, seen, strict=True):
            near = [
                j
                for j in range(len(pairs))
                if group[j] == group[row] and concept[j] != concept[row]
            ]
            wins.append((vector @ known[row] > known[near] @ known[row]).float().mean())
        return {"nearer_than_its_group": percent(torch.stack(wins))}, drawn[:12]

    def evaluate(self, model, splits, others):
        """The look's figures, and those of pictures drawn with the prior and without.

        Without: from the captions' own vectors. How often labels are found; the mean cosine to
        a real picture of the same, in the judge's eyes; the Fréchet distance to all training
        pictures on its features, times 1,000, a hundred at a time.
        """
        figures, _ = self.look(model, splits, others)
        kept, _ = shown(splits["train"], self.aside)
        labels, pool = asked(kept, 4 * self.questions)
        judge, clip = others["judge"], model.latent.clip
        known = image_vectors(judge, kept.pictures)
        real = known[[kept.table["label_en"].index(label) for label in labels]]
        ways = {"": imagine(others["prior"], labels), "_without_prior": clip.encode_text(labels)}
        for way, vectors in ways.items():
            parts = torch.arange(len(labels)).split(100)
            drawn = [model.draw(vectors[n], seed=n.tolist()) for n in parts]
            seen = [image_vectors(judge, part) for part in drawn]
            found = found_among(judge, torch.cat(drawn), labels, pool, AMONG)
            figures[f"found{way}"] = percent(found)
            figures[f"like_real{way}"] = round((torch.cat(seen) * real).sum(1).mean().item(), 3)
            distances = torch.tensor([frechet_distance(part, known) for part in seen])
            figures[f"frechet{way}"] = round(1000 * distances.mean().item(), 1)
        return figures


ROLES = {
    "matrix": ["blocks.*.weight"],
    "edge": ("words.weight", "vector.weight", "time.weight", "noisy.weight", "out.weight")
    + ("places",),
}


@torch.no_grad()
def seen_by(model, pairs: Pairs, moves: int) -> Tensor:
    """CLIP's vectors of pictures as they are and moved: (1 + moves, N, dim)."""

    def encode() -> dict[str, Tensor]:
        each = [image_vectors(model.clip, moved(pairs.pictures, m)).cpu() for m in range(moves + 1)]
        return {"vectors": torch.stack(each)}

    made_of = {"pictures": training.digest({"pictures": pairs.pictures}, ""), "moves": moves,
               "clip": training.digest(model.clip.state_dict(), "")}
    return engine.cached("vectors", made_of, encode)["vectors"]


RECIPES = {"prior": PriorRecipe(steps=1500, batch=96), "unclip": Recipe(steps=400, batch=64)}
