"""Immediate answers to exercises: "○ not tried yet", "✗ what is wrong" or "✓".

One module a lesson holds that lesson's checks. A check is a function decorated with
`@exercise("name")` that takes the learner's function, calls it, reads what came back with
`number`, `whole`, `several` or `tensor`, and calls `expect` or `judge` (or raises Wrong);
called from a notebook it prints one line and never raises.

Every call of the learner's function is looked at: it must return something, and it must not
change what it is given. Where None is a right answer, a check calls `answer.__wrapped__`.
"""

import dis
import functools
import numbers
import sys
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class NotTried(Exception):
    """The answer has not been begun."""


class Wrong(Exception):
    """The answer is not right; the message says what was seen and what to look at."""


def expect(condition, message: str) -> None:
    """Raise Wrong(message) unless the condition holds."""
    if not bool(condition):
        raise Wrong(message)


def close(a, b, tolerance: float = 1e-4) -> bool:
    """Whether two tensors or numbers agree in shape and value."""
    a, b = torch.as_tensor(a).detach().double(), torch.as_tensor(b).detach().double()
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))


def judge(answer, right, wrong: dict, otherwise: str, tolerance: float = 1e-4) -> None:
    """Raise Wrong unless the answer is right, with the hint of the mistake that it equals."""
    if close(answer, right, tolerance):
        return
    for hint, value in wrong.items():
        expect(not close(answer, value, tolerance), hint)
    raise Wrong(otherwise)


def draws(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers, the same for one seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def said(value) -> str:
    """What came back, in words: its type and, if it has one, its shape."""
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"a {type(value).__name__}{shape}"


def number(value, what: str = "return one number") -> float:
    """One number, whether Python's, NumPy's or a tensor with one entry."""
    if isinstance(value, Tensor | np.ndarray) and value.shape in ((), (1,)):
        value = value.item()
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    expect(real, f"{what}; you returned {said(value)}")
    return float(value)


def whole(value, what: str = "return one whole number") -> int:
    """One whole number, however it is held; 8.0 is one."""
    found = number(value, what)
    expect(found.is_integer(), f"{what}; you returned {found:g}")
    return int(found)


def several(values, count: int, what: str, one: Callable = number) -> list:
    """`count` numbers out of a tuple, a list, a tensor or an array."""
    row = isinstance(values, tuple | list) or getattr(values, "ndim", 0) == 1
    expect(row and len(values) == count, f"{what}; you returned {said(values)}")
    return [one(value, what) for value in values]


def tensor(value, shape: Iterable[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor, of this shape and type if they are given."""
    expect(isinstance(value, Tensor), f"return a tensor, not a {type(value).__name__}")
    if shape is not None:
        found, wanted = tuple(value.shape), tuple(shape)
        expect(found == wanted, f"the shape is {found}, not {wanted}")
    expect(dtype in (None, value.dtype), f"the type is {value.dtype}, not {dtype}")
    return value


class Calls(TorchFunctionMode):
    """What a learner's function calls on its way: names of torch's and of Python's functions."""

    def __init__(self, answer: Callable, *given):
        super().__init__()
        self.torch, self.python = set(), set()
        before = sys.getprofile()
        sys.setprofile(lambda frame, event, arg: self.python.add(frame.f_code.co_name))
        try:
            with self:
                answer.__wrapped__(*given)
        finally:
            sys.setprofile(before)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.torch.add(function.__name__)
        return function(*args, **(kwargs or {}))


def is_stub(answer) -> bool:
    """Whether an answer is missing, or a function whose body is `...` and no more."""
    code = getattr(answer, "__code__", None)
    if code is None:
        return answer is None or answer is Ellipsis
    steps = [step for step in dis.get_instructions(code) if step.opname != "RESUME"]
    plain = {step.opname for step in steps} <= {"LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "NOP"}
    return plain and all(step.argval is None for step in steps)


def copied(value):
    """A copy to compare with later; what is no tensor, list or dict stands for itself."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list | tuple):
        return [copied(part) for part in value]
    return dict(value) if isinstance(value, dict) else value


def unchanged(value, copy) -> bool:
    if isinstance(value, Tensor):
        return value.shape == copy.shape and torch.equal(value, copy)
    if isinstance(value, list | tuple):
        return len(value) == len(copy) and all(map(unchanged, value, copy))
    return value is copy or value == copy


def watched(function):
    """The learner's function; returning nothing or changing what is given is Wrong."""

    @functools.wraps(function)
    def run(*given):
        before = copied(given)
        value = function(*given)
        expect(value is not None and value is not ..., f"it returned {value}: is `return` missing?")
        expect(unchanged(given, before), "you changed what you were given; make a new one")
        return value

    return run


def verdict(check: Callable, *answers) -> tuple[str, str]:
    """Run a check on answers; returns the mark (○, ✗ or ✓) and the message."""
    if any(map(is_stub, answers)):
        return "○", "not tried yet"
    try:
        message = check(*map(watched, answers))
    except (NotTried, NotImplementedError):
        return "○", "not tried yet"
    except Wrong as wrong:
        return "✗", str(wrong)
    except Exception as error:  # the learner's code may raise anything
        first = (str(error).splitlines() or [""])[0][:200]
        return "✗", f"your code raised {type(error).__name__}: {first}"
    return "✓", message or "right"


def exercise(name: str):
    """Make a check printable: `check_x(answer)` prints `✓ name: message` and returns None."""

    def decorate(check):
        @functools.wraps(check)
        def run(*answers):
            mark, message = verdict(check, *answers)
            print(f"{mark} {name}: {message}")

        run.check = check
        return run

    return decorate
