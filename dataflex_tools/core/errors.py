"""Errors a user can act on. Each message says what was found, what was wanted and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class FlextoolsError(Exception):
    """Wrong use or wrong input; the command line prints the message alone and exits with code 2."""


class ConfigError(FlextoolsError):
    """A setting that is unknown, out of range, or does not fit another one."""


class DataError(FlextoolsError):
    """A corpus or target that cannot be read, or holds what cannot be trained on."""


class ArtifactError(FlextoolsError):
    """An artifact that is missing, unfinished, changed, or made from something else."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that ends an error line: the nearest known name, else all of them."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if known else "none exist"
