"""The training loop: optimizers, schedule, progress, average, resumable state.

A loss is a function `loss(step) -> Tensor` that draws its own batch, so that a step
depends on its number alone. Losses themselves are lessons' business.
"""

import contextlib
import fnmatch
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ipywidgets
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from utils import device as devices
from utils import plots, tensors, widgets
from utils.tensors import own_state

BETAS = (0.9, 0.98)  # CLIP's


def adamw(parameters, lr: float, weight_decay: float, betas=BETAS) -> torch.optim.AdamW:
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
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-6, fused=True)


def by_role(model: nn.Module, roles: dict[str, Sequence[str]]) -> dict[str, list[nn.Parameter]]:
    """The trained parameters of a model by role: those of `roles`, and "gain".

    roles: {role: patterns of parameter names, as of a shell}. What has one dimension or none
    is a gain without being named. Raises ValueError unless every other parameter has just one
    role and every pattern a parameter: what was forgotten is named.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    owner = {name: "gain" for name, p in trained.items() if p.ndim <= 1}
    others = [name for name in trained if name not in owner]
    for role, patterns in roles.items():
        for pattern in patterns:
            found = fnmatch.filter(others, pattern)
            if not found:
                raise ValueError(f"no parameter is named like {pattern!r}; mend the role {role!r}")
            for name in found:
                if owner.setdefault(name, role) != role:
                    raise ValueError(f"{name} is both {owner[name]!r} and {role!r}; choose one")
    for name in others:
        if name not in owner:
            raise ValueError(f"{name} has no role; add it to one of {', '.join(roles)}")
    return {
        role: [p for name, p in trained.items() if owner[name] == role] for role in [*roles, "gain"]
    }


class InFloat32(TorchFunctionMode):
    """Gives float32 where bfloat16 is asked for: torch.optim.Muon takes it on any device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)
        return function(*args, **(kwargs or {}))


class MuonAdamW:
    """Muon for the hidden matrices, AdamW for all else; behaves as one optimizer.

    roles: {"matrix": …, "edge": …, "gain": …}, lists of parameters, see `by_role`. A matrix
    stands between two hidden layers; convolutions count as (out, in·k·k). An edge reads or
    writes what is not hidden: pixels, tokens, positions, classes. Gains, biases and scalars do
    not decay. Jordan et al. 2024, "Muon".
    """

    def __init__(
        self,
        roles: dict[str, list[nn.Parameter]],
        lr: float,
        matrix_lr: float,
        weight_decay: float,
        betas=BETAS,
    ):
        if unknown := roles.keys() - {"matrix", "edge", "gain"}:
            raise ValueError(f"the role {unknown.pop()!r} is none of matrix, edge and gain")
        self.hidden = roles.get("matrix", [])
        # the same numbers, seen as matrices
        self.matrices = [nn.Parameter(p.data.view(len(p), -1)) for p in self.hidden]
        edges, gains = roles.get("edge", []), roles.get("gain", [])
        self.parts: list[torch.optim.Optimizer] = []
        if self.matrices:
            muon = torch.optim.Muon(self.matrices, lr=matrix_lr, weight_decay=weight_decay)
            self.parts.append(muon)
        if edges or gains:
            groups = [{"params": edges, "weight_decay": weight_decay}]
            groups += [{"params": gains, "weight_decay": 0.0}]
            groups = [group for group in groups if group["params"]]
            self.parts.append(torch.optim.AdamW(groups, lr, betas, eps=1e-6, fused=True))

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
            # a matrix that this step did not use has none
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for part in self.parts:
            device = part.param_groups[0]["params"][0].device
            with contextlib.nullcontext() if devices.multiplies_bfloat16(device) else InFloat32():
                part.step()

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors."""
        return {
            f"{p}.{i}.{key}": value
            for p, part in enumerate(self.parts)
            for i, state in part.state_dict()["state"].items()
            for key, value in state.items()
        }

    def refuse(self, tensors: dict[str, Tensor]) -> None:
        """Raise ValueError unless these are tensors of this optimizer; a part may be missing."""
        shapes = {
            f"{p}.{i}": parameter.shape
            for p, part in enumerate(self.parts)
            for i, parameter in enumerate(q for g in part.param_groups for q in g["params"])
        }
        for name, value in tensors.items():
            owner, _, key = name.rpartition(".")
            if value.shape != (() if key == "step" else shapes.get(owner)):
                raise ValueError(f"{name} of shape {tuple(value.shape)} belongs to no parameter")

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


def trapezoid(step: int, steps: int, warmup: int, down: float = 0.4) -> float:
    """Share of the learning rate: linear warm-up, 1, and in the last `down` a line to 0."""
    return min(1.0, (step + 1) / max(1, warmup), (1 - step / steps) / down)


SCHEDULES = {"cosine": cosine, "trapezoid": trapezoid}


class NotFinite(ValueError):
    """A loss, or a weight, that is no number any more; the message says at which step."""


def run(
    optimizer,
    loss,
    steps: int,
    *,
    seed: int = 0,
    start: int = 0,
    warmup: int = 20,
    schedule: Callable[[int, int, int], float] = cosine,
    before_step: Callable[[], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Iterator[tuple[int, float]]:
    """Train and yield (step, loss) after each step.

    optimizer, loss: one of each, or lists of the same length: in every step each loss trains
    its optimizer in turn, as a generator's and a critic's do, and the first loss is yielded.
    A group's learning rate is its peak, times `schedule(step, steps, warmup)`. Every step
    seeds torch from (seed, step): dropout and the like are the same after a resume. Losses
    run under bfloat16 autocast where the device multiplies it fast. Raises NotFinite when a
    loss is no longer a number, before it changes a weight.
    """
    optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
    losses = loss if isinstance(loss, list) else [loss]
    groups = [group for part in optimizers for group in part.param_groups]
    for group in groups:
        group.setdefault("peak", group["lr"])
    device = groups[0]["params"][0].device
    for step in range(start, steps):
        devices.share_cores()
        torch.manual_seed(seed * 1_000_003 + step)
        for group in groups:
            group["lr"] = group["peak"] * schedule(step, steps, warmup)
        numbers = []
        for part, compute in zip(optimizers, losses, strict=True):
            with devices.half_precision(device):
                value = compute(step)
            numbers.append(value.item())
            if not math.isfinite(numbers[-1]):
                raise NotFinite(
                    f"The loss is {numbers[-1]} at step {step}; lower the learning rate."
                )
            part.zero_grad()
            value.backward()
            if before_step:
                before_step()
            part.step()
        if after_step:
            after_step()
        yield step, numbers[0]


def fit(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    optimizer=None,
    warmup: int = 20,
    seed: int = 0,
    after_step: Callable[[], None] | None = None,
    name: str = "training",
    watch: Callable[[int], str] | None = None,
) -> list[float]:
    """Train `model` in a notebook, with a live curve; returns the loss of every step.

    optimizer: AdamW at `lr` and `weight_decay` unless one is given; it and `loss` may be lists,
    as in `run`. watch(step) may return HTML, shown under the curve about once a second. What
    is stored on the page is one line that every machine prints alike.
    """
    view = ipywidgets.HTML()
    widgets.show(view, f"Live curve of {name}.")
    model.train()
    losses, shown = [], 0.0
    optimizer = optimizer or adamw(model, lr, weight_decay)
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
    """An exponential moving average of a model's weights and buffers.

    Frozen weights do not change and are left out, and so is what is in `borrowed` modules.
    """

    def __init__(self, model: nn.Module, decay: float, borrowed: Sequence[nn.Module] = ()):
        self.decay, self.borrowed = decay, list(borrowed)
        self.values = {k: v.detach().clone() for k, v in own_state(model, self.borrowed).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))  # trust early weights less
        for name, value in own_state(model, self.borrowed).items():
            if value.dtype.is_floating_point:
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with averaged weights, in eval mode; afterwards it is as it was."""
        kept = {k: v.detach().clone() for k, v in own_state(model, self.borrowed).items()}
        modes = {module: module.training for module in model.modules()}
        model.eval().load_state_dict(self.values, strict=False)
        try:
            yield
        finally:
            model.load_state_dict(kept, strict=False)
            for module, mode in modes.items():
                module.training = mode


# ---------------------------------------------------------------- state


def save_state(path: Path, model, optimizers: list, average: Average, note: dict) -> None:
    """Write everything a resume needs, atomically: a kill leaves the old file or the new.

    Raises NotFinite, and keeps the old file, if a weight is no number any more.
    """
    own = own_state(model, average.borrowed)
    for name, value in own.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise NotFinite(f"{name} holds what is no number; lower the learning rate.")
    named = {f"model.{k}": v for k, v in own.items()}
    named |= {f"average.{k}": v for k, v in average.values.items()}
    for i, optimizer in enumerate(optimizers):
        named |= {f"optimizer{i}.{k}": v for k, v in optimizer.tensors().items()}
    text = json.dumps(note)
    tensors.write(named, path, {"note": text, "sha256": digest(named, text)})


def load_state(path: Path, model, optimizers: list, average: Average) -> dict:
    """Read a state written by `save_state` into its owners; returns its note.

    Raises ValueError if it was changed since, or belongs to other owners: nothing is loaded.
    """
    named, metadata = tensors.read(path)
    text = metadata["note"]
    if metadata["sha256"] != digest(named, text):
        raise ValueError(f"{path.name} is damaged: its tensors do not have the checksum it names")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in named.items():
        owner, rest = name.split(".", 1)
        parts.setdefault(owner, {})[rest] = value
    own = own_state(model, average.borrowed)
    wanted = {"model": own, "average": average.values}
    for owner, state in wanted.items():
        found = parts.get(owner, {})
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in found.items()}:
            raise ValueError(f"{path.name} holds another {owner}")
    kept = [parts.get(f"optimizer{i}", {}) for i in range(len(optimizers))]
    if unknown := parts.keys() - {*wanted, *(f"optimizer{i}" for i in range(len(optimizers)))}:
        raise ValueError(f"{path.name} holds the state of an unknown {unknown.pop()}")
    note = json.loads(text)
    if note.get("step") and not any(kept):
        raise ValueError(f"{path.name} lacks the state of its optimizers")
    for optimizer, state in zip(optimizers, kept, strict=True):
        optimizer.refuse(state)
    for optimizer, state in zip(optimizers, kept, strict=True):
        optimizer.load_tensors(state)
    model.load_state_dict(parts["model"], strict=False)
    for name, value in parts["average"].items():
        average.values[name].copy_(value)
    return note


def digest(named: dict[str, Tensor], text: str) -> str:
    """SHA-256 over a text and over tensors with their names, types and shapes."""
    sha256 = hashlib.sha256(text.encode())
    for name, value in sorted(named.items()):
        value = value.detach().cpu().contiguous()
        sha256.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha256.update(value.view(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()
