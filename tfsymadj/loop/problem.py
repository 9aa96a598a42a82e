"""What the loop is given, and what it returns."""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from tfsymadj.checkpoints.store import Kept
from tfsymadj.dynamics.closing import ClosedDynamics
from tfsymadj.loop.clock import Clock
from tfsymadj.loop.dense import DenseOutputs
from tfsymadj.loop.grid import Rest
from tfsymadj.loop.intervals import Intervals, Switches
from tfsymadj.loop.lane_outputs import LaneInterpolatedOutputs, LaneStopOutputs
from tfsymadj.loop.outputs import InterpolatedOutputs, StepOutputs, StopOutputs
from tfsymadj.loop.watch import Mark, Watch
from tfsymadj.methods.method import Method
from tfsymadj.solution import Stats
from tfsymadj.steps.controller import Controller

#: Largest set of states that a solve may be asked to hold, in bytes.
_LARGEST_BUFFER = 4 * 2**30


@dataclasses.dataclass(frozen=True)
class Problem:
    """An initial value problem, checked, over lists of tensors.

    Attributes:
        dynamics: the closed dynamics.
        ys: the initial state.
        stops: float64 vector: where the solve begins, and where steps end that are outputs, or
            where the dynamics may jump.
        method: without an error estimate unless the controller is adaptive.
        controller: bound to the method.
        max_steps: bound of the steps tried: an int, or an int32 scalar where the sizes of buffers
            need not be known at compile time.
        known_length: whether exactly `max_steps` steps are taken.
        first_step: float64 scalar or None for an automatic one.
        min_step: float.
        max_step: float, or None without a bound.
        with_time: whether `stops` and `between` may need a gradient.
        between: float64 vector of the times of the outputs, from the first to the last of two
            stops, where the others are interpolated; None: the outputs are the stops.
        every_step: whether the outputs are the ends of all steps.
        switches: which of the stops are jumps of the dynamics; None: none of them.
        valid: whether the times are such as they have to be; None: as far as `output_times` tell.
        watch: functions whose roots are looked for.
        dense: whether the outputs are the states and slopes of all steps.
        jit_compile: see `xla.compiled`.
        lanes: 1 where each entry of the state's first axis has times and steps of its own: `stops`
            and `between` have a second axis then, and numbers of steps are vectors.
        last: with lanes, of which the last of `output_times` may be equal, the index of the first
            one that is as late as the last, int32 vector; None: the last one.
        queue: `Queue` of examples that have no lane each; None: they have.
        measured: how many tensors of the state, the first ones, the error is measured of; None:
            all of them.
        clock: how the times move, where the last tensor of the state says so; None: they don't.
    """

    dynamics: ClosedDynamics
    ys: list
    stops: tf.Tensor
    method: Method
    controller: Controller
    max_steps: Any
    known_length: bool
    first_step: Any
    min_step: float
    with_time: bool
    max_step: Any = None
    between: tf.Tensor | None = None
    every_step: bool = False
    switches: Switches | None = None
    valid: tf.Tensor | None = None
    watch: Watch | None = None
    dense: bool = False
    jit_compile: bool | None = None
    lanes: int = 0
    last: Any = None
    queue: Any = None
    measured: int | None = None
    clock: Clock | None = None

    @property
    def last_stop(self) -> Any:
        """The number of the stop at which the solve ends, or those of the lanes."""
        # With jumps there may be intervals of length zero, which are left out anyway.
        if self.last is None or self.switches is not None:
            return self.num_stops - 1
        return self.last if self.between is None else tf.minimum(self.last, 1)

    @property
    def num_stops(self) -> Any:
        """The number of `stops`, int where it is known."""
        return tf.shape(self.stops)[0] if self.stops.shape[0] is None else self.stops.shape[0]

    @property
    def static_max_steps(self) -> int | None:
        """`max_steps` where it is known when the solve is traced."""
        return self.max_steps if isinstance(self.max_steps, int) else None

    def refuse_size(self, states: Any, what: str, remedy: str) -> None:
        """Refuses to hold more states than anyone means to ask for, where sizes are known.

        Args:
            states: how many would be held.
            what: what would hold them.
            remedy: what to do instead.
        """
        sizes = [y.shape.num_elements() for y in self.ys]
        if None in sizes or not isinstance(states, int):
            return
        size = states * sum(n * y.dtype.size for n, y in zip(sizes, self.ys))
        self._refuse_bytes(size, f"{what} holds up to {states} states", remedy)

    def refuse_grid(self, fields: int) -> None:
        """Refuses to hold more times of steps of examples than anyone means to ask for.

        Args:
            fields: how many numbers there are for each step.
        """
        lanes, steps = self.ys[0].shape[0], self.static_max_steps
        if lanes is None or steps is None:
            return
        what = f"A gradient with `batch_axis` holds the times of {steps} steps of {lanes} examples"
        remedy = "Use a smaller `max_steps`, or `lanes` for fewer examples at a time."
        self._refuse_bytes(8 * fields * steps * lanes, what, remedy)

    def _refuse_bytes(self, size, what, remedy):
        if size > _LARGEST_BUFFER:
            raise ValueError(
                f"{what}, here {size / 2**30:.1f} GiB, more than the "
                f"{_LARGEST_BUFFER / 2**30:.0f} GiB allowed. {remedy} "
                f"Received: max_steps={self.max_steps}"
            )

    @property
    def times(self) -> list:
        """The times of all kinds that may need a gradient."""
        return self.all_times if self.with_time else []

    @property
    def all_times(self) -> list:
        """The times of all kinds: `stops`, and `between` if there are any."""
        return [self.stops] if self.between is None else [self.stops, self.between]

    @property
    def output_times(self) -> tf.Tensor:
        """The times of the outputs."""
        return self.all_times[-1]

    @property
    def interpolates(self) -> bool:
        """Whether something depends on what is inside of steps."""
        return self.between is not None or self.dense

    def outputs(self, with_rates: bool = False) -> Any:
        """How the outputs are made.

        Args:
            with_rates: see `InterpolatedOutputs`.
        """
        if self.dense:
            outputs = DenseOutputs(self.method, self.max_steps, self.stops[0])
            self.refuse_size(
                outputs.num_states, "`dense`", "Use a smaller `max_steps`, or `outputs`."
            )
            return outputs
        if self.every_step:
            return StepOutputs(self.max_steps, self.stops[0])
        if self.between is None:
            last = None if self.switches is not None else self.last
            return (LaneStopOutputs if self.lanes else StopOutputs)(self.num_stops, last)
        kind = LaneInterpolatedOutputs if self.lanes else InterpolatedOutputs
        return kind(self.method, self.between, self.ys, with_rates, self.last)

    @property
    def intervals(self) -> Intervals:
        """The intervals between `stops`."""
        return Intervals(self.stops, self.switches)

    def at_times(self, times: list) -> "Problem":
        """The problem with `all_times` replaced."""
        stops, *others = times
        return dataclasses.replace(self, stops=stops, between=others[0] if others else None)


class Record(NamedTuple):
    """What a forward pass keeps for a backward pass.

    Attributes:
        grid: `Grid` or `LaneGrid`.
        kept: `Kept`.
        rates: the derivatives of the solution at the outputs, where they are needed.
        end: the state after the last step.
        time: the time of it.
        rest: `Rest` of lanes.
    """

    grid: Any
    kept: Kept
    rates: list
    end: list
    time: tf.Tensor
    rest: Rest | None = None


class Outcome(NamedTuple):
    """What the loop, and a gradient method, returns.

    Attributes:
        ys: the states at the stops, stacked; NaN from where the solve failed.
        status: int32 scalar, a value of `Status`.
        time: the time at which the solve ended, float64.
        stats: `Stats`.
        record: `Record`, or None without a recording.
        times: the times of the outputs, where the solver chose them.
        mark: `Mark`, if there was a watch; its state is differentiable.
    """

    ys: list
    status: tf.Tensor
    time: tf.Tensor
    stats: Stats
    record: Record | None = None
    times: tf.Tensor | None = None
    mark: Mark | None = None

    @property
    def num_written(self) -> tf.Tensor:
        """The number of steps, with the attempt that an event was found in and that was not taken:
        its stage values are where those of an earlier step may have been.
        """
        accepted = self.stats.num_accepted
        if self.mark is None:
            return accepted
        return accepted + tf.cast(self.mark.stopped, tf.int32)

    @property
    def states(self) -> list:
        """All that a gradient method has to differentiate: `ys`, and the state of the mark."""
        return [*self.ys, *(self.mark.ys if self.mark is not None else ())]

    def with_states(self, states: list) -> "Outcome":
        """The outcome with other `states`."""
        count = len(self.ys)
        mark = self.mark and self.mark._replace(ys=states[count:])
        return self._replace(ys=states[:count], mark=mark)
