"""What to keep for a number of bytes: the plan that takes the least time within them."""

import math
import re

import tensorflow as tf

from tfsymadj.checkpoints.budget import budget_recording, cheapest_plan
from tfsymadj.checkpoints.recording import Recording
from tfsymadj.config import is_int
from tfsymadj.dynamics.tapes import num_bytes, tape_of

_UNITS = {
    "B": 1,
    **{f"{x}B": 1000**i for i, x in enumerate("kMGT", 1)},
    **{f"{x}iB": 1024**i for i, x in enumerate("KMGT", 1)},
}

#: The bytes that nobody has to ask for.
FREE = 64 * 2**20

#: Those of an adaptive solve, which sets them aside, and fills them with zeros, for all steps that
#: it might take.
FREE_ADAPTIVE = 64 * 2**10

#: The bytes of activations of a step of an adaptive solve from which on it takes longer to compute
#: them again than to keep them.
WORTHWHILE = 64 * 2**10

#: Of how many of the last steps of an adaptive solve activations are kept by default, at least and
#: at most, and at most within a budget: the place for them is filled with zeros, however few steps
#: are taken.
LAST_STEPS, MOST_STEPS = (8, 16), 32

#: How often activations are there: outside of the loop that writes them they are another tensor.
_COPIES = 2

#: More states than this need not be told apart.
_MOST = 2**30


def as_bytes(memory: int | str) -> int:
    """A number of bytes, given as an int or as a string such as "256 MiB".

    Raises:
        ValueError: if it is none, or not positive.
    """
    if is_int(memory, 1):
        return int(memory)
    found = isinstance(memory, str) and re.fullmatch(r"\s*(\d+\.?\d*)\s*([A-Za-z]+)\s*", memory)
    if found and found[2] in _UNITS and float(found[1]) > 0.0:
        return int(float(found[1]) * _UNITS[found[2]])
    raise ValueError(
        "`memory` must be a positive number of bytes, an int or a string such as '256 MiB' (units: "
        f"{', '.join(_UNITS)}). Received: {memory!r}"
    )


def automatic_recording(problem, with_activations=True):
    """The `Recording` of about `root_recording`'s states, or of more where these cost nothing.

    A tape for each step, not one for each stage, is faster, and needs one value a step; but it
    holds all stages' activations. It is taken where these are few. Where the forward pass can keep
    them of all steps, or of the last ones, it does. Sizes that are not known when the solve is
    traced count as `tapes.UNKNOWN`.

    Args:
        problem: `Problem`.
        with_activations: whether activations may be kept.
    """
    sizes = [num_bytes(y) for y in _kept_parts(problem)]
    if None in sizes:
        return root_recording(problem)
    tape = _tape(problem)
    held = _step_bytes(problem, tape)
    single = held is not None and held <= FREE
    size = max(sum(sizes), 1)
    if single and with_activations:
        recording = _activations_recording(problem, _halves(problem, tape), size)
        if recording is not None:
            return recording
    free = FREE_ADAPTIVE
    if problem.known_length:
        free = FREE - held if single else FREE
    return root_recording(problem, single, free // size)


def _activations_recording(problem, halves, size):
    """The `Recording` of activations, where it takes less time than any other; else None.

    Args:
        problem: `Problem`.
        halves: `Halves` or None.
        size: bytes of the state.
    """
    n, (fewest, most) = problem.max_steps, LAST_STEPS
    if halves is None or not isinstance(n, int):
        return None
    each = problem.method.stages * halves.num_bytes
    if problem.known_length:
        return Recording(n, 0, n, halves=halves) if _COPIES * n * each <= FREE else None
    stride = min(max(_root_stride(n, max(each / size, 1.0), whole=False), fewest), n)
    segments = 0 if stride == n else -(-n // stride)
    if each < WORTHWHILE or stride > most or _COPIES * stride * each + segments * size > FREE:
        return None
    return Recording(stride, segments, stride, halves=halves)


def tapes_steps(problem):
    """Whether the activations of all stages of a step are few enough for one tape."""
    held = _step_bytes(problem, _tape(problem))
    return held is not None and held <= FREE


def root_recording(problem, tapes_steps=False, room=0):
    """The `Recording` of every c-th step, and of the values of c steps at a time.

    There are n / c checkpoints and c v values of n steps of v values: least for c = sqrt(n / v).
    All values are kept where there is room for them, else of as many steps as there is.

    Args:
        problem: `Problem`.
        tapes_steps: see `Recording`.
        room: for how many states, int or integer scalar.
    """
    n, known = problem.max_steps, problem.known_length
    values = 1 if tapes_steps else problem.method.stages
    # Where fewer steps may be taken than n, all of their values may fit in; not elsewhere, or an
    # eager tape would hold the ring a second time.
    if not (isinstance(n, int) and isinstance(room, int)):
        has_ring = not known or tf.is_tensor(room) or room > 0
        count, room = tf.cast(n, tf.float64), tf.cast(room, tf.float64)
        square = room * room - 4.0 * values * count  # of the equation c v + n / c = room
        longest = tf.floor((room + tf.sqrt(tf.maximum(square, 0.0))) / (2.0 * values))
        root = tf.round(tf.sqrt(count / values))
        stride = tf.where(square < 0.0, root, tf.maximum(longest, root))
        stride = tf.cast(tf.clip_by_value(stride, 1.0, count), tf.int32)
        return Recording(stride, -(-n // stride), stride if has_ring else 0, tapes_steps)
    if n * values <= room:
        return Recording(n, 0, n, tapes_steps)
    stride = _root_stride(n, values, whole=known)
    ring = 0 if known else stride
    fitting = [c for c in range(stride + 1, room // values) if c * values + -(-n // c) <= room]
    if fitting:
        stride = ring = _preferred(n, fitting, fitting[-1] / 2) if known else fitting[-1]
    return Recording(stride, -(-n // stride), ring, tapes_steps)


def _root_stride(n, values, whole):
    """The length of a segment, of n steps of so many values.

    Args:
        whole: whether one that divides n is preferred, if it takes little more memory.
    """
    best = max(1, round(math.sqrt(n / values)))

    def held(c):
        return -(-n // c) + c * values

    divisors = [c for c in range(1, 2 * best + 1) if n % c == 0] if whole else []
    return min([c for c in divisors if held(c) <= 1.1 * held(best)] or [best], key=held)


def _preferred(n, strides, least):
    """The longest of some strides, or one that divides n: a shorter segment is code of its own."""
    return max([c for c in strides if n % c == 0 and c >= least], default=strides[-1])


def memory_recording(problem, memory, with_activations=True):
    """The `Recording` that holds at most so many bytes at any time.

    Where the sizes of the state are not known when the solve is traced, it is `root_recording`'s.

    Args:
        problem: `Problem`.
        memory: int.
        with_activations: whether activations may be kept.

    Returns:
        None where back-propagation through the whole solve fits in.

    Raises:
        ValueError: if not even the smallest budget of states fits.
    """
    n, s = problem.max_steps, problem.method.stages
    parts = _kept_parts(problem)
    if not (isinstance(n, int) and _sizes_are_known(parts)):
        sizes = [tf.size(y, tf.int64) * y.dtype.size for y in parts]
        size = tf.maximum(tf.add_n(sizes), 1) if sizes else tf.ones([], tf.int64)
        return root_recording(problem, room=tf.minimum(memory // size, _MOST))
    size, least = max(sum(map(num_bytes, parts)), 1), s + 4
    states = min(memory // size, _MOST)
    if states < least:
        raise ValueError(
            f"`memory` must be at least {least * size} bytes, s + 4 states of {size} bytes, "
            f"for the method {problem.method.name!r} of s = {s} stages. Received: {memory}"
        )
    found = _tape(problem)
    tape = _step_bytes(problem, found)
    if tape is not None and _holds_all(problem, tape, memory):
        return None
    # Their costs: how many steps more are computed again than each of them once; those of
    # activations need no evaluation under a tape.
    plans = [(cheapest_plan(n, states, s, keeps_last=True).cost, states, {})]
    beside_tape = 0 if tape is None else min((memory - tape) // size, _MOST)
    if beside_tape >= least:
        cost = cheapest_plan(n, beside_tape, 1, keeps_last=True).cost
        plans.append((cost, beside_tape, dict(tapes_steps=True)))
        halves = _halves(problem, found) if with_activations else None
        values = 0 if halves is None else max(-(-_COPIES * s * halves.num_bytes // size), 1)
        budget = beside_tape
        if not problem.known_length:
            budget = min(budget, MOST_STEPS * values + -(-n // MOST_STEPS))
        if halves is not None and budget > values:
            cost = cheapest_plan(n, budget, values, keeps_last=True).cost - n
            plans.append((cost, budget, dict(halves=halves, values=values)))
    _, budget, options = min(reversed(plans), key=lambda plan: plan[0])
    return budget_recording(problem, budget, keeps_last=True, **options)


def _holds_all(problem, tape, memory):
    """Whether so many bytes hold the tapes of all of a known number of steps."""
    # What is compiled by itself begins its derivative with another solve; the adaptive loop would
    # be differentiated with all steps that it might take.
    sensible = problem.known_length and not problem.jit_compile and _sizes_are_known(problem.ys)
    # Called eagerly, TensorFlow's tape holds everything twice.
    return sensible and 2 * problem.max_steps * tape <= memory


def _kept_parts(problem):
    return [problem.ys[i] for i in problem.dynamics.live]


def _sizes_are_known(ys):
    return all(y.shape.is_fully_defined() for y in ys)


def _tape(problem):
    """The `Tape` of an evaluation; None where what it holds can't be told, or is no use."""
    if problem.method.iterates or None in [num_bytes(y) for y in problem.ys]:
        return None
    return tape_of(problem.dynamics, problem.ys, problem.with_time)


def _step_bytes(problem, tape):
    """The bytes that a tape of one step holds, or None."""
    if tape is None:
        return None
    # Of each stage the activations, the value and the slope.
    return problem.method.stages * (tape.num_bytes + 2 * sum(map(num_bytes, problem.ys)))


def _halves(problem, tape):
    """The `Halves` of evaluations whose activations can be kept; None where they can't."""
    plain = problem.switches is None and problem.clock is None and not problem.lanes
    return tape.halves if plain and problem.method.replays and tape is not None else None
