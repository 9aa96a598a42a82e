"""Warnings that point at the caller's line."""

import os
import sys
import warnings

from tfsymadj import _platform

_HERE = os.path.dirname(__file__) + os.sep
_LIBRARIES = (
    "contextlib",
    "functools",
    "keras",
    "tensorflow",
    "tensorflow_probability",
    "tf_keras",
)


def warn(message):
    """A `UserWarning` at the innermost line outside of this package, Keras and TensorFlow."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_library(frame):
        frame = frame.f_back
    filename, lineno = _line(frame)
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    module = frame.f_globals.get("__name__")
    warnings.warn_explicit(message, UserWarning, filename, lineno, module, registry)


def _line(frame):
    return _platform.original_line(frame) or (frame.f_code.co_filename, frame.f_lineno)


def _is_library(frame):
    filename, _ = _line(frame)
    name = frame.f_globals.get("__name__") or ""
    return filename.startswith(_HERE) or name.partition(".")[0] in _LIBRARIES
