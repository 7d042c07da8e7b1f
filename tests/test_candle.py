"""candle's unit tests of its quantized CUDA backend (candle-core/src/quantized/cuda.rs), under the names the port to ROCm gave them.

Constants are candle's; its own tables differ by up to 1e-3 between devices, so that is the tolerance.
"""

import numpy as np
import pytest

import iq

MATRIX_ROW_PADDING = 512
# candle's own constants differ by this much between its devices (CPU: q8_K or f32 paths; CUDA: q8_1).
CANDLE_RELATIVE = 1e-3


def test_rocm_quantize_q8_1(device):
    x = np.arange(256, dtype=np.float32).reshape(1, 256)
    got = iq.quantize_q8_1(x, device=device, padding=MATRIX_ROW_PADDING).numpy()
    assert got.shape == (1, MATRIX_ROW_PADDING // 32 * 36)
    blocks = got.reshape(-1, 36)
    d = blocks[:8, :2].copy().view(np.float16).astype(np.float32)
    assert np.abs(d * blocks[:8, 4:].view(np.int8) - x.reshape(8, 32)).max() <= 0.5 * 255 / 127 + 0.1
    assert not blocks[8:].any()


@pytest.mark.parametrize(("via", "want"), [("q8_1", 5561664.5), ("float", 5561851.0)])
def test_rocm_mmv_q8_1(device, via, want):
    x = np.arange(256, dtype=np.float32).reshape(1, 256)
    w = iq.QTensor.quantize(x, "q4_0", device=device)
    assert w.matmul(x, via=via).numpy() == pytest.approx(want, rel=CANDLE_RELATIVE)


@pytest.mark.parametrize("repeat", [1, 3], ids=["mul_mat_vec", "mul_mat"])
def test_rocm_mm_q8_1(device, repeat):
    y = (np.arange(1024, dtype=np.float32) / 4).reshape(4, 256)
    w = iq.QTensor.quantize(y, "q4_0", device=device)
    got = w.matmul(np.tile(y, (repeat, 1)), via="q8_1").numpy()[-4:].ravel()
    want = {0: 347604.0, 1: 888153.06, 4: 869780.7, 5: 2483145.0, 11: 9407368.0, 14: 9470856.0, 15: 13138824.0}
    for i, value in want.items():
        assert got[i] == pytest.approx(value, rel=CANDLE_RELATIVE)


def test_rocm_mm_q8_1_pad(device):
    """16 columns are less than a block: rows are padded to 32, as candle's QCudaStorage pads its memory."""
    x_rows, ncols, y_cols = 4, 16, 2048
    y = (np.arange(ncols * y_cols, dtype=np.float32) / 256).reshape(y_cols, ncols)
    padded = np.pad(y, ((0, 0), (0, 32 - ncols)))
    w = iq.QTensor.quantize(padded[:x_rows], "q4_0", device=device)
    got = w.matmul(padded, via="q8_1").numpy()
    want = padded.astype(np.float64) @ iq.dequantize(w.to_bytes(), "q4_0").astype(np.float64).T
    assert got.shape == (y_cols, x_rows)
    assert np.abs(got - want).max() <= CANDLE_RELATIVE * np.abs(want).max() * 10


@pytest.mark.parametrize("via", ["q8_1", "float"])
def test_quantized_matmul(device, via):
    """candle's quantized_tests.rs: (3, 64) x (64, 4), q4_0; its table for CUDA, whose activations are q8_1 too."""
    x = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
    w = iq.QTensor.quantize(np.arange(64 * 4, dtype=np.float32).reshape(4, 64), "q4_0", device=device)
    want = [84866, 214045, 344676, 473707, 213425, 604313, 1000431, 1387960, 342030, 994630, 1656248, 2302250]
    assert w.matmul(x, via=via).numpy().ravel() == pytest.approx(want, rel=10 * CANDLE_RELATIVE)
