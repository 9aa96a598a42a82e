"""Parameters, start and an unknown date of an epidemic, estimated by exact gradients of a solve.

    python examples/epidemic.py            # about a minute on two cores
    python examples/epidemic.py --quick    # every part, in less than 40 s

A town of 10,000 has influenza. The numbers of the ill and of the recovered are known for every
second day, with Poisson noise, and once more from a page whose date is lost. An SEIR model has six
unknowns: three rates, two initial numbers, and the date of the last page. Gauss-Newton steps take
residuals and Jacobian from one pass in forward mode (`sensitivities`), as do confidence regions.
The data are made by the model, so that estimates and regions can be held against the truth.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares, minimize

import tfsymadj

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PEOPLE = 10_000.0
DAYS = np.arange(0.0, 25.0, 2.0)
NAMES = ["infection, 1/day", "onset, 1/day", "recovery, 1/day", "exposed at start"]
NAMES += ["ill at start", "lost date, day"]
# The last unknown is the time from the last known date to the lost one, so that all are positive
# and their logarithms are free.
TRUTH = np.array([1.0, 0.6, 0.4, 60.0, 20.0, 3.4])
START = np.array([0.7, 1.0, 0.3, 30.0, 30.0, 1.0])
TOLERANCES = {"rtol": 1e-9, "atol": 1e-7}
REGION = {2: 5.991, 6: 12.592}  # 95 % quantiles of chi squared, by degrees of freedom
# Of the initial numbers of the susceptible, exposed and ill, for the last two.
OF_START = np.array([[-1.0, -1.0], [1.0, 0.0], [0.0, 1.0]])
PAIRS = [(0, 1), (0, 2), (3, 4)]  # whose confidence regions are drawn
ILL, RECOVERED, GRAY = "#D55E00", "#0072B2", "#555555"


def slopes(t, y, rates):
    susceptible, exposed, ill = y[0], y[1], y[2]
    infected = rates[0] * susceptible * ill / PEOPLE
    slope = [-infected, infected - rates[1] * exposed, rates[1] * exposed - rates[2] * ill]
    return tf.stack(slope) if tf.is_tensor(y) else np.array(slope)


def problem(theta):
    """Initial state, times and arguments of the solve, from the unknowns' logarithms."""
    rates, exposed, ill, wait = tf.split(tf.exp(theta), [3, 1, 1, 1])
    y0 = tf.concat([PEOPLE - exposed - ill, exposed, ill], 0)
    return y0, tf.concat([DAYS, DAYS[-1] + wait], 0), (rates,)


def observed(y):
    """Numbers of ill and of recovered."""
    return tf.concat([y[:, 2], PEOPLE - tf.reduce_sum(y, 1)], 0)


def counts(theta):
    """What is observed at the times of the data."""
    y0, t, args = problem(theta)
    return observed(tfsymadj.odeint(slopes, y0, t, args=args, max_steps=256, **TOLERANCES))


def scaled(values, data):
    """Residuals: twice a square root makes the variance of a Poisson number one."""
    return 2 * (tf.sqrt(values + 3 / 8) - tf.sqrt(data + 3 / 8))


def residuals(theta, data):
    return scaled(counts(theta), data)


@tf.function(jit_compile=True)
def compiled_residuals(theta, data):
    return residuals(theta, data)


@tf.function(jit_compile=True)
def pull_back(theta, data, weights):
    """The gradient of the residuals' weighted sum: one backward pass through the solve."""
    with tf.GradientTape() as tape:
        tape.watch(theta)
        values = residuals(theta, data)
    return tape.gradient(values, theta, weights)


def jacobian(theta, data):
    theta, data = tf.constant(theta), tf.constant(data)
    return np.stack([pull_back(theta, data, tf.constant(row)) for row in np.eye(len(data))])


@tf.function(jit_compile=True)
def linearized(theta, data):
    """Residuals and their Jacobian, of one pass in forward mode."""
    y0, t, args = problem(theta)
    found = tfsymadj.sensitivities(
        slopes, y0, t, args=args, wrt=("y0", "t", "args"), max_steps=256, **TOLERANCES
    )
    # The chain rule: from the initial state to two numbers in it, from all times to the last one.
    of_start = tf.linalg.matmul(found.y0, tf.constant(OF_START, shape=[1, 3, 2]))
    columns = tf.concat([found.args[0], of_start, found.t[..., -1:]], -1) * tf.exp(theta)
    of_counts = tf.concat([columns[:, 2], -tf.reduce_sum(columns, 1)], 0)
    values = observed(found.solution.y)
    return scaled(values, data), of_counts / tf.sqrt(values + 3 / 8)[:, None]


def half_chi_squared(theta, data):
    """Value and gradient. A solve that fails under XLA is NaN, which no line search understands."""
    theta, data = tf.constant(theta), tf.constant(data)
    values = compiled_residuals(theta, data)
    if not np.all(np.isfinite(values)):
        return 1e10, np.zeros(len(TRUTH))
    return np.sum(values**2) / 2, pull_back(theta, data, values).numpy()


def scipy_residuals(theta, data):
    rates, (exposed, ill, wait) = np.exp(theta[:3]), np.exp(theta[3:])
    t = np.append(DAYS, DAYS[-1] + wait)
    y0 = [PEOPLE - exposed - ill, exposed, ill]
    y = solve_ivp(slopes, t[[0, -1]], y0, t_eval=t, args=(rates,), method="RK45", **TOLERANCES).y
    values = np.concatenate([y[2], PEOPLE - y.sum(0)])
    return 2 * (np.sqrt(values + 3 / 8) - np.sqrt(data + 3 / 8))


def fit_bfgs(data):
    """Quasi-Newton steps; a gradient is one backward pass, whatever the number of residuals."""
    options = {"gtol": 1e-4}
    result = minimize(half_chi_squared, np.log(START), data, "BFGS", jac=True, options=options)
    return result.x, result.fun, 2 * result.nfev, result.nfev


def fit_least_squares(data):
    """Gauss-Newton steps with the exact Jacobian; it takes a backward pass for each residual."""
    result = least_squares(
        lambda x, data: compiled_residuals(tf.constant(x), tf.constant(data)).numpy(),
        np.log(START), jacobian, args=(data,),
    )  # fmt: skip
    backward = result.njev * len(data)
    return result.x, result.cost, result.nfev + backward, backward


def fit_forward(data):
    """The same steps; residuals and Jacobian at a point are of one pass, which is remembered."""
    passes = {}

    def at(theta):
        key = theta.tobytes()
        if key not in passes:
            passes[key] = [x.numpy() for x in linearized(tf.constant(theta), tf.constant(data))]
        return passes[key]

    result = least_squares(lambda x: at(x)[0], np.log(START), lambda x: at(x)[1])
    return result.x, result.cost, len(passes), 0


def fit_scipy(data):
    """The same steps over SciPy's solver, which it calls once more for each unknown."""
    result = least_squares(scipy_residuals, np.log(START), args=(data,))
    return result.x, result.cost, result.nfev + result.njev * len(START), 0


def covariance(theta, data):
    """Of the estimates of the logarithms."""
    _, j = linearized(tf.constant(theta), tf.constant(data))
    return np.linalg.inv(j.numpy().T @ j.numpy())


def draw_regions(axes, theta, spread, repeated):
    """Ellipses of 95 % in the logarithms, for pairs of unknowns, and fits to other noise."""
    angles = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    for axis, (i, k) in zip(axes, PAIRS):
        pair = [i, k]
        root = np.linalg.cholesky(REGION[2] * spread[np.ix_(pair, pair)])
        around = np.exp(theta[pair][:, None] + root @ circle)
        axis.plot(*np.exp(repeated[:, pair]).T, ".", color=GRAY, alpha=0.45, markersize=5,
                  markeredgewidth=0, label="fits of other noise")  # fmt: skip
        axis.fill(*around, color=RECOVERED, alpha=0.15, linewidth=0)
        axis.plot(*around, color=RECOVERED, linewidth=1.8, label="95 % region")
        axis.plot(*np.exp(theta[pair]), "o", color=RECOVERED, label="estimate")
        axis.plot(*TRUTH[pair], "+", color=ILL, markersize=13, markeredgewidth=2.5, label="truth")
        title = "Confidence, two of six unknowns"
        axis.set(title=title, xlabel=NAMES[i], ylabel=NAMES[k], xscale="log", yscale="log")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(plt.MaxNLocator(5))
            side.set_major_formatter(plt.FormatStrFormatter("%g"))
            side.set_minor_locator(plt.NullLocator())


def draw(data, theta, spread, repeated, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (axes, lower) = plt.subplots(2, 3, figsize=(15, 9.4), layout="constrained")
    draw_regions(lower, theta, spread, repeated)
    errors = np.sqrt(np.diag(spread))
    rates, (exposed, ill, wait) = np.exp(theta[:3]), np.exp(theta[3:])
    date, count = DAYS[-1] + wait, len(DAYS)
    late = [[wait - wait * np.exp(-1.96 * errors[5])], [wait * np.exp(1.96 * errors[5]) - wait]]
    t = np.linspace(0, date + 2, 300)
    y0 = tf.constant([PEOPLE - exposed - ill, exposed, ill])
    y = tfsymadj.odeint(slopes, y0, t, args=(rates,), **TOLERANCES).numpy()
    values = compiled_residuals(tf.constant(theta), tf.constant(data)).numpy()
    for k, (name, color) in enumerate([("ill", ILL), ("recovered", RECOVERED)]):
        part, last = slice(k * count + k, k * count + k + count), k * count + k + count
        hollow = {"color": color, "markerfacecolor": "white"}
        axes[0].plot(t, [y[:, 2], PEOPLE - y.sum(1)][k], color=color)
        axes[0].plot(DAYS, data[part], "o", color=color, label=name)
        axes[0].errorbar(date, data[last], xerr=late, fmt="D", capsize=4, **hollow)
        axes[1].plot(DAYS, values[part], "o", color=color, label=name)
        axes[1].plot(date, values[last], "D", label=f"{name}, page without a date", **hollow)
    true_date = DAYS[-1] + TRUTH[5]
    axes[0].axvline(true_date, color=GRAY, linestyle=":", label="true date of the last page")
    axes[0].set(title="Data and fit", xlabel="Time (days)", ylabel="People")
    axes[1].axhspan(-1.96, 1.96, color=GRAY, alpha=0.12, linewidth=0, label="95 %")
    axes[1].axhline(0, color=GRAY, linewidth=0.8)
    axes[1].set(title="Residuals", xlabel="Time (days)", ylabel="Standard deviations")
    axes[1].set_ylim(-4, 5.5)
    rows = np.arange(len(TRUTH))[::-1]
    ratio, factor = np.exp(theta) / TRUTH, np.exp(1.96 * errors)
    axes[2].plot([1, 1], [-0.6, 5.5], color=ILL, label="truth")
    axes[2].plot(
        (np.exp(repeated) / TRUTH).T, rows - 0.25, "|", color=GRAY, alpha=0.35, markersize=7,
        label=["fits of other noise"] + [None] * (len(repeated) - 1),
    )  # fmt: skip
    axes[2].errorbar(
        ratio, rows, xerr=[ratio - ratio / factor, ratio * factor - ratio], fmt="o", capsize=4,
        color=RECOVERED, label="estimate, 95 % interval",
    )  # fmt: skip
    axes[2].set(title="Estimates", xlabel="Estimate / truth", xscale="log", ylim=(-0.6, 6.9))
    ticks = [0.5, 0.7, 1, 1.4, 2]
    axes[2].set_xticks(ticks, ticks)
    axes[2].xaxis.set_minor_locator(plt.NullLocator())
    axes[2].set_yticks(rows, [name.split(",")[0] for name in NAMES[:5]] + ["lost date - day 24"])
    for axis in [*axes, lower[0]]:
        axis.legend(frameon=False, fontsize=9.5)
    figure.savefig(path, dpi=130)


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
    random = np.random.default_rng(arguments.seed)

    expected = counts(tf.constant(np.log(TRUTH))).numpy()
    data = random.poisson(expected).astype(float)
    fits = {
        "BFGS, gradient by tfsymadj": fit_bfgs,
        "least squares, Jacobian by tfsymadj": fit_least_squares,
        "least squares, sensitivities": fit_forward,
        "least squares, SciPy alone": fit_scipy,
    }
    repeats = 20 if quick else 200
    print("Estimating, and again for other noise")
    bar = keras.utils.Progbar(len(fits) + repeats, unit_name="fit")
    results, seconds = {}, {}
    for name, fit in fits.items():
        fit(data)  # compiles
        times = []
        for _ in range(3 if quick else 7):
            start = time.perf_counter()
            results[name] = fit(data)
            times.append(time.perf_counter() - start)
        seconds[name] = np.median(times)
        bar.add(1)
    repeated, scores, distances = [], [], []
    for _ in range(repeats):
        other = random.poisson(expected).astype(float)
        theta = fit_bfgs(other)[0]
        repeated.append(theta)
        away, spread = theta - np.log(TRUTH), covariance(theta, other)
        scores.append(away / np.sqrt(np.diag(spread)))
        distances.append(away @ np.linalg.solve(spread, away))
        bar.add(1)

    theta, cost, *_ = results["least squares, sensitivities"]
    spread = covariance(theta, data)
    errors = np.sqrt(np.diag(spread))
    rows = jacobian(theta, data)
    columns = linearized(tf.constant(theta), tf.constant(data))[1].numpy()
    apart = np.max(np.abs(columns - rows)) / np.max(np.abs(rows))
    picture = output / "epidemic.png"
    draw(data, theta, spread, np.array(repeated), picture)

    covered = (np.abs(scores) < 1.96).mean(0)
    shift = np.array([0, 0, 0, 0, 0, DAYS[-1]])
    print(f"\n{'':<20}{'truth':>9}{'start':>9}{'estimate':>10}{'error':>9}{'95 % holds':>12}")
    for k, name in enumerate(NAMES):
        print(
            f"{name:<20}{TRUTH[k] + shift[k]:9.3f}{START[k] + shift[k]:9.3f}"
            f"{np.exp(theta[k]) + shift[k]:10.3f}{np.exp(theta[k]) * errors[k]:9.3f}"
            f"{100 * covered[k]:10.1f} %"
        )
    print(f"95 % holds: of {repeats} intervals from other noise, how many contain the truth")
    inside = np.mean(np.array(distances) < REGION[6])
    print(f"the 95 % region of all six at once holds the truth {100 * inside:.1f} %")
    print(f"chi squared {2 * cost:.1f}, {len(data) - len(theta)} degrees of freedom")
    print(f"\n{'':<37}{'ms':>7}{'solves':>8}{'backward passes':>17}{'difference':>12}")
    reference, differences = np.exp(results["least squares, SciPy alone"][0]), []
    for name, (x, _, solves, backward) in results.items():
        differences.append(np.max(np.abs(np.exp(x) / reference - 1)))
        print(f"{name:<37}{1e3 * seconds[name]:7.1f}{solves:8}{backward:17}{differences[-1]:12.1e}")
    print("difference: the largest relative one to SciPy alone, of the six estimates")
    print(f"Jacobian in forward mode and by backward passes: a difference of {apart:.1e}")
    print(f"Picture {picture}")
    if apart > 1e-8:
        sys.exit("The Jacobians differ.")
    if max(differences) > 1e-4:
        sys.exit("The optima differ.")


if __name__ == "__main__":
    main()
