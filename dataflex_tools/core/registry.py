"""Find a method by name: a module of a package, or an entry point of another distribution."""

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any

from dataflex_tools.core.errors import ConfigError, did_you_mean


class Registry:
    """Classes by snake_case name. `less` is class `Less` of module `<package>.less`; no registration call is needed.

    Another distribution adds a class with an entry point in `group` (`name = "module:Class"`).
    """

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind, self.package, self.group = kind, package, group

    def names(self) -> list[str]:
        """All names, sorted; imports none of the modules."""
        path = importlib.import_module(self.package).__path__
        own = {module.name for module in pkgutil.iter_modules(path) if module.name != "base"}
        return sorted(own | {point.name for point in entry_points(group=self.group)})

    def find(self, name: str) -> Any:
        """The class called `name`. Raises ConfigError with the nearest name if there is none."""
        if name not in (names := self.names()):
            raise ConfigError(f"unknown {self.kind} {name!r}; {did_you_mean(name, names)}")
        for point in entry_points(group=self.group):
            if point.name == name:
                return point.load()
        class_name = "".join(part.capitalize() for part in name.split("_"))
        return getattr(importlib.import_module(f"{self.package}.{name}"), class_name)
