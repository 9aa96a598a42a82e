# %% [markdown]
# # Learned physics: an energy
#
# Single short intervals of a pendulum's motion are observed. One network learns its energy, from
# which `HamiltonianDynamics` makes the motion; another one learns the vector field itself. Over a
# long time the first one keeps what it learned as its energy, whatever its weights are. The
# second one has nothing to keep.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import tfsymadj

keras.utils.set_random_seed(0)
random = np.random.default_rng(0)


def pendulum(t, y):
    return tf.stack([y[:, 1], -tf.sin(y[:, 0])], 1)


def energy(y):
    return 0.5 * y[..., 1] ** 2 - np.cos(y[..., 0])


start = random.uniform(-2.0, 2.0, (2048, 2)).astype("float32")  # angle, momentum
end = tfsymadj.odeint(pendulum, start, [0.0, 0.2], rtol=1e-6, atol=1e-6)[-1].numpy()
end += random.normal(size=end.shape).astype("float32") * 0.01

# %%
fields = {
    "energy": tfsymadj.layers.HamiltonianDynamics(
        keras.Sequential([keras.layers.Dense(64, activation="tanh"), keras.layers.Dense(1)])
    ),
    "vector field": keras.Sequential(
        [keras.layers.Dense(64, activation="tanh"), keras.layers.Dense(2)]
    ),
}
for name, field in fields.items():
    layer = tfsymadj.ODELayer(field, t=(0.0, 0.2), method="rk4", num_steps=2)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 1600)),
        "mse",
        jit_compile=True,
    )
    loss = model.fit(start, end, epochs=50, batch_size=64, verbose=0).history["loss"][-1]
    print(f"{name:12}: loss {loss:.6f}, the noise is {0.01**2:.6f}")

# %% [markdown]
# A hundred time units from one start, 500 times as long as what was seen:

# %%
times = np.linspace(0.0, 100.0, 1000)
first = tf.constant([[1.2, 0.0]])
options = dict(rtol=1e-6, atol=1e-6, max_steps=20_000)
paths = {
    name: tfsymadj.odeint(field, first, times, **options)[:, 0].numpy()
    for name, field in fields.items()
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
drift = {}
for (name, path), colour in zip(paths.items(), ("#0072b2", "#d55e00")):
    axes[0].plot(*path.T, color=colour, lw=0.8, label=name)
    drift[name] = np.ptp(energy(path))
    axes[1].plot(times, energy(path), color=colour, label=name)
axes[0].set(xlabel="angle", ylabel="momentum")
axes[1].axhline(energy(first.numpy()[0]), color="0.5", ls=":", label="truth")
axes[1].set(xlabel="time", ylabel="true energy")
axes[1].legend()
figure.savefig("energy.png", dpi=110, bbox_inches="tight")

# %%
learned = fields["energy"].energy_of(paths["energy"]).numpy()
print(f"the learned energy changes by {np.ptp(learned):.1e}; the true one changes by", drift)
assert np.ptp(learned) < 1e-2
assert drift["energy"] < 0.2
