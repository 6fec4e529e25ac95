"""The doctor sees each fault, says what to do about it, and fits on one screen."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from tools import doctor
from utils import machine
from utils.paths import ROOT


@pytest.fixture
def course(tmp_path):
    """A whole copy, as the doctor sees one: pins, data, one checkpoint."""
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((doctor.ROOT / name).read_bytes())
    emoji, checkpoints = tmp_path / "assets/emoji", tmp_path / "assets/checkpoints"
    emoji.mkdir(parents=True)
    checkpoints.mkdir()
    for name in ("train", "unseen"):
        (emoji / f"{name}.parquet").write_bytes(b"PAR1 pictures PAR1")
    weights = b"weights"
    (checkpoints / "clip.safetensors").write_bytes(weights)
    card = {"sha256": hashlib.sha256(weights).hexdigest()}
    (checkpoints / "clip.json").write_text(json.dumps(card), encoding="utf-8")
    return tmp_path


def test_machine_gives_the_basic_facts():
    facts = machine.machine()
    assert list(facts) == ["python", "cores", "memory_gb", "device"]
    assert facts["python"].startswith("3.")
    assert facts["cores"] >= 1
    assert 0.5 < facts["memory_gb"] < 10_000
    assert facts["device"].startswith(("cpu", "cuda", "mps"))


def test_a_whole_copy_has_no_fault(course):
    assert machine.check_data(course).mark == "✓"
    assert doctor.check_checkpoints(course).mark == "✓"
    assert [found.mark for found in machine.check_packages(course)] == ["✓"]


@pytest.mark.parametrize(
    "content, fault", [(None, "missing"), (b"PAR1 half", "whole"), (b"", "whole")]
)
def test_damaged_data_is_named(course, content, fault):
    path = course / "assets/emoji/unseen.parquet"
    path.unlink() if content is None else path.write_bytes(content)
    found = machine.check_data(course)
    assert found.mark == "✗" and found.remedy
    assert "unseen.parquet" in found.seen and fault in found.seen
    assert "train.parquet" not in found.seen


def test_damaged_checkpoints_are_named(course):
    folder = course / "assets/checkpoints"
    card, weights = folder / "clip.json", folder / "clip.safetensors"

    def seen() -> str:
        found = doctor.check_checkpoints(course)
        assert found.mark == "✗" and found.remedy
        return found.seen

    weights.write_bytes(b"weightz")
    assert seen() == "clip.safetensors is not the file its card describes"
    weights.unlink()
    assert seen() == "clip.safetensors is missing"
    for text in ("[]", "{}", "not JSON", '"text"'):
        card.write_text(text, encoding="utf-8")
        assert seen() == "clip.json is not a card"
    card.write_bytes(b"\xff")
    assert seen() == "clip.json is not a card"
    card.unlink()
    assert seen() == "none found"
    weights.write_bytes(b"weights")
    assert "clip.json is missing" in seen()


def test_missing_and_other_packages_are_told_apart(course):
    project = (course / "pyproject.toml").read_text(encoding="utf-8")
    project = project.replace('"numpy>=', '"not-a-package-at-all>=')
    (course / "pyproject.toml").write_text(project, encoding="utf-8")
    pins = (course / "constraints.txt").read_text(encoding="utf-8")
    pins = pins.replace("pillow==", "pillow==0")
    (course / "constraints.txt").write_text(pins, encoding="utf-8")
    missing, other = machine.check_packages(course)
    assert (missing.mark, missing.seen) == ("✗", "not-a-package-at-all")
    assert other.mark == "○" and other.seen.startswith("pillow ")
    assert "pip install" in missing.remedy and "pip install" in other.remedy


class Hub(http.server.BaseHTTPRequestHandler):
    wait = 0.0

    def do_HEAD(self):
        time.sleep(self.wait)
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_hub_that_answers_is_seen_even_if_it_answers_no(hub):
    assert doctor.check_hub().mark == "✓"


def test_a_slow_hub_is_not_waited_for(hub, monkeypatch):
    monkeypatch.setattr(Hub, "wait", 3.0)
    start = time.monotonic()
    assert not doctor.hub_answers(f"http://127.0.0.1:{hub.server_port}", seconds=0.5)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense", "file:///none"])
def test_no_hub_is_never_a_fault(monkeypatch, address):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = doctor.check_hub()
    assert found.mark == "○" and address in found.seen


def test_hub_offline_is_honoured(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(doctor, "hub_answers", lambda *_: pytest.fail("it asked"))
    assert "HF_HUB_OFFLINE" in doctor.check_hub().seen


def test_the_worst_report_fits_on_one_screen():
    findings = doctor.examine()
    worst = [machine.Finding(found.what, found.seen, "mend it") for found in findings]
    worst.append(machine.Finding("versions", "x", "mend it"))
    assert len(machine.report(worst).splitlines()) <= 30


def test_it_speaks_where_nothing_is_installed():
    """-S hides all installed packages, -I the environment's."""
    code = f"import sys; sys.path.insert(0, {str(doctor.ROOT)!r}); "
    code += "from tools import doctor; sys.exit(doctor.main())"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "utf8", "-c", code],
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "torch cannot be imported" in done.stdout
    assert "✗ missing" in done.stdout and "pip install" in done.stdout


def test_an_old_python_is_told_before_anything_newer_is_asked(monkeypatch):
    monkeypatch.setattr(machine.sys, "version_info", (3, 9, 6))
    found = {finding.what: finding for finding in doctor.examine()}
    assert found["Python"].mark == "✗" and "3.11" in found["Python"].remedy
    assert "packages" not in found


def test_little_memory_and_little_disk_are_said(monkeypatch):
    monkeypatch.setattr(machine, "memory_gb", lambda: 2.0)
    usage = type("Usage", (), {"free": 2**29})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    found = {finding.what: finding for finding in machine.check_machine()}
    assert found["memory"].mark == found["disk"].mark == "○"


def test_a_card_that_cannot_be_read_is_a_fault(tmp_path):
    folder = tmp_path / "assets" / "checkpoints"
    (folder / "clip.json").mkdir(parents=True)
    assert "clip.json is not a card" in doctor.check_checkpoints(tmp_path).seen


@pytest.mark.skipif(os.name != "posix", reason="needs file modes")
def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path):
    assert machine.check_folder(tmp_path).mark == "✓"
    finding = machine.check_folder(tmp_path / "missing")
    assert finding.mark == "✗" and "cannot be written" in finding.seen
    assert finding.remedy == "copy the course to a folder of your own"


UNREADABLE = """
import os, sys
from pathlib import Path
import torch
from tools.doctor import check_checkpoints
from utils import checkpoints, machine
from utils.bricks.clip import CLIP
root = Path(sys.argv[1])
if os.geteuid() == 0:
    os.seteuid(65534)
for ask in (
    lambda: checkpoints.card("a", root),
    lambda: checkpoints.read(root / "a.safetensors"),
    lambda: CLIP.from_pretrained(root / "clip"),
):
    try:
        ask()
    except ValueError as error:
        print(error)
print(machine.check_data(root).seen)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs file modes")
def test_a_file_that_may_not_be_read_is_not_missing(tmp_path):
    names = ["a.json", "a.safetensors", "clip/config.json", "assets/emoji/train.parquet"]
    for name in [*names, "assets/emoji/unseen.parquet"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
        (tmp_path / name).chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == tmp_path.owner() and "pytest" in str(folder):
            folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", UNREADABLE, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    for line in lines:
        assert "may not be read" in line or "(Permission denied)" in line, line
        assert "missing" not in line, line
