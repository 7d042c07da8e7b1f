// What the parts of the fake HIP runtime share: the memory of an emulated device, and what Python tells and asks of a device.
// Mirrored by the ctypes structures in hip.py and memory.py.
#pragma once
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

// ---- Memory (memory.c)

typedef struct memory memory;

enum memory_kind { MEMORY_DEVICE = 1, MEMORY_MANAGED = 2, MEMORY_HOST = 4, MEMORY_REGISTERED = 8 };

typedef struct {
  uint64_t start, size, kind;
} allocation;

// An access to memory that is not there, by the runtime itself (kernels are checked in Python).
typedef struct {
  char what[64];
  uint64_t address, size;
} fault;

// `capacity`: bytes that may be live at once. It ends with the last of its owners, of whom the caller is the first.
EXPORT memory *memory_create(uint64_t capacity);
EXPORT void memory_retain(memory *m);
EXPORT void memory_release(memory *m);
// 0 when there is not enough. All but host memory is poisoned.
EXPORT uint64_t memory_allocate(memory *m, uint64_t size, uint64_t kind);
// Memory of the host's own, which the device may use from now on. 0 when a part of it is known already.
EXPORT int memory_register(memory *m, uint64_t address, uint64_t size);
// Whether there was a live allocation of one of the `kinds` at exactly this address.
EXPORT int memory_free(memory *m, uint64_t address, uint64_t kinds);
// Whether all bytes lie in one live allocation.
EXPORT int memory_holds(memory *m, uint64_t address, uint64_t size);
// Whether the address is, or was, this memory's.
EXPORT int memory_owns(memory *m, uint64_t address);
// The live allocation that an address lies in, if there is one.
EXPORT int memory_find(memory *m, uint64_t address, allocation *out);
EXPORT void memory_usage(memory *m, uint64_t *used, uint64_t *capacity);
// Live allocations by address, or the latest freed ones by age: how many there are, and as many of them as fit.
EXPORT uint64_t memory_live(memory *m, allocation *out, uint64_t room);
EXPORT uint64_t memory_freed(memory *m, allocation *out, uint64_t room);
// Keep a fault until Python asks; the first one stays.
EXPORT void memory_note(memory *m, const char *what, uint64_t address, uint64_t size);
EXPORT int memory_take_fault(memory *m, fault *out);

// ---- Devices (runtime.c)

enum { MAX_ARGUMENTS = 512 };

typedef struct {
  char name[256], arch[256];
  uint64_t total_memory;
  uint32_t lds, wave, max_threads;
} properties;

// A kernel: its number, bytes of LDS, and where the arguments go in its kernarg segment.
typedef struct {
  uint64_t id;
  uint32_t lds, kernarg, count;
  uint32_t offsets[MAX_ARGUMENTS], sizes[MAX_ARGUMENTS];
} layout;

// Python's part. Each returns a hipError_t.
typedef struct {
  int (*load)(const void *elf, uint64_t size, uint64_t *module);
  int (*function)(uint64_t module, const char *name, layout *out);
  int (*launch)(uint64_t function, const uint32_t grid_and_block[6], const void *kernarg, uint32_t size);
} callbacks;

// The device's number for hipDeviceGet, or -1 when there are too many.
EXPORT int fakehip_add_device(const properties *p, memory *m, const callbacks *c);
// Python is done with the device: its callbacks are called no more. The device ends when the HIP context has been released as well.
EXPORT void fakehip_remove_device(int ordinal);
// From now on what is enqueued runs when somebody waits, in an order drawn from `seed` (queue.c); with 0, as at first, at once.
EXPORT void fakehip_defer(int ordinal, uint64_t seed);
// Live streams, events, modules, kernels, pools and graphs of a device.
EXPORT uint64_t fakehip_handles(int ordinal);
