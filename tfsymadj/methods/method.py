"""The interface of a method: one step, and the derivative of one step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfsymadj.arithmetic import add, add_terms, balance, inner, quotient, scaled
from tfsymadj.dynamics.closing import ClosedDynamics, Sources

#: `(t, ys) -> dys` over lists of tensors.
Dynamics = Callable[[tf.Tensor, list], list]


class Step(NamedTuple):
    """One step of a method, over a state of lists of tensors.

    Attributes:
        ys: the state after the step.
        increments: `ys` minus the state before the step, before rounding.
        errors: the estimate of the local error, or None.
        stages: the stage values, `Method.stages` lists of tensors: what the adjoint needs.
        slopes: the dynamics at the stages, lists of tensors; one more with a FSAL method, which
            takes it as the next step's first.
        evaluations: of the dynamics, int or int32 scalar.
        converged: whether the equations of implicit stages were solved, a boolean scalar or one for
            each lane; None without such stages.
    """

    ys: list
    increments: list
    errors: list | None
    stages: list
    slopes: list
    evaluations: Any
    converged: Any = None


class SlopeCotangents(NamedTuple):
    """Cotangents of the slopes of a step besides those that its end gives: of outputs inside of it.

    Attributes:
        own: list of tensors `[stages, ...]`, proportional to the step's size.
        first: list of tensors, of the first slope as the last one of the step before; None with
            an extension, where the last slope is one of the step's own.
        wanted: with an extension, whether there are outputs inside, a boolean scalar.
    """

    own: list
    first: list | None
    wanted: Any = None


class Method:
    """How one step is taken; a new family of methods is a class derived from this one.

    Methods are immutable, hashable, and equal if they take the same steps. The forward loop and
    the backward sweep know nothing of a method but this.

    Attributes:
        name: the method's name.
        order: order of convergence.
        embedded_order: the order of a solution whose error is of the order of the estimate, or
            None.
        stages: how many stage values a step keeps for its adjoint.
        evaluations: evaluations of the dynamics in a step whose first slope is known if `fsal`;
            None if they differ from step to step, which then count them.
        adjoint_evaluations: taped evaluations in the adjoint of a step.
        fsal: whether the last slope is the first one of the next step.
        dense: the continuous extension, an array `(slopes, powers)` of the coefficients of theta,
            theta^2, ...; None without. The last slope is that of a FSAL method.
        dense_order: its order, or None.
        extends: whether the continuous extension takes evaluations of its own: see `extended`; its
            last slope is one of the step's own in the adjoint.
        iterates: whether a step solves equations, so that to take it again costs more than to keep
            its stage values.
        replays: whether there is `replayed`.
        splits: whether the state has to be a pair, of which one half is moved at a time.
        tells_stiffness: whether there is `is_stiff`.
    """

    name: str
    order: int
    embedded_order: int | None = None
    stages: int
    evaluations: int | None
    adjoint_evaluations: int
    fsal: bool = False
    dense: np.ndarray | None = None
    dense_order: int | None = None
    extends: bool = False
    iterates: bool = False
    replays: bool = False
    splits: bool = False
    tells_stiffness: bool = False

    @property
    def adaptive(self) -> bool:
        """Whether there is an error estimate to choose step sizes with."""
        return self.embedded_order is not None

    def with_interpolant(self, own_rows: bool = True) -> "Method":
        """The same method with a continuous extension.

        Args:
            own_rows: whether that may take evaluations of its own.

        Raises:
            ValueError: if there is none.
        """
        raise ValueError(
            "`outputs` must be 'step', and there can be no `event` and no `dense=True`, with a "
            "method that has no continuous extension. "
            f"Received: method={self.name!r}"
        )

    def without_interpolant(self) -> "Method":
        """The same method for outputs that are ends of steps."""
        return self

    def without_error(self) -> "Method":
        """The same method for steps of given sizes, for recomputation and for the adjoint."""
        return self

    def suits(self, dynamics: Dynamics, t: tf.Tensor, ys: list) -> tf.Tensor:
        """Whether the method can take steps of these dynamics, a boolean scalar.

        It is asked once, at the solve's start, of a method that `iterates`.

        Args:
            dynamics: see `step`.
            t: the time at which the solve starts.
            ys: the state then.
        """
        return tf.constant(True)

    def with_newton(self, newton: Any) -> "Method":
        """The same method with another `Newton`.

        Raises:
            ValueError: if it has no equations to solve.
        """
        raise ValueError(
            "`newton` is for implicit methods, such as 'kvaerno5'. "
            f"Received: method={self.name!r}, newton={newton!r}"
        )

    def with_mass(self) -> "Method":
        """The same method for dynamics with a mass matrix.

        Raises:
            ValueError: if it can't take steps of such.
        """
        raise ValueError(
            "`mass` needs a method whose stages are solved one at a time and the last of which is "
            "the solution: 'trbdf2', 'kvaerno3', 'kvaerno5', or a table like theirs. "
            f"Received: method={self.name!r}"
        )

    def correction(
        self, dynamics: Dynamics, t: tf.Tensor, ys: list, slopes: list, parts: list
    ) -> list:
        """What is missing from a state to one that solves the algebraic equations.

        It is asked once, at the solve's start, of a method `with_mass`.

        Args:
            dynamics: see `step`.
            t: likewise.
            ys: likewise.
            slopes: the dynamics at `(t, ys)`.
            parts: `Mass.split` of the mass matrix.
        """
        raise NotImplementedError

    def step(
        self, dynamics: Dynamics, t: tf.Tensor, h: tf.Tensor, ys: list, first: list | None = None
    ) -> Step:
        """Advances the state by one step.

        Args:
            dynamics: `(t, ys) -> dys`.
            t: the time before the step, float64, a scalar or one number for each lane.
            h: the step, of either sign, likewise.
            ys: list of tensors.
            first: the dynamics at `(t, ys)` where they are known already, with `fsal`.
        """
        raise NotImplementedError

    def is_stiff(self, h: tf.Tensor, step: Step, measured: int | None = None) -> tf.Tensor:
        """Whether a step is about as long as is stable, a boolean scalar, or one for each lane.

        Args:
            h: the step size.
            step: what `step` returned.
            measured: how many tensors of the state, the first ones, count; None: all.
        """
        raise NotImplementedError

    def extended(
        self,
        dynamics: Dynamics,
        t: tf.Tensor,
        h: tf.Tensor,
        ys: list,
        step: Step,
        wanted: tf.Tensor,
        last: bool = True,
    ) -> Step:
        """A step with the stages and slopes that only the continuous extension uses.

        Args:
            dynamics: see `step`.
            t: likewise.
            h: likewise.
            ys: likewise.
            step: what `step` returned.
            wanted: whether there are outputs inside, a boolean scalar: else there are no
                evaluations, and zeros.
            last: whether the last slope is wanted, on which no stage depends.
        """
        return step

    def adjoint(
        self,
        dynamics: ClosedDynamics,
        t: tf.Tensor,
        h: tf.Tensor,
        stage: Callable[[tf.Tensor], list],
        adjoints: list,
        sums: Sources,
        with_time: bool = False,
        slopes: SlopeCotangents | None = None,
    ) -> Sources:
        """The derivative of a step from its stage values, a stage at a time.

        Args:
            dynamics: the closed dynamics.
            t: see `step`.
            h: likewise.
            stage: callable from i, an int32 scalar, to the i-th of `Step.stages`.
            adjoints: lambda_{n+1}, list of tensors.
            sums: what the gradients are added to; without `times`.
            with_time: whether the gradients for `t` and `h` are wanted.
            slopes: `SlopeCotangents`, where outputs lie inside of steps.

        Returns:
            `sums` plus lambda_n - lambda_{n+1} and the gradients of the captured inputs and the
            variables; `times` holds the gradients for `t`, at fixed h, and for `h`, if they are
            wanted, and with `slopes.first` the inner product of it and the first slope.
        """
        raise NotImplementedError

    def replayed(
        self,
        vjp: Callable[[int, list], tuple],
        h: tf.Tensor,
        adjoints: list,
        sums: Sources,
        with_time: bool = False,
        slopes: SlopeCotangents | None = None,
    ) -> Sources:
        """`adjoint` from what the evaluations have left, without another one.

        Args:
            vjp: callable from the number of a stage and cotangents to `(gradients, values)` of the
                evaluation there: see `ClosedDynamics.vjp`.
            h: see `step`.
            adjoints: see `adjoint`.
            sums: likewise.
            with_time: likewise.
            slopes: likewise.
        """
        raise NotImplementedError

    def vjp(
        self,
        dynamics: ClosedDynamics,
        t: tf.Tensor,
        h: tf.Tensor,
        ys: list,
        adjoints: list,
        sums: Sources,
        with_time: bool = False,
        slopes: SlopeCotangents | None = None,
    ) -> Sources:
        """`adjoint` by back-propagation, from the state before the step: all stages on one tape.

        Gradient methods take it where the activations of all stages may be held at a time.
        """
        return self.step_and_vjp(dynamics, t, h, ys, adjoints, sums, with_time, slopes)[1]

    def step_and_vjp(
        self,
        dynamics: ClosedDynamics,
        t: tf.Tensor,
        h: tf.Tensor,
        ys: list,
        adjoints: list,
        sums: Sources,
        with_time: bool = False,
        slopes: SlopeCotangents | None = None,
    ) -> tuple[Step, Sources]:
        """A step, and `vjp` of the same evaluations."""
        sources = dynamics.sources(ys, [t, h] if with_time else [])
        with dynamics.substituted():
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                step = self.step(dynamics, t, h, ys)
                if self.extends and slopes is not None:
                    step = self.extended(dynamics, t, h, ys, step, slopes.wanted)
            targets, cotangents = [step.increments], [adjoints]
            if slopes is not None:
                targets += step.slopes
                own = [tf.unstack(x, self.stages) for x in slopes.own]
                own = [list(x) for x in zip(*own)]
                first = own[0] if slopes.first is None else add(own[0], slopes.first)
                cotangents += [first, *own[1:]]
            scale = None
            if dynamics.narrow:  # those of the slopes, which are as long as the step
                size = tf.cast(tf.reduce_max(tf.abs(h)), tf.float32)
                scale = balance([*scaled(adjoints, size), *tf.nest.flatten(cotangents[1:])])
                cotangents = scaled(cotangents, scale)
            found = tape.gradient(targets, sources, output_gradients=cotangents)
        if scale is not None:
            found = scaled(found, 1.0 / scale)
        times = found.times
        if with_time:
            start, size = times
            times = [tf.zeros_like(h) if start is None else start, size]
            if slopes is not None:
                lanes = h.shape.rank
                explicit = [quotient(inner(x, k, lanes), h) for x, k in zip(own, step.slopes)]
                times = [times[0], tf.add_n([size, *explicit])]
                if slopes.first is not None:
                    times.append(inner(slopes.first, step.slopes[0], lanes))
        return step, add_terms(sums, found._replace(times=[]))._replace(times=times)
