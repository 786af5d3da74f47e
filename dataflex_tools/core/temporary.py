"""Names for what is written before it is renamed to where it belongs."""

import uuid
from pathlib import Path


def temporary_for(path: Path) -> Path:
    """A hidden name beside `path`, so that the rename stays within one file system; no two calls,
    processes or hosts get the same.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
