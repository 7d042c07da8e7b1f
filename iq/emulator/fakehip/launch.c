// The fake HIP runtime's modules, launches and graphs.
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

// ---- Modules and launches

typedef struct function { handle handle; layout layout; struct function *next; } function;
typedef struct { handle handle; uint64_t id; function *functions; } module;

// The length of an ELF image, whose section headers come last; 0 when it is none. HIP is not told the length.
static uint64_t elf_size(const unsigned char *image) {
  if (memcmp(image, "\177ELF\2\1", 6)) return 0;
  uint64_t sections;
  uint16_t size, count;
  memcpy(&sections, image + 40, 8), memcpy(&size, image + 58, 2), memcpy(&count, image + 60, 2);
  return sections + (uint64_t)size * count;
}

API hipModuleUnload(module *m) {
  if (!known(m, MODULE)) return INVALID_HANDLE;
  for (function *f = m->functions, *next; f; f = next) next = f->next, destroy(f, FUNCTION);
  return destroy(m, MODULE);
}
API hipModuleLoadData(module **out, const void *image) {
  int status;
  module *m = create(MODULE, sizeof *m, &status);
  if (!m) return status;
  device *d = m->handle.device;
  uint64_t size = elf_size(image);
  status = !size ? NO_BINARY : d->callbacks.load ? d->callbacks.load(image, size, &m->id) : DEINITIALIZED;
  if (status) hipModuleUnload(m);
  else *out = m;
  return status;
}
API hipModuleLoadDataEx(module **out, const void *image, unsigned n, void *options, void **values) {
  (void)n, (void)options, (void)values;
  return hipModuleLoadData(out, image);
}
API hipModuleGetFunction(function **out, module *m, const char *name) {
  int status;
  device *d = of(m, MODULE, &status);
  if (!d) return status;
  function *f = create_for(d, FUNCTION, sizeof *f, &status);
  if (!f) return status;
  status = d->callbacks.function ? d->callbacks.function(m->id, name, &f->layout) : DEINITIALIZED;
  if (status) destroy(f, FUNCTION);
  else f->next = m->functions, m->functions = *out = f;
  return status;
}
API hipModuleGetGlobal(void **p, size_t *size, module *m, const char *name) { (void)p, (void)size, (void)m, (void)name; return NOT_SUPPORTED; }
API hipFuncGetAttribute(int *value, int attribute, function *f) {
  int status;
  device *d = of(f, FUNCTION, &status);
  if (!d) return status;
  switch (attribute) {
    case 0: *value = (int)d->properties.max_threads; return SUCCESS;  // MAX_THREADS_PER_BLOCK
    case 1: *value = (int)f->layout.lds; return SUCCESS;  // SHARED_SIZE_BYTES
    default: return INVALID_VALUE;
  }
}
API hipFuncSetAttribute(const void *f, int attribute, int value) { (void)f, (void)attribute, (void)value; return NOT_SUPPORTED; }

// The kernarg segment with the caller's arguments in it; Python adds the hidden ones.
static void *pack(const layout *l, void **arguments) {
  char *segment = calloc(1, l->kernarg ? l->kernarg : 1);
  for (uint32_t i = 0; segment && i < l->count; ++i) memcpy(segment + l->offsets[i], arguments[i], l->sizes[i]);
  return segment;
}

static int launch(function *f, const uint32_t dims[6], const void *kernarg) {
  device *d = f->handle.device;
  if (!d->callbacks.launch) return DEINITIALIZED;
  d->failed = d->callbacks.launch(f->layout.id, dims, kernarg, f->layout.kernarg);
  return d->failed;
}

API hipModuleLaunchKernel(function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned dynamic_lds, void *s,
                          void **arguments, void **extra) {
  int status;
  device *d = of(f, FUNCTION, &status);
  if (!d) return status;
  if (on(s, &status) != d) return status ? status : INVALID_HANDLE;
  if (dynamic_lds || extra) return NOT_SUPPORTED;
  void *kernarg = pack(&f->layout, arguments);
  if (!kernarg) return OUT_OF_MEMORY;
  status = launch(f, (uint32_t[6]){gx, gy, gz, bx, by, bz}, kernarg);
  free(kernarg);
  return status;
}

typedef struct { unsigned x, y, z; } dim3;
API hipLaunchKernel(const void *f, dim3 grid, dim3 block, void **arguments, size_t lds, void *s) {
  (void)f, (void)grid, (void)block, (void)arguments, (void)lds, (void)s;
  return NOT_SUPPORTED;  // of host functions that hipcc registers
}

// ---- Graphs: nodes run in the order they were added, which their dependencies allow

typedef struct { dim3 block; void **extra; function *function; dim3 grid; void **arguments; unsigned dynamic_lds; } hipKernelNodeParams;
typedef struct { void *to; unsigned width; size_t height, pitch; unsigned value; size_t count; } hipMemsetParams;
typedef struct { size_t x, y, z, lod; int type; void *host, *device, *array; size_t pitch, height; } side;
typedef struct { side from, to; size_t width, height, depth; } HIP_MEMCPY3D;

typedef struct node {
  enum { EMPTY, RECORD, KERNEL, FILL, COPY } kind;
  union {
    event *event;
    struct { function *function; uint32_t dims[6]; void *kernarg; } kernel;
    struct { void *to; unsigned value, width; size_t count; } fill;
    struct { void *to; const void *from; size_t size; int kind; } copy;
  };
  struct node *next;
} node;
typedef struct { handle handle; node *first, **last; } graph;  // a graph, and what it becomes when it is instantiated

API hipGraphCreate(graph **out, unsigned flags) {
  (void)flags;
  int status;
  graph *g = create(GRAPH, sizeof *g, &status);
  if (g) g->last = &g->first, *out = g;
  return status;
}
API hipGraphDestroy(graph *g) {
  if (!known(g, GRAPH)) return INVALID_HANDLE;
  for (node *n = g->first, *next; n; n = next) {
    next = n->next;
    if (n->kind == KERNEL) free(n->kernel.kernarg);
    free(n);
  }
  return destroy(g, GRAPH);
}
API hipGraphExecDestroy(graph *g) { return hipGraphDestroy(g); }

static int add(node **out, graph *g, node *const *after, size_t count, node content) {
  int status;
  if (!of(g, GRAPH, &status)) return status;
  for (size_t i = 0; i < count; ++i) {
    node *n = g->first;
    while (n && n != after[i]) n = n->next;
    if (!n) return INVALID_VALUE;
  }
  node *n = malloc(sizeof *n);
  if (!n) return OUT_OF_MEMORY;
  *n = content;
  n->next = NULL;
  *g->last = n, g->last = &n->next;
  *out = n;
  return SUCCESS;
}
API hipGraphAddEmptyNode(node **out, graph *g, node *const *after, size_t count) { return add(out, g, after, count, (node){.kind = EMPTY}); }
API hipGraphAddEventRecordNode(node **out, graph *g, node *const *after, size_t count, event *e) {
  return add(out, g, after, count, (node){.kind = RECORD, .event = e});
}
API hipGraphAddKernelNode(node **out, graph *g, node *const *after, size_t count, const hipKernelNodeParams *p) {
  int status;
  if (!of(p->function, FUNCTION, &status)) return status;
  if (p->dynamic_lds || p->extra) return NOT_SUPPORTED;
  void *kernarg = pack(&p->function->layout, p->arguments);
  if (!kernarg) return OUT_OF_MEMORY;
  node n = {.kind = KERNEL, .kernel = {p->function, {p->grid.x, p->grid.y, p->grid.z, p->block.x, p->block.y, p->block.z}, kernarg}};
  status = add(out, g, after, count, n);
  if (status) free(kernarg);
  return status;
}
API hipGraphAddMemsetNode(node **out, graph *g, node *const *after, size_t count, const hipMemsetParams *p) {
  if (p->height != 1 || (p->width != 1 && p->width != 2 && p->width != 4)) return NOT_SUPPORTED;
  return add(out, g, after, count, (node){.kind = FILL, .fill = {p->to, p->value, p->width, p->count}});
}
API hipDrvGraphAddMemcpyNode(node **out, graph *g, node *const *after, size_t count, const HIP_MEMCPY3D *p, device *context) {
  (void)context;
  if (p->height != 1 || p->depth != 1 || p->from.array || p->to.array || p->to.host) return NOT_SUPPORTED;
  const char *from = p->from.host ? p->from.host : p->from.device;  // the other is null
  node n = {.kind = COPY, .copy = {(char *)p->to.device + p->to.x, from + p->from.x, p->width, p->from.host ? HOST_TO_DEVICE : DEVICE_TO_DEVICE}};
  return add(out, g, after, count, n);
}
API hipGraphInstantiate(graph **out, graph *g, node **error, char *log, size_t size) {
  (void)error, (void)log, (void)size;
  int status;
  device *d = of(g, GRAPH, &status);
  if (!d) return status;
  graph *made = create_for(d, GRAPH, sizeof *made, &status);
  if (made) made->last = &made->first, *out = made;
  for (node *n = g->first, *added; n && !status; n = n->next) {
    node content = *n;
    if (n->kind == KERNEL) {
      uint32_t bytes = n->kernel.function->layout.kernarg;
      if (!(content.kernel.kernarg = malloc(bytes ? bytes : 1))) return OUT_OF_MEMORY;
      memcpy(content.kernel.kernarg, n->kernel.kernarg, bytes);
    }
    status = add(&added, *out, NULL, 0, content);
  }
  return status;
}

static int run(device *d, const node *n, void *s) {
  int status;
  switch (n->kind) {
    case EMPTY: return SUCCESS;
    case RECORD: return hipEventRecord(n->event, s);
    case KERNEL: return of(n->kernel.function, FUNCTION, &status) ? launch(n->kernel.function, n->kernel.dims, n->kernel.kernarg) : status;
    case FILL: return fill(d, "a memset node of a graph", n->fill.to, n->fill.value, n->fill.width, n->fill.count);
    case COPY: return copy(d, "a memcpy node of a graph", n->copy.to, n->copy.from, n->copy.size, n->copy.kind);
  }
  return INVALID_VALUE;
}
API hipGraphLaunch(graph *g, void *s) {
  int status;
  device *d = of(g, GRAPH, &status);
  if (!d) return status;
  if (on(s, &status) != d) return status ? status : INVALID_HANDLE;
  for (node *n = g->first; n && !status; n = n->next) status = run(d, n, s);
  return status;
}
