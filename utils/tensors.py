"""Tensors on disk: read and write safetensors files, and fill a model, or say why not.

A leaf, so that bricks and doors may use it; `checkpoints` knows the shipped models by name.
No pickle is read or written anywhere.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # refused unread


class CheckpointError(ValueError):
    """Weights that cannot be used; the message names the file, the cause and the remedy."""


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically: a kill leaves the old file or the new.

    Raises CheckpointError, and leaves the old file, when the disk does not take it.
    """
    # cloned, because tensors that share memory are refused
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    put(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """As safetensors' own, whose file its owner alone may read, and which leaves another hidden
    one behind when it is killed."""
    path.write_bytes(save(tensors, metadata))


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically, as `write` does."""
    put(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def put(path: Path, fill: Callable[[Path], object]) -> None:
    """Replace a file by what `fill` writes to the path it is given, all or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        cause = getattr(error, "strerror", None) or "the disk refuses it"
        raise CheckpointError(
            f"{path.name} cannot be written ({cause}); make room or choose another folder."
        ) from None


def refuse_pickle(name: str) -> None:
    """Raise CheckpointError when a file's or repository's name ends as pickled weights do."""
    if Path(name).suffix in PICKLED:
        raise CheckpointError(
            f"{name} is pickled, and unpickling can run any code; "
            "use the model's .safetensors file."
        )


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a safetensors file. Raises CheckpointError."""
    path = Path(path)
    refuse_pickle(path.name)
    if not path.is_file():
        for neighbour in sorted(path.parent.glob("*")):
            refuse_pickle(neighbour.name)
        raise CheckpointError(f"{path.name} is missing in {path.parent.name}/; restore the file.")
    try:
        path.open("rb").close()  # what may not be read is told as such
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except PermissionError:
        raise CheckpointError(
            f"{path.name} may not be read; give yourself the right to."
        ) from None
    except (SafetensorError, OSError, ValueError):
        raise CheckpointError(
            f"{path.name} is not a whole safetensors file; fetch it again."
        ) from None


def own_state(model: nn.Module, borrowed: Sequence[nn.Module] = ()) -> dict[str, Tensor]:
    """A model's state_dict without that of the modules it borrows."""
    held = {id(module) for module in borrowed}
    prefixes = tuple(f"{name}." for name, m in model.named_modules() if id(m) in held)
    return {k: v for k, v in model.state_dict().items() if not k.startswith(prefixes)}


class Undrawn(TorchFunctionMode):
    """Nothing is drawn into new weights: on the meta device that would load a second of code."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        drawn = function.__name__ in ("normal_", "uniform_", "trunc_normal_")
        if drawn or getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def outline(build: Callable[[], nn.Module], tensors: int) -> nn.Module:
    """What `build` makes, with shapes and without memory: a config may say anything.

    Raises ValueError when it has more parameters than a file of `tensors` tensors can fill, as
    soon as that is clear, or heads that are no number of heads.
    """
    count = itertools.count(1)

    def limit(*_) -> None:
        if next(count) > 4 * tensors + 1000:  # a bias that is not there counts, too
            raise ValueError("there are more parameters than tensors")

    watch = register_module_parameter_registration_hook(limit)
    try:
        with torch.device("meta"), Undrawn():
            model = build()
    finally:
        watch.remove()
    for module in model.modules():
        heads = getattr(module, "heads", 1)
        if type(heads) is not int or heads < 1:
            raise ValueError(f"{heads} is no number of heads")
    return model


def fill(
    model: nn.Module, tensors: dict[str, Tensor], name: str, borrowed: Sequence[nn.Module] = ()
) -> None:
    """Load tensors into a model, or say in one sentence which one does not fit.

    borrowed: modules of the model that `tensors` leave out.
    """
    compare(model, tensors, name, borrowed)
    wanted = own_state(model, borrowed)
    loaded = {k: v.to(wanted[k].dtype) for k, v in tensors.items()}
    for key, value in loaded.items():
        if not value.isfinite().all():
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{name}: {key} holds what is no number in {kind}; "
                "use the weights that belong to this model."
            )
    model.load_state_dict(loaded, strict=False)  # strict but for what is borrowed, see above


def compare(
    model: nn.Module, tensors: dict[str, Tensor], name: str, borrowed: Sequence[nn.Module] = ()
) -> None:
    """Raise CheckpointError unless these are just the tensors of a model, by name and shape."""
    wanted = own_state(model, borrowed)
    remedy = "use the weights that belong to this model"
    for key in wanted:
        if key not in tensors:
            raise CheckpointError(f"{name} lacks {key!r}; {remedy}.")
    for key, value in tensors.items():
        if key not in wanted:
            raise CheckpointError(f"{name} has an unknown {key!r}; {remedy}.")
        if value.shape != wanted[key].shape:
            seen, need = tuple(value.shape), tuple(wanted[key].shape)
            raise CheckpointError(
                f"{name}: {key} has shape {seen}, the model needs {need}; {remedy}."
            )
        if value.is_floating_point() != wanted[key].is_floating_point():
            raise CheckpointError(f"{name}: {key} holds {value.dtype}; {remedy}.")
