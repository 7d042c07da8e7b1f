// The fake HIP runtime's modules and launches.
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

typedef struct { handle handle; uint64_t id; function *functions; } module;

// The length of an ELF image, whose section headers come last; 0 when it is none. HIP is not told the length.
static uint64_t elf_size(const unsigned char *image) {
  if (memcmp(image, "\177ELF\2\1", 6)) return 0;
  uint64_t sections;
  uint16_t size, count;
  memcpy(&sections, image + 40, 8), memcpy(&size, image + 58, 2), memcpy(&count, image + 60, 2);
  return sections + (uint64_t)size * count;
}

static int unload(module *m) {
  for (function *f = m->functions, *next; f; f = next) next = f->next, destroy(f, FUNCTION);
  return destroy(m, MODULE);
}
API hipModuleUnload(module *m) {
  if (!known(m, MODULE)) return INVALID_HANDLE;
  device *d = m->handle.device;
  int status = capture_forbids(d);
  if (status) return status;
  if (d->deferred && !executes(d)) status = wait_for(d, NULL, NULL);
  int wrong = unload(m);
  return wrong ? wrong : status;
}
API hipModuleLoadData(module **out, const void *image) {
  int status;
  device *d = usable(current(), &status);
  if (!d || (status = capture_forbids(d))) return status;
  module *m = create_for(d, MODULE, sizeof *m, &status);
  if (!m) return status;
  uint64_t size = elf_size(image);
  status = !size ? NO_BINARY : d->callbacks.load ? d->callbacks.load(image, size, &m->id) : DEINITIALIZED;
  if (status) unload(m);
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

int launch_prepare(operation *out, function *f, const uint32_t dims[6], void **arguments) {
  const layout *l = &f->layout;
  char *segment = calloc(1, l->kernarg ? l->kernarg : 1);
  if (!segment) return OUT_OF_MEMORY;
  for (uint32_t i = 0; i < l->count; ++i) memcpy(segment + l->offsets[i], arguments[i], l->sizes[i]);
  *out = (operation){.kind = KERNEL, .kernel = {.function = retain(f), .kernarg = segment}};
  memcpy(out->kernel.dims, dims, sizeof out->kernel.dims);
  return SUCCESS;
}

API hipModuleLaunchKernel(function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned dynamic_lds, void *s,
                          void **arguments, void **extra) {
  int status;
  device *d = of(f, FUNCTION, &status);
  if (!d) return status;
  if (on(s, &status) != d) return status ? status : INVALID_HANDLE;
  if (dynamic_lds || extra) return NOT_SUPPORTED;
  operation o;
  status = launch_prepare(&o, f, (uint32_t[6]){gx, gy, gz, bx, by, bz}, arguments);
  return status ? status : submit(d, stream_of(d, s), &o);
}

API hipLaunchKernel(const void *f, dim3 grid, dim3 block, void **arguments, size_t lds, void *s) {
  (void)f, (void)grid, (void)block, (void)arguments, (void)lds, (void)s;
  return NOT_SUPPORTED;  // of host functions that hipcc registers
}
