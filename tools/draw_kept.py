"""Draws what each gradient method holds in memory in the middle of its backward pass.

python tools/draw_kept.py --output docs
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch, Rectangle

STEPS, STAGES, SEGMENT = 9, 4, 3
#: The stage that the backward pass is at.
NOW = (4, 1)
STATE, ACTIVATIONS = "#0072b2", "#d55e00"


def back_propagation(step, stage):
    """What is held of a stage: "activations", "state" or None."""
    return "activations" if (step, stage) <= NOW else None


def stages(step, stage):
    return "state" if (step, stage) <= NOW else None


def steps(step, stage):
    if step == NOW[0] and stage <= NOW[1]:
        return "state"
    return "state" if stage == 0 and step < NOW[0] else None


def root(step, stage):
    first = NOW[0] - NOW[0] % SEGMENT
    if first <= step and (step, stage) <= NOW:
        return "state"
    return "state" if stage == 0 and step < first and step % SEGMENT == 0 else None


def aca(step, stage):
    if step == NOW[0] and stage <= NOW[1]:
        return "activations"
    return "state" if stage == 0 and step < NOW[0] else None


def continuous(step, stage):
    return "state" if (step, stage) == NOW else None


#: Name, what is held, whether the network is used under a tape now, exactness, memory, evaluations.
ROWS = [
    ("back-propagation", back_propagation, False, "exact", "N s L", "N s"),
    ('"stages"', stages, True, "exact", "N s states + L", "N s + N s"),
    ('"steps"', steps, True, "exact", "N + s states + L", "N s + 2 N s"),
    ('"sqrt"', root, True, "exact", "2 √(N s) states + L", "N s + 2 N s"),
    ('"aca"', aca, False, "exact", "N states + s L", "N s + N s"),
    ("continuous adjoint", continuous, True, "approximate", "few states + L", "N s + M s"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("out"))
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)

    plt.rcParams.update({"font.size": 11, "font.family": "DejaVu Sans"})
    figure, axes = plt.subplots(figsize=(12, 4.6))
    width = STAGES + 0.7
    for row, (name, held, taped, exact, memory, evaluations) in enumerate(ROWS):
        bottom = -row * 1.6
        for step in range(STEPS):
            for stage in range(STAGES):
                kind = held(step, stage)
                if taped and (step, stage) == NOW:
                    kind = "activations"
                colour = {"activations": ACTIVATIONS, "state": STATE, None: "white"}[kind]
                height = 1.15 if kind == "activations" else 0.45
                place = (step * width + stage, bottom)
                box = Rectangle(place, 0.8, height, facecolor=colour, edgecolor="0.6", lw=0.6)
                axes.add_patch(box)
        axes.text(-0.8, bottom + 0.25, name, ha="right", va="center")
        for x, text in ((0.6, exact), (10.5, memory), (25, evaluations)):
            axes.text(STEPS * width + x, bottom + 0.25, text, va="center")
    for x, text in ((0.6, "gradient"), (10.5, "memory"), (25, "evaluations")):
        axes.text(STEPS * width + x, 1.75, text, va="center", weight="bold")
    axes.text(0.0, 1.75, f"{STEPS} steps of {STAGES} stages", va="center", weight="bold")
    now = NOW[0] * width + NOW[1] + 0.4
    axes.plot([now, now], [-5 * 1.6 - 0.3, 1.4], color="0.3", lw=0.8, ls=":")
    axes.text(now, -5 * 1.6 - 0.75, "the backward pass is here", ha="center", color="0.3")
    labels = {ACTIVATIONS: "activations of one use, L", STATE: "a state", "white": "not held"}
    patches = [Patch(facecolor=c, edgecolor="0.6", label=text) for c, text in labels.items()]
    axes.legend(
        handles=patches, loc="lower left", ncols=3, frameon=False, bbox_to_anchor=(0, -0.12)
    )
    axes.set(xlim=(-12, STEPS * width + 34), ylim=(-9.6, 2.2))
    axes.axis("off")
    figure.savefig(output / "kept.png", dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    main()
