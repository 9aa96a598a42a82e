"""Which `tf.GradientTape`s record, and whether that is as it was.

A result computed before may take the place of a new one only if the same tapes saw it, with the
same tensors watched. TensorFlow tells no more than whether none, one or several tapes have seen a
tensor (a persistent one counts as several), so that tapes are followed here as they start, stop and
watch. Imported by name, where flows are wanted: importing it is what makes tapes be followed.
"""

import functools
import itertools
import threading
import weakref

import tensorflow as tf
from tensorflow.python.eager import record

from tfsymadj._platform.tapes import tapes_record

_plain_push = tf.GradientTape._push_tape
_plain_pop = tf.GradientTape._pop_tape
_plain_watch = tf.GradientTape.watch
_numbers = itertools.count()


class _Recording(threading.local):
    def __init__(self):
        self.tapes = []  # weak references: a tape may be dropped without having been stopped


_recording = _Recording()


@functools.wraps(_plain_push)
def _push(tape):
    if tape._tape is None:  # new, or reset
        tape._tfsymadj_number = next(_numbers)
    _plain_push(tape)
    _recording.tapes.append(weakref.ref(tape))


@functools.wraps(_plain_pop)
def _pop(tape):
    _plain_pop(tape)
    _recording.tapes = [r for r in _recording.tapes if r() is not None and r() is not tape]


@functools.wraps(_plain_watch)
def _watch(tape, tensor):
    _plain_watch(tape, tensor)
    tape._tfsymadj_number = next(_numbers)


tf.GradientTape._push_tape = _push
tf.GradientTape._pop_tape = _pop
tf.GradientTape.watch = _watch


def recording_state():
    """What identifies the tapes that record in this thread, and what they were told to watch.

    Returns:
        A tuple of numbers, equal to an earlier one if no tape was started, stopped, reset or told
        to watch something since; None if it can't be known (`tf.autodiff.ForwardAccumulator`).
    """
    if not tapes_record():
        return ()
    tapes = [reference() for reference in _recording.tapes]
    numbers = tuple(tape._tfsymadj_number for tape in tapes if tape is not None)
    return numbers or None


def unrecorded():
    """A context in which no tape records."""
    return record.stop_recording()
