"""Explicit Runge-Kutta methods as Butcher tableaus.

A method is data: to add one, declare its table here and enter it in `METHODS`. A table is checked
when it is made, so a mistyped coefficient is an error at once and not a wrong solution later.
"""

import dataclasses
import functools
import math
import numbers
import types
from fractions import Fraction

import numpy as np

# The coefficients are rounded to float64. The tolerance leaves room for that and for the rounding
# of the checks themselves, and is far below any coefficient with a wrong digit.
_TOLERANCE = 1e-13

_MAX_ORDER = 10


@dataclasses.dataclass(frozen=True, repr=False)
class ButcherTableau:
    """The coefficients of an explicit Runge-Kutta method.

    A step of size h from (t, y) evaluates the dynamics f at the stages and combines them:

        k_i = f(t + c_i h, y + h sum_{j<i} a_ij k_j),    y_next = y + h sum_i b_i k_i,

    with h sum_i b_error_i k_i as the estimate of the error. The notation and the order conditions
    are those of Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, chapter II.
    Tableaus are immutable, and equal if their coefficients, orders and names are.

    Args:
        name: the method's name.
        order: order of the solution with the weights `b`, from 1 to 10.
        c: the nodes, one for each row.
        a: the rows of the strictly lower triangle: row i has i entries, row 0 is `()`.
        b: the weights, one for each row.
        b_error: `b` minus the weights of the embedded solution. Without it there is no error
            estimate, and the method takes steps of given sizes only.
        embedded_order: order of the embedded solution, by default `order - 1` (but at least 1).

    Coefficients may be integers, floats or fractions; they are kept as floats.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if shapes don't fit, a coefficient is not finite, a row of `a` does not sum to
            its node, or the claimed orders are not reached.

    Example:

    >>> from tfsymadj import tableaus
    >>> method = tableaus.ButcherTableau(
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

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise TypeError(f"`name` must be a string. Received: {self.name!r}")
        values = {
            "order": _as_order("order", self.order),
            "c": _as_floats("c", self.c),
            "a": tuple(_as_floats(f"a[{i}]", row) for i, row in enumerate(_as_items("a", self.a))),
            "b": _as_floats("b", self.b),
        }
        if self.b_error is not None:
            values["b_error"] = _as_floats("b_error", self.b_error)
            if self.embedded_order is None:
                values["embedded_order"] = max(values["order"] - 1, 1)
            else:
                values["embedded_order"] = _as_order("embedded_order", self.embedded_order)
        elif self.embedded_order is not None:
            raise ValueError(
                "`embedded_order` must not be given without `b_error`. "
                f"Received: {self.embedded_order!r}"
            )
        for field, value in values.items():
            object.__setattr__(self, field, value)
        self._check_shapes()
        self._check_rows()
        self._check_orders()

    def __repr__(self):
        orders = f"{self.order}({self.embedded_order})" if self.adaptive else f"{self.order}"
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
        """Number of rows of the table, a FSAL row included."""
        return len(self.b)

    @property
    def stages(self):
        """Evaluations of the dynamics in a step, a FSAL row excluded."""
        return self.num_rows - self.fsal

    @property
    def adaptive(self):
        """Whether there is an error estimate to choose step sizes with."""
        return self.b_error is not None

    @functools.cached_property
    def fsal(self):
        """First same as last: whether the last row evaluates the dynamics at the step's end.

        That evaluation is the first one of the next step, and without a part in this one's
        solution.
        """
        return self.a[-1] == self.b[:-1] and self.b[-1] == 0 and self.c[-1] == 1

    @functools.cached_property
    def active_stages(self):
        """For each of the `stages` whether the solution depends on it, a tuple of bools.

        Stage i has a part in the solution if b_i is not zero, or a_ji is not for a later stage j
        that has one. For any other stage the weight w_i of the symplectic adjoint is zero
        whatever the dynamics are, so the adjoint can leave it out.
        """
        active = [False] * self.stages
        for i in reversed(range(self.stages)):
            later = (self.a[j][i] != 0 for j in range(i + 1, self.stages) if active[j])
            active[i] = self.b[i] != 0 or any(later)
        return tuple(active)

    @functools.cached_property
    def a_matrix(self):
        """The coefficients a_ij, a read-only float64 array `(num_rows, num_rows)`."""
        matrix = np.zeros([self.num_rows, self.num_rows])
        for i, row in enumerate(self.a):
            matrix[i, :i] = row
        return _read_only(matrix)

    @functools.cached_property
    def b_vector(self):
        """The weights b_i, a read-only float64 array `(num_rows,)`."""
        return _read_only(np.array(self.b))

    @functools.cached_property
    def c_vector(self):
        """The nodes c_i, a read-only float64 array `(num_rows,)`."""
        return _read_only(np.array(self.c))

    @functools.cached_property
    def error_vector(self):
        """The error weights, a read-only float64 array `(num_rows,)`, or None."""
        return _read_only(np.array(self.b_error)) if self.adaptive else None

    def without_error(self):
        """The same method without its error estimate, and without a FSAL row, which serves it.

        Steps of given sizes, recomputation and the adjoint use it. It is made once.
        """
        return self._without_error

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
        for field in ("c", "a", "b_error"):
            value = getattr(self, field)
            if value is not None and len(value) != s:
                raise ValueError(
                    f"`{field}` must have {s} entries, as many as `b`. Received: {value}"
                )
        for i, row in enumerate(self.a):
            if len(row) != i:
                raise ValueError(
                    f"`a[{i}]` must have {i} entries: methods are explicit, and a row holds what "
                    f"is left of the diagonal. Received: {row}"
                )

    def _check_rows(self):
        for i, (node, row) in enumerate(zip(self.c, self.a, strict=True)):
            if abs(math.fsum(row) - node) > _TOLERANCE * _magnitude(row, node):
                raise ValueError(
                    f"`a[{i}]` must sum to `c[{i}]`. Received: a[{i}]={row}, c[{i}]={node}"
                )
        if self.b_error is None:
            return
        if not any(self.b_error):
            raise ValueError(
                f"`b_error` must not be all zeros, leave it out. Received: {self.b_error}"
            )
        if abs(math.fsum(self.b_error)) > _TOLERANCE * _magnitude(self.b_error, *self.b):
            raise ValueError(f"`b_error` must sum to zero. Received: {self.b_error}")

    def _check_orders(self):
        violation = first_violation(self.a_matrix, self.b_vector, self.order)
        if violation is not None:
            raise ValueError(
                f"The weights `b` are not of order {self.order}: {violation}. Check the "
                f"coefficients or lower `order`. Received: order={self.order}"
            )
        if self.b_error is None:
            return
        embedded = self.b_vector - self.error_vector
        violation = first_violation(self.a_matrix, embedded, self.embedded_order)
        if violation is not None:
            raise ValueError(
                f"The embedded weights `b - b_error` are not of order {self.embedded_order}: "
                f"{violation}. Check the coefficients or lower `embedded_order`. "
                f"Received: embedded_order={self.embedded_order}"
            )


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


# Order conditions. A rooted tree is the tuple of its root's subtrees, so a single vertex is ().
# A method is of order p if b @ weights(tree) = 1 / density(tree) for each tree of p vertices or
# less (Butcher, J. Austral. Math. Soc. 3 (1963)); see Hairer, Norsett, Wanner, theorem II.2.13.


@functools.cache
def rooted_trees(order):
    """All rooted trees of `order` vertices, a tuple.

    Each is listed once: subtrees stand in the order in which the smaller trees are listed.

    Args:
        order: number of vertices, at least 1.

    Example:

    >>> from tfsymadj import tableaus
    >>> tableaus.rooted_trees(3)
    (((), ()), (((),),))
    """
    smaller = [(n, tree) for n in range(1, order) for tree in rooted_trees(n)]

    def forests(vertices, start):
        if vertices == 0:
            yield ()
        for i in range(start, len(smaller)):
            size, tree = smaller[i]
            if size > vertices:
                break
            for others in forests(vertices - size, i):
                yield (tree, *others)

    return tuple(forests(order - 1, 0))


@functools.cache
def num_vertices(tree):
    """Number of vertices of a rooted tree."""
    return 1 + sum(num_vertices(subtree) for subtree in tree)


@functools.cache
def density(tree):
    """Density (gamma) of a rooted tree: the product of the sizes of all its subtrees."""
    return num_vertices(tree) * math.prod(density(subtree) for subtree in tree)


def residuals(a_matrix, b_vector, order):
    """How far the weights are from the order conditions of one order.

    Args:
        a_matrix: square array of the coefficients a_ij.
        b_vector: array of the weights.
        order: the order whose conditions are evaluated.

    Returns:
        A list with `(tree, residual, scale)` for each tree of `order` vertices: the elementary
        weight minus one over the density, and the sum of the absolute values of the terms that
        make up the weight, as a scale for rounding errors.
    """
    weights = _StageWeights(a_matrix)
    found = []
    for tree in rooted_trees(order):
        # Absolute values inside of the weights too would bound the rounding error for certain, but
        # by 1e-4 and more for a method of order 8, which would be no check.
        terms = b_vector * weights(tree)
        found.append((tree, float(terms.sum()) - 1.0 / density(tree), float(np.abs(terms).sum())))
    return found


def first_violation(a_matrix, b_vector, order):
    """The first order condition that doesn't hold, in words, or None.

    Args:
        a_matrix: square array of the coefficients a_ij.
        b_vector: array of the weights.
        order: the highest order whose conditions are checked.
    """
    for n in range(1, order + 1):
        for tree, residual, scale in residuals(a_matrix, b_vector, n):
            if not abs(residual) <= _TOLERANCE * max(1.0, scale):
                return (
                    f"the condition {_formula(tree)} = {Fraction(1, density(tree))} of order {n} "
                    f"is violated by {residual:.3g}"
                )
    return None


class _StageWeights:
    """The vector of a tree's elementary weights over the stages; those of subtrees are kept."""

    def __init__(self, matrix):
        self._matrix = matrix
        self._known = {}

    def __call__(self, tree):
        if tree not in self._known:
            weights = np.ones(len(self._matrix))
            for subtree in tree:
                weights = weights * (self._matrix @ self(subtree))
            self._known[tree] = weights
        return self._known[tree]


def _formula(tree):
    """The elementary weight as an expression in A, b and c, like `b @ (c * (A @ c))`."""

    def product(tree):
        factors = [f"(A @ {product(subtree)})" if subtree else "c" for subtree in tree]
        return factors[0] if len(factors) == 1 else f"({' * '.join(factors)})"

    return f"b @ {product(tree)}" if tree else "sum(b)"


# Euler, Institutionum calculi integralis I (1768).
EULER = ButcherTableau(name="euler", order=1, c=(0,), a=((),), b=(1,))

# Runge, Mathematische Annalen 46 (1895), 167-178.
MIDPOINT = ButcherTableau(name="midpoint", order=2, c=(0, 1 / 2), a=((), (1 / 2,)), b=(0, 1))

# The explicit trapezoidal rule; Heun, Zeitschrift fuer Mathematik und Physik 45 (1900), 23-38.
HEUN = ButcherTableau(name="heun", order=2, c=(0, 1), a=((), (1,)), b=(1 / 2, 1 / 2))

# Two stages with the least error bound; Ralston, Mathematics of Computation 16 (1962), 431-437.
RALSTON = ButcherTableau(name="ralston", order=2, c=(0, 2 / 3), a=((), (2 / 3,)), b=(1 / 4, 3 / 4))

# Kutta, Zeitschrift fuer Mathematik und Physik 46 (1901), 435-453.
RK4 = ButcherTableau(
    name="rk4",
    order=4,
    c=(0, 1 / 2, 1 / 2, 1),
    a=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)

# The 3/8 rule; Kutta, Zeitschrift fuer Mathematik und Physik 46 (1901), 435-453.
RK38 = ButcherTableau(
    name="rk38",
    order=4,
    c=(0, 1 / 3, 2 / 3, 1),
    a=((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
)

# RK1(2), advanced with the weights of order 2; Fehlberg, NASA Technical Report R-315 (1969).
FEHLBERG2 = ButcherTableau(
    name="fehlberg2",
    order=2,
    c=(0, 1 / 2, 1),
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    b_error=(-1 / 512, 0, 1 / 512),
)

# Heun's method with the Euler method embedded in it.
ADAPTIVE_HEUN = ButcherTableau(
    name="adaptive_heun",
    order=2,
    c=(0, 1),
    a=((), (1,)),
    b=(1 / 2, 1 / 2),
    b_error=(-1 / 2, 1 / 2),
)

# Bogacki, Shampine, Applied Mathematics Letters 2 (1989), 321-325.
BOSH3 = ButcherTableau(
    name="bosh3",
    order=3,
    c=(0, 1 / 2, 3 / 4, 1),
    a=((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0),
    b_error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)

# RK4(5), advanced with the weights of order 5; Fehlberg, NASA Technical Report R-315 (1969).
FEHLBERG45 = ButcherTableau(
    name="fehlberg45",
    order=5,
    c=(0, 1 / 4, 3 / 8, 12 / 13, 1, 1 / 2),
    a=(
        (),
        (1 / 4,),
        (3 / 32, 9 / 32),
        (1932 / 2197, -7200 / 2197, 7296 / 2197),
        (439 / 216, -8, 3680 / 513, -845 / 4104),
        (-8 / 27, 2, -3544 / 2565, 1859 / 4104, -11 / 40),
    ),
    b=(16 / 135, 0, 6656 / 12825, 28561 / 56430, -9 / 50, 2 / 55),
    b_error=(1 / 360, 0, -128 / 4275, -2197 / 75240, 1 / 50, 2 / 55),
)

# Tsitouras, Computers and Mathematics with Applications 62 (2011), 770-775.
TSIT5 = ButcherTableau(
    name="tsit5",
    order=5,
    c=(0, 0.161, 0.327, 0.9, 0.98002554090450968573, 1, 1),
    a=(
        (),
        (0.161,),
        (-0.0084806554923569885444, 0.33548065549235698854),
        (2.8971530571054934321, -6.3594484899750748431, 4.3622954328695814110),
        (
            5.3258648284392566044,
            -11.748883564062827878,
            7.4955393428898362083,
            -0.092495066361755249257,
        ),
        (
            5.8614554429464200287,
            -12.920969317847109292,
            8.1593678985761586432,
            -0.071584973281400997225,
            -0.028269050394068382909,
        ),
        (
            0.096460766818065229518,
            0.01,
            0.47988965041449957478,
            1.3790085741037418932,
            -3.2900695154360806799,
            2.3247105240997739824,
        ),
    ),
    b=(
        0.096460766818065229518,
        0.01,
        0.47988965041449957478,
        1.3790085741037418932,
        -3.2900695154360806799,
        2.3247105240997739824,
        0,
    ),
    b_error=(
        0.0017800110522257714434,
        0.00081643445965674690322,
        -0.0078808780102619960103,
        0.14471100717326290754,
        -0.58235716545255522502,
        0.45808210592918694666,
        -1 / 66,
    ),
)

# RK5(4)7M; Dormand, Prince, Journal of Computational and Applied Mathematics 6 (1980), 19-26.
DOPRI5 = ButcherTableau(
    name="dopri5",
    order=5,
    c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
    b_error=(71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)

# RK8(7)13M; Prince, Dormand, Journal of Computational and Applied Mathematics 7 (1981), 67-75. The
# rationals are approximations, as published; they satisfy the order conditions to about 1e-17.
DOPRI8 = ButcherTableau(
    name="dopri8",
    order=8,
    c=(
        0,
        1 / 18,
        1 / 12,
        1 / 8,
        5 / 16,
        3 / 8,
        59 / 400,
        93 / 200,
        5490023248 / 9719169821,
        13 / 20,
        1201146811 / 1299019798,
        1,
        1,
    ),
    a=(
        (),
        (1 / 18,),
        (1 / 48, 1 / 16),
        (1 / 32, 0, 3 / 32),
        (5 / 16, 0, -75 / 64, 75 / 64),
        (3 / 80, 0, 0, 3 / 16, 3 / 20),
        (
            29443841 / 614563906,
            0,
            0,
            77736538 / 692538347,
            -28693883 / 1125000000,
            23124283 / 1800000000,
        ),
        (
            16016141 / 946692911,
            0,
            0,
            61564180 / 158732637,
            22789713 / 633445777,
            545815736 / 2771057229,
            -180193667 / 1043307555,
        ),
        (
            39632708 / 573591083,
            0,
            0,
            -433636366 / 683701615,
            -421739975 / 2616292301,
            100302831 / 723423059,
            790204164 / 839813087,
            800635310 / 3783071287,
        ),
        (
            246121993 / 1340847787,
            0,
            0,
            -37695042795 / 15268766246,
            -309121744 / 1061227803,
            -12992083 / 490766935,
            6005943493 / 2108947869,
            393006217 / 1396673457,
            123872331 / 1001029789,
        ),
        (
            -1028468189 / 846180014,
            0,
            0,
            8478235783 / 508512852,
            1311729495 / 1432422823,
            -10304129995 / 1701304382,
            -48777925059 / 3047939560,
            15336726248 / 1032824649,
            -45442868181 / 3398467696,
            3065993473 / 597172653,
        ),
        (
            185892177 / 718116043,
            0,
            0,
            -3185094517 / 667107341,
            -477755414 / 1098053517,
            -703635378 / 230739211,
            5731566787 / 1027545527,
            5232866602 / 850066563,
            -4093664535 / 808688257,
            3962137247 / 1805957418,
            65686358 / 487910083,
        ),
        (
            403863854 / 491063109,
            0,
            0,
            -5068492393 / 434740067,
            -411421997 / 543043805,
            652783627 / 914296604,
            11173962825 / 925320556,
            -13158990841 / 6184727034,
            3936647629 / 1978049680,
            -160528059 / 685178525,
            248638103 / 1413531060,
            0,
        ),
    ),
    b=(
        14005451 / 335480064,
        0,
        0,
        0,
        0,
        -59238493 / 1068277825,
        181606767 / 758867731,
        561292985 / 797845732,
        -1041891430 / 1371343529,
        760417239 / 1151165299,
        118820643 / 751138087,
        -528747749 / 2220607170,
        1 / 4,
    ),
    b_error=(
        14005451 / 335480064 - 13451932 / 455176623,
        0,
        0,
        0,
        0,
        -59238493 / 1068277825 + 808719846 / 976000145,
        181606767 / 758867731 - 1757004468 / 5645159321,
        561292985 / 797845732 - 656045339 / 265891186,
        -1041891430 / 1371343529 + 3867574721 / 1518517206,
        760417239 / 1151165299 - 465885868 / 322736535,
        118820643 / 751138087 - 53011238 / 667516719,
        -528747749 / 2220607170 - 2 / 45,
        1 / 4,
    ),
)

METHODS = types.MappingProxyType(
    {
        tableau.name: tableau
        for tableau in (
            EULER,
            MIDPOINT,
            HEUN,
            RALSTON,
            RK4,
            RK38,
            FEHLBERG2,
            ADAPTIVE_HEUN,
            BOSH3,
            FEHLBERG45,
            TSIT5,
            DOPRI5,
            DOPRI8,
        )
    }
)


def get_tableau(method):
    """The tableau of a method.

    Args:
        method: a name in `METHODS`, or a `ButcherTableau`, which is returned as it is.

    Returns:
        `ButcherTableau`.

    Raises:
        TypeError: if `method` is neither.
        ValueError: if there is no method of that name.

    Example:

    >>> from tfsymadj import tableaus
    >>> tableaus.get_tableau("dopri5").stages
    6
    """
    if isinstance(method, ButcherTableau):
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"`method` must be a name or a `ButcherTableau`. Received: {method!r} "
            f"(of type {type(method).__name__})"
        )
    if method not in METHODS:
        names = ", ".join(METHODS)
        raise ValueError(f"`method` must be one of {names}. Received: {method!r}")
    return METHODS[method]
