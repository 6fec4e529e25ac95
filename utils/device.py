"""Which device and how many cores to compute on, and where randomness comes from.

Importing this changes the process: its C library keeps freed memory.
"""

import contextlib
import ctypes
import math
import os
import re
import sys
import threading
import time
from typing import NamedTuple

import psutil
import torch

from utils.given import whole
from utils.machine import cores

GIGABYTE = 1 << 30


def keep_freed_memory() -> bool:
    """Let the C library keep up to 1 GB of freed memory; whether it can be told so.

    A training step frees and takes the same large blocks over and over. Linux's C library
    hands each back at once, and the kernel clears it anew: time that no tensor needs.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; others may lack it
    # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    return mallopt is not None and all([mallopt(-3, GIGABYTE), mallopt(-1, GIGABYTE)])


keep_freed_memory()  # a ViT's training step takes a quarter less time


def pick() -> torch.device:
    """The fastest device present: CUDA, then Apple's MPS, then the CPU.

    `WIP_DEVICE` overrides the choice (`cpu`, `cuda`, `mps`). Raises ValueError if it names
    no device, or one that torch does not find.
    """
    wanted = os.environ.get("WIP_DEVICE", "")
    if wanted:
        # two digits at most, for torch counts in a byte
        match = re.fullmatch(r"(cpu|cuda|mps)(?::(0|[1-9][0-9]?))?", wanted)
        if not match:
            raise ValueError(f"WIP_DEVICE is {wanted!r}; set it to cpu, cuda or mps, or unset it")
        backend, number = match.groups()
        there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
        count = {"cuda": torch.cuda.device_count, "mps": torch.mps.device_count}
        if backend in there and not (there[backend]() and int(number or 0) < count[backend]()):
            raise ValueError(f"WIP_DEVICE is {wanted!r}, but torch finds none here; unset it")
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


class Usage(NamedTuple):
    """Seconds of CPU used until `when`: by all programs, on this one's cores; by this one."""

    when: float
    everyone: float
    own: float


def usage() -> Usage:
    try:
        times = psutil.cpu_times(percpu=True)
    except (OSError, psutil.Error):  # a system that does not say: the cores seem free
        times = []
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        times = [one for core, one in enumerate(times) if core in allowed]
    busy = ("user", "nice", "system", "irq", "softirq", "steal")
    everyone = sum(getattr(one, kind, 0.0) for one in times for kind in busy)
    return Usage(time.monotonic(), everyone, time.process_time())


def threads_beside(others: float, own: float, now: int, most: int, count: int) -> int:
    """How many threads to use on `count` cores of which other programs keep `others` busy.

    own: cores that this program kept busy meanwhile, with `now` threads; most: its threads
    when it is alone.
    """
    # Of two cores, two threads get less done than one if others need a third of a core. More
    # must be free to take a core than to keep it, or the number would swing.
    keep, take = (count - math.ceil(others - spare) for spare in (0.35, 0.2))
    # Who has not used its threads may keep half: if others look, too, they will give way. Who
    # has used them saw what the system gives it beside the others.
    least = 1 if own > now / 3 else min(now, most // 2)
    return max(1, least, min(max(now, take), keep, most))


class Share:
    """What `share_cores` knows: torch's threads when alone, and when it last looked."""

    def __init__(self):
        self.most = self.threads = torch.get_num_threads()
        self.fixed = any(map(os.environ.get, ("OMP_NUM_THREADS", "MKL_NUM_THREADS")))
        self.last = usage()
        self.told = threading.local()  # torch keeps a number for each thread of Python
        self.told.threads = self.most
        self.lock = threading.Lock()

    def cores(self) -> int:
        with self.lock:
            has = torch.get_num_threads()
            self.fixed = self.fixed or has != getattr(self.told, "threads", has)  # by hand
            if self.fixed:
                return has
            age = time.monotonic() - self.last.when
            if age > 2:
                self.look(pause=age > 10)
            if has != self.threads:
                torch.set_num_threads(self.threads)
            self.told.threads = torch.get_num_threads()
            return self.told.threads

    def look(self, pause: bool) -> None:
        now = self.threads
        if pause:  # what was used since then says little about the present
            now = max(now, self.most // 2)
            self.last = usage()
            time.sleep(0.1)
        before, self.last = self.last, usage()
        seconds, everyone, own = (b - a for a, b in zip(before, self.last, strict=True))
        others, own = max(0.0, everyone - own) / seconds, own / seconds
        self.threads = threads_beside(others, own, now, self.most, cores())


share = Share()


def share_cores() -> int:
    """Leave other programs the cores they use; returns how many threads torch has now.

    A thread too many costs more than it brings: all wait for the one that waits for its turn.
    To call before long work and at each of its steps: it looks every 2 seconds at what was
    used since, in less than a millisecond, and after a pause it watches for 0.1 s. Where
    OMP_NUM_THREADS, MKL_NUM_THREADS or torch.set_num_threads chose, it changes nothing.
    """
    return share.cores()


def keep_threads(number: int) -> None:
    """Use `number` threads from now on, whatever others do: another number rounds otherwise."""
    torch.set_num_threads(number)
    share.fixed = True


def seed(value: int) -> torch.Generator:
    """Seed torch's global generator (layer initialisation) and return a new one for draws."""
    torch.manual_seed(whole("the seed", value) % 2**63)
    return generator(value)


def generator(value: int, step: int = 0) -> torch.Generator:
    """A CPU generator for one step of one seeded run: the same pair, the same numbers."""
    return torch.Generator().manual_seed((whole("the seed", value) * 1_000_003 + step) % 2**63)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; others take ten times longer."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def half_precision(device: torch.device):
    """Autocast to bfloat16 where the device multiplies it in hardware, else do nothing."""
    if multiplies_bfloat16(device):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
