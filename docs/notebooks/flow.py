# %% [markdown]
# # A density, by a flow
#
# A continuous normalizing flow learns two half moons from samples. `CNF` is a bijector of
# TensorFlow Probability: with a base distribution it is a density, from which one can draw.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfsymadj

keras.utils.set_random_seed(0)
random = np.random.default_rng(0)


def moons(count):
    angle, upper = random.uniform(0.0, np.pi, count), random.integers(0, 2, count)
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * np.where(upper, 1, -1)[:, None]
    points += np.where(upper, 1, -1)[:, None] * [-0.5, -0.25]
    return (points + random.normal(size=points.shape) * 0.08).astype("float32")


# %% [markdown]
# In the plane the trace of the Jacobian is computed exactly. The steps are equal, so that their
# number is known.

# %%
layers = [tfsymadj.layers.ConcatSquash(32, activation="tanh") for _ in range(2)]
dynamics = tfsymadj.layers.TimeSequential([*layers, tfsymadj.layers.ConcatSquash(2)])
dynamics(tf.constant(0.0), tf.zeros([1, 2]))  # makes the weights
flow = tfsymadj.bijectors.CNF(dynamics, trace="exact", method="rk4", num_steps=6)
base = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [1.0, 1.0])
density = tfp.distributions.TransformedDistribution(base, flow)
weights = density.trainable_variables
optimizer = tf.keras.optimizers.Adam(5e-3)


@tf.function(jit_compile=True)
def gradient(x):
    with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(density.log_prob(x))
    return loss, tape.gradient(loss, weights)


losses = []
for _ in range(800):
    loss, gradients = gradient(moons(256))
    optimizer.apply_gradients(zip(gradients, weights))
    losses.append(float(loss))
print(f"negative log-likelihood: {losses[0]:.2f} to {np.mean(losses[-50:]):.2f} nats")

# %%
side = np.linspace(-2.2, 2.2, 120, dtype="float32")
points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
heights = np.exp(density.log_prob(points)).reshape(120, 120)
samples = density.sample(1000, seed=1)
figure, axes = plt.subplots(1, 3, figsize=(9, 3))
axes[0].scatter(*moons(1000).T, s=2, color="0.4")
axes[1].pcolormesh(side, side, heights, cmap="viridis", rasterized=True)
axes[2].scatter(*samples.numpy().T, s=2, color="#0072b2")
for ax, title in zip(axes, ("data", "density", "samples")):
    ax.set(title=title, xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal", xticks=[], yticks=[])
figure.savefig("flow.png", dpi=110, bbox_inches="tight")

# %% [markdown]
# It is a density: the sum over the grid is one, but for what lies outside.

# %%
mass = heights.sum() * (side[1] - side[0]) ** 2
print(f"mass on the grid: {mass:.3f}")
assert abs(mass - 1.0) < 0.03
assert np.mean(losses[-50:]) < 1.5
