"""The bricks of lesson 04_zero_shot_prompting.

Built by `make build` from lessons/04_zero_shot_prompting.py: edit them there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.bricks.clip import CLIP
from utils.given import takes

TEMPLATES = {
    "en": (
        "a picture of {}",
        "a drawing of {}",
        "an emoji of {}",
        "{}",
    ),
    "zh": (
        "{}的图片",
        "一幅{}的画",
        "{}的表情符号",
        "{}",
    ),
}


def is_text(value) -> bool:
    """Whether this is a string that says something."""
    return isinstance(value, str) and bool(value.strip())


@takes(labels="labels")
@torch.no_grad()
def class_vectors(clip: CLIP, labels: list[str], templates=TEMPLATES["en"]) -> Tensor:
    """One unit vector per label, the mean of its prompts: (C, d).

    Each prompt is normalised, the mean is normalised again: a label whose prompts
    disagree would have a shorter vector and lose for that. Radford et al. 2021,
    sec. 3.1.4; openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb.
    """
    templates = [templates] if isinstance(templates, str) else list(templates or [""])
    bad = [t for t in templates if not is_text(t) or t.count("{}") != 1]
    if bad:
        raise ValueError(
            f"a template has exactly one {{}} for the label; this one is {bad[0]!r:.60}"
        )
    # a label may hold braces itself, so it is put in by replacing, not by formatting
    prompts = [t.replace("{}", label) for t in templates for label in labels]
    vectors = clip.encode_text(prompts).view(len(templates), len(labels), -1)
    return F.normalize(vectors.mean(0), dim=-1)  # (T, C, d) → (C, d)


@takes(pictures="pictures or uint8", size="from 1")
@torch.no_grad()
def image_vectors(clip: CLIP, pictures: Tensor, size: int = 256) -> Tensor:
    """Unit vectors (N, d) of many pictures (N, 3, H, W), uint8 or float, in batches."""
    device = clip.logit_scale.device
    parts = []
    for part in pictures.split(size):
        part = part.to(device)
        part = part.float() / 255 if part.dtype == torch.uint8 else part
        parts.append(clip.encode_image(part))
    return torch.cat(parts)


@takes(labels="labels")
@torch.no_grad()
def classify(
    clip: CLIP, pictures: Tensor, labels: list[str], templates=TEMPLATES["en"]
) -> Tensor:
    """Probabilities (N, C): which label's prompt fits each picture best.

    A softmax over the labels given, at the temperature learnt in training; it says how
    a picture divides among them, not whether any of them is true.
    """
    logits = image_vectors(clip, pictures) @ class_vectors(clip, labels, templates).T
    return (clip.logit_scale.exp() * logits).softmax(-1)


def check_classes(name: str, numbers: Tensor, count: int) -> None:
    """Raise ValueError unless these are numbers of `count` classes, and some."""
    if not numbers.numel() or not 0 <= numbers.min() <= numbers.max() < count:
        found = f"{numbers.min()} to {numbers.max()}" if numbers.numel() else "none"
        raise ValueError(f"{name} are numbers from 0 to {count - 1}; these are {found}")


@takes(scores="(N, C)", targets="(N,) int64", k="from 1")
def top_k_accuracy(scores: Tensor, targets: Tensor, k: int = 1) -> float:
    """Share of rows whose target is among the k highest: (N, C), (N,) → [0, 1]."""
    check_classes("targets", targets, scores.shape[-1])
    best = scores.topk(min(k, scores.shape[-1]), -1).indices  # (N, k)
    return (best == targets.unsqueeze(-1)).any(-1).float().mean().item()


@takes(query="(Q, d)", features="(N, d)", labels="(N,) int64", k="from 1")
def nearest_neighbours(
    query: Tensor, features: Tensor, labels: Tensor, classes: int, k: int = 5
) -> Tensor:
    """Votes (Q, classes) of the k closest features, each weighted by similarity.

    Wu et al. 2018, sec. 3.4, without their temperature.
    """
    check_classes("labels", labels, classes)
    similarity, index = (query @ features.T).topk(min(k, len(features)), -1)  # (Q, k)
    votes = query.new_zeros(len(query), classes)
    return votes.scatter_add_(1, labels[index], similarity)


@takes(features="(N, d)", labels="(N,) int64", classes="from 1", steps="from 1")
def linear_probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    decay: float = 1e-3,
    steps: int = 100,
) -> Tensor:
    """Weights (classes, d + 1) of logistic regression on frozen features; bias last.

    features: (N, d); labels: (N,) int64. Full batch, L-BFGS, L2 on the weights.
    Radford et al. 2021, sec. 3.2.
    """
    check_classes("labels", labels, classes)
    # a column of ones for the bias
    inputs = F.pad(features.detach(), (0, 1), value=1.0)
    weights = inputs.new_zeros(classes, inputs.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=steps, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weights.T, labels)
        value = value + decay * weights[:, :-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


@takes(features="(N, d)", weights="(C, d1)")
def probe_scores(features: Tensor, weights: Tensor) -> Tensor:
    """Scores (N, classes) of a linear probe for features (N, d)."""
    return features @ weights[:, :-1].T + weights[:, -1]


@takes(query="(Q, d)", gallery="(N, d)", k="from 1")
def retrieve(query: Tensor, gallery: Tensor, k: int = 8) -> Tensor:
    """Indices (Q, k) of the gallery vectors closest to each query, best first.

    query: (Q, d); gallery: (N, d), unit vectors both. Works in either direction.
    """
    return (query @ gallery.T).topk(min(k, len(gallery)), -1).indices
