"""Immediate answers to exercises: "○ not tried yet", "✗ what is wrong" or "✓".

One module a lesson holds that lesson's checks. A check is a function decorated with
`@exercise("name")` that takes the learner's answer and calls `expect` (or raises Wrong);
called from a notebook it prints one line and never raises.
"""

import functools
from collections.abc import Callable

import torch


class Wrong(Exception):
    """The answer is not right; the message says what was seen and what to look at."""


class NotTried(Exception):
    """The stub is still a stub."""


def expect(condition, message: str) -> None:
    """Raise Wrong(message) unless the condition holds."""
    if not bool(condition):
        raise Wrong(message)


def close(a, b, tolerance: float = 1e-4) -> bool:
    """Whether two tensors or numbers agree in shape and value."""
    a, b = torch.as_tensor(a).detach().double(), torch.as_tensor(b).detach().double()
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))


def tried(value):
    """The value an answer returned; a stub returns None or `...`, which is not an answer."""
    if value is None or value is Ellipsis:
        raise NotTried
    return value


def verdict(check: Callable, *answers) -> tuple[str, str]:
    """Run a check on answers; returns the mark (○, ✗ or ✓) and the message."""
    try:
        if any(answer is None or answer is Ellipsis for answer in answers):
            raise NotTried
        message = check(*answers)
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
