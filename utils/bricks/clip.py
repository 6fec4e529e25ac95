"""The bricks of lesson 03_contrastive_loss.

Built by `make build` from lessons/03_contrastive_loss.py: edit them there.
"""

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
