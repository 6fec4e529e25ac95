"""Open the course in JupyterLab: `python -m tools.lab [--port 8888] [--author]`.

The repository is the root, so that a path means the same here as everywhere else. What
Jupyter keeps (settings, trust, addresses of servers) goes to `.jupyter/`, so that the
course neither changes nor suffers from how Jupyter is set up elsewhere.
"""

import argparse
import contextlib
import errno
import json
import os
import secrets
import socket
import sys
from pathlib import Path

from utils.paths import ROOT

WELCOME = "notebooks/00_welcome.ipynb"
# Only for authors, and so not in a file: jupytext would find it in every Jupyter, where
# a save would write two files and their times could keep a notebook from opening.
PAIRING = {
    "formats": "notebooks///ipynb,lessons///py:percent",
    "notebook_metadata_filter": "kernelspec,brick,-jupytext",
    "cell_metadata_filter": "tags,jupyter,slideshow,-all",
}

# Files that Jupyter reads at its start, below .jupyter/: no news and no search for
# updates, which would ask the network; and no warning on the terminal that a kernel on
# this very machine is reached without encryption.
SETTINGS = {
    "config/labconfig/default_setting_overrides.json": {
        "@jupyterlab/apputils-extension:notification": {
            "fetchNews": "false",
            "checkForUpdates": False,
        }
    },
    "ipython/profile_default/ipython_kernel_config.json": {
        "IPKernelApp": {"log_level": "ERROR"}
    },
}


def port_number(text: str) -> int:
    """The port that `text` names; SystemExit with one line if it names none."""
    if text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536:
        return int(text)
    raise SystemExit(f"PORT={text:.20} is not a port; choose one between 1024 and 65535.")


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of this machine."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        "localhost", port, type=socket.SOCK_STREAM
    ):
        with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
            if os.name == "posix":  # a port that was closed a moment ago is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:  # anything else: an address this machine lacks
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    return False
    return True


def has_desktop() -> bool:
    """Whether a browser can be opened: elsewhere the address is printed, no more."""
    if sys.platform in ("darwin", "win32"):
        return True
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return any(os.environ.get(name) for name in names)


def keep_inside(root: Path = ROOT) -> None:
    """Point Jupyter and its kernels at this copy of the course."""
    for kind in ("config", "data", "runtime"):
        os.environ[f"JUPYTER_{kind.upper()}_DIR"] = str(root / ".jupyter" / kind)
    os.environ["IPYTHONDIR"] = str(root / ".jupyter" / "ipython")
    # A kernel works in notebooks/; so it finds `utils` even if the folder was moved.
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), inherited]))
    for name, settings in SETTINGS.items():
        path = root / ".jupyter" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings), encoding="utf-8")


def trust(folder: Path) -> None:
    """Sign the notebooks in `folder`, so that their stored HTML shows."""
    import nbformat
    from nbformat.sign import NotebookNotary

    notary = NotebookNotary()
    for path in sorted(folder.glob("*.ipynb")):
        try:
            notary.sign(nbformat.read(path, as_version=4))
        except Exception as error:  # one broken file must not close the course
            print(f"{path.name} is not a readable notebook ({error}).", file=sys.stderr)


def arguments(port: int, *, author: bool = False, browser: bool = True) -> list[str]:
    """JupyterLab's command line."""
    extensions = {"jupyterlab_jupytext": author}
    pairing = PAIRING if author else {}
    return [
        # Who may come in is said here, where no settings of the system are above it.
        "--ServerApp.ip=localhost",
        "--ServerApp.allow_remote_access=False",
        "--ServerApp.disable_check_xsrf=False",
        f"--IdentityProvider.token={secrets.token_hex(24)}",
        "--PasswordIdentityProvider.hashed_password=",
        f"--ServerApp.root_dir={ROOT}",
        f"--LabApp.default_url=/lab/tree/{WELCOME}",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.open_browser={browser}",
        "--ServerApp.allow_root=True",  # in a container there is often no one else
        "--ServerApp.log_level=ERROR",  # the address is shown all the same
        "--LabApp.log_level=ERROR",
        # an upload is one message; tornado cuts the kernel off at 10 MB
        "--ServerApp.tornado_settings={'websocket_max_message_size': 200_000_000}",
        "--LabApp.extension_manager=readonly",  # the other one asks the network
        f"--ServerApp.jpserver_extensions={extensions}",
        *(f"--JupytextConfiguration.{name}={value}" for name, value in pairing.items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.lab", description=__doc__)
    parser.add_argument("--port", default=os.environ.get("PORT") or "8888")
    parser.add_argument("--author", action="store_true", help="pair with lessons/")
    options = parser.parse_args()
    port = port_number(options.port)
    if not is_free(port):
        other = next((p for p in range(max(port, 1024) + 1, 65536) if is_free(p)), 8888)
        raise SystemExit(
            f"Port {port} is busy, perhaps with a JupyterLab opened before: use that, "
            f"or choose another port: make lab PORT={other} (where there is no make, "
            f"python -m tools.lab --port {other})."
        )
    try:
        keep_inside()
    except OSError as error:
        raise SystemExit(
            f"{error.filename} cannot be written ({error.strerror}): copy the course to a "
            "folder of your own and start it there."
        ) from None
    try:
        from jupyterlab.labapp import LabApp
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"{error.name} is not installed for {sys.executable}: run make lab, or "
            "python -m pip install -c constraints.txt -e ."
        ) from None
    trust(ROOT / "notebooks")
    print("Starting JupyterLab; press Ctrl-C twice here to stop it.", flush=True)
    server = LabApp.initialize_server(arguments(port, author=options.author, browser=has_desktop()))
    server.identity_provider.token_generated = True  # as it is: the address is shown with it
    server.start()


if __name__ == "__main__":
    main()
