"""Writes the TensorFlow models of test_tensorflow.py into a folder, and what TensorFlow says of them: a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def main(folder: Path) -> None:
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    pictures = generator.uniform(0, 255, (24, 24, 24, 3)).astype(np.float32)
    network = _network()
    network.save(folder / "network.keras")
    network.export(folder / "network", verbose=False)
    np.savez(folder / "pictures.npz", picture=pictures)
    np.save(folder / "labels.npy", network.predict(pictures, verbose=0))
    _save_two_inputs(folder)
    _save_refused(folder)


def _network() -> keras.Model:
    picture = keras.Input((24, 24, 3), name="picture")
    values = keras.layers.Rescaling(1 / 255.0)(picture)
    for filters in (16, 32):
        values = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(values)
        values = keras.layers.BatchNormalization()(values)
        values = keras.layers.ReLU()(values)
    values = keras.layers.DepthwiseConv2D(3, padding="same")(values)
    values = keras.layers.GlobalAveragePooling2D()(values)
    return keras.Model(
        picture, keras.layers.Dense(10, kernel_initializer=keras.initializers.RandomNormal(0, 2))(values)
    )


class _TwoInputs(tf.Module):
    """Rows of a table added up and scaled by one number for all samples; the sum's sign beside it."""

    def __init__(self) -> None:
        self.table = tf.Variable(np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.int32, "rows"), tf.TensorSpec((), tf.float32, "scale")])
    def __call__(self, rows: tf.Tensor, scale: tf.Tensor) -> dict[str, tf.Tensor]:
        vectors = scale * tf.reduce_sum(tf.gather(self.table, rows), axis=1)
        return {"vectors": vectors, "above": tf.cast(vectors > 0, tf.int32)}


def _save_two_inputs(folder: Path) -> None:
    module = _TwoInputs()
    tf.saved_model.save(module, str(folder / "rows"), signatures=module.__call__)
    rows = np.random.default_rng(2).integers(0, 50, (5, 6)).astype(np.int32)
    scales = np.asarray([0.5, 1, 2, 3, -1], np.float32)
    np.savez(folder / "rows.npz", rows=rows, scale=scales)
    found = [module(row[None], scale) for row, scale in zip(rows, scales, strict=True)]
    made: dict[str, Any] = {name: np.stack([each[name][0] for each in found]) for name in found[0]}
    np.savez(folder / "rows-expected.npz", **made)


def _save_refused(folder: Path) -> None:
    _save(folder / "inverse", lambda x, w: tf.linalg.inv(x) * w, (None, 3, 3), 3)
    folder /= "refused"
    folder.mkdir()
    lambda_layer = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x + 1), keras.layers.Dense(2)])
    lambda_layer.save(folder / "lambda.keras")
    _save(folder / "free", lambda x, w: tf.reduce_mean(x * w, axis=(1, 2)), (None, None, None, 3), 3)
    _save(folder / "text", lambda x, w: tf.strings.to_number(x) * w, (None, 3), 3, tf.string)
    _save(folder / "python", lambda x, w: tf.py_function(lambda v: v, [x * w], tf.float32), (None, 3), 3)
    _save(folder / "writing", _writing, (None, 3), 3)
    _save(folder / "rows-by-value", lambda x, w: tf.boolean_mask(x * w, x[:, 0] > 0), (None, 3), 3)
    _save(
        folder / "restoring",
        lambda x, w: (
            x * w
            + tf.ensure_shape(
                tf.raw_ops.RestoreV2(prefix="x", tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32])[0],
                (3,),
            )
        ),
        (None, 3),
        3,
    )
    _save(folder / "random", lambda x, w: x * w + tf.random.normal((3,)), (None, 3), 3)
    _save(folder / "nothing", lambda x, w: x + 1.0, (None, 3), 3)


def _writing(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies([tf.io.write_file("written-by-a-model", "x")]):
        return x * w


def _save(
    folder: Path,
    function: Callable[..., tf.Tensor],
    shape: tuple[int | None, ...],
    width: int,
    dtype: tf.DType = tf.float32,
) -> None:
    module = tf.Module()
    module.w = tf.Variable(np.ones(width, np.float32))
    module.call = tf.function(
        lambda x: {"y": function(x, module.w)}, input_signature=[tf.TensorSpec(shape, dtype, "x")]
    )
    tf.saved_model.save(module, str(folder), signatures=module.call)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
