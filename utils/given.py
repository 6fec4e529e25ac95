"""What is typed where a brick wants a tensor or a list: turned into one, or one sentence why not.

`@takes(scores="(N, C)", labels="labels")` above a function says what it wants. Then a list, an
array, a generator or a picture of PIL does as well, once, at the door.
"""

import functools
import inspect
import itertools
import math
import operator
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.pictures import read

MOST = 1_000_000  # entries of a list; a generator may have no end


def takes(**kinds: str) -> Callable:
    """Turn arguments into what they are meant to be, or raise a ValueError of one sentence.

    kinds: for each argument one of KINDS, or a shape such as "(N, d)" for floats and
    "(N,) int64" for whole numbers; a letter stands for the same number in all of them.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        forms = {name: KINDS.get(kind) or shaped(kind) for name, kind in kinds.items()}

        @functools.wraps(function)
        def door(*arguments, **named):
            bound, sizes = signature.bind(*arguments, **named), {}
            for name, form in forms.items():
                if name in bound.arguments:
                    bound.arguments[name] = form(name, bound.arguments[name], sizes)
            return function(*bound.args, **bound.kwargs)

        return door

    return decorate


def seen(value) -> str:
    """What was given, in short."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype} {tuple(value.shape)}"
    return "None" if value is None else f"of type {type(value).__name__}"


def wrong(name: str, wanted: str, found: str) -> ValueError:
    are, these = ("are", "these are") if name.endswith("s") else ("is", "this is")
    return ValueError(f"{name} {are} {wanted}; {these} {found}")


def is_truth(value) -> bool:
    """Whether this is True or False."""
    return isinstance(value, bool | np.bool_)


def several(value) -> list | None:
    """The entries of a list, a tuple, a generator …; None where there is no order, or no end."""
    if isinstance(value, str | bytes | set | frozenset | Image.Image | Tensor):
        return None
    if not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        return None
    entries = list(itertools.islice(value, MOST + 1))
    return entries if len(entries) <= MOST else None


# ---------------------------------------------------------------- tensors


def tensor(value) -> Tensor | None:
    """Numbers in any form as a tensor; None for what holds none. Floats of others are float32."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool | int | float | np.number | np.ndarray):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            return None
        return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))
    parts = several(value)
    if parts is None:
        return None
    if all(isinstance(part, bool | int | float | np.number) for part in parts):
        return tensor(np.array(parts if parts else np.zeros(0)))
    parts = [tensor(part) for part in parts]
    if any(part is None or part.shape != parts[0].shape for part in parts):
        return None
    return torch.stack(parts)


def shaped(kind: str) -> Callable:
    """The form of numbers of a shape; "(..., d)" leaves open how many axes come first."""
    shape, _, dtype = kind.partition(") ")
    axes = [axis.strip() for axis in shape.strip("()").split(",") if axis.strip()]
    wanted = f"{dtype or 'float'} {shape.strip('()').join('()')}"

    def form(name: str, value, sizes: dict) -> Tensor:
        found = tensor(value)
        if found is None:
            raise wrong(name, wanted, seen(value))
        floats = found.is_floating_point()
        tail, open_ = axes[1:] if "..." in axes else axes, "..." in axes
        fits = found.ndim >= len(tail) if open_ else found.ndim == len(tail)
        if not fits or found.is_complex() or (dtype and (floats or found.dtype == torch.bool)):
            raise wrong(name, wanted, seen(found))
        for axis, size in zip(tail, found.shape[found.ndim - len(tail) :], strict=True):
            first, other = sizes.setdefault(axis, (size, name))
            if other != name and first != size:
                raise wrong(name, wanted, f"{seen(found)}, but {axis} is {first} in {other}")
        if floats and not found.requires_grad and found.isnan().any():
            raise wrong(name, wanted, f"{seen(found)} with values that are no numbers")
        if dtype:
            return found.long()
        return found if floats else found.float()

    return form


def pictures(name: str, value, sizes: dict, low=0.0, high=1.0, whole=False) -> Tensor:
    """Pictures as float32 (B, 3, H, W); arrays of uint8 are read as (B, H, W, 3) or (H, W, 3).

    low, high: between which their values lie, but for a hundredth; whole: whether a tensor of
    uint8 may pass as well.
    """
    wanted = "float (B, 3, H, W) in [0, 1]"
    found = batch(name, value)
    if found is None:
        raise wrong(name, wanted, seen(value))
    fits = found.ndim == 4 and found.shape[1] == 3 and 0 not in found.shape
    if whole and fits and found.dtype == torch.uint8:
        return found
    if not fits or not found.is_floating_point():
        raise wrong(name, wanted, seen(found))
    least, most = torch.stack(found.detach().aminmax()).tolist()
    if not (math.isfinite(least) and math.isfinite(most)):
        raise wrong(name, wanted, f"{seen(found)} with values that are no numbers")
    if least < low - 0.01 or most > high + 0.01:
        raise wrong(name, wanted, f"{least:.3g} to {most:.3g}: scale them to [0, 1]")
    return found.float()


def batch(name: str, value) -> Tensor | None:
    """Pictures in any form as one tensor, not checked."""
    if isinstance(value, Image.Image):
        return read(value, name).unsqueeze(0)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.shape[-1:] == (3,):
        value = torch.from_numpy(value.copy()).movedim(-1, -3) / 255
        return value if value.ndim == 4 else value.unsqueeze(0)
    if isinstance(value, Tensor | np.ndarray):
        return tensor(value)
    parts = several(value)
    parts = [None if isinstance(part, int | float) else batch(name, part) for part in parts or []]
    if not parts or any(part is None for part in parts):
        return None
    parts = [part.unsqueeze(0) if part.ndim == 3 else part for part in parts]
    if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        two = {"×".join(map(str, part.shape[1:])) for part in parts}
        raise ValueError(f"{name} differ in size ({', '.join(sorted(two)[:2])}); give them singly")
    return torch.cat(parts)


def with_noise(name: str, value, sizes: dict) -> Tensor:
    """The same where noise may have been added; values of 0 … 255 are told apart none the less."""
    found = pictures(name, value, sizes, -10, 10)
    if found.detach().amin() >= 0:
        return pictures(name, found, sizes, 0, 2)
    return found


def a_picture(name: str, value, sizes: dict):
    """None, or pictures of other libraries as a tensor; what else it is, others judge."""
    found = None if isinstance(value, Tensor) else batch(name, value)
    return value if found is None else found


# ---------------------------------------------------------------- texts and numbers

EXAMPLES = {"labels": "names, e.g. ['cat', 'dog']"}


def texts(name: str, value, sizes: dict, blank: bool = True) -> list[str]:
    """A list of strings; blank: whether one may be empty."""
    found = several(value)
    if found is None or not all(isinstance(text, str) for text in found):
        example = EXAMPLES.get(name, "strings, e.g. ['a picture of a cat']")
        raise ValueError(f"{name} are a list of {example}")
    if not blank and not all(text.strip() for text in found):
        raise ValueError(f"one of the {name} is empty; write something for it")
    return [str(text) for text in found]


def labels(name: str, value, sizes: dict) -> list[str]:
    found = texts(name, value, sizes, blank=False)
    if not found:
        raise ValueError(f"there are no {name}; {name} are a list of {EXAMPLES['labels']}")
    return found


def text(name: str, value, sizes: dict) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {seen(value)}; give one string")
    return str(value)


def number(name: str, value, sizes: dict, nan: bool = True) -> float:
    """One number that is not endless; nan: whether the function itself refuses a nan."""
    found = None if isinstance(value, bool) else tensor(value)
    if found is None or found.numel() != 1 or found.isinf() or (found.isnan() and not nan):
        raise ValueError(f"{name} is {value!r:.40}; give one number")
    return value if isinstance(value, int | float) else found.item()


def whole(name: str, value, sizes: dict | None = None, least: float = -math.inf) -> int:
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError):
        found = None
    if found is None or found < least:
        rest = "" if least == -math.inf else f" from {least} on"
        raise ValueError(f"{name} is {value!r:.40}; take a whole number{rest}")
    return found


def seeds(name: str, value, sizes: dict) -> int | list[int]:
    """One whole number, or several."""
    entries = value.tolist() if isinstance(value, Tensor) and value.ndim else several(value)
    return whole(name, value) if entries is None else [whole(name, entry) for entry in entries]


KINDS: dict[str, Callable] = {
    "pictures": pictures,
    "pictures or uint8": functools.partial(pictures, whole=True),
    "pictures with noise": with_noise,
    "a picture": a_picture,
    "texts": texts,
    "labels": labels,
    "text": text,
    "number": number,
    "finite": functools.partial(number, nan=False),
    "whole": whole,
    "from 0": functools.partial(whole, least=0),
    "from 1": functools.partial(whole, least=1),
    "seeds": seeds,
}
