"""`python -m benchmarks`: measure everything and write benchmarks/README.md."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from benchmarks import modules, report
from benchmarks.measure import Row
from utils import device as devices

PAGE = Path(__file__).with_name("README.md")
SECONDS = 20.0  # for each timed row


def measured(module: ModuleType, device: torch.device) -> Iterator[Row]:
    for row in module.rows(device, SECONDS):
        print(f"{row.what}: ratio {row.ratio:.2f}", flush=True)
        yield row


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__).parse_args()
    device = devices.pick()
    found = {module: list(measured(module, device)) for module in modules()}
    report.write(report.page(found, report.machine(device)), PAGE)
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
