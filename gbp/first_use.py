"""Names of a package that are imported on first use: so `gbp --help` needs neither Numba nor onnx."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def imported_on_first_use(
    package: str, modules: Mapping[str, str], folders: Sequence[str] = ()
) -> Callable[[str], Any]:
    """The `__getattr__` of a package, which imports a name when somebody asks for it (PEP 562).

    Parameters
    ----------
    package
        The package's `__name__`.
    modules
        Name → the module of the package that has it, such as "engine.run".
    folders
        Packages in the package, which are imported by their own names.
    """

    def found(name: str) -> Any:
        if name in folders:
            return import_module(f".{name}", package)
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{modules[name]}", package), name)
        setattr(sys.modules[package], name, value)  # so it is found without this function from now on
        return value

    return found
