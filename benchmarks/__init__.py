"""The course's bricks against the libraries that one would use instead.

`python -m benchmarks` measures and writes benchmarks/README.md. A new comparison is a module
here and its name in MODULES. It brings its section of the page:
- TITLE, and LIBRARIES, the packages that it measures against;
- METHOD, a Markdown list of what is special to it;
- rows(device, seconds), which yields its rows, each timed for about `seconds`. Both sides
  must have given the same result before.
"""

import importlib
from types import ModuleType

MODULES = ("clip", "loss", "vq_vae", "dalle", "diffusion")  # in the order of the page


def modules() -> list[ModuleType]:
    return [importlib.import_module(f"benchmarks.{name}") for name in MODULES]
