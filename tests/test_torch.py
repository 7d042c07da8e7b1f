"""Tensors of torch: as activations and weights of QTensor, in operators, in a layer. IQ_TEST_DEVICE=cuda: on a GPU."""

import copy
import gc
import io
import pickle
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import BUNDLE, SPEC

import iq
from iq import torch_tensors
from iq.device import device_named
from iq.errors import DeviceError, DtypeError, FormatError, LayoutError, RowIndexError, ShapeError
from iq.runtime import dlpack
from iq.torch_tensors import device_of, spare_bytes

torch = pytest.importorskip("torch")
qt = pytest.importorskip("iq.torch")

DOCS = Path(__file__).parent.parent / "docs" / "torch.md"

ON_GPU = SPEC != "cpu"
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="for a GPU: IQ_TEST_DEVICE=cuda")
only_cpu = pytest.mark.skipif(ON_GPU, reason="of the CPU")
GPU = torch.device("cuda", int(SPEC.partition(":")[2] or 0)) if ON_GPU else None
WHERE = GPU or torch.device("cpu")

# q4_k's blocks are a multiple of 16 bytes, so that kernels do not read past them; those of q4_0 and q6_k are not.
FORMATS = ["q4_0", "q4_k", "q6_k", "f16"]
N, K = 37, 256


@pytest.fixture(autouse=True)
def kernels(environment, monkeypatch):
    """iq.torch opens devices by their names: with the bundle of the run, if there is one."""
    if BUNDLE:
        monkeypatch.setenv("IQ_BUNDLE_PATH", BUNDLE)


@pytest.fixture
def on():
    """The device of the tensors."""
    return device_named(device_of(torch.empty(0, device=WHERE)).name)


def blocks(format, n=N, k=K, seed=0):
    return iq.quantize(np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32), format)


def packed(format, n=N, k=K, seed=0):
    """A weight as a tensor that can be read in place."""
    return qt.padded(torch.from_numpy(blocks(format, n, k, seed)).to(WHERE))


def numbers(format, n=N, k=K, seed=0):
    """The same weight's numbers: float64."""
    return torch.from_numpy(iq.dequantize(blocks(format, n, k, seed), format)).to(WHERE).double()


def randn(*shape, dtype=None, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(WHERE, dtype or torch.float32)


def close(got, want, tolerance=1e-3):
    """Whether the normalised squared error is small; q8_1 activations are good for about 1e-4."""
    return got.shape == want.shape and ((got.double() - want) ** 2).sum() <= tolerance * (want**2).sum()


# ---- Activations of QTensor.matmul


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(K,), (1, K), (2, 3, K), (20, K), (0, K)], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_a_product(on, format, shape, dtype):
    w = iq.QTensor.from_bytes(blocks(format), format, (N, K), on)
    x = randn(*shape, dtype=dtype)
    y = w.matmul(x)
    assert (y.dtype, y.device, y.shape) == (torch.float32, WHERE, (*shape[:-1], N))
    assert close(y, x.double() @ numbers(format).T)
    assert np.array_equal(y.cpu().numpy(), w.matmul(x.float().cpu().numpy()).numpy())


def test_a_result_is_written_where_it_is_wanted(on):
    w = iq.QTensor.from_bytes(blocks("q4_k"), "q4_k", (N, K), on)
    x, out = randn(3, K), torch.full((3, N), torch.nan, device=WHERE)
    assert w.matmul(x, out=out) is out
    assert torch.equal(out, w.matmul(x))
    empty = torch.empty(0, N, device=WHERE)
    assert w.matmul(randn(0, K), out=empty) is empty


@pytest.mark.parametrize(
    ("out", "error", "said"),
    [
        (lambda x: torch.empty(3, N + 1, device=WHERE), ShapeError, "out has shape"),
        (lambda x: torch.empty(3, N, device=WHERE, dtype=torch.float16), DtypeError, "float16"),
        (lambda x: torch.empty(N, 3, device=WHERE).T, LayoutError, "C-contiguous"),
        (lambda x: x.view(-1)[: 3 * N].view(3, N), LayoutError, "shares memory"),
        (lambda x: np.empty((3, N), np.float32), DtypeError, "has to be one"),
        (lambda x: torch.empty(3, N, device="meta"), DeviceError, "meta"),
        (lambda x: torch.empty(3, N, device=WHERE, requires_grad=True), DtypeError, "gradients"),
        (lambda x: torch.empty(3 * N + 1, device=WHERE)[1:].view(3, N), LayoutError, "boundary"),
    ],
    ids=["shape", "dtype", "strides", "overlap", "numpy", "device", "gradient", "alignment"],
)
def test_results_that_are_refused(on, out, error, said):
    w = iq.QTensor.from_bytes(blocks("q4_k"), "q4_k", (N, K), on)
    x = randn(3, K)
    before = x.clone()
    with pytest.raises(error, match=said):
        w.matmul(x, out=out(x))
    assert torch.equal(x, before)


def test_activations_that_are_refused(on):
    w = iq.QTensor.from_bytes(blocks("q4_k"), "q4_k", (N, K), on)
    for x, error, said in (
        (randn(3, K + 1), ShapeError, "last axis"),
        (torch.tensor(1.0, device=WHERE), ShapeError, "last axis"),
        (randn(K, 3).T, LayoutError, "contiguous"),
        (torch.zeros(3, K, dtype=torch.int32, device=WHERE), DtypeError, "int32"),
        (torch.zeros(3, K, dtype=torch.float64, device=WHERE), DtypeError, "float64"),
        (torch.empty(3, K, device="meta"), DeviceError, "meta"),
        (randn(3, K).requires_grad_(), DtypeError, r"iq\.torch"),
    ):
        with pytest.raises(error, match=said):
            w.matmul(x)
    with pytest.raises(FormatError):
        w.matmul(randn(3, K), via="nothing")


def test_no_gradient_is_wanted(on):
    w = iq.QTensor.from_bytes(blocks("q4_k"), "q4_k", (N, K), on)
    x = randn(3, K)
    want = w.matmul(x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(w.matmul(x.clone().requires_grad_()), want)


def test_a_negation_that_has_not_been_made(on):
    w = iq.QTensor.from_bytes(blocks("q4_k"), "q4_k", (N, K), on)
    x = randn(3, K)
    assert torch.equal(w.matmul(torch._neg_view(x)), w.matmul(-x))


@only_cpu
def test_an_emulated_gpu_takes_no_tensors():
    pytest.importorskip("elftools")
    w = iq.QTensor.from_bytes(blocks("q4_k"), "q4_k", (N, K), "emulated:gfx1100")
    with pytest.raises(DeviceError, match="not on Device"):
        w.matmul(randn(3, K))


def test_torch_for_rocm_calls_its_gpus_cuda(monkeypatch):
    index = torch_tensors._index
    try:
        for hip, mine, other in (("7.1", dlpack.ROCM, dlpack.CUDA), (None, dlpack.CUDA, dlpack.ROCM)):
            monkeypatch.setattr(torch.version, "hip", hip)
            index.cache_clear()
            assert torch_tensors.gpu_kind() == ("hip" if hip else "cuda")
            assert [index((mine, 1)), index((other, 1)), index((dlpack.CPU, 0)), index(None)] == [1, -2, -1, -2]
    finally:
        index.cache_clear()


# ---- Weights of torch's


@pytest.mark.parametrize("format", FORMATS)
def test_packed_weights_are_shared(on, format):
    t = packed(format)
    w = iq.QTensor.from_bytes(t, format, (N, K), on, copy=False)
    assert w._packed.address == t.data_ptr()
    assert np.array_equal(w.to_bytes(), blocks(format))
    x = randn(3, K)
    assert close(w.matmul(x), x.double() @ numbers(format).T)
    assert iq.QTensor.from_bytes(t, format, (N, K), on)._packed.address == t.data_ptr()
    assert iq.QTensor.from_bytes(t, format, (N, K), on, copy=True)._packed.address != t.data_ptr()


def test_packed_weights_are_kept_alive(on):
    t = packed("q4_k")
    kept = weakref.ref(t.untyped_storage() if not ON_GPU else t)
    w = iq.QTensor.from_bytes(t, "q4_k", (N, K), on, copy=False)
    y = w.dequantize()
    if ON_GPU:
        del t, w
        gc.collect()
        assert kept() is not None
        on.synchronize()
        on.synchronize()
        assert kept() is None
    else:
        del t, kept
        gc.collect()
        assert np.array_equal(w.to_bytes(), blocks("q4_k"))
    assert np.array_equal(y.numpy(), iq.dequantize(blocks("q4_k"), "q4_k"))


def test_packed_weights_that_are_refused(on):
    t = packed("q4_k")
    with pytest.raises(DtypeError, match="int8"):
        iq.QTensor.from_bytes(t.view(torch.int8), "q4_k", (N, K), on)
    with pytest.raises(LayoutError, match="C-contiguous"):
        iq.QTensor.from_bytes(t.T, "q4_k", (N, K), on)
    with pytest.raises(ShapeError):
        iq.QTensor.from_bytes(t, "q4_k", (N + 1, K), on)
    odd = torch.zeros(t.numel() + 1, dtype=torch.uint8, device=WHERE)[1:]
    with pytest.raises(LayoutError):
        iq.QTensor.from_bytes(odd, "q4_k", (N, K), on, copy=False)
    odd.copy_(t.view(-1))
    assert np.array_equal(iq.QTensor.from_bytes(odd, "q4_k", (N, K), on).to_bytes(), blocks("q4_k"))


@needs_gpu
def test_a_gpu_copies_what_lacks_spare_bytes(on):
    for format, shared in (("q4_0", False), ("q6_k", False), ("q4_k", True)):
        t = torch.from_numpy(blocks(format)).to(WHERE)
        assert spare_bytes(t) == 0
        w = iq.QTensor.from_bytes(t, format, (N, K))
        assert w.device is on
        assert (w._packed.address == t.data_ptr()) == shared
        assert np.array_equal(w.to_bytes(), blocks(format))
        if not shared:
            with pytest.raises(LayoutError, match=r"iq\.torch\.padded"):
                iq.QTensor.from_bytes(t, format, (N, K), copy=False)
            with pytest.raises(LayoutError, match=r"iq\.torch\.padded"):
                qt.mul_mat(t, randn(3, K), format, N)
            qt.mul_mat(qt.padded(t), randn(3, K), format, N)


@needs_gpu
def test_tensors_cross_through_the_host(on):
    pytest.importorskip("iree.runtime")
    t = packed("q4_0")
    w = iq.QTensor.from_bytes(t, "q4_0", (N, K), "cpu")
    assert w.device.is_cpu
    assert np.array_equal(w.to_bytes(), blocks("q4_0"))
    assert np.array_equal(iq.QTensor.from_bytes(t.cpu(), "q4_0", (N, K), on).to_bytes(), blocks("q4_0"))
    for there, device in ((t, "cpu"), (t.cpu(), on)):
        with pytest.raises(DeviceError, match="copy=None"):
            iq.QTensor.from_bytes(there, "q4_0", (N, K), device, copy=False)
    with pytest.raises(DeviceError, match="cross through the host"):
        w.matmul(randn(3, K))
    with pytest.raises(DeviceError, match="cross through the host"):
        iq.QTensor.from_bytes(t, "q4_0", (N, K)).matmul(randn(3, K).cpu())


def test_buffers_and_tensors_are_shared(on):
    w = iq.QTensor.from_bytes(blocks("q4_k"), "q4_k", (N, K), on)
    t = torch.from_dlpack(w.dequantize())
    assert t.device == WHERE
    assert torch.equal(t.double(), numbers("q4_k"))
    assert torch.equal(torch.from_dlpack(w.get_rows(torch.tensor([3, 1], device=WHERE))), t[[3, 1]])
    assert torch.from_dlpack(w.dequantize("bfloat16")).dtype is torch.bfloat16
    source = torch.arange(64, dtype=torch.bfloat16, device=WHERE)
    buffer = on.from_dlpack(source, copy=False)
    assert (buffer.element, buffer.address) == ("bf16", source.data_ptr())
    source.fill_(3)
    if ON_GPU:
        torch.cuda.synchronize(GPU)
    assert np.all(buffer.numpy() == 3)


# ---- The operators


@pytest.mark.parametrize("via", [None, "float"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_mul_mat(format, dtype, via):
    w, x = packed(format), randn(2, 3, K, dtype=dtype)
    y = qt.mul_mat(w, x, format, N, via)
    assert (y.dtype, y.shape, y.device) == (dtype, (2, 3, N), WHERE)
    assert close(y, x.double() @ numbers(format).T)
    assert torch.equal(qt.mul_mat(w.view(-1), x, format, N, via), y)
    strided = torch.stack([x, x], -1)[..., 0]
    assert torch.equal(qt.mul_mat(w, strided, format, N, via), y)
    assert qt.mul_mat(w, x[:0], format, N, via).shape == (0, 3, N)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_numbers_and_rows(format, dtype):
    w = packed(format)
    want = numbers(format).to(dtype)
    assert torch.equal(qt.dequantize(w, format, (N, K), dtype), want)
    assert torch.equal(qt.dequantize(w, format, (N * K,), dtype), want.view(-1))
    for ids in (torch.tensor([[5, 0], [5, N - 1]]), torch.tensor(2), torch.tensor([], dtype=torch.int32)):
        assert torch.equal(qt.get_rows(w, ids.to(WHERE), format, K, dtype), want[ids.long()])


def test_what_operators_refuse():
    w, x = packed("q4_k"), randn(3, K)
    for call, error, said in (
        (lambda: qt.mul_mat(w, x, "q4_9", N), FormatError, "q4_9"),
        (lambda: qt.mul_mat(w, x, "q8_1", N), FormatError, "q8_1"),
        (lambda: qt.mul_mat(w, x, "q4_k", N + 1), ShapeError, "bytes"),
        (lambda: qt.mul_mat(w, randn(3, K + 1), "q4_k", N), ShapeError, "multiples"),
        (lambda: qt.mul_mat(w, x.double(), "q4_k", N), DtypeError, "float64"),
        (lambda: qt.mul_mat(w.view(torch.int8), x, "q4_k", N), DtypeError, "int8"),
        (lambda: qt.mul_mat(w.T.contiguous().T, x, "q4_k", N), LayoutError, r"iq\.torch\.padded"),
        (lambda: qt.dequantize(w, "q4_k", (), torch.float32), ShapeError, "no axis"),
        (lambda: qt.dequantize(w, "q4_k", (N, K), torch.int32), DtypeError, "int32"),
        (lambda: qt.get_rows(w, torch.zeros(1, device=WHERE), "q4_k", K), DtypeError, "integers"),
    ):
        with pytest.raises(error, match=said):
            call()
    if not ON_GPU:
        for bad in (-1, N):
            with pytest.raises(RowIndexError, match=f"the weight has {N} rows"):
                qt.get_rows(w, torch.tensor([0, bad]), "q4_k", K)


@pytest.mark.parametrize("format", FORMATS)
def test_gradients(format):
    w, x = packed(format), randn(3, K).requires_grad_()
    y = qt.mul_mat(w, x, format, N)
    weights = randn(3, N, seed=2)
    (y * weights).sum().backward()
    assert close(x.grad, weights.double() @ numbers(format), 1e-9)
    half = randn(3, K, dtype=torch.float16).requires_grad_()
    qt.mul_mat(w, half, format, N).sum().backward()
    assert half.grad.dtype is torch.float16
    assert not qt.mul_mat(w, x.detach(), format, N).requires_grad


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tokens", [3, 60])
def test_experts_that_tokens_pick(format, tokens):
    """A matvec a pick, and picks that are grouped: rows of activations that a token's picks share, and rows of their own."""
    w, values = packed(format, 4 * N), numbers(format, 4 * N).view(4, N, K)
    ids = torch.randint(4, (tokens, 2), generator=torch.Generator().manual_seed(2)).to(WHERE)
    for rows in (1, 2):
        x = randn(tokens, rows, K)
        want = torch.einsum("btnk,btk->btn", values[ids], x.expand(tokens, 2, K).double())
        assert close(qt.moe(w, x, ids, format, N), want)
        assert close(qt.moe(w, x.half(), ids.int(), format, N), want)
        assert qt.moe(w, x.half(), ids, format, N).dtype is torch.float16
    assert qt.moe(w, randn(0, 1, K), ids[:0], format, N).shape == (0, 2, N)


def test_what_moe_refuses():
    w, x, ids = packed("q4_k", 3 * N), randn(2, 1, K), torch.zeros(2, 2, dtype=torch.int64, device=WHERE)
    with pytest.raises(ShapeError, match=r"moe: x has shape \(2, 3, 256\)"):
        qt.moe(w, randn(2, 3, K), ids, "q4_k", N)
    with pytest.raises(ShapeError, match="weights of shape"):
        qt.moe(w, x, ids, "q4_k", N + 1)
    with pytest.raises(DtypeError, match="ids are integers"):
        qt.moe(w, x, ids.float(), "q4_k", N)
    with pytest.raises(DtypeError, match="no gradient"):
        qt.moe(w, x.clone().requires_grad_(), ids, "q4_k", N).sum().backward()
    if not ON_GPU:
        ids[1, 0] = 3
        with pytest.raises(RowIndexError, match="ids from 0 to 3; the weight has 3 experts"):
            qt.moe(w, x, ids, "q4_k", N)


# On a GPU opcheck copies the weight, without its spare bytes, which only some formats do without.
@pytest.mark.parametrize("format", ["q4_k", "f16"] if ON_GPU else FORMATS)
def test_torch_checks_the_operators(format):
    w, ids = packed(format), torch.tensor([[3, 1], [0, 2]], device=WHERE)
    ops = torch.ops.iq
    for operator, arguments in (
        (ops.mul_mat, (w, randn(3, K), format, N)),
        (ops.mul_mat, (w, randn(3, K).requires_grad_(), format, N)),
        (ops.mul_mat, (w.view(-1), randn(2, 3, K, dtype=torch.float16), format, N, "float")),
        (ops.dequantize, (w, format, [N, K], torch.bfloat16)),
        (ops.get_rows, (w, ids, format, K, torch.float32)),
        (ops.moe, (packed(format, 4 * N), randn(2, 1, K), ids, format, N)),
        (ops.moe, (packed(format, 4 * N), randn(2, 2, K, dtype=torch.bfloat16), ids, format, N, "float")),
    ):
        checked = torch.library.opcheck(operator.default, arguments)
        assert set(checked.values()) == {"SUCCESS"}


def test_meta_tensors():
    w, x = packed("q4_k").to("meta"), torch.empty(3, K, device="meta", dtype=torch.float16)
    y = qt.mul_mat(w, x, "q4_k", N)
    assert (y.shape, y.dtype, y.device.type) == ((3, N), torch.float16, "meta")
    with pytest.raises(ShapeError):
        qt.mul_mat(w, x, "q4_k", N + 1)


# ---- The layer


def layer(format, bias=True):
    torch.manual_seed(0)
    return qt.QLinear.from_float(torch.nn.Linear(K, N, bias=bias, device=WHERE), format)


def pads(module):
    return spare_bytes(module.weight.data) >= 16 and module.weight.data_ptr() % 64 == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("format", FORMATS)
def test_a_linear_layer_is_quantized(format, bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(K, N, bias=bias, device=WHERE)
    q = qt.QLinear.from_float(linear, format)
    x = randn(2, 3, K)
    assert close(q(x), linear(x).detach().double(), 0.03)
    assert np.array_equal(q.weight.cpu().numpy(), iq.quantize(linear.weight.detach().cpu().numpy(), format))
    assert [(name, p.dtype, p.requires_grad) for name, p in q.named_parameters()] == [("weight", torch.uint8, False)]
    assert [name for name, _ in q.named_buffers()] == ["bias"] * bias
    assert repr(q) == f"QLinear(in_features={K}, out_features={N}, format='{format}', bias={bias})"
    assert pads(q)
    assert torch.equal(q.dequantize(), qt.dequantize(q.weight, format, (N, K)))
    assert q(x.half()).dtype is torch.float16


def test_an_imatrix_is_heard():
    torch.manual_seed(0)
    linear, imatrix = torch.nn.Linear(K, N), np.square(np.random.default_rng(3).standard_normal(K, dtype=np.float32))
    want = iq.quantize(linear.weight.detach().numpy(), "q4_0", imatrix)
    assert np.array_equal(qt.QLinear.from_float(linear, "q4_0", imatrix).weight.numpy(), want)


def test_a_tensor_of_a_file(tmp_path):
    pytest.importorskip("gguf")
    file = tmp_path / "model.gguf"
    iq.gguf.write(file, {"up": (blocks("q6_k"), "q6_k", (N, K)), "flat": (blocks("f16")[0], "f16", (K,))})
    q = qt.QLinear.from_gguf(file, "up")
    assert (q.in_features, q.out_features, q.format, q.bias) == (K, N, "q6_k", None)
    assert np.array_equal(q.weight.numpy(), blocks("q6_k"))
    assert pads(q)
    with iq.gguf.open(file) as opened:
        assert torch.equal(qt.QLinear.from_gguf(opened, "up").weight, q.weight)
        with pytest.raises(ShapeError, match="flat"):
            qt.QLinear.from_gguf(opened, "flat")


@pytest.mark.parametrize("assign", [False, True])
def test_the_state_goes_out_and_comes_in(assign):
    q, x = layer("q6_k"), randn(3, K)
    want = q(x)
    stored = io.BytesIO()
    torch.save(q.state_dict(), stored)
    stored.seek(0)
    other = qt.QLinear(K, N, "q6_k", bias=True, device=WHERE)
    assert not other(x).any()
    other.load_state_dict(torch.load(stored), assign=assign)
    assert pads(other)
    assert torch.equal(other(x), want)
    bare = {name: tensor.clone() for name, tensor in q.state_dict().items()}
    other = qt.QLinear(K, N, "q6_k", bias=True, device="meta" if assign else WHERE)
    other.load_state_dict(bare, assign=assign)
    assert pads(other)
    assert torch.equal(other(x), want)


def test_the_state_of_another_format():
    """Blocks of q4_0 and q4_k are as many bytes a weight."""
    outer = torch.nn.Sequential(layer("q4_0"))
    other = torch.nn.Sequential(qt.QLinear(K, N, "q4_k", bias=True, device=WHERE))
    with pytest.raises(RuntimeError, match=r"0\.weight holds q4_0, the layer takes q4_k"):
        other.load_state_dict(outer.state_dict())
    assert not other[0].weight.any()
    stored = io.BytesIO()
    torch.save(outer.state_dict(), stored)
    stored.seek(0)
    with pytest.raises(RuntimeError, match="holds q4_0"):
        other.load_state_dict(torch.load(stored))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "to", "double", "share", "clone"])
def test_the_spare_bytes_stay(how):
    q, x = layer("q6_k"), randn(3, K)
    want = q(x)
    weight = q.weight
    if how == "deepcopy":
        q = copy.deepcopy(q)
    elif how == "pickle":
        q = pickle.loads(pickle.dumps(q))  # noqa: S301 (our own)
    elif how == "to":
        q = q.to("meta").to_empty(device=WHERE)
        q.load_state_dict(layer("q6_k").state_dict())
    elif how == "double":
        q.double()
        assert (q.weight.dtype, q.bias.dtype) == (torch.uint8, torch.float64)
    elif how == "share":
        if ON_GPU:
            pytest.skip("of the CPU")
        q.share_memory()
        assert q.weight is weight
    else:
        q._apply(torch.clone)
        assert q.weight is weight
    assert pads(q)
    assert torch.allclose(q(x), want)


def test_padded():
    bare = torch.from_numpy(blocks("q4_0")).to(WHERE).clone()
    better = qt.padded(bare)
    assert torch.equal(bare, better)
    assert spare_bytes(better) >= 16
    assert qt.padded(better) is better
    assert qt.padded(better[1:]) is not better  # off the boundary
    assert torch.equal(qt.padded(bare.T), bare.T)
    with pytest.raises(DtypeError, match="int8"):
        qt.padded(bare.view(torch.int8))


def test_layers_that_are_refused():
    with pytest.raises(FormatError, match="q8_1"):
        qt.QLinear(K, N, "q8_1")
    with pytest.raises(ShapeError, match="multiple of 256"):
        qt.QLinear(K + 32, N, "q4_k")


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_layer(backend):
    if backend == "inductor":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:
            pytest.skip(f"no C++ compiler: {error}")
    torch._dynamo.reset()
    model = torch.nn.Sequential(layer("q4_0"), torch.nn.ReLU())
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for x in (randn(3, K), randn(5, K, seed=4), randn(3, K).requires_grad_()):
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
    compiled(x).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
    with torch.inference_mode():
        assert torch.allclose(model(x), compiled(x), atol=1e-6)


# ---- Streams and graphs of a GPU


def busy():
    """Some milliseconds of work on torch's current stream."""
    torch.cuda._sleep(20_000_000)


@needs_gpu
@pytest.mark.parametrize("how", ["tensor", "operator", "dlpack"])
def test_products_are_ordered_on_torchs_side_streams(on, how):
    w = iq.QTensor.from_bytes(blocks("q4_0"), "q4_0", (N, K), on)
    x, weight = randn(3, K), packed("q4_0")
    want = w.matmul(x)
    torch.cuda.synchronize()
    for _ in range(5):
        side = torch.cuda.Stream(GPU)
        with torch.cuda.stream(side):
            late = torch.zeros_like(x)
            busy()
            late.copy_(x)
            if how == "tensor":
                y = w.matmul(late)
            elif how == "operator":
                y = qt.mul_mat(weight, late, "q4_0", N)
            else:
                y = torch.from_dlpack(w.matmul(on.from_dlpack(late)))
            result = y + 0
        side.synchronize()
        assert torch.equal(result, want)


@needs_gpu
def test_a_weight_is_there_before_the_first_product(on):
    """It is uploaded on iq's stream and used on torch's."""
    packed = blocks("q4_0", 4096, 4096)
    x = randn(1, 4096)
    want = x.double() @ torch.from_numpy(iq.dequantize(packed, "q4_0")).to(WHERE).double().T
    for _ in range(3):
        assert close(iq.QTensor.from_bytes(packed, "q4_0", (4096, 4096), on).matmul(x), want)


@needs_gpu
@pytest.mark.parametrize("m", [1, 20])
@pytest.mark.parametrize("how", ["tensor", "given", "layer"])
def test_torch_captures_products(on, how, m):
    q = layer("q4_0")
    w = iq.QTensor.from_bytes(q.weight, "q4_0", (N, K), on)
    x, out = randn(m, K), torch.empty(m, N, device=WHERE)
    call = {"tensor": lambda: w.matmul(x), "given": lambda: w.matmul(x, out=out), "layer": lambda: q(x)}[how]
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = call()
    for seed in range(5, 10):
        x.copy_(randn(m, K, seed=seed))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, call())


@needs_gpu
def test_what_is_captured_by_iq_or_on_another_stream_is_refused(on):
    w = iq.QTensor.from_bytes(blocks("q4_0"), "q4_0", (N, K), on)
    x = randn(3, K)
    w.matmul(x)
    with pytest.raises(DeviceError, match="torch's current stream"):
        w.matmul(x, stream=on.stream())
    w.matmul(x, stream=torch.cuda.current_stream(GPU))
    with on.capture(), pytest.raises(DeviceError, match=r"torch\.cuda\.graph captures"):
        w.matmul(x)


@needs_gpu
def test_threads(on):
    w = iq.QTensor.from_bytes(blocks("q4_0"), "q4_0", (N, K), on)
    wrong = []

    def work(seed):
        side = torch.cuda.Stream(GPU)
        x = randn(3, K, seed=seed)
        torch.cuda.synchronize()
        with torch.cuda.stream(side), torch.no_grad():
            want = w.matmul(x).clone()
            wrong.extend(seed for _ in range(200) if not torch.equal(w.matmul(x), want))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (11, 12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_gpu
def test_cupy_and_jax_arrays_are_read_in_place(on):
    w = iq.QTensor.from_bytes(blocks("q4_0"), "q4_0", (N, K), on)
    x = randn(3, K).cpu().numpy()
    want = w.matmul(x).numpy()
    cupy = pytest.importorskip("cupy")
    assert np.array_equal(cupy.from_dlpack(w.matmul(cupy.asarray(x))).get(), want)
    assert np.array_equal(on.from_dlpack(cupy.asarray(x)).numpy(), x)


# ---- Without torch, and what importing costs


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_torch_is_not_imported_by_iq():
    pytest.importorskip("iree.runtime")
    use = "import sys, iq, numpy as np; iq.QTensor.from_bytes(np.zeros(18, np.uint8), 'q4_0', (1, 32), 'cpu'); "
    done = python(use + "assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_without_torch():
    done = python("import sys\nsys.modules['torch'] = None\nimport iq\nimport iq.torch")
    assert done.stderr.endswith("ModuleNotFoundError: iq.torch: torch cannot be imported (pip install 'iq-kernels[torch]')\n")


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile("\n".join(examples), str(DOCS), "exec"), names)  # noqa: S102 (our own page)
    assert torch.equal(names["empty"](names["x"].float()), names["layer"](names["x"].float()))
    assert names["shared"].data_ptr() == names["buffer"].address
    if ON_GPU:
        assert torch.equal(names["result"], names["layer"](names["still"]))
