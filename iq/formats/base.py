"""What a GGML block format declares, the registry of them, and looking one up by name."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from iq.errors import FormatError, ShapeError
from iq.formats.packing import Bytes, Floats, f16_bytes, f16_values

Kind = Literal["weights", "plain", "activations"]

FORMATS: dict[str, type[Format]] = {}


class Named(Protocol):
    """Anything that goes by ggml's name of a type, such as gguf-py's GGMLQuantizationType."""

    @property
    def name(self) -> str: ...


class Format:
    """A way of storing weights. Subclasses that have a name register themselves under it.

    A weight is  scale * (quant - zero) - min,  where the weights of a sub-block share scale and min. That covers all of GGML, with
    sub-blocks of 16 or 32: codebooks are tables of quants, and where ggml adds a min (q4_1), min is its negative.

    name: ggml's name in lower case. type: ggml's id.
    block_size, type_size: weights and bytes of a block, as ggml counts them.
    kind: "weights" are integers with scales, so that integer dot products apply; "plain" are floats; "activations" are for the other side
        of a product, and kernels only ever write them (q8_1), or have nothing to do with them (q8_K).
    zero: what to subtract from a stored quant. signed: whether the stored quant is an int8 rather than a uint8.
    mins: whether sub-blocks have a min.
    sub_block: consecutive weights that share scale and min; 0 for plain formats, which have no scales.
    interleave: length of the aligned runs of weights whose lowest bits lie in the same bytes. In q4_0, byte i holds weights i and i + 16
        of a block, so its 16 bytes belong to all 32.
    f16_fields: byte offsets of the float16 scales (and mins) in a block.
    denormal_scales: whether scales may be below 2^-126, where float32 has fewer bits and CPUs may be told to take numbers for 0.
    codebook: the 16 int8 that nibbles stand for, where they do not stand for themselves.
    imatrix: what quantizing makes of importances, as in ggml: "ignored", "used" where they are given, or "required".
    quantizer: the template that quantizes to it on a device, templates/formats/quantize/<quantizer>.mlir.j2; "" where none does.
    """

    name: ClassVar[str]
    type: ClassVar[int]
    block_size: ClassVar[int]
    type_size: ClassVar[int]
    kind: ClassVar[Kind] = "weights"
    zero: ClassVar[int] = 0
    signed: ClassVar[bool] = False
    mins: ClassVar[bool] = False
    sub_block: ClassVar[int] = 0
    interleave: ClassVar[int] = 1
    f16_fields: ClassVar[tuple[int, ...]] = ()
    denormal_scales: ClassVar[bool] = False
    codebook: ClassVar[tuple[int, ...]] = ()
    imatrix: ClassVar[Literal["ignored", "used", "required"]] = "ignored"
    quantizer: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            FORMATS[cls.name] = cls

    @classmethod
    def kernel_block_weights(cls) -> int:
        """Weights that kernels take as a block: GGML's, but 8 plain elements, each of which is a block of its own to GGML."""
        return max(cls.block_size, 8)

    @classmethod
    def kernel_block_bytes(cls) -> int:
        """Bytes of as many weights."""
        return cls.row_bytes(cls.kernel_block_weights())

    @classmethod
    def row_bytes(cls, k: int) -> int:
        """Bytes of a row of k weights. Raises ShapeError unless k is a multiple of the block size."""
        if k < 0 or k % cls.block_size:
            raise ShapeError(f"{cls.name} stores rows in blocks of {cls.block_size} weights; a row of {k} is no multiple of that: pad it")
        return k // cls.block_size * cls.type_size

    @classmethod
    def quantize_blocks(cls, blocks: Floats, weights: Floats | None) -> Bytes:
        """Quantize f32[n, block_size] to uint8[n, type_size], to the same bytes as ggml_quantize_chunk.

        weights: f32[n, block_size] from `importance`, or None. Formats for which ggml ignores an imatrix ignore it too.
        Divides by zero in lanes that it discards: call it under np.errstate(all="ignore"), as `iq.formats.quantize` does.
        """
        raise NotImplementedError

    @classmethod
    def set_blocks(cls, blocks: Floats) -> Bytes:
        """As quantize_blocks without weights, to the bytes of ggml's from_float, which its set_rows takes: most formats' are the same."""
        return cls.quantize_blocks(blocks, None)

    @classmethod
    def dequantize_blocks(cls, packed: Bytes) -> Floats:
        """Dequantize uint8[n, type_size] to f32[n, block_size], bit for bit as ggml does."""
        raise NotImplementedError

    @classmethod
    def tables(cls) -> dict[str, NDArray[np.int32]]:
        """Constant tables that the format's template looks up: by name, i32 [entries, words], whose words are four int8 each."""
        return {}

    @classmethod
    def finite(cls, packed: Bytes) -> NDArray[np.bool_]:
        """Whether the scales of blocks uint8[n, type_size] are finite, as ggml_validate_row_data checks: bool[n]."""
        finite = np.ones(len(packed), np.bool_)
        for at in cls.f16_fields:
            finite &= np.isfinite(f16_values(packed[:, at : at + 2])[:, 0])
        return finite

    @classmethod
    def set_scales(cls, packed: Bytes, scales: Floats, mins: Floats) -> None:
        """Write the scale of each block, and its min where it has one, into blocks uint8[n, type_size]: f32[n] each.

        Rounded to what the format stores. For data to test with.
        """
        for number, at in enumerate(cls.f16_fields):
            packed[:, at : at + 2] = f16_bytes(mins if number else scales)

    @classmethod
    def importance(cls, rows: Floats, imatrix: Floats) -> Floats:
        """What quantize_blocks takes as weights, for f32[rows, k] and an imatrix f32[k]: f32[rows, k]. q4_0 to q5_1 see the whole row."""
        return np.broadcast_to(imatrix, rows.shape)


def format_of(name: str | Named) -> type[Format]:
    """The format of that name: ggml's in either case ("q4_k", "Q4_K"), candle's ("q4k"), or gguf-py's enum. Raises FormatError."""
    given = name if isinstance(name, str) else getattr(name, "name", None)
    if isinstance(given, str):
        for form in FORMATS.values():
            if given.lower() in (form.name, form.name.replace("_k", "k")):
                return form
    raise FormatError(f"unknown format {name!r}; known are {', '.join(FORMATS)}")
