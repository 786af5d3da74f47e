"""Where corpora and tokens are cached: beside the artifacts, or where the user says."""

import os
from pathlib import Path

from dataflex_tools.core.errors import ConfigError

VARIABLE = "FLEXTOOLS_CACHE"


def cache_folder(root: Path) -> Path:
    """The folder of $FLEXTOOLS_CACHE (`--cache`) if it is set, else `root`/cache.

    Raises ConfigError if nothing can be written there, as in a read-only copy of somebody's artifacts.
    """
    given = os.environ.get(VARIABLE)
    folder = Path(given).expanduser() if given else root / "cache"
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if given and not above.is_dir():  # beside the artifacts it is said of them
        raise ConfigError(f"the cache {folder} cannot be made: {above} is a file; give another folder with --cache")
    if above.is_dir() and not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(
            f"the cache {folder} cannot be written: {above} is read-only; give another folder with --cache DIR, or set "
            f"{VARIABLE}"
        )
    return folder
