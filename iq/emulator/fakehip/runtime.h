// What the two halves of the HIP API share: runtime.c and launch.c.
#pragma once
#include <stddef.h>
#include <time.h>

#include "fakehip.h"

#define API EXPORT int

enum {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, DEINITIALIZED = 4, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NO_BINARY = 209,
  INVALID_HANDLE = 400, NOT_FOUND = 500, LAUNCH_FAILURE = 719, NOT_SUPPORTED = 801,
};

enum { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT };

typedef struct {
  int ordinal, owners;  // owners: Python, and everyone who retains the context
  properties properties;
  memory *memory;  // NULL once nobody owns the device
  callbacks callbacks;
  int failed;  // the error that a launch ended with: sticky, as a GPU's is
  uint64_t handles;
} device;

// Everything that is created and destroyed, other than memory, starts with this.
enum handle_kind { STREAM = 0x5EA1, EVENT, MODULE, FUNCTION, POOL, GRAPH };
typedef struct { int kind; device *device; } handle;
typedef struct { handle handle; struct timespec time; } event;

// A handle that is one of a kind, else NULL.
handle *known(void *handle, enum handle_kind kind);

// Each gives NULL when the device cannot be used, with the error in `status`.
// A zeroed object of the current device, or of another; the device of a handle; that of a stream, where the null stream is the current
// device's.
void *create(enum handle_kind kind, size_t size, int *status);
void *create_for(device *d, enum handle_kind kind, size_t size, int *status);
device *of(void *handle, enum handle_kind kind, int *status);
device *on(void *stream, int *status);

int destroy(void *handle, enum handle_kind kind);

// Both check what the device reaches; `what` names the function for the error.
int copy(device *d, const char *what, void *to, const void *from, size_t size, int kind);
int fill(device *d, const char *what, void *to, unsigned value, size_t width, size_t count);

API hipEventRecord(event *e, void *stream);
