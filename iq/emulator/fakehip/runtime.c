// A HIP runtime (libamdhip64) for emulated devices: what IREE's hip driver needs of one, and no more. Here: devices, streams, events, copies.
//
// Everything runs when it is enqueued, in the calling thread, which is one of the orders a GPU may choose: streams and events have nothing to
// wait for. Memory is the host's (memory.c) and every copy is checked against it. Code objects and launches go to Python; nothing else does,
// because IREE calls from threads of its own, and may wait for them while it holds Python's lock.
//
// Structures and numbers are those of hip_runtime_api.h, HIP 6 (the hipGetDeviceProperties that IREE asks for is the older R0000).
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

static const struct { int code; const char *name, *text; } ERRORS[] = {
  {SUCCESS, "hipSuccess", "no error"},
  {INVALID_VALUE, "hipErrorInvalidValue", "invalid argument"},
  {OUT_OF_MEMORY, "hipErrorOutOfMemory", "out of memory"},
  {DEINITIALIZED, "hipErrorDeinitialized", "the emulated device has been closed"},
  {INVALID_DEVICE, "hipErrorInvalidDevice", "invalid device ordinal"},
  {INVALID_CONTEXT, "hipErrorInvalidContext", "invalid device context"},
  {NO_BINARY, "hipErrorNoBinaryForGpu", "no kernel image is available for execution on the device"},
  {INVALID_HANDLE, "hipErrorInvalidHandle", "invalid resource handle"},
  {NOT_FOUND, "hipErrorNotFound", "named symbol not found"},
  {LAUNCH_FAILURE, "hipErrorLaunchFailure", "a kernel failed, which leaves the emulated device unusable: open it again"},
  {NOT_SUPPORTED, "hipErrorNotSupported", "operation not supported"},
};

// ---- Devices and contexts

enum { MAX_DEVICES = 1024 };
static device *devices[MAX_DEVICES];
static int device_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // of the above

static device *get_device(int ordinal) {
  pthread_mutex_lock(&lock);
  device *d = ordinal >= 0 && ordinal < device_count ? devices[ordinal] : NULL;
  pthread_mutex_unlock(&lock);
  return d;
}

int fakehip_add_device(const properties *p, memory *m, const callbacks *c) {
  device *d = calloc(1, sizeof *d);
  if (!d) return -1;
  *d = (device){.owners = 1, .properties = *p, .memory = m, .callbacks = *c};
  pthread_mutex_lock(&lock);
  // The context of a device that is gone may be on some thread's stack still: those are never freed, only their numbers are given anew.
  d->ordinal = 0;
  while (d->ordinal < device_count && devices[d->ordinal]->memory) ++d->ordinal;
  int fits = d->ordinal < MAX_DEVICES;
  if (fits) {
    devices[d->ordinal] = d;
    if (d->ordinal == device_count) ++device_count;
  }
  pthread_mutex_unlock(&lock);
  if (!fits) return free(d), -1;
  memory_retain(m);
  return d->ordinal;
}

static void release(device *d) {
  pthread_mutex_lock(&lock);
  memory *unused = --d->owners ? NULL : d->memory;
  if (unused) d->memory = NULL;
  pthread_mutex_unlock(&lock);
  if (unused) memory_release(unused);
}

void fakehip_remove_device(int ordinal) {
  device *d = get_device(ordinal);
  d->callbacks = (callbacks){0};
  release(d);
}

uint64_t fakehip_handles(int ordinal) { return __atomic_load_n(&get_device(ordinal)->handles, __ATOMIC_SEQ_CST); }

enum { MAX_DEPTH = 64 };
static __thread device *contexts[MAX_DEPTH];
static __thread int depth;

static device *current(void) { return depth ? contexts[depth - 1] : NULL; }

static device *usable(device *d, int *status) {
  *status = !d ? INVALID_CONTEXT : !d->memory ? DEINITIALIZED : d->failed;
  return *status ? NULL : d;
}

API hipInit(unsigned flags) { (void)flags; return SUCCESS; }
API hipGetDeviceCount(int *count) { pthread_mutex_lock(&lock); *count = device_count; pthread_mutex_unlock(&lock); return SUCCESS; }
API hipDeviceGet(int *out, int ordinal) { *out = ordinal; return get_device(ordinal) ? SUCCESS : INVALID_DEVICE; }
API hipCtxPushCurrent(device *d) { if (depth == MAX_DEPTH) return INVALID_CONTEXT; contexts[depth++] = d; return SUCCESS; }
API hipCtxPopCurrent(device **d) { if (!depth) return INVALID_CONTEXT; --depth; if (d) *d = contexts[depth]; return SUCCESS; }
API hipCtxGetCurrent(device **d) { *d = current(); return SUCCESS; }
API hipCtxSetCurrent(device *d) { if (!depth) return hipCtxPushCurrent(d); contexts[depth - 1] = d; return SUCCESS; }
API hipSetDevice(unsigned ordinal) { device *d = get_device((int)ordinal); return d ? hipCtxSetCurrent(d) : INVALID_DEVICE; }
API hipDevicePrimaryCtxRetain(device **out, int ordinal) {
  device *d = get_device(ordinal);
  if (!d) return INVALID_DEVICE;
  __atomic_add_fetch(&d->owners, 1, __ATOMIC_SEQ_CST);
  *out = d;
  return SUCCESS;
}
API hipDevicePrimaryCtxRelease(int ordinal) {
  device *d = get_device(ordinal);
  if (!d) return INVALID_DEVICE;
  release(d);
  return SUCCESS;
}
API hipDeviceCanAccessPeer(int *can, int a, int b) { (void)a, (void)b; *can = 0; return SUCCESS; }
API hipDeviceEnablePeerAccess(int peer, unsigned flags) { (void)peer, (void)flags; return NOT_SUPPORTED; }

API hipDeviceGetName(char *name, int size, int ordinal) {
  device *d = get_device(ordinal);
  if (!d) return INVALID_DEVICE;
  snprintf(name, (size_t)size, "%s", d->properties.name);
  return SUCCESS;
}
API hipDeviceGetUuid(char uuid[16], int ordinal) {
  memset(uuid, 0, 16);
  return snprintf(uuid, 16, "emulated%d", ordinal) > 0 ? SUCCESS : INVALID_VALUE;
}
API hipDeviceGetAttribute(int *value, int attribute, int ordinal) {
  device *d = get_device(ordinal);
  if (!d) return INVALID_DEVICE;
  switch (attribute) {
    case 9: *value = 0; return SUCCESS;  // ConcurrentManagedAccess
    case 26: case 27: case 28: case 56: *value = (int)d->properties.max_threads; return SUCCESS;  // MaxBlockDimX, Y, Z, MaxThreadsPerBlock
    case 74: *value = (int)d->properties.lds; return SUCCESS;  // MaxSharedMemoryPerBlock
    case 87: *value = (int)d->properties.wave; return SUCCESS;  // WarpSize
    case 88: *value = 1; return SUCCESS;  // MemoryPoolsSupported
    default: return INVALID_VALUE;
  }
}

typedef struct {
  char name[256];
  size_t totalGlobalMem, sharedMemPerBlock;
  int regsPerBlock, warpSize, maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3], clockRate, memoryClockRate, memoryBusWidth;
  size_t totalConstMem;
  int major, minor, multiProcessorCount, l2CacheSize, maxThreadsPerMultiProcessor, computeMode, clockInstructionRate;
  unsigned arch;
  int concurrentKernels, pciDomainID, pciBusID, pciDeviceID;
  size_t maxSharedMemoryPerMultiProcessor;
  int isMultiGpuBoard, canMapHostMemory, gcnArch;
  char gcnArchName[256];
  int integrated, cooperativeLaunch, cooperativeMultiDeviceLaunch, maxTexture1DLinear, maxTexture1D, maxTexture2D[2], maxTexture3D[3];
  unsigned *hdpMemFlushCntl, *hdpRegFlushCntl;
  size_t memPitch, textureAlignment, texturePitchAlignment;
  int kernelExecTimeoutEnabled, ECCEnabled, tccDriver, cooperativeMultiDeviceUnmatched[4], isLargeBar, asicRevision, managedMemory;
  int directManagedMemAccessFromHost, concurrentManagedAccess, pageableMemoryAccess, pageableMemoryAccessUsesHostPageTables;
} hipDeviceProp_tR0000;

API hipGetDeviceProperties(hipDeviceProp_tR0000 *out, int ordinal) {
  device *d = get_device(ordinal);
  if (!d) return INVALID_DEVICE;
  const properties *p = &d->properties;
  int n = (int)p->max_threads;
  *out = (hipDeviceProp_tR0000){
    .totalGlobalMem = p->total_memory, .sharedMemPerBlock = p->lds, .maxSharedMemoryPerMultiProcessor = p->lds, .warpSize = (int)p->wave,
    .maxThreadsPerBlock = n, .maxThreadsDim = {n, n, n}, .maxGridSize = {2147483647, 65535, 65535},
    .canMapHostMemory = 1, .managedMemory = 1,
  };
  memcpy(out->name, p->name, sizeof out->name);
  memcpy(out->gcnArchName, p->arch, sizeof out->gcnArchName);
  return SUCCESS;
}

EXPORT const char *hipGetErrorName(int code) {
  for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; ++i) if (ERRORS[i].code == code) return ERRORS[i].name;
  return "hipErrorUnknown";
}
EXPORT const char *hipGetErrorString(int code) {
  for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; ++i) if (ERRORS[i].code == code) return ERRORS[i].text;
  return "unknown error";
}
API hipGetLastError(void) { return SUCCESS; }

// ---- Handles: everything that is created and destroyed, other than memory

handle *known(void *p, enum handle_kind kind) {
  handle *h = p;
  return h && h->kind == (int)kind ? h : NULL;
}

void *create(enum handle_kind kind, size_t size, int *status) {
  device *d = usable(current(), status);
  return d ? create_for(d, kind, size, status) : NULL;
}
void *create_for(device *d, enum handle_kind kind, size_t size, int *status) {
  handle *h = calloc(1, size);
  *status = h ? SUCCESS : OUT_OF_MEMORY;
  if (h) *h = (handle){kind, d}, __atomic_add_fetch(&d->handles, 1, __ATOMIC_SEQ_CST);
  return h;
}

int destroy(void *p, enum handle_kind kind) {
  handle *h = known(p, kind);
  if (!h) return INVALID_HANDLE;
  __atomic_sub_fetch(&h->device->handles, 1, __ATOMIC_SEQ_CST);
  h->kind = 0;  // a second destroy, or a use, is likely to notice
  free(h);
  return SUCCESS;
}

device *of(void *p, enum handle_kind kind, int *status) {
  handle *h = known(p, kind);
  if (h) return usable(h->device, status);
  *status = INVALID_HANDLE;
  return NULL;
}

device *on(void *stream, int *status) { return stream ? of(stream, STREAM, status) : usable(current(), status); }

API hipStreamCreateWithFlags(void **s, unsigned flags) { (void)flags; int status; *s = create(STREAM, sizeof(handle), &status); return status; }
API hipStreamDestroy(void *s) { return destroy(s, STREAM); }
API hipStreamSynchronize(void *s) { int status; on(s, &status); return status; }

API hipEventCreateWithFlags(void **e, unsigned flags) { (void)flags; int status; *e = create(EVENT, sizeof(event), &status); return status; }
API hipEventCreate(void **e) { return hipEventCreateWithFlags(e, 0); }
API hipEventDestroy(void *e) { return destroy(e, EVENT); }
// A recorded event has happened, even where a kernel that was launched later has failed since. IREE's hip driver relies on it: an error here,
// or of hipFreeAsync, is one that its cleanup thread keeps, and that each buffer which is released from then on frees once more
// (cleanup_thread.c: iree_hal_hip_cleanup_thread_add_cleanup gives its callers the status itself, not a clone, and they own what they get).
API hipEventQuery(void *e) { return known(e, EVENT) ? SUCCESS : INVALID_HANDLE; }
API hipEventSynchronize(void *e) { return hipEventQuery(e); }
API hipEventRecord(event *e, void *s) {
  int status;
  if (!of(e, EVENT, &status) || !on(s, &status)) return status;
  clock_gettime(CLOCK_MONOTONIC, &e->time);
  return SUCCESS;
}
API hipEventElapsedTime(float *milliseconds, event *a, event *b) {
  int status;
  if (!of(a, EVENT, &status) || !of(b, EVENT, &status)) return status;
  *milliseconds = (float)(b->time.tv_sec - a->time.tv_sec) * 1e3f + (float)(b->time.tv_nsec - a->time.tv_nsec) * 1e-6f;
  return SUCCESS;
}
API hipStreamWaitEvent(void *s, void *e, unsigned flags) {
  (void)flags;
  int status;
  return of(e, EVENT, &status) ? on(s, &status), status : status;
}
API hipLaunchHostFunc(void *s, void (*function)(void *), void *data) {
  int status;
  if (!on(s, &status)) return status;
  function(data);
  return SUCCESS;
}

// ---- Memory

static int allocate(void **out, size_t size, enum memory_kind kind) {
  int status;
  device *d = usable(current(), &status);
  if (!d) return status;
  *out = (void *)memory_allocate(d->memory, size, kind);
  return *out ? SUCCESS : OUT_OF_MEMORY;
}

// The live device whose address it is; may be called on any thread, with whatever context.
static device *owner(void *p) {
  device *found = NULL;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < device_count && !found; ++i)
    if (devices[i]->memory && memory_owns(devices[i]->memory, (uint64_t)p)) found = devices[i];
  pthread_mutex_unlock(&lock);
  return found;
}

static int give_back(const char *what, void *p, uint64_t kinds) {
  if (!p) return SUCCESS;
  device *d = owner(p);
  if (d && memory_free(d->memory, (uint64_t)p, kinds)) return SUCCESS;
  if (!d) d = current();
  if (d && d->memory) memory_note(d->memory, what, (uint64_t)p, 0);
  return INVALID_VALUE;
}

API hipMalloc(void **p, size_t size) { return allocate(p, size, MEMORY_DEVICE); }
API hipMallocManaged(void **p, size_t size, unsigned flags) { (void)flags; return allocate(p, size, MEMORY_MANAGED); }
API hipMallocAsync(void **p, size_t size, void *s) { int status; return on(s, &status) ? allocate(p, size, MEMORY_DEVICE) : status; }
API hipMallocFromPoolAsync(void **p, size_t size, void *pool, void *s) {
  int status;
  return of(pool, POOL, &status) ? hipMallocAsync(p, size, s) : status;
}
API hipHostMalloc(void **p, size_t size, unsigned flags) { (void)flags; return allocate(p, size, MEMORY_HOST); }
API hipFree(void *p) { return give_back("hipFree", p, MEMORY_DEVICE | MEMORY_MANAGED); }
// What is wrong with the address is noted for Python; to IREE it is no error (see hipEventQuery).
API hipFreeAsync(void *p, void *s) {
  if (s && !known(s, STREAM)) return INVALID_HANDLE;
  give_back("hipFreeAsync", p, MEMORY_DEVICE);
  return SUCCESS;
}
API hipHostFree(void *p) { return give_back("hipHostFree", p, MEMORY_HOST); }
API hipHostUnregister(void *p) { return give_back("hipHostUnregister", p, MEMORY_REGISTERED); }
API hipHostRegister(void *p, size_t size, unsigned flags) {
  (void)flags;
  int status;
  device *d = usable(current(), &status);
  return !d ? status : memory_register(d->memory, (uint64_t)p, size) ? SUCCESS : INVALID_VALUE;
}
API hipHostGetDevicePointer(void **out, void *p, unsigned flags) {
  (void)flags;
  int status;
  device *d = usable(current(), &status);
  if (!d) return status;
  *out = p;
  return memory_holds(d->memory, (uint64_t)p, 1) ? SUCCESS : INVALID_VALUE;
}

API hipMemPoolCreate(void **p, const void *props) { (void)props; int status; *p = create(POOL, sizeof(handle), &status); return status; }
API hipMemPoolDestroy(void *p) { return destroy(p, POOL); }
API hipMemPoolGetAttribute(void *p, int attribute, uint64_t *value) { (void)attribute; *value = 0; int status; of(p, POOL, &status); return status; }
API hipMemPoolSetAttribute(void *p, int attribute, void *value) { (void)attribute, (void)value; int status; of(p, POOL, &status); return status; }
API hipMemPoolTrimTo(void *p, size_t keep) { (void)keep; int status; of(p, POOL, &status); return status; }

// Whether a device may touch these bytes; if not, says so to Python.
static int reaches(device *d, const char *what, const void *p, size_t size) {
  if (!size || memory_holds(d->memory, (uint64_t)p, size)) return 1;
  memory_note(d->memory, what, (uint64_t)p, size);
  return 0;
}

int copy(device *d, const char *what, void *to, const void *from, size_t size, int kind) {
  // With the default kind either may be the host's own memory, unless the address is a device's.
  int to_device = kind == HOST_TO_DEVICE || kind == DEVICE_TO_DEVICE || (kind == DEFAULT && owner(to));
  int from_device = kind == DEVICE_TO_HOST || kind == DEVICE_TO_DEVICE || (kind == DEFAULT && owner((void *)from));
  if ((to_device && !reaches(d, what, to, size)) || (from_device && !reaches(d, what, from, size))) return INVALID_VALUE;
  memmove(to, from, size);
  return SUCCESS;
}

int fill(device *d, const char *what, void *to, unsigned value, size_t width, size_t count) {
  if (count > SIZE_MAX / width || !reaches(d, what, to, width * count)) return INVALID_VALUE;
  for (size_t i = 0; i < count; ++i) memcpy((char *)to + width * i, &value, width);  // little endian: the low bytes
  return SUCCESS;
}

API hipMemcpyAsync(void *to, const void *from, size_t size, int kind, void *s) {
  int status;
  device *d = on(s, &status);
  return d ? copy(d, "hipMemcpyAsync", to, from, size, kind) : status;
}
API hipMemcpy(void *to, const void *from, size_t size, int kind) { return hipMemcpyAsync(to, from, size, kind, NULL); }
API hipMemcpyHtoDAsync(void *to, void *from, size_t size, void *s) { return hipMemcpyAsync(to, from, size, HOST_TO_DEVICE, s); }
API hipMemPrefetchAsync(const void *p, size_t size, int to, void *s) {
  (void)to;
  int status;
  device *d = on(s, &status);
  return d ? (reaches(d, "hipMemPrefetchAsync", p, size) ? SUCCESS : INVALID_VALUE) : status;
}

static int fill_async(const char *what, void *to, unsigned value, size_t width, size_t count, void *s) {
  int status;
  device *d = on(s, &status);
  return d ? fill(d, what, to, value, width, count) : status;
}
API hipMemsetAsync(void *to, int value, size_t count, void *s) { return fill_async("hipMemsetAsync", to, (unsigned)value, 1, count, s); }
API hipMemset(void *to, int value, size_t count) { return fill_async("hipMemset", to, (unsigned)value, 1, count, NULL); }
API hipMemsetD8Async(void *to, unsigned char v, size_t count, void *s) { return fill_async("hipMemsetD8Async", to, v, 1, count, s); }
API hipMemsetD16Async(void *to, unsigned short v, size_t count, void *s) { return fill_async("hipMemsetD16Async", to, v, 2, count, s); }
API hipMemsetD32Async(void *to, int v, size_t count, void *s) { return fill_async("hipMemsetD32Async", to, (unsigned)v, 4, count, s); }
