"""Spiral waves: the reaction learned by a network, diffusion by Fourier's transform.

    python examples/reaction_diffusion.py            # about two minutes on two cores
    python examples/reaction_diffusion.py --quick    # every part, in about half a minute

FitzHugh's and Nagumo's equations on a periodic square of 64 x 64 points,

    du/dt = D (d2/dx2 + d2/dy2) u + f(u) - v        dv/dt = e (u - g v),

from noisy snapshots. A small network is the reaction f, and D, e, g are learned with it. Diffusion
is the implicit part of a `Split`, a circulant operator whose equations are solved by Fourier's
transform without an iteration; the network is evaluated explicitly (`kencarp4`). The data are those
of SciPy's DOP853 and f(u) = u - u^3 / 3. The model then predicts two unseen fields, with adaptive
steps, twenty times as far as a piece.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# L-BFGS has small matrices only, and threads that wait for each other take longer than those.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

import tfsymadj

matplotlib.use("Agg")
import matplotlib.pyplot as plt

tf.get_logger().setLevel("ERROR")
POINTS, LENGTH = 64, 60.0
WAVES = 2.0 * np.pi * np.fft.fftfreq(POINTS, LENGTH / POINTS)
SQUARES = WAVES[:, None] ** 2 + WAVES**2  # minus the Laplacian's eigenvalues
NAMES = ["diffusion D", "rate e", "decay g"]
TRUTH = np.array([1.0, 0.15, 0.5])
START = np.array([0.5, 0.3, 1.0])
GAP = 1.5  # between two snapshots
PIECE = 3  # snapshots of a piece
NOISE = 0.02
SPAN = 20 * GAP * (PIECE - 1)  # of the prediction
COLORS = {"truth": "#BBBBBB", "learned": "#D55E00", "start": "#0072B2"}


def reaction(u):
    return u - u**3 / 3.0


def snapshots(count, seed):
    """Fields `(count, 2, POINTS, POINTS)`, u and v, every `GAP`, by SciPy from random waves."""

    def slopes(t, y):
        u, v = y.reshape(2, POINTS, POINTS)
        spread = np.fft.ifft2(-TRUTH[0] * SQUARES * np.fft.fft2(u)).real
        return np.concatenate(
            [(spread + reaction(u) - v).ravel(), TRUTH[1] * (u - TRUTH[2] * v).ravel()]
        )

    random = np.random.default_rng(seed)
    white = np.fft.fft2(random.normal(size=[2, POINTS, POINTS]))
    start = np.fft.ifft2(white * np.exp(-8.0 * SQUARES)).real
    start *= np.reshape([1.5, 0.6], [2, 1, 1]) / start.std((1, 2), keepdims=True)
    t = GAP * np.arange(count)
    options = {"method": "DOP853", "rtol": 1e-5, "atol": 1e-6}
    y = solve_ivp(slopes, (0.0, t[-1]), start.ravel(), t_eval=t, **options).y
    return y.T.reshape(count, 2, POINTS, POINTS)


class Model:
    """The equations with a network for f: `dynamics()` is the `Split`, of a pair `(u, v)`."""

    def __init__(self, seed):
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dense(16, "tanh"), keras.layers.Dense(16, "tanh")]
        self.network = keras.Sequential([keras.Input([1]), *layers, keras.layers.Dense(1)])
        self.logs = keras.Variable(np.log(START), dtype="float32", name="logs")
        self.weights = [*self.network.trainable_variables, self.logs]

    def f(self, u):
        return tf.reshape(self.network(tf.reshape(u, [-1, 1])), tf.shape(u))

    def dynamics(self):
        diffusion, rate, decay = tf.unstack(tf.exp(self.logs.value))
        laplacian = tf.linalg.LinearOperatorCirculant2D(
            tf.cast(-SQUARES, tf.complex64), input_output_dtype=tf.float32
        )
        factor = tf.linalg.LinearOperatorScaledIdentity(POINTS**2, diffusion)
        implicit = tf.linalg.LinearOperatorComposition([factor, laplacian])

        def explicit(t, y):
            u, v = y
            return self.f(u) - v, rate * (u - decay * v)

        return tfsymadj.Split(explicit, (implicit, None))

    def solve(self, fields, t, **options):
        """Fields `(batch, 2, POINTS, POINTS)` at all times, `(len(t), batch, ...)`, and counts."""
        y0 = tuple(tf.unstack(tf.cast(fields, tf.float32), axis=1))
        solution = tfsymadj.solve(self.dynamics(), y0, t, method="kencarp4", **options)
        return tf.stack(solution.y, 2), solution.stats


def fit(model, pieces, iterations):
    """L-BFGS; the root mean square errors after each iteration."""
    variables = [w.value for w in model.weights]
    ends = np.cumsum([v.shape.num_elements() for v in variables])[:-1]
    t, seen = GAP * np.arange(PIECE), tf.constant(pieces.swapaxes(0, 1), tf.float32)

    @tf.function(jit_compile=True)
    def gradient():
        with tf.GradientTape() as tape:
            y, _ = model.solve(seen[0], t, num_steps=2, on_failure="status")
            loss = tf.reduce_mean((y[1:] - seen[1:]) ** 2) / NOISE**2
        return loss, tape.gradient(loss, variables)

    def value_and_gradient(theta):
        for variable, values in zip(variables, np.split(theta.astype("float32"), ends)):
            variable.assign(values.reshape(variable.shape))
        loss, gradients = gradient()
        # A line search understands no NaN, which is what a failed solve gives.
        if not np.isfinite(loss):
            return 1e10, np.zeros(len(theta))
        return float(loss), np.concatenate([np.ravel(g) for g in gradients]).astype(float)

    start, errors = np.concatenate([np.ravel(v) for v in variables]).astype(float), []
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 30}
    found = minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", options=options,
        callback=lambda intermediate_result: errors.append(NOISE * intermediate_result.fun**0.5),
    )  # fmt: skip
    value_and_gradient(found.x)  # leaves the best weights where they belong
    return errors


def steps_of(model, fields, method):
    """Accepted steps and evaluations for the prediction's first piece, at the same tolerances."""
    y0 = tuple(tf.unstack(tf.constant(fields, tf.float32), axis=1))
    options = {"rtol": 1e-4, "atol": 1e-4, "max_steps": 10_000, "jit_compile": True}
    options |= {"gradient": tfsymadj.NoGradient()}
    stats = tfsymadj.solve(model.dynamics(), y0, [0.0, SPAN], method=method, **options).stats
    return int(stats.num_accepted), int(stats.num_evaluations)


def draw(model, untrained, truth, found, losses, path):
    """Fields of the first unseen start; the reaction, the errors over time, the training."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplot_mosaic(
        "ABCDX;EFGHY;IJKLZ", figsize=(16, 8.6), layout="constrained",
        width_ratios=[1, 1, 1, 1, 1.45],
    )  # fmt: skip
    t = GAP * np.arange(len(truth))
    shown = np.linspace(0, len(t) - 1, 4).astype(int)
    fields = {"data": truth[:, 0, 0], "model": found[:, 0, 0], "error": (found - truth)[:, 0, 0]}
    bound = np.quantile(np.abs(fields["error"]), 0.998)
    for row, (name, values) in zip(("ABCD", "EFGH", "IJKL"), fields.items()):
        style = {"cmap": "PuOr", "vmin": -bound, "vmax": bound}
        if name != "error":
            style = {"cmap": "RdBu_r", "vmin": -2.0, "vmax": 2.0}
        for key, i in zip(row, shown):
            extent = [0, LENGTH, 0, LENGTH]
            image = axes[key].imshow(values[i], extent=extent, origin="lower", **style)
            axes[key].set(xticks=[], yticks=[])
            axes[key].spines[:].set_visible(False)
            if name == "data":
                axes[key].set_title(f"t = {t[i]:g}")
        axes[row[0]].set_ylabel(name, fontsize=13)
        figure.colorbar(image, ax=axes[row[-1]], label="u" if name != "error" else "error of u")
    u = np.linspace(-2.2, 2.2, 200)
    axes["X"].plot(u, reaction(u), color=COLORS["truth"], linewidth=6, label="truth")
    for name, of in (("start", untrained), ("learned", model)):
        values = of.f(tf.constant(u, tf.float32))
        axes["X"].plot(u, values, color=COLORS[name], linewidth=1.8,
                       label={"start": "before training"}.get(name, name))  # fmt: skip
    axes["X"].set(title="The reaction f", xlabel="u", ylabel="f(u)")
    axes["X"].set_ylim(-2.5, 1.6)
    axes["X"].legend(frameon=False, fontsize=9.5, loc="lower left")
    error = np.sqrt(np.mean((found - truth) ** 2, axis=(3, 4)))
    for i in range(2):
        axes["Y"].plot(t, error[:, :, i].max(1), color=["#0072B2", "#009E73"][i], label="uv"[i])
    axes["Y"].axhline(NOISE, color="#777777", linestyle=":", label="noise of the data")
    axes["Y"].axvspan(0.0, GAP * (PIECE - 1), color="#DDDDDD", label="length of a piece")
    axes["Y"].set(title="Prediction of unseen fields", xlabel="Time", ylabel="RMS error")
    axes["Y"].set_ylim(0.0, 1.6 * max(error.max(), NOISE))
    axes["Y"].legend(frameon=False, fontsize=9.5, ncols=2)
    axes["Z"].semilogy(losses, color=COLORS["learned"], linewidth=1)
    axes["Z"].axhline(NOISE, color="#777777", linestyle=":")
    axes["Z"].set(title="Training", xlabel="Iteration", ylabel="RMS error")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    arguments = parser.parse_args()
    quick, output, seed = arguments.quick, arguments.output, arguments.seed
    output.mkdir(parents=True, exist_ok=True)
    begin, random = time.perf_counter(), np.random.default_rng(seed)

    count = 1 + round(SPAN / GAP)
    train = [snapshots(12 if quick else 25, seed + i) for i in range(1 if quick else 3)]
    train = [x + NOISE * random.normal(size=x.shape) for x in train]
    pieces = np.stack([x[i : i + PIECE] for x in train for i in range(0, len(x) - PIECE, 7)])
    test = np.stack([snapshots(count, seed + 100 + i) for i in range(1 if quick else 2)], 1)
    model, untrained = Model(seed), Model(seed)
    print("Learning")
    losses = fit(model, pieces, 20 if quick else 120)
    options = {"rtol": 1e-4, "atol": 1e-4, "jit_compile": True, "gradient": tfsymadj.NoGradient()}
    found, stats = model.solve(test[0], GAP * np.arange(count), **options)
    found = found.numpy()
    picture = output / "reaction_diffusion.png"
    draw(model, untrained, test, found, losses, picture)

    u = np.linspace(-1.8, 1.8, 100)
    curve = np.sqrt(np.mean((model.f(tf.constant(u, tf.float32)) - reaction(u)) ** 2))
    error = np.sqrt(np.mean((found - test) ** 2, axis=(1, 2, 3, 4)))
    print(f"\n{'':<14}{'truth':>8}{'start':>8}{'learned':>9}")
    for name, *values in zip(NAMES, TRUTH, START, np.exp(model.logs.numpy())):
        print(f"{name:<14}{values[0]:8.3f}{values[1]:8.3f}{values[2]:9.4f}")
    print(f"RMS error of the reaction, |u| < 1.8  {curve:.4f}")
    print(f"RMS error of fields, after a piece    {error[PIECE - 1]:.4f}")
    print(f"RMS error of fields, at time {SPAN:<9g}{error[-1]:.4f}")
    print(f"steps and evaluations of kencarp4     {stats.num_accepted} {stats.num_evaluations}")
    print("steps and evaluations of dopri5       {} {}".format(*steps_of(model, test[0], "dopri5")))
    print(f"Time {time.perf_counter() - begin:.0f} s")
    print(f"Picture {picture}")
    if not quick and curve > 0.05:
        sys.exit("The reaction is not found.")


if __name__ == "__main__":
    main()
