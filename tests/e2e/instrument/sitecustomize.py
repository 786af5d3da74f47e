"""On PYTHONPATH of a child process: notes what it writes, and kills it at a chosen write, as a power cut would.

WATCH_KILL="GLOB#N": SIGKILL just before the N-th rename to, removal of, or opening for writing of a path matching GLOB.
WATCH_LOG=FILE: append "RANK PATH" for each such moment.
"""

import os
import signal
import sys
from fnmatch import fnmatch
from typing import Any

_pattern, _, _number = os.environ.get("WATCH_KILL", "#0").rpartition("#")
_log = os.environ.get("WATCH_LOG")
_seen = 0


def _path_of(event: str, args: tuple[Any, ...]) -> str:
    """The path about to be changed, "" for other events."""
    if event == "os.rename":
        return os.fsdecode(args[1])
    if event == "shutil.rmtree":
        return os.fsdecode(args[0])
    if (
        event == "open"
        and isinstance(args[1], str)
        and set(args[1]) & set("wax+")
        and isinstance(args[0], str | os.PathLike)
    ):
        return os.fsdecode(args[0])
    return ""


def _watch(event: str, args: tuple[Any, ...]) -> None:
    global _seen
    if event not in ("os.rename", "shutil.rmtree", "open") or not (path := _path_of(event, args)):
        return
    if _log and path != _log:
        descriptor = os.open(_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{os.environ.get('RANK', '0')} {path}\n".encode())
        os.close(descriptor)
    if _pattern and fnmatch(path, _pattern):
        _seen += 1
        if _seen == int(_number):
            os.kill(os.getpid(), signal.SIGKILL)


if _pattern or _log:
    sys.addaudithook(_watch)
