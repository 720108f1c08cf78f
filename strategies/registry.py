"""Names of strategies. A class registers itself when it is defined; `load` finds the built-in ones and plug-ins.

A plug-in is a Python package with an entry point in the group `decoding_server.strategies` that names a class (or a
module that defines some). Nothing else has to change anywhere.
"""

import importlib
import logging
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from strategies.errors import InvalidRequest

log = logging.getLogger(__name__)

Kind = Literal["transform", "speculation", "search"]

ENTRY_POINT_GROUP = "decoding_server.strategies"
RUNTIMES = ("torch", "vllm")
"""What a model can be run by. A strategy names those that can run it; by default all."""
BUILT_IN = ("strategies.sampling", "strategies.speculative", "strategies.search")
"""Packages whose modules, imported, register the built-in strategies."""

_registered: dict[Kind, dict[str, type[Any]]] = {"transform": {}, "speculation": {}, "search": {}}


def register(kind: Kind, name: str, strategy: type[Any]) -> None:
    """Makes a class known. Raises ValueError for a name that another class has."""
    known = _registered[kind].get(name)
    if known is not None and known.__qualname__ != strategy.__qualname__:
        raise ValueError(
            f"two strategies ({kind}) are called {name!r}: {known.__qualname__} and {strategy.__qualname__}"
        )
    _registered[kind][name] = strategy


@cache
def load() -> None:
    """Imports every built-in module and every plug-in, once. A plug-in that fails is logged and left out."""
    for package in BUILT_IN:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, package + "."):
            importlib.import_module(module.name)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:
            log.error("the plug-in %s (%s) can't be loaded: %s", point.name, point.value, error)


def registered(kind: Kind) -> Mapping[str, type[Any]]:
    """All strategies of a kind by name."""
    load()
    return _registered[kind]


def find(kind: Kind, name: str, param: str) -> type[Any]:
    """The strategy of that name. Raises InvalidRequest that names `param` and lists what there is."""
    known = registered(kind)
    if name not in known:
        raise InvalidRequest(f"{name[:100]!r} is unknown; there are: {', '.join(sorted(known))}", param)
    return known[name]
