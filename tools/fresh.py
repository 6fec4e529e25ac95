"""Put a lesson's notebook back as shipped: `python -m tools.fresh 03`.

The learner's version stays beside it, as `03_contrastive_loss.mine.ipynb`. Shipped
means committed: the notebook comes from git.
"""

import argparse
import os
import subprocess
from pathlib import Path

from utils.paths import ROOT

NOT_A_CLONE = (
    "This copy of the course is not a git clone, so it cannot tell what was shipped: "
    "download the course again and take notebooks/{lesson}_….ipynb from there."
)


def git(root: Path, *words: str) -> subprocess.CompletedProcess:
    """A git command in `root`, done. Raises SystemExit where there is no git."""
    try:
        return subprocess.run(["git", "-C", root, *words], capture_output=True)
    except FileNotFoundError:
        raise SystemExit(
            "git is not installed, and it knows what was shipped: install git."
        ) from None


def spare_name(path: Path) -> Path:
    """The first of x.mine.ipynb, x.mine-2.ipynb, … that is not taken."""
    number = 1
    while True:
        mine = "mine" if number == 1 else f"mine-{number}"
        spare = path.with_name(f"{path.stem}.{mine}.ipynb")
        if not spare.exists():
            return spare
        number += 1


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet; after an error there is none."""
    file = path.open("xb")
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()
        raise


def fresh(lesson: str, root: Path = ROOT) -> str:
    """Restore one lesson's notebook; returns a line that says what was done.

    Nothing is replaced before the learner's version is safe under its new name.
    Raises SystemExit with one line if there is no such lesson, or no git to ask.
    """
    listed = git(root, "ls-tree", "--name-only", "HEAD", "notebooks/")
    if b"dubious ownership" in listed.stderr:
        raise SystemExit(
            "git distrusts this folder, which another user owns: run git config "
            f'--global --add safe.directory "{root}".'
        )
    shipped_names = sorted(listed.stdout.decode().split())
    if not shipped_names:
        raise SystemExit(NOT_A_CLONE.format(lesson=lesson.zfill(2)))
    wanted = f"notebooks/{lesson.zfill(2)}_" if lesson else None
    found = [n for n in shipped_names if wanted and n.startswith(wanted)]
    if not found:
        numbers = ", ".join(Path(n).name[:2] for n in shipped_names)
        raise SystemExit(f"There is no lesson {lesson!r}; choose one of {numbers}.")
    name = found[0]
    blob = git(root, "cat-file", "blob", f"HEAD:./{name}")
    if blob.returncode:
        raise SystemExit(f"git could not read {name}: run git fsck to see why.")
    content = blob.stdout
    path = root / name
    if not path.exists():
        write_new(path, content)
        return f"{name} was missing; it is back as shipped."
    yours = path.read_bytes()
    if yours == content:
        return f"{name} is as shipped already."
    spare = spare_name(path)
    coming = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    write_new(coming, content)
    try:
        write_new(spare, yours)
        os.replace(coming, path)
    finally:
        coming.unlink(missing_ok=True)
    return f"{name} is back as shipped; yours is notebooks/{spare.name}."


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.fresh", description=__doc__)
    typed = os.environ.get("LESSON")  # by `make`, past the shell
    parser.add_argument(
        "lesson", nargs="?" if typed else None, default=typed, help="its number, such as 03"
    )
    lesson = parser.parse_args().lesson
    try:
        print(fresh(lesson))
    except OSError as error:
        raise SystemExit(
            f"{error}; nothing of yours is lost: mend that and try again."
        ) from None
    print("If it is open in JupyterLab: File > Reload Notebook from Disk.")


if __name__ == "__main__":
    main()
