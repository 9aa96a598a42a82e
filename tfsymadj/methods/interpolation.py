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


def quartic(b: tuple, d: tuple) -> tuple:
    """The form of continuous extension of order 4 that DOPRI5 has.

    With Delta = h sum_i b_i k_i and beta = h k_1 - Delta it is

        theta (Delta + (1 - theta) (beta + theta (Delta - h k_s - beta
            + (1 - theta) h sum_i d_i k_i))).

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section II.6.
    """
    # Hermite interpolation, and what is added to it: theta^2 (1 - theta)^2 h sum_i d_i k_i.
    cubic = np.pad(np.array(hermite(b)), [(0, 0), (0, 1)])
    return tuple(map(tuple, (cubic + np.outer(d, [0.0, 1.0, -2.0, 1.0])).tolist()))
