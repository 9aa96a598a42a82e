"""Code and classes: what they look up, and whose they are."""

import dis
import functools
import os
import pathlib
import site
import sys
import sysconfig
import types
import weakref


@functools.lru_cache(maxsize=4096)
def names_in(code):
    """Names that the code looks up in its module, names of attributes, and of modules it imports.

    Those of functions that are defined inside are included.
    """
    names, attributes, imports = set(), set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            attributes.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            imports.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = names_in(constant)
            names.update(inner[0])
            attributes.update(inner[1])
            imports.update(inner[2])
    return tuple(sorted(names)), tuple(sorted(attributes)), tuple(sorted(imports))


_PATHS = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_PATHS += (site.getusersitepackages(), str(pathlib.Path(__file__).parents[1]) + os.sep)


@functools.lru_cache(maxsize=4096)
def is_library(file):
    """Whether a file belongs to an installed package, whose globals nobody changes."""
    return file.startswith((*_PATHS, "<frozen"))


_library_classes: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def is_library_class(x):
    """Whether a class is of Python or of an installed package."""
    known = _library_classes.get(x)
    if known is None:
        module = sys.modules.get(x.__module__)
        file = getattr(module, "__file__", None)
        builtin = module is not None and (
            x.__module__ in sys.builtin_module_names or x.__module__ == "builtins"
        )
        known = _library_classes[x] = builtin or bool(file and is_library(file))
    return known


_slot_names: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def slots_of(kind):
    """The names of a class's slots, as attributes."""
    known = _slot_names.get(kind)
    if known is None:
        known = []
        for base in kind.__mro__:
            slots = base.__dict__.get("__slots__", ())
            slots = [slots] if isinstance(slots, str) else list(slots)
            known += [_mangled(name, base) for name in slots]
        known = _slot_names[kind] = tuple(
            name for name in known if name not in ("__dict__", "__weakref__")
        )
    return known


def _mangled(name, owner):
    """The name of a private attribute as the class that defines it keeps it."""
    private = name.startswith("__") and not name.endswith("__")
    return f"_{owner.__name__.lstrip('_')}{name}" if private else name
