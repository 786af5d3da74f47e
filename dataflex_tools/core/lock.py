"""One working folder, one writer: a lock of the operating system that dies with its process.

A start that finds a folder held waits, saying for whom, and looks again once it has the lock: what
the other one finished is reused, what it left half-made is gone on with. The lock file lies hidden
beside the folder (`artifacts/.less.lock`), so that no artifact holds one, and stays there: removing
it would split those that wait. While it is held, `artifacts/.less.holder` says by whom.

A process holds the folder of its result and, inside, one folder on the way at a time (a warm-up, a
signal, a small model); a bench holds its own folder around these. Sources are read before that.
Nothing takes locks in another order, so no two processes wait for each other.

Several hosts exclude each other as far as their file system carries flock between them: NFS 4, and
Lustre mounted with `flock`. Mounts with `nolock`, `local_lock` or `localflock` do not, and cannot be
told from those that do; a file system that refuses to lock is named in a warning.
"""

import errno
import functools
import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from dataflex_tools.core import dist

logger = logging.getLogger("flextools")

_EVERY = 0.5  # seconds between two looks at a lock that another process holds
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # as flock says it
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def hold(folder: Path, title: str) -> Iterator[None]:
    """Work in `folder`, which need not exist, alone; waits until no other process does.

    `title` names the work for those who wait. A folder on a file system without locks is not locked,
    with a warning; nor is one whose place is read-only, where nobody writes.
    """
    place = folder.resolve()
    lock = FileLock(str(place.with_name(f".{place.name}.lock")))
    holder = place.with_name(f".{place.name}.holder")
    if not _acquired(lock, folder, holder):
        yield
        return
    try:
        _write_holder(holder, title)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def hold_for_all(folder: Path, title: str) -> Iterator[None]:
    """`hold` for all ranks, which must all call it: rank 0 has the lock, all work under it."""
    with hold(folder, title) if dist.is_main() else nullcontext():
        dist.barrier()
        yield
        dist.barrier()  # the lock is let go when the last rank has ended its work


def _acquired(lock: FileLock, folder: Path, holder: Path) -> bool:
    """True once the lock is had, False where there can be none."""
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        _wait(lock, folder, holder)
    except NotImplementedError:
        _warn_unlocked(folder.parent, "the file system has no locks")
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            _warn_unlocked(folder.parent, f"the file system has no locks ({error.strerror})")
        elif error.errno not in _NOT_ALLOWED:
            raise
        elif os.access(Path(lock.lock_file).parent, os.W_OK):
            _warn_unlocked(folder.parent, f"{lock.lock_file}: {error.strerror}")
        return False
    return True


def _wait(lock: FileLock, folder: Path, holder: Path) -> None:
    """Until the lock is had; one line for each process that has it meanwhile."""
    said, tries = "", 0
    while not _try(lock):
        tries += 1
        who, what = _read_holder(holder)
        # the holder says who it is a moment after it has the lock
        if who != said and (what or tries > 2):
            logger.info("waiting for %s, which has been working on %s%s", who, folder, what)
            said = who
        time.sleep(_EVERY)


def _try(lock: FileLock) -> bool:
    """Whether the lock could be taken now. Raises OSError or NotImplementedError where there is none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flock not supported", UserWarning)  # said below
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
    if isinstance(lock, SoftFileLock):  # filelock's stand-in outlives a process that is killed
        lock.release()
        raise NotImplementedError
    return True


@functools.cache
def _warn_unlocked(folder: Path, why: str) -> None:
    """Once for each place."""
    logger.warning("nothing in %s can be locked, %s: do not start two commands there at once", folder, why)


def _write_holder(path: Path, title: str) -> None:
    now = {"pid": os.getpid(), "host": socket.gethostname(), "title": title, "since": time.time()}
    with suppress(OSError):  # a full disk: it is for those who wait, the lock is had
        path.write_text(json.dumps(now), encoding="utf-8")


def _read_holder(path: Path) -> tuple[str, str]:
    """(who holds the lock, its work and since when), ("another process", "") if that is not known."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        since = datetime.fromtimestamp(found["since"])
        who = f"process {int(found['pid'])} on host {found['host']}"
        title = str(found["title"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process", ""
    day = "%H:%M:%S" if since.date() == datetime.now().date() else "%Y-%m-%d %H:%M:%S"
    return who, f" since {since:{day}} ({title})"
