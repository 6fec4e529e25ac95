"""How pytest runs the course: what the notebooks need under nbval."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent

# Kernels and subprocesses inherit these: no network, no fork warning, `import utils`.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
)

# Not a person's settings of IPython, which could change what a cell prints.
IPYTHON = ROOT / ".jupyter" / "ipython"
os.environ["IPYTHONDIR"] = str(IPYTHON)


def pytest_configure(config):
    try:
        IPYTHON.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(
            f"{error.filename} cannot be written ({error.strerror}): copy the course to a folder "
            "of your own and test it there."
        ) from None
    # An absolute path, for nbval looks for the file in the current folder.
    if getattr(config.option, "nbval", False) and not config.option.nbval_sanitize_with:
        config.option.nbval_sanitize_with = str(ROOT / "tests" / "nbval_sanitize.cfg")
