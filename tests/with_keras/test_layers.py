"""Every built-in layer that carries channels, cut between two that write and read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers as L
from tests.with_keras.models import chain, drawn, functional

import secateurs as sc

IMAGE, TOKENS = (6, 6, 3), (5, 4)


def conv(filters: int, *, rank: int = 2, **kwargs: Any) -> Any:
    kind = {1: L.Conv1D, 2: L.Conv2D, 3: L.Conv3D}[rank]
    return kind(filters, 3, padding="same", **kwargs)


def between(*layers: Any) -> Callable[[], Any]:
    """A convolution, these, then Flatten and Dense: the test of keras-surgeon."""
    return lambda: chain(IMAGE, conv(6), *[make() for make in layers], L.Flatten(), L.Dense(2))


def tokens(*layers: Any) -> Callable[[], Any]:
    return lambda: chain(TOKENS, L.Dense(6), *[make() for make in layers], L.Flatten(), L.Dense(2))


def merged(merge: Any) -> Callable[[], Any]:
    def build() -> Any:
        return functional(
            IMAGE, lambda x: L.Dense(2)(L.Flatten()(merge()([conv(6)(x), conv(6)(x)])))
        )

    return build


def attention(make: Callable[[], Any]) -> Callable[[], Any]:
    def body(x: Any) -> Any:
        x = L.Dense(6)(x)
        return L.Dense(2)(make()(x, x))

    return lambda: functional(TOKENS, body)


def volume() -> Any:
    return chain((4, 4, 4, 2), conv(6, rank=3), conv(5, rank=3), L.GlobalAveragePooling3D())


def transposed() -> Any:
    return chain(IMAGE, L.Conv2DTranspose(6, 3), L.Conv2DTranspose(5, 3, use_bias=False), conv(2))


def mixed() -> Any:
    policy = keras.DTypePolicy("mixed_float16")
    return chain((8,), L.Dense(6, dtype=policy, activation="relu"), L.Dense(2, dtype=policy))


NETWORKS: dict[str, Callable[[], Any]] = {
    "dense": lambda: chain((4,), L.Dense(6, use_bias=False), L.Dense(6), L.PReLU(), L.Dense(2)),
    "einsum": tokens(
        lambda: L.EinsumDense("abc,cd->abd", output_shape=(5, 7), bias_axes="d"),
        lambda: L.EinsumDense("abc,cde->abde", output_shape=(5, 2, 3), bias_axes="de"),
    ),
    "conv1d": lambda: chain(TOKENS, conv(6, rank=1), conv(5, rank=1), L.GlobalMaxPooling1D()),
    "conv3d": volume,
    "transposed": transposed,
    "depthwise": between(lambda: L.DepthwiseConv2D(3), lambda: L.DepthwiseConv2D(3)),
    "depthwise-multiplied": between(lambda: L.DepthwiseConv2D(3, depth_multiplier=2)),
    "separable": between(lambda: L.SeparableConv2D(7, 3)),
    "separable1d": tokens(lambda: L.SeparableConv1D(7, 3)),
    "grouped": between(lambda: conv(8, groups=2)),
    "grouped-one-each": between(lambda: conv(12, groups=6)),
    "batch-norm": between(L.BatchNormalization, L.ReLU),
    "layer-norm": between(L.LayerNormalization),
    "group-norm": between(lambda: L.GroupNormalization(3)),
    "instance-norm": between(lambda: L.GroupNormalization(-1)),
    "rms-norm": between(L.RMSNormalization),
    "unit-norm": between(L.UnitNormalization),
    "prelu-shared": between(lambda: L.PReLU(shared_axes=[1, 2])),
    "pools": between(lambda: L.MaxPooling2D(2), lambda: L.AveragePooling2D(2)),
    "global-pool": lambda: chain(IMAGE, conv(6), L.GlobalAveragePooling2D(), L.Dense(2)),
    "pads-and-crops": between(
        lambda: L.ZeroPadding2D(2), lambda: L.Cropping2D(1), lambda: L.UpSampling2D(2)
    ),
    "noise": between(
        lambda: L.GaussianNoise(0.1),
        lambda: L.Dropout(0.5),
        lambda: L.SpatialDropout2D(0.5),
        lambda: L.Activation("gelu"),
    ),
    "permute": between(lambda: L.Permute((3, 1, 2)), lambda: L.Conv2D(4, 3, padding="same")),
    "reshape": between(lambda: L.Reshape((36, 6)), lambda: L.Dense(5)),
    "reshape-open": between(lambda: L.Reshape((-1, 6)), lambda: L.Dense(5)),
    "resizing": between(lambda: L.Resizing(4, 4)),
    "add": merged(L.Add),
    "subtract": merged(L.Subtract),
    "multiply": merged(L.Multiply),
    "average": merged(L.Average),
    "maximum": merged(L.Maximum),
    "concatenate": merged(L.Concatenate),
    "embedding": lambda: chain(
        (5,), L.Embedding(9, 6), L.GlobalAveragePooling1D(), L.Dense(2), dtype="int32"
    ),
    "simple-rnn": tokens(lambda: L.SimpleRNN(5, return_sequences=True), lambda: L.SimpleRNN(5)),
    "lstm": tokens(lambda: L.LSTM(5, return_sequences=True), lambda: L.LSTM(4)),
    "gru": tokens(lambda: L.GRU(5, return_sequences=True), lambda: L.GRU(4, reset_after=False)),
    "bidirectional": tokens(
        lambda: L.Bidirectional(L.LSTM(5, return_sequences=True)), lambda: L.Bidirectional(L.GRU(4))
    ),
    "cells": tokens(lambda: L.RNN([L.GRUCell(5), L.LSTMCell(4)])),
    "time-distributed": tokens(
        lambda: L.TimeDistributed(L.Dense(5)), lambda: L.TimeDistributed(L.Dense(4))
    ),
    "attention": attention(lambda: L.MultiHeadAttention(3, 4)),
    "attention-dropout": attention(lambda: L.MultiHeadAttention(3, 4, value_dim=5, dropout=0.1)),
    "grouped-attention": attention(lambda: L.GroupQueryAttention(4, 4, 2)),
    "mixed-precision": mixed,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_law_holds_on_every_group(name: str) -> None:
    model = NETWORKS[name]()
    graph = sc.trace(model)
    assert graph.groups
    for group in graph:
        units = [int(block[-1]) for block in group.blocks()]
        if group.multiple == 1:
            plan = graph.plan({group.name: units})
            small = sc.apply(model, plan)
            assert small.count_params() < model.count_params()
            assert sc.verify(model, small, plan, graph=graph).holds, group.name


CHANNELS_FIRST = {
    "conv": lambda f: [L.Conv2D(5, 3, data_format=f)],
    "norm": lambda f: [L.BatchNormalization(axis=1), L.DepthwiseConv2D(3, data_format=f)],
    "pools": lambda f: [L.MaxPooling2D(2, data_format=f), L.ZeroPadding2D(1, data_format=f)],
    "global": lambda f: [L.GlobalMaxPooling2D(data_format=f)],
}


@pytest.mark.parametrize("name", CHANNELS_FIRST)
def test_channels_first(name: str) -> None:
    inner = CHANNELS_FIRST[name]("channels_first")
    first = L.Conv2D(6, 3, data_format="channels_first", name="first")
    # no map is as wide as it has channels: TensorFlow's bias would go along the wrong axis
    model = chain((3, 11, 11), first, *inner, L.Flatten(), L.Dense(2))
    small = sc.delete_channels(model, {"first": [0, 4]})
    assert small.get_layer("first").kernel.shape == (3, 3, 3, 4)


def test_the_negative_control_fails() -> None:
    model = chain((4,), L.Dense(6, name="a"), L.Dense(2))
    plan = sc.trace(model).plan({"a": [1]})
    small = sc.apply(model, plan)
    assert not sc.verify(model, drawn(small, seed=1), plan).holds
