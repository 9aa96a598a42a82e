"""What the gradient methods have in common that evaluate the dynamics again."""

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.checkpoints.recording import Recording
from tfsymadj.dynamics.closing import Sources
from tfsymadj.gradients.gradient import Gradient
from tfsymadj.loop.failures import poison, poison_lanes, split_lost
from tfsymadj.loop.integrate import integrate
from tfsymadj.loop.problem import Outcome, Problem
from tfsymadj.xla import compiled


class Recomputing(Gradient):
    """A forward pass that keeps a recording, and a backward pass of one's own."""

    def recording(self, problem: Problem) -> Recording | None:
        """What the forward pass keeps."""
        return None

    def backward(
        self, problem: Problem, recording: Recording | None, outcome: Outcome, cotangents: list
    ) -> Sources:
        """The backward pass.

        Args:
            problem: `Problem`.
            recording: of `recording`.
            outcome: of the forward pass.
            cotangents: list of tensors like `outcome.states`.

        Returns:
            The gradients: for the initial state, what the dynamics read, and the stops if
            `problem.with_time`; None where there is none.
        """
        raise NotImplementedError

    def backward_evaluations(
        self, problem: Problem, recording: Recording | None, outcome: Outcome
    ) -> tf.Tensor:
        """How many evaluations `backward` will take, int32 scalar."""
        raise NotImplementedError

    def solve(self, problem):
        return self._keeping(self.recording(problem), problem)

    def _keeping(self, recording, problem):
        dynamics = problem.dynamics
        snapshot = dynamics.snapshot()
        outcome = integrate(problem, recording)

        def backward(cotangents):
            if problem.lanes:
                count = len(outcome.ys)
                cotangents, lost = split_lost(cotangents, outcome.status, count)
            with tf.name_scope(type(self).__name__):
                found = compiled(
                    lambda: self.backward(problem, recording, outcome, cotangents),
                    problem.jit_compile,
                )
            failing = poison_lanes(found, lost) if problem.lanes else poison(found, outcome.status)
            # TensorFlow wants one for each input.
            times = failing.times or [None] * len(problem.all_times)
            found = tf.nest.flatten(failing._replace(times=times))
            return _refuse_changes(dynamics, snapshot, found) if snapshot else found

        inputs = Sources(problem.ys, dynamics.captured, dynamics.variables, problem.all_times)
        states = _platform.with_gradient(outcome.states, tf.nest.flatten(inputs), backward)
        planned = self.backward_evaluations(problem, recording, outcome)
        stats = outcome.stats._replace(num_backward_evaluations=planned)
        if recording is not None:
            held = recording.num_states(problem.method.stages)
            stats = stats._replace(num_states=tf.convert_to_tensor(held))
        return outcome.with_states(states)._replace(stats=stats)


def once(xs: list, message: str) -> list:
    """Tensors that raise a `RuntimeError` where they are differentiated."""

    def refuse(_):
        raise RuntimeError(message)

    return _platform.with_gradient([tf.identity(x) for x in xs], xs, refuse)


def _refuse_changes(dynamics, snapshot, gradients):
    """The gradients, if another evaluation is one of the same function; NaN under XLA."""
    unchanged = dynamics.unchanged(snapshot)
    message = (
        "Variables were assigned between a solve and its gradient, whose `dynamics` read them "
        "inside of a SavedModel or a concrete function: the gradient would be that of other "
        "values. Compute the gradient before the assignment, or use the Python function itself. "
        f"Received: variables {', '.join(v.name for v in dynamics.unseen)}"
    )
    with tf.control_dependencies([tf.debugging.Assert(unchanged, [message])]):
        nan = tf.where(unchanged, 0.0, float("nan"))
        return [None if g is None else g + tf.cast(nan, g.dtype) for g in gradients]
