"""Tiny diffusion models, and what stands in for their network."""

import torch
from torch import nn

from tests import tiny
from utils.bricks.diffusion import Diffusion

SIDE, STEPS = 16, 40


def small(scale: float = 0.2, **settings) -> Diffusion:
    """A tiny Diffusion whose blocks do something."""
    clip = tiny.model("clip_resnet").eval().requires_grad_(False)
    torch.manual_seed(1)
    size = {"side": SIDE, "steps": STEPS, "widths": (16, 32), "depth": 1} | settings
    model = Diffusion(clip, **size)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn_like(parameter)
    return model.eval()


class Oracle(nn.Module):
    """In place of a network: answers what it is told, and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.asked = answer, []

    def forward(self, x, t, text=None):
        self.asked.append((x, t, text))
        return self.answer(x, t)
