"""The bricks of lesson 01_image_encoders.

Built by `make build` from lessons/01_image_encoders.py: edit them there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.bricks.attention import Block, state_at


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
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(x + residual)


class ResNet(nn.Module):
    """Pictures (B, 3, H, W) → vectors (B, widths[-1]).

    A stem of `stem`×`stem` patches, then stages of residual blocks. Between stages an
    average pool halves the map and a 1×1 convolution widens it. image_size: the side of
    the pictures it is meant for; it takes others, too. He et al. 2016.
    """

    def __init__(
        self,
        widths=(64, 128, 256),
        depths=(2, 2, 2),
        stem: int = 4,
        image_size: int = 64,
    ):
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
        self.width, self.image_size = widths[-1], image_size

    def forward(self, pictures: Tensor) -> Tensor:
        # channels last is the memory order in which convolutions run fastest
        x = pictures.contiguous(memory_format=torch.channels_last)
        return self.layers(x).mean((2, 3))  # (B, widths[-1])


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
        self.width, self.image_size, self.keep = width, image_size, keep

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.patch(pictures).flatten(2).transpose(1, 2)  # (B, N, width)
        x = x + self.positions[1:]
        if self.training and self.keep < 1:
            x = self.drop_patches(x)
        token = (self.class_token + self.positions[0]).expand(len(x), 1, -1)
        x = self.norm_pre(torch.cat([token.to(x.dtype), x], 1))  # (B, N+1, width)
        first = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.norm_post(state_at(self.blocks, x, first))  # (B, width)

    def drop_patches(self, x: Tensor) -> Tensor:
        """A random part of the patches, others in each row: (B, N, w) → (B, n, w)."""
        order = torch.rand(x.shape[:2], device=x.device).argsort(1)  # (B, N)
        kept = order[:, : max(1, int(self.keep * x.shape[1]))]
        return x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[2]))
