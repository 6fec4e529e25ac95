"""The training loop: optimizer, schedule, progress, resumable state.

A loss is a function `loss(step) -> Tensor` that draws its own batch, so that a step
depends on its number alone. Losses themselves are lessons' business.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ipywidgets
import torch
from torch import Tensor, nn

from utils import device as devices
from utils import plots, tensors, widgets


def adamw(parameters, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW whose decay leaves out gains, biases and scalars, as CLIP's does (sec. 2.5).

    parameters: a model, or some of its parameters.
    """
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6, fused=True)


class MuonAdamW:
    """Muon for the hidden matrices, AdamW for all else; behaves as one optimizer.

    Convolutions count as matrices (out, in·k·k). Embeddings, positions, gains, biases and
    the layer that reads pixels stay with AdamW. Jordan et al. 2024, "Muon".
    """

    def __init__(self, model: nn.Module, lr: float, matrix_lr: float, weight_decay: float):
        layers = (m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        self.hidden = [m.weight for m in layers if m.weight.shape[1] > 3]
        # the same numbers, seen as matrices
        self.matrices = [nn.Parameter(p.data.view(len(p), -1)) for p in self.hidden]
        taken = {id(p) for p in self.hidden}
        rest = [p for p in model.parameters() if id(p) not in taken]
        self.parts = [
            torch.optim.Muon(self.matrices, lr=matrix_lr, weight_decay=weight_decay),
            adamw(rest, lr, weight_decay),
        ]

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for parameter in self.hidden:
            parameter.grad = None
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for matrix, parameter in zip(self.matrices, self.hidden, strict=True):
            matrix.grad = parameter.grad.flatten(1)
        for part in self.parts:
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors."""
        return {
            f"{p}.{i}.{key}": value
            for p, part in enumerate(self.parts)
            for i, state in part.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        for p, part in enumerate(self.parts):
            whole = part.state_dict()
            for name, value in tensors.items():
                owner, index, key = name.split(".")
                if int(owner) == p:
                    whole["state"].setdefault(int(index), {})[key] = value
            part.load_state_dict(whole)


def cosine(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate at a step: linear warm-up, then half a cosine to 0."""
    return min(1.0, (step + 1) / max(1, warmup)) * (1 + math.cos(math.pi * step / steps)) / 2


def run(
    optimizer: torch.optim.Optimizer | MuonAdamW,
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    seed: int = 0,
    start: int = 0,
    warmup: int = 20,
    before_step: Callable[[], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Iterator[tuple[int, float]]:
    """Train and yield (step, loss) after each step.

    Every step seeds torch from (seed, step): dropout and the like are the same after a
    resume. Losses run under bfloat16 autocast where the device multiplies it fast.
    Raises ValueError when the loss is no longer a number.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    device = optimizer.param_groups[0]["params"][0].device
    for step in range(start, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * cosine(step, steps, warmup)
        with devices.half_precision(device):
            value = loss(step)
        number = value.item()
        if not math.isfinite(number):
            raise ValueError(f"The loss is {number} at step {step}; lower the learning rate.")
        optimizer.zero_grad()
        value.backward()
        if before_step:
            before_step()
        optimizer.step()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak
        if after_step:
            after_step()
        yield step, number


def fit(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    warmup: int = 20,
    seed: int = 0,
    after_step: Callable[[], None] | None = None,
    name: str = "training",
    watch: Callable[[int], str] | None = None,
) -> list[float]:
    """Train `model` in a notebook, with a live curve; returns the loss of every step.

    watch(step) may return HTML, shown under the curve about once a second. What is stored
    on the page is one line that every machine prints alike.
    """
    view = ipywidgets.HTML()
    widgets.show(view, f"Live curve of {name}.")
    model.train()
    losses, shown = [], 0.0
    optimizer = adamw(model, lr, weight_decay)
    for step, value in run(
        optimizer, loss, steps, seed=seed, warmup=warmup, after_step=after_step
    ):
        losses.append(value)
        if time.monotonic() - shown > 1 or step == steps - 1:
            shown = time.monotonic()
            view.value = svg_curve(losses, steps) + (watch(step) if watch else "")
    model.eval()
    print(f"{name}: {steps} steps done")
    return losses


def svg_curve(losses: list[float], steps: int, width: int = 480, height: int = 120) -> str:
    """A loss curve as a small SVG that costs nothing to redraw."""
    top = max(losses) or 1.0
    stride = max(1, len(losses) // 240)
    points = [
        f"{width * i / max(1, steps - 1):.1f},{height * (1 - losses[i] / top):.1f}"
        for i in range(0, len(losses), stride)
    ]
    return (
        f'<svg width="{width}" height="{height + 18}" role="img" aria-label="loss curve">'
        f'<polyline points="{" ".join(points)}" fill="none" stroke-width="2" '
        f'stroke="{plots.COLOURS["shared"]}"/>'
        f'<text x="0" y="{height + 14}" font-size="12" fill="currentColor">'
        f"step {len(losses)} of {steps} · loss {losses[-1]:.3f}</text></svg>"
    )


class Average:
    """An exponential moving average of a model's weights and buffers."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))  # trust early weights less
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)


def save_state(path: Path, model, optimizer: MuonAdamW, average: Average, note: dict) -> None:
    """Write everything a resume needs, atomically: a kill leaves the old file or the new."""
    named = {f"model.{k}": v for k, v in model.state_dict().items()}
    named |= {f"average.{k}": v for k, v in average.values.items()}
    named |= {f"optimizer.{k}": v for k, v in optimizer.tensors().items()}
    tensors.write(named, path, {"note": json.dumps(note)})


def load_state(path: Path, model, optimizer: MuonAdamW, average: Average) -> dict:
    """Read a state written by `save_state` into its three owners; returns its note."""
    named, metadata = tensors.read(path)
    parts = {"model": {}, "average": {}, "optimizer": {}}
    for name, value in named.items():
        owner, rest = name.split(".", 1)
        parts[owner][rest] = value
    model.load_state_dict(parts["model"])
    for name, value in parts["average"].items():
        average.values[name].copy_(value)
    optimizer.load_tensors(parts["optimizer"])
    return json.loads(metadata["note"])
