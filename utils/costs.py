"""What one way to a result costs beside another: time, and numbers kept for the way back.

A lesson prints what comes of it as a verdict with a margin, since the figures themselves
are another machine's on another machine.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor


def speedup(slow: Callable[[], object], fast: Callable[[], object], turns: int = 4) -> float:
    """How many times faster `fast` is than `slow` on the CPU, each by its best of some turns.

    On one thread, and in computing time rather than by the clock: a busy machine would
    otherwise decide.
    """
    best, threads = [float("inf")] * 2, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(turns):
            for i, run in enumerate((slow, fast)):
                start = time.process_time()
                run()
                best[i] = min(best[i], time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return best[0] / best[1]


def kept(run: Callable[[], object]) -> int:
    """How many numbers autograd keeps for the way back while `run()` computes."""
    sizes = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.numel()  # what is kept twice is there once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(sizes.values())
