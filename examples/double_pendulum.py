"""A double pendulum learned as an energy, and what it does in the next 1,000 seconds.

    python examples/double_pendulum.py            # about three minutes on two cores
    python examples/double_pendulum.py --quick    # every part, in about a minute

Angles and momenta are seen for two seconds at a time, with noise. A network learns the energy of
Hamilton's equations (`HamiltonianDynamics`), another one with as many weights the slopes
themselves; where each piece begins is learned with them. Positions and momenta don't come apart in
this energy, so that the symplectic method is an implicit one, `gauss4`, in training and after it.
The trained models then run 500 times as long as any piece that they saw, by `gauss4` and `dopri5`:
energies, and where orbits of one energy pass through a plane (Poincare's section).

Greydanus, Dzamba, Yosinski, Hamiltonian neural networks, arXiv:1906.01563.
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
from scipy.optimize import minimize

import tfsymadj
from tfsymadj.layers import HamiltonianDynamics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

tf.get_logger().setLevel("ERROR")
GAP = 0.2  # seconds between two observations, and a step in training
PIECE = 11  # observations of a piece
NOISE = 0.02
LOW, HIGH = -2.9, -1.2  # energies seen; at rest it is -3
LEVEL = -1.6  # that of the orbits that are predicted
LAST = 60.0  # seconds of which the angles are compared
COLORS = {"truth": "#BBBBBB", "gauss4": "#0072B2", "dopri5": "#E69F00", "slopes": "#D55E00"}
TRAINING = {"method": "gauss4", "num_steps": 1}
METHODS = {
    "gauss4": {"method": "gauss4", "num_steps": 2},
    "dopri5": {"method": "dopri5"},
    "dopri5, 1e-6": {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6},
    "exact": {"method": "dop853", "rtol": 1e-9, "atol": 1e-9},
}
#: What is predicted, by which model and which method.
RUNS = {
    "truth": ("truth", "exact"),
    "energy, gauss4": ("energy", "gauss4"),
    "energy, dopri5": ("energy", "dopri5"),
    "energy, dopri5, 1e-6": ("energy", "dopri5, 1e-6"),
    "slopes, dopri5, 1e-6": ("slopes", "dopri5, 1e-6"),
}


def energy(y):
    """Two masses of 1 on rods of 1 under a gravity of 1: `(..., 4)` to `(..., 1)`."""
    first, second, p, r = tf.split(y, 4, axis=-1)
    bend = first - second
    kinetic = (p**2 + 2.0 * r**2 - 2.0 * p * r * tf.cos(bend)) / (2.0 + 2.0 * tf.sin(bend) ** 2)
    return kinetic - 2.0 * tf.cos(first) - tf.cos(second)


def energies(y):
    return energy(tf.constant(y)).numpy()[..., 0]


@keras.saving.register_keras_serializable(package="examples")
class Circles(keras.Layer):
    """Angles become sines and cosines; momenta stay."""

    def call(self, y):
        angles, momenta = tf.split(y, 2, axis=-1)
        return tf.concat([tf.sin(angles), tf.cos(angles), momenta], -1)


def network(width, outputs):
    hidden = [keras.layers.Dense(width, "tanh") for _ in range(2)]
    last = keras.layers.Dense(outputs, use_bias=outputs > 1)  # an energy has no zero
    return keras.Sequential([keras.Input([4]), Circles(), *hidden, last])


def build(name):
    return HamiltonianDynamics(network(40, 1)) if name == "energy" else network(39, 4)


def observe(count, random):
    """Pieces `(count, PIECE, 4)` of solutions with noise, of energies between two bounds."""
    states = random.uniform(-2.0, 2.0, [200 * count, 4])
    found = energies(states)
    states = states[(found > LOW) & (found < HIGH)][:count]
    t = GAP * np.arange(PIECE)
    exact = tfsymadj.odeint(HamiltonianDynamics(energy), states, t, **METHODS["exact"])
    exact = exact.numpy().transpose(1, 0, 2)
    return exact + NOISE * random.normal(size=exact.shape)


def fit(dynamics, seen, iterations):
    """L-BFGS for weights and starts, from all pieces; the mean squared errors, in noises."""
    dynamics.build([None, 4])
    shifts = tf.Variable(np.zeros([len(seen), 4]))  # of the starts, in noises
    variables = [*(w.value for w in dynamics.trainable_variables), shifts]
    ends = np.cumsum([v.shape.num_elements() for v in variables])[:-1]
    t, observed = GAP * np.arange(PIECE), tf.constant(seen.transpose(1, 0, 2))

    @tf.function(jit_compile=True)
    def gradient():
        with tf.GradientTape() as tape:
            y0 = observed[0] + NOISE * shifts
            y = tfsymadj.odeint(dynamics, y0, t, on_failure="status", **TRAINING)
            loss = tf.reduce_mean((y - observed) ** 2) / NOISE**2
        return loss, tape.gradient(loss, variables)

    def value_and_gradient(theta):
        for variable, values in zip(variables, np.split(theta, ends)):
            variable.assign(values.reshape(variable.shape))
        loss, gradients = gradient()
        # A line search understands no NaN, which is what a failed solve gives.
        if not np.isfinite(loss):
            return 1e10, np.zeros(len(theta))
        return float(loss), np.concatenate([np.ravel(g) for g in gradients])

    start, losses = np.concatenate([np.ravel(v) for v in variables]), []
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 30}
    found = minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", options=options,
        callback=lambda intermediate_result: losses.append(intermediate_result.fun),
    )  # fmt: skip
    value_and_gradient(found.x)  # leaves the best weights where they belong
    return losses


def on_the_section(places, level):
    """States with the first angle zero, the others `(second, r)`, and p by the energy."""
    states = []
    for second, r in places:
        # H is a parabola in p there: its larger root, of which the first angle grows.
        a, bend = 2.0 + 2.0 * np.sin(second) ** 2, np.cos(second)
        rest = 2.0 * r**2 + a * (-2.0 - np.cos(second) - level)
        root = (r * bend) ** 2 - rest
        if root > 0:
            states.append([0.0, second, r * bend + root**0.5, r])
    return np.array(states)


def crossings(y):
    """Second angle and momentum where the first angle goes up through zero, for each orbit."""
    points = []
    for orbit in y.transpose(1, 0, 2):
        wrapped = np.sin(orbit[:, 0])
        up = (wrapped[:-1] < 0) & (wrapped[1:] >= 0) & (np.cos(orbit[:-1, 0]) > 0)
        before, after = orbit[:-1][up], orbit[1:][up]
        part = (wrapped[:-1] / (wrapped[:-1] - wrapped[1:]))[up]
        points.append((before + part[:, None] * (after - before))[:, [1, 3]])
    return points


def run(dynamics, y0, t, method):
    """States at all times, seconds of the compiled solve, and evaluations."""
    options = {**METHODS[method], "max_steps": 10**6, "gradient": tfsymadj.NoGradient()}

    def solved():
        return tfsymadj.solve(dynamics, y0, t, jit_compile=True, on_failure="status", **options)

    solved()  # compiles
    start = time.perf_counter()
    solution = solved()
    y = solution.y.numpy()
    return y, time.perf_counter() - start, int(solution.stats.num_evaluations)


def drift(values):
    """How far energies `(times, orbits)` are from the first, root mean square of the orbits."""
    return np.sqrt(np.mean((values - values[0]) ** 2, axis=1))


def draw(t, states, learned, path):
    """Angles and energies over time, and the section; all by the names in `RUNS`."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplot_mosaic("AABB;CDEF", figsize=(16, 9), layout="constrained")
    angle, off = axes["A"], axes["B"]
    short, i = t <= LAST, 2
    for name, color, width, label in (
        ("truth", "truth", 5, "truth"),
        ("slopes, dopri5, 1e-6", "slopes", 1.5, "learned slopes"),
        ("energy, gauss4", "gauss4", 2, "learned energy"),
    ):
        angle.plot(t[short], states[name][short, i, 1], color=COLORS[color], lw=width, label=label)
    angle.set(title="One of the orbits", xlabel="Time (s)", ylabel="Second angle (radians)")
    angle.set_ylim(top=2.9)
    slopes = drift(energies(states["slopes, dopri5, 1e-6"]))
    curves = [("true energy, learned slopes", slopes, "slopes", "-")]
    curves.append(("true energy, learned energy", drift(energies(states["energy, gauss4"])),
                   "gauss4", "-"))  # fmt: skip
    for method in ("dopri5", "gauss4"):
        curves.append((f"learned energy, {method}", learned[f"energy, {method}"], method, ":"))
    for label, values, color, style in curves:
        style = {"linestyle": style, "linewidth": 1.2 if style == "-" else 1.8}
        off.loglog(t[1:], values[1:], color=COLORS[color], label=label, **style)
    off.set(title="Energies: how far from the start", xlabel="Time (s)", ylabel="Energy")
    off.set_ylim(top=60)
    for axis in (angle, off):
        axis.legend(frameon=False, ncols=3 if axis is angle else 2, loc="upper left")
    titles = ["Truth", "Learned energy, gauss4", "Learned energy, dopri5", "Learned slopes"]
    names = ["truth", "energy, gauss4", "energy, dopri5", "slopes, dopri5, 1e-6"]
    colors = plt.colormaps["turbo"](np.linspace(0.03, 0.97, states["truth"].shape[1]))
    for key, name, title in zip("CDEF", names, titles):
        for points, color in zip(crossings(states[name]), colors):
            axes[key].plot(*points.T, ".", markersize=2.5, color=color, markeredgewidth=0)
        axes[key].set(title=title, xlabel="Second angle (radians)", aspect="equal")
        axes[key].set(xlim=(-2.3, 2.3), ylim=(-1.9, 1.7))
    axes["C"].set_ylabel("Second momentum")
    figure.savefig(path, dpi=120)


def learn(seen, iterations, seed):
    """Both models, and how well they fit, by name."""
    models, losses = {}, {}
    for name in ("energy", "slopes"):
        print(f"Learning the {name}")
        keras.utils.set_random_seed(seed)
        models[name] = build(name)
        losses[name] = fit(models[name], seen, iterations)[-1]
    return models, losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    arguments = parser.parse_args()
    quick, output = arguments.quick, arguments.output
    output.mkdir(parents=True, exist_ok=True)
    keras.config.set_floatx("float64")
    begin, random = time.perf_counter(), np.random.default_rng(arguments.seed)

    seen = observe(100 if quick else 250, random)
    models, losses = learn(seen, 100 if quick else 500, arguments.seed)
    models["truth"] = HamiltonianDynamics(energy)
    places = [(x, r) for x in np.linspace(-1.4, 1.4, 5) for r in (-0.6, 0.0, 0.6)]
    y0 = tf.constant(on_the_section(places, LEVEL))
    t = GAP * np.arange(501 if quick else 5001)
    print(f"\n{'':<22}{'evaluations':>12}{'s':>7}{'angle':>9}{'true':>10}{'learned':>10}")
    states, learned, off = {}, {}, {}
    for name, (model, method) in RUNS.items():
        y, seconds, evaluations = run(models[model], y0, t, method)
        states[name], off[name], text = y, drift(energies(y)).max(), ""
        if model == "energy":
            values = models[model].energy_of(tf.constant(y.reshape(-1, 4))).numpy()
            learned[name] = drift(values.reshape(y.shape[:2]))
            text = f"{learned[name].max():10.1e}"
        angle = np.sqrt(np.mean((y - states["truth"])[t <= 20.0, :, :2] ** 2))
        print(f"{name:<22}{evaluations:12}{seconds:7.2f}{angle:9.3f}{off[name]:10.1e}{text}")
    picture = output / "double_pendulum.png"
    draw(t, states, learned, picture)
    print("angle: root mean square error of the angles in the first 20 s; true, learned: how far")
    print("these energies are from the start at most, root mean square of the orbits")
    for name, loss in losses.items():
        print(f"mean squared error of the fit of the {name}, in noises {loss:.2f}")
    print(f"Time {time.perf_counter() - begin:.0f} s")
    print(f"Picture {picture}")
    if not 10 * learned["energy, gauss4"].max() < learned["energy, dopri5"].max():
        sys.exit("The symplectic method does not keep the learned energy.")
    if not off["energy, gauss4"] < off["slopes, dopri5, 1e-6"]:
        sys.exit("The learned slopes keep the energy as well.")


if __name__ == "__main__":
    main()
