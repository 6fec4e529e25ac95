"""`python -m benchmarks`: measure everything and write benchmarks/README.md."""

import argparse
import dataclasses
import itertools
from pathlib import Path

from benchmarks import clip, loss, report
from utils import device as devices
from utils.data import load_emoji
from utils.recipes import RECIPES

PAGE = Path(__file__).with_name("README.md")
BATCH = 64
SECONDS = 20.0  # for each timed row
LOSS_BATCHES = (256, 1024, 4096)


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__).parse_args()
    device, recipe = devices.pick(), RECIPES["clip"]
    # a comparison of equals: transformers has no way to drop patches
    recipe = dataclasses.replace(recipe, image=recipe.image | {"keep": 1.0})
    rows = []
    for row in itertools.chain(
        clip.rows(recipe, load_emoji("train"), device, BATCH, SECONDS),
        loss.rows(device, LOSS_BATCHES, recipe.dim, SECONDS),
    ):
        print(f"{row.what}: ratio {row.ratio:.2f}", flush=True)
        rows.append(row)
    report.write(report.page(rows, recipe.dim, device), PAGE)
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
