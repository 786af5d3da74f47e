"""Find a method by name: a module of a package, or an entry point of another distribution."""

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dataflex_tools.core.errors import ConfigError, FlextoolsError, did_you_mean, one_line

# what the module of somebody else may do when it is run
_FAILURES = (
    FlextoolsError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError,
    RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip


class Registry:
    """Classes by snake_case name. `less` is class `Less` of module `<package>.less`; no registration call is needed.

    Another distribution adds a class with an entry point in `group` (`name = "module:Class"`): a subclass of one of the
    `bases` in `<package>.base`, under a name that no other has.
    """

    def __init__(self, kind: str, package: str, group: str, *, bases: tuple[str, ...]) -> None:
        self.kind, self.package, self.group, self.bases = kind, package, group, bases

    def names(self) -> list[str]:
        """All names, sorted; imports none of the modules."""
        return sorted({*self._own(), *(point.name for point in self._points())})

    def find(self, name: str) -> Any:
        """The class called `name`; one of this package goes before one of another that has its name.

        Raises ConfigError with the nearest name if there is none, or with what is wrong with a class of another package.
        """
        if name not in (names := self.names()):
            raise ConfigError(f"unknown {self.kind} {name!r}; {did_you_mean(name, names)}")
        if name in self._own():
            class_name = "".join(part.capitalize() for part in name.split("_"))
            return getattr(importlib.import_module(f"{self.package}.{name}"), class_name)
        return self._load(next(point for point in self._points() if point.name == name))

    def faults(self) -> dict[str, str]:
        """What is wrong with the classes of other packages, by entry point; they take nothing else down."""
        found = {}
        for point in self._points():
            try:
                self._load(point)
            except ConfigError as error:
                found[f"{point.name} = {point.value}"] = str(error)
        return found

    def _own(self) -> set[str]:
        path = importlib.import_module(self.package).__path__
        return {module.name for module in pkgutil.iter_modules(path) if module.name != "base"}

    def _points(self) -> list[EntryPoint]:
        return sorted(entry_points(group=self.group), key=lambda point: (point.name, point.value))

    def _load(self, point: EntryPoint) -> Any:
        """The class behind an entry point. Raises ConfigError if there is none that can be used."""
        origin = f" of {point.dist.name}" if point.dist is not None else ""
        where = f"{self.kind} {point.name!r} ({point.value}{origin})"
        if point.name in self._own():
            raise ConfigError(f"{where} has the name of one that is there already; give the entry point another name")
        same = sorted({other.value for other in self._points() if other.name == point.name})
        if len(same) > 1:
            raise ConfigError(f"{where} is not the only one of its name: {', '.join(same)}; rename one of the entry points")
        base = importlib.import_module(f"{self.package}.base")
        try:
            found: Any = point.load()
        except _FAILURES as error:
            raise ConfigError(f"{where} cannot be imported: {type(error).__name__}: {one_line(error)}") from None
        wanted = tuple(getattr(base, name) for name in self.bases)
        if not (isinstance(found, type) and issubclass(found, wanted)):
            raise ConfigError(f"{where} is no subclass of {' or '.join(self.bases)} of {self.package}.base")
        if lacking := [name for name in ("Settings", "paper", "cost") if getattr(found, name, None) is None]:
            raise ConfigError(f"{where} lacks {', '.join(lacking)}; a method says these")
        made: Any = found
        try:
            made(made.Settings())
        except _FAILURES as error:
            raise ConfigError(f"{where} cannot be made with its defaults: {one_line(error)}") from None
        return found
