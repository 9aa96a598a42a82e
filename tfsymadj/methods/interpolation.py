"""Continuous extensions of Runge-Kutta methods: the solution inside of a step.

With theta = (t - t_n) / h the solution is y_n + h sum_i b_i(theta) k_i, for polynomials b_i without
constant terms: a table of their coefficients, a row for each row of the method.
"""

import numpy as np

#: Powers of theta that cubic Hermite interpolation multiplies the increment, and the slopes at the
#: step's ends with (Hairer, Norsett, Wanner, Solving ODEs I, section II.6).
_INCREMENT = np.array([0.0, 3.0, -2.0])
_FIRST_SLOPE = np.array([1.0, -2.0, 1.0])
_LAST_SLOPE = np.array([0.0, -1.0, 1.0])


def hermite(b: tuple) -> tuple:
    """Cubic Hermite interpolation between the ends of a step, of order 3 or the method's, if less.

    Args:
        b: the weights of a method whose first row is the slope at the step's start, and whose last
            one that at its end.

    Returns:
        Tuple of rows of coefficients, of theta, theta^2, theta^3.
    """
    table = np.outer(b, _INCREMENT)
    table[0] += _FIRST_SLOPE
    table[-1] += _LAST_SLOPE
    return tuple(map(tuple, table.tolist()))


def nested(b: tuple, *d: tuple) -> tuple:
    """The form of continuous extension that DOPRI5 and DOP853 have.

    With Delta = h sum_i b_i k_i, beta = h k_1 - Delta, k_s the slope at the step's end and
    D_m = h sum_i d_mi k_i it is

        theta (Delta + (1 - theta) (beta + theta (Delta - h k_s - beta
            + (1 - theta) (D_1 + theta (D_2 + (1 - theta) (D_3 + ...)))))).

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, sections II.6 and
    II.10.

    Args:
        b: see `hermite`.
        *d: weights of all rows, those included that are beyond `b`.

    Returns:
        Tuple of rows of coefficients, of theta, theta^2, ...
    """
    # Hermite interpolation, and what is added to it: theta^2 (1 - theta)^2 D_1, ...
    table = np.pad(np.array(hermite(b)), [(0, len(d[0]) - len(b)), (0, len(d))])
    factor = np.zeros(table.shape[1])
    factor[1:3] = 1.0, -1.0
    for m, weights in enumerate(d):
        by_theta = np.roll(factor, 1)  # whose last coefficient is zero
        factor = by_theta if m % 2 else factor - by_theta
        table += np.outer(weights, factor)
    return tuple(map(tuple, table.tolist()))
