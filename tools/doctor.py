"""What this machine has, and what to do about each fault: `python -m tools.doctor`.

Uses the standard library alone, so that it can speak where nothing is installed.
"""

import hashlib
import json
import os
import shutil
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

from utils.machine import (
    RESTORE,
    Finding,
    check_data,
    check_folder,
    check_machine,
    check_packages,
    report,
)
from utils.paths import ROOT


def check_checkpoints(root: Path = ROOT) -> Finding:
    """Every card in assets/checkpoints has its weights, with the hash it gives."""
    folder = root / "assets" / "checkpoints"
    cards = sorted(folder.glob("*.json"))
    faults = [] if cards else ["none found"]
    for path in cards:
        weights = path.with_suffix(".safetensors")
        try:
            expected = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            faults.append(f"{path.name} is not a card")
            continue
        try:
            if hashlib.sha256(weights.read_bytes()).hexdigest() != expected:
                faults.append(f"{weights.name} is not the file its card describes")
        except FileNotFoundError:
            faults.append(f"{weights.name} is missing")
        except OSError as error:
            faults.append(f"{weights.name} cannot be read ({error.strerror})")
    cardless = {p.stem for p in folder.glob("*.safetensors")} - {p.stem for p in cards}
    faults += [f"{name}.json is missing" for name in sorted(cardless)]
    seen = ", ".join(faults) or ", ".join(path.stem for path in cards)
    return Finding("checkpoints", seen, RESTORE if faults else "")


def hub_answers(url: str, seconds: float = 3) -> bool:
    """Whether anything answers at `url` in time."""
    answers = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError as refusal:  # an answer, too
            refusal.close()
        except (OSError, ValueError):
            return
        answers.append(url)

    # In a thread, for looking up a name has no timeout of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(answers)


def check_hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("hub", "switched off by HF_HUB_OFFLINE; the course works so")
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if hub_answers(url):
        return Finding("hub", f"{url} answers")
    return Finding(
        "hub",
        f"{url} does not answer",
        "nothing to do: only real CLIP weights and hub data sets come from there",
        required=False,
    )


def check_chromium() -> Finding:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return Finding("chromium", path)
    return Finding(
        "chromium",
        "not found",
        "only the browser test needs it: install Debian's package chromium",
        required=False,
    )


def examine() -> list[Finding]:
    """Everything the report shows, top to bottom."""
    machine_found = check_machine()
    if machine_found[0].remedy:
        return machine_found  # an old Python cannot tell the rest
    return [
        *machine_found,
        check_folder(),
        *check_packages(),
        check_data(),
        check_checkpoints(),
        check_hub(),
        check_chromium(),
    ]


def main() -> int:
    if hasattr(sys.stdout, "reconfigure"):  # a Windows console may lack ✓
        sys.stdout.reconfigure(errors="replace")
    findings = examine()
    print(report(findings))
    return int(any(finding.mark == "✗" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
