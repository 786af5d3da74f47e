"""flextools: score once, store, train many times. `load_artifact(folder)` is the way in from Python."""

from typing import Any

__all__ = ["load_artifact"]


def __getattr__(name: str) -> Any:
    # torch is imported only by those who ask for a sampler
    if name == "load_artifact":
        from dataflex_tools.sampler.api import load_artifact

        return load_artifact
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
