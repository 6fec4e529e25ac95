"""The engine that trains every shipped model; a recipe says what, the engine does the rest.

Progress, atomic state and bit-for-bit resume, `torchrun`, the average of the weights, a look
now and then, the card, fp16. The models are bricks, their recipes the modules beside this.
"""

import hashlib
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather, all_reduce
from torch.overrides import TorchFunctionMode

from utils import checkpoints, pictures, tensors, training
from utils import device as devices
from utils.bricks.vq_vae import Codebook
from utils.data import SPLITS, Pairs, emoji_hash, load_emoji
from utils.paths import CHECKPOINTS, RUNS

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

LOOKS = (0.01, 0.1, 0.3, 0.6, 1.0)  # the shares of a run after which it is looked at
POINTS = 60  # of the loss curve on a card
LICENCE = "MIT; trained on Emoji-4, see assets/emoji/README.md for the pictures' licences"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights of one shipped model, as printed on its card.

    A family of models is a subclass that adds its settings and says how a model is built,
    what each parameter gets, what is lowered and how the result is measured.
    """

    steps: int
    batch: int
    lr: float = 1e-3
    matrix_lr: float = 0.02
    weight_decay: float = 0.05
    warmup: int = 100
    schedule: str = "cosine"
    average: float = 0.998
    seed: int = 0

    def borrows(self) -> dict[str, str]:
        """{attribute of the model: shipped model that it holds there}; never trained."""
        return {}

    def helpers(self) -> dict[str, str]:
        """{name: shipped model that training or measuring needs, and the model does not}."""
        return {}

    def build(self, train: Pairs, others: dict[str, nn.Module]) -> nn.Module:
        """A new model in its first state; torch is seeded. others: what is borrowed, helpers.

        It may hold more than is shipped, such as a critic: see `shipped`.
        """
        raise NotImplementedError

    def shipped(self, learner: nn.Module) -> nn.Module:
        """The part of what was built that is shipped."""
        return learner

    def optimizers(self, learner: nn.Module) -> list[training.MuonAdamW]:
        """One for each loss; together they hold every trained parameter once."""
        raise NotImplementedError

    def losses(
        self, learner: nn.Module, train: Pairs, others: dict[str, nn.Module]
    ) -> list[Callable[[int], Tensor]]:
        """loss(step) for each optimizer, computed in turn; called once, before the first step."""
        raise NotImplementedError

    def after_step(self, learner: nn.Module) -> None:
        """What must be done after every step, such as a clamp."""

    def look(
        self, model: nn.Module, splits: dict[str, Pairs], others: dict[str, nn.Module]
    ) -> tuple[dict[str, float], Tensor | None]:
        """A few figures, and some pictures (N, 3, H, W), that show how far training is."""
        return {}, None

    def evaluate(
        self, model: nn.Module, splits: dict[str, Pairs], others: dict[str, nn.Module]
    ) -> dict[str, float]:
        """The figures of the card, measured on what is shipped."""
        raise NotImplementedError

    def notes(self) -> dict:
        """What else the card should say."""
        return {}

    def muon(self, module: nn.Module, roles: dict, betas=training.BETAS) -> training.MuonAdamW:
        """The optimizer of a module by the roles of its parameters, see `training.by_role`."""
        found = training.by_role(module, roles)
        rates = self.lr, self.matrix_lr, self.weight_decay
        return training.MuonAdamW(found, *rates, betas=betas)


# ---------------------------------------------------------------- processes


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(size: int) -> slice:
    """The part of a batch of `size` that this process computes."""
    rank, processes = world()
    return slice(rank * size // processes, (rank + 1) * size // processes)


def gathered(vectors: Tensor) -> Tensor:
    """The vectors of all processes in rank order, with gradients to each of them."""
    return torch.cat(all_gather(vectors)) if world()[1] > 1 else vectors


class AsOne(TorchFunctionMode):
    """Makes a loss see what it would in one process that has the whole batch of `size`.

    BatchNorm takes its statistics over all processes, and torch.autograd.grad, by which losses are
    weighed, gives the mean over them. What is drawn for the pictures here (which patches are
    dropped, times, noise) is drawn for those of all processes, and the own part is taken.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size, self.part = size, share(size)
        self.own = self.part.stop - self.part.start

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.batch_norm and kwargs.get("training"):
            return batch_norm(*args, **kwargs)
        if function is torch.autograd.grad:
            return tuple(all_reduce(grad) / world()[1] for grad in function(*args, **kwargs))
        if function in (torch.rand, torch.randn, torch.randint) and "generator" not in kwargs:
            bounds = len(args) - 1 if function is torch.randint else 0
            shape = args[bounds:]
            shape = shape[0] if isinstance(shape[0], tuple | list) else shape
            if shape and shape[0] == self.own:
                return function(*args[:bounds], (self.size, *shape[1:]), **kwargs)[self.part]
        if function in (Tensor.exponential_, torch.randint_like) and self.owns(args[0]):
            drawn = function(self.whole(args[0]), *args[1:], **kwargs)[self.part]
            return args[0].copy_(drawn) if function is Tensor.exponential_ else drawn
        if function is F.dropout and kwargs.get("training", True) and self.owns(args[0]):
            mask = function(torch.ones_like(self.whole(args[0])), *args[1:], **kwargs)
            return args[0] * mask[self.part]
        return function(*args, **kwargs)

    def owns(self, x: Tensor) -> bool:
        """Whether these rows are those of the pictures here."""
        return x.ndim > 0 and x.shape[0] == self.own

    def whole(self, x: Tensor) -> Tensor:
        """Room for as many rows as all processes have."""
        return x.new_empty(self.size, *x.shape[1:])


def batch_norm(x, running_mean, running_var, *, weight, bias, training, momentum, eps) -> Tensor:
    """F.batch_norm in training, over the batches (B, C, …) of all processes."""
    others = [0, *range(2, x.ndim)]
    shape = [1, -1] + [1] * (x.ndim - 2)
    count = world()[1] * x.numel() / x.shape[1]
    mean = all_reduce(x.float().sum(others)) / count
    centred = x - mean.view(shape)
    variance = all_reduce(centred.float().square().sum(others)) / count
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * count / (count - 1), momentum)
    scale = (variance + eps).rsqrt() * weight
    return (centred * scale.view(shape) + bias.view(shape)).to(x.dtype)


def gather_codebooks(learner: nn.Module) -> None:
    """Let every codebook move by the latents of all processes."""
    if world()[1] == 1:
        return
    for module in learner.modules():
        if isinstance(module, Codebook):
            module.update = lambda *own, move=module.update: move(*map(joined, own))


def joined(own: Tensor) -> Tensor:
    """The rows of all processes in rank order, without gradients."""
    parts = [torch.empty_like(own) for _ in range(world()[1])]
    dist.all_gather(parts, own.contiguous())
    return torch.cat(parts)


def as_one(loss: Callable[[int], Tensor], size: int) -> Callable[[int], Tensor]:
    """The loss of a share of a batch, such that several processes train as one."""

    def shared(step: int) -> Tensor:
        with AsOne(size):
            return loss(step)

    return shared if world()[1] > 1 else loss


def average_gradients(learner: nn.Module) -> None:
    """The mean of every gradient over the processes; what is frozen or unused has none."""
    processes = world()[1]
    if processes > 1:
        for parameter in learner.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= processes


def after_step(recipe: Recipe, learner: nn.Module) -> None:
    """The recipe's own, then the same buffers (norms, codebooks) in every process."""
    recipe.after_step(learner)
    if world()[1] > 1:
        for buffer in learner.buffers():
            dist.broadcast(buffer, 0)


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{world()[1]} × {torch.cuda.get_device_name(device)}"
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


# ---------------------------------------------------------------- data that is encoded once


def cached(
    what: str, made_of: dict, make: Callable[[], dict[str, Tensor]], runs: Path = RUNS
) -> dict[str, Tensor]:
    """Tensors that are computed once and kept in `runs/cache`, e.g. a data set's codes.

    made_of: everything that decides them, as JSON takes it (hashes of weights and data,
    settings). Anything else in it makes another file.
    """
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    path = runs / "cache" / f"{what}-{key}.safetensors"
    if path.is_file():
        try:
            return tensors.read(path)[0]
        except tensors.CheckpointError:
            path.unlink()  # it can be computed again
    found = make()
    if not world()[0]:
        tensors.write(found, path, {"made_of": json.dumps(made_of, sort_keys=True)})
    return found


# ---------------------------------------------------------------- the run


def is_note(note: dict, steps: int) -> bool:
    """Whether every field of a state's note is what a run of so many steps can have written."""

    def number(value) -> bool:
        return type(value) in (int, float) and math.isfinite(value)

    def figures(value) -> bool:
        return all(map(number, value.values()))

    return (
        type(note["step"]) is int
        and 0 < note["step"] <= steps
        and number(note["seconds"])
        and note["seconds"] >= 0
        and number(note["sum"])
        and type(note["threads"]) is int
        and 0 < note["threads"] <= 1024
        and all(type(step) is int and number(loss) for step, loss in note["losses"])
        and all(step.isdecimal() and figures(found) for step, found in note["looks"].items())
    )


def resume(state: Path, arguments: dict, learner, optimizers: list, average) -> dict:
    """Load a state if it is one of this recipe and data; returns its note, or ValueError."""
    remedy = f"delete {state.parent} to start anew"
    try:
        note = json.loads(tensors.read(state)[1]["note"])
        if (note["recipe"], note["data"]) == (arguments, emoji_hash()):
            if not is_note(note, arguments["steps"]):
                raise ValueError
            return training.load_state(state, learner, optimizers, average)
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError):
        raise ValueError(f"{state.name} is not a whole state of this model; {remedy}.") from None
    raise ValueError(f"{state.name} belongs to another recipe or data set; {remedy}.")


def pretrain(
    name: str,
    recipe: Recipe,
    folder: Path = CHECKPOINTS,
    runs: Path = RUNS,
    save_every: float = 60.0,
) -> dict:
    """Train a recipe to its end, resuming if a state is there; writes weights and card.

    Returns the card; {} in a process that is not the first. Raises ValueError in one sentence
    for a state that does not belong here, when another run holds it or nothing can be written,
    and when the loss is no number any more.
    """
    first = not world()[0]
    held = hold(name, folder, runs) if first else None
    try:
        return trained(name, recipe, folder, runs, save_every)
    finally:
        if held:
            held.close()  # and with it the lock


def hold(name: str, folder: Path, runs: Path):
    """The lock of a run, and the certainty that both folders take files; before any work.

    The system opens the lock when the process ends, however it does.
    """
    lock = runs / name / "lock"
    try:
        for place in (folder, lock.parent):
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                pass
        held = lock.open("a")
    except OSError as error:
        raise ValueError(
            f"{name}: {place} cannot be written ({error.strerror}); choose another folder."
        ) from None
    if fcntl:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held.close()
            raise ValueError(
                f"{name}: another run holds {lock}; wait for its end, or stop it."
            ) from None
    # what runs that were killed left half written
    for place, pattern in ((lock.parent, "*.tmp"), (folder, f"{name}.*.tmp")):
        for orphan in place.glob(pattern):
            orphan.unlink(missing_ok=True)
    return held


def trained(name: str, recipe: Recipe, folder: Path, runs: Path, save_every: float) -> dict:
    """`pretrain`, when nobody else does."""
    device, first = devices.pick(), not world()[0]
    splits = {split: load_emoji(split) for split in SPLITS}
    borrows, helpers = recipe.borrows(), recipe.helpers()
    others = {
        key: checkpoints.load(other, device, checkpoints.home(other, folder)).requires_grad_(False)
        for key, other in (borrows | helpers).items()
    }
    devices.seed(recipe.seed)
    learner = recipe.build(splits["train"], others).to(device)
    optimizers = recipe.optimizers(learner)
    average = training.Average(learner, recipe.average, [*others.values()])
    arguments = json.loads(json.dumps(asdict(recipe)))
    state = runs / name / "state.safetensors"
    note = {"step": 0, "seconds": 0.0, "recipe": arguments, "data": emoji_hash(), "losses": []}
    note |= {"looks": {}, "sum": 0.0, "threads": devices.share_cores()}
    if state.exists():
        note = resume(state, arguments, learner, optimizers, average)
        if first:
            report(f"{name}: resuming at step {note['step']} of {recipe.steps}\n")
    # one number from the first step to the last: another rounds otherwise
    chosen = "OMP_NUM_THREADS" in os.environ
    devices.keep_threads(torch.get_num_threads() if chosen else note["threads"])
    start, seconds, began = note["step"], note["seconds"], time.monotonic()
    looks = {max(1, round(share * recipe.steps)) for share in LOOKS}
    block = -(-recipe.steps // POINTS)  # steps whose mean loss is a point of the curve
    saved = began
    set_training(learner, others)
    gather_codebooks(learner)
    steps = training.run(
        optimizers,
        [as_one(x, recipe.batch) for x in recipe.losses(learner, splits["train"], others)],
        recipe.steps,
        seed=recipe.seed,
        start=start,
        warmup=recipe.warmup,
        schedule=training.SCHEDULES[recipe.schedule],
        before_step=lambda: average_gradients(learner),
        after_step=lambda: after_step(recipe, learner),
    )
    try:
        for step, loss in steps:
            average.update(learner, step)
            if not first:
                continue
            done, now = step + 1, time.monotonic()
            note["sum"] += loss
            if done % block == 0 or done == recipe.steps:
                mean = note["sum"] / (done % block or block)
                note["losses"].append([done, round(mean, 4)])
                note["sum"] = 0.0
            left = (recipe.steps - done) * (now - began) / (done - start)
            shown = f"step {done}/{recipe.steps}, loss {loss:.3f}, {left / 60:.1f} min left "
            report(f"\r{name}: {shown}")
            if done in looks:
                with average.applied(learner):
                    figures, seen = recipe.look(recipe.shipped(learner), splits, others)
                note["looks"][str(done)] = figures
                if seen is not None:
                    keep_pictures(seen, runs / name / f"look-{done}.png")
            if now - saved > save_every or done in looks:
                note |= {"step": done, "seconds": seconds + time.monotonic() - began}
                training.save_state(state, learner, optimizers, average, note)
                saved = time.monotonic()
    except training.NotFinite as error:
        kept = f"the state of step {note['step']} is kept" if state.exists() else "no state is kept"
        raise ValueError(f"{name}: {str(error).rstrip('.')} ({kept}).") from None
    if not first:
        return {}
    card = {
        "recipe": name,
        "arguments": arguments,
        "steps": recipe.steps,
        "minutes": round(note["seconds"] / 60, 1),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "data": {"name": "Emoji-4", "split": "train", "sha256": emoji_hash()},
        **recipe.notes(),
    }
    if helpers:
        card["helpers"] = checkpoints.named(helpers, folder)
    # what is evaluated is what is shipped: averaged weights, rounded to fp16
    average.values = {
        k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in average.values.items()
    }
    with average.applied(learner):
        model = recipe.shipped(learner)
        card["metrics"] = recipe.evaluate(model, splits, others)
        if any(note["looks"].values()):
            card["looks"] = note["looks"]
            card["losses"] = note["losses"]
        card["licence"] = LICENCE
        checkpoints.save(model, name, card, folder, borrows)
    show_looks(runs / name, folder / f"{name}.webp")
    return card


def set_training(learner: nn.Module, others: dict[str, nn.Module]) -> None:
    """Everything trains but what is borrowed: its dropout is off and its norms stand still."""
    learner.train()
    for module in others.values():
        module.eval()


def keep_pictures(seen: Tensor, path: Path) -> None:
    """Write pictures (N, 3, H, W) side by side, so that a run can be looked at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = seen.detach().float().cpu().clamp(0, 1).permute(1, 2, 0, 3).flatten(2)  # (3, H, N·W)
    tensors.put(path, lambda temporary: pictures.to_pil(row).save(temporary, "PNG"))


def show_looks(run: Path, path: Path) -> None:
    """Write the pictures of a run's looks, one row each, the first on top, as one WebP."""
    found = sorted(run.glob("look-*.png"), key=lambda p: int(p.stem.split("-")[1]))
    if found:
        rows = torch.cat([pictures.read(look) for look in found], 1)  # (3, looks·H, N·W)
        tensors.put(path, lambda temporary: pictures.to_pil(rows).save(temporary, "WEBP"))


def report(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
