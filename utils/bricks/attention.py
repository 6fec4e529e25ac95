"""The bricks of lesson 01_image_encoders.

Built by `make build` from lessons/01_image_encoders.py: edit them there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d + mask)·v, the scaled dot-product attention.

    q: (..., L, d), the tokens that ask; k, v: (..., M, d), those that are looked at;
    mask: (L, M) or (..., L, M), added to the scores, −inf where a token may not look.
    Returns (..., L, d). Vaswani et al. 2017, eq. 1.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # several times faster here than torch's fused kernel, there and back
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (..., L, M)
        if mask is not None:
            scores = scores + mask.to(scores.dtype)
        return scores.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads·d) → (B, heads, L, d): a part of the width for each head."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, L, d) → (B, L, heads·d): the heads side by side again."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self-attention with several heads: (B, L, width) → the same shape.

    Vaswani et al. 2017, sec. 3.2.2.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def project(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values of every head, (B, heads, L, d) each."""
        # one product for all three
        return [split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1)]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.project(x)
        return self.out(join_heads(attend(q, k, v, mask)))


def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702 x), the activation of OpenAI's CLIP; a cheap stand-in for GELU.

    Hendrycks & Gimpel 2016, sec. 2.
    """
    # torch has y·σ(y) as one operation
    return F.silu(1.702 * x) / 1.702


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Block(nn.Module):
    """A pre-norm Transformer block: (B, L, width) → the same shape.

    x + attention(norm(x)), then x + mlp(norm(x)). Radford et al. 2019, sec. 2.3.
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

    def mlp(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


def state_at(
    blocks: nn.ModuleList, x: Tensor, places: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The token at one place of each row, after all blocks: (B, width).

    x: (B, L, width); places: (B,) int64; mask: (L, L), as in `attend`. In the last
    block that token alone asks, which gives it what it would get among all.
    """
    *blocks, last = blocks
    for block in blocks:
        x = block(x, mask)
    rows = torch.arange(len(x), device=x.device)
    q, k, v = last.attention.project(last.norm1(x))  # (B, h, L, d) each
    q = q[rows, :, places].unsqueeze(2)  # (B, h, 1, d)
    mask = None if mask is None else mask[places, None, None]  # (B, 1, 1, L)
    change = last.attention.out(join_heads(attend(q, k, v, mask)))  # (B, 1, width)
    x = x[rows, places] + change.squeeze(1)
    return x + last.mlp(last.norm2(x))
