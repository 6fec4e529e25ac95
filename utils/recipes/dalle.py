"""DALL·E: words and codes as one stream, on the codes of `vqgan`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils import training
from utils.bricks.dalle import DALLE, found_among, nearest_codes, rerank, stream_loss
from utils.bricks.text_encoders import learn_merges
from utils.bricks.vqgan import corrupted
from utils.data import Pairs
from utils.recipes import engine
from utils.recipes.drawing import (
    AMONG,
    FromCaptions,
    asked,
    batch,
    moved,
    percent,
    shown,
    single,
    unseen_pairs,
)

CANDIDATES = 16  # samples to rank


@dataclass(frozen=True, kw_only=True)
class Recipe(FromCaptions):
    merges: int = 1486  # with 512 byte symbols and START and END, a vocabulary of 2,000
    text: int = 16
    width: int = 224
    depth: int = 8
    heads: int = 7
    dropout: float = 0.1
    keep: float = 0.9  # the share of codes that are shown as they are
    guidance: float = 2.0
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 200
    average: float = 0.998
    questions: int = 100

    def borrows(self) -> dict[str, str]:
        return {"quantiser": "vqgan"}

    def helpers(self) -> dict[str, str]:
        return {"guide": "clip_resnet", "judge": "clip"}

    def build(self, train: Pairs, others: dict[str, nn.Module]) -> DALLE:
        merges = learn_merges(texts(train), self.merges)
        quantiser = others["quantiser"]
        return DALLE(
            quantiser,
            [list(pair) for pair in merges],
            self.text,
            train.pictures.shape[-1] // quantiser.factor,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            dropout=self.dropout,
        )

    def optimizers(self, learner: nn.Module) -> list[training.MuonAdamW]:
        return [self.muon(learner, ROLES)]

    def losses(
        self, model: DALLE, train: Pairs, others: dict[str, nn.Module]
    ) -> list[Callable[[int], Tensor]]:
        kept, _ = shown(train, self.aside)
        codes, device = encoded(model, kept, self.moves), model.start.device

        def loss(step: int) -> Tensor:
            rows, words, moves = batch(kept, self.batch, self.seed, step, self.silent, self.moves)
            part = engine.share(self.batch)
            ids = model.encode_text(words[part])
            right = codes[moves[part], rows[part]].to(device).long()
            shown = corrupted(right, self.keep, model.quantiser.codes)
            return stream_loss(model, ids, right, shown)

        return [loss]

    def look(self, model, splits, others):
        return self.asked_for(model, splits, others, self.questions)

    def asked_for(self, model, splits, others, questions: int) -> tuple[dict, Tensor]:
        """What the judge says of single samples; pictures of the first twelve labels."""
        kept, aside = shown(splits["train"], self.aside)
        labels, pool = asked(kept, questions)
        figures, _, pictures = single(model, others["judge"], labels, pool, self.guidance)
        if len(aside):
            figures |= unseen_pairs(model, others["judge"], kept, aside, pool, self.guidance)
        plain = model.codes(labels[: self.questions])
        figures["copies"] = copies(plain, encoded(model, kept, self.moves))
        return figures, pictures[:12]

    def evaluate(self, model, splits, others):
        figures, _ = self.asked_for(model, splits, others, 4 * self.questions)
        kept, _ = shown(splits["train"], self.aside)
        labels, pool = asked(kept, self.questions)
        parts = [labels[i : i + 6] for i in range(0, len(labels), 6)]
        best = torch.cat([self.best(model, others["guide"], part) for part in parts])
        found = found_among(others["judge"], best, labels, pool, AMONG)
        return figures | {"best_of_16": percent(found)}

    def best(self, model: DALLE, guide: nn.Module, labels: list[str]) -> Tensor:
        """For each label what the guide likes best of its candidates: (N, 3, S, S)."""
        prompts = [label for label in labels for _ in range(CANDIDATES)]
        seeds = [*range(CANDIDATES)] * len(labels)
        drawn = model.generate(prompts, seed=seeds, guidance=self.guidance).split(CANDIDATES)
        groups = zip(labels, drawn, strict=True)
        return torch.stack([group[rerank(guide, group, label)[0]] for label, group in groups])


ROLES = {
    "matrix": ("blocks.*.weight",),
    "edge": ("tokens.weight", "head.weight", "places", "rows", "columns"),
}


def texts(pairs: Pairs) -> list[str]:
    """The English labels and keywords of every concept, once."""
    rows = [pairs.row(group[0]) for group in pairs.concepts]
    return [text for row in rows for text in (row["label_en"], *row["keywords_en"])]


@torch.no_grad()
def encoded(model: DALLE, pairs: Pairs, moves: int) -> Tensor:
    """The codes of pictures as they are and moved: (1 + moves, N, side²) int16."""

    def encode() -> dict[str, Tensor]:
        found = []
        for move in range(moves + 1):
            parts = moved(pairs.pictures, move).split(128)
            grids = [model.quantiser.encode(p.to(model.start.device) / 255) for p in parts]
            found.append(torch.cat(grids).flatten(1).to(torch.int16).cpu())
        return {"codes": torch.stack(found)}

    encoder = training.digest(model.quantiser.state_dict(), "")
    pictures = training.digest({"pictures": pairs.pictures}, "")
    made_of = {"pictures": pictures, "quantiser": encoder, "moves": moves}
    return engine.cached("codes", made_of, encode)["codes"]


# ---------------------------------------------------------------- measuring


def copies(codes: Tensor, known: Tensor) -> float:
    """Of pictures (B, side, side), the share with nine in ten codes of one training picture."""
    shares, _ = nearest_codes(codes.flatten(1).cpu(), known.flatten(0, 1))
    return percent(shares >= 0.9)


RECIPES = {"dalle": Recipe(steps=3400, batch=64)}
