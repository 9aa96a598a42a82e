"""Whether Python code looks at sizes that are not known when it is traced."""

import contextlib
import functools
import os
import sys
import threading

import tensorflow as tf


class _Watching(threading.local):
    def __init__(self):
        self.seen = None  # a callable while a thread watches


_watching = _Watching()
_lock = threading.Lock()
_AUTOGRAPH = os.path.join("tensorflow", "python", "autograph")


@contextlib.contextmanager
def watched_shapes(seen):
    """Calls `seen(file)` when code of a file asks a shape for sizes and gets an unknown one."""
    _install()
    before, _watching.seen = _watching.seen, seen
    try:
        yield
    finally:
        _watching.seen = before


def _noting(method):
    """The method of `tf.TensorShape`, which tells who asked it for an unknown size."""

    @functools.wraps(method)
    def noted(shape, *args):
        if _watching.seen is not None and not _is_known(shape, args):
            _watching.seen(_caller())
        return method(shape, *args)

    noted._tfsymadj_original = method
    return noted


def _caller():
    """The file that asks; converted code asks by way of AutoGraph."""
    frame = sys._getframe(2)
    while _AUTOGRAPH in frame.f_code.co_filename and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename


def _is_known(shape, args):
    dims = shape._dims
    if dims is None:
        return False
    if len(args) == 1 and isinstance(args[0], int) and -len(dims) <= args[0] < len(dims):
        return dims[args[0]] is not None
    if len(args) == 1 and isinstance(args[0], slice):
        return True  # a shape again
    return None not in dims


def _install():
    with _lock:
        for name in ("__getitem__", "__iter__", "__eq__", "as_list", "is_fully_defined",
                     "num_elements"):  # fmt: skip
            method = getattr(tf.TensorShape, name)
            if not hasattr(method, "_tfsymadj_original"):
                setattr(tf.TensorShape, name, _noting(method))
