"""What `tf.GradientTape`s record."""

import contextlib

from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import forwardprop_util
from tensorflow.python.ops import resource_variable_ops


def tapes_record():
    """Whether any `tf.GradientTape` records."""
    return not pywrap_tfe.TFE_Py_TapeSetIsEmpty()


def recording_tapes(tensor):
    """How many of the recording tapes have seen how `tensor` was computed: 0, 1, or 2 for more."""
    return pywrap_tfe.TFE_Py_TapeSetPossibleGradientTypes([tensor])


def has_tangents(tensors):
    """Whether a `tf.autodiff.ForwardAccumulator` knows a tangent of one of the tensors."""
    return bool(forwardprop_util.pack_tangents(list(tensors)).tangents)


@contextlib.contextmanager
def recording(active):
    """Lets tapes record, or not, whatever is so outside: within `tf.stop_gradient` they pause."""
    paused = pywrap_tfe.TFE_Py_TapeSetIsStopped()
    switch = {True: pywrap_tfe.TFE_Py_TapeSetRestartOnThread,
              False: pywrap_tfe.TFE_Py_TapeSetStopOnThread}  # fmt: skip
    if active == paused:
        switch[active]()
    try:
        yield
    finally:
        if active == paused:
            switch[paused is False]()


def recording_is_paused():
    """Whether tapes don't record at the moment."""
    return pywrap_tfe.TFE_Py_TapeSetIsStopped()


def is_watched(variable):
    """Whether a recording tape watches a variable."""
    return recording_tapes(variable._handle) > 0


def accessed(variable):
    """Tells tapes that a variable was read, as a read does: those that watch by themselves."""
    resource_variable_ops.variable_accessed(variable)
