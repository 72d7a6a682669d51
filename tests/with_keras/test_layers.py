"""Every built-in layer that carries channels, cut between two that write and read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import pytest
from keras import layers as L
from tests.with_keras.models import chain, drawn, functional

import secateurs as sc

# No map may be as wide as it has channels: TensorFlow would add a bias along the wrong axis.
WIDTH = 9
TOKENS = (5, 4)


@pytest.fixture(autouse=True)
def channels_last() -> Iterator[None]:
    yield
    keras.config.set_image_data_format("channels_last")


def conv(filters: int, *, rank: int = 2, **kwargs: Any) -> Any:
    kind = {1: L.Conv1D, 2: L.Conv2D, 3: L.Conv3D}[rank]
    return kind(filters, 3, padding="same", **kwargs)


def law_holds(model: Any) -> None:
    """One unit of every group goes, one group at a time; of each block if it is balanced."""
    graph = sc.trace(model)
    assert graph.groups
    for group in graph:
        units = [int(block[-1]) for block in group.blocks()]
        if group.multiple == 1:
            plan = graph.plan({group.name: units})
            small = sc.apply(model, plan)
            assert small.count_params() < model.count_params()
            assert sc.verify(model, small, plan, graph=graph).holds, group.name


# Between a convolution of 6 filters and Flatten, from the axis of the channels.
IMAGES: dict[str, Callable[[int], list[Any]]] = {
    "conv": lambda _: [conv(5, dilation_rate=2, use_bias=False), L.Conv2D(3, 2, strides=2)],
    "transposed": lambda _: [
        L.Conv2DTranspose(5, 3, padding="same"),
        L.Conv2DTranspose(4, 2, strides=2),
    ],
    "depthwise": lambda _: [L.DepthwiseConv2D(3, padding="same") for _ in range(2)],
    "depthwise-multiplied": lambda _: [L.DepthwiseConv2D(3, depth_multiplier=2, padding="same")],
    "separable": lambda _: [L.SeparableConv2D(7, 3, padding="same")],
    "separable-multiplied": lambda _: [L.SeparableConv2D(7, 2, depth_multiplier=2, strides=2)],
    "grouped": lambda _: [conv(8, groups=2)],
    "grouped-one-each": lambda _: [conv(12, groups=6)],
    "batch-norm": lambda axis: [L.BatchNormalization(axis=axis), L.ReLU()],
    "batch-norm-bare": lambda axis: [L.BatchNormalization(axis=axis, center=False, scale=False)],
    "layer-norm": lambda axis: [L.LayerNormalization(axis=axis)],
    "group-norm": lambda axis: [L.GroupNormalization(3, axis=axis)],
    "instance-norm": lambda axis: [L.GroupNormalization(-1, axis=axis)],
    "rms-norm": lambda axis: [L.RMSNormalization(axis=axis)],
    "unit-norm": lambda axis: [L.UnitNormalization(axis=axis)],
    "spectral-norm": lambda _: [L.SpectralNormalization(conv(5))],
    "prelu": lambda _: [L.PReLU()],
    "prelu-shared": lambda axis: [L.PReLU(shared_axes=[1, 2] if axis == -1 else [2, 3])],
    "max-pool": lambda _: [L.MaxPooling2D(2), L.MaxPooling2D(3, strides=1, padding="same")],
    "average-pool": lambda _: [L.AveragePooling2D(2, padding="same")],
    "global-max": lambda _: [L.GlobalMaxPooling2D(keepdims=True)],
    "global-average": lambda _: [L.GlobalAveragePooling2D()],
    "adaptive-average-pool": lambda _: [L.AdaptiveAveragePooling2D((4, 5))],
    "adaptive-max-pool": lambda _: [L.AdaptiveMaxPooling2D((4, 5))],
    "pads-and-crops": lambda _: [
        L.ZeroPadding2D((1, 2)), L.Cropping2D(((1, 0), (2, 1))), L.UpSampling2D(2)
    ],
    "upsampling-bilinear": lambda _: [L.UpSampling2D(2, interpolation="bilinear")],
    "resizing": lambda _: [L.Resizing(4, 4)],
    "center-crop": lambda _: [L.CenterCrop(8, 8)],
    "rescaling": lambda _: [L.Rescaling(0.1, offset=-1.0)],
    "noise": lambda _: [
        L.GaussianNoise(0.1), L.GaussianDropout(0.1), L.AlphaDropout(0.1), L.Dropout(0.5),
        L.SpatialDropout2D(0.5), L.ActivityRegularization(0.1),
    ],
    "activations": lambda _: [
        L.Activation("gelu"), L.LeakyReLU(0.2), L.ELU(), L.ReLU(6.0), L.Activation("sigmoid"),
        L.Identity(),
    ],
    "permute": lambda _: [L.Permute((3, 1, 2)), conv(4)],
    "reshape": lambda axis: [L.Reshape((81, 6) if axis == -1 else (6, 81)), L.Dense(5)],
    "reshape-open": lambda axis: [L.Reshape((-1, 6) if axis == -1 else (6, -1)), L.Dense(5)],
}  # fmt: skip


LAST_ONLY = {"layer-norm", "rms-norm"}  # on torch, Keras normalises over the last axis alone


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("name", IMAGES)
def test_between_a_convolution_and_flatten(name: str, data_format: str) -> None:
    if name in LAST_ONLY and data_format == "channels_first":
        pytest.skip("Keras does not run this on torch")
    keras.config.set_image_data_format(data_format)
    last = data_format == "channels_last"
    shape = (WIDTH, WIDTH, 3) if last else (3, WIDTH, WIDTH)
    between = IMAGES[name](-1 if last else 1)
    law_holds(chain(shape, conv(6), *between, L.Flatten(), L.Dense(2)))


def tokens(*layers: Any) -> Callable[[], Any]:
    return lambda: chain(TOKENS, L.Dense(6), *[make() for make in layers], L.Flatten(), L.Dense(2))


def merged(merge: Any, reader: Any = lambda: L.Dense(2)) -> Callable[[], Any]:
    def body(x: Any) -> Any:
        return reader()(merge()([L.Dense(6)(x), L.Dense(6)(x)]))

    return lambda: functional((4,), body)


def attention(make: Callable[[], Any]) -> Callable[[], Any]:
    def body(x: Any) -> Any:
        x = L.Dense(6)(x)
        return L.Dense(2)(make()(x, x))

    return lambda: functional(TOKENS, body)


def kernel_attention(make: Callable[[], Any]) -> Callable[[], Any]:
    def body(x: Any) -> Any:
        return L.Dense(2)(make()([L.Dense(6)(x), L.Dense(5)(x), L.Dense(6)(x)]))

    return lambda: functional(TOKENS, body)


def volume(*layers: Any) -> Callable[[], Any]:
    between = lambda: [make() for make in layers]  # noqa: E731
    return lambda: chain(
        (4, 4, 4, 2), conv(6, rank=3), *between(), conv(5, rank=3), L.GlobalAveragePooling3D()
    )


def frames(layer: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: chain((3, 5, 5, 2), L.TimeDistributed(conv(6)), layer(), L.Flatten(), L.Dense(2))


NETWORKS: dict[str, Callable[[], Any]] = {
    "dense": lambda: chain((4,), L.Dense(6, use_bias=False), L.Dense(6), L.PReLU(), L.Dense(2)),
    "einsum": tokens(
        lambda: L.EinsumDense("abc,cd->abd", output_shape=(5, 7), bias_axes="d"),
        lambda: L.EinsumDense("abc,cde->abde", output_shape=(5, 2, 3), bias_axes="de"),
    ),
    "conv1d": lambda: chain(TOKENS, conv(6, rank=1), conv(5, rank=1), L.GlobalMaxPooling1D()),
    "causal": tokens(lambda: L.Conv1D(5, 2, padding="causal")),
    "transposed1d": tokens(lambda: L.Conv1DTranspose(5, 3)),
    "depthwise1d": tokens(lambda: L.DepthwiseConv1D(3, padding="same")),
    "separable1d": tokens(lambda: L.SeparableConv1D(7, 3)),
    "pools1d": tokens(
        lambda: L.ZeroPadding1D(2), lambda: L.MaxPooling1D(2), lambda: L.UpSampling1D(3),
        lambda: L.Cropping1D(1), lambda: L.AveragePooling1D(2), lambda: L.SpatialDropout1D(0.1),
    ),
    "adaptive-pools1d": tokens(
        lambda: L.AdaptiveAveragePooling1D(4), lambda: L.AdaptiveMaxPooling1D(3)
    ),
    "conv3d": volume(),
    "transposed3d": volume(lambda: L.Conv3DTranspose(7, 2)),
    "pools3d": volume(
        lambda: L.ZeroPadding3D(1), lambda: L.MaxPooling3D(2), lambda: L.UpSampling3D(2),
        lambda: L.Cropping3D(1), lambda: L.AveragePooling3D(2), lambda: L.SpatialDropout3D(0.1),
    ),
    "adaptive-pools3d": volume(
        lambda: L.AdaptiveAveragePooling3D(3), lambda: L.AdaptiveMaxPooling3D(2)
    ),
    "add": merged(L.Add),
    "subtract": merged(L.Subtract),
    "multiply": merged(L.Multiply),
    "average": merged(L.Average),
    "maximum": merged(L.Maximum),
    "minimum": merged(L.Minimum),
    "concatenate": merged(L.Concatenate),
    "dot": merged(lambda: L.Dot(axes=1), reader=lambda: L.Dense(2)),
    "embedding": lambda: chain(
        (5,), L.Embedding(9, 6), L.GlobalAveragePooling1D(), L.Dense(2), dtype="int32"
    ),
    "masked": lambda: chain(
        (5,), L.Embedding(9, 6, mask_zero=True), L.LSTM(4), L.Dense(2), dtype="int32"
    ),
    "masking": tokens(L.Masking, lambda: L.GRU(4)),
    "repeat": lambda: chain((4,), L.Dense(6), L.RepeatVector(3), L.LSTM(5), L.Dense(2)),
    "simple-rnn": tokens(lambda: L.SimpleRNN(5, return_sequences=True), lambda: L.SimpleRNN(5)),
    "lstm": tokens(lambda: L.LSTM(5, return_sequences=True), lambda: L.LSTM(4)),
    "gru": tokens(lambda: L.GRU(5, return_sequences=True), lambda: L.GRU(4, reset_after=False)),
    "bidirectional": tokens(
        lambda: L.Bidirectional(L.LSTM(5, return_sequences=True)), lambda: L.Bidirectional(L.GRU(4))
    ),
    "bidirectional-sum": tokens(lambda: L.Bidirectional(L.LSTM(5), merge_mode="sum")),
    "cells": tokens(lambda: L.RNN([L.GRUCell(5), L.LSTMCell(4)])),
    "conv-lstm": frames(lambda: L.ConvLSTM2D(4, 3, padding="same", return_sequences=True)),
    "conv-lstm1d": lambda: chain(
        (3, 5, 2), L.TimeDistributed(conv(6, rank=1)),
        L.ConvLSTM1D(5, 2, padding="same", return_sequences=True), L.ConvLSTM1D(4, 2), L.Flatten(),
        L.Dense(2),
    ),
    "conv-lstm3d": lambda: chain(
        (2, 3, 3, 3, 2), L.TimeDistributed(conv(6, rank=3)), L.ConvLSTM3D(4, 2, padding="same"),
        L.Flatten(), L.Dense(2),
    ),
    "time-distributed": tokens(
        lambda: L.TimeDistributed(L.Dense(5)), lambda: L.TimeDistributed(L.Dense(4))
    ),
    "attention": attention(lambda: L.MultiHeadAttention(3, 4)),
    "attention-dropout": attention(lambda: L.MultiHeadAttention(3, 4, value_dim=5, dropout=0.1)),
    "grouped-attention": attention(lambda: L.GroupQueryAttention(4, 4, 2)),
    "dot-attention": kernel_attention(lambda: L.Attention(use_scale=True)),
    "additive-attention": kernel_attention(L.AdditiveAttention),
    "softmax": tokens(L.Softmax),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_law_holds_on_every_group(name: str) -> None:
    law_holds(NETWORKS[name]())


MIXED: dict[str, Callable[[], Any]] = {
    "dense": lambda: chain((8,), L.Dense(6, activation="relu"), L.Dense(2)),
    "conv": lambda: chain(
        (9, 9, 3), conv(6), L.BatchNormalization(), L.DepthwiseConv2D(3), L.Flatten(), L.Dense(2)
    ),
    "lstm": tokens(lambda: L.LSTM(5)),
    "attention": attention(lambda: L.MultiHeadAttention(3, 4)),
}


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("name", MIXED)
def test_other_precisions(name: str, precision: str) -> None:
    if precision == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32 unless it is told otherwise when it starts")
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(precision)
        law_holds(MIXED[name]())
    finally:
        keras.config.set_dtype_policy(before)


def test_the_negative_control_fails() -> None:
    model = chain((4,), L.Dense(6, name="a"), L.Dense(2))
    plan = sc.trace(model).plan({"a": [1]})
    small = sc.apply(model, plan)
    assert not sc.verify(model, drawn(small, seed=1), plan).holds
