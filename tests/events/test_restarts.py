"""A ball that bounces: each solve starts where the event of the one before has ended it."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import slow

import tfsymadj

BOUNCES = 8
END = tf.constant(4.8, tf.float64)  # between the eighth bounce, at 4.68, and the ninth, at 4.89
GROUND = tfsymadj.Event(lambda t, y: y[0], direction=-1)


def closed_form(gravity, restitution, height):
    """The time of the eighth bounce, and the state at the end."""
    fall, speed = tf.sqrt(2.0 * height / gravity), tf.sqrt(2.0 * gravity * height)
    t = fall * (1.0 + 2.0 * tf.add_n([restitution**k for k in range(1, BOUNCES)]))
    speed, rest = speed * restitution**BOUNCES, END - t
    return t, speed * rest - 0.5 * gravity * rest**2, speed - gravity * rest


def falling(t, y, gravity):
    return tf.stack([y[1], -gravity])


def solved(gravity, restitution, height):
    options = dict(args=(gravity,), rtol=1e-12, atol=1e-12, max_steps=64)

    def bounced(n, t, y):
        event = tfsymadj.solve(falling, y, tf.stack([t, END]), event=GROUND, **options).event
        return n + 1, event.t, tf.stack([event.y[0], -restitution * event.y[1]])

    start = tf.stack([height, tf.zeros_like(height)])
    _, t, y = tf.while_loop(
        lambda n, *_: n < BOUNCES,
        bounced,
        (tf.constant(0), tf.zeros_like(height), start),
        maximum_iterations=BOUNCES,  # or XLA would know of no gradient
    )
    y = tfsymadj.odeint(falling, y, tf.stack([t, END]), **options)[-1]
    return t, y[0], y[1]


@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_state_after_bounces_and_its_derivatives(mode):
    """Event times carry what they contribute: no more than the reset is written here."""
    sources = [tf.constant(x, tf.float64) for x in (9.81, 0.8, 2.0)]

    def compute(weights, function=solved):
        with tf.GradientTape() as tape:
            tape.watch(sources)
            values = function(*sources)
            value = tf.tensordot(tf.stack(values), weights, 1)
        return *values, *tape.gradient(value, sources)

    found = compute if mode == "eager" else tf.function(compute, jit_compile=mode == "xla")
    for row in tf.eye(3, dtype=tf.float64):
        np.testing.assert_allclose(found(row), compute(row, closed_form), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("start, direction", [(1000.0, 1), slow(100.0, 0), slow(0.0, -1)])
def test_late_restarts_go_on(start, direction):
    """However few roundings of the time there are in a period."""
    rate = 20.0 * np.pi
    event = tfsymadj.Event(lambda t, y: y[0], direction=direction)
    y, t, lengths = tf.constant([1.0, 0.0], tf.float64), start, []
    for _ in range(6):
        found = tfsymadj.solve(
            lambda t, y: rate * tf.stack([y[1], -y[0]]), y, [t, t + 1.0], rtol=1e-7, event=event
        ).event
        lengths.append(found.t - t)
        t, y = float(found.t), found.y
    np.testing.assert_allclose(lengths[1:], 0.1 if direction else 0.05, rtol=1e-4)
