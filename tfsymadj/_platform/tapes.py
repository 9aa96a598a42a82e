"""What `tf.GradientTape`s record."""

from tensorflow.python import pywrap_tfe


def tapes_record():
    """Whether any `tf.GradientTape` records."""
    return not pywrap_tfe.TFE_Py_TapeSetIsEmpty()


def recording_tapes(tensor):
    """How many of the recording tapes have seen how `tensor` was computed: 0, 1, or 2 for more."""
    return pywrap_tfe.TFE_Py_TapeSetPossibleGradientTypes([tensor])
