"""Tablets at known hours, blood samples, and a drug that binds fast: the rates of six subjects.

    python examples/dosing.py            # about a minute on two cores
    python examples/dosing.py --quick    # every part, in about half a minute

A tablet dissolves in the gut for a quarter of an hour, from some unknown time after it was
swallowed; the drug goes into the blood, to and from the tissue, is cleared at a rate that is each
subject's own, and binds to its target within seconds (Mager, Jusko, General pharmacokinetic model
for drugs exhibiting target-mediated drug disposition, J. Pharmacokinet. Pharmacodyn. 28 (2001)).
That is stiff: `kvaerno3`. Steps end where a tablet begins and ends to dissolve (`jumps`), and the
derivative for these times is exact, so that the delay is found like the rates. The data and the
curves beside are those of SciPy's Radau.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib
import numpy as np
import tensorflow as tf
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

import tfsymadj
from tfsymadj import controls

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = ["delay, h", "absorption, 1/h", "to the tissue, 1/h", "from the tissue, 1/h"]
NAMES += ["target, mg/l", "dissociation, mg/l"]
SUBJECTS = 6
NAMES += [f"clearance of {i + 1}, 1/h" for i in range(SUBJECTS)]
SHARED = len(NAMES) - SUBJECTS
TRUTH = np.array([0.4, 1.2, 0.35, 0.2, 1.0, 0.1, 0.12, 0.16, 0.2, 0.25, 0.3, 0.38])
BINDING = 1000.0  # liters per milligram and hour
DOSES = np.array([0.0, 12.0, 24.0, 36.0])  # hours
AMOUNTS = np.array([4.0, 8.0, 3.0, 6.0, 8.0, 5.0])  # milligrams per liter of blood
DISSOLVED = 0.25  # hours
TIMES = np.array(
    [0.0, 1, 1.5, 2, 3, 5, 8, 11.5, 13, 14, 16, 20, 25, 27, 32, 37, 38, 40, 44, 50, 60]
)
START = np.array([0.2, 0.6, 0.2, 0.4, 2.0, 0.3] + SUBJECTS * [0.22])
NOISE = 0.08  # of a concentration
SOLVER = {
    "method": "kvaerno3",
    "rtol": 1e-4,
    "atol": 1e-6,
    "max_steps": 1000,
    "on_failure": "status",
}
COLORS = {"measured": "#222222", "start": "#BBBBBB", "fit": "#D55E00", "radau": "#0072B2"}


def body(t, y, rates, clearance, swallowed):
    """Slopes of the drug in the gut, the blood, the tissue and at the target, `(subjects, 4)`."""
    gut, blood, tissue, bound = tf.unstack(y, axis=-1)
    _, absorption, out, back, target, dissociation = tf.unstack(rates)
    comes = swallowed(t)[0] * AMOUNTS / DISSOLVED
    binds = BINDING * (blood * (target - bound) - dissociation * bound)
    exchange = out * blood - back * tissue
    absorbed = absorption * gut
    return tf.stack(
        [comes - absorbed, absorbed - clearance * blood - exchange - binds, exchange, binds], -1
    )


def solve(logs, times, **options):
    """The `Solution` for the logarithms of all unknowns."""
    rates, clearance = tf.split(tf.exp(logs), [SHARED, SUBJECTS])
    begins = DOSES + rates[0]
    knots = tf.reshape(tf.stack([begins, begins + DISSOLVED], 1), [-1])
    on = tf.tile([[1.0], [0.0]], [len(DOSES), 1])
    swallowed = controls.steps(
        tf.concat([tf.zeros([1], tf.float64), knots], 0), tf.concat([[[0.0]], on], 0)
    )
    y0 = tf.zeros([SUBJECTS, 4], tf.float64)
    args = (rates, clearance, swallowed)
    options = {**SOLVER, **options}
    return tfsymadj.solve(body, y0, times, args=args, jumps=knots, **options)


@tf.function(jit_compile=True)
def misfit(logs, measured):
    """Half of chi squared, and its gradient."""
    with tf.GradientTape() as tape:
        tape.watch(logs)
        blood = solve(logs, TIMES).y[1:, :, 1]
        value = tf.reduce_sum(((tf.math.log(blood) - tf.math.log(measured)) / NOISE) ** 2) / 2.0
    return value, tape.gradient(value, logs)


def radau(parameters, times, method="Radau", **options):
    """What SciPy makes of it, `(times, subjects, 4)`: one subject and one piece at a time."""
    delay, absorption, out, back, target, dissociation = parameters[:SHARED]
    options = {"rtol": 1e-8, "atol": 1e-10, **options}

    def slopes(t, y, comes, clearance):
        gut, blood, tissue, bound = y
        binds = BINDING * (blood * (target - bound) - dissociation * bound)
        exchange, absorbed = out * blood - back * tissue, absorption * gut
        blood = absorbed - clearance * blood - exchange - binds
        return [comes - absorbed, blood, exchange, binds]

    begins = DOSES + delay
    ends = np.append(np.sort(np.append(begins, begins + DISSOLVED)), times[-1] + 1.0)
    found = np.zeros([len(times), SUBJECTS, 4])
    for i in range(SUBJECTS):
        y, start = np.zeros(4), 0.0
        for k, end in enumerate(ends):
            args = (k % 2 * AMOUNTS[i] / DISSOLVED, parameters[SHARED + i])
            piece = (times > start) & (times <= end)
            solution = solve_ivp(
                slopes, (start, end), y, method, np.append(times[piece], end), args=args, **options
            )
            found[piece, i] = solution.y.T[:-1]
            y, start = solution.y[:, -1], end
    return found


def fit(measured):
    """The logarithms by BFGS, their standard errors, chi squared and the number of gradients."""
    measured, calls = tf.constant(measured), []

    def value_and_gradient(logs):
        value, gradient = misfit(tf.constant(logs), measured)
        calls.append(float(value))
        # A line search understands no NaN, which is what a failed solve gives.
        return (value, gradient) if np.isfinite(value) else (1e10, np.zeros(len(logs)))

    options = {"gtol": 1e-2}
    found = minimize(value_and_gradient, np.log(START), jac=True, method="BFGS", options=options)
    # The curvature by differences of exact gradients is the information that is in the data.
    rows = []
    for direction in 1e-3 * np.eye(len(found.x)):
        ends = [misfit(tf.constant(found.x + d), measured)[1] for d in (direction, -direction)]
        rows.append((ends[0] - ends[1]) / 2e-3)
    curvature = np.array(rows)
    errors = np.sqrt(np.diag(np.linalg.inv((curvature + curvature.T) / 2)))
    return found.x, errors, 2 * found.fun, len(calls)


def check_gradient(measured):
    """The largest error of a gradient beside central differences, in parts of its norm."""
    logs, measured = np.log(START), tf.constant(measured)
    gradient, differences = misfit(tf.constant(logs), measured)[1].numpy(), []
    for direction in 1e-4 * np.eye(len(logs)):
        ends = [misfit(tf.constant(logs + d), measured)[0] for d in (direction, -direction)]
        differences.append((ends[0] - ends[1]) / 2e-4)
    return np.max(np.abs(gradient - differences)) / np.linalg.norm(gradient)


def hours_of(method, steps):
    """How far so many steps get: the last time of `TIMES` that is reached."""
    options = {"max_steps": steps, "outputs": "step", "gradient": tfsymadj.NoGradient()}
    y = solve(tf.constant(np.log(TRUTH)), TIMES, method=method, **options).y
    return TIMES[np.isfinite(y[:, 0, 1])][-1]


def draw(measured, logs, errors, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplot_mosaic(
        "ABCG;DEFG", figsize=(16, 7.5), layout="constrained", width_ratios=[1, 1, 1, 1.15]
    )
    t = np.linspace(0.0, TIMES[-1], 601)
    options = {"gradient": tfsymadj.NoGradient()}
    curves = {
        "start": solve(tf.constant(np.log(START)), t, **options).y,
        "fit": solve(tf.constant(logs), t, **options).y,
        "radau": radau(np.exp(logs), t),
    }
    labels = {
        "start": "before the fit",
        "fit": "fit, kvaerno3",
        "radau": "the same by SciPy's Radau",
    }
    styles = {"start": (0, "-"), "fit": (3.5, "-"), "radau": (1.2, "--")}
    for i, key in enumerate("ABCDEF"):
        axis = axes[key]
        for name, y in curves.items():
            width, style = styles[name]
            axis.plot(
                t, y[:, i, 1], style, color=COLORS[name], linewidth=width or 1.2, label=labels[name]
            )
        axis.plot(TIMES[1:], measured[:, i], "o", color=COLORS["measured"], markersize=4,
                  label="measured")  # fmt: skip
        for dose in DOSES:
            axis.axvline(dose, color="#DDDDDD", linewidth=1, zorder=0)
        axis.set(title=f"Subject {i + 1}, {AMOUNTS[i]:g} mg/l a tablet", ylim=(0, None))
        axis.set_xticks(np.arange(0, 61, 12))
    for key in "DEF":
        axes[key].set_xlabel("Hours")
    for key in "AD":
        axes[key].set_ylabel("In the blood (mg/l)")
    handles, words = axes["A"].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower left", ncols=4, frameon=False)
    rows, ratio, factor = np.arange(len(NAMES))[::-1], np.exp(logs) / TRUTH, np.exp(1.96 * errors)
    right = axes["G"]
    right.plot([1, 1], [-0.6, 11.5], color="#222222", linewidth=1, label="truth")
    right.plot(START / TRUTH, rows, "x", color="#999999", label="before the fit")
    right.errorbar(
        ratio, rows, xerr=[ratio - ratio / factor, ratio * factor - ratio], fmt="o", capsize=4,
        color=COLORS["fit"], label="estimate, 95 %",
    )  # fmt: skip
    right.set(title="Estimates", xlabel="Estimate / truth", xscale="log", ylim=(-0.6, 13.2))
    ticks = [0.5, 0.7, 1, 1.4, 2, 3]
    right.set_xticks(ticks, ticks)
    right.xaxis.set_minor_locator(plt.NullLocator())
    right.set_yticks(rows, [name.split(",")[0] for name in NAMES])
    right.legend(frameon=False, loc="upper right", ncols=3, fontsize=9.5, columnspacing=1)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without the explicit method")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()

    exact = radau(TRUTH, TIMES)[1:, :, 1]
    random = np.random.default_rng(arguments.seed)
    measured = exact * np.exp(NOISE * random.normal(size=exact.shape))
    print("Compiling and fitting")
    logs, errors, chi_squared, gradients = fit(measured)
    wrong = check_gradient(measured)
    solved = solve(tf.constant(np.log(TRUTH)), TIMES, gradient=tfsymadj.NoGradient())
    apart = np.max(np.abs(solved.y[1:, :, 1].numpy() / exact - 1.0))
    milliseconds = {
        "a gradient by tfsymadj, compiled": lambda: misfit(tf.constant(logs), measured),
        "a solve by SciPy's Radau": lambda: radau(np.exp(logs), TIMES, rtol=1e-4, atol=1e-6),
    }
    for name, call in milliseconds.items():
        start = time.perf_counter()
        call()
        milliseconds[name] = 1e3 * (time.perf_counter() - start)
    picture = output / "dosing.png"
    draw(measured, logs, errors, picture)

    print(f"{'':<26}{'truth':>8}{'start':>8}{'estimate':>10}{'error':>8}")
    for k, name in enumerate(NAMES):
        estimate = np.exp(logs[k])
        print(
            f"{name:<26}{TRUTH[k]:8.3f}{START[k]:8.3f}{estimate:10.3f}{estimate * errors[k]:8.3f}"
        )
    freedom = measured.size - len(NAMES)
    print(f"chi squared {chi_squared:.1f}, {freedom} degrees of freedom, {gradients} gradients")
    print(f"largest error of a gradient beside differences, of its norm  {wrong:.1e}")
    print(f"largest difference to SciPy's Radau, of a concentration      {apart:.1e}")
    for name, value in milliseconds.items():
        print(f"{name:<34}{value:6.0f} ms")
    if not arguments.quick:
        hour = hours_of("dopri5", 5000)
        print(
            f"kvaerno3 took {solved.stats.num_accepted} steps; 5,000 of dopri5 get to hour {hour:g}"
        )
    print(f"Time {time.perf_counter() - begin:.0f} s")
    print(f"Picture {picture}")
    if np.max(np.abs(logs - np.log(TRUTH)) / errors) > 4.0:
        sys.exit("The parameters are not found.")
    if wrong > 1e-3:
        sys.exit("The gradient is not that of the misfit.")


if __name__ == "__main__":
    main()
