"""The work of the comparison with other packages: weights and inputs, the same for every framework.

Needs NumPy only. A network has the inputs [y, t], tanh layers, and as many outputs as y. The loss
is the mean of y(1)**2, or that of a continuous normalizing flow: the negative mean log-likelihood.
What `outputs.py` asks for is a `Series`.
"""

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Workload:
    """One gradient for all weights of a loss at t = 1, from t = 0.

    Attributes:
        title: what it is, in words.
        size: length of y, or of the flow's samples.
        hidden: widths of the hidden layers.
        batch: number of samples.
        gain: the kernels are uniform in +-gain / sqrt(fan-in), the biases in +-1 / sqrt(fan-in).
        seed: of weights and inputs.
        method: `rk38`, `dopri5` or `dopri8`.
        num_steps: number of equal steps; None: adaptive steps.
        tolerance: relative and absolute, of adaptive steps.
        flow: whether the state has the log-density as one more column.
    """

    title: str
    size: int
    hidden: tuple
    batch: int
    gain: float
    seed: int
    method: str
    num_steps: int | None = None
    tolerance: float | None = None
    flow: bool = False

    @property
    def adaptive(self):
        """Whether the solver chooses the steps."""
        return self.num_steps is None

    @property
    def log_normalizer(self):
        """The logarithm by which exp(-z**2 / 2) becomes the normal density of `size` variables."""
        return 0.5 * self.size * math.log(2 * math.pi)

    def data(self):
        """`Data`, drawn anew; always the same."""
        rng = np.random.default_rng(self.seed)
        kernels, biases = _weights([self.size + 1, *self.hidden, self.size], self.gain, rng)
        shape = (self.batch, self.size)
        y0 = rng.standard_normal(shape).astype(np.float32)
        noise = rng.choice([-1.0, 1.0], shape).astype(np.float32)
        if self.flow:
            y0 = np.concatenate([y0, np.zeros_like(y0[:, :1])], axis=1)
        return Data(kernels, biases, y0, noise)


@dataclasses.dataclass(frozen=True)
class Data:
    """Float32 arrays: the weights, the initial state, and the vectors of Hutchinson's estimate."""

    kernels: list
    biases: list
    y0: Any
    noise: Any


def _weights(sizes, gain, rng):
    """Kernels and biases of a network."""
    kernels, biases = [], []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:]):
        bound = 1 / np.sqrt(fan_in)
        kernel = gain * rng.uniform(-bound, bound, (fan_in, fan_out))
        kernels.append(kernel.astype(np.float32))
        biases.append(rng.uniform(-bound, bound, fan_out).astype(np.float32))
    return kernels, biases


@dataclasses.dataclass(frozen=True)
class Series:
    """The ODE of a latent ODE: one gradient, for all weights and y(0), of many outputs.

    A network of y alone, with elu layers; dopri5; float32. The loss is the mean of y**2 over all
    outputs, which are spread evenly from t = 0 to `end`.
    """

    size: int = 4
    hidden: tuple = (20, 20)
    batch: int = 200
    end: float = 2.0
    gain: float = 2.0
    seed: int = 4
    rtol: float = 1e-3
    atol: float = 1e-4

    @property
    def title(self):
        """What it is, in words."""
        sizes = "-".join(str(n) for n in (self.size, *self.hidden, self.size))
        return f"{sizes}, elu, batch {self.batch}, dopri5, {self.rtol:g} and {self.atol:g}"

    def data(self):
        """Kernels, biases, and the initial state."""
        rng = np.random.default_rng(self.seed)
        kernels, biases = _weights([self.size, *self.hidden, self.size], self.gain, rng)
        return kernels, biases, rng.standard_normal((self.batch, self.size)).astype(np.float32)

    def times(self, count):
        """Those of so many outputs."""
        return np.linspace(0.0, self.end, count)


SERIES = Series()

_SMALL = dict(size=64, hidden=(256, 256), batch=512, gain=3.0, seed=1)
_DEEP = dict(size=64, hidden=(512,) * 6, batch=256, gain=2.0, seed=3)
_FLOW = dict(size=43, hidden=(860, 860), batch=1000, gain=2.0, seed=2, flow=True)

WORKLOADS = {
    **{
        f"W1a-{n}": Workload(
            f"small network, 3/8 rule, {n} steps", **_SMALL, method="rk38", num_steps=n
        )
        for n in (10, 100, 1000)
    },
    "W1b": Workload("small network, dopri5, 1e-6", **_SMALL, method="dopri5", tolerance=1e-6),
    "W2": Workload("normalizing flow, dopri5, 1e-5", **_FLOW, method="dopri5", tolerance=1e-5),
    "W3": Workload("deep network, dopri5, 1e-6", **_DEEP, method="dopri5", tolerance=1e-6),
    "W3d8": Workload("deep network, dopri8, 1e-6", **_DEEP, method="dopri8", tolerance=1e-6),
}
