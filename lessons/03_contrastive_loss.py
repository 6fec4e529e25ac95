# ---
# jupyter:
#   brick: clip
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Contrastive loss: from metric learning to CLIP
#
# ![Two towers, one for pictures and one for captions, end in the same space; a matrix
# holds the similarity of every picture with every
# caption](../assets/figures/03_two_towers.svg)
#
# Lesson 01 made a vector out of a picture, lesson 02 made one out of a caption. They
# have nothing to do with each other yet. **What must we ask of the two towers so that a
# picture and its caption end up in the same place?** CLIP, *contrastive language–image
# pre-training* (Radford et al. 2021), is one answer.

# %%
import random

import numpy as np

from utils import checkpoints, costs, data, device, plots, training, widgets

train = data.load_emoji("train")
unseen = data.load_emoji("unseen").where(skin_tone="none")

# %% [markdown]
# ## A toy you can check by hand
#
# Three pictures and three captions, each a vector of two numbers and of length 1. Row
# *i* of the matrix holds picture *i* against every caption: the dot product of two unit
# vectors is the cosine of the angle between them.

# %%
pictures = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])  # (3, 2)
captions = np.array([[0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])  # (3, 2)
print(pictures @ captions.T)

# %% [markdown]
# **Predict first.** The pairs stand on the diagonal. Which picture goes to the wrong
# caption, if each picks the largest number of its row? And which caption, if each picks
# from its column?
#
# <details><summary>Answer</summary>
#
# No picture is wrong: 0.8, 1 and 1 lead their rows. Captions choose from columns:
# caption 0 prefers picture 2 (0.96) to its own picture 0 (0.8). The two directions are
# two different questions. CLIP asks both.
#
# </details>

# %%
similarity = pictures @ captions.T
print("pictures choose captions:", similarity.argmax(1))
print("captions choose pictures:", similarity.argmax(0))

# %% [markdown]
# ## Labels become pairs: metric learning
#
# A classifier learns one output for each class, and a new class needs a new output.
# Metric learning drops the classes: it only says which two things belong together. The
# triplet loss (Schroff et al. 2015, sec. 3.1) takes an anchor, something that belongs
# to it and something that does not, and wants the second distance larger by a margin.


# %%
def triplet_loss(anchor, positive, negative, margin=0.2):
    """Mean of max(0, d(a, p) − d(a, n) + margin), squared distances: a number."""
    near = ((anchor - positive) ** 2).sum(1)
    far = ((anchor - negative) ** 2).sum(1)
    return np.maximum(0, near - far + margin).mean()


easy = triplet_loss(captions[:1], pictures[:1], pictures[1:2])
hard = triplet_loss(captions[:1], pictures[:1], pictures[2:])
print(f"caption 0 with picture 1 as the wrong one: {easy:.2f}")
print(f"caption 0 with picture 2 as the wrong one: {hard:.2f}")

# %% [markdown]
# The first triplet teaches nothing: its loss is 0 already. Everything depends on who
# picks the wrong ones. Dense passage retrieval (DPR, Karpukhin et al. 2020) has a
# cheaper idea, older than itself: in a batch of questions with their passages, **every
# other passage is a wrong one**. One matrix product gives N·N comparisons for 2·N
# encodings, and a softmax over each row turns them into a loss. DPR takes raw dot
# products and one direction, question to passage, with one hard wrong passage added for
# each question (sec. 3.2).
#
# The wrong ones are called *negatives*; a *hard* one looks right. With the softmax in
# both directions this is CLIP's loss. The paper traces it back to the N-pair loss (Sohn
# 2016), InfoNCE (van den Oord et al. 2018) and Zhang et al. 2020 (sec. 2.3).


# %%
def dpr_loss(questions, passages):
    """In-batch negatives, one direction: mean of −log softmax(q·pᵀ) on the diagonal."""
    scores = questions @ passages.T  # (N, N)
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return -np.log(np.diag(probabilities)).mean()


print(f"pictures ask, captions answer: {dpr_loss(pictures, captions):.3f}")
print(f"captions ask, pictures answer: {dpr_loss(captions, pictures):.3f}")

# %% [markdown]
# ## The pseudo-code of the paper, made to run
#
# A *logit* is a score before the softmax. *Cross-entropy* is −log of the probability
# that the softmax gives to the right answer: 0 if that probability is 1.
#
# Figure 3 of the CLIP paper is NumPy-like: two projections, two normalisations, one
# matrix times exp(t), two cross-entropies. NumPy has no cross-entropy, and the words
# `axis=0` and `axis=1` need a decision. Here, rows are pictures. A softmax along axis 1
# lets each picture choose among the captions.


# %%
def l2_normalize(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cross_entropy(logits, labels, axis):
    """Mean −log softmax along `axis` at the diagonal; labels are 0 … n−1."""
    shifted = logits - logits.max(axis=axis, keepdims=True)  # exp cannot overflow
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return -log_softmax[np.arange(len(labels)), labels].mean()


# %%
def paper_loss(I_f, T_f, W_i, W_t, t):
    """Radford et al. 2021, figure 3. I_f (n, d_i), T_f (n, d_t), t a number."""
    I_e = l2_normalize(I_f @ W_i)  # (n, d_e)
    T_e = l2_normalize(T_f @ W_t)  # (n, d_e)
    logits = I_e @ T_e.T * np.exp(t)  # (n, n)
    labels = np.arange(len(logits))  # pair i is on the diagonal
    pictures_choose = cross_entropy(logits, labels, axis=1)
    captions_choose = cross_entropy(logits, labels, axis=0)
    return (pictures_choose + captions_choose) / 2


rng = np.random.default_rng(0)
features = rng.normal(size=(5, 6)), rng.normal(size=(5, 4))
matrices = rng.normal(size=(6, 3)), rng.normal(size=(4, 3))
naive = paper_loss(*features, *matrices, np.log(1 / 0.07))
print(f"five random pairs: {naive:.4f}")

# %% [markdown]
# ## The same in torch
#
# First what we need: our two towers, torch, and plumbing.

# %% tags=["brick"]
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.bricks.image_encoders import ResNet, ViT
from utils.bricks.text_encoders import (
    BagOfWords,
    TextTransformer,
    Tokenizer,
    encode_by_length,
)
from utils.doors import hub, transformers
from utils.given import takes

# %% [markdown]
# With unit vectors $x_i$ of pictures, $y_i$ of captions and the scale $s = e^t$, the
# figure computes what is known as InfoNCE, in both directions:
#
# $$L = -\frac{1}{2N} \sum_{i=1}^{N} \left[
# \log \frac{e^{s\,x_i \cdot y_i}}{\sum_j e^{s\,x_i \cdot y_j}}
# + \log \frac{e^{s\,x_i \cdot y_i}}{\sum_j e^{s\,x_j \cdot y_i}} \right]$$
#
# The log of a softmax is the logit minus `logsumexp`, the log of the sum of the
# exponentials of all logits. So cross-entropy with the right answers on the diagonal is
# `logsumexp` of a row minus the diagonal's entry: the matrix is made once, and no table
# of probabilities is needed.


# %% tags=["blank"]
def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """images, texts: (N, d) unit vectors; scale: exp(logit_scale). Returns a scalar."""
    # bfloat16 keeps 8 bits: at a scale of 100 a logit would be off by up to 0.25
    with torch.autocast(images.device.type, enabled=False):
        logits = scale * images.float() @ texts.float().T  # (N, N)
        # cross-entropy is logsumexp − the right logit; the diagonal is right
        rows, columns = logits.logsumexp(1), logits.logsumexp(0)
        return (rows + columns).mean() / 2 - logits.diagonal().mean()


# %% [markdown]
# It must equal the naive version.

# %%
images = torch.tensor(l2_normalize(features[0] @ matrices[0]))
texts = torch.tensor(l2_normalize(features[1] @ matrices[1]))
scale = torch.tensor(1 / 0.07, dtype=torch.float64)
brick = contrastive_loss(images, texts, scale)
print(f"torch: {brick:.4f}, naive: {naive:.4f}")
assert abs(brick.item() - naive) < 1e-5

# %% [markdown]
# And it must have the same gradient as the usual formula with two calls of
# `F.cross_entropy`, which is what open_clip, the open way to train CLIPs, runs.


# %%
def plain_loss(images, texts, scale):
    logits = scale * images @ texts.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


# %%
generator = device.seed(0)
a = F.normalize(torch.randn(64, 32, generator=generator), dim=1).requires_grad_()
b = F.normalize(torch.randn(64, 32, generator=generator), dim=1)
ours = torch.autograd.grad(contrastive_loss(a, b, torch.tensor(10.0)), a)[0]
theirs = torch.autograd.grad(plain_loss(a, b, torch.tensor(10.0)), a)[0]
print(f"same gradients: {torch.allclose(ours, theirs, atol=1e-7)}")

# %% [markdown]
# Back to the toy: where does this loss want the captions to go? Six unit vectors on a
# circle, and from each caption an arrow against its gradient. **Predict first:**
# captions 1 and 2 lie on their own pictures already. Will they stay?
#
# <details><summary>Answer</summary>
#
# Caption 1 does not. Picture 2 is near, so the loss pushes caption 1 away from it, past
# its own picture: being right is not enough, the others must be wrong by enough.
# Caption 2 has a wrong picture on either side. The two pushes nearly cancel.
#
# </details>


# %%
def pull(pictures, captions, scale=5.0):
    """Where the loss wants the captions to go, along the circle: (N, 2)."""
    images, texts = torch.tensor(pictures), torch.tensor(captions).requires_grad_()
    contrastive_loss(images, F.normalize(texts), torch.tensor(scale)).backward()
    return -texts.grad.numpy()  # normalising left no part that points outwards


# %%
fig, ax = plots.figure(width=5, height=4.2)
moves, arc = pull(pictures, captions), np.linspace(0, math.pi / 2)
ax.plot(np.cos(arc), np.sin(arc), color=plots.COLOURS["noise"], linewidth=0.8)
arrow = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.008}
for side, at, where in (("image", pictures, 0.6), ("text", captions, 1.04)):
    colour = plots.COLOURS[side]
    ax.quiver(*np.zeros((2, 3)), *at.T, color=colour, alpha=0.6, **arrow)
    for i, (x, y) in enumerate(where * at):
        ax.text(x + 0.02, y + 0.02, f"{side} {i}", color=colour)
ax.quiver(*captions.T, *(0.5 * moves).T, color=plots.COLOURS["shared"], **arrow)
ax.set(xlim=(-0.35, 1.25), ylim=(-0.03, 1.2), aspect="equal")
ax.set_title("Purple: where the loss moves the captions")
plots.show(fig, "Unit vectors of the toy, and where the loss moves the captions")
print("no arrow leaves the circle:", np.allclose((moves * captions).sum(1), 0))
print("caption 0 turns towards picture 0:", bool(moves[0] @ pictures[0] > 0))
print("caption 1 turns away from picture 2:", bool(moves[1] @ pictures[2] < 0))

# %% [markdown]
# ## What each part is for
#
# **Unit vectors.** Only angles count. Without this a tower could lower the loss by
# making its vectors longer, and a long caption vector would win rows that are not its
# own. *Break it* shows both.
#
# **A scale.** Cosines lie between −1 and 1. A softmax of such small numbers is nearly
# flat: even 1 on the diagonal and −1 elsewhere, better than any real vectors can do,
# has a high loss.


# %%
def floor_of_loss(n, scale):
    """The loss if pairs had cosine 1 and everything else cosine −1."""
    return math.log(math.exp(scale) + (n - 1) * math.exp(-scale)) - scale


for scale in (1, 14.3, 100):
    print(f"512 pairs, scale {scale:5}: {floor_of_loss(512, scale):.2f}")

# %% [markdown]
# With a scale of 1 the loss cannot fall below 4.25, whatever the towers learn. So the
# scale is learnt: `logit_scale` holds its logarithm, which keeps it positive, and
# starts at ln(1/0.07). Dividing the cosines by a *temperature* is the same as
# multiplying by its inverse, the scale; so `logit_scale`, often called the temperature,
# is the log of the *inverse* temperature. After each step it is clamped to at most ln
# 100 (sec. 2.5), because a larger one made training unstable.
#
# **Projections without bias.** The towers already have biases at or near their end, and
# the matrix carries these over. One more would add little; CLIP has none.
#
# **Where does the loss start?** Often one reads "at ln N". Random unit vectors show
# otherwise: at scale 14.3 some wrong pairs are already much too close.

# %%
generator = device.seed(0)
a, b = (F.normalize(torch.randn(512, 64, generator=generator), dim=1) for _ in range(2))
start = contrastive_loss(a, b, torch.tensor(1 / 0.07))
print(f"random vectors lie above ln 512 = {math.log(512):.2f}: {start > 6.5}")
same = a[:1].expand(512, -1)
start = contrastive_loss(same, same, torch.tensor(1 / 0.07))
print(f"constant vectors: {start:.2f}")

# %% [markdown]
# ## The model
#
# What goes in first: pictures of any size become squares of `size` pixels and are
# normalised, with CLIP's own mean and deviation, so that its weights fit later.
#
# `@takes` stands above a function that people call. It turns what they may have typed,
# such as a list, a NumPy array or a picture of PIL, into the tensor that is meant, or
# says in one sentence what is wrong with it.

# %% tags=["brick", "blank"]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def without_ends(pictures: Tensor, times: int = 4) -> Tensor:
    """Cut both ends of a longer side off, down to `times` the shorter one.

    A centre crop drops them anyway; before it, a line of 30,000×1 pixels would have to
    become one of 1,920,000×64.
    """
    longest = times * min(pictures.shape[2:])
    rows, columns = (max(0, (side - longest) // 2) for side in pictures.shape[2:])
    return F.pad(pictures, (-columns, -columns, -rows, -rows))


@takes(pictures="pictures with noise", size="from 1")
def preprocess(pictures: Tensor, size: int) -> Tensor:
    """Pictures of any size → what the image tower sees.

    (B, 3, H, W) in [0, 1] → (B, 3, size, size): bicubic resize of the shorter side,
    centre crop, CLIP's mean and deviation. Raises ValueError for another shape.
    """
    if pictures.shape[2:] != (size, size):
        pictures = without_ends(pictures)
        height, width = pictures.shape[2:]
        ratio = size / min(height, width)
        shape = max(size, round(height * ratio)), max(size, round(width * ratio))
        pictures = F.interpolate(pictures, shape, mode="bicubic", antialias=True).clamp(
            0, 1
        )
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        pictures = pictures[:, :, top : top + size, left : left + size]
    mean = torch.tensor(MEAN, device=pictures.device).view(3, 1, 1)
    std = torch.tensor(STD, device=pictures.device).view(3, 1, 1)
    return (pictures - mean) / std


# %% [markdown]
# Then the two towers, the two projections and the scale. The doors to other libraries
# come at the end of the lesson.

# %% tags=["brick", "blank"]
IMAGE_TOWERS = {"vit": ViT, "resnet": ResNet}
TEXT_TOWERS = {"transformer": TextTransformer, "bag_of_words": BagOfWords}


class CLIP(nn.Module):
    """Two towers, one space: pictures and prompts become unit vectors of `dim` numbers.

    image, text: which tower, and its arguments, e.g. {"tower": "vit", "patch_size": 8};
    merges: the tokenizer's. Projections have no bias; logit_scale is the log of the
    inverse temperature and starts at ln(1/0.07). Radford et al. 2021, sec. 2.3–2.5.
    """

    def __init__(self, image: dict, text: dict, merges: list, dim: int = 256):
        super().__init__()
        self.config = {"image": image, "text": text, "merges": merges, "dim": dim}
        self.tokenizer = Tokenizer(merges, text.get("context", 32))
        arguments = {k: v for k, v in image.items() if k != "tower"}
        self.image_tower = IMAGE_TOWERS[image["tower"]](**arguments)
        arguments = {k: v for k, v in text.items() if k != "tower"}
        self.text_tower = TEXT_TOWERS[text["tower"]](len(self.tokenizer), **arguments)
        self.image_size = self.image_tower.image_size
        self.image_projection = nn.Linear(self.image_tower.width, dim, bias=False)
        self.text_projection = nn.Linear(self.text_tower.width, dim, bias=False)
        nn.init.normal_(self.image_projection.weight, std=self.image_tower.width**-0.5)
        nn.init.normal_(self.text_projection.weight, std=self.text_tower.width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, pictures: Tensor, size: int = 0) -> Tensor:
        """(B, 3, H, W) in [0, 1], any size → unit vectors (B, dim).

        size: what the tower sees, image_size by default; only a ResNet takes others.
        """
        features = self.image_tower(preprocess(pictures, size or self.image_size))
        return F.normalize(self.image_projection(features).float(), dim=-1)

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Token ids (B, L), with END → unit vectors (B, dim)."""
        features = encode_by_length(self.text_tower, ids)
        return F.normalize(self.text_projection(features).float(), dim=-1)

    @takes(prompts="texts")
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Plain strings → unit vectors (B, dim). Raises ValueError for other things."""
        if not prompts:
            raise ValueError("there are no prompts; give at least one string")
        return self.encode_tokens(self.tokenizer(prompts).to(self.logit_scale.device))

    def forward(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        """Logits (B, P): picture–prompt cosines, times exp(logit_scale)."""
        images, texts = self.encode_image(pictures), self.encode_text(prompts)
        return self.logit_scale.exp() * images @ texts.T

    def clamp_scale(self) -> None:
        """Keep exp(logit_scale) within [1, 100]; call it after every optimizer step."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(100))

    @classmethod
    def from_pretrained(cls, source) -> "CLIP":
        """A CLIP from a folder in transformers' format or a hub name, in eval mode.

        Raises ValueError (CheckpointError) in one sentence when it cannot be had.
        """
        return transformers.read_pretrained(cls, hub.folder(source), MEAN, STD).eval()

    def save_pretrained(self, folder) -> None:
        """Write a folder that transformers.CLIPModel and CLIPProcessor load.

        Raises ValueError for towers that transformers has no counterpart of.
        """
        transformers.write_pretrained(self, Path(folder), MEAN, STD)


# %% [markdown]
# ## It learns
#
# Animals and food, with their labels and keywords in English; a small ResNet and a bag
# of words: small enough to watch. A *concept* is one thing, in whatever style it is
# drawn. Each step draws pictures of different concepts, so no label occurs twice in a
# batch. A caption made of keywords can still fit several pictures ("animal"): such
# wrong answers are not quite wrong.

# %%
from utils.bricks.text_encoders import learn_merges

topics = ("animals-nature", "food-drink")
chosen = [i for i, g in enumerate(train.table["group"]) if g in topics]
pairs = train.take(chosen)
print(f"{len(pairs)} pictures of {len(pairs.concepts)} concepts")


LABELS = [pairs.table["label_en"][group[0]] for group in pairs.concepts]
MERGES = learn_merges(LABELS, 800)


def small_clip(seed: int) -> CLIP:
    """A CLIP that trains in half a minute; its tokens are bytes and 800 merges."""
    device.seed(seed)
    return CLIP(
        {
            "tower": "resnet",
            "image_size": 32,
            "widths": (32, 64, 128),
            "depths": (1, 1, 1),
        },
        {"tower": "bag_of_words", "width": 128},
        MERGES,
        dim=128,
    ).to(device.pick())


# %%
def batch_loss(clip, size, loss=contrastive_loss, seed=0):
    """A function of the step: draw a batch, encode both sides, return the loss."""

    def at(step):
        pictures, prompts = data.batch(pairs, size, seed, step, languages=("en",))
        images, texts = clip.encode_image(pictures), clip.encode_text(prompts)
        return loss(images, texts, clip.logit_scale.exp())

    return at


# %% [markdown]
# One step of training, written out once: encode both sides, take the loss, follow its
# gradient, clamp the scale. `training.fit` does the same over and over, with a warm-up
# and a curve.

# %%
learner = small_clip(seed=0)
optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
loss = batch_loss(learner, 128)
before = loss(0)  # 128 pictures, 128 captions, one number
before.backward()
optimizer.step()
optimizer.zero_grad()
learner.clamp_scale()
print("after one step the same batch has a smaller loss:", bool(loss(0) < before))

# %% [markdown]
# A fixed row of twelve pictures, in a fixed order, is our window on the training: their
# similarity matrix, before and after.

# %%
shown = [group[0] for group in pairs.concepts[::24]][:12]
names = [pairs.table["label_en"][i] for i in shown]
window = pairs.pictures[shown].float() / 255  # (12, 3, 64, 64)


@torch.no_grad()
def matrix(clip, pictures=window, captions=names):
    """Cosines of pictures with captions, of the twelve by default: (N, N)."""
    clip.eval()
    images = clip.encode_image(pictures.to(clip.logit_scale.device))
    return (images @ clip.encode_text(captions).T).cpu()


def live_matrix(step):
    """The matrix as a small table of purple cells."""
    rows = matrix(clip).clamp(min=0).tolist()
    clip.train()
    cell = "<td style='width:14px;height:14px;background:rgba(142,68,173,{:.2f})'></td>"
    body = "".join("<tr>" + "".join(map(cell.format, row)) + "</tr>" for row in rows)
    return f"<table style='border-spacing:1px'>{body}</table>"


# %%
clip = small_clip(seed=0)
before = matrix(clip)
losses = training.fit(
    clip,
    batch_loss(clip, 128),
    320,
    lr=2e-3,
    after_step=clip.clamp_scale,
    watch=live_matrix,
    name="a small CLIP",
)
after = matrix(clip)

# %%
fig, axes = plots.figure(2, width=9.6, height=4.6)
for ax, values, title in zip(axes, (before, after), ("Before", "After"), strict=True):
    scale = "" if ax is axes[0] else "cosine"
    titled = f"{title}: {(values.argmax(1) == torch.arange(12)).sum()} of 12 found"
    plots.heatmap(values, ax, titled, [], names, 1.0, pictures=window, scale=scale)
plots.show(fig, "Pictures against captions: all alike before, a clear diagonal after")
found = (after.argmax(1) == torch.arange(12)).sum().item()
print("at least 8 of 12 pictures find their caption:", found >= 8)
fig, ax = plots.figure(width=5, height=2.4)
plots.curve(ax, losses, smooth=10)
ax.axhline(math.log(128), color=plots.COLOURS["noise"], ls="--", label="ln 128")
ax.set(title="The loss falls", xlabel="step", ylabel="contrastive loss")
ax.legend()
plots.show(fig, "The loss falls far below what a blind guess would have, ln 128")

# %% [markdown]
# ## What more of the same gives
#
# The shipped CLIP is the same class with the same loss. It has other towers, a ViT and
# a Transformer, and learnt from all training pictures of Emoji-4, in two languages, for
# half an hour instead of half a minute. Here are both on every twelfth of the 150
# concepts that *neither* has seen.

# %%
shipped = checkpoints.load("clip")
new = [group[-1] for group in unseen.concepts]  # one picture of each concept
new_names = [unseen.table["label_en"][i] for i in new]
new_pictures = unseen.pictures[new].float() / 255
cosines = {
    "Half a minute": matrix(clip, new_pictures, new_names),  # (150, 150)
    "The shipped one": matrix(shipped, new_pictures, new_names),
}

# %%
some = list(range(0, 144, 12))
few = {title: values[some][:, some] for title, values in cosines.items()}
columns, faces = [new_names[i] for i in some], new_pictures[some]
fig, axes = plots.figure(2, width=9.6, height=4.6)
for ax, (title, values) in zip(axes, few.items(), strict=True):
    scale = "" if ax is axes[0] else "cosine"
    plots.heatmap(values, ax, title, [], columns, 0.8, pictures=faces, scale=scale)
plots.show(fig, "On twelve unseen concepts the shipped CLIP has the clearer diagonal")
clearer = [x.diag().mean() - x.mean() for x in few.values()]
print(f"its diagonal stands out more: {bool(clearer[1] > clearer[0])}")

# %% [markdown]
# Now among all 150 names, where luck finds one in 150. And among the animals and foods
# alone, the only kinds of thing that the small CLIP was taught. *Recall at 1* is the
# share of pictures whose own caption comes first:


# %%
def recall_at_1(cosines: Tensor) -> float:
    """Share of rows whose largest entry is on the diagonal: (N, N) → [0, 1]."""
    own = torch.arange(len(cosines), device=cosines.device)
    return (cosines.argmax(1) == own).float().mean().item()


living = [i for i, row in enumerate(new) if unseen.table["group"][row] in topics]
untrained = matrix(small_clip(seed=0), new_pictures, new_names)
rivals = {"Untrained": untrained} | cosines
fig, axes = plots.figure(2, width=9, height=1.9)
for ax, some in zip(axes, (range(150), living), strict=True):
    shares = {k: recall_at_1(v[some][:, some]) for k, v in rivals.items()}
    plots.bars(ax, {"Blind guess": 1 / len(some)} | shares, numbers="{:.1%}")
    ax.set(title=f"Among {len(some)} names", xlabel="recall at 1", xlim=(0, 0.5))
plots.show(fig, "Recall on unseen concepts: the small CLIP is near a blind guess")
small_all, shipped_all = map(recall_at_1, cosines.values())
print("of 150 the small one finds under 5 %:", small_all < 0.05)
print("the shipped one finds over 15 %:", shipped_all > 0.15)

# %% [markdown]
# How should it know an otter, if no caption ever held the word? A brown heart is
# another matter: *brown* and *heart* it has read. Lesson 04 measures the difference.

# %% [markdown]
# ## The gap between the two sides
#
# One space, one place for a pair: so pictures and captions should lie among each other.
# Do they? Take the mean of all picture vectors and the mean of all caption vectors.

# %%
with torch.no_grad():
    seen = shipped.encode_image(new_pictures.to(shipped.logit_scale.device)).cpu()
    read = shipped.encode_text(new_names).cpu()  # (150, 256) both
gap = (seen.mean(0) - read.mean(0)).norm().item()
halves = (seen[::2].mean(0) - seen[1::2].mean(0)).norm().item()
sides = {"pictures and captions": gap, "two halves of the pictures": halves}
fig, ax = plots.figure(width=6, height=1.5)
plots.bars(ax, sides, title="The two sides keep apart", numbers="{:.2f}")
ax.set(xlabel="distance of the means", xlim=(0, 1))
plots.show(fig, "The means of pictures and captions are far apart, for unit vectors")
print("twice as far as two halves of one side, at least:", gap > 2 * halves)

# %% [markdown]
# This **modality gap** (Liang et al. 2022) is in every CLIP. The loss only asks that
# the right caption be nearer than the wrong ones, and a shift of one whole side changes
# little of that: the captions compete with each other, not with pictures. Remember it
# where a picture's vector is to be replaced by a caption's: lesson 15 builds a machine
# for that.

# %% [markdown]
# ## Batch size and temperature
#
# Two numbers decide how hard the question is: how many captions a picture chooses
# from, and how much a difference of cosines counts. A tiny CLIP on pictures of 16×16
# trains in seconds, and we can afford some runs. The ruler is recall at 1 among all
# labels, on a style that the tiny CLIPs never see: they learn from three styles and are
# examined on the fourth, Noto's.

# %%
thumbs = F.avg_pool2d(pairs.pictures.float() / 255, 4)  # (N, 3, 16, 16)
apart = torch.tensor([style == "noto" for style in pairs.table["style"]])
exam, exam_names = thumbs[apart], pairs.where(style="noto").table["label_en"]
taught, taught_thumbs = pairs.take((~apart).nonzero()[:, 0].tolist()), thumbs[~apart]
CHECKS = (0, 25, 50, 100, 150, 200, 250, 300)  # steps at which a run is examined


# %%
def tiny_clip(seed=0) -> CLIP:
    image = {"tower": "resnet", "image_size": 16, "widths": (24, 48), "depths": (1, 1)}
    text = {"tower": "bag_of_words", "width": 64}
    device.seed(seed)
    return CLIP(image, text, MERGES, dim=64).to(device.pick())


def tiny_run(size, scale=None, loss=contrastive_loss) -> list[float]:
    """Recall at 1 of a tiny CLIP at each of the CHECKS; scale None: it is learnt."""
    clip, found = tiny_clip(), []
    fixed = None if scale is None else torch.tensor(scale, device=device.pick())

    def at(step):
        if step in CHECKS:
            found.append(recall_at_1(matrix(clip, exam, exam_names)))
            clip.train()
        drawn = data.draw(taught, size, random.Random(step))
        images = clip.encode_image(taught_thumbs[drawn].to(device.pick()))
        texts = clip.encode_text([taught.table["label_en"][i] for i in drawn])
        return loss(images, texts, clip.logit_scale.exp() if scale is None else fixed)

    optimizer = training.adamw(clip, 2e-3, weight_decay=0.1)
    for _ in training.run(optimizer, at, CHECKS[-1], after_step=clip.clamp_scale):
        pass
    return [*found, recall_at_1(matrix(clip, exam, exam_names))]


# %%
sizes = (8, 32, 128)
by_size = {n: tiny_run(n) for n in widgets.progress(sizes, "batch sizes")}
learnt = tiny_run(64)
by_scale = {s: tiny_run(64, s) for s in widgets.progress((1.0, 100.0), "scales")}

# %%
fig, axes = plots.figure(3, width=10.5, height=3)
shades = ("#d7bde2", "#a569bd", "#5b2a70")
for (size, found), shade in zip(by_size.items(), shades, strict=True):
    plots.line(axes[0], CHECKS, found, f"batches of {size}", shade)
    plots.line(axes[1], [size * step for step in CHECKS], found, "", shade)
plots.line(axes[2], CHECKS, learnt, "learnt, from 14.3", "shared")
plots.line(axes[2], CHECKS, by_scale[100.0], "fixed at 100", "noise")
plots.line(axes[2], CHECKS, by_scale[1.0], "fixed at 1", "wrong")
axes[0].set(title="A larger batch: more a step", xlabel="step", ylabel="recall at 1")
axes[1].set(title="A picture teaches as much", xlabel="pictures seen", xscale="symlog")
axes[1].set_xlim(200)
axes[2].set(title="A scale of 1 falls behind", xlabel="step")
axes[0].legend()
axes[2].legend()
plots.show(fig, "Recall over steps: large batches learn more a step; scale 1 stays low")
ends = [found[-1] for found in by_size.values()]
print("at 300 steps, larger is better:", ends == sorted(ends))
print("the learnt scale beats 1, by a third:", learnt[-1] > 4 / 3 * by_scale[1.0][-1])
print(f"the shipped CLIP's scale is above 20: {shipped.logit_scale.exp() > 20}")

# %% [markdown]
# A batch of 128 asks a harder question than one of 8, and each step teaches more. But
# it also costs 16 times the pictures: over pictures seen, in the middle, the curves lie
# on each other, and the small batches take more steps for them. CLIP's paper used
# 32,768 and shows no comparison.
#
# A scale of 100 is slower at first and comes nearer with time. A scale of 1 falls
# behind and stays there: its softmax is too flat to ask for more. A learnt scale needs
# no choice: it starts at 14.3 and goes where training takes it, as the shipped CLIP's
# did.
#
# ### A large batch in small parts?
# Memory holds 16 pairs, and you want batches of 128. For a classifier you would add up
# the gradients of eight parts: the same gradient. **Predict first:** and here?
#
# <details><summary>Answer</summary>
#
# It is not the same. A picture of one part never meets the captions of the others: the
# questions stay those of 16. What is the same for every example, a mean over examples,
# can be added up; a loss over *pairs of examples* can not.
#
# </details>

# %%
images, texts = F.normalize(torch.randn(2, 128, 32, generator=device.seed(0)), dim=-1)
scale = torch.tensor(1 / 0.07)
whole = contrastive_loss(images, texts, scale)
parts = zip(images.split(16), texts.split(16), strict=True)
mean_of_parts = torch.stack([contrastive_loss(x, y, scale) for x, y in parts]).mean()
print(f"one batch of 128: {whole:.2f}; eight of 16, added up: {mean_of_parts:.2f}")

# %% [markdown]
# It helps to encode all 128 first and take the loss of all: open_clip, with
# `--accum-freq`, encodes twice, once without gradients for the whole batch, once part
# by part with them.
#
# **SigLIP** (Zhai et al. 2023) asks another question: not "which of these?" but, of
# each cell, "is this a pair?". That is a yes or no of its own, a sigmoid in place of
# two softmaxes, and a bias says that most are a no. So the matrix can be cut in parts.


# %%
def siglip(images, texts, own, scale, bias=-10.0):
    """Zhai et al. 2023, alg. 1, as a sum: each cell is a yes (`own`) or a no."""
    logits = scale * images @ texts.T + bias  # (N, M)
    return -F.logsigmoid(torch.where(own, logits, -logits)).sum()


# %%
own = torch.eye(128, dtype=torch.bool)
cells = [(slice(i, i + 16), slice(j, j + 16)) for i in range(0, 128, 16)
         for j in range(0, 128, 16)]  # fmt: skip
in_parts = sum(siglip(images[i], texts[j], own[i, j], scale) for i, j in cells)
whole = siglip(images, texts, own, scale)
print(f"one matrix: {whole:.1f}; {len(cells)} parts, added up: {in_parts:.1f}")

# %% [markdown]
# ## Play
#
# A similarity matrix of your own: name pictures by their labels, type captions, both
# separated by semicolons (labels by commas, too), and move the scale. Each cell gives
# the probability of its caption among those of the row, and small below it the cosine.
# **Predict first:** what does a row look like at scale 1, and at 100?
#
# <details><summary>Answer</summary>
#
# At scale 1 its probabilities differ little: among three captions, a cosine of 1
# against two of 0 gets only 58 %. At 100 a difference of 0.05 gives odds of 148 to 1.
# The order never changes: the scale decides how sure, not which.
#
# </details>

# %%
SHELF = {pairs.table["label_en"][g[0]]: g[0] for g in pairs.concepts}


def play(wanted, typed, scale):
    """Pictures against captions: the softmax of each row, and the cosines."""
    captions = widgets.prompts(typed, most=6)
    labels = widgets.known(widgets.labels(wanted, most=4), SHELF, "picture")
    picked = pairs.pictures[[SHELF[label] for label in labels]].float() / 255
    with torch.no_grad():
        images = clip.encode_image(picked.to(clip.logit_scale.device))
        cosines = (images @ clip.encode_text(captions).T).cpu()
    thumbnails = [
        widgets.thumbnail(picture, 64, label)
        for picture, label in zip(picked, labels, strict=True)
    ]
    shares = (scale * cosines).softmax(1)
    table = widgets.matrix(thumbnails, captions, shares, cosines)
    return table + widgets.hint(captions)


widgets.live(
    [
        widgets.text("Pictures", "fox; cherries; whale"),
        widgets.text("Captions", "fox; animal; red; a picture of fruit"),
        widgets.slider("Scale", 14.0, 1.0, 100.0),
    ],
    play,
    "Pictures against captions, with a scale to move.",
)

# %% [markdown]
# The two numbers of the answer, and the effect on twelve pictures:

# %%
print(f"{math.e / (math.e + 2):.0%}, {math.exp(100 * 0.05):.0f} to 1")
with torch.no_grad():
    images = clip.encode_image(window.to(clip.logit_scale.device))
    cosines = (images @ clip.encode_text(names).T).cpu()
scales = (1.0, 14.3, 100.0)
fig, axes = plots.figure(3, width=9, height=3)
for ax, scale in zip(axes, scales, strict=True):
    plots.heatmap((scale * cosines).softmax(1), ax, f"scale {scale:g}", limit=1.0)
plots.show(fig, "A larger scale makes every row more certain")
sure = [(s * cosines).softmax(1).max(1).values.mean().item() for s in scales]
print(f"certainty grows with the scale: {sure[0] < sure[1] < sure[2]}")
print(
    f"the winner stays: {bool(((100 * cosines).argmax(1) == cosines.argmax(1)).all())}"
)

# %% [markdown]
# ## Break it
#
# Mistakes that raise no error, each with the tiny CLIP and the ruler from above.
#
# **Shifted targets**: the captions are out of step with the pictures by one. **Soft
# targets**: the targets are the model's own similarities, transposed for the second
# direction, as in a much-copied CLIP from scratch (moein-shariatnia/OpenAI-CLIP,
# `CLIP.py`, there without unit vectors). Two things look wrong in them: the transposed
# rows do not add up to 1, and a gradient flows through the targets. So a third run
# mends both.
#
# **Predict first.** Which of the three never learns?


# %%
def shifted(images, texts, scale):
    return contrastive_loss(images, texts.roll(1, 0), scale)


def soft_targets(images, texts, scale) -> Tensor:
    return (scale * (images @ images.T + texts @ texts.T) / 2).softmax(1)


def soft(images, texts, scale):
    logits, targets = scale * images @ texts.T, soft_targets(images, texts, scale)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets.T)) / 2


def mended(images, texts, scale):
    """Rows that add up to 1, and no gradient through the targets."""
    logits, targets = scale * images @ texts.T, soft_targets(images, texts, scale)
    targets = targets.detach()
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


# %%
mistakes = {"soft": soft, "soft, mended": mended, "shifted": shifted}
broken = {name: tiny_run(64, loss=f) for name, f in mistakes.items()}

# %%
fig, ax = plots.figure(width=6.5, height=3)
colours = ("text", "image", "wrong")
plots.line(ax, CHECKS, learnt, "right", "shared")
for (name, found), colour in zip(broken.items(), colours, strict=True):
    plots.line(ax, CHECKS, found, name, colour)
ax.axhline(1 / len(exam), color=plots.COLOURS["noise"], ls="--", label="blind guess")
ax.set(title="One mistake lasts", xlabel="step", ylabel="recall at 1, unseen style")
ax.legend()
plots.show(fig, "Over steps: soft targets learn as the right loss, shifted ones never")
print("shifted targets stay at a blind guess:", max(broken["shifted"]) < 0.03)
apart = abs(broken["soft"][-1] - learnt[-1])
print("soft targets end near the right loss:", apart < 0.08)

# %% [markdown]
# Shifted targets teach nothing: every step pairs a picture with the caption of another
# one, drawn by chance. Soft targets do no harm that this ruler sees. And what looked
# wrong in them is not what matters: with rows that add up, and without the gradient
# through the targets, they do no better. Judged after 100 steps, as is tempting, all
# these curves lie elsewhere: look at the left third of the figure.
#
# **No normalisation.** Take the toy from the top and make one caption four times as
# long. **Predict first:** which caption does each picture choose?
#
# <details><summary>Answer</summary>
#
# All three choose the long one: its products are four times as large.
#
# </details>

# %%
longer = captions * np.array([[1.0], [1.0], [4.0]])
print("raw:", (pictures @ longer.T).argmax(1))
print("unit vectors:", (pictures @ l2_normalize(longer).T).argmax(1))

# %% [markdown]
# And without turning a single vector the raw loss falls when all of them grow: length
# stands in for learning.

# %%
square = torch.eye(32)  # 32 pairs, each at a right angle to the others
for factor in (1, 2, 4):
    raw = contrastive_loss(factor * square, square, torch.tensor(1.0))
    unit = contrastive_loss(F.normalize(factor * square), square, torch.tensor(1.0))
    print(f"vectors × {factor}: raw loss {raw:.2f}, normalised loss {unit:.2f}")

# %% [markdown]
# ## Exercises
#
# > **Exercise 1 · Who finds whom** — difficulty 1 of 3, about 5 minutes. Why it
# > matters: a loss is hard to read, a share is not. Write `pair_accuracy(logits)`.
# > Return two floats: the share of pictures (rows), then the share of captions
# > (columns), whose largest entry is on the diagonal.


# %% tags=["exercise"]
def pair_accuracy(logits: Tensor) -> tuple[float, float]:
    """Shares of rows and of columns that choose the diagonal."""
    ...


# %%
from utils.exercises import clip as exercises

exercises.check_pair_accuracy(pair_accuracy)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `logits.argmax(1)` is the choice of each row. What should it be equal to?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def pair_accuracy(logits):
#     right = torch.arange(len(logits), device=logits.device)
#     rows = (logits.argmax(1) == right).float().mean().item()
#     columns = (logits.argmax(0) == right).float().mean().item()
#     return rows, columns
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · A hard wrong answer** — difficulty 2 of 3, about 8 minutes. Why it
# > matters: DPR adds to each question a passage that looks right and is not. Write
# > `hard_loss(questions, passages, hard)`, all (N, d): every question chooses among the
# > N passages *and* the N hard ones, by raw dot product. Return the mean loss.


# %% tags=["exercise"]
def hard_loss(questions: Tensor, passages: Tensor, hard: Tensor) -> Tensor:
    """In-batch and hard negatives, one direction: a scalar."""
    ...


# %%
exercises.check_hard_loss(hard_loss)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Put the passages and the hard ones in one matrix of 2·N rows. The right answer of
# question i is still number i.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def hard_loss(questions, passages, hard):
#     scores = questions @ torch.cat([passages, hard]).T
#     right = torch.arange(len(questions), device=scores.device)
#     return F.cross_entropy(scores, right)
# ```
#
# </details>

# %% [markdown]
# > **Exercise 3 · The gradient by hand** — difficulty 3 of 3, about 12 minutes. Why it
# > matters: it shows how hard each pair is pulled or pushed. Write
# > `logit_gradient(logits)`. Return (N, N): the derivative of the symmetric loss, a
# > mean over N and over both directions, with respect to every logit, without autograd.


# %% tags=["exercise"]
def logit_gradient(logits: Tensor) -> Tensor:
    """d loss / d logits, (N, N) → (N, N)."""
    ...


# %%
exercises.check_logit_gradient(logit_gradient)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The gradient of one cross-entropy is softmax − one-hot. There are two of them, a mean
# of two, and each is a mean over N.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def logit_gradient(logits):
#     n = len(logits)
#     both = logits.softmax(1) + logits.softmax(0)
#     return (both / 2 - torch.eye(n, dtype=logits.dtype, device=logits.device)) / n
# ```
#
# </details>

# %% [markdown]
# ## The loss, in less memory
#
# Exercise 3 found the gradient in closed form. Autograd does not know it: on the way
# back it makes one (N, N) matrix for each step of the formula, several at once. Written
# by hand, one is enough: 512 rows at a time, the gradient is worked out on the way
# forward and overwrites the logits. So a larger batch fits. This is the loss that later
# lessons import.


# %% tags=["brick", "blank"]
class PairLoss(torch.autograd.Function):
    """The symmetric loss of pairs with its gradient by hand; keeps one (N, N) matrix.

    ∂L/∂logits = (softmax of rows + softmax of columns − 2 on the diagonal) / 2N.
    """

    @staticmethod
    def forward(ctx, images, texts, scale):
        logits = scale * images @ texts.T  # (N, N)
        columns = torch.cat([part.logsumexp(0) for part in logits.split(512, 1)])
        # cross-entropy is logsumexp − the right logit; the diagonal is right
        loss = (columns - logits.diagonal()).mean() / 2
        for start in range(0, len(logits), 512):
            part = logits[start : start + 512]
            rows = part.log_softmax(1)  # (512, N)
            loss -= rows.diagonal(start).sum() / (2 * len(logits))
            # from here on their gradient, times 2N, takes the place of the logits
            torch.add(rows.exp_(), (part - columns).exp_(), out=part)
        logits.diagonal().sub_(2)
        ctx.save_for_backward(images, texts, scale, logits)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        images, texts, scale, grad_logits = ctx.saved_tensors
        grad_loss = grad_loss / (2 * len(images))
        grad_images, grad_texts = grad_logits @ texts, grad_logits.T @ images  # (N, d)
        grad_scale = grad_loss * grad_images.flatten().dot(images.flatten())
        factor = grad_loss * scale
        return grad_images.mul_(factor), grad_texts.mul_(factor), grad_scale


# %% tags=["brick"]
@takes(images="(N, d)", texts="(M, e)", scale="()")
def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss: picture i belongs to text i, and to no other of the batch.

    images, texts: (N, d) unit vectors; scale: exp(logit_scale). Returns a scalar, the
    mean of two cross-entropies, by row and by column. Radford et al. 2021, fig. 3.
    """
    if images.shape != texts.shape:
        shapes = f"{tuple(images.shape)} and {tuple(texts.shape)}"
        raise ValueError(
            f"images and texts come in pairs, but their shapes are {shapes}"
        )
    # bfloat16 keeps 8 bits: at a scale of 100 a logit would be off by up to 0.25
    with torch.autocast(images.device.type, enabled=False):
        return PairLoss.apply(images.float(), texts.float(), scale)


# %%
a = F.normalize(torch.randn(600, 32, generator=device.generator(0)), dim=1)
b = F.normalize(torch.randn(600, 32, generator=device.generator(1)), dim=1)
inputs = [x.requires_grad_() for x in (a, b, torch.tensor(10.0))]


def there_and_back(loss, inputs):
    value = loss(*inputs)
    return [value, *torch.autograd.grad(value, inputs)]


ours, theirs = (there_and_back(f, inputs) for f in (contrastive_loss, plain_loss))
same = [torch.allclose(x, y, atol=1e-6) for x, y in zip(ours, theirs, strict=True)]
print(f"same loss, same gradients for pictures, texts and scale: {all(same)}")

# %%
many = F.normalize(torch.randn(2, 2048, 64, generator=device.generator(0)), dim=-1)
inputs = [x.requires_grad_() for x in (*many, torch.tensor(10.0))]
gain = costs.speedup(
    lambda: there_and_back(plain_loss, inputs),
    lambda: there_and_back(contrastive_loss, inputs),
)
print(f"more than 1.2 times faster than the usual formula: {gain > 1.2}")

# %% [markdown]
# ## The doors
#
# Other programs know CLIPs in the format of `transformers`. `save_pretrained` and
# `from_pretrained` translate; their bookkeeping is in `utils/doors/transformers.py`,
# which you need not read. Lesson 04 goes through these doors.
#
# Against the reference: random weights, out through the door, and the same logits and
# loss from the library that everyone uses.

# %%
import tempfile

from transformers import CLIPModel
from transformers.utils import logging

logging.disable_progress_bar()
device.seed(0)
small = {"width": 64, "depth": 2, "heads": 2}
ours = CLIP(
    {"tower": "vit", "image_size": 32, "patch_size": 8, **small},
    {"tower": "transformer", **small},
    clip.config["merges"],
    dim=32,
).eval()
with tempfile.TemporaryDirectory() as folder:
    ours.save_pretrained(folder)
    judge = CLIPModel.from_pretrained(folder).eval()

# %%
ids = ours.tokenizer(names)
squares = torch.rand(12, 3, 32, 32, generator=device.generator(1))
with torch.no_grad():
    theirs = judge(
        input_ids=ids, pixel_values=preprocess(squares, 32), return_loss=True
    )
    logits = ours(squares, names)
    loss = contrastive_loss(
        ours.encode_image(squares), ours.encode_text(names), ours.logit_scale.exp()
    )
print(f"same logits: {torch.allclose(logits, theirs.logits_per_image, atol=1e-5)}")
print(f"same loss: {torch.allclose(loss, theirs.loss, atol=1e-5)}")

# %% [markdown]
# What a door has to know, in three lines. Most weights only change their name, and one
# name over there is misspelt for good. Our one matrix for queries, keys and values is
# three of theirs. And the paper's projection, `I_f @ W_i`, is the *transpose* of what a
# linear layer stores.

# %%
mine, other = ours.state_dict(), judge.state_dict()
norm = other["vision_model.pre_layrnorm.weight"]  # spelt so there
same = torch.equal(mine["image_tower.norm_pre.weight"], norm)
print("another name, same numbers:", same)
parts = [other[f"text_model.encoder.layers.0.self_attn.{p}_proj.weight"] for p in "qkv"]
qkv = mine["text_tower.blocks.0.attention.qkv.weight"]  # (3·64, 64)
print("one matrix is three of theirs:", torch.equal(qkv, torch.cat(parts)))

# %%
W_i = mine["image_projection.weight"].T  # (64, 32), as the paper has it
I_f = torch.rand(5, 64, generator=device.generator(2))
layer = ours.image_projection(I_f)
print("the layer is I_f @ W_i:", torch.allclose(layer, I_f @ W_i, atol=1e-6))

# %% [markdown]
# ## Myth check
#
# **"The objective makes the diagonal large and the rest small."** It makes the diagonal
# larger *than the rest of its row and column*. A softmax only sees differences: add 5
# to every logit and the loss stays.

# %%
logits = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
for name, table in (("as they are", logits), ("5 added to all", logits + 5)):
    both = (table.logsumexp(1) + table.logsumexp(0)).mean() / 2
    print(f"{name}: {both - table.diagonal().mean():.4f}")

# %% [markdown]
# **"`t` is the temperature, and `axis=0` is the loss of the pictures."** `t` is the log
# of the inverse temperature. In the figure of the paper rows are pictures, so a softmax
# along axis 0 normalises over pictures: it is the captions that choose. PyTorch's
# `F.cross_entropy` has no `axis`: the second call takes the transpose. The sum of the
# two is the same either way, so a swap goes unnoticed.
#
# **"Cosine or dot product, it makes no difference."** CLIP normalises and multiplies by
# a learnt scale. DPR takes raw dot products. The cell on lengths above shows what raw
# products allow.
#
# **"DPR's positives are answers."** They are passages that hold the answer; one hard
# negative a question is added.
#
# **"The pseudo-code ends with the update of the weights."** It ends with the loss. `T`
# is a minibatch of aligned *texts*, as `I` is one of pictures.
#
# **"CLIP has decoders."** Both towers are encoders; nothing in CLIP draws or writes.
#
# **"400 million pictures, found by `alt` and `title` through a search engine."** 400
# million *pairs* from publicly available sources that the paper does not name. Texts
# were kept if they held one of 500,000 queries, up to 20,000 pairs each; the text is
# the caption, the query is only a filter. The queries are words that occur at least 100
# times in English Wikipedia, word pairs that often go together, titles of much-read
# articles, and WordNet synsets, that is sets of synonyms (sec. 2.2).
#
# ## Differs from the paper
#
# | | OpenAI's CLIP | here | why |
# |---|---|---|---|
# | batch | 32,768 | 128 live, 256 shipped | a laptop |
# | batch contents | as they come | concepts all different | few concepts |
# | towers | ViT or ResNet, Transformer | live: small ResNet, bag of words | speed |
# | clamp of the scale | at most 100 | between 1 and 100 | as open_clip does |
# | picture size | 224 | 32 live, 64 shipped | emoji are simple |
# | patches in training | all | 40 % of them, shipped | faster (FLIP, lesson 01) |
# | optimizer | Adam with decay | AdamW; Muon for hidden matrices, shipped | speed |
# | weights kept | the last | a running average, shipped | steadier |
# | text | 49,408 tokens, 77 a caption | 4,096 and 32, shipped | short captions |
#
# ## Where this goes next
#
# Lesson 04 uses nothing but this: classes become prompts, and the nearest prompt wins.
# Much later the same matrix judges generated pictures.
#
# ## Read more
#
# - Radford et al. 2021, *Learning Transferable Visual Models From Natural Language
#   Supervision*, sec. 2.2–2.5 and figure 3; openai/CLIP, `clip/model.py`.
# - Schroff et al. 2015 (FaceNet), sec. 3: the triplet loss.
# - Karpukhin et al. 2020 (DPR), sec. 3: in-batch negatives.
# - Liang et al. 2022, *Mind the gap*: the modality gap.
# - Zhai et al. 2023, *Sigmoid loss for language image pre-training*, alg. 1: SigLIP.
# - open_clip, `src/open_clip/loss.py`: the loss over many GPUs.
#
# **Glossary** · 对比学习 contrastive learning · 度量学习 metric learning · 三元组损失
# triplet loss · 批内负例 in-batch negatives · 温度 temperature · 相似度矩阵 similarity
# matrix · 归一化 normalisation · 投影 projection · 模态间隙 modality gap · 梯度累积
# gradient accumulation
