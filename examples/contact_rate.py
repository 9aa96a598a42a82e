"""A network of time within an epidemic, trained by Gauss-Newton steps without any Jacobian.

    python examples/contact_rate.py            # about a minute on two cores
    python examples/contact_rate.py --quick    # every part, in less than 40 s

A town of 10,000 reports its ill every day for ten weeks. In the middle it closes its schools, later
it opens them again: the rate of infections, a function of time, is a small network within an SEIR
model. A Gauss-Newton step solves (J'J + damping) step = -J'r by conjugate gradients, which ask for
products alone: J v is a solve in forward mode (`jvp`), J'w a backward pass. Both are exact for the
same steps, so that they are transposes of each other to rounding. Beside it L-BFGS and Adam, which
take a gradient for each solve: here L-BFGS needs about as many solves, Adam many times as many.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

import tfsymadj

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PEOPLE, ONSET, RECOVERY = 10_000.0, 0.6, 0.4
DAYS = np.arange(0.0, 71.0)
START = np.array([PEOPLE - 60.0, 40.0, 20.0])  # susceptible, exposed, ill
OPTIONS = dict(rtol=1e-7, atol=1e-5, max_steps=256, jit_compile=True)
ORANGE, BLUE, GREEN, GRAY = "#D55E00", "#0072B2", "#009E73", "#555555"


def true_rate(t):
    """Infections a day by one who is ill, while all others are susceptible."""
    return 0.35 + 0.75 / (1 + tf.exp((t - 16) / 2)) + 0.6 / (1 + tf.exp(-(t - 42) / 3))


def slopes(rate):
    def dynamics(t, y):
        susceptible, exposed, ill = tf.unstack(y)
        infected = rate(t) * susceptible * ill / PEOPLE
        return tf.stack([-infected, infected - ONSET * exposed, ONSET * exposed - RECOVERY * ill])

    return dynamics


class Fit:
    """Residuals of the network's weights, and their products; counts what it computes.

    Args:
        data: numbers of the ill.
        seed: of the first weights.
    """

    def __init__(self, data, seed):
        keras.utils.set_random_seed(seed)
        wide = keras.initializers.RandomNormal(stddev=2.0)
        hidden = keras.layers.Dense(10, "tanh", kernel_initializer=wide)
        rate = keras.layers.Dense(1, "softplus")
        self.network = keras.Sequential([keras.Input((1,)), hidden, rate])
        self.weights = self.network.trainable_variables
        self.dynamics, self.data = slopes(self.rate), tf.constant(data)
        self.solves = 0

    def rate(self, t):
        return self.network(tf.reshape(t / 35 - 1, [1, 1]))[0, 0]

    def set(self, x):
        parts = np.split(x, np.cumsum([np.prod(w.shape) for w in self.weights])[:-1])
        for w, part in zip(self.weights, parts):
            w.assign(part.reshape(w.shape))

    def get(self):
        return flat(self.weights).numpy()

    def _scaled(self, ill):
        """Twice a square root makes the variance of a Poisson number one."""
        return 2 * (tf.sqrt(ill + 3 / 8) - tf.sqrt(self.data + 3 / 8))

    @tf.function
    def _residuals(self):
        return self._scaled(tfsymadj.odeint(self.dynamics, START, DAYS, **OPTIONS)[:, 2])

    @tf.function
    def _transposed(self, w):
        with tf.GradientTape() as tape:
            residuals = self._residuals()
        return flat(tape.gradient(residuals, self.weights, output_gradients=w))

    @tf.function
    def _product(self, v):
        parts = tf.split(v, [w.shape.num_elements() for w in self.weights])
        tangents = [(w, tf.reshape(x, w.shape)) for w, x in zip(self.weights, parts)]
        solution, dy = tfsymadj.jvp(
            self.dynamics, START, DAYS, tangents={"variables": tangents}, **OPTIONS
        )
        return dy[:, 2] / tf.sqrt(solution.y[:, 2] + 3 / 8)

    def residuals(self, x):
        self.set(x)
        self.solves += 1
        return self._residuals().numpy()

    def transposed(self, w):
        """J'w, where the residuals were computed."""
        self.solves += 1
        return self._transposed(tf.constant(w)).numpy()

    def product(self, v):
        """J v, likewise."""
        self.solves += 1
        return self._product(tf.constant(v)).numpy()


def flat(tensors):
    return tf.concat([tf.reshape(x, [-1]) for x in tensors], 0)


def conjugate_gradients(apply, b, most, tolerance=1e-2):
    """x with `apply(x)` near b, for a symmetric positive definite operator."""
    x, residual = np.zeros_like(b), b.copy()
    direction, square = residual.copy(), residual @ residual
    limit = tolerance**2 * square
    for _ in range(most):
        image = apply(direction)
        step = square / (direction @ image)
        x, residual = x + step * direction, residual - step * image
        before, square = square, residual @ residual
        if square < limit:
            break
        direction = residual + square / before * direction
    return x


def gauss_newton(fit, most, bar):
    """Steps with Levenberg's damping: less of it after a step that fits better."""
    x, damping, history = fit.get(), 1.0, []
    residuals = fit.residuals(x)
    while fit.solves < most:
        history.append((fit.solves, residuals @ residuals))
        fit.set(x)

        def damped(v, damping=damping):
            return fit.transposed(fit.product(v)) + damping * v

        step = conjugate_gradients(damped, -fit.transposed(residuals), most=25)
        tried = fit.residuals(x + step)
        if tried @ tried < residuals @ residuals:  # false where a solve failed, too
            x, residuals, damping = x + step, tried, damping / 4
        else:
            damping *= 8
        bar.update(min(fit.solves, most))
    history.append((fit.solves, residuals @ residuals))
    return x, history


def half_chi_squared(fit, x, history):
    """Value and gradient."""
    residuals = fit.residuals(x)
    if not np.all(np.isfinite(residuals)):
        return 1e10, np.zeros_like(x)
    history.append((fit.solves, residuals @ residuals))
    return residuals @ residuals / 2, fit.transposed(residuals)


def quasi_newton(fit, most, bar):
    history = []

    def value(x):
        bar.update(min(fit.solves, most))
        return half_chi_squared(fit, x, history)

    options = dict(maxfun=most // 2, maxiter=most, ftol=0.0, gtol=0.0)
    found = minimize(value, fit.get(), jac=True, method="L-BFGS-B", options=options)
    return found.x, history


def adam(fit, most, bar):
    history, optimizer = [], keras.optimizers.Adam(0.03)
    while fit.solves < most:
        _, gradient = half_chi_squared(fit, fit.get(), history)
        parts = tf.split(gradient, [w.shape.num_elements() for w in fit.weights])
        optimizer.apply([tf.reshape(g, w.shape) for g, w in zip(parts, fit.weights)], fit.weights)
        bar.update(min(fit.solves, most))
    return fit.get(), history


def draw(data, fit, x, histories, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.7), layout="constrained")
    fit.set(x)
    y = tfsymadj.odeint(fit.dynamics, START, DAYS, **OPTIONS)
    axes[0].plot(DAYS, data, "o", color=GRAY, markersize=3.5, label="reported")
    axes[0].plot(DAYS, y[:, 2], color=BLUE, label="model with the network")
    axes[0].set(title="The ill", xlabel="Time (days)", ylabel="People")
    axes[1].plot(DAYS, true_rate(DAYS), color=ORANGE, label="truth")
    axes[1].plot(DAYS, [fit.rate(t) for t in DAYS], color=BLUE, label="network")
    axes[1].set(title="Rate of infections", xlabel="Time (days)", ylabel="1 / day", ylim=(0, None))
    for (name, history), color in zip(histories.items(), (BLUE, GREEN, GRAY)):
        solves, values = np.transpose(history)
        axes[2].loglog(solves, np.minimum.accumulate(values), color=color, label=name)
    axes[2].axhline(len(data), color=ORANGE, linestyle=":", label="number of data")
    axes[2].set(title="Misfit by work", xlabel="Solves, forward or backward", ylabel="chi squared")
    for axis in axes:
        axis.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    keras.config.set_floatx("float64")
    most = 400 if arguments.quick else 2000

    y = tfsymadj.odeint(slopes(true_rate), START, DAYS, **OPTIONS)
    data = np.random.default_rng(arguments.seed).poisson(y[:, 2]).astype(float)
    histories, fits = {}, {}
    for name, method in {
        "Gauss-Newton": gauss_newton, "L-BFGS": quasi_newton, "Adam": adam
    }.items():  # fmt: skip
        print(name)
        fit = Fit(data, arguments.seed)
        x, histories[name] = method(fit, most, keras.utils.Progbar(most, unit_name="solve"))
        fits[name] = fit, x
        print()

    fit, x = fits["Gauss-Newton"]
    fit.residuals(x)
    v, w = (np.random.default_rng(1).normal(size=n) for n in (len(x), len(data)))
    jv, jw = fit.product(v), fit.transposed(w)
    apart = abs(w @ jv - jw @ v) / (np.linalg.norm(w) * np.linalg.norm(jv))
    picture = arguments.output / "contact_rate.png"
    draw(data, fit, x, histories, picture)
    print(f"\n{len(data)} numbers, {len(x)} weights")
    print(f"{'':<14}{'chi squared':>12}{'after solves':>14}{f'solves to {2 * len(data)}':>15}")
    for name, history in histories.items():
        near = [solves for solves, value in history if value < 2 * len(data)]
        first = near[0] if near else "-"
        print(f"{name:<14}{min(c for _, c in history):12.1f}{history[-1][0]:14}{first:>15}")
    print(f"<w, J v> and <J'w, v> differ by {apart:.1e} of |w| |J v|")
    print(f"Picture {picture}")
    if apart > 1e-12:
        sys.exit("The products are not those of one matrix.")
    if histories["Gauss-Newton"][-1][1] > 2 * len(data):
        sys.exit("The network does not fit.")


if __name__ == "__main__":
    main()
