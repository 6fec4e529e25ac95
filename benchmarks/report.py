"""What `python -m benchmarks` writes: a table, and what it was measured on."""

import datetime
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch

from benchmarks import modules
from benchmarks.measure import FEWEST, WARM_UP, Row
from utils.machine import cores

PAGE = """\
# Benchmarks

The course's bricks against the libraries that one would use instead. `make bench`, or
`python -m benchmarks`, measures it all again in a few minutes and writes this page.
Close other programs first.

The ratio is theirs by ours: above 1, ours is faster or needs less memory.

{machine}

{sections}
## How all of it is measured
- Both sides get the same weights and the same batch, and must give the same result
  before anything is timed.
- Time: after {warm_up} warm-up runs each, both run in turns in one process, at least {fewest} times
  each. `ours` and `theirs` are medians; the ratio is the median of the ratios of
  neighbouring runs, which a busy machine disturbs little. The middle half of those
  ratios is the last column.
- Peak memory is the most that tensors hold at one moment, above the inputs. On a CPU it
  is the running sum of what torch's profiler sees allocated and freed, so it leaves out
  the working space of the matrix library; on CUDA it is `max_memory_allocated`.
"""
SECTION = """\
## {title}
{table}

{method}"""


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | ours | theirs | ratio | middle half |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        sides = (f"{value:,.1f} {row.unit}" for value in (row.ours, row.theirs))
        half = "{:.2f}–{:.2f}".format(*row.half) if row.half else ""
        lines.append(f"| {row.what} | {' | '.join(sides)} | {row.ratio:.2f} | {half} |")
    return "\n".join(lines)


def processor() -> str:
    """The CPU's name, as well as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def machine(device: torch.device) -> str:
    """Date, device, CPU, versions of all that is measured."""
    name = device.type
    if device.type == "cuda":
        name += f" ({torch.cuda.get_device_name(device)})"
    libraries = dict.fromkeys(["torch", *(name for m in modules() for name in m.LIBRARIES)])
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    return (
        f"Measured on {datetime.date.today():%Y-%m-%d}, device {name}: "
        f"{processor()}, {cores()} cores of which torch uses {torch.get_num_threads()}, "
        f"{platform.system()}, Python {platform.python_version()}, "
        f"{versions}."
    )


def page(measured: dict[ModuleType, list[Row]], machine: str) -> str:
    """The whole page: a section a module, with its rows and its method."""
    sections = [
        SECTION.format(title=module.TITLE, table=table(rows), method=module.METHOD)
        for module, rows in measured.items()
    ]
    return PAGE.format(
        machine=machine, sections="\n".join(sections), warm_up=WARM_UP, fewest=FEWEST
    )


def write(text: str, path: Path) -> None:
    """Write atomically: after an interrupt there is the old page or the new."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
