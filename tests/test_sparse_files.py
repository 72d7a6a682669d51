"""Sparse files: bit-exact back, laid out as documented, and refused where they are not."""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import snapshot
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import ConfigError, FileError
from secateurs.files.coded import positions, values
from secateurs.files.coded.stream import Cursor, block, count, pack, pack_bits, squeeze
from secateurs.files.coded.tensors import NAME, Coded, decode, encode, read
from secateurs.files.store import WEIGHTS, load_tensors, save_tensors

BITS = {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}


# ---------------------------------------------------------------------- as it is documented
class Layout:
    """A decoder that knows nothing but docs/guides/sparse-files.md, one number at a time."""

    def __init__(self, path: Path):
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        entry = json.loads(data[8 : 8 + size])["secateurs.sparse/1"]
        start, end = entry["data_offsets"]
        self.rest = list(data[8 + size + start : 8 + size + end])

    def count(self) -> int:
        byte = self.rest.pop(0)
        return byte if byte < 128 else byte - 128 + 128 * self.count()

    def take(self, size: int) -> bytes:
        out, self.rest = bytes(self.rest[:size]), self.rest[size:]
        return out

    def bits(self, size: int) -> list[int]:
        data = self.take(math.ceil(size / 8))
        return [data[i // 8] >> i % 8 & 1 for i in range(size)]

    def squeezed(self, size: int) -> bytes:
        data = self.take(self.count())
        return data if len(data) == size else zlib.decompress(data, -15)

    def inner(self, data: bytes) -> Layout:
        out = object.__new__(Layout)
        out.rest = list(data)
        return out

    def tensors(self) -> dict[str, tuple[int, list[int], dict[int, int | float]]]:
        """Name -> dtype, shape, and the bits (or, coded with loss, the value) at each place."""
        out = {}
        while self.rest:
            name = self.take(self.count()).decode()
            dtype, kinds = self.take(2)
            shape = [self.count() for _ in range(self.count())]
            stored = self.count()
            where = self.inner(self.take(self.count())).places(kinds & 15, stored, shape)
            what = self.inner(self.take(self.count())).values(
                kinds >> 4, stored, (2, 2, 4, 8)[dtype]
            )
            out[name] = dtype, shape, dict(zip(where, what, strict=True))
        return out

    def places(self, form: int, stored: int, shape: list[int]) -> list[int]:
        rows = shape[0] if len(shape) > 1 else 1
        columns = math.prod(shape) // rows if rows else 0
        if form == 0:
            return list(range(stored))
        down, across = list(range(rows)), list(range(columns))
        if form & 4:
            live = self.bits(rows), self.bits(columns)
            down, across = ([i for i, bit in enumerate(bits) if bit] for bits in live)
        order = [(i, j) for i in down for j in across]
        if form & 3 == 1:
            mask = self.inner(self.squeezed(math.ceil(len(order) / 8))).bits(len(order))
            chosen = [place for place, bit in zip(order, mask, strict=True) if bit]
        else:
            k, at, chosen = self.take(1)[0], -1, []
            low = self.bits(stored * k)
            unary = self.inner(self.take(self.count()))
            unary_bits = unary.bits(8 * len(unary.rest))
            for i in range(stored):
                quotient = unary_bits.index(1)
                del unary_bits[: quotient + 1]
                rest = sum(bit << j for j, bit in enumerate(low[i * k : i * k + k]))
                at += 1 + (quotient << k) + rest
                chosen.append(order[at])
        return [i * columns + j for i, j in chosen]

    def values(self, kind: int, stored: int, size: int) -> list[Any]:
        if kind == 0:
            planes = [self.squeezed(stored) for _ in range(size)]
            return [int.from_bytes(value, "little") for value in zip(*planes, strict=True)]
        form = {4: "f", 8: "d"}.get(size, "e")
        if kind == 1:
            low, high = struct.unpack(f"<2{form}", self.take(2 * size))
            return [low + (high - low) * step / 255 for step in self.squeezed(stored)]
        known = self.count()
        entries = struct.unpack(f"<{known}{form}", self.take(known * size))
        return [entries[index] for index in self.squeezed(stored)]


def bits(tensor: Tensor) -> list[int]:
    kind = {16: torch.int16, 32: torch.int32, 64: torch.int64}[BITS[tensor.dtype]]
    return [number % 2 ** BITS[tensor.dtype] for number in tensor.reshape(-1).view(kind).tolist()]


# ---------------------------------------------------------------------- bit-exact
def draw(shape: tuple[int, ...], dtype: torch.dtype, kept: float, live: float, seed: int) -> Tensor:
    """Random numbers where a random mask keeps them; -0.0, infinities and NaN of all kinds too."""
    rng = np.random.default_rng(seed)
    kind = {16: np.int16, 32: np.int32, 64: np.int64}[BITS[dtype]]
    any_bits = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, kind, endpoint=True)
    normal = torch.from_numpy(np.asarray(rng.normal(size=shape))).to(dtype)
    own = torch.from_numpy(np.asarray(any_bits)).view(dtype)
    tensor = torch.where(torch.from_numpy(np.asarray(rng.random(shape) < 0.1)), own, normal)
    mask = rng.random(shape) < kept
    if len(shape) > 1:
        mask &= (rng.random(shape[0]) < live).reshape(-1, *[1] * (len(shape) - 1))
    zeros = torch.zeros((), dtype=dtype)
    return torch.where(torch.from_numpy(np.asarray(mask)), tensor, zeros)


SHAPES = st.lists(st.integers(0, 12), max_size=4).map(tuple) | st.tuples(
    st.integers(1, 40), st.integers(1, 90)
)


@given(
    shape=SHAPES,
    dtype=st.sampled_from(sorted(BITS, key=str)),
    kept=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    live=st.sampled_from([0.2, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_every_bit_comes_back(
    shape: tuple[int, ...], dtype: torch.dtype, kept: float, live: float, seed: int
) -> None:
    tensor = draw(shape, dtype, kept, live, seed)
    back = decode(read(encode({"x": tensor}, values.EXACT), "the file"))["x"]
    assert (back.dtype, tuple(back.shape)) == (dtype, shape)
    assert bits(back) == bits(tensor)


@given(numbers=st.lists(st.integers(0, 2**63 - 1), max_size=5), width=st.integers(0, 40))
def test_counts_and_packed_numbers_come_back(numbers: list[int], width: int) -> None:
    code = Cursor(b"".join(map(count, numbers)), "the code")
    assert [code.count() for _ in numbers] == numbers
    code.end()


def test_what_has_no_codes_stays_as_it_is() -> None:
    tensors = {
        "steps": torch.zeros(100, dtype=torch.int64),
        "flags": torch.zeros(100, dtype=torch.bool),
        "dense": as_bytes(np.random.default_rng(0).bytes(4800)).view(torch.float32).view(40, 30),
        "x": torch.zeros(40, 30),
    }
    found = read(encode(tensors, values.EXACT), "the file")
    assert [name for name, tensor in found.items() if isinstance(tensor, Coded)] == ["x"]
    assert found["dense"] is tensors["dense"]


def test_every_form_is_as_documented(tmp_path: Path) -> None:
    """Read by a decoder that was written from the page alone."""
    tensors = {
        f"{dtype} {kept} {live}".removeprefix("torch."): draw((30, 4, 6), dtype, kept, live, 3)
        for dtype in BITS
        for kept in (0.0, 0.02, 0.3, 0.5, 1.0)
        for live in (0.2, 1.0)
    }
    tensors["2:4"] = torch.tensor([0.0, 1.5, 0.0, 2.5, 0.5, 0.0, 0.0, 0.1]).repeat(40, 20)
    tensors["bias"] = draw((500,), torch.float32, 0.1, 1.0, 0)
    tensors["live"] = draw((200, 300), torch.float32, 0.03, 0.1, 0)
    save_tensors(tmp_path / WEIGHTS, encode(tensors, values.EXACT))
    found = Layout(tmp_path / WEIGHTS).tensors()
    coded = read(load_tensors(tmp_path / WEIGHTS)[0], "the file")
    forms = {coded[name].form for name in found}
    assert forms == {positions.Form.of(byte) for byte in (0, 1, 2, 5, 6)}
    assert len(found) > 30
    for name, (dtype, shape, at) in found.items():
        want = tensors[name]
        assert shape == list(want.shape)
        assert dtype == list(BITS).index(want.dtype)
        assert [at.get(i, 0) for i in range(want.numel())] == bits(want)


def test_two_of_four_cost_less_than_a_bit_a_weight() -> None:
    rng = np.random.default_rng(0)
    kept = np.zeros((4096, 4), bool)
    kept[np.arange(4096), rng.integers(0, 4, 4096)] = True
    kept[np.arange(4096), (kept.argmax(1) + rng.integers(1, 4, 4096)) % 4] = True
    assert kept.sum() == 2 * 4096
    _, code = positions.encode(kept.reshape(128, 128))
    assert len(code) * 8 < 0.7 * kept.size


# ---------------------------------------------------------------------- with loss
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_eight_bits_are_off_by_half_a_step(numbers: list[float]) -> None:
    given = torch.tensor(numbers, dtype=torch.float64)
    code = values._ENCODERS[values.INT8](given)
    back = values.decode(Cursor(code, "x"), values.INT8, len(given), torch.float64)
    span = float(given.max() - given.min())
    assert float((back - given).abs().max()) <= span / 510 * (1 + 1e-9)
    assert float(back.min()) == float(given.min())
    assert float(back.max()) == float(given.max())


def lloyd(numbers: list[float], most: int) -> list[float]:
    """k-means, number by number."""
    low, high = min(numbers), max(numbers)
    centres = [low + (high - low) * i / (most - 1) for i in range(most)]
    for _ in range(100):
        nearest = [min(range(len(centres)), key=lambda i: abs(x - centres[i])) for x in numbers]
        members = [[x for x, n in zip(numbers, nearest, strict=True) if n == i]
                   for i in range(len(centres))]  # fmt: skip
        centres = [sum(m) / len(m) for m in members if m]
    return centres


@pytest.mark.parametrize("seed", range(5))
def test_the_codebook_is_that_of_plain_k_means(seed: int) -> None:
    numbers = np.random.default_rng(seed).standard_t(3, 200)
    np.testing.assert_allclose(values.means(numbers, 8), lloyd(numbers.tolist(), 8), rtol=1e-12)


@given(
    seed=st.integers(0, 999),
    scale=st.sampled_from([1.0, 1e-300, 1e307]),
    size=st.integers(1, 400),
)
def test_a_codebook_gives_each_value_its_nearest_entry(seed: int, scale: float, size: int) -> None:
    given = torch.from_numpy(np.random.default_rng(seed).uniform(-5, 5, size) * scale)
    code = values._ENCODERS[values.CODEBOOK](given)
    back = values.decode(Cursor(code, "x"), values.CODEBOOK, size, torch.float64)
    entries = np.array(sorted(set(back.tolist())))
    assert len(entries) <= values.ENTRIES
    nearest = np.abs(given.numpy()[:, None] / scale - entries / scale).min(1)
    np.testing.assert_allclose(np.abs((back - given).numpy()) / scale, nearest, atol=1e-9)


def test_loss_is_kept_out_of_vectors_and_of_what_is_not_finite() -> None:
    weight = draw((50, 60), torch.float32, 0.2, 1.0, 0)  # with infinities and NaN
    plain = torch.where(weight.isfinite(), weight, 1.0)
    tensors = {"weight": weight, "plain": plain.clamp(-3, 3), "bias": torch.randn(4000)}
    for kind in (values.INT8, values.CODEBOOK):
        back = decode(read(encode(tensors, kind), "x"))
        assert bits(back["weight"]) == bits(tensors["weight"])
        assert bits(back["bias"]) == bits(tensors["bias"])
        assert bits(back["plain"]) != bits(tensors["plain"])
        assert torch.equal(back["plain"] == 0, tensors["plain"] == 0) or kind == values.INT8


# ---------------------------------------------------------------------- save and load
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 60),
        nn.ReLU(), nn.Linear(60, 3),
    ).eval()  # fmt: skip


def masked(model: nn.Module, kept: float = 0.05) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.masked_fill_(torch.rand_like(parameter) > kept, 0)
    return model


@pytest.mark.parametrize("cut", [False, True])
def test_a_sparse_folder_loads_as_any_other(cut: bool, tmp_path: Path) -> None:
    original = masked(net())
    plan = sc.trace(original, torch.randn(2, 1, 8, 8)).plan({"0": [1, 5]}) if cut else None
    small = sc.apply(original, plan) if plan else original
    dense = sc.save(small, plan, tmp_path / "dense")
    sparse = sc.save(small, plan, tmp_path / "sparse", sparse=True)
    assert (sparse / WEIGHTS).stat().st_size < (dense / WEIGHTS).stat().st_size / 8
    for folder in (dense, sparse):
        state = sc.load(folder, net()).state_dict()
        assert all(torch.equal(state[name], want) for name, want in small.state_dict().items())
        assert state["4.weight"].shape == small[4].weight.shape


def test_a_sparsified_network_is_saved_small(tmp_path: Path) -> None:
    """Its zeros are plain ones: nothing is warned of, and its masks come back from the file."""
    x, y = torch.randn(32, 1, 8, 8), torch.randint(3, (32,))
    loss = nn.CrossEntropyLoss(reduction="none")
    result = sc.sparsify(
        net(), x, train=[(x, y)], loss=loss, compression=20, updates=10, progress=False
    )
    result.save(tmp_path / "dense")
    result.save(tmp_path / "small", sparse=True)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("dense", "small")]
    assert sizes[0] > 10 * sizes[1]
    back = sc.load(tmp_path / "small", net())
    for name, parameter in result.model.named_parameters():
        assert bits(back.get_parameter(name).data) == bits(parameter.data)
    assert sc.Masks.from_zeros(back).kept == sc.Masks.from_zeros(result.model).kept


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
        model[1].weight = model[0].weight
        return model

    model = masked(tied())
    back = sc.load(sc.save(model, None, tmp_path, sparse=True), tied())
    assert back[0].weight is back[1].weight
    assert torch.equal(back[0].weight, model[0].weight)


def test_the_file_of_a_lenet_pruned_108_times(tmp_path: Path) -> None:
    """Even where the zeros are spread at random, without dead rows or columns."""
    from lenet import LeNet5

    model = masked(LeNet5(), 1 / 108)
    dense = (sc.save(model, None, tmp_path) / WEIGHTS).stat().st_size
    for how, least in zip(values.KINDS, (70, 150, 200), strict=True):
        sc.save(model, None, tmp_path, sparse=True, values=how)
        assert dense / (tmp_path / WEIGHTS).stat().st_size >= least


def test_zeros_with_a_sign_are_kept_and_told(tmp_path: Path) -> None:
    """A mask by multiplication leaves a sign on half of the zeros; to lose it is to lose a bit."""
    model = net()
    with torch.no_grad():
        model[4].weight.mul_(torch.rand_like(model[4].weight) < 0.05)
    signed = int(((model[4].weight == 0) & model[4].weight.signbit()).sum())
    assert signed > 7000
    with pytest.warns(UserWarning, match=f"^{signed:,} of the values stored are -0.0"):
        sc.save(model, None, tmp_path / "a", sparse=True)
    assert bits(sc.load(tmp_path / "a", net())[4].weight.data) == bits(model[4].weight.data)
    sc.save(model, None, tmp_path / "b", sparse=True, values="int8")  # which may lose it
    model[4].weight.data += 0
    sc.save(model, None, tmp_path / "c", sparse=True)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in "abc"]
    assert sizes[1] < sizes[2] < sizes[0] / 2


def test_a_model_of_csr_layers_is_not_saved(tmp_path: Path) -> None:
    fast = sc.to_csr(nn.Sequential(nn.Linear(30, 30)), torch.randn(2, 30), gain=0)
    with pytest.raises(FileError, match=r"'0\.weight' is sparse in memory.*save the dense"):
        sc.save(fast, None, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_wrong_words_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for more, says in (
        ({"sparse": True, "values": "int4"}, "'int4' is unknown; did you mean 'int8'"),
        ({"values": "int8"}, "needs sparse=True"),
    ):
        with pytest.raises(ConfigError, match=says):
            sc.save(net(), None, tmp_path / "x", **more)
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------------- refused
def record(
    form: int = 2, kind: int = 0, shape: tuple[int, ...] = (60, 288), stored: int = 2,
    places: bytes = b"\x01\x00" + block(b"\x03"), numbers: bytes | None = None,
    name: bytes = b"4.weight", dtype: int = 2,
) -> bytes:  # fmt: skip
    """A tensor's bytes; by itself, values at places 0 and 1."""
    numbers = 4 * squeeze(b"\x01\x02") if numbers is None else numbers
    head = block(name) + bytes([dtype, form | kind << 4]) + count(len(shape))
    return head + b"".join(map(count, shape)) + count(stored) + block(places) + block(numbers)


def unended(data: bytes) -> bytes:
    """These bytes deflated, and then what no deflate is, where its end should be."""
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    return press.compress(data) + press.flush(zlib.Z_SYNC_FLUSH) + b"\x07"


HUGE = (2**31, 2**31)
ENDS = struct.pack("<2f", 0.0, 1.0)
BAD = {
    "half a record": (record()[:-1], "cut short: 12 bytes are wanted where 11 are left"),
    "a name beyond the end": (b"\xff\xff\x03abc", "cut short: 65535 bytes"),
    "no text": (record(name=b"\xff\xfe"), "a name that is no text"),
    "an endless number": (b"\xff" * 99, "above 2\\^63"),
    "dtype": (record(dtype=4), "a form that is not known"),
    "form": (record(form=3), "a form that is not known"),
    "all of live ones": (record(form=4), "a form that is not known"),
    "kind": (record(kind=3), "a form that is not known"),
    "axes": (record(shape=(1,) * 65), "of 65 axes"),
    "twice": (record() + record(), "stands twice"),
    "a dense one twice": (record(name=b"1.weight"), "stands twice"),
    "too many values": (record(stored=60 * 288 + 1), "17281 values for the 17280 places"),
    "another shape": (record(shape=(60, 289)), r"has shape \(60, 289\), not \(60, 288\)"),
    "a huge shape": (record(shape=HUGE), r"has shape \(2147483648, 2147483648\), not"),
    "a foreign name": (record(name=b"x"), "lacks tensor '4.weight'|has a foreign tensor 'x'"),
    "all, but fewer": (record(form=0, places=b""), "2 values for 17280 places"),
    "places after all": (record(form=0, stored=17280), "bytes too many"),
    "mask of another length": (record(form=1, places=block(b"\0" * 2161)), "2161 bytes where 2160"),
    "mask of more ones": (
        record(form=1, places=squeeze(b"\x07" + b"\0" * 2159)), "marks 3 places for 2 values"),
    "mask that inflates on": (
        record(form=1, places=squeeze(b"\x03" + b"\0" * 2160)), "do not inflate to 2160"),
    "mask that stops": (
        record(form=1, places=squeeze(b"\x03" + b"\0" * 2158)), "do not inflate to 2160"),
    "mask without an end": (
        record(form=1, places=block(unended(b"\x03" + b"\0" * 2159))), "do not inflate"),
    "no deflate": (record(form=1, places=block(b"\xff\xff\xff")), "do not inflate"),
    "wide gaps": (record(places=b"\x3f" + bytes(16) + block(b"\x03")), "gaps of 63 bits"),
    "gaps beyond the end": (
        record(places=b"\x0e" + pack(np.array([16383, 16383]), 14) + block(b"\x03")),
        "beyond its 17280 places"),
    "a gap of zeros": (
        record(places=b"\x0e" + bytes(4) + block(b"\x00\x00\x81")), "beyond its 17280 places"),
    "fewer gaps": (record(places=b"\0" + block(b"\x01")), "holds 1 gaps for 2 values"),
    "more gaps": (record(places=b"\0" + block(b"\x07")), "holds 3 gaps for 2 values"),
    "gaps cut short": (record(places=b"\x08\x00"), "cut short"),
    "bytes after gaps": (record(places=b"\0" + block(b"\x03") + b"!"), "1 bytes too many"),
    "no live row": (
        record(form=6, places=bytes(8 + 36) + b"\0" + block(b"\x03")), "beyond its 0 places"),
    "live rows cut short": (record(form=6, places=bytes(9)), "cut short"),
    "fewer values": (record(numbers=4 * squeeze(b"1")), "do not inflate to 2"),
    "more values": (record(numbers=4 * squeeze(b"123")), "3 bytes where 2 belong"),
    "values after the last": (record(numbers=5 * squeeze(b"12")), "3 bytes too many"),
    "ends that are not finite": (
        record(kind=1, numbers=struct.pack("<2f", 0.0, math.nan) + squeeze(b"12")), "0.0 and nan"),
    "ends the wrong way": (
        record(kind=1, numbers=struct.pack("<2f", 1.0, 0.5) + squeeze(b"12")), "1.0 and 0.5"),
    "an entry beyond the book": (
        record(kind=2, numbers=count(2) + ENDS + squeeze(b"\x01\x02")), "entry 2 of a codebook"),
    "a book beyond the end": (record(kind=2, numbers=count(2**40)), "cut short"),
    "an empty book": (record(kind=2, numbers=count(0) + squeeze(b"\0\0")), "entry 0 of a codebook"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose codes hold '4.weight' and nothing else."""
    path = tmp_path_factory.mktemp("codes") / "saved"
    return sc.save(net(), None, path)


def recode(folder: Path, codes: Tensor) -> None:
    """The codes of '4.weight' in place of itself, under a digest that fits."""
    tensors, metadata = load_tensors(folder / WEIGHTS)
    tensors = {n: t for n, t in tensors.items() if n != "4.weight"}
    save_tensors(folder / WEIGHTS, {**tensors, NAME: codes}, metadata)


def as_bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def test_the_record_that_the_bad_ones_are_made_of_is_good(folder: Path) -> None:
    recode(folder, as_bytes(record()))
    weight = sc.load(folder, net())[4].weight.detach()
    want = torch.zeros(60, 288)
    want[0, :2] = torch.tensor([0x01010101, 0x02020202], dtype=torch.int32).view(torch.float32)
    assert torch.equal(weight, want)


@pytest.mark.parametrize("how", BAD)
def test_codes_that_lie_are_refused_and_nothing_is_changed(how: str, folder: Path) -> None:
    data, says = BAD[how]
    model = net()
    before = snapshot(model)
    recode(folder, as_bytes(data))
    with pytest.raises(FileError, match=says) as caught:
        sc.load(folder, model)
    assert str(folder / WEIGHTS) in str(caught.value)
    assert snapshot(model) == before


def test_codes_of_another_kind_are_refused(folder: Path) -> None:
    for codes in (torch.zeros(3), torch.zeros(3, 3, dtype=torch.uint8)):
        recode(folder, codes)
        with pytest.raises(FileError, match="no row of bytes"):
            sc.load(folder, net())


@given(
    seed=st.integers(0, 99),
    at=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    kind=st.sampled_from([values.EXACT, values.INT8, values.CODEBOOK]),
)
def test_a_changed_byte_gives_an_error_or_a_tensor(
    seed: int, at: float, byte: int, kind: int
) -> None:
    """Whatever the codes say, under a digest that fits: never a crash, and never another shape."""
    tensors = {"a": draw((20, 30), torch.float32, 0.1, 0.5, seed), "b": torch.zeros(9)}
    data = bytearray(encode(tensors, kind)[NAME].numpy().tobytes())
    data[int(at * len(data))] = byte
    try:
        for coded in read({NAME: as_bytes(bytes(data))}, "x").values():
            assert isinstance(coded, Coded)
            if math.prod(coded.shape) < 10**6:
                assert tuple(coded.tensor().shape) == coded.shape
    except FileError:
        pass


def test_packed_bits_start_at_the_lowest() -> None:
    assert pack_bits(np.array([1, 0, 0, 0, 0, 0, 0, 0, 1], bool)) == b"\x01\x01"
    assert pack(np.array([1, 2, 3]), 3) == bytes([0b11_010_001, 0b0])
