"""The neural ODE as a Keras layer."""

import contextlib
import dataclasses
import functools
import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from typing_extensions import Unpack

from tfsymadj import _platform, controls
from tfsymadj.arguments import positional
from tfsymadj.dynamics import calling, contents
from tfsymadj.dynamics.operators import Linear
from tfsymadj.dynamics.split import Split
from tfsymadj.gradients import GRADIENTS, NoGradient, gradient_is_wanted
from tfsymadj.methods import ButcherTableau, Newton
from tfsymadj.options import DEFAULTS, Options, SolverOptions, documented, with_options
from tfsymadj.solution import Status
from tfsymadj.solve import check, solve_with
from tfsymadj.steps import ConstantSteps, PIController

_CLASSES = (
    ButcherTableau, ConstantSteps, Linear, Newton, NoGradient, PIController, Split,
    *GRADIENTS.values(),
)  # fmt: skip

for _class in _CLASSES:
    keras.saving.register_keras_serializable(package="tfsymadj")(_class)


#: Counts of `Stats` that are metrics, and their names.
_TRACKED = {
    "num_evaluations": "evaluations",
    "num_accepted": "accepted_steps",
    "num_rejected": "rejected_steps",
}


class LayerOptions(SolverOptions, total=False):
    """The types of the options of the solver and of `keras.Layer`."""

    name: str | None
    dtype: Any
    trainable: bool


@keras.saving.register_keras_serializable(package="tfsymadj")
@documented
class ODELayer(keras.Layer):
    """Maps y0 = y(t[0]) to y(t[-1]), where dy/dt = dynamics(t, y).

    Args:
        dynamics: Keras layer or model, or any callable `(t, y, *args) -> dy/dt`. A layer whose
            `call` has one positional argument, and a functional model that has no input besides
            the state and `args`, are called as `dynamics(y)`. A functional model gets the parts of
            a dict by the names of its inputs. The variables of `tf.Module`s, of models of
            `tf_keras` and of plain functions are among the layer's too.
        t: the times, at least two, strictly increasing or decreasing.
        return_sequences: whether the states at all times are returned, or the last one only.
        track_stats: whether the means of evaluations, accepted and rejected steps of a solve are
            metrics of the layer, and so in the logs of `fit` and `evaluate`; they are called
            `<name>_evaluations`, `<name>_accepted_steps` and `<name>_rejected_steps`.
        **options: as in `tfsymadj.solve`.
        **kwargs: `name`, `dtype` and the like of `keras.Layer`.

    Call arguments:
        y0: tensor `(batch, ...)`, or a nest of such tensors.
        t: times in place of the layer's own, a tensor never cast to the layer's dtype: one grid for
            the batch, 1-D, or with `batch_axis=0` a row of times for each example, `(batch,
            len(t))`. Rows are filled up by repeating their last time; or a mask that Keras has
            attached to `t` tells which come first and count.
        args: further arguments of the dynamics; gradients reach them.
        training: handed to the dynamics if they take it.
        mask: of `y0`, if that is a tensor; by default the one that Keras has attached to it. Handed
            to the dynamics if they take it.
        jumps: times at which the dynamics may jump, in place of those of the option; as
            `control.knots` of `args=(control,)`.

    Output shape:
        That of `y0`; with `return_sequences` `(batch, len(t), ...)`. The dtype is the layer's
        `compute_dtype`; with half precision the state is still held and summed in float32. A mask
        of `y0` is one of the output, but for `return_sequences`.

    Raises:
        ValueError, TypeError: see `tfsymadj.solve`.

    Example:

    >>> import keras, tfsymadj
    >>> dynamics = keras.Sequential([keras.layers.Dense(32, "tanh"), keras.layers.Dense(4)])
    >>> model = keras.Sequential()
    >>> model.add(tfsymadj.ODELayer(dynamics, t=(0.0, 1.0), method="rk4", num_steps=10))
    >>> model(keras.ops.ones((2, 4))).shape
    TensorShape([2, 4])

    Source: Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations,
    arXiv:1806.07366; the gradient: see `SymplecticAdjoint`.
    """

    @with_options
    def __init__(
        self,
        dynamics: Callable,
        t: Any = (0.0, 1.0),
        *,
        return_sequences: bool = False,
        track_stats: bool = False,
        **kwargs: Unpack[LayerOptions],
    ):
        options = {name: value for name, value in kwargs.items() if name in DEFAULTS}
        others = {name: value for name, value in kwargs.items() if name not in DEFAULTS}
        # The times must not be cast, nor the state to half precision: `call` casts.
        super().__init__(**{"autocast": False, **others})
        self.supports_masking = True
        self.dynamics = dynamics
        # Those of a `Split` are the layer's own, too.
        self._parts = [x for x in calling.parts(dynamics) if isinstance(x, keras.Layer)]
        if np.ndim(t) > 1:
            raise ValueError(
                "`t` must be 1-D; times of each example are an argument of the layer's call. "
                f"Received: {t!r}"
            )
        self.t = tuple(float(x) for x in np.ravel(np.asarray(t, np.float64)))
        self.return_sequences = return_sequences
        self.options = Options.of(type(self).__name__, options)
        check(dynamics, self.t, self.options)
        self.track_stats = track_stats
        self._counts = {
            count: keras.metrics.Mean(f"{self.name}_{name}")
            for count, name in (_TRACKED.items() if track_stats else ())
        }
        self._specs = None  # of the state and `args` that the dynamics are built for
        self._solved_for = None
        self._infer = None
        self._infers = False
        self._status_counts = lambda: None
        self._takes_mask = any(calling.takes(part, "mask") for part in calling.parts(dynamics))

    def __repr__(self):
        options = {"name": self.name, "t": self.t, **self.options.changed, "built": self.built}
        listed = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"<{type(self).__name__} of {self.dynamics!r}: {listed}>"

    @property
    def layers(self):
        """The dynamics, if Keras knows them: what `summary(expand_nested=True)` expands."""
        return list(self._parts)

    def __call__(self, *args, **kwargs):
        if self.built:
            return super().__call__(*args, **kwargs)
        # Keras tells `build` shapes only, and nothing of what a subclass makes of the arguments.
        self._specs, self._infer = None, functools.partial(self._inferred, *args, **kwargs)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self._infer = None

    # One argument: of more, Keras wants to find the names in `call`, also in that of a subclass.
    def build(self, y0_shape):
        if self._specs is None:
            self._specs = self._specs_of_call() or (self._specs_like(y0_shape), ())
        y0, args = self._specs
        y0 = keras.tree.map_structure(self._state_spec, y0)
        autonomous = self._is_autonomous(y0, args)
        lanes = 0 if self.options.batch_axis is None else 1
        calling.build(self.dynamics, y0, args, autonomous, lanes)
        if not isinstance(self.dynamics, keras.Layer):
            # Builds layers, too.
            found = calling.variables(self.dynamics, y0, args, autonomous, lanes)
            listed = contents.keras_variables(self.dynamics)
            own = {_platform.storage(v.value) for part in self._parts for v in part.variables}
            for variable in found:
                if _platform.storage(variable) in own:
                    continue
                known = listed.get(_platform.storage(variable))
                self._track_variable(_platform.adopted(variable) if known is None else known)

    def _specs_of_call(self):
        """What the call that builds the layer will solve for, as far as it can be known."""
        if self._infer is None:
            return None
        self._solved_for = None
        try:
            self._infer()
        except Exception:
            # A subclass may make its weights after this.
            if type(self).call is ODELayer.call:
                raise
        specs, self._solved_for = self._solved_for, None
        return specs

    def _specs_like(self, shape):
        return keras.tree.map_shape_structure(
            lambda shape: keras.KerasTensor(shape, self._state_dtype), shape
        )

    def get_build_config(self):
        if not self.built:
            return None
        y0, args = self._specs
        specs = keras.saving.serialize_keras_object((y0, controls.to_config(args)))
        return {**(super().get_build_config() or {}), "specs": specs}

    def build_from_config(self, config):
        if config:
            y0, args = keras.saving.deserialize_keras_object(config["specs"])
            self._specs = y0, controls.from_config(args)
            if type(self).build is ODELayer.build:
                self.build(keras.tree.map_structure(lambda x: x.shape, self._specs[0]))
            else:  # that of a subclass may want other shapes
                super().build_from_config(config)

    def call(
        self,
        y0: Any,
        t: Any = None,
        args: Any = (),
        training: bool | None = None,
        mask: Any = None,
        jumps: Any = None,
    ) -> Any:
        if self._infers:
            return keras.tree.map_structure(_placeholder, self._spec_call(y0, t, args))
        options = self.options
        if jumps is not None:
            options = dataclasses.replace(options, jumps=jumps)
        state = tf.nest.map_structure(lambda y: self._cast(y, self._state_dtype), y0)
        args = positional(args)
        if self._specs is not None:
            args = controls.restored(args, self._specs[1])
        if mask is None and tf.is_tensor(y0):
            mask = _platform.mask_of(y0)
        masked = self._takes_mask and tf.is_tensor(mask)
        if masked:
            args = (*args, mask)
        solution = solve_with(
            self._bound(bool(training), masked),
            state,
            self.t if t is None else _filled(t),
            args,
            options,
            autonomous=False,
        )
        if gradient_is_wanted():  # what is exported for other runtimes writes no variables
            for count, metric in self._counts.items():
                metric.update_state(getattr(solution.stats, count))
            statuses = self._status_counts()
            if training and statuses is not None:
                counts = tf.one_hot(tf.reshape(solution.status, [-1]), len(Status))
                statuses.assign_add(tf.cast(tf.reduce_sum(counts, 0), statuses.dtype))
        if self.return_sequences:
            y = tf.nest.map_structure(_batch_first, solution.y)
        else:
            y = tf.nest.map_structure(lambda x: x[-1], solution.y)
        return tf.nest.map_structure(lambda x: self._cast(x, self.compute_dtype), y)

    def count_statuses(self, counts):
        """Lets training that is traced from now on count how its solves ended.

        Args:
            counts: integer variable `(len(Status),)`; None: no more.
        """
        self._status_counts = lambda: counts  # as an attribute it would be saved

    def compute_mask(self, inputs, previous_mask):
        return None if self.return_sequences else previous_mask

    def _bound(self, training, masked):
        """The dynamics that a solve is of; of a `Split` as well."""
        of = [
            part
            if isinstance(part, Linear)
            else functools.partial(self._derivative, i, training, masked)
            for i, part in enumerate(calling.parts(self.dynamics))
        ]
        return of[0] if len(of) == 1 else Split(implicit=of[0], explicit=of[1])

    def _derivative(self, number, training, masked, t, y, *args):
        dynamics = calling.parts(self.dynamics)[number]
        keywords = {"training": training} if calling.takes(dynamics, "training") else {}
        if masked:
            *args, mask = args
            keywords |= {"mask": mask} if calling.takes(dynamics, "mask") else {}
        with self._unwarned(dynamics) if masked else contextlib.nullcontext():
            autonomous = calling.is_autonomous(dynamics, args, self.options.autonomous, y)
            result = calling.call(dynamics, t, y, args, autonomous, **keywords)
        if isinstance(dynamics, keras.Layer):
            # Each Keras layer has a dtype of its own; the state keeps the solver's.
            dtypes = {tf.as_dtype(x.dtype) for x in tf.nest.flatten(y)}
            if len(dtypes) == 1:
                (dtype,) = dtypes
                result = tf.nest.map_structure(lambda x: self._cast(x, dtype), result)
        return result

    @contextlib.contextmanager
    def _unwarned(self, dynamics):
        """Without Keras' warning that models lose masks: the layer itself hands it on."""
        with warnings.catch_warnings():
            name = re.escape(repr(getattr(dynamics, "name", None)))
            which = rf"({name}.*|.*\(of type (Sequential|Functional)\))"
            warnings.filterwarnings("ignore", f"Layer {which} was passed an input with a mask")
            yield

    def _is_autonomous(self, y, args):
        return calling.is_autonomous(self.dynamics, args, self.options.autonomous, y)

    @property
    def _state_dtype(self):
        """The state's dtype: sums over many steps need float32 at least."""
        half = self.compute_dtype in ("float16", "bfloat16")
        return "float32" if half else self.compute_dtype

    def _state_spec(self, x):
        floating = keras.backend.is_float_dtype(x.dtype)
        return keras.KerasTensor(x.shape, self._state_dtype) if floating else x

    def _cast(self, x, dtype):
        x = tf.convert_to_tensor(x)
        return tf.cast(x, dtype) if x.dtype.is_floating else x

    def compute_output_spec(self, *args, **kwargs):
        return self._inferred(*args, **kwargs)

    def compute_output_shape(self, y0_shape, t_shape=None):
        t = None if t_shape is None else keras.KerasTensor(t_shape, "float64")
        given = (self._specs_like(y0_shape), *([] if t is None else [t]))
        try:
            inspect.signature(self.call).bind(*given)
        except TypeError as error:
            raise NotImplementedError(
                f"`{type(self).__name__}.call` has arguments of its own, and so needs a "
                f"`compute_output_shape` of its own. Received: y0_shape={y0_shape}"
            ) from error
        return keras.tree.map_structure(lambda x: tuple(x.shape), self._inferred(*given))

    def _inferred(self, *args, **kwargs):
        """What `call` would return, symbolically and without a solve."""
        if type(self).call is ODELayer.call:
            return self._spec_call(*args, **kwargs)
        self._infers = True
        try:
            return keras.Operation.compute_output_spec(self, *args, **kwargs)
        finally:
            self._infers = False

    def _spec_call(self, y0, t=None, args=(), training=None, mask=None, jumps=None):
        del training, mask, jumps
        args = positional(args)
        y0, *args = keras.tree.map_structure(_spec, (y0, *args))
        if not self.built:
            self._solved_for = y0, tuple(args)
        count = len(self.t) if t is None else np.shape(t)[-1]

        def output(y):
            dtype = tf.as_dtype(y.dtype)
            if not (dtype.is_floating or dtype.is_complex):
                raise TypeError(
                    "`y0` must be floating or complex: cast it, or make it so by a layer such as "
                    "`keras.layers.Rescaling` or `keras.layers.Embedding`. "
                    f"Received: dtype {dtype.name} in {y.name!r}"
                )
            shape = (y.shape[0], count, *y.shape[1:]) if self.return_sequences else y.shape
            return keras.KerasTensor(shape, y.dtype if dtype.is_complex else self.compute_dtype)

        return keras.tree.map_structure(output, y0)

    def get_config(self):
        def serialize(x):
            known = isinstance(x, (str, int, float, type(None)))
            return x if known else keras.saving.serialize_keras_object(x)

        return {
            **super().get_config(),
            "dynamics": keras.saving.serialize_keras_object(self.dynamics),
            "t": list(self.t),
            "return_sequences": self.return_sequences,
            "track_stats": self.track_stats,
            **{name: serialize(value) for name, value in self.options.get_config().items()},
        }

    @classmethod
    def from_config(cls, config):
        config = {
            name: keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value
            for name, value in config.items()
            if name != "dtype"
        } | ({"dtype": config["dtype"]} if "dtype" in config else {})
        return cls(**config)


def _filled(t):
    """Times with the last one of those that their mask tells in place of those it doesn't."""
    mask = _platform.mask_of(t) if tf.is_tensor(t) else None
    if mask is None:
        return t
    last = tf.maximum(tf.reduce_sum(tf.cast(mask, tf.int32), -1, keepdims=True) - 1, 0)
    return tf.where(mask, t, tf.gather(t, last, axis=-1, batch_dims=t.shape.rank - 1))


def _batch_first(y):
    return tf.transpose(y, [1, 0, *range(2, y.shape.rank)])


def _spec(x):
    x = x if hasattr(x, "shape") else np.asarray(x, "float32")
    dtype = keras.backend.standardize_dtype(x.dtype)
    # A new one: that of a model knows the model, and would be saved with it.
    name = x.name if isinstance(x, keras.KerasTensor) else None
    return keras.KerasTensor(x.shape, dtype, name=name)


def _placeholder(spec):
    return tf.compat.v1.placeholder(spec.dtype, spec.shape)
