"""What several test modules ask of what they see."""

import re
import shutil

import pytest
import torch
from torch import Tensor, nn

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
# what to do, or what would be right
REMEDY = re.compile(
    r"[;,:] (add|check|choose|connect|delete|fetch|give|make|move|restore|run|save|scale|shorten|"
    r"take|type|unset|use|write) |, e\.g\. |has exactly one |(are|is) (float|int64|uint8) |"
    r"numbers from 0 to |; it must |(scale them|resize) "
)


NO_CODES = [  # for a codebook of 32, and how the refusal begins
    (torch.zeros(1, 4, 4), "codes are int64 (B, h, w); these are torch.float32 (1, 4, 4)"),
    (torch.zeros(4, 4, dtype=torch.long), "codes are int64 (B, h, w); these are torch.int64"),
    (torch.full((1, 2, 2), 32), "code 32 is not in the codebook of 32"),
    (torch.full((1, 2, 2), -1), "code -1 is not in the codebook of 32"),
]
NO_PICTURES = [  # for a factor of 4
    (torch.rand(3, 16, 16), "pictures are float (B, 3, H, W) in [0, 1]; these are"),
    (torch.rand(1, 1, 16, 16), "pictures are float (B, 3, H, W) in [0, 1]; these are"),
    (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "pictures are float"),
    (torch.rand(0, 3, 16, 16), "pictures are float"),
    (torch.rand(1, 3, 16, 18), "a side of 16×18 is no multiple of 4; resize first"),
]


def refusal(action, *arguments, kind: type[ValueError] = ValueError) -> str:
    """The sentence with which an action refuses its arguments: the thing, the cause, the remedy."""
    with pytest.raises(kind) as error:
        action(*arguments)
    message = str(error.value)
    assert message.isprintable() and len(message) < 300, message
    assert REMEDY.search(message), message
    assert kind is ValueError or message.endswith("."), message
    return message


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
