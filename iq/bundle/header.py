"""`iq_kernels.h`: how a bundle's kernels are launched, as C that any host can include."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from iq.bundle.launches import ITEMSIZES, Dispatch, Launches, Tensor

NAME = "iq_kernels.h"

# How a host loads the code, by its API.
_LOADING = {
    "hip": "hipModuleLoadData takes a .hsaco file as it is; then hipModuleGetFunction with a dispatch's function, and\n"
    "hipModuleLaunchKernel.",
    "cuda": "cuModuleLoadData takes a .ptx file with a zero byte behind it; then cuModuleGetFunction with a dispatch's function, and\n"
    "cuLaunchKernel. Where shared_bytes is over 48 KiB, cuFuncSetAttribute comes first (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES).",
}

_HEAD = """\
/* The kernels of iq for @TARGET@, and how to launch them. Written by `iq extract`; C99 and C++, and nothing else is needed.

@LOADING@

How a kernel is called:
- Find it by its key. Its sizes are numbers of the call, in the order of `sizes`; `derived` sizes follow from them (`iq_size`).
- Its `buffers` are inputs, then outputs, then scratch: memory of the device, each of `iq_bytes` bytes, each on a boundary of 16 bytes,
  none of them null. No output and no scratch buffer overlaps any other buffer. Scratch is the caller's: it need not be initialized, and
  may be used for other things once the kernel is done; calls that may run at the same time need scratch of their own.
- Weights, which are the input `w`, need 16 more bytes behind them that can be read; what they are does not matter.
- Dispatches run in the order of `dispatches`, each after the one before is done: on one stream.
- A dispatch takes a 64-bit pointer for each of its `buffers`, in order, then each of its `sizes` as a 32-bit integer (`iq_arguments`).
- Its grid is, for each of `grid`, size / tile rounded up (`iq_grid`). Where that is empty in any dimension nothing is launched.
- Its block is `block` threads; `shared_bytes` are the dynamic shared memory that the launch asks for.
- get_rows and set_rows take a weight of any number of rows, of which `iq_bytes` counts one. They do not check their ids: they have to be
  rows that are there, and those of set_rows differ from each other. set_rows writes to no other rows.
*/
#ifndef IQ_KERNELS_H
#define IQ_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define IQ_TARGET "@TARGET@"
@LIMITS@

/* The size of this name or, where that is NULL, a number. */
typedef struct { const char *size; int32_t number; } iq_dim;

/* A flat tensor; as many elements as the product of its dims. */
typedef struct { const char *name, *type; int element_bytes, dim_count; iq_dim dims[IQ_MOST_DIMS]; } iq_tensor;

/* A size that is `times` the size `of` for every `over`, rounded up, and the size `plus` on top where that is not NULL. */
typedef struct { const char *name, *of; int32_t times, over; const char *plus; } iq_derived;

typedef struct { const char *size; int32_t tile; } iq_axis;

typedef struct {
  const char *function; /* the kernel's name in the code */
  int buffer_count;
  const char *buffers[IQ_MOST_BUFFERS];
  int size_count;
  const char *sizes[IQ_MOST_SIZES];
  int grid_count;
  iq_axis grid[IQ_MOST_AXES]; /* x first */
  uint32_t block[3];
  uint32_t shared_bytes;
} iq_dispatch;

typedef struct {
  const char *key, *file; /* file: of the code */
  int input_count, output_count, scratch_count;
  iq_tensor buffers[IQ_MOST_CALL_BUFFERS]; /* inputs, then outputs, then scratch */
  int size_count;
  const char *sizes[IQ_MOST_CALL_SIZES];
  int derived_count;
  iq_derived derived[IQ_MOST_DERIVED];
  int dispatch_count;
  iq_dispatch dispatches[IQ_MOST_DISPATCHES];
} iq_kernel;

"""

_TAIL = """
/* The kernel of a key; NULL where there is none. */
static inline const iq_kernel *iq_find(const char *key) {
  size_t i;
  for (i = 0; i < IQ_KERNEL_COUNT; i++)
    if (!strcmp(iq_kernels[i].key, key)) return &iq_kernels[i];
  return NULL;
}

/* A size of a call by its name, derived ones included; -1 for a name that the kernel does not have.
   sizes: the call's, in the kernel's order. */
static inline int64_t iq_size(const iq_kernel *kernel, const int32_t *sizes, const char *name) {
  int i;
  for (i = 0; i < kernel->size_count; i++)
    if (!strcmp(kernel->sizes[i], name)) return sizes[i];
  for (i = 0; i < kernel->derived_count; i++)
    if (!strcmp(kernel->derived[i].name, name)) {
      const iq_derived *d = &kernel->derived[i];
      return (d->times * iq_size(kernel, sizes, d->of) + d->over - 1) / d->over + (d->plus ? iq_size(kernel, sizes, d->plus) : 0);
    }
  return -1;
}

/* The bytes of a tensor of a call. */
static inline uint64_t iq_bytes(const iq_kernel *kernel, const int32_t *sizes, const iq_tensor *tensor) {
  uint64_t bytes = (uint64_t)tensor->element_bytes;
  int i;
  for (i = 0; i < tensor->dim_count; i++)
    bytes *= (uint64_t)(tensor->dims[i].size ? iq_size(kernel, sizes, tensor->dims[i].size) : tensor->dims[i].number);
  return bytes;
}

/* How many buffers a call has: inputs, outputs and scratch. */
static inline int iq_buffer_count(const iq_kernel *kernel) { return kernel->input_count + kernel->output_count + kernel->scratch_count; }

/* The number of a buffer among them, by its name; -1 for a name that the kernel does not have. */
static inline int iq_buffer(const iq_kernel *kernel, const char *name) {
  int i;
  for (i = 0; i < iq_buffer_count(kernel); i++)
    if (!strcmp(kernel->buffers[i].name, name)) return i;
  return -1;
}

/* The workgroups of a dispatch along x, y and z. 1 where it is to be launched; 0 where the grid is empty: skip it; -1 where it cannot be
   launched, for a size that is negative or over 31 bits, or a grid beyond what GPUs take. */
static inline int iq_grid(const iq_kernel *kernel, const int32_t *sizes, const iq_dispatch *dispatch, uint32_t grid[3]) {
  static const int64_t most[3] = {INT32_MAX, 65535, 65535};
  int i, launched = 1;
  grid[0] = grid[1] = grid[2] = 1;
  for (i = 0; i < dispatch->size_count; i++) {
    const int64_t size = iq_size(kernel, sizes, dispatch->sizes[i]);
    if (size < 0 || size > INT32_MAX) return -1;
  }
  for (i = 0; i < dispatch->grid_count; i++) {
    const int64_t size = iq_size(kernel, sizes, dispatch->grid[i].size), tile = dispatch->grid[i].tile;
    const int64_t count = size / tile + (size % tile != 0);
    if (size < 0 || count > most[i] || count * dispatch->block[i] > UINT32_MAX) return -1;
    grid[i] = (uint32_t)count;
    if (!count) launched = 0;
  }
  return launched;
}

/* The arguments of a dispatch, as hipModuleLaunchKernel and cuLaunchKernel take them for `kernelParams`.
   pointers: the call's buffers, by number. values: room for what `arguments` points to; both have to stay until the launch has returned. */
static inline void iq_arguments(const iq_kernel *kernel, const int32_t *sizes, const iq_dispatch *dispatch, void *const *pointers,
                                uint64_t values[IQ_MOST_ARGUMENTS], void *arguments[IQ_MOST_ARGUMENTS]) {
  int i, n = 0;
  for (i = 0; i < dispatch->buffer_count; i++, n++) {
    values[n] = (uint64_t)(uintptr_t)pointers[iq_buffer(kernel, dispatch->buffers[i])];
    arguments[n] = &values[n];
  }
  for (i = 0; i < dispatch->size_count; i++, n++) {
    const int32_t size = (int32_t)iq_size(kernel, sizes, dispatch->sizes[i]);
    memcpy(&values[n], &size, sizeof size);
    arguments[n] = &values[n];
  }
}

#endif
"""


def header(target: str, api: str, kernels: Sequence[tuple[str, str, Launches]]) -> str:
    """The text of the header.

    target: its id. api: "hip" or "cuda". kernels: of each its key, the name of the file with its code, and its launches; at least one.
    """
    launches = [launched for _, _, launched in kernels]
    dispatches = [dispatch for launched in launches for dispatch in launched.dispatches]
    buffers = [(*launched.inputs, *launched.outputs, *launched.scratch) for launched in launches]
    limits = {
        "DIMS": (tensor.dims for tensors in buffers for tensor in tensors),
        "BUFFERS": (dispatch.buffers for dispatch in dispatches),
        "SIZES": (dispatch.sizes for dispatch in dispatches),
        "ARGUMENTS": ((*dispatch.buffers, *dispatch.sizes) for dispatch in dispatches),
        "CALL_BUFFERS": buffers,
        "CALL_SIZES": (launched.sizes for launched in launches),
        "DERIVED": (launched.derived for launched in launches),
        "DISPATCHES": (launched.dispatches for launched in launches),
    }
    most = {name: max(1, *map(len, lists)) for name, lists in limits.items()} | {"AXES": 3}
    defines = "\n".join(f"#define IQ_MOST_{name} {number}" for name, number in most.items())
    head = _HEAD.replace("@LOADING@", _LOADING[api]).replace("@LIMITS@", defines).replace("@TARGET@", target)
    rows = ",\n".join(_kernel(key, file, launched) for key, file, launched in kernels)
    table = f"#define IQ_KERNEL_COUNT {len(kernels)}\nstatic const iq_kernel iq_kernels[IQ_KERNEL_COUNT] = {{\n{rows}\n}};\n"
    return head + table + _TAIL


def _kernel(key: str, file: str, launches: Launches) -> str:
    tensors = (*launches.inputs, *launches.outputs, *launches.scratch)
    buffers = ",\n   ".join(map(_tensor, tensors))
    derived = (f"{{{_text(d.name)}, {_text(d.of)}, {d.times}, {d.over}, {_text(d.plus) if d.plus else 'NULL'}}}" for d in launches.derived)
    dispatches = ",\n      ".join(map(_dispatch, launches.dispatches))
    lines = (
        f" {{{_text(key)}, {_text(file)}, {len(launches.inputs)}, {len(launches.outputs)}, {len(launches.scratch)}",
        f"{{{buffers}}}",
        f"{len(launches.sizes)}, {_list(map(_text, launches.sizes), 'NULL')}",
        f"{len(launches.derived)}, {_list(derived, '{NULL, NULL, 0, 1, NULL}')}",
        f"{len(launches.dispatches)}, {{{dispatches}}}}}",
    )
    return ",\n  ".join(lines)


def _tensor(t: Tensor) -> str:
    dims = (f"{{NULL, {dim}}}" if isinstance(dim, int) else f"{{{_text(dim)}, 0}}" for dim in t.dims)
    return f"{{{_text(t.name)}, {_text(t.dtype)}, {ITEMSIZES[t.dtype]}, {len(t.dims)}, {_list(dims, '{NULL, 0}')}}}"


def _dispatch(d: Dispatch) -> str:
    grid = _list((f"{{{_text(axis.size)}, {axis.tile}}}" for axis in d.grid), "{NULL, 0}")
    parts = (
        _text(d.function),
        f"{len(d.buffers)}, {_list(map(_text, d.buffers), 'NULL')}",
        f"{len(d.sizes)}, {_list(map(_text, d.sizes), 'NULL')}",
        f"{len(d.grid)}, {grid}",
        f"{_list(map(str, d.block), '1')}, {d.shared}",
    )
    return f"{{{', '.join(parts)}}}"


def _list(values: Iterable[str], none: str) -> str:
    """An initializer of an array. none: what stands in an empty one, for C has no empty initializers."""
    return f"{{{', '.join(values) or none}}}"


def _text(text: str) -> str:
    """A string literal. What manifests name are keys, functions and sizes; anything but plain characters is written by its number."""
    plain = (chr(byte) if byte < 128 and (chr(byte).isalnum() or chr(byte) in "._-+:") else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'
