"""Pretraining of the models that the course ships: `python -m tools.pretrain NAME [NAME …]`.

Shows progress, survives a kill (run it again and it resumes), uses CUDA and bfloat16 when
they are there, and runs under `torchrun` unchanged. Several names are trained in turn.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from utils import device as devices
from utils.paths import CHECKPOINTS
from utils.recipes import RECIPES, engine


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain some of the course's models.")
    typed = os.environ.get("MODEL", "").split()  # by `make`, past the shell
    parser.add_argument("names", nargs="*" if typed else "+", metavar="NAME", default=typed)
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, help="where weights go")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in RECIPES:
            parser.error(f"there is no model {name!r:.40}; choose from {', '.join(RECIPES)}")
    try:
        if "RANK" in os.environ:
            cuda = devices.pick().type == "cuda"
            if cuda:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if cuda else "gloo")
        for name in arguments.names:
            card = engine.pretrain(name, RECIPES[name], arguments.out)
            if card:
                engine.report("\n")
                for metric, value in card["metrics"].items():
                    print(f"{name} {metric}: {value:g}", flush=True)
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; run the same command again to go on") from None
    except ValueError as error:
        raise SystemExit(f"\n{error}") from None
    except (OSError, SafetensorError) as error:
        raise SystemExit(f"\n{error}; mend that and run the same command again to go on") from None
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
