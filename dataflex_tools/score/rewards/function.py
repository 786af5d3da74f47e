"""A reward that a Python function of the user's computes."""

import importlib
import importlib.util
import math
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.fingerprint import file_sha256
from dataflex_tools.score.rewards.base import RewardError, RewardRequest


class FunctionReward:
    """Calls `package.module:function` as function(messages, answer, reference); what it raises is not caught.

    Raises ConfigError if it cannot be imported or called.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        source_sha256(name)
        module, _, function = name.partition(":")
        try:
            self._function = getattr(importlib.import_module(module), function)
        except AttributeError:
            raise ConfigError(f"reward.function {name}: module {module} has no {function!r}") from None
        if not callable(self._function):
            raise ConfigError(f"reward.function {name} is {type(self._function).__name__}, wanted a function")

    def __call__(self, requests: Sequence[RewardRequest]) -> Iterator[tuple[int, float]]:
        """(place, reward) in order. Raises RewardError for what is no finite number."""
        for index, request in enumerate(requests):
            value = self._function([dict(turn) for turn in request.messages], request.answer, request.reference)
            if not isinstance(value, Real) or not math.isfinite(value):
                raise RewardError(
                    f"reward.function {self._name} gave {value!r} for the answer {request.shown}, wanted a finite number"
                )
            yield index, float(value)


def source_sha256(name: str) -> str:
    """SHA-256 of the source file of the module in `package.module:function`; what that imports is not looked at.

    Raises ConfigError if there is no such module or it has no source.
    """
    module = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):  # ValueError: __main__ has no specification
        spec = None
    if spec is None:
        raise ConfigError(
            f"reward.function {name}: no module {module!r} can be imported; install it, or put its folder into PYTHONPATH"
        )
    if spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(f"reward.function {name}: module {module} has no source file, which is part of the address")
    return file_sha256(Path(spec.origin))
