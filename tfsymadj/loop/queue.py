"""A queue of examples before a few lanes: a lane that is done takes the next one.

The loop is that of `integrate`, left and entered again whenever an eighth of the lanes has come to
an end: what is evaluated for the first step of a few is evaluated for all lanes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfsymadj.arithmetic import epsilon, select
from tfsymadj.loop.failures import first_failure, nan_where
from tfsymadj.loop.integrate import Loop
from tfsymadj.loop.problem import Outcome, Problem
from tfsymadj.solution import Status
from tfsymadj.xla import compiled


@dataclasses.dataclass(frozen=True)
class Queue:
    """What a problem of many examples and a few lanes has besides.

    Attributes:
        width: the number of lanes.
        args: the arguments of the dynamics that have a row for each example, a list of tensors.
        of_lanes: those rows of them that the dynamics were closed with.
        function: callable from such rows to the dynamics `(t, ys) -> dys`.
    """

    width: int
    args: list
    of_lanes: list
    function: Callable


def num_examples(problem: Problem) -> Any:
    """The number of examples, an int where it is known."""
    static = problem.ys[0].shape[0]
    return tf.shape(problem.ys[0])[0] if static is None else static


def taken(problem: Problem, examples: tf.Tensor) -> Problem:
    """The problem of some of the examples, with a lane for each of them.

    Args:
        problem: with a `Queue`.
        examples: int32 vector, their numbers.
    """

    def columns(x):
        return x if x is None else tf.gather(x, examples, axis=1)

    def rows(x):
        return x if x is None else tf.gather(x, examples)

    queue, switches = problem.queue, problem.switches
    if switches is not None:
        switches = dataclasses.replace(
            switches, at=columns(switches.at), times=columns(switches.times)
        )
    args = [rows(x) for x in queue.args]
    return dataclasses.replace(
        problem,
        dynamics=problem.dynamics.given(queue.function(args), queue.of_lanes, args),
        ys=[rows(y) for y in problem.ys],
        stops=columns(problem.stops),
        between=columns(problem.between),
        switches=switches,
        valid=rows(problem.valid),
        last=rows(problem.last),
        queue=None,
    )


def integrate_queue(problem: Problem) -> Outcome:
    """Solves the problem, of which nothing is recorded."""
    outcome = compiled(_Refilled(problem).run, problem.jit_compile)
    return outcome._replace(time=tf.stop_gradient(outcome.time))


#: Those of `Stats` that each example has of its own.
_COUNTS = ("num_steps", "num_accepted", "num_rejected", "num_evaluations", "num_stiff")


class _Lanes(NamedTuple):
    """The variables of the loop around the loop.

    Attributes:
        examples: int32, of each lane; their number where there is none.
        following: the next one to be taken.
        carry: the loop's.
        results: of `_examples_first`, so far, with a row for one more example that is none.
    """

    examples: tf.Tensor
    following: tf.Tensor
    carry: Any
    results: tuple


class _Refilled:
    """The loop around the loop.

    Args:
        problem: with a `Queue`.
    """

    def __init__(self, problem):
        self._problem, self._width = problem, problem.queue.width
        self._count = num_examples(problem)
        self._many = max(self._width // 8, 1)

    def run(self):
        """The `Outcome`."""
        lanes = tf.range(self._width)
        examples = tf.minimum(lanes, self._count)
        loop = self._loop(examples)
        carry, self._evaluations = loop.start()
        carry = self._only_examples(loop, examples, carry)
        like = loop.finish(carry, self._evaluations)
        results = tf.nest.map_structure(self._reserved, _examples_first(like))
        following = tf.constant(self._width)
        (last,) = tf.while_loop(
            lambda x: tf.reduce_any(x.examples < self._count),
            self._refill,
            (_Lanes(examples, following, carry, results),),
            parallel_iterations=1,
            name="queue",
        )
        found = tf.nest.map_structure(lambda x: x[: self._count], last.results)
        return self._unless_mixed(_examples_last(found, like))

    def _unless_mixed(self, outcome):
        """The outcome, failed if examples have other slopes beside another number of others.

        So have those whose dynamics mix them, and an argument that all share if it has as many rows
        as there are examples: it is taken for one of which each has a row. Looked at are the first
        ones at the start, where it may not show yet, and at the end.
        """
        width, ends = self._width, [y[-1] for y in outcome.ys]
        same = tf.constant(True)
        for stop, ys in ((0, self._problem.ys), (-1, ends)):
            few, more = (self._slopes(n, stop, ys) for n in (width, width + 1))
            alike = tf.reduce_all([_alike(x, y[:width]) for x, y in zip(few, more)])
            same = tf.logical_and(same, alike)
        status = first_failure(outcome.status, same, Status.EXAMPLES_MIXED)
        failed = tf.logical_not(same)
        ys = [y + nan_where(failed, y.dtype, 0) for y in outcome.ys]
        return outcome._replace(ys=ys, status=status)

    def _slopes(self, count, stop, ys):
        """The dynamics of the first examples at one of their stops, for states of all."""
        examples = tf.minimum(tf.range(count), self._count - 1)
        problem = taken(self._problem, examples)
        apart = getattr(problem.dynamics, "apart", problem.dynamics)
        return apart(problem.stops[stop], [tf.gather(y, examples) for y in ys])

    def _loop(self, examples):
        return Loop(taken(self._problem, tf.minimum(examples, self._count - 1)), None)

    def _reserved(self, x):
        return tf.zeros(tf.concat([[self._count + 1], tf.shape(x)[1:]], 0), x.dtype)

    def _only_examples(self, loop, examples, carry):
        """Lanes without an example have come to their end."""
        none = examples >= self._count
        return carry._replace(interval=tf.where(none, loop.last_stop, carry.interval))

    def _refill(self, x):
        loop = self._loop(x.examples)
        waiting = x.following < self._count
        enough = tf.where(waiting, self._width - self._many, 0)
        carry = loop.go_on(
            x.carry, lambda running: tf.reduce_sum(tf.cast(running, tf.int32)) > enough
        )
        done = tf.logical_not(loop.running(carry))
        found = _examples_first(loop.finish(carry, self._evaluations))
        rows = tf.where(done, x.examples, self._count)[:, tf.newaxis]
        results = tf.nest.map_structure(
            lambda a, b: tf.tensor_scatter_nd_update(a, rows, b), x.results, found
        )
        numbers = x.following + tf.cumsum(tf.cast(done, tf.int32)) - 1
        examples = tf.where(done, tf.minimum(numbers, self._count), x.examples)
        following = x.following + tf.reduce_sum(tf.cast(done, tf.int32))
        with tf.control_dependencies(tf.nest.flatten(results)):
            # Outputs are overwritten where they are.
            done = tf.identity(done)
        carry = self._reloaded(examples, done, carry)
        return (_Lanes(examples, following, carry, results),)

    def _reloaded(self, examples, done, carry):
        """The loop's variables with those of other examples where lanes are done."""
        loop = self._loop(examples)
        fresh, _ = loop.start(carry.outputs, done)
        fresh = self._only_examples(loop, examples, fresh)
        outputs, nothing = fresh.outputs, []
        fresh, carry = fresh._replace(outputs=nothing), carry._replace(outputs=nothing)
        chosen = tf.nest.map_structure(lambda a, b: select(done, [a], [b])[0], fresh, carry)
        return chosen._replace(outputs=outputs)


def _examples_first(outcome):
    """What is of each example in an outcome, the outputs' first two axes exchanged."""
    return (
        [_exchanged(y) for y in outcome.ys],
        outcome.status,
        outcome.time,
        [getattr(outcome.stats, count) for count in _COUNTS],
    )


def _examples_last(found, like):
    """The `Outcome` of what `_examples_first` returns; `like` has the rest of its numbers."""
    ys, status, time, counts = found
    return Outcome(
        ys=[_exchanged(y) for y in ys],
        status=status,
        time=time,
        stats=like.stats._replace(**dict(zip(_COUNTS, counts))),
    )


def _alike(x, y):
    """Whether two tensors are equal where they are finite, but for rounding: products of other
    shapes may add up otherwise.
    """
    finite = tf.math.is_finite(tf.abs(x - y))
    zeros = tf.zeros_like(tf.abs(x))
    scale = tf.reduce_max(tf.where(finite, tf.abs(x), zeros))
    bound = tf.cast(epsilon(scale.dtype) ** 0.5, scale.dtype) * scale
    return tf.reduce_max(tf.where(finite, tf.abs(x - y), zeros)) <= bound


def _exchanged(y):
    return tf.transpose(y, [1, 0, *range(2, y.shape.rank)])
