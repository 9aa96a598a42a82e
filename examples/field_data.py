"""Fields on a line that is a circle: Korteweg-de Vries and Cahn-Hilliard, as energies on a grid.

Both equations are du/dt = G grad H(u), with G a central difference and H a sum over the grid:

    Korteweg-de Vries    u_t = -6 u u_x - u_xxx              G = d/dx
                         H = sum of -u^3 + u_x^2 / 2
    Cahn-Hilliard        u_t = (u^3 - u - gamma u_xx)_xx     G = d^2/dx^2
                         H = sum of (u^2 - 1)^2 / 4 + gamma u_x^2 / 2

The data solve the equations on the grid of 50 points on which they are learned, in float64, and not
those of the continuum: this way the sum of u and the energy are known exactly, the first is kept,
and the second is kept or decays. A model has nothing to learn about the error of a grid. In the
limit of a fine grid the solutions are those of the continuum; the tests check it by the soliton.

Setting: Matsubara, Miyatake, Yaguchi, arXiv:2102.09750, Table 4, and Matsubara, Ishikawa, Yaguchi,
arXiv:1905.08604. Their data are not used.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Field:
    """What the equations have in common: a periodic grid, and solutions by fixed steps.

    Args:
        length: of the circle.
        points: of the grid.
        interval: time between two fields of the data.
        steps: steps of the classical Runge-Kutta method in an interval.
    """

    length: float
    points: int
    interval: float
    steps: int

    @property
    def spacing(self):
        return self.length / self.points

    @property
    def x(self):
        return self.spacing * np.arange(self.points)

    def slope(self, u):
        """Difference of a point's right neighbour and itself."""
        return (np.roll(u, -1, -1) - u) / self.spacing

    def second(self, u):
        return (np.roll(u, -1, -1) - 2 * u + np.roll(u, 1, -1)) / self.spacing**2

    def solve(self, u, count):
        """Fields `(batch, count + 1, points)` at the times 0, interval, 2 interval ..."""
        h, fields = self.interval / self.steps, [u]
        for _ in range(count):
            for _ in range(self.steps):
                k1 = self.rate(u)
                k2 = self.rate(u + h / 2 * k1)
                k3 = self.rate(u + h / 2 * k2)
                u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + self.rate(u + h * k3))
            fields.append(u)
        return np.stack(fields, -2)

    def data(self, seed, batch, count):
        """Solutions from `batch` random initial fields, always the same for a seed."""
        return self.solve(self.initial(np.random.default_rng(seed), batch), count)


@dataclasses.dataclass(frozen=True)
class KortewegDeVries(Field):
    """Two waves of random heights and places, which overtake each other."""

    length: float = 10.0
    points: int = 50
    interval: float = 0.005
    steps: int = 10

    derivative = 1  # of G
    name = "Korteweg-de Vries"

    def energy(self, u):
        return np.sum(-(u**3) + self.slope(u) ** 2 / 2, -1)

    def rate(self, u):
        v = -3 * u**2 - self.second(u)
        return (np.roll(v, -1, -1) - np.roll(v, 1, -1)) / (2 * self.spacing)

    def soliton(self, t, kappa, center):
        """A wave of height 2 kappa^2 and speed 4 kappa^2; exact on a line without an end."""
        distance = self.x - center - 4 * kappa**2 * t
        distance = (distance + self.length / 2) % self.length - self.length / 2
        return 2 * kappa**2 / np.cosh(kappa * distance) ** 2

    def initial(self, rng, batch):
        kappa = rng.uniform(0.7, 1.4, [2, batch, 1])
        center = rng.uniform(0, self.length, [2, batch, 1])
        return sum(self.soliton(0.0, k, c) for k, c in zip(kappa, center))


@dataclasses.dataclass(frozen=True)
class CahnHilliard(Field):
    """Two liquids part: from a smooth, almost even mixture to domains of u near -1 and 1."""

    length: float = 1.0
    points: int = 50
    interval: float = 1e-4
    steps: int = 10
    gamma: float = 5e-4

    derivative = 2
    name = "Cahn-Hilliard"

    def energy(self, u):
        return np.sum((u**2 - 1) ** 2 / 4 + self.gamma / 2 * self.slope(u) ** 2, -1)

    def rate(self, u):
        return self.second(u**3 - u - self.gamma * self.second(u))

    def initial(self, rng, batch, waves=8):
        """A sum of waves that fit on the circle, about 0.15 high."""
        k = np.arange(1, waves + 1)[:, None]
        amplitude = rng.normal(0, 0.15 / waves**0.5, [batch, waves])
        phase = rng.uniform(0, 2 * np.pi, [batch, waves, 1])
        mean = rng.uniform(-0.1, 0.1, [batch, 1])
        waves = np.cos(2 * np.pi * k * self.x / self.length + phase)
        return mean + np.einsum("bk,bkx->bx", amplitude, waves)
