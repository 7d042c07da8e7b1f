// The fake HIP runtime's memory as its API shows it: allocations, copies, memsets.
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

// ---- Allocations

static int take(device *d, void **out, size_t size, enum memory_kind kind) {
  *out = (void *)memory_allocate(d->memory, size, kind);
  // As drivers do before they give up: there is what hipFreeAsync has queued.
  if (!*out && d->deferred && !wait_for(d, NULL, NULL)) *out = (void *)memory_allocate(d->memory, size, kind);
  return *out ? SUCCESS : OUT_OF_MEMORY;
}

static int allocate(void **out, size_t size, enum memory_kind kind) {
  int status;
  device *d = usable(current(), &status);
  return !d || (status = capture_forbids(d)) ? status : take(d, out, size, kind);
}

// Once all that is queued is done, on whatever thread. What a failed device has is freed all the same.
static int release(const char *what, void *p, uint64_t kinds) {
  if (!p) return SUCCESS;
  device *d = owner(p);
  int status = d ? capture_forbids(d) : SUCCESS;
  if (status) return status;
  if (d && executes(d)) return free_later(d, p, kinds), SUCCESS;  // a finalizer of Python's runs while it executes a kernel
  if (d && d->deferred) status = wait_for(d, NULL, NULL);
  if (!d) d = current();
  if (d && !d->memory) d = NULL;
  int wrong = give_back(d, what, p, kinds);
  return wrong ? wrong : status;
}

API hipMalloc(void **p, size_t size) { return allocate(p, size, MEMORY_DEVICE); }
API hipMallocManaged(void **p, size_t size, unsigned flags) { (void)flags; return allocate(p, size, MEMORY_MANAGED); }
API hipHostMalloc(void **p, size_t size, unsigned flags) { (void)flags; return allocate(p, size, MEMORY_HOST); }
API hipFree(void *p) { return release("hipFree", p, MEMORY_DEVICE | MEMORY_MANAGED); }
API hipHostFree(void *p) { return release("hipHostFree", p, MEMORY_HOST); }
API hipHostUnregister(void *p) { return release("hipHostUnregister", p, MEMORY_REGISTERED); }
API hipHostRegister(void *p, size_t size, unsigned flags) {
  (void)flags;
  int status;
  device *d = usable(current(), &status);
  if (!d || (status = capture_forbids(d))) return status;
  return memory_register(d->memory, (uint64_t)p, size) ? SUCCESS : INVALID_VALUE;
}

API hipMallocAsync(void **p, size_t size, void *s) {
  int status;
  device *d = on(s, &status);
  if (!d || (status = capture_forbids_waiting(d, stream_of(d, s)))) return status;  // nodes that allocate are not emulated
  return take(d, p, size, MEMORY_DEVICE);
}
API hipMallocFromPoolAsync(void **p, size_t size, void *pool, void *s) {
  int status;
  return of(pool, POOL, &status) ? hipMallocAsync(p, size, s) : status;
}
API hipFreeAsync(void *p, void *s) {
  if (s && !known(s, STREAM)) return INVALID_HANDLE;
  device *d = s ? ((handle *)s)->device : owner(p);
  if (!d) d = current();
  if (!p || !d || !d->memory) return SUCCESS;
  if (!d->failed) return submit(d, stream_of(d, s), &(operation){.kind = FREE, .memory = p});
  give_back(d, "hipFreeAsync", p, MEMORY_DEVICE);
  return d->deferred ? d->failed : SUCCESS;  // to IREE it is no error (see hipEventQuery)
}

API hipMemPoolCreate(void **p, const void *props) { (void)props; int status; *p = create(POOL, sizeof(handle), &status); return status; }
API hipMemPoolDestroy(void *p) { return destroy(p, POOL); }
API hipMemPoolGetAttribute(void *p, int attribute, uint64_t *value) { (void)attribute; *value = 0; int status; of(p, POOL, &status); return status; }
API hipMemPoolSetAttribute(void *p, int attribute, void *value) { (void)attribute, (void)value; int status; of(p, POOL, &status); return status; }
API hipMemPoolTrimTo(void *p, size_t keep) { (void)keep; int status; of(p, POOL, &status); return status; }

// ---- What there is at an address

API hipMemGetInfo(size_t *left, size_t *total) {
  int status;
  device *d = usable(current(), &status);
  if (!d) return status;
  uint64_t used, capacity;
  memory_usage(d->memory, &used, &capacity);
  *left = capacity - used, *total = capacity;
  return SUCCESS;
}
API hipHostGetDevicePointer(void **out, void *p, unsigned flags) {
  (void)flags;
  int status;
  device *d = usable(current(), &status);
  if (!d) return status;
  *out = p;
  return memory_holds(d->memory, (uint64_t)p, 1) ? SUCCESS : INVALID_VALUE;
}

// hipMemoryType
enum { TYPE_UNREGISTERED = 0, TYPE_HOST = 1, TYPE_DEVICE = 2, TYPE_MANAGED = 3 };
typedef struct { int type, device; void *devicePointer, *hostPointer; int isManaged; unsigned allocationFlags; } hipPointerAttribute_t;

// The device that has it, or NULL.
static device *describe(const void *p, hipPointerAttribute_t *out, allocation *a) {
  device *d = owner(p);
  if (!d || !memory_find(d->memory, (uint64_t)p, a)) return NULL;
  int type = a->kind == MEMORY_DEVICE ? TYPE_DEVICE : a->kind == MEMORY_MANAGED ? TYPE_MANAGED : TYPE_HOST;
  *out = (hipPointerAttribute_t){type, d->ordinal, (void *)p, type == TYPE_DEVICE ? NULL : (void *)p, type == TYPE_MANAGED, 0};
  return d;
}
// As of HIP 6, memory that the runtime does not know is no error.
API hipPointerGetAttributes(hipPointerAttribute_t *out, const void *p) {
  allocation a;
  if (!out || !p) return INVALID_VALUE;
  if (!describe(p, out, &a)) *out = (hipPointerAttribute_t){.type = TYPE_UNREGISTERED, .device = -2};
  return SUCCESS;
}
API hipPointerGetAttribute(void *data, int attribute, void *p) {
  hipPointerAttribute_t found;
  allocation a;
  device *d = data ? describe(p, &found, &a) : NULL;
  if (!d) return INVALID_VALUE;
  switch (attribute) {
    case 1: *(void **)data = d; return SUCCESS;  // CONTEXT
    case 2: *(int *)data = found.type; return SUCCESS;  // MEMORY_TYPE
    case 3: *(void **)data = p; return SUCCESS;  // DEVICE_POINTER
    case 4: *(void **)data = found.hostPointer; return found.hostPointer ? SUCCESS : INVALID_VALUE;  // HOST_POINTER
    case 8: *(unsigned *)data = (unsigned)found.isManaged; return SUCCESS;  // IS_MANAGED
    case 9: *(int *)data = d->ordinal; return SUCCESS;  // DEVICE_ORDINAL
    case 11: *(void **)data = (void *)a.start; return SUCCESS;  // RANGE_START_ADDR
    case 12: *(size_t *)data = a.size; return SUCCESS;  // RANGE_SIZE
    default: return INVALID_VALUE;
  }
}

// ---- Copies and memsets

// Whether it is memory that the device cannot reach by itself. What it can reach is checked, as it may have been freed.
static int pageable(const void *p, int *check) { return !(*check = owner(p) != NULL); }

static int copy(const char *what, void *to, const void *from, size_t size, int kind, void *where, int wait) {
  int status;
  device *d = on(where, &status);
  if (!d || (wait && (status = capture_forbids(d)))) return status;
  if (kind < HOST_TO_HOST || kind > DEFAULT) return INVALID_VALUE;
  operation o = {.kind = COPY, .copy = {.what = what, .to = to, .from = from, .size = size, .check_to = 1, .check_from = 1}};
  // With the default kind either may be the host's own memory, unless the address is a device's.
  int from_pageable = kind != DEVICE_TO_HOST && kind != DEVICE_TO_DEVICE && pageable(from, &o.copy.check_from);
  int to_pageable = kind != HOST_TO_DEVICE && kind != DEVICE_TO_DEVICE && pageable(to, &o.copy.check_to);
  o.copy.pageable = from_pageable || to_pageable;
  if (from_pageable && !wait && d->deferred) {  // a driver reads pageable memory before it returns, and pinned memory later
    if ((status = operation_check(d, &o))) return status;  // the size may be absurd
    if (!(o.copy.snapshot = malloc(size ? size : 1))) return OUT_OF_MEMORY;
    memcpy(o.copy.snapshot, from, size);
  }
  status = submit(d, stream_of(d, where), &o);
  return status || !wait ? status : wait_for(d, stream_of(d, where), NULL);
}

API hipMemcpyAsync(void *to, const void *from, size_t n, int kind, void *s) { return copy("hipMemcpyAsync", to, from, n, kind, s, 0); }
API hipMemcpyHtoDAsync(void *to, void *from, size_t n, void *s) { return copy("hipMemcpyHtoDAsync", to, from, n, HOST_TO_DEVICE, s, 0); }
API hipMemcpyDtoHAsync(void *to, void *from, size_t n, void *s) { return copy("hipMemcpyDtoHAsync", to, from, n, DEVICE_TO_HOST, s, 0); }
API hipMemcpyDtoDAsync(void *to, void *from, size_t n, void *s) { return copy("hipMemcpyDtoDAsync", to, from, n, DEVICE_TO_DEVICE, s, 0); }
API hipMemcpy(void *to, const void *from, size_t n, int kind) { return copy("hipMemcpy", to, from, n, kind, NULL, 1); }
API hipMemcpyHtoD(void *to, void *from, size_t n) { return copy("hipMemcpyHtoD", to, from, n, HOST_TO_DEVICE, NULL, 1); }
API hipMemcpyDtoH(void *to, void *from, size_t n) { return copy("hipMemcpyDtoH", to, from, n, DEVICE_TO_HOST, NULL, 1); }
API hipMemcpyDtoD(void *to, void *from, size_t n) { return copy("hipMemcpyDtoD", to, from, n, DEVICE_TO_DEVICE, NULL, 1); }

API hipMemPrefetchAsync(const void *p, size_t size, int to, void *s) {
  (void)to;
  int status;
  device *d = on(s, &status);
  if (!d || (status = capture_forbids_waiting(d, stream_of(d, s)))) return status;
  return operation_check(d, &(operation){.kind = FILL, .fill = {"hipMemPrefetchAsync", (void *)p, 0, 1, size}});
}

static int fill(const char *what, void *to, unsigned value, size_t width, size_t count, void *s) {
  int status;
  device *d = on(s, &status);
  return d ? submit(d, stream_of(d, s), &(operation){.kind = FILL, .fill = {what, to, value, (unsigned)width, count}}) : status;
}
API hipMemsetAsync(void *to, int value, size_t count, void *s) { return fill("hipMemsetAsync", to, (unsigned)value, 1, count, s); }
API hipMemsetD8Async(void *to, unsigned char v, size_t count, void *s) { return fill("hipMemsetD8Async", to, v, 1, count, s); }
API hipMemsetD16Async(void *to, unsigned short v, size_t count, void *s) { return fill("hipMemsetD16Async", to, v, 2, count, s); }
API hipMemsetD32Async(void *to, int v, size_t count, void *s) { return fill("hipMemsetD32Async", to, (unsigned)v, 4, count, s); }
API hipMemset(void *to, int value, size_t count) {
  int status;
  device *d = usable(current(), &status);
  if (!d || (status = capture_forbids(d)) || (status = fill("hipMemset", to, (unsigned)value, 1, count, NULL))) return status;
  return wait_for(d, &d->null, NULL);
}
