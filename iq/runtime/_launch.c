// A call's dispatches launched on a stream, for Python: run(plan, stream, exclusive, *pointers) -> status. launching.py packs plans and says what
// they are; run_ctypes there does the same without this.
//
// The same for CUDA and HIP: the plan holds the addresses of the functions, whose signatures differ by the names of types alone. Nothing is
// allocated or kept, so any thread may call. One binary for CPython 3.11 and later.
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

enum { MAX_ARGUMENTS = 16, MAX_VALUES = 64, MAX_POINTERS = 16, CAPTURING = -1, INVALID_CONTEXT = 201 };
static const uint64_t NO_POINTER = 0xFFFFFFFF;

typedef struct {
  int (*launch)(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream,
                void **arguments, void **extra);
  int (*get_current)(uint64_t *);  // hipGetDevice writes the low half of the number, and hipSetDevice takes it
  int (*set_current)(uint64_t);
  uint64_t current;
  int (*is_capturing)(void *stream, int *);
  uint32_t steps, pointers, values, zero;
} header;
typedef struct __attribute__((packed)) {
  uint64_t function;
  uint32_t grid[3], block[3], shared, arguments;
  uint8_t slots[MAX_ARGUMENTS];
} step;
typedef struct __attribute__((packed)) { uint64_t base, pointer; } value;

static int launch(const header *h, const step *steps, void *stream, int exclusive, uint64_t *filled) {
  int status, capturing = 0;
  if (exclusive && (status = h->is_capturing(stream, &capturing))) return status;
  if (capturing) return CAPTURING;
  for (const step *s = steps; s < steps + h->steps; ++s) {
    // Of each slot both APIs read as many bytes as the kernel's metadata say (HIP: ihipLaunchKernel_validate or ihipLaunchKernelCommand of
    // clr/hipamd/src/hip_module.cpp, desc.size_): an i32 is the low half of its 8.
    void *arguments[MAX_ARGUMENTS];
    for (uint32_t i = 0; i < s->arguments; ++i) arguments[i] = &filled[s->slots[i]];
    status = h->launch((void *)s->function, s->grid[0], s->grid[1], s->grid[2], s->block[0], s->block[1], s->block[2], s->shared, stream,
                       arguments, NULL);
    if (status) return status;
  }
  return 0;
}

// With the plan's device current for the thread, which gets back what it had; one that had none keeps it.
static int launch_there(const header *h, const step *steps, void *stream, int exclusive, uint64_t *filled) {
  uint64_t before = 0;
  int status = h->get_current(&before), none = status == INVALID_CONTEXT;
  if (status && !none) return status;
  if (!none && before == h->current) return launch(h, steps, stream, exclusive, filled);
  if ((status = h->set_current(h->current))) return status;
  status = launch(h, steps, stream, exclusive, filled);
  int restored = none ? 0 : h->set_current(before);
  return status ? status : restored;
}

// Whether a plan of this length says nothing that would lead out of it.
static int holds(const header *h, const step *steps, const value *values) {
  for (uint32_t i = 0; i < h->values; ++i)
    if (values[i].pointer >= h->pointers && values[i].pointer != NO_POINTER) return 0;
  for (const step *s = steps; s < steps + h->steps; ++s) {
    if (s->arguments > MAX_ARGUMENTS) return 0;
    for (uint32_t i = 0; i < s->arguments; ++i)
      if (s->slots[i] >= h->values) return 0;
  }
  return 1;
}

static PyObject *run(PyObject *self, PyObject *const *args, Py_ssize_t count) {
  (void)self;
  if (count < 3) return PyErr_Format(PyExc_TypeError, "run(plan, stream, exclusive, *pointers)");
  char *plan;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(args[0], &plan, &size)) return NULL;
  header h = {0};
  const size_t length = (size_t)size;
  if (length >= sizeof h) memcpy(&h, plan, sizeof h);
  const step *steps = (const step *)(plan + sizeof h);
  const size_t end = sizeof h + h.steps * sizeof *steps + h.values * sizeof(value);
  // Short of a header, `end` is more than the length as well.
  if (h.zero || h.pointers > MAX_POINTERS || h.values > MAX_VALUES || length != end || !holds(&h, steps, (const value *)(steps + h.steps)))
    return PyErr_Format(PyExc_ValueError, "these bytes are not a plan");
  if (count - 3 != (Py_ssize_t)h.pointers) return PyErr_Format(PyExc_TypeError, "the plan takes %u pointers, not %zd", h.pointers, count - 3);

  uint64_t given[2 + MAX_POINTERS], filled[MAX_VALUES];  // given: stream, exclusive, and the pointers
  for (Py_ssize_t i = 0; i < count - 1; ++i) {
    given[i] = PyLong_AsUnsignedLongLong(args[i + 1]);
    if (given[i] == UINT64_MAX && PyErr_Occurred()) return NULL;
  }
  const value *values = (const value *)(steps + h.steps);
  for (uint32_t i = 0; i < h.values; ++i) filled[i] = values[i].base + (values[i].pointer == NO_POINTER ? 0 : given[2 + values[i].pointer]);
  if (!h.steps) return PyLong_FromLong(0);
  int status;
  Py_BEGIN_ALLOW_THREADS  // a launch waits where a thousand are pending, and an emulated kernel runs here
  status = launch_there(&h, steps, (void *)given[0], given[1] != 0, filled);
  Py_END_ALLOW_THREADS
  return PyLong_FromLong(status);
}

static PyMethodDef methods[] = {
  {"run", (PyCFunction)(void (*)(void))run, METH_FASTCALL, "run(plan, stream, exclusive, *pointers): launch a plan; the API's status."},
  {NULL, NULL, 0, NULL},
};
static PyModuleDef_Slot slots[] = {{0, NULL}};
static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "iq.runtime._launch", .m_methods = methods, .m_slots = slots};
PyMODINIT_FUNC PyInit__launch(void) { return PyModuleDef_Init(&definition); }
