"""`python -m tools.pretrain` with tiny recipes and toy pairs, in processes that may be killed."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401  else each run's first optimizer imports it, for a second

from tests import tiny
from tools import pretrain
from utils import checkpoints, tensors
from utils import device as devices
from utils.recipes import engine

RECIPES = {name: entry.recipe for name, entry in tiny.MODELS.items()}
# of few steps, for what two processes must do alike
FEW = ("clip", "clip_resnet", "clip_bag", "dvae", "vqgan_l2", "vq_vae", "vqgan")
FEW += ("dalle", "diffusion", "kl", "latent_diffusion", "prior", "unclip")
RECIPES |= {f"few_{name}": replace(RECIPES[name], steps=4) for name in FEW}
RECIPES["few_fought"] = replace(RECIPES["few_vqgan"], critic_start=0)


def die(name: str, count: int) -> None:
    """Make the `count`-th call of `tensors.NAME` (or `checkpoints.NAME`) a SIGKILL."""
    owner = checkpoints if name == "sha256" else tensors
    owner = getattr(owner, name.split(".")[0]) if "." in name else owner
    name = name.split(".")[-1]
    real, calls = getattr(owner, name), []

    def call(*arguments, **settings):
        calls.append(name)
        if len(calls) == count and name == "fsync":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **settings)
        if len(calls) == count:
            if name == "save_file":  # half of it is on the disk
                os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call)


def main() -> None:
    """`… RECIPE --out FOLDER`: the state is in FOLDER/runs, and is saved at every step."""
    os.environ["WIP_DEVICE"] = "cpu"
    torch.set_num_threads(1)
    # tests run in the background hand "ignore Ctrl-C" down to their children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "DIE" in os.environ:
        name, count = os.environ["DIE"].split(":")
        die(name, int(count))
    if "EXACT" in os.environ:  # bfloat16 makes large differences of small ones
        devices.half_precision = lambda device: contextlib.nullcontext()
        torch.Tensor.bfloat16 = torch.Tensor.float
    pretrain.RECIPES, engine.load_emoji = RECIPES, tiny.pairs
    runs = Path(sys.argv[-1]) / "runs"
    engine.pretrain = functools.partial(engine.pretrain, runs=runs, save_every=0)
    engine.cached = functools.partial(engine.cached, runs=runs)
    pretrain.main()


def child(name: str, folder: Path, log: Path, die_at: str) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    if die_at:
        os.environ["DIE"] = die_at
    sys.argv = ["pretrain", name, "--out", str(folder)]
    main()


class Run:
    """A run in a child of a process that has imported everything: a start costs little."""

    def __init__(self, name: str, folder: Path, die_at: str = ""):
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "said.txt"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        arguments = name, folder, self.log, die_at
        self.process = context.Process(target=child, args=arguments, daemon=True)
        self.process.start()

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def wait_for(self, mark: str) -> None:
        while mark not in self.said():
            assert self.process.is_alive(), self.said()
            time.sleep(0.005)  # a closer look would take a good part of a core

    def end(self) -> int:
        """The exit code, once it has ended."""
        self.process.join(300)
        return self.process.exitcode

    def finish(self) -> str:
        """What it said until its good end."""
        assert self.end() == 0, self.said()
        return self.said()


if __name__ == "__main__":
    main()
