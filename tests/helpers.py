"""What several test modules ask of what they see."""

import re

import torch
from torch import Tensor, nn


def red_line(html: str) -> str:
    """The text of a widget's answer, which is one red line and nothing else."""
    line = re.fullmatch(r'<p style="color:#\w+">✗ ([^<>\n]+)</p>', html)
    assert line and "Traceback" not in html and len(html) < 600, html
    return line[1]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    """The gradients of all parameters when every number of `output` has its own weight."""
    model.zero_grad()
    (output * noise(*output.shape, seed=9)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}
