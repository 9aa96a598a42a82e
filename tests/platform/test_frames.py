"""Lines of code that was generated."""

import inspect
import sys

import tensorflow as tf

from tfsymadj import _platform


@tf.autograph.experimental.do_not_convert
def generated_line():
    """The innermost line of generated code, None if there is none."""
    frame = sys._getframe(1)
    while frame is not None and _platform.original_line(frame) is None:
        frame = frame.f_back
    return frame and _platform.original_line(frame)


def test_original_line_of_generated_code():
    found = []

    def dynamics(y):
        found.append(generated_line())
        return y

    tf.function(lambda y: dynamics(y))(tf.constant(1.0))
    dynamics(1.0)
    line = inspect.getsourcelines(dynamics)[1] + 1
    assert found == [(__file__, line), None]
