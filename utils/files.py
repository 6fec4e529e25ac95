"""Files from outside, read whole and up to a bound, or the reason why not.

Only a regular file is read: one would wait for a pipe, and some devices have no end.
"""

import os
import stat
from pathlib import Path


class Unreadable(ValueError):
    """Why a file cannot be read, to stand behind its name: “is missing”, “is no file” …"""


def read(path: str | Path, most: int) -> bytes:
    """The content of a file of at most so many bytes. Raises Unreadable."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Unreadable("is no file")
        with open(path, "rb") as file:
            content = file.read(most + 1)  # whatever size the system tells
    except Unreadable:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable("is missing") from None
    except PermissionError:
        raise Unreadable("may not be read") from None
    except (OSError, ValueError) as error:  # ValueError: no path, such as one with a \0
        cause = getattr(error, "strerror", None) or "no file is called so"
        raise Unreadable(f"is unreadable ({cause})") from None
    if len(content) > most:
        raise Unreadable(f"is larger than {most / 1e6:g} MB")
    return content


def read_text(path: str | Path, most: int = 10_000_000) -> str:
    """The same as text, without a byte order mark. Raises Unreadable."""
    try:
        return read(path, most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("is not UTF-8 text") from None
