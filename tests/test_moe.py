"""Mixtures of experts: QTensor.moe against float64 and the kernels' own arithmetic, w[e], and what is refused.

On the CPU targets that this machine can run; IQ_TEST_DEVICE as in tests/test_kernels.py.
"""

import ml_dtypes
import numpy as np
import pytest

import iq
from iq.errors import DtypeError, FormatError, LayoutError, RowIndexError, ShapeError
from iq.formats import FORMATS
from iq.kernels.schedules import MOST_EXPERTS, picks_to_group
from iq.verify.references import (
    F16_NMSE,
    F32_NMSE,
    MUL_MAT_NMSE,
    Q8_1_MODEL_NMSE,
    dequantized,
    mul_mat_nmse,
    nmse,
    q8_1,
    random_weights,
)

WEIGHTS = [f for f in FORMATS.values() if f.kind != "activations"]
weights = pytest.mark.parametrize("fmt", WEIGHTS, ids=lambda f: f.name)
FEW, MANY = 3, 50  # tokens that take a matvec a pick, and that are grouped, where each picks 2 of 5 experts


def experts(device, fmt, e, n, k, seed=0):
    """A weight [E, N, K] on the device, and its float32 values."""
    packed = random_weights(fmt, e * n, k, np.random.default_rng(seed))
    return iq.QTensor.from_bytes(packed, fmt.name, (e, n, k), device), dequantized(fmt, packed).reshape(e, n, k)


def picked(rng, tokens, each, e, without=()):
    """Experts that tokens pick, none of those `without`: [tokens, each]."""
    some = [i for i in range(e) if i not in without]
    return np.array([rng.permutation(some)[:each] for _ in range(tokens)])


def product(x, values, ids):
    """[tokens, each, N] in float64."""
    return np.einsum("btnk,btk->btn", values[ids].astype(np.float64), np.broadcast_to(x, (*ids.shape, x.shape[-1])).astype(np.float64))


def vias(fmt):
    return ("q8_1", "float") if fmt.kind == "weights" else ("float",)


@weights
@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_products(device, fmt, rng, tokens, own):
    """Pick by pick: experts 1 and 3 have none, rows of activations are shared by a token's picks, or each pick has its own."""
    k = 2 * 256 if fmt.block_size == 256 else 3 * fmt.kernel_block_weights()
    w, values = experts(device, fmt, 5, 37, k)
    ids = picked(rng, tokens, 2, 5, without=(1, 3))
    x = rng.standard_normal((tokens, 2 if own else 1, k), dtype=np.float32)
    for via in vias(fmt):
        got = w.moe(x, ids, via=via).numpy()
        assert got.shape == (tokens, 2, 37)
        exact = F16_NMSE if device.target.matrix and fmt.kind == "weights" and tokens == MANY else F32_NMSE
        for b, t in np.ndindex(*ids.shape):
            row = x[b, t if own else 0][None]
            model = q8_1(row) if via == "q8_1" else row
            assert mul_mat_nmse(got[b, t][None], model, values[ids[b, t]]) <= (Q8_1_MODEL_NMSE if via == "q8_1" else exact)


@pytest.mark.parametrize("fmt", [FORMATS["q4_0"], FORMATS["q6_k"]], ids=lambda f: f.name)
@pytest.mark.parametrize("e", [4, 8])
@pytest.mark.parametrize("each", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 4, 5, 17, 32, 129])
def test_shapes_of_llama_cpp(device, fmt, rng, e, each, tokens):
    check_shape(device, fmt, rng, e, each, tokens)


def check_shape(device, fmt, rng, e, each, tokens):
    """test-backend-ops' MUL_MAT_ID: m = 512, k = 256, each pick with its own row of activations or all of a token with one."""
    w, values = experts(device, fmt, e, 512, 256)
    ids = picked(rng, tokens, each, e)
    for rows in {1, each}:
        x = rng.uniform(-1, 1, (tokens, rows, 256)).astype(np.float32)
        assert nmse(w.moe(x, ids).numpy(), product(x, values, ids)) <= MUL_MAT_NMSE


@pytest.mark.parametrize("e", [8, 160, MOST_EXPERTS])
@pytest.mark.parametrize("via", ["q8_1", "float"])
def test_from_one_pick_to_several_tiles_of_each_expert(device, rng, e, via):
    fmt = FORMATS["q4_0"]
    w, values = experts(device, fmt, e, 3, 32)
    most = picks_to_group(device.target) * e
    for picks in (1, most, most + 1, 20 * e):
        ids = rng.integers(0, e, (picks, 1)) if picks % 2 else picked(rng, picks // 2, 2, e)
        x = rng.standard_normal((len(ids), 1, 32), dtype=np.float32)
        assert nmse(w.moe(x, ids, via=via).numpy(), product(x, values, ids)) <= (2 if picks == 1 else 1) * MUL_MAT_NMSE


def test_tens_of_thousands_of_picks(device, rng):
    w, values = experts(device, FORMATS["q8_0"], 9, 2, 32)
    ids = rng.integers(0, 9, (13_001, 2))
    x = rng.standard_normal((13_001, 1, 32), dtype=np.float32)
    assert nmse(w.moe(x, ids).numpy(), product(x, values, ids)) <= MUL_MAT_NMSE


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_all_picks_of_one_expert(device, rng, tokens):
    w, values = experts(device, FORMATS["q4_k"], 5, 19, 256)
    x = rng.standard_normal((tokens, 1, 256), dtype=np.float32)
    ids = np.full((tokens, 3), 4)
    got = w.moe(x, ids).numpy()
    assert nmse(got, product(x, values, ids)) <= MUL_MAT_NMSE
    assert np.array_equal(got[:, 0], got[:, 1])
    assert np.array_equal(got[:, 0], got[:, 2])


@pytest.mark.parametrize("via", ["q8_1", "float"])
def test_a_result_depends_on_its_own_pick_only(device, rng, via):
    """Not on what else is picked, nor in which order: the same bits, wherever among the grouped picks."""
    w, _ = experts(device, FORMATS["q4_k"], 4, 33, 512)
    x = rng.standard_normal((40, 1, 512), dtype=np.float32)
    ids = picked(rng, 40, 2, 4)
    got = w.moe(x, ids, via=via).numpy()
    assert np.array_equal(w.moe(x, ids, via=via).numpy(), got)
    order = rng.permutation(40)
    assert np.array_equal(w.moe(x[order], ids[order], via=via).numpy(), got[order])
    assert np.array_equal(w.moe(x, ids[:, ::-1], via=via).numpy(), got[:, ::-1])
    x[7, 0, 100] = np.nan
    spoilt = w.moe(x, ids, via=via).numpy()
    others = np.arange(40) != 7
    assert not np.isfinite(spoilt[7]).any()
    assert np.array_equal(spoilt[others], got[others])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_activations_are_taken_as_f32(device, rng, dtype):
    w, _ = experts(device, FORMATS["q8_0"], 3, 5, 64)
    x = rng.standard_normal((4, 1, 64), dtype=np.float32).astype(dtype)
    ids = picked(rng, 4, 2, 3)
    assert np.array_equal(w.moe(x, ids).numpy(), w.moe(x.astype(np.float32), ids).numpy())


def test_ids_out_and_stream(dev, rng):
    w, _ = experts(dev, FORMATS["q4_0"], 3, 5, 64)
    x = rng.standard_normal((4, 1, 64), dtype=np.float32)
    ids = picked(rng, 4, 2, 3)
    want = w.moe(x, ids).numpy()
    for same in (ids.tolist(), ids.astype(np.uint8), dev.put(ids.astype(np.int32)), dev.put(ids)):
        assert np.array_equal(w.moe(x, same).numpy(), want)
    out = dev.zeros((4, 2, 5), "float32")
    assert w.moe(dev.put(x), ids, out=out) is out
    assert np.array_equal(out.numpy(), want)
    stream = dev.stream()
    out.fill_zero()
    dev.synchronize()
    w.moe(x, ids, out=out, stream=stream)
    stream.synchronize()
    assert np.array_equal(out.numpy(), want)
    # As many axes before those of the picks as there are.
    assert np.array_equal(w.moe(x[:, 0][:, None], ids.reshape(4, 2)).numpy(), want)
    assert np.array_equal(w.moe(x.reshape(2, 2, 1, 64), ids.reshape(2, 2, 2)).numpy(), want.reshape(2, 2, 2, 5))
    assert np.array_equal(w.moe(x[0], ids[0]).numpy(), want[0])


def test_nothing_to_multiply(dev):
    w, _ = experts(dev, FORMATS["q4_0"], 3, 5, 64)
    x, ids = np.zeros((0, 1, 64), np.float32), np.zeros((0, 2), np.int64)
    assert w.moe(x, ids).shape == (0, 2, 5)
    assert w.moe(np.zeros((4, 1, 64), np.float32), np.zeros((4, 0), np.int64)).shape == (4, 0, 5)
    empty = iq.QTensor.from_bytes(np.zeros((3, 5, 0), np.uint8), "q4_0", (3, 5, 0), dev)
    assert np.array_equal(empty.moe(np.zeros((1, 1, 0), np.float32), [[0, 2]]).numpy(), np.zeros((1, 2, 5), np.float32))


def test_what_moe_refuses(dev):
    w, _ = experts(dev, FORMATS["q4_0"], 3, 5, 64)
    x, ids = np.zeros((4, 1, 64), np.float32), np.zeros((4, 2), np.int64)
    for wrong in (3, -1):
        ids[2, 1] = wrong
        with pytest.raises(RowIndexError, match=rf"moe: id {wrong} at \(2, 1\) is outside the tensor's 3 experts"):
            w.moe(x, ids)
        with pytest.raises(RowIndexError):
            w.moe(x, dev.put(ids))
    ids[:] = 0
    for shape in ((4, 64), (4, 3, 64), (3, 1, 64), (4, 1, 32), (8, 64), (64,)):
        with pytest.raises(ShapeError, match=r"moe: x has shape .*\[\.\.\., 1 or as many, 64\]"):
            w.moe(np.zeros(shape, np.float32), ids)
    with pytest.raises(ShapeError, match="moe: x has shape"):
        w.moe(x, 1)
    with pytest.raises(DtypeError, match="ids are integers"):
        w.moe(x, ids.astype(np.float32))
    with pytest.raises(DtypeError, match="x holds i32"):
        w.moe(x.astype(np.int32), ids)
    with pytest.raises(FormatError, match="via='q4'"):
        w.moe(x, ids, via="q4")
    with pytest.raises(ShapeError, match="out has shape"):
        w.moe(x, ids, out=dev.alloc((4, 5), "float32"))
    with pytest.raises(DtypeError, match="out holds f16"):
        w.moe(x, ids, out=dev.alloc((4, 2, 5), "float16"))
    both = dev.zeros((4, 2, 64), "float32")
    with pytest.raises(LayoutError, match="shares memory"):
        experts(dev, FORMATS["q4_0"], 3, 64, 64)[0].moe(both, ids, out=both)
    with pytest.raises(ShapeError, match=r"moe: takes a weight of shape \(E, N, K\), this one has \(15, 64\)"):
        iq.QTensor.from_bytes(w.to_bytes(), "q4_0", (15, 64), dev).moe(x, ids)
    with pytest.raises(ShapeError, match=r"w\[e\] is one of its matrices"):
        w.matmul(x)


def test_one_expert(dev, rng):
    """w[e] shares the weight's memory, and is multiplied like any other."""
    w, values = experts(dev, FORMATS["q4_k"], 3, 8, 512)
    x = rng.standard_normal((2, 512), dtype=np.float32)
    for e in range(3):
        one = w[e]
        assert one.shape == (8, 512)
        assert np.array_equal(one.to_bytes(), w.to_bytes()[e])
        assert np.array_equal(one.dequantize().numpy(), values[e])
        assert nmse(one.matmul(x).numpy(), x.astype(np.float64) @ values[e].T) <= MUL_MAT_NMSE
    assert np.array_equal(w[-1].to_bytes(), w.to_bytes()[2])
    assert np.array_equal(w[np.int64(1)].to_bytes(), w.to_bytes()[1])
    last = w[2]
    del w
    assert np.array_equal(last.dequantize().numpy(), values[2])
    with pytest.raises(IndexError):
        experts(dev, FORMATS["q4_k"], 3, 8, 512)[0][3]
    with pytest.raises(ShapeError, match=r"w\[e\]: takes a weight of shape \(E, N, K\)"):
        last[0]
    odd, _ = experts(dev, FORMATS["q4_0"], 3, 1, 32)
    with pytest.raises(LayoutError, match="kernels need a multiple"):
        odd[1]


@weights
def test_rows_of_all_experts(device, fmt):
    """dequantize gives the weight's shape; get_rows counts rows through all experts."""
    k = fmt.kernel_block_weights()
    w, values = experts(device, fmt, 4, 3, k)
    assert np.array_equal(w.dequantize().numpy(), values)
    ids = np.array([[0, 11], [4, 8]])
    assert np.array_equal(w.get_rows(ids).numpy(), values.reshape(12, k)[ids])
    with pytest.raises(RowIndexError, match="12 rows"):
        w.get_rows([12])
