"""pyproject.toml, constraints.txt, environment.yml and what is installed agree."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from utils import machine
from utils.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
DIRECT = [
    Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
]
PINS = machine.pins()
# Installed on other systems only, so that nothing here can tell who asks for them.
ELSEWHERE = {"appnope", "colorama", "overrides", "pexpect", "ptyprocess", "pywinpty"}
ELSEWHERE |= {"win32-setctime"}


def installed() -> dict[str, str]:
    """Everything the direct requirements bring along here: name → version."""
    found, queue, done = {}, list(DIRECT), set()
    while queue:
        wanted = queue.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        package = distribution(name)
        found[name] = package.version.split("+")[0]
        for text in package.requires or []:
            child = Requirement(text)
            choices = [{"extra": extra} for extra in (*extras, "")]
            if not child.marker or any(map(child.marker.evaluate, choices)):
                queue.append(child)
    return found


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda wanted: wanted.name)
def test_every_direct_requirement_is_pinned_within_its_bounds(requirement):
    assert requirement.specifier, "give a lower bound"
    assert requirement.specifier.contains(PINS[requirement.name])


def test_pins_are_exact_sorted_and_plain():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line.split("==")[0] for line in lines] == list(PINS)
    assert list(PINS) == sorted(map(canonicalize_name, PINS))
    assert not any("+" in pinned for pinned in PINS.values())


def test_everything_installed_is_pinned_and_as_pinned():
    here = {name: found for name, found in installed().items() if _portable(name)}
    assert here == {name: PINS.get(name) for name in here}


def test_no_pin_is_left_over():
    assert set(PINS) - set(installed()) <= ELSEWHERE


def test_nothing_pulls_in_torchvision():
    assert "torchvision" not in PINS and "torchvision" not in installed()


def _portable(name: str) -> bool:
    """CUDA builds of torch bring packages whose versions torch itself fixes."""
    return not name.startswith(("nvidia-", "cuda-", "triton"))


def test_conda_installs_the_same():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = conda["dependencies"]
    # All but Python comes from pyproject.toml itself, under the same pins.
    assert pip == {"pip": ["-c constraints.txt", "-e ."]}
    assert conda["name"] == PROJECT["name"]
    assert packages[1:] == ["pip"]
    name, python = packages[0].split("=")
    assert name == "python"
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_no_test_module_imports_another():
    modules = [*(ROOT / "tests").rglob("test_*.py")]
    text = {path.name: path.read_text(encoding="utf-8") for path in modules}
    wanted = r"^\s*(from|import) (tests\.)?(exercises\.)?test_|^from tests import .*\btest_"
    assert len(text) > 20
    assert not [name for name in text if re.search(wanted, text[name], re.MULTILINE)]


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_alone_lists_every_target_in_a_line_each():
    # make tells of its folder when another make called it
    shown = subprocess.check_output(["make", "--no-print-directory"], cwd=ROOT, text=True)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    assert re.findall(r"^make (\w+) +\S", shown, re.MULTILINE) == targets
    assert len(shown.splitlines()) == len(targets)


def test_the_hub_is_told_nothing_without_make():
    code = "import utils, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    settings = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=settings, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    "target, name", [("fresh", "LESSON"), ("practice", "LESSON"), ("pretrain", "MODEL"),
                     ("lab", "PORT"), ("author", "PORT")]
)  # fmt: skip
def test_no_shell_sees_what_was_typed(target, name):
    typed = "03; echo typed `echo typed` \" '"
    done = subprocess.run(
        ["make", "-n", target, f"{name}={typed}"], cwd=ROOT, capture_output=True, text=True
    )
    assert f"tools.{target.replace('author', 'lab')}" in done.stdout, done.stderr
    assert "typed" not in done.stdout


@pytest.mark.parametrize(
    "tool, name, said",
    [
        ("fresh", "LESSON", "There is no lesson '99; ls'"),
        ("practice", "LESSON", "There is no lesson '99; ls'"),
        ("pretrain", "MODEL", "there is no model '99;'"),
        ("lab", "PORT", "PORT=99; ls is not a port"),
    ],
)
def test_a_tool_reads_what_make_was_given(tool, name, said):
    done = subprocess.run(
        [sys.executable, "-m", f"tools.{tool}"],
        cwd=ROOT,
        env=os.environ | {name: "99; ls"},
        capture_output=True,
        text=True,
    )
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr
