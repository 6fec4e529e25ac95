"""The blanks of lesson 04."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.bricks import zero_shot as bricks
from utils.bricks.clip import CLIP
from utils.bricks.zero_shot import TEMPLATES, image_vectors, probe_scores
from utils.compare import difference
from utils.exercises import NotTried, expect
from utils.practice import Checks, attempt

check = Checks(bricks)


def small_clip(generator) -> CLIP:
    """A CLIP with random weights: bytes as tokens, 16 pixels."""
    size = {"width": 8, "depth": 1, "heads": 2}
    image = {"tower": "vit", "image_size": 16, "patch_size": 8, **size}
    clip = CLIP(image, {"tower": "transformer", **size}, [], dim=6)
    for weight in clip.parameters():
        weight.data.normal_(0, 0.5, generator=generator)
    return clip.eval()


def units(rows: int, width: int, generator) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=generator), dim=1)


# ---------------------------------------------------------------- prompts as classes


def label_cases(generator):
    clip = small_clip(generator)
    yield clip, ["cat", "dog", "fox"]
    yield clip, ["cat", "dog"], ["a picture of {}", "{} at night", "the {}, a drawing"]
    yield clip, ["fox"], "a {}"
    yield clip, ["a {brace", "{0}", "100 %s"], ["{} there", "my {}"]


def vectors_of(last=True, swapped=False, count=None):
    """`class_vectors` with a part left out or done in another way."""

    @torch.no_grad()
    def class_vectors(clip, labels, templates=TEMPLATES["en"]):
        templates = [templates] if isinstance(templates, str) else list(templates)[:count]
        prompts = [t.replace("{}", label) for t in templates for label in labels]
        shape = (len(labels), len(templates)) if swapped else (len(templates), len(labels))
        mean = clip.encode_text(prompts).view(*shape, -1).mean(int(swapped))
        return F.normalize(mean, dim=-1) if last else mean

    return class_vectors


check.function(
    "class_vectors",
    'Make one list with every label in every template (`t.replace("{}", label)`: a label may '
    "hold braces of its own, which `format` would read), encode it in one call, `view` it as "
    "templates × labels × d, take the mean over the templates, `F.normalize` it.",
    label_cases,
    {
        "the mean is not normalised: labels whose prompts disagree would have shorter vectors": (
            vectors_of(last=False)
        ),
        "only the first template counts here; take the mean over all of them": vectors_of(count=1),
        "the order of the prompts and the `view` do not fit: vectors of different labels are "
        "averaged": vectors_of(swapped=True),
    },
)


def picture_cases(generator):
    clip = small_clip(generator)
    pictures = torch.rand(4, 3, 16, 16, generator=generator)
    yield clip, pictures, ["cat", "dog", "fox"]
    yield clip, (255 * pictures).byte(), ["cat", "dog"], ["{}", "a {}"]
    yield clip, pictures[:1], ["fox", "cat"]


def shares(scale=lambda x: x.exp(), axis=-1, templated=True):
    @torch.no_grad()
    def classify(clip, pictures, labels, templates=TEMPLATES["en"]):
        templates = templates if templated else TEMPLATES["en"]
        logits = image_vectors(clip, pictures) @ bricks.class_vectors(clip, labels, templates).T
        logits = scale(clip.logit_scale) * logits
        return logits if axis is None else logits.softmax(axis)

    return classify


check.function(
    "classify",
    "`image_vectors` times `class_vectors` transposed gives every cosine, (N, C). Times "
    "exp(logit_scale), then a softmax over the labels of each picture.",
    picture_cases,
    {
        "the softmax runs over the pictures; each picture divides among its labels: dim=-1": (
            shares(axis=0)
        ),
        "the scale is missing: cosines alone give nearly equal shares": shares(lambda x: 1),
        "`logit_scale` is the log of the scale: take `.exp()`": shares(lambda x: x),
        "these are logits; the softmax is missing": shares(axis=None),
        "`templates` is not passed on": shares(templated=False),
    },
)


def score_cases(generator):
    for rows, classes, k in (1, 3, 1), (8, 5, 1), (8, 5, 2), (30, 4, 3):
        scores = torch.randn(rows, classes, generator=generator)
        yield scores, torch.randint(0, classes, (rows,), generator=generator), k


def accuracy(largest=True, only=None, times=1, share=True):
    def top_k_accuracy(scores, targets, k=1):
        best = scores.topk(only or k, -1, largest=largest).indices
        right = (best == targets.unsqueeze(-1)).any(-1).float()
        return times * (right.mean() if share else right.sum()).item()

    return top_k_accuracy


check.function(
    "top_k_accuracy",
    "`scores.topk(k, -1).indices` are the k best of each row, (N, k). Compare with the targets "
    "as a column, (N, 1); `any(-1)` asks whether one of the k is it. The mean as `.item()`.",
    score_cases,
    {
        "this counts the best one alone, whatever k is": accuracy(only=1),
        "these are the k lowest": accuracy(largest=False),
        "this is a count; divide by the number of rows": accuracy(share=False),
        "this is a percentage; a share lies in [0, 1]": accuracy(times=100),
        "the mean over N · k comparisons; ask for each row whether `any` of its k is right": (
            lambda scores, targets, k=1: (
                (scores.topk(k, -1).indices == targets[:, None]).float().mean().item()
            )
        ),
    },
)

# ---------------------------------------------------------------- classifiers that learn


def neighbour_cases(generator):
    for asked, known, classes, k in (3, 8, 3, 5), (2, 3, 4, 5), (5, 12, 2, 1):
        labels = torch.randint(0, classes, (known,), generator=generator)
        query, features = units(asked, 4, generator), units(known, 4, generator)
        yield query, features, labels, classes, k


def votes(weigh=True, largest=True, add=True, everyone=False):
    def nearest_neighbours(query, features, labels, classes, k=5):
        count = len(features) if everyone else min(k, len(features))
        similarity, index = (query @ features.T).topk(count, -1, largest=largest)
        similarity = similarity if weigh else torch.ones_like(similarity)
        empty = query.new_zeros(len(query), classes)
        put = empty.scatter_add if add else empty.scatter
        return put(1, labels[index], similarity)

    return nearest_neighbours


check.function(
    "nearest_neighbours",
    "`topk` of query @ features.T gives similarities and places, (Q, k); there may be fewer than "
    "k features. `labels[index]` says for whom each neighbour votes. `scatter_add_` along axis 1 "
    "of a table of zeros, (Q, classes), collects the votes.",
    neighbour_cases,
    {
        "each neighbour has one vote here; its vote weighs as much as its similarity": votes(
            weigh=False
        ),
        "these are the k farthest": votes(largest=False),
        "two neighbours of one class: the votes add up, the second does not replace the first": (
            votes(add=False)
        ),
        "all features vote here; only the k closest do": votes(everyone=True),
    },
)


CLOSE = 0.005  # how near a loss must come to the lowest, as a share of it


def objective(inputs, labels, weights, decay):
    """The loss that a probe makes small: mean cross-entropy and L2 on the weights."""
    errors = F.cross_entropy(probe_scores(inputs, weights), labels)
    return (errors + decay * weights[:, :-1].square().sum()).item()


@check.blank(
    "linear_probe",
    "Append a column of ones (`F.pad`) for the bias. Weights of zeros that require a gradient; "
    "`torch.optim.LBFGS` with a strong-Wolfe line search calls a function that returns the mean "
    "cross-entropy plus decay · (sum of squares of all but the last column), after `backward`. "
    "Return the weights detached.",
)
def judge_linear_probe(answer, shipped):
    generator = torch.Generator().manual_seed(0)
    for rows, width, classes, decay in (30, 3, 3, 0.1), (40, 5, 4, 0.01):
        features = 2 * torch.randn(rows, width, generator=generator) + 1
        labels = (features @ torch.randn(width, classes, generator=generator)).argmax(1)
        before = features.clone()
        seen = attempt(answer, features, labels, classes, decay)
        if seen is Ellipsis:
            raise NotTried
        right = shipped(features, labels, classes, decay)
        expect(features.equal(before), "it changes `features` in place; work on a copy")
        shaped = (
            isinstance(seen, Tensor) and seen.shape == right.shape and seen.dtype == right.dtype
        )
        expect(shaped, f"{difference(seen, right)}: a row for each class, its bias last")
        expect(not seen.requires_grad, "the weights still carry a gradient: `detach` them")
        mine, best = (objective(features, labels, x, decay) for x in (seen, right))
        if mine < best + CLOSE * best:
            continue
        turned = objective(features, labels, seen.roll(-1, 1), decay)
        expect(turned > best + CLOSE * best, "the bias stands first; it is the last column")
        others = {
            "without the decay, it seems: add decay · the sum of the squared weights": shipped(
                features, labels, classes, 0.0
            ),
            "with the cross-entropies added up, it seems: take their mean": shipped(
                features, labels, classes, decay / rows
            ),
            "with a mean of squares, it seems: the decay takes their sum": shipped(
                features, labels, classes, decay / right[:, :-1].numel()
            ),
        }
        said = f"your weights have a loss of {mine:.3f}, where {best:.3f} can be reached"
        for text, weights in others.items():
            other = objective(features, labels, weights, decay)
            expect(abs(mine - other) > CLOSE * other, f"{said}: learnt {text}")
        expect(False, f"{said}: more steps, or L-BFGS, which needs few")


# ---------------------------------------------------------------- search


def search_cases(generator):
    for asked, there, k in (1, 6, 3), (4, 9, 8), (2, 3, 8):
        yield units(asked, 5, generator), units(there, 5, generator), k


check.function(
    "retrieve",
    "`topk` of query @ gallery.T sorts, too; take its indices. A gallery may hold fewer than k.",
    search_cases,
    {
        "these are the similarities; where they are is asked for: `.indices`": (
            lambda query, gallery, k=8: (query @ gallery.T).topk(min(k, len(gallery)), -1).values
        ),
        "these are the farthest; the closest have the largest cosine": (
            lambda query, gallery, k=8: (
                (query @ gallery.T).topk(min(k, len(gallery)), -1, largest=False).indices
            )
        ),
        "the right ones, but the worst comes first": (
            lambda query, gallery, k=8: bricks.retrieve(query, gallery, k).flip(-1)
        ),
        "the query chooses from the gallery: a row for each query": (
            lambda query, gallery, k=8: (gallery @ query.T).topk(min(k, len(query)), -1).indices
        ),
    },
)
