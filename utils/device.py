"""Which device to compute on, and where randomness comes from."""

import contextlib
import ctypes
import os
import sys

import torch

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
        backend, colon, number = wanted.partition(":")
        if backend not in ("cpu", "cuda", "mps") or (colon and not number.isdecimal()):
            raise ValueError(f"WIP_DEVICE is {wanted!r}; set it to cpu, cuda or mps, or unset it")
        there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
        if backend in there and not there[backend]():
            raise ValueError(f"WIP_DEVICE is {wanted!r}, but torch finds none here; unset it")
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def seed(value: int) -> torch.Generator:
    """Seed torch's global generator (layer initialisation) and return a new one for draws."""
    torch.manual_seed(value)
    return generator(value)


def generator(value: int, step: int = 0) -> torch.Generator:
    """A CPU generator for one step of one seeded run: the same pair, the same numbers."""
    return torch.Generator().manual_seed((value * 1_000_003 + step) % 2**63)


def half_precision(device: torch.device):
    """Autocast to bfloat16 where the device multiplies it in hardware, else do nothing."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()
