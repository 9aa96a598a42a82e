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
    """One gradient, for all weights and y(0), of many outputs: a problem of little work a step.

    Float32; the loss is the mean of y**2 over all outputs, which are spread evenly from t = 0 to
    `end`.

    Attributes:
        title: what it is, in words.
        size: length of y.
        hidden: widths of the hidden layers of a network of y alone; empty: Lotka's and Volterra's
            equations, with four rates for weights.
        activation: `elu` or `tanh`.
        batch: number of examples.
        end: of the outputs.
        count: how many outputs there are, where nobody asks for another number.
        gain: of the kernels, see `Workload`.
        seed: of weights and y(0).
        rtol: relative tolerance of dopri5.
        atol: absolute tolerance.
        num_steps: of rk4, in place of dopri5.
        spread: by how much faster the last example moves than the first.
        alike: whether all examples start where the first one does.
    """

    title: str
    size: int
    hidden: tuple = ()
    activation: str = "tanh"
    batch: int = 1
    end: float = 1.0
    count: int = 2
    gain: float = 2.0
    seed: int = 4
    rtol: float | None = None
    atol: float | None = None
    num_steps: int | None = None
    spread: float = 1.0
    alike: bool = False

    @property
    def rates(self):
        """What the slopes of each example are multiplied by, float32 `(batch, 1)`."""
        return np.geomspace(1.0, self.spread, self.batch)[:, np.newaxis].astype(np.float32)

    def data(self):
        """Kernels, biases, and the initial state; the rates are the only kernel."""
        rng = np.random.default_rng(self.seed)
        if not self.hidden:
            rates, start = np.array([1.5, 1.0, 3.0, 1.0]), np.array([1.0, 1.0])
            return [rates.astype(np.float32)], [], start.astype(np.float32)
        kernels, biases = _weights([self.size, *self.hidden, self.size], self.gain, rng)
        start = rng.standard_normal((self.batch, self.size)).astype(np.float32)
        return kernels, biases, np.repeat(start[:1], self.batch, 0) if self.alike else start

    def times(self, count):
        """Those of so many outputs."""
        return np.linspace(0.0, self.end, count)


SERIES = {
    "latent": Series(
        "latent: 4-20-20-4, elu, batch 200, dopri5, 0.001 and 0.0001", size=4, hidden=(20, 20),
        activation="elu", batch=200, end=2.0, count=100, rtol=1e-3, atol=1e-4,
    ),
    "spiral": Series(
        "spiral: 2-50-2, tanh, batch 20, dopri5, 1e-06 and 1e-06", size=2, hidden=(50,), batch=20,
        end=1.0, count=10, rtol=1e-6, atol=1e-6,
    ),
    "prey": Series(
        "prey: Lotka's and Volterra's equations, dopri5, 1e-06 and 1e-06", size=2, end=10.0,
        count=101, rtol=1e-6, atol=1e-6,
    ),
    "steps": Series(
        "steps: 4-32-4, tanh, batch 16, 1,000 steps of rk4", size=4, hidden=(32,), batch=16,
        end=10.0, num_steps=1000,
    ),
    "mixed": Series(
        "mixed: 4-32-32-4, tanh, 128 examples of unequal rates, dopri5, 1e-05 and 1e-06", size=4,
        hidden=(32, 32), batch=128, end=10.0, rtol=1e-5, atol=1e-6, spread=100.0,
    ),
    "alike": Series(
        "alike: 4-32-32-4, tanh, 128 examples that are all alike, dopri5, 1e-05 and 1e-06", size=4,
        hidden=(32, 32), batch=128, end=10.0, rtol=1e-5, atol=1e-6, alike=True,
    ),
}  # fmt: skip

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
