"""How two ways to the same result are compared: time in turns, memory tensor by tensor."""

import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to the terminal

WARM_UP = 2  # runs of each side that do not count
FEWEST = 9  # pairs of runs, however long they take


@dataclass(frozen=True)
class Row:
    """One line of the table. ratio: theirs by ours; half: what the middle half of it spans."""

    what: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    half: tuple[float, float] | None = None


def agree(what: str, ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    """Raise ValueError unless both results are the same up to `tolerance`."""
    if ours.shape != theirs.shape:
        shapes = f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
        raise ValueError(f"{what}: the shapes are {shapes}; only equal results can be compared")
    apart = (ours.float() - theirs.float()).abs().max().item()
    if not apart <= tolerance:  # so that NaN is refused, too
        raise ValueError(
            f"{what}: the results are {apart:.1e} apart, more than {tolerance:.0e}; "
            "make them equal before comparing their speed"
        )


def finish(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def race(
    what: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    device: torch.device,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Run both in turns for about `seconds`; the ratio is the median over pairs of runs.

    Both runs of a pair meet the same machine, so that what slows it down cancels out.
    """

    def timed(run: Callable[[], object]) -> float:
        start = clock()
        run()
        finish(device)
        return clock() - start

    for _ in range(WARM_UP):
        timed(ours), timed(theirs)
    pairs, end = [], clock() + seconds
    while len(pairs) < FEWEST or clock() < end:
        if len(pairs) % 2:  # neither always goes first
            second = timed(theirs)
            pairs.append((timed(ours), second))
        else:
            pairs.append((timed(ours), timed(theirs)))
    ratios = [b / a for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    a, b = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
    return Row(what, "ms", a, b, middle, (low, high))


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most that tensors hold at one moment of `run()`, above what they held before."""
    run()  # a library takes its working space once
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def weigh(
    what: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    device: torch.device,
) -> Row:
    """Peak memory of both."""
    a, b = peak_bytes(ours, device) / 2**20, peak_bytes(theirs, device) / 2**20
    return Row(what, "MB", a, b, b / a)
