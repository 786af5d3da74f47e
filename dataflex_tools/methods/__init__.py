"""One file per method; each reads arrays and returns a plan. `METHODS.find("less")` is the class."""

from dataflex_tools.core.registry import Registry

METHODS = Registry("method", "dataflex_tools.methods", "flextools.methods", bases=("Selector", "Mixer"))
