"""What the recipes of models that draw from words share: captions, batches, what is measured."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils import device as devices
from utils import training
from utils.bricks.dalle import found_among
from utils.bricks.zero_shot import image_vectors, linear_probe, probe_scores
from utils.data import STYLE_WORDS, STYLES, Pairs, set_aside, with_article
from utils.recipes import engine

CAPTIONS = (
    "{label}",
    "{label}",
    "a picture of {label}",
    "{a_style} drawing of {label}",
    "{a_style} drawing of {label}",
    "{label} in {style} style",
    "{label}, {keyword}",
)
AMONG = 100  # captions to choose from
U_NET = {  # which of its weights are what, see `training.by_role`
    "matrix": [
        f"unet.{part}.*.weight" for part in ("down", "smaller", "middle", "between", "up", "larger")
    ],
    "edge": ("unet.enter.weight", "unet.time.*.weight", "unet.condition.*", "unet.leave.weight"),
}


@dataclass(frozen=True, kw_only=True)
class Generator(engine.Recipe):
    """What the recipes of all models that draw share."""

    moves: int = 4  # shifts by a pixel or two; as many pictures are moved as stand still
    aside: int = 200  # pairs of train that are not shown
    schedule: str = "trapezoid"

    def notes(self) -> dict:
        kept = "each concept was shown in its other styles"
        pairs = f"{self.aside} (concept, style) pairs of train, utils.data.set_aside"
        return {"set_aside": f"{pairs}; {kept}"}


@dataclass(frozen=True, kw_only=True)
class FromCaptions(Generator):
    """What those share that draw what captions say."""

    silent: float = 0.1  # the share of captions that are left out

    def notes(self) -> dict:
        return {"captions": CAPTIONS} | super().notes()


@dataclass(frozen=True, kw_only=True)
class FromNoise(FromCaptions):
    """What diffusion's recipes share: the noise, and what is measured of their samples."""

    noise: str = "cosine"  # the schedule of the noise, see `betas`
    times: int = 1000
    predicts: str = "v"
    depth: int = 1
    guidance: float = 3.0
    weight_decay: float = 0.01
    warmup: int = 200
    questions: int = 100

    def optimizers(self, learner: nn.Module) -> list[training.MuonAdamW]:
        return [self.muon(learner, U_NET)]

    def copied(self, model: nn.Module, pictures: Tensor, kept: Pairs) -> float:
        """The share of pictures that are copies of training pictures, in percent."""
        raise NotImplementedError

    def look(self, model, splits, others):
        kept, _ = shown(splits["train"], self.aside)
        labels, pool = asked(kept, self.questions)
        figures, plain, guided = single(model, others["judge"], labels, pool, self.guidance)
        figures["copies"] = self.copied(model, plain, kept)
        return figures, guided[:12]

    def evaluate(self, model, splits, others):
        figures, _ = self.look(model, splits, others)
        kept, aside = shown(splits["train"], self.aside)
        _, pool = asked(kept, self.questions)
        if len(aside):
            figures |= unseen_pairs(model, others["judge"], kept, aside, pool, self.guidance)
        return figures


def shown(train: Pairs, aside: int) -> tuple[Pairs, Pairs]:
    """What a generator is trained on, without skin tones, and what it never sees."""
    return set_aside(train.where(skin_tone="none"), aside)


def caption(pairs: Pairs, i: int, rng: random.Random) -> str:
    row = pairs.row(i)
    style = rng.choice(STYLE_WORDS[row["style"]]["en"])
    return rng.choice(CAPTIONS).format(
        label=row["label_en"],
        style=style,
        a_style=with_article(style),
        keyword=rng.choice(row["keywords_en"] or [row["label_en"]]),
    )


def batch(
    kept: Pairs, size: int, seed: int, step: int, silent: float, moves: int
) -> tuple[list[int], list[str], list[int]]:
    """Rows, captions and moves of one step; every picture comes once in each epoch.

    silent: the share of captions that are left out; moves: how many there are beside standing
    still, which half of the pictures do.
    """
    rng = random.Random(f"{seed}/{step}")
    epoch, place = divmod(step, len(kept) // size)
    order = torch.randperm(len(kept), generator=devices.generator(seed, epoch))
    rows = order[place * size : (place + 1) * size].tolist()
    words = ["" if rng.random() < silent else caption(kept, row, rng) for row in rows]
    return rows, words, [rng.randrange(1, moves + 1) * rng.randrange(2) for _ in rows]


def moved(pictures: Tensor, move: int) -> Tensor:
    """Pictures (N, 3, S, S) uint8, shifted by a pixel or two; white comes in. 0: as they are."""
    if not move:
        return pictures
    down, right = [(1, 0), (-1, 1), (0, -2), (2, 1), (-2, -1), (1, 2), (0, -1), (-1, 2)][move - 1]
    large = nn.functional.pad(pictures, (2, 2, 2, 2), value=255)
    side = pictures.shape[-1]
    return large[:, :, 2 - down : 2 - down + side, 2 - right : 2 - right + side]


# ---------------------------------------------------------------- measuring


def percent(found: Tensor) -> float:
    return round(100 * found.float().mean().item(), 1)


def asked(kept: Pairs, count: int) -> tuple[list[str], list[str]]:
    """The labels that are asked for, and all to choose from; flags are too much alike."""
    pairs = zip(kept.table["label_en"], kept.table["group"], strict=True)
    pool = sorted({label for label, group in pairs if group != "flags"})
    return random.Random(7).sample(pool, min(count, len(pool))), pool


def drawn(model: nn.Module, prompts: list[str], guidance: float) -> Tensor:
    """One picture of each prompt, a hundred at a time."""
    parts = [prompts[i : i + 100] for i in range(0, len(prompts), 100)]
    return torch.cat([model.generate(part, guidance=guidance) for part in parts])


def single(
    model: nn.Module, judge: nn.Module, labels: list[str], pool: list[str], guidance: float
) -> tuple[dict[str, float], Tensor, Tensor]:
    """How often the judge finds the label of a single sample, without guidance and with.

    And the pictures, of both kinds.
    """
    plain, guided = drawn(model, labels, 1.0), drawn(model, labels, guidance)
    figures = {
        "found": percent(found_among(judge, plain, labels, pool, AMONG)),
        "found_guided": percent(found_among(judge, guided, labels, pool, AMONG)),
    }
    return figures, plain, guided


def unseen_pairs(
    model: nn.Module, judge: nn.Module, kept: Pairs, aside: Pairs, pool: list[str], guidance: float
) -> dict[str, float]:
    """A concept in a style in which it was never shown: is it the concept, is it the style?"""
    rows = [aside.row(i) for i in range(len(aside))]
    labels = [row["label_en"] for row in rows]
    wanted = torch.tensor([STYLES.index(row["style"]) for row in rows])
    styled = {style: with_article(words["en"][0]) for style, words in STYLE_WORDS.items()}
    prompts = [f"{styled[row['style']]} drawing of {row['label_en']}" for row in rows]
    pictures = drawn(model, prompts, guidance)
    known = image_vectors(judge, kept.pictures)
    styles = torch.tensor([STYLES.index(s) for s in kept.table["style"]], device=known.device)
    probe = linear_probe(known, styles, len(STYLES))
    found = probe_scores(image_vectors(judge, pictures), probe).argmax(1).cpu() == wanted
    return {
        "set_aside_found": percent(found_among(judge, pictures, labels, pool, AMONG)),
        "set_aside_style": percent(found),
    }
