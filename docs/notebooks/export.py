# %% [markdown]
# # From training to export
#
# A classifier with a neural ODE in it learns scikit-learn's digits, with the solver's counts and
# the gradient's memory in its logs. Then it is written as a SavedModel, which has gradients and
# needs no tfsymadj, and converted for TFLite.

# %%
import pathlib
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfsymadj

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = (images / 16.0).astype("float32")
x, x_test, y, y_test = train_test_split(images, labels, test_size=360, random_state=0)

# %% [markdown]
# Equal steps: then the cost is known, and TFLite can run it.

# %%
field = tfsymadj.layers.ConcatTime(
    keras.Sequential([keras.layers.Dense(64, activation="tanh"), keras.layers.Dense(32)])
)
ode = tfsymadj.ODELayer(field, method="rk4", num_steps=8, track_stats=True, name="ode")
model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(32), ode, keras.layers.Dense(10, activation="softmax")]
)
model.compile(
    keras.optimizers.Adam(3e-3),
    "sparse_categorical_crossentropy",
    metrics=["accuracy"],
    jit_compile=True,
)
memory = tfsymadj.callbacks.GradientMemory()
history = model.fit(
    x, y, validation_data=(x_test, y_test), epochs=25, batch_size=64, verbose=0, callbacks=[memory]
).history
print("held-out accuracy:", round(history["val_accuracy"][-1], 3))
print("evaluations a solve:", history["ode_evaluations"][-1])

# %%
figure, axes = plt.subplots(figsize=(6, 2.8))
axes.semilogy(1 - np.array(history["accuracy"]), color="0.5", label="training")
axes.semilogy(1 - np.array(history["val_accuracy"]), color="#0072b2", label="held out")
axes.set(xlabel="epoch", ylabel="share of wrong answers")
axes.legend()
figure.savefig("export.png", dpi=110, bbox_inches="tight")

# %% [markdown]
# The SavedModel can be trained on. TFLite knows no gradients, so that none are made.

# %%
folder = pathlib.Path(tempfile.mkdtemp())
model.export(folder / "saved_model", verbose=False)
served = tf.saved_model.load(folder / "saved_model")
with tf.GradientTape() as tape:
    loss = tf.reduce_sum(served.serve(x[:8]) ** 2)
gradients = tape.gradient(loss, served.trainable_variables)

with tfsymadj.no_gradient():
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
interpreter = tf.lite.Interpreter(model_content=content)
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x_test[:1])
interpreter.invoke()
lite = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
print(len(content), "bytes for TFLite")

# %%
assert None not in gradients
assert np.abs(lite - model.predict(x_test[:1], verbose=0)).max() < 1e-4
assert history["val_accuracy"][-1] > 0.93
