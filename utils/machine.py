"""What this machine has, and whether the course can run here: cores, memory, packages, data.

Uses the standard library alone, so that it can speak where nothing is installed.
"""

import ctypes
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from utils.paths import ROOT

REINSTALL = "run make lab, or python -m pip install -c constraints.txt -e ."
RESTORE = "run git checkout -- assets, or download the course again"


@dataclass(frozen=True)
class Finding:
    """One line of the report. A fault with a remedy is bad if the course needs it."""

    what: str
    seen: str
    remedy: str = ""
    required: bool = True

    @property
    def mark(self) -> str:
        if not self.remedy:
            return "✓"
        return "✗" if self.required else "○"


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gb() -> float:
    """Memory of this machine in GB (2³⁰ bytes); 0 where the system does not say."""
    if sys.platform == "win32":

        class MemoryStatus(ctypes.Structure):
            _fields_ = [
                ("length", ctypes.c_ulong),
                ("load", ctypes.c_ulong),
                *((name, ctypes.c_ulonglong) for name in ("total", "free", "page")),
                *((name, ctypes.c_ulonglong) for name in ("page_free", "space")),
                *((name, ctypes.c_ulonglong) for name in ("space_free", "extended")),
            ]

        status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
        known = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status.total / 2**30 if known else 0.0
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (ValueError, OSError):
        return 0.0


def device() -> str:
    """`cuda (its name)`, `mps` or `cpu`; `unknown (why)` where torch fails."""
    try:
        import torch
    except Exception as error:  # a broken library file is an OSError, and so on
        return f"unknown ({type(error).__name__}: torch cannot be imported)"
    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(0)})"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def machine() -> dict:
    """The basic facts: `python`, `cores`, `memory_gb` and `device`."""
    return {
        "python": platform.python_version(),
        "cores": cores(),
        "memory_gb": round(memory_gb(), 1),
        "device": device(),
    }


def pins(root: Path = ROOT) -> dict[str, str]:
    """Package name → version, from constraints.txt."""
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "==" in line and line[0] != "#"]
    return dict(line.split("==") for line in lines)


def needed(root: Path = ROOT) -> list[str]:
    """Names of the packages the course imports, from pyproject.toml."""
    import tomllib  # new in Python 3.11, which `examine` asks for first

    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = tomllib.loads(text)["project"]["dependencies"]
    return [requirement.split(">=")[0] for requirement in dependencies]


def check_machine() -> list[Finding]:
    facts = machine()
    old = sys.version_info < (3, 11)
    small = 0 < facts["memory_gb"] < 4
    free = shutil.disk_usage(ROOT).free / 2**30
    broken = facts["device"].startswith("unknown")
    return [
        Finding(
            "Python",
            f"{facts['python']} at {sys.executable}",
            "install Python 3.11 or newer" if old else "",
        ),
        Finding("system", f"{platform.system()} on {platform.machine()}"),
        Finding("cores", str(facts["cores"])),
        Finding(
            "memory",
            f"{facts['memory_gb']} GB" if facts["memory_gb"] else "not known",
            "lessons need up to 2.5 GB: close other programs" if small else "",
            required=False,
        ),
        Finding("device", facts["device"], REINSTALL if broken else ""),
        Finding(
            "disk",
            f"{free:.1f} GB free",
            "make room: a training run needs 1 GB" if free < 1 else "",
            required=False,
        ),
    ]


def check_folder(root: Path = ROOT) -> Finding:
    """Notebooks, settings and training states are written below the course's folder."""
    try:
        with tempfile.TemporaryFile(dir=root):
            return Finding("folder", str(root))
    except OSError as error:
        seen = f"{root} cannot be written ({error.strerror})"
        return Finding("folder", seen, "copy the course to a folder of your own")


def check_packages(root: Path = ROOT) -> list[Finding]:
    """One line if all is as pinned; else one for what is missing, one for the rest."""
    pinned, missing, other = pins(root), [], []
    for name in needed(root):
        try:
            found = version(name).split("+")[0]  # 2.13.0+cpu is a build of 2.13.0
        except PackageNotFoundError:
            missing.append(name)
            continue
        if found != pinned[name]:
            other.append(f"{name} {found} (pinned: {pinned[name]})")
    findings = []
    if missing:
        findings.append(Finding("missing", ", ".join(missing), REINSTALL))
    if other:
        findings.append(
            Finding("versions", ", ".join(other), REINSTALL, required=False)
        )
    if not findings:
        count = len(needed(root))
        findings.append(Finding("packages", f"{count} of {count} as pinned"))
    return findings


def check_data(root: Path = ROOT) -> Finding:
    """Both files of Emoji-4 are there and whole: parquet starts and ends with PAR1."""
    faults = []
    for name in ("train.parquet", "unseen.parquet"):
        path = root / "assets" / "emoji" / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            faults.append(f"{name} is missing")
            continue
        except OSError as error:
            faults.append(f"{name} cannot be read ({error.strerror})")
            continue
        if not (content.startswith(b"PAR1") and content.endswith(b"PAR1")):
            faults.append(f"{name} is not a whole parquet file")
    seen = ", ".join(faults) or "Emoji-4: train and unseen"
    return Finding("data", seen, RESTORE if faults else "")


def report(findings: list[Finding]) -> str:
    """The findings as text: a line each, and a line more for what to do."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.mark} {finding.what:<12} {finding.seen}")
        if finding.remedy:
            lines.append(f"{'':<14} → {finding.remedy}")
    faults = sum(finding.mark == "✗" for finding in findings)
    todo = "1 thing to mend" if faults == 1 else f"{faults} things to mend"
    lines.append(f"\n{todo}, marked ✗." if faults else "\nThe course can run here.")
    return "\n".join(lines)
