"""The learner builds: an answer is held against the shipped brick, and one of the two goes on.

A practice notebook (tools/practice.py) leaves the bodies of some bricks blank. One module a
lesson, named like its exercises, says of each blank what its hint is, on which inputs answer and
brick are compared, and which mistakes are likely. No lesson's subject matter is in here.
"""

import copy
import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.compare import difference, equal
from utils.exercises import NotTried, Wrong, expect, verdict

ROUGH = 0.05  # how far bfloat16 results may lie apart, as a share of the largest number
MISSING = object()


class Blank(NamedTuple):
    hint: str
    judge: Callable  # judge(answer, shipped) raises Wrong or NotTried


class Checks:
    """The blanks of one lesson; called with a name in a notebook, it checks that brick.

    bricks: modules that hold the shipped bricks.
    """

    def __init__(self, *bricks):
        self.bricks, self.blanks = bricks, {}

    def __call__(self, name: str):
        """Print one line for each blank of a brick; returns the brick to go on with.

        The answer is what the calling notebook calls `name`. It is asked for by name, since
        after an error there may be nothing to pass.
        """
        answer = sys._getframe(1).f_globals.get(name, MISSING)
        shipped = self.shipped(name)
        keys = [key for key in self.blanks if key.split(".")[0] == name]
        with torch.random.fork_rng(devices=[]):  # the lesson's own draws stay what they are
            marks = {self.report(key, keys, answer, shipped) for key in keys}
        return answer if marks == {"✓"} else shipped

    def shipped(self, name: str):
        return next(getattr(brick, name) for brick in self.bricks if hasattr(brick, name))

    def report(self, key: str, keys: list[str], answer, shipped) -> str:
        """Print the verdict on one of a brick's blanks, which are `keys`; returns the mark."""
        if answer is shipped:
            mark, message = "○", "nothing new since the last check: did the cell above run?"
        else:
            mark, message = verdict(lambda: self.judge(key, keys, answer, shipped))
        print(f"{mark} {key}: {message}")
        return mark

    def judge(self, key: str, keys: list[str], answer, shipped) -> str:
        name, _, method = key.partition(".")
        expect(answer is not MISSING, f"no `{name}` is there: did its cell run without an error?")
        fits, kind = isinstance(answer, type), "class" if method else "function"
        fits = fits if method else callable(answer) and not fits
        expect(fits, f"`{name}` should be a {kind}; it is of type {type(answer).__name__}")
        ours, theirs = answer, shipped
        if method:
            expect(method in vars(answer), f"`{method}` is gone; keep its first line as it was")
            others = {other.partition(".")[2] for other in keys} - {method}
            if others:  # each blank is judged as if the others were right
                right = {other: vars(shipped)[other] for other in others}
                answer = type(answer)(name, (answer,), right)
            ours, theirs = getattr(answer, method), getattr(shipped, method)
        same_arguments(ours, theirs)
        self.blanks[key].judge(answer, shipped)
        return "equal to the shipped brick; the lesson goes on with yours"

    # ------------------------------------------------------------ what a lesson declares

    def blank(self, key: str, hint: str):
        """Decorate judge(answer, shipped), which raises Wrong where the two differ."""

        def keep(judge: Callable) -> Callable:
            self.blanks[key] = Blank(hint, judge)
            return judge

        return keep

    def function(self, key: str, hint: str, cases: Callable, mistakes: dict | None = None):
        """A function. cases(generator) yields its arguments, a tuple at a time.

        mistakes: {what to say: a function that is wrong in this way}.
        """

        def judge(answer, shipped):
            generator = torch.Generator().manual_seed(0)
            same(answer, shipped, [Trial(x) for x in cases(generator)], mistakes or {})

        self.blanks[key] = Blank(hint, judge)

    def method(self, key: str, hint: str, cases: Callable, mistakes: dict | None = None):
        """A class's method. cases(generator) yields what builds the class, and arguments.

        mistakes: {what to say: a method that is wrong in this way}.
        """
        name, _, method = key.partition(".")

        def judge(answer, shipped):
            generator = torch.Generator().manual_seed(0)
            trials = [Trial(x, method, settings) for settings, x in cases(generator)]
            if issubclass(shipped, nn.Module):
                same_start(answer, shipped, trials[0])
                trials += [dataclasses.replace(trial, training=True) for trial in trials]
            wrong = {
                text: type(name, (shipped,), {method: mistake})
                for text, mistake in (mistakes or {}).items()
            }
            same(answer, shipped, trials, wrong)
            if issubclass(shipped, nn.Module):
                same_in_bfloat16(answer, shipped, trials)

        self.blanks[key] = Blank(hint, judge)


# ---------------------------------------------------------------- answer and brick side by side


class Outcome(NamedTuple):
    value: object
    arguments: tuple  # as the call left them
    state: dict[str, Tensor]  # of the module, afterwards


@dataclasses.dataclass(frozen=True)
class Trial:
    """One call: of a function, or of a method of a module that is built for it."""

    arguments: tuple
    method: str = ""
    settings: dict = dataclasses.field(default_factory=dict)  # what builds the module
    training: bool = False

    def ready(self, what: Callable) -> tuple[Callable, nn.Module, tuple]:
        """The call, its module with changed weights (empty for a function), its arguments."""
        built, generator = self.build(what), torch.Generator().manual_seed(1)
        module = built if isinstance(built, nn.Module) else nn.Module()
        for weight in module.train(self.training).parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
        for buffer in filter(is_float, module.buffers()):
            buffer.uniform_(0.5, 1.5, generator=generator)
        torch.default_generator.manual_seed(0)  # for what the call itself draws
        call = getattr(built, self.method) if self.method else what
        return call, module, copy.deepcopy(self.arguments)

    def build(self, what: Callable):
        torch.default_generator.manual_seed(0)
        return what(**self.settings) if self.method else None

    def outcome(self, what: Callable) -> Outcome:
        call, module, arguments = self.ready(what)
        return Outcome(call(*arguments), arguments, module.state_dict())

    def gradients(self, what: Callable) -> dict[str, Tensor]:
        """∂/∂ every float argument and weight, of the values' sum with random factors."""
        call, module, arguments = self.ready(what)
        leaves = {k: x for k, x in self.named(what, arguments).items() if is_float(x)}
        leaves |= dict(module.named_parameters())
        for leaf in leaves.values():
            leaf.requires_grad_()
        value = call(*arguments)
        values = value if isinstance(value, list | tuple) else [value]
        values = [x for x in values if isinstance(x, Tensor) and x.requires_grad]
        if not values:
            return {}
        generator = torch.Generator().manual_seed(2)
        total = sum((x * torch.randn(x.shape, generator=generator)).sum() for x in values)
        slopes = torch.autograd.grad(
            total, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(leaves, slopes, strict=True))

    def named(self, what: Callable, arguments: tuple) -> dict:
        call = getattr(what, self.method) if self.method else what
        names = list(inspect.signature(call).parameters)
        return dict(zip(names[bool(self.method) :], arguments, strict=False))

    def inputs(self, what: Callable) -> str:
        """The arguments for a message: `q, k (5, 4), mask (5, 5)`."""
        groups: dict[str, list[str]] = {}
        for name, value in self.named(what, self.arguments).items():
            groups.setdefault(described(value), []).append(name)
        text = ", ".join(", ".join(names) + value for value, names in groups.items())
        return text + ", while training" * self.training


def attempt(call: Callable, *arguments, inputs: str = ""):
    """What the learner's code returns; whatever it raises becomes Wrong."""
    try:
        return call(*arguments)
    except (Exception, SystemExit) as error:
        if isinstance(error, NotImplementedError) and not str(error):
            raise NotTried from None
        first = (str(error).splitlines() or [""])[0][:160]
        where = f" ({inputs})" if inputs else ""
        raise Wrong(f"your code raised {type(error).__name__}: {first}{where}") from None


def same(
    answer: Callable, shipped: Callable, trials: list[Trial], mistakes: dict[str, Callable]
) -> None:
    """Raise Wrong, which says what differs, unless both do the same in all trials.

    Compared are the value, what became of the arguments and of the weights, and all gradients.
    """
    for trial in trials:
        inputs = trial.inputs(shipped)
        seen, right = attempt(trial.outcome, answer, inputs=inputs), trial.outcome(shipped)
        if seen.value is Ellipsis:
            raise NotTried
        given = trial.named(shipped, trial.arguments)
        for (name, before), after in zip(given.items(), seen.arguments, strict=True):
            kept = not isinstance(before, Tensor | list) or equal(after, before)
            expect(kept, f"it changes its input `{name}` in place; work on a copy")
        if not equal(seen[::2], right[::2]):
            # named is a mistake that gives the answer's values, if not in all trials then in
            # those that pass as many arguments
            some = [x for x in trials if len(x.arguments) == len(trial.arguments)]
            for several in (trials, some):
                for text, mistake in mistakes.items():
                    expect(not alike(answer, mistake, several), text)
        found = difference(seen.value, right.value)
        expect(not found, f"{found} ({inputs})")
        for name, after in right.state.items():
            found = difference(seen.state[name], after)
            expect(not found, f"the value is right, but afterwards `{name}` is not: {found}")
        if slopes := trial.gradients(shipped):
            same_gradients(attempt(trial.gradients, answer, inputs=inputs), slopes, inputs)
        else:
            free = not getattr(seen.value, "requires_grad", False)
            expect(free, "the value is right, but it carries a gradient: keep `@torch.no_grad()`")


def alike(answer: Callable, mistake: Callable, trials: list[Trial]) -> bool:
    """Whether both give the same in these trials."""
    try:
        return all(equal(t.outcome(answer)[::2], t.outcome(mistake)[::2]) for t in trials)
    except Exception:  # the answer's own
        return False


def same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], inputs: str) -> None:
    cut = "`detach`, `.data`, `.item()`, `no_grad` or a new tensor cuts it off"
    expect(ours, f"the value is right, but no gradient flows back: {cut}")
    for name, right in theirs.items():
        reaches = ours[name].any() or not right.any()
        expect(reaches, f"the value is right, but no gradient reaches `{name}`: {cut}")
    for name, right in theirs.items():
        found = difference(ours[name], right)
        text = f"the value is right, the gradient of `{name}` is not: {found} ({inputs})"
        expect(not found, text)


def same_in_bfloat16(answer: Callable, shipped: Callable, trials: list[Trial]) -> None:
    """Where a processor multiplies bfloat16 fast, lessons train under autocast."""
    for trial in trials:
        inputs = f"{trial.inputs(shipped)}, under bfloat16 autocast"
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            seen = attempt(trial.outcome, answer, inputs=inputs)
            found = difference(seen.value, trial.outcome(shipped).value, ROUGH)
        expect(not found, f"right in float32, but {found} ({inputs})")


def same_start(answer: Callable, shipped: Callable, trial: Trial) -> None:
    """A new module has the brick's weights, or no checkpoint would fit it."""
    ours, theirs = attempt(trial.build, answer), trial.build(shipped)
    if not isinstance(theirs, nn.Module):
        return
    ours, theirs = ours.state_dict(), theirs.state_dict()
    for name in ours.keys() ^ theirs.keys():
        found = "is new" if name in ours else "is missing"
        raise Wrong(f"`{name}` of a new module {found}; leave `__init__` as it was")
    for name, right in theirs.items():
        found = difference(ours[name], right)
        expect(not found, f"`{name}` of a new module: {found}; leave `__init__` as it was")


def same_arguments(ours: Callable, theirs: Callable) -> None:
    """Later cells pass arguments by name, so an answer must have them."""
    mine, shipped = (list(inspect.signature(x).parameters) for x in (ours, theirs))
    expect(
        mine[: len(shipped)] == shipped,
        f"its arguments are ({', '.join(mine)}); they were ({', '.join(shipped)})",
    )


def is_float(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def described(value) -> str:
    """An argument for a message, in a few signs."""
    if isinstance(value, Tensor):
        small = value.numel() <= 16 and not value.is_floating_point()
        return f" {value.tolist()}" if small else f" {tuple(value.shape)}"
    if isinstance(value, list | tuple) and value and all(isinstance(x, Tensor) for x in value):
        return f" of {', '.join(str(tuple(x.shape)) for x in value)}"
    return "" if isinstance(value, nn.Module) else f" = {value!r:.60}"
