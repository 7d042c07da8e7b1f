// A HIP runtime (libamdhip64) for emulated devices: what IREE's hip driver and iq's own launches need of one, and no more. Here: devices,
// contexts, handles.
//
// What is enqueued runs at once, or later (queue.c). Memory is the host's (memory.c) and every copy is checked against it. Code objects and
// launches go to Python; nothing else does, because IREE calls from threads of its own, and may wait for them while it holds Python's lock.
//
// Structures and numbers are those of hip_runtime_api.h, HIP 6 (the hipGetDeviceProperties that IREE asks for is the older R0000).
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

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
  *d = (device){.owners = 1, .properties = *p, .memory = m, .callbacks = *c, .null.handle = {STREAM, 1, d, NULL}};
  pthread_mutex_init(&d->lock, NULL);
  pthread_cond_init(&d->changed, NULL);
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
  int last = !--d->owners;
  pthread_mutex_unlock(&lock);
  if (!last) return;
  abandon(d);  // before its memory goes
  pthread_mutex_lock(&lock);
  memory *unused = d->memory;
  d->memory = NULL;
  pthread_mutex_unlock(&lock);
  memory_release(unused);
}

void fakehip_remove_device(int ordinal) {
  device *d = get_device(ordinal);
  abandon(d);  // what runs still calls Python
  d->callbacks = (callbacks){0};
  release(d);
}

void fakehip_defer(int ordinal, uint64_t seed) {
  device *d = get_device(ordinal);
  if (!seed) wait_for(d, NULL, NULL);
  pthread_mutex_lock(&d->lock);
  d->deferred = seed != 0;
  d->random = seed * 0x9E3779B97F4A7C15;  // near seeds are far apart, and none but 0 gives 0
  for (int i = 0; i < 8 && seed; ++i) draw(d);
  d->favourite = NULL;
  pthread_mutex_unlock(&d->lock);
}

uint64_t fakehip_handles(int ordinal) { return __atomic_load_n(&get_device(ordinal)->handles, __ATOMIC_SEQ_CST); }

enum { MAX_DEPTH = 64 };
static __thread device *contexts[MAX_DEPTH];
static __thread int depth;

device *current(void) { return depth ? contexts[depth - 1] : NULL; }

device *usable(device *d, int *status) {
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
// A device that is gone is no thread's current one: its number may be another's by now.
API hipGetDevice(int *ordinal) {
  device *d = current();
  if (!d || get_device(d->ordinal) != d) return INVALID_CONTEXT;
  *ordinal = d->ordinal;
  return SUCCESS;
}
API hipSetDevice(unsigned ordinal) { device *d = get_device((int)ordinal); return d ? hipCtxSetCurrent(d) : INVALID_DEVICE; }
API hipDevicePrimaryCtxRetain(device **out, int ordinal) {
  device *d = get_device(ordinal);
  if (!d) return INVALID_DEVICE;
  pthread_mutex_lock(&lock);
  ++d->owners, ++d->contexts;
  pthread_mutex_unlock(&lock);
  *out = d;
  return SUCCESS;
}
API hipDevicePrimaryCtxRelease(int ordinal) {
  device *d = get_device(ordinal);
  if (!d) return INVALID_DEVICE;
  pthread_mutex_lock(&lock);
  int last = !--d->contexts;
  pthread_mutex_unlock(&lock);
  if (last) abandon(d);
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
API hipDeviceTotalMem(size_t *size, int ordinal) {
  device *d = get_device(ordinal);
  if (!d) return INVALID_DEVICE;
  *size = d->properties.total_memory;
  return SUCCESS;
}
API hipDriverGetVersion(int *version) { *version = 60000000; return SUCCESS; }  // 6.0.0
API hipRuntimeGetVersion(int *version) { return hipDriverGetVersion(version); }

// Of gfx942 94, of gfx1100 110: the last digit is the stepping.
static int version(const device *d) {
  int value = 0, digits = (int)strcspn(d->properties.arch, ":");
  for (int i = 3; i < digits - 1; ++i) value = 10 * value + d->properties.arch[i] - '0';
  return value;
}
API hipDeviceGetAttribute(int *value, int attribute, int ordinal) {
  device *d = get_device(ordinal);
  if (!d) return INVALID_DEVICE;
  switch (attribute) {
    case 9: *value = 0; return SUCCESS;  // ConcurrentManagedAccess
    case 23: *value = version(d) / 10; return SUCCESS;  // ComputeCapabilityMajor
    case 61: *value = version(d) % 10; return SUCCESS;  // ComputeCapabilityMinor
    case 63: *value = 1; return SUCCESS;  // MultiprocessorCount
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

// From HIP 6 on; its fields in the order of hip_runtime_api.h, those that are not filled in by their sizes alone.
typedef struct {
  char name[256], uuid[16], luid[8];
  unsigned luidDeviceNodeMask;
  size_t totalGlobalMem, sharedMemPerBlock;
  int regsPerBlock, warpSize;
  size_t memPitch;
  int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3], clockRate;
  size_t totalConstMem;
  int major, minor;
  size_t alignments[2];
  int multiprocessors[45];  // deviceOverlap to maxSurfaceCubemapLayered
  size_t surfaceAlignment;
  int flags[16];  // concurrentKernels to localL1CacheSupported
  size_t sharedMemPerMultiprocessor;
  int regsPerMultiprocessor, managedMemory, board[10];  // isMultiGpuBoard to cooperativeMultiDeviceLaunch
  size_t sharedMemPerBlockOptin;
  int blocks[4];  // pageableMemoryAccessUsesHostPageTables to accessPolicyMaxWindowSize
  size_t reservedSharedMemPerBlock;
  int more[13], reserved[63], hipReserved[32];  // hostRegisterSupported to unifiedFunctionPointers
  char gcnArchName[256];
  size_t maxSharedMemoryPerMultiProcessor;
  int clockInstructionRate;
  unsigned arch, *hdpMemFlushCntl, *hdpRegFlushCntl;
  int cooperativeMultiDeviceUnmatched[4], isLargeBar, asicRevision;
} hipDeviceProp_tR0600;
_Static_assert(offsetof(hipDeviceProp_tR0600, gcnArchName) == 1160 && sizeof(hipDeviceProp_tR0600) == 1472, "as in HIP 6.2");
_Static_assert(offsetof(hipDeviceProp_tR0000, gcnArchName) == 396 && sizeof(hipDeviceProp_tR0000) == 792, "as in HIP 5.7");

API hipGetDevicePropertiesR0600(hipDeviceProp_tR0600 *out, int ordinal) {
  device *d = get_device(ordinal);
  if (!d) return INVALID_DEVICE;
  const properties *p = &d->properties;
  int n = (int)p->max_threads;
  *out = (hipDeviceProp_tR0600){
    .totalGlobalMem = p->total_memory, .sharedMemPerBlock = p->lds, .maxSharedMemoryPerMultiProcessor = p->lds, .warpSize = (int)p->wave,
    .maxThreadsPerBlock = n, .maxThreadsDim = {n, n, n}, .maxGridSize = {2147483647, 65535, 65535}, .managedMemory = 1,
  };
  memcpy(out->name, p->name, sizeof out->name);
  memcpy(out->gcnArchName, p->arch, sizeof out->gcnArchName);
  return SUCCESS;
}

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

// ---- Handles: everything that is created and destroyed, other than memory

handle *known(void *p, enum handle_kind kind) {
  handle *h = p;
  // Small numbers are not addresses: CUDA has them for special streams, which nothing here asks for.
  return (uint64_t)p >= 4096 && h->kind == (int)kind ? h : NULL;
}

void *create(enum handle_kind kind, size_t size, int *status) {
  device *d = usable(current(), status);
  return d ? create_for(d, kind, size, status) : NULL;
}
void *create_for(device *d, enum handle_kind kind, size_t size, int *status) {
  handle *h = calloc(1, size);
  *status = h ? SUCCESS : OUT_OF_MEMORY;
  if (h) *h = (handle){kind, 1, d, NULL}, __atomic_add_fetch(&d->handles, 1, __ATOMIC_SEQ_CST);
  return h;
}

int destroy(void *p, enum handle_kind kind) {
  handle *h = known(p, kind);
  if (!h) return INVALID_HANDLE;
  __atomic_sub_fetch(&h->device->handles, 1, __ATOMIC_SEQ_CST);
  h->kind = 0;  // a second destroy, or a use, is likely to notice
  drop(h);
  return SUCCESS;
}

void *retain(void *p) { __atomic_add_fetch(&((handle *)p)->references, 1, __ATOMIC_SEQ_CST); return p; }
void drop(void *p) {
  handle *h = p;
  if (__atomic_sub_fetch(&h->references, 1, __ATOMIC_SEQ_CST)) return;
  if (h->end) h->end(h);
  free(h);
}

device *of(void *p, enum handle_kind kind, int *status) {
  handle *h = known(p, kind);
  if (h) return usable(h->device, status);
  *status = INVALID_HANDLE;
  return NULL;
}

device *on(void *s, int *status) { return s ? of(s, STREAM, status) : usable(current(), status); }
stream *stream_of(device *d, void *s) { return s ? s : &d->null; }

device *owner(const void *p) {
  device *found = NULL;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < device_count && !found; ++i)
    if (devices[i]->memory && memory_owns(devices[i]->memory, (uint64_t)p)) found = devices[i];
  pthread_mutex_unlock(&lock);
  return found;
}
