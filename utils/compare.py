"""How two values differ, in words: shape, dtype, axis, sign, scale, order or place.

Plumbing of the practice notebooks (utils/practice), which hold an answer against a brick.
"""

import itertools
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-4  # of the largest number there is


def equal(seen, right, tolerance: float = TOLERANCE) -> bool:
    """Whether two values are the same: kind, shape, dtype, device, and numbers to a tolerance."""
    if isinstance(right, Tensor):
        same = isinstance(seen, Tensor) and seen.shape == right.shape
        same = same and (seen.dtype, seen.device) == (right.dtype, right.device)
        return same and _near(seen, right, tolerance)
    if isinstance(right, list | tuple):
        same = type(seen) is type(right) and len(seen) == len(right)
        return same and all(map(equal, seen, right, itertools.repeat(tolerance)))
    if isinstance(right, dict):
        same = isinstance(seen, dict) and list(seen) == list(right)
        return same and all(equal(seen[key], right[key], tolerance) for key in right)
    if isinstance(right, float):
        number = isinstance(seen, numbers.Real) and not isinstance(seen, bool)
        return number and _near(torch.tensor(float(seen)), torch.tensor(right), tolerance)
    return type(seen) is type(right) and seen == right


def difference(seen, right, tolerance: float = TOLERANCE) -> str | None:
    """What is wrong with `seen`, as a clause; None if the two are equal."""
    if equal(seen, right, tolerance):
        return None
    if seen is None:
        return "nothing comes back; is a `return` missing?"
    if isinstance(right, Tensor):
        if not isinstance(seen, Tensor):
            return f"{_kind(seen)} comes back; it is a tensor of shape {tuple(right.shape)}"
        return _tensors(seen, right, tolerance)
    if isinstance(right, list | tuple):
        return _sequences(seen, right, tolerance)
    if isinstance(right, float) and not isinstance(seen, numbers.Real):
        more = ", `.item()` makes it one" if isinstance(seen, Tensor) else ""
        return f"{_kind(seen)} comes back; it is a float{more}"
    if isinstance(right, float):
        return f"{seen:.4g} comes back; it is {right:.4g}{_ratio(float(seen), right)}"
    if type(seen) is not type(right):
        return f"{_kind(seen)} comes back; it is {_kind(right)}"
    return f"{seen!r:.60} comes back; it is {right!r:.60}"


def _kind(value) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _near(seen: Tensor, right: Tensor, tolerance: float) -> bool:
    """Whether the numbers agree; whole numbers and truth values must do so exactly."""
    if not seen.numel():
        return True
    if not right.is_floating_point():
        return torch.equal(seen, right)
    seen, right = seen.detach().double(), right.detach().double()
    finite = right[right.isfinite()].abs()
    allowed = tolerance * float(finite.max()) + 1e-6 if len(finite) else 0.0
    return torch.allclose(seen, right, rtol=0, atol=allowed, equal_nan=True)


def _sequences(seen, right: Sequence, tolerance: float) -> str:
    if type(seen) is not type(right):
        return f"{_kind(seen)} comes back; it is {_kind(right)}"
    pairs = enumerate(zip(seen, right, strict=False))
    for place, (a, b) in pairs:
        if found := difference(a, b, tolerance):
            return f"at place {place} {found}"
    return f"{len(seen)} items come back; it is {len(right)}"


def _tensors(seen: Tensor, right: Tensor, tolerance: float) -> str:
    if seen.shape != right.shape:
        return f"the shape is {tuple(seen.shape)}, not {tuple(right.shape)}" + _why(
            seen, right, tolerance
        )
    if seen.dtype != right.dtype:
        names = (str(x.dtype).removeprefix("torch.") for x in (seen, right))
        return "the dtype is {}, not {}".format(*names)
    if seen.device != right.device:
        return f"the numbers lie on {seen.device}, not on {right.device}"
    seen, right = (x.detach().double() for x in (seen, right))
    strange = ~seen.isfinite() & right.isfinite()
    if strange.any():
        return f"{int(strange.sum())} of {seen.numel()} numbers are nan or infinite"
    for told in (_whole, _axes, _rows):
        if found := told(seen, right, tolerance):
            return found
    return _where(seen, right, tolerance)


def _why(seen: Tensor, right: Tensor, tolerance: float) -> str:
    """What may have led to another shape, with a colon in front."""
    a, b = tuple(seen.shape), tuple(right.shape)
    if [n for n in a if n != 1] == [n for n in b if n != 1]:
        return f": an axis of length 1 is {'missing' if len(a) < len(b) else 'too many'}"
    if sorted(a) == sorted(b):
        moved = sum(x != y for x, y in zip(a, b, strict=True))
        return ": two axes are swapped" if moved == 2 else ": the axes stand in another order"
    if not seen.is_floating_point() or not right.is_floating_point():
        return ""
    for whole, part, name in ((seen, right, "missing"), (right, seen, "one too many")):
        for axis in range(whole.ndim):
            for reduction in ("mean", "sum"):
                less = getattr(whole.detach(), reduction)(axis)
                if equal(less, part.detach(), tolerance):
                    return f": a {reduction} over axis {axis} is {name}"
    if b == () and equal(seen.detach().mean(), right.detach(), tolerance):
        return ": a mean over all of them is missing"
    return ""


def _whole(seen: Tensor, right: Tensor, tolerance: float) -> str | None:
    """One thing that is wrong with all numbers: sign, scale, shift."""
    if seen.numel() == 1:
        a, b = seen.item(), right.item()
        return f"{a:.4g} comes back; it is {b:.4g}{_ratio(a, b)}"
    if not (seen.isfinite().all() and right.isfinite().all()):
        return None
    if not seen.any():
        return "every number is 0"
    if _near(-seen, right, tolerance):
        return "the sign is turned"
    factor = float((seen * right).sum() / right.square().sum())
    told = abs(factor) > tolerance and abs(factor - 1) > 0.01  # else it would say "1 times"
    if told and _near(seen / factor, right, tolerance):
        return f"every number is {factor:.3g} times what it should be"
    shift = float((seen - right).mean())
    if _near(seen - shift, right, tolerance):
        return f"every number is {abs(shift):.3g} too {'large' if shift > 0 else 'small'}"
    return None


def _ratio(seen: float, right: float) -> str:
    """A whole factor between two numbers, if that is what parts them."""
    if not seen or not right:
        return ""
    factor = max(seen / right, right / seen, key=abs)
    if abs(factor + 1) < 1e-3:
        return ": the sign is turned"
    if 1.5 < factor < 1e4 and abs(factor - round(factor)) < 1e-3 * factor:
        return f": {round(factor)} times too {'large' if abs(seen) > abs(right) else 'small'}"
    return ""


def _axes(seen: Tensor, right: Tensor, tolerance: float) -> str | None:
    """The right numbers at other places along whole axes."""
    axes = range(seen.ndim)
    for a, b in itertools.combinations(axes, 2):
        if seen.shape[a] == seen.shape[b] and _near(seen.transpose(a, b), right, tolerance):
            return f"axes {a} and {b} are swapped"
    for axis in axes:
        if _near(seen.flip(axis), right, tolerance):
            return f"axis {axis} runs backwards"
        for step in (1, -1):
            if _near(seen.roll(step, axis), right, tolerance):
                return f"the numbers are shifted by one along axis {axis}"
    return None


def _rows(seen: Tensor, right: Tensor, tolerance: float) -> str | None:
    """Rows of the right direction, in another order, or right in part."""
    if seen.ndim < 2 or not 1 < len(seen) <= 512:
        return None
    if seen.isfinite().all() and right.isfinite().all():
        a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (seen, right))
        if _near(a, b, tolerance):
            unit = _near(b, right, tolerance)
            more = "their length is not 1" if unit else "their lengths differ"
            return f"the vectors point the right way, but {more}"
    a, b = seen.flatten(1), right.flatten(1)
    order = [next((j for j, y in enumerate(b) if _near(x, y, tolerance)), None) for x in a]
    if sorted(j for j in order if j is not None) == list(range(len(b))):
        return "the rows are right, but in another order"
    wrong = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if not _near(x, y, tolerance)]
    if len(wrong) < len(a):
        more = f", {_where(seen[wrong[0]], right[wrong[0]], tolerance)}"
        some = f"row {wrong[0]} is" if len(wrong) == 1 else f"{len(wrong)} of {len(a)} rows are"
        first = "" if len(wrong) == 1 else f" (the first is row {wrong[0]})"
        return f"{some} wrong{first}{more}"
    return None


def _where(seen: Tensor, right: Tensor, tolerance: float) -> str:
    """The place of the largest difference, with both numbers."""
    # where both are the same infinity, their difference is nan
    gap = (seen - right).abs().nan_to_num(0.0, posinf=torch.inf)
    place = [int(i) for i in torch.unravel_index(gap.argmax(), gap.shape)]
    a, b = (f"{x[tuple(place)].item():.4g}" for x in (seen, right))
    return f"at {place} stands {a}; it is {b}"
