"""Runge-Kutta methods as data, explicit and implicit ones.

A table is checked when it is made, so a mistyped coefficient is an error at once and not a wrong
solution later.
"""

import dataclasses
import functools
import math
import numbers

import numpy as np

from tfsymadj.methods.interpolation import hermite
from tfsymadj.methods.order_conditions import TOLERANCE, first_dense_violation, first_violation

_MAX_ORDER = 10


@dataclasses.dataclass(frozen=True, repr=False)
class ButcherTableau:
    """The coefficients of a Runge-Kutta method.

    A step of size h from (t, y) evaluates the dynamics f at the stages and combines them:

        k_i = f(t + c_i h, y + h sum_j a_ij k_j),    y_next = y + h sum_i b_i k_i,

    with h sum_i b_error_i k_i as the estimate of the error. The notation and the order conditions
    are those of Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, chapter II.
    With a coarser estimate e' besides the first one e, the error is e |e| / sqrt(|e|^2 + 0.01
    |e'|^2), of a higher order than either (section II.10).

    An additive method has a second matrix, `a_explicit`, for the part g of the dynamics f + g that
    is not stiff (see `Split`): its stages are y + h sum_j (a_ij f_j + a_explicit_ij g_j), and k_j
    is f_j + g_j.

    Tableaus are immutable, and equal if their coefficients, orders and names are.

    Args:
        name: the method's name.
        order: order of the solution with the weights `b`, from 1 to 10.
        c: the nodes, one for each row.
        a: the rows. Of an explicit method row i has i entries, row 0 is `()`, and rows beyond those
            that have a weight in `b` are for `dense` alone: evaluated in those steps only that have
            outputs inside. A row of i + 1 entries has one on the diagonal: its stage is the
            solution of an equation, see `Newton`. Longer rows, up to the number of stages, make a
            fully implicit method. Zeros at the end of a row count for nothing.
        b: the weights, one for each row of a step.
        b_error: `b` minus the weights of the embedded solution. Without it there is no error
            estimate, and the method takes steps of given sizes only.
        embedded_order: order of the embedded solution, by default `order - 1` (but at least 1).
        dense: the continuous extension, y(t + theta h) = y + h sum_i b_i(theta) k_i: for each row
            the coefficients of theta, theta^2, ... in b_i, whose sum is b_i. Without it solutions
            inside of a step are cubic Hermite interpolations.
        dense_order: order of the continuous extension, by default `order - 1` (but at least 1).
        b_coarse: `b` minus the weights of a coarser embedded solution, for the second estimate.
        coarse_order: its order, by default `embedded_order - 1` (but at least 1).
        a_explicit: the rows of an additive method's explicit part, as many as those of `a` and with
            the same sums; each stage of `a` is solved by itself then.

    Coefficients may be integers, floats or fractions; they are kept as floats.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if shapes don't fit, a coefficient is not finite, a row of `a` does not sum to
            its node, or the claimed orders are not reached.

    Example:

    >>> import tfsymadj
    >>> method = tfsymadj.ButcherTableau(
    ...     name="midpoint_euler", order=2, c=(0, 1 / 2), a=((), (1 / 2,)), b=(0, 1),
    ...     b_error=(-1, 1),
    ... )
    >>> method
    <ButcherTableau midpoint_euler: order 2(1), 2 evaluations a step>
    """

    name: str
    order: int
    c: tuple
    a: tuple
    b: tuple
    b_error: tuple | None = None
    embedded_order: int | None = None
    dense: tuple | None = None
    dense_order: int | None = None
    b_coarse: tuple | None = None
    coarse_order: int | None = None
    a_explicit: tuple | None = None

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise TypeError(f"`name` must be a string. Received: {self.name!r}")
        values = {
            "order": _as_order("order", self.order),
            "c": _as_floats("c", self.c),
            "a": _as_rows("a", self.a),
            "b": _as_floats("b", self.b),
        }
        if self.a_explicit is not None:
            values["a_explicit"] = _as_rows("a_explicit", self.a_explicit)
        if self.b_coarse is not None and self.b_error is None:
            raise ValueError(
                f"`b_coarse` must not be given without `b_error`. Received: {self.b_coarse!r}"
            )
        if self.b_error is not None:
            values["b_error"] = _as_floats("b_error", self.b_error)
        if self.b_coarse is not None:
            values["b_coarse"] = _as_floats("b_coarse", self.b_coarse)
        if self.dense is not None:
            rows = enumerate(_as_items("dense", self.dense))
            values["dense"] = tuple(_as_floats(f"dense[{i}]", row) for i, row in rows)
        for name, of, above in (
            ("embedded_order", "b_error", "order"),
            ("coarse_order", "b_coarse", "embedded_order"),
            ("dense_order", "dense", "order"),
        ):
            order = getattr(self, name)
            if of in values:
                order = max(values[above] - 1, 1) if order is None else order
                values[name] = _as_order(name, order)
            elif order is not None:
                raise ValueError(f"`{name}` must not be given without `{of}`. Received: {order!r}")
        for field, value in values.items():
            object.__setattr__(self, field, value)
        self._check_shapes()
        self._check_rows()
        self._check_blocks()
        self._check_orders()
        if self.dense is not None:
            self._check_dense()

    def __repr__(self):
        embedded = [x for x in (self.embedded_order, self.coarse_order) if x is not None]
        orders = f"{self.order}({','.join(map(str, embedded))})" if embedded else f"{self.order}"
        return f"<ButcherTableau {self.name}: order {orders}, {self.stages} evaluations a step>"

    def get_config(self):
        """The constructor's arguments, a dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        """The tableau of a config."""
        return cls(**config)

    @property
    def num_rows(self):
        """Number of rows of a step, a FSAL row included."""
        return len(self.b)

    @property
    def extension(self):
        """Number of further rows, for the continuous extension alone."""
        return len(self.a) - self.num_rows

    @property
    def stages(self):
        """Evaluations of the dynamics in a step, a FSAL row excluded."""
        return self.num_rows - self.fsal

    @property
    def explicit(self):
        """Whether each stage depends on earlier ones only."""
        return all(len(row) == i for i, row in enumerate(self.a))

    @functools.cached_property
    def blocks(self):
        """The stages that depend on each other, a tuple of ranges in their order.

        Those of explicit and of diagonally implicit methods have one stage each.
        """
        found, end = [], 0
        while end < len(self.a):
            begin, end = end, end + 1
            i = begin
            while i < end:
                i, end = i + 1, max(end, len(self.a[i]))
            found.append(range(begin, end))
        return tuple(found)

    @property
    def stiffly_accurate(self):
        """Whether the last stage of an implicit method is the solution."""
        ends = self.a[-1] == self.b and self.c[-1] == 1
        return ends and not self.explicit and self.a_explicit is None

    @property
    def adaptive(self):
        """Whether there is an error estimate to choose step sizes with."""
        return self.b_error is not None

    @functools.cached_property
    def fsal(self):
        """First same as last: whether a step's last row evaluates the dynamics at its end.

        That evaluation is the first one of the next step, and without a part in this one's
        solution.
        """
        last = self.num_rows - 1
        return self.a[last] == self.b[:-1] and self.b[-1] == 0 and self.c[last] == 1

    @functools.cached_property
    def stability_limit(self):
        """The end of the interval of absolute stability of an explicit method.

        The largest r for which |R(-s)| <= 1 for all s <= r, to 0.01, with the stability function
        R(z) = 1 + z b^T (1 + z A + (z A)^2 + ...) 1; at most 2 n^2 with n stages.
        """
        rows = self.num_rows
        powers, coefficients = np.ones(rows), [1.0]
        for _ in range(rows):
            coefficients.append(float(self.b_vector[:rows] @ powers))
            powers = self.a_matrix[:rows, :rows] @ powers
        s = np.arange(0.0, 2.0 * rows**2 + 1.0, 0.01)
        unstable = np.abs(np.polynomial.Polynomial(coefficients)(-s)) > 1.0 + 1e-9
        return float(s[np.argmax(unstable) - 1])

    @property
    def error_order(self):
        """The order of a solution whose error is of the order of the estimate, or None.

        It is the order of the embedded one, unless there are two: e^2 / e' has another.
        """
        if self.b_coarse is None:
            return self.embedded_order
        return 2 * self.embedded_order - self.coarse_order

    @functools.cached_property
    def active_stages(self):
        """For each of the `stages` whether the solution depends on it, a tuple of bools.

        Stage i has a part in the solution if b_i is not zero, or a_ji is not for a later stage j
        that has one. For any other stage the weight w_i of the symplectic adjoint is zero
        whatever the dynamics are, so the adjoint can leave it out.
        """
        used = self.a_matrix[: self.stages, : self.stages] != 0
        active = self.b_vector[: self.stages] != 0
        for _ in range(self.stages):
            active = active | used[active].any(0)
        return tuple(active.tolist())

    @functools.cached_property
    def a_matrix(self):
        """The coefficients a_ij, a read-only float64 array; square, for rows of all kinds."""
        return _square(self.a)

    @functools.cached_property
    def explicit_matrix(self):
        """Those of an additive method's explicit part, likewise, or None."""
        return None if self.a_explicit is None else _square(self.a_explicit)

    @property
    def matrices(self):
        """Those of all parts: what the order conditions are about."""
        if self.a_explicit is None:
            return self.a_matrix
        return np.stack([self.a_matrix, self.explicit_matrix])

    @functools.cached_property
    def b_vector(self):
        """The weights b_i, a read-only float64 array; zero for rows of the extension."""
        return self._weights(self.b)

    @functools.cached_property
    def c_vector(self):
        """The nodes c_i, a read-only float64 array."""
        return _read_only(np.array(self.c))

    @functools.cached_property
    def error_vector(self):
        """The error weights, a read-only float64 array like `b_vector`, or None."""
        return self._weights(self.b_error) if self.adaptive else None

    def _weights(self, b):
        return _read_only(np.pad(b, [0, self.extension]))

    def with_interpolant(self, own_rows=True):
        """The same method with a continuous extension, and a FSAL row, which that needs.

        The row is the next step's first evaluation, so that it costs none. It is made once.

        Args:
            own_rows: whether there may be rows for the extension alone.
        """
        return self._with_interpolant if own_rows else self._without_extension._with_interpolant

    @functools.cached_property
    def _without_extension(self):
        if not self.extension:
            return self
        n = self.num_rows
        return dataclasses.replace(self, c=self.c[:n], a=self.a[:n], dense=None, dense_order=None)

    @functools.cached_property
    def _with_interpolant(self):
        if self.dense is not None and (self.fsal or not self.explicit):
            return self
        if self.dense is not None:
            raise ValueError(
                f"`dense` needs a FSAL row. Received: the method {self.name!r}, which has none"
            )
        extended = self
        if not self.explicit and (self.a[0] or self.c[0] != 0):
            extended = extended.with_first_row()
        if not (self.fsal or self.stiffly_accurate):
            extended = extended._with_fsal_row()
        return dataclasses.replace(
            extended, dense=hermite(extended.b), dense_order=min(self.order, 3)
        )

    def with_first_row(self):
        """With a row of weight zero for the slope at the step's start."""
        return dataclasses.replace(
            self,
            c=(0.0, *self.c),
            a=((), *((0.0, *row) for row in self.a)),
            b=(0.0, *self.b),
            b_error=(0.0, *self.b_error) if self.adaptive else None,
            b_coarse=None if self.b_coarse is None else (0.0, *self.b_coarse),
            a_explicit=self.a_explicit
            and ((), *((0.0, *row) if row else () for row in self.a_explicit)),
        )

    def _with_fsal_row(self):
        return dataclasses.replace(
            self,
            c=(*self.c, 1.0),
            a=(*self.a, self.b),
            b=(*self.b, 0.0),
            b_error=(*self.b_error, 0.0) if self.adaptive else None,
            b_coarse=None if self.b_coarse is None else (*self.b_coarse, 0.0),
            a_explicit=self.a_explicit and (*self.a_explicit, self.b),
        )

    @functools.cached_property
    def embedded_stage(self):
        """The number of the stage that is the embedded solution, or None."""
        if self.b_coarse is not None:
            return None
        embedded = self.b_vector - self.error_vector
        close = np.abs(self.a_matrix - embedded).max(1) < TOLERANCE
        return int(np.argmax(close)) if close.any() else None

    @functools.cached_property
    def filter(self):
        """The coefficient of the matrix that error estimates are multiplied with, or None.

        An embedded solution that stays bounded where a component is very stiff needs none. It is
        the coefficient of the implicit stages, or of stages that are solved together the real
        eigenvalue of theirs.
        """
        stiffness = -1e6
        matrix = np.eye(len(self.a)) - stiffness * self.a_matrix
        stages = np.linalg.solve(matrix, np.ones(len(self.a)))
        embedded = 1.0 + stiffness * (self.b_vector - self.error_vector) @ stages
        numbers = set()
        for block in self.blocks:
            eigenvalues = np.linalg.eigvals(self.a_matrix[np.ix_(block, block)])
            numbers |= set(eigenvalues.real[eigenvalues.imag == 0.0].tolist()) - {0.0}
        return None if abs(embedded) < 1.0 or len(numbers) != 1 else numbers.pop()

    def without_error(self):
        """The same method without error estimates, and without rows that don't serve its steps.

        Steps of given sizes, recomputation and the adjoint use it. It is made once.
        """
        return self._without_error

    def as_used(self, estimates, interpolates):
        """An implicit method with an error estimate and a continuous extension, or without."""
        table = self._with_interpolant if interpolates else self
        unused = () if estimates else ("b_error", "embedded_order", "b_coarse", "coarse_order")
        unused += () if interpolates else ("dense", "dense_order")
        return dataclasses.replace(table, **dict.fromkeys(unused))

    @functools.cached_property
    def _without_error(self):
        if not (self.adaptive or self.fsal):
            return self
        s = self.stages
        return ButcherTableau(self.name, self.order, self.c[:s], self.a[:s], self.b[:s])

    def _check_shapes(self):
        s = len(self.b)
        if s == 0:
            raise ValueError("`b` must have an entry for each stage. Received: ()")
        # Without a continuous extension no row is for it alone.
        rows = s if self.dense is None else max(s, len(self.a))
        for field, count in (
            ("c", rows), ("a", rows), ("b_error", s), ("b_coarse", s), ("dense", rows),
            ("a_explicit", rows),
        ):  # fmt: skip
            value = getattr(self, field)
            if value is not None and len(value) != count:
                as_many = "b" if count == s else "a"
                raise ValueError(
                    f"`{field}` must have {count} entries, as many as `{as_many}`. "
                    f"Received: {value}"
                )
        for i, row in enumerate(self.a):
            if not i <= len(row) <= max(s, i):
                raise ValueError(
                    f"`a[{i}]` must have {i} entries, left of the diagonal, or with an implicit "
                    f"method more, but no more than the {s} stages. Received: {row}"
                )
        if rows > s and not self.explicit:
            raise ValueError(
                "`a` must not have rows beyond `b` with an implicit method. "
                f"Received: {rows} rows in `a`, {s} entries in `b`"
            )
        if self.a_explicit is not None:
            self._check_parts()

    def _check_parts(self):
        """Those of an additive method, one implicit and one explicit."""
        if self.explicit or any(len(block) > 1 for block in self.blocks):
            raise ValueError(
                "`a` must have entries on its diagonal, and none right of it, with `a_explicit`. "
                f"Received: a={self.a}"
            )
        for i, row in enumerate(self.a_explicit):
            if len(row) != i:
                raise ValueError(
                    f"`a_explicit[{i}]` must have {i} entries, left of the diagonal. "
                    f"Received: {row}"
                )

    def _check_rows(self):
        for field in ("a", "a_explicit"):
            for i, row in enumerate(getattr(self, field) or ()):
                node = self.c[i]
                if abs(math.fsum(row) - node) > TOLERANCE * _magnitude(row, node):
                    raise ValueError(
                        f"`{field}[{i}]` must sum to `c[{i}]`. "
                        f"Received: {field}[{i}]={row}, c[{i}]={node}"
                    )
        for field in ("b_error", "b_coarse"):
            weights = getattr(self, field)
            if weights is None:
                continue
            if not any(weights):
                raise ValueError(
                    f"`{field}` must not be all zeros, leave it out. Received: {weights}"
                )
            if abs(math.fsum(weights)) > TOLERANCE * _magnitude(weights, *self.b):
                raise ValueError(f"`{field}` must sum to zero. Received: {weights}")

    def _check_blocks(self):
        for block in self.blocks:
            part = self.a_matrix[block.start : block.stop, block.start : block.stop]
            if len(block) > 1 and np.linalg.matrix_rank(part) < len(block):
                raise ValueError(
                    f"`a` must be regular in stages {block.start} to {block.stop - 1}, which "
                    "depend on each other: they can't be solved for otherwise. List stages that "
                    f"depend on earlier ones only in that order. Received: {part.tolist()}"
                )

    def _check_orders(self):
        violation = first_violation(self.matrices, self.b_vector, self.order)
        if violation is not None:
            raise ValueError(
                f"The weights `b` are not of order {self.order}: {violation}. Check the "
                f"coefficients or lower `order`. Received: order={self.order}"
            )
        for field, name in (("b_error", "embedded_order"), ("b_coarse", "coarse_order")):
            weights, order = getattr(self, field), getattr(self, name)
            if weights is None:
                continue
            embedded = self.b_vector - self._weights(weights)
            violation = first_violation(self.matrices, embedded, order)
            if violation is not None:
                raise ValueError(
                    f"The embedded weights `b - {field}` are not of order {order}: {violation}. "
                    f"Check the coefficients or lower `{name}`. Received: {name}={order}"
                )

    def _check_dense(self):
        if len({len(row) for row in self.dense}) != 1 or not self.dense[0]:
            raise ValueError(
                "`dense` must have rows of one length, as many coefficients as powers of theta. "
                f"Received: rows of lengths {[len(row) for row in self.dense]}"
            )
        for i, (row, weight) in enumerate(zip(self.dense, self.b_vector.tolist(), strict=True)):
            if abs(math.fsum(row) - weight) > TOLERANCE * _magnitude(row, weight):
                raise ValueError(
                    f"`dense[{i}]` must sum to `b[{i}]`, zero beyond its end. "
                    f"Received: dense[{i}]={row}, b[{i}]={weight}"
                )
        violation = first_dense_violation(self.matrices, np.array(self.dense), self.dense_order)
        if violation is not None:
            raise ValueError(
                f"The continuous extension `dense` is not of order {self.dense_order}: "
                f"{violation}. Check the coefficients or lower `dense_order`. "
                f"Received: dense_order={self.dense_order}"
            )


def _square(rows):
    """Rows of any lengths as a read-only float64 array."""
    matrix = np.zeros([len(rows), len(rows)])
    for i, row in enumerate(rows):
        matrix[i, : len(row)] = row
    return _read_only(matrix)


def _as_rows(name, values):
    return tuple(
        _without_zeros(_as_floats(f"{name}[{i}]", row), i)
        for i, row in enumerate(_as_items(name, values))
    )


def _without_zeros(row, least):
    """A row without zeros at its end, but of so many entries at least if it had them."""
    while len(row) > least and row[-1] == 0:
        row = row[:-1]
    return row


def _as_order(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer. Received: {value!r}")
    if not 1 <= value <= _MAX_ORDER:
        raise ValueError(f"`{name}` must be from 1 to {_MAX_ORDER}. Received: {value}")
    return int(value)


def _as_items(name, values):
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"`{name}` must be a tuple, a list or an array. Received: {values!r}")
    return values


def _as_floats(name, values):
    """A tuple of finite floats."""
    floats = []
    for value in _as_items(name, values):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise TypeError(
                f"`{name}` must hold integers, floats or fractions. Received: {value!r}"
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"`{name}` must be finite. Received: {value!r}")
        floats.append(number)
    return tuple(floats)


def _magnitude(*parts):
    """Sum of absolute values, at least one: the scale of the rounding error of a sum."""
    return max(1.0, float(sum(np.sum(np.abs(part)) for part in parts)))


def _read_only(array):
    array.setflags(write=False)
    return array
