"""Linear dynamics dy/dt = L y by `tf.linalg.LinearOperator`s, and the inverses of I - alpha L."""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfsymadj.config import deserialized

_CIRCULANT = (
    tf.linalg.LinearOperatorCirculant,
    tf.linalg.LinearOperatorCirculant2D,
    tf.linalg.LinearOperatorCirculant3D,
)
_WITH_ALGEBRA = (*_CIRCULANT, tf.linalg.LinearOperatorDiag, tf.linalg.LinearOperatorTridiag)

#: Rows of operators that are inverted as matrices.
_LARGEST = 2048


class Linear:
    """Dynamics that are one operator for each tensor of the state.

    An operator acts on the last axes of its tensor that have as many entries together as it has
    columns; axes before them are a batch.

    Args:
        operators: `tf.linalg.LinearOperator`, or a nest of such in the structure of the state,
            where None stands for zero.

    Raises:
        TypeError: if there is anything else in the nest.
        ValueError: when they are called, if an operator does not fit its tensor.
    """

    def __init__(self, operators: Any):
        for x in tf.nest.flatten(operators):
            if not (x is None or isinstance(x, tf.linalg.LinearOperator)):
                raise TypeError(
                    "`implicit` must be callable, or a `tf.linalg.LinearOperator` or a nest of "
                    f"them and of None. Received: {x!r}"
                )
        self.operators = operators

    def __repr__(self):
        return repr(self.operators)

    def get_config(self) -> dict:
        """The operators by the names of their classes and their parameters, with the values that
        variables have now.
        """
        return {"operators": _described(self.operators)}

    @classmethod
    def from_config(cls, config: dict) -> "Linear":
        """The object of a config; what was a variable is a new one."""
        return cls(_made(deserialized(config["operators"])))

    def __call__(self, t: Any, y: Any, *args: Any) -> Any:
        """L y."""
        try:
            tf.nest.assert_same_structure(self.operators, y)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`implicit` must have the structure of `y0`, with an operator or None for each of "
                f"its tensors. Received: {self.operators!r} for y0 {y!r}"
            ) from error
        pairs = zip(tf.nest.flatten(self.operators), tf.nest.flatten(y))
        found = [tf.zeros_like(x) if op is None else applied(op, x) for op, x in pairs]
        return tf.nest.pack_sequence_as(y, found)

    def kept(self, ys: list, size: tf.Tensor) -> list:
        """What `solve` needs of (I - size L)^-1, for each tensor.

        Args:
            ys: the state, a list of tensors, for its shapes.
            size: scalar, or a number for each entry of the first axis.
        """
        pairs = zip(tf.nest.flatten(self.operators), ys)
        return [[] if op is None else _kept(op, _Shape.of(op, y), size) for op, y in pairs]

    def solve(self, kept: list, ys: list, size: tf.Tensor, transposed: bool = False) -> list:
        """x with (I - size L) x = y, a list of tensors; or with the adjoint of L.

        Args:
            kept: what `kept` returned for this size; that of another one does, where size is zero.
            ys: list of tensors.
            size: see `kept`.
            transposed: whether it is the adjoint.
        """
        return [
            y if op is None else _solved(op, k, y, size, transposed)
            for op, k, y in zip(tf.nest.flatten(self.operators), kept, ys)
        ]


class _Shape(NamedTuple):
    """How a tensor is a batch of vectors: the number of axes before, and the vectors' length."""

    batch: int
    length: int

    @classmethod
    def of(cls, operator, y):
        if operator.dtype.is_complex and not y.dtype.is_complex:
            raise ValueError(
                "`implicit`, or a `preconditioner`, must be an operator of real vectors if `y0` is "
                "real; `LinearOperatorCirculant` and the like take `input_output_dtype`. "
                f"Received: {operator!r} of {operator.dtype.name} for y0 of {y.dtype.name}"
            )
        length, count = operator.shape[-1], 1
        for axis in reversed(range(y.shape.rank)):
            count *= y.shape[axis] or 0
            if count == length:
                return cls(axis, length)
        raise ValueError(
            "`implicit`, or a `preconditioner`, must have as many columns as some of the last axes "
            f"of `y0` have entries together. Received: {operator!r} of shape {operator.shape} for "
            f"y0 of {y.shape}"
        )

    def vectors(self, operator, y):
        shape = tf.concat([tf.shape(y)[: self.batch], [self.length]], 0)
        return tf.cast(tf.reshape(y, shape), operator.dtype)

    def beside(self, operator, size):
        """The size, or those of the first axis, such that it broadcasts against the batch."""
        size = tf.cast(size, operator.dtype)
        return tf.reshape(size, [-1, *[1] * (self.batch - 1)]) if size.shape.rank else size


def _described(x):
    """A nest of operators and their parameters as one that Keras can save."""
    if isinstance(x, tf.linalg.LinearOperator):
        kind = type(x).__name__
        if getattr(tf.linalg, kind, None) is not type(x):
            raise TypeError(
                "`implicit` must be operators of `tf.linalg` for a layer that is saved; a layer "
                f"of your own that applies it can be saved, too. Received: {x!r}"
            )
        return {"operator": kind, "parameters": _described(x.parameters)}
    if isinstance(x, dict):
        return {name: _described(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(_described(value) for value in x)
    if isinstance(x, (tf.Variable, keras.Variable)):
        value = tf.convert_to_tensor(x).numpy()
        return {"variable": _described(value), "trainable": bool(x.trainable)}
    if isinstance(x, tf.DType):
        return {"dtype": x.name}
    x = x.numpy() if tf.is_tensor(x) else x
    if np.iscomplexobj(x):  # JSON has none
        return {"real": np.real(x), "imag": np.imag(x)}
    return x


def _made(x):
    """The inverse of `_described`."""
    if isinstance(x, dict) and "operator" in x:
        return getattr(tf.linalg, x["operator"])(**_made(x["parameters"]))
    if isinstance(x, dict) and "variable" in x:
        return tf.Variable(_made(x["variable"]), trainable=x["trainable"])
    if isinstance(x, dict) and x.keys() == {"dtype"} and isinstance(x["dtype"], str):
        return tf.as_dtype(x["dtype"])
    if isinstance(x, dict) and x.keys() == {"real", "imag"}:
        return tf.complex(x["real"], x["imag"])
    if isinstance(x, dict):
        return {name: _made(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(_made(value) for value in x)
    return x


def _like(x, y):
    return tf.cast(tf.ensure_shape(tf.reshape(x, tf.shape(y)), y.shape), y.dtype)


def applied(operator, y):
    """The product of an operator and a tensor, see `Linear`."""
    x = _Shape.of(operator, y).vectors(operator, y)
    return _like(_product(operator, x), y)


def adjoint(operator, y):
    """The same of its adjoint."""
    x = _Shape.of(operator, y).vectors(operator, y)
    return _like(operator.matvec(x, adjoint=True), y)


def _product(operator, x):
    """L x for vectors x."""
    if isinstance(operator, tf.linalg.LinearOperatorComposition):
        for part in reversed(operator.operators):
            x = _product(part, x)
        return x
    if not isinstance(operator, tf.linalg.LinearOperatorTridiag):
        return operator.matvec(x)
    # TensorFlow's own neither broadcasts nor has a kernel of XLA.
    above, middle, below = _diagonals(operator)
    ends = [[0, 0]] * (x.shape.rank - 1)
    product = middle * x + above * tf.pad(x[..., 1:], [*ends, [0, 1]])
    return product + below * tf.pad(x[..., :-1], [*ends, [1, 0]])


def _solved(operator, kept, y, size, transposed):
    shape = _Shape.of(operator, y)
    size = shape.beside(operator, size)
    return _like(_inverse(operator, kept, size, shape.vectors(operator, y), transposed), y)


def _kept(operator, shape, size):
    """The matrix (I - size L)^-1 of an operator that has no algebra of its own for it."""
    operator, factor = _without_factor(operator)
    if isinstance(operator, _WITH_ALGEBRA):
        return []
    if shape.length > _LARGEST:
        raise ValueError(
            f"`implicit` must be circulant, diagonal or tridiagonal if it has more than {_LARGEST} "
            f"rows. Received: {operator!r} of shape {operator.shape}"
        )
    size = factor * shape.beside(operator, size)
    matrix = operator.to_dense()
    matrix = tf.eye(shape.length, dtype=matrix.dtype) - size[..., tf.newaxis, tf.newaxis] * matrix
    return tf.stop_gradient(tf.linalg.inv(matrix))


def _inverse(operator, kept, size, x, transposed):
    """(I - size L)^-1 x for vectors x."""
    operator, factor = _without_factor(operator)
    size = factor * size
    if isinstance(operator, tf.linalg.LinearOperatorDiag):
        diagonal = 1 - size[..., tf.newaxis] * operator.diag
        return x / (tf.math.conj(diagonal) if transposed else diagonal)
    if isinstance(operator, _CIRCULANT):
        axes, spectrum = operator.block_depth, tf.convert_to_tensor(operator.spectrum)
        if not operator.dtype.is_complex:  # what acts is the real part
            ends = list(range(-axes, 0))
            mirrored = tf.roll(tf.reverse(spectrum, ends), [1] * axes, ends)
            spectrum = 0.5 * (spectrum + tf.math.conj(mirrored))
        factors = tf.reshape(size, tf.concat([tf.shape(size), [1] * axes], 0))
        spectrum = 1 - tf.cast(factors, spectrum.dtype) * spectrum
        kind = _CIRCULANT[axes - 1]
        return kind(spectrum, input_output_dtype=operator.dtype).solvevec(x, adjoint=transposed)
    if isinstance(operator, tf.linalg.LinearOperatorTridiag):
        return _tridiagonal(operator, size, x, transposed)
    solved = tf.linalg.matvec(kept, x, adjoint_a=transposed)
    # The matrix may be that of another size, but for the first stage, where there is none.
    return tf.where(tf.equal(size, 0)[..., tf.newaxis], x, solved)


def _without_factor(operator):
    """An operator without multiples of the identity, and their product."""
    factor = tf.ones([], operator.dtype)
    if not isinstance(operator, tf.linalg.LinearOperatorComposition):
        return operator, factor
    others = []
    for part in operator.operators:
        if isinstance(part, tf.linalg.LinearOperatorScaledIdentity):
            factor *= part.multiplier
        else:
            others.append(part)
    return (others[0], factor) if len(others) == 1 else (operator, tf.ones([], operator.dtype))


def _diagonals(operator):
    """That above, the diagonal itself and that below, each as long as it."""
    form, diagonals = operator.diagonals_format, operator.diagonals
    if form == "matrix":
        raise ValueError(
            "`implicit` must not be a tridiagonal operator of a matrix; use "
            f"`diagonals_format='compact'`. Received: {operator!r}"
        )
    if form == "compact":
        return tf.unstack(tf.convert_to_tensor(diagonals), axis=-2)
    above, middle, below = (tf.convert_to_tensor(d) for d in diagonals)
    if above.shape[-1] != middle.shape[-1]:
        ends = [[0, 0]] * (middle.shape.rank - 1)
        above, below = tf.pad(above, [*ends, [0, 1]]), tf.pad(below, [*ends, [1, 0]])
    return above, middle, below


def _tridiagonal(operator, size, x, transposed):
    above, middle, below = _diagonals(operator)
    if transposed:
        above, below = tf.roll(below, -1, -1), tf.roll(above, 1, -1)
        above, middle, below = (tf.math.conj(d) for d in (above, middle, below))
    size = size[..., tf.newaxis]
    rows = [-size * above, 1 - size * middle, -size * below]
    rows = tf.stack([tf.broadcast_to(row, tf.shape(x)) for row in rows], -2)
    # XLA has no pivoting; where the diagonal dominates, as with diffusion, none is needed.
    return tf.linalg.tridiagonal_solve(rows, x, partial_pivoting=False)
