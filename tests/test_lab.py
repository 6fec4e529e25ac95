"""The launcher and `make fresh`: what they say, keep and leave alone."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tools import fresh, lab
from utils.paths import ROOT


@pytest.fixture
def busy_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("text", ["", "lab", "0", "65536", "-1", "8888.0", "9" * 5000, "0" * 5000])
def test_a_bad_port_is_named(text):
    with pytest.raises(SystemExit, match="is not a port") as stopped:
        lab.port_number(text)
    assert len(str(stopped.value)) < 100


def test_a_busy_port_gets_one_line_with_the_remedy(busy_port):
    assert not lab.is_free(busy_port)
    done = subprocess.run(
        [sys.executable, "-m", "tools.lab", "--port", str(busy_port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"Port {busy_port} is busy" in done.stderr
    offered = int(re.search(r"PORT=(\d+)", done.stderr)[1])
    assert offered != busy_port and lab.is_free(offered)


def test_a_port_that_was_just_closed_is_free(busy_port):
    port = free_port()
    with contextlib.closing(socket.create_server(("127.0.0.1", port))) as server:
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the server closes first: the port stays in TIME_WAIT
        client.close()
    assert lab.is_free(port)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have a desktop")
def test_the_browser_opens_only_on_a_desktop(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert not lab.has_desktop()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert lab.has_desktop()


def test_only_authors_get_pairing():
    learner, author = lab.arguments(8888), lab.arguments(8888, author=True)
    assert "--ServerApp.jpserver_extensions={'jupyterlab_jupytext': False}" in learner
    assert "--ServerApp.jpserver_extensions={'jupyterlab_jupytext': True}" in author
    assert not any("JupytextConfiguration" in word for word in learner)


def test_a_broken_notebook_does_not_close_the_course(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "bad.ipynb").write_text("{", encoding="utf-8")
    lab.trust(tmp_path)
    assert "bad.ipynb is not a readable notebook" in capsys.readouterr().err


def ask(port: int, path: str, token: str, body: dict | None = None) -> dict:
    request = urllib.request.Request(
        f"http://localhost:{port}/{path}",
        data=json.dumps(body).encode() if body else None,
        headers={"Authorization": f"token {token}"} if token else {},
        method="PUT" if body else "GET",
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


@contextlib.contextmanager
def server(root: Path, *options: str, **settings: str):
    """A JupyterLab on a copy of the launcher in `root`; gives its port and token."""
    port = free_port()
    log = root / "log.txt"
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "JUPYTER_TOKEN")
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.lab", "--port", str(port), *options],
            cwd=root,
            env={k: v for k, v in os.environ.items() if k not in hidden} | settings,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(300):
            shown = log.read_text()
            address = re.search(rf"http://localhost:{port}(\S+)\?token=(\w+)", shown)
            if address:
                break
            assert process.poll() is None, shown
            time.sleep(0.2)
        assert address, shown
        assert address[1] == "/lab/tree/notebooks/00_welcome.ipynb"
        yield port, address[2]
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("author", [False, True])
def test_the_server_keeps_its_promises(tmp_path, author):
    """A token, the repository as root, files inside it, pairing for authors alone."""
    launcher(tmp_path)
    lesson = tmp_path / "lessons" / "00_welcome.py"
    lesson.write_text("# %%\nprint(1)\n", encoding="utf-8")
    cell = {"cell_type": "code", "id": "a", "execution_count": None}
    cell |= {"metadata": {}, "outputs": [], "source": "print(2)"}
    book = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    name = "notebooks/00_welcome.ipynb"
    url = f"api/contents/{name}"
    news = "lab/api/settings/@jupyterlab/apputils-extension:notification"
    (tmp_path / name).write_text(json.dumps(book), encoding="utf-8")
    # Written together, as in a fresh clone: no file looks newer than the other.
    os.utime(lesson, ns=(os.stat(tmp_path / name).st_mtime_ns,) * 2)

    with server(tmp_path, *(["--author"] if author else [])) as (port, token):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            ask(port, url, "")
        assert ask(port, url, token)["content"]["cells"][0]["metadata"]["trusted"]
        ask(port, url, token, {"type": "notebook", "format": "json", "content": book})
        properties = ask(port, news, token)["schema"]["properties"]

    assert properties["fetchNews"]["default"] == "false"
    assert properties["checkForUpdates"]["default"] is False
    assert ("print(2)" in lesson.read_text(encoding="utf-8")) == author
    assert (tmp_path / ".jupyter" / "data" / "notebook_secret").exists()


OPEN = """
c.ServerApp.ip = "0.0.0.0"
c.ServerApp.token = ""
c.ServerApp.password = ""
c.IdentityProvider.token = ""
c.PasswordIdentityProvider.hashed_password = ""
c.ServerApp.allow_remote_access = True
c.ServerApp.allow_origin = "*"
c.ServerApp.disable_check_xsrf = True
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net")
def test_a_system_that_opens_every_jupyter_does_not_open_this_one(tmp_path):
    system = tmp_path / "system"
    system.mkdir()
    (system / "jupyter_server_config.py").write_text(OPEN, encoding="utf-8")
    launcher(tmp_path)
    settings = {"JUPYTER_CONFIG_PATH": str(system), "JUPYTER_TOKEN": ""}
    with server(tmp_path, **settings) as (port, token):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            ask(port, "api/contents", "")
        assert len(token) > 20 and ask(port, "api/contents", token)["type"] == "directory"
        assert listening(port) <= {"127.0.0.1", "::1"}


def listening(port: int) -> set[str]:
    """The addresses on which this machine listens at `port`."""
    found = set()
    for name, family, size in (("tcp", socket.AF_INET, 8), ("tcp6", socket.AF_INET6, 32)):
        table = Path("/proc/net", name)
        for line in table.read_text().splitlines()[1:] if table.exists() else []:
            _, local, _, state, *_ = line.split()
            address, number = local.split(":")
            if state == "0A" and int(number, 16) == port:
                words = [address[i : i + 8] for i in range(0, size, 8)]
                raw = b"".join(bytes.fromhex(word)[::-1] for word in words)
                found.add(socket.inet_ntop(family, raw))
    return found


def launcher(root: Path) -> None:
    """What `python -m tools.lab` needs, in `root`."""
    for folder in ("tools", "utils", "notebooks", "lessons"):
        (root / folder).mkdir()
    for name in ("tools/__init__.py", "tools/lab.py", "utils/__init__.py", "utils/paths.py"):
        shutil.copy(ROOT / name, root / name)


@pytest.fixture
def clone(tmp_path):
    """A small git repository with one lesson's notebook committed."""
    if not shutil.which("git"):
        pytest.skip("needs git")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "03_contrastive_loss.ipynb").write_bytes(b"shipped\n")
    subprocess.run(["git", "-C", tmp_path, "init", "-q"], check=True)
    commit(tmp_path)
    return tmp_path


def commit(root: Path) -> None:
    who = ["-c", "commit.gpgsign=false", "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for words in (["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", root, *words], check=True)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "notebooks").iterdir())


def test_fresh_restores_and_keeps_every_version(clone):
    path = clone / "notebooks" / "03_contrastive_loss.ipynb"
    for number, suffix in enumerate(["mine", "mine-2", "mine-3"]):
        path.write_bytes(b"version %d" % number)
        assert f"03_contrastive_loss.{suffix}.ipynb" in fresh.fresh("3", clone)
        kept = path.with_name(f"03_contrastive_loss.{suffix}.ipynb")
        assert kept.read_bytes() == b"version %d" % number
        assert path.read_bytes() == b"shipped\n"
    assert len(names(clone)) == 4


def test_fresh_leaves_a_shipped_notebook_alone(clone):
    assert "as shipped already" in fresh.fresh("03", clone)
    assert names(clone) == ["03_contrastive_loss.ipynb"]


def test_fresh_brings_back_a_deleted_notebook(clone):
    (clone / "notebooks" / "03_contrastive_loss.ipynb").unlink()
    assert "was missing" in fresh.fresh("03", clone)
    assert names(clone) == ["03_contrastive_loss.ipynb"]


@pytest.mark.parametrize("lesson", ["04", "x", ""])
def test_fresh_names_the_lessons_there_are(clone, lesson):
    (clone / "notebooks" / "00_welcome.ipynb").write_bytes(b"shipped\n")
    commit(clone)
    with pytest.raises(SystemExit, match=f"no lesson '{lesson}'; choose one of 00, 03"):
        fresh.fresh(lesson, clone)


def test_fresh_without_git_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    mine = tmp_path / "notebooks" / "03_contrastive_loss.ipynb"
    mine.write_bytes(b"mine")
    faults = {os.environ["PATH"]: "not a git clone.*download", "": "not installed.*install git"}
    for path, fault in faults.items():  # no repository; then no git either
        monkeypatch.setenv("PATH", path)
        with pytest.raises(SystemExit, match=fault) as stopped:
            fresh.fresh("03", tmp_path)
        assert "\n" not in str(stopped.value)
    assert mine.read_bytes() == b"mine"
    assert names(tmp_path) == ["03_contrastive_loss.ipynb"]


@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
def test_fresh_loses_nothing_on_an_error(clone, monkeypatch, moment):
    path = clone / "notebooks" / "03_contrastive_loss.ipynb"
    path.write_bytes(b"mine")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(moment, full)
    with pytest.raises(OSError, match="No space left"):
        fresh.fresh("03", clone)
    assert path.read_bytes() == b"mine"
    assert not list(path.parent.glob("*.tmp"))
