"""The bricks of lesson 01_image_encoders.

Built by `make build` from lessons/01_image_encoders.py: edit them there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + two 3×3 convolutions of x, each followed by BatchNorm.

    (B, width, H, W) → the same shape. The last BatchNorm scales by 0 at the start, so a
    new block passes its (non-negative) input on unchanged. He et al. 2016, fig. 2; zero
    start: Goyal et al. 2017, sec. 5.1.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        change = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(x + change)


class ResNet(nn.Module):
    """Pictures (B, 3, H, W) → vectors (B, widths[-1]).

    A stem of `stem`×`stem` patches, then stages of residual blocks. Between stages an
    average pool halves the map and a 1×1 convolution widens it. He et al. 2016.
    """

    def __init__(self, widths=(64, 128, 256), depths=(2, 2, 2), stem: int = 4):
        super().__init__()
        layers = []
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if i == 0:
                layers += [nn.Conv2d(3, width, stem, stride=stem, bias=False)]
            else:
                widen = nn.Conv2d(widths[i - 1], width, 1, bias=False)
                layers += [nn.AvgPool2d(2), widen]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            layers += [ResidualBlock(width) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.width = widths[-1]

    def forward(self, pictures: Tensor) -> Tensor:
        # channels last is the memory order in which convolutions run fastest
        x = pictures.contiguous(memory_format=torch.channels_last)
        return self.layers(x).mean((2, 3))  # (B, widths[-1])


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d + mask)·v, the scaled dot-product attention.

    q, k, v: (..., L, d); mask: (L, L), added to the scores, −inf where a token may not
    look. Returns (..., L, d). Vaswani et al. 2017, eq. 1.
    """
    if q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # back through torch's fused kernel is several times slower in this case
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (..., L, L)
        if mask is not None:
            scores = scores + mask.to(scores.dtype)
        return scores.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Attention(nn.Module):
    """Self-attention with several heads: (B, L, width) → the same shape.

    Queries, keys and values come from one product. With only = (B,), the place of one
    token in each row, that token alone asks: (B, 1, width). Vaswani et al. 2017, sec.
    3.2.2.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, only: Tensor | None = None
    ) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, L, 3, h, d)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each (B, h, L, d)
        if only is not None:
            rows = torch.arange(len(q), device=q.device)
            q = q[rows, :, only].unsqueeze(2)  # (B, h, 1, d)
            mask = None if mask is None else mask[only, None, None]  # (B, 1, 1, L)
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))


def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702 x), the activation of OpenAI's CLIP; a cheap stand-in for GELU.

    Hendrycks & Gimpel 2016, sec. 2.
    """
    # torch has y·σ(y) as one operation
    return F.silu(1.702 * x) / 1.702


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Block(nn.Module):
    """A pre-norm Transformer block: (B, L, width) → the same shape.

    x + attention(norm(x)), then x + mlp(norm(x)). With only = (B,), the place of one
    token in each row, just that token's output: (B, 1, width). Radford et al. 2019,
    sec. 2.3.
    """

    def __init__(
        self, width: int, heads: int, activation: str = "quick_gelu", hidden: int = 0
    ):
        super().__init__()
        hidden = hidden or 4 * width
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(
        self, x: Tensor, mask: Tensor | None = None, only: Tensor | None = None
    ) -> Tensor:
        change = self.attention(self.norm1(x), mask, only)
        if only is not None:
            x = x[torch.arange(len(x), device=x.device), only].unsqueeze(1)
        x = x + change
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Pictures (B, 3, S, S) → the class token's vector (B, width).

    CLIP's layout: patches without bias, a norm before the first block, a norm on the
    class token alone after the last. Dosovitskiy et al. 2021, eq. 1–4; Radford et al.
    2021, sec. 2.4. With keep < 1 training sees that share of the patches (FLIP, Li et
    al. 2023).
    """

    def __init__(
        self,
        image_size: int = 64,
        patch_size: int = 8,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        hidden: int = 0,
        activation: str = "quick_gelu",
        keep: float = 1.0,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patches of {patch_size} do not tile {image_size} pixels")
        tokens = (image_size // patch_size) ** 2 + 1
        self.patch = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_token = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positions = nn.Parameter(width**-0.5 * torch.randn(tokens, width))
        self.norm_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, heads, activation, hidden) for _ in range(depth)
        )
        self.norm_post = nn.LayerNorm(width)
        self.width, self.keep = width, keep

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.patch(pictures).flatten(2).transpose(1, 2)  # (B, N, width)
        x = x + self.positions[1:]
        if self.training and self.keep < 1:
            x = self.drop_patches(x)
        first = (self.class_token + self.positions[0]).expand(len(x), 1, -1)
        x = self.norm_pre(torch.cat([first.to(x.dtype), x], 1))  # (B, N+1, width)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        x = last(x, only=x.new_zeros(len(x), dtype=torch.long))  # the class token
        return self.norm_post(x[:, 0])  # (B, width)

    def drop_patches(self, x: Tensor) -> Tensor:
        order = torch.rand(x.shape[:2], device=x.device).argsort(1)  # (B, N)
        kept = order[:, : max(1, int(self.keep * x.shape[1]))]
        return x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[2]))
