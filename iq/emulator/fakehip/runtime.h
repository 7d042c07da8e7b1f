// What the parts of the HIP API share. runtime.c: devices, handles; operations.c, queue.c: what is enqueued, and when it runs; streams.c,
// transfers.c, launch.c, graph.c, capture.c: the functions themselves.
#pragma once
#include <pthread.h>
#include <stddef.h>
#include <time.h>

#include "fakehip.h"

#define API EXPORT int

typedef struct { unsigned x, y, z; } dim3;

enum {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, DEINITIALIZED = 4, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NO_BINARY = 209,
  INVALID_HANDLE = 400, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILURE = 719,
  NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_MERGE = 902, CAPTURE_UNMATCHED = 903,
  CAPTURE_UNJOINED = 904, CAPTURE_ISOLATION = 905, CAPTURE_IMPLICIT = 906, CAPTURED_EVENT = 907, CAPTURE_WRONG_THREAD = 908,
};

enum { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT };

// ---- Handles: everything that is created and destroyed, other than memory, starts with a `handle`

typedef struct device device;
enum handle_kind { STREAM = 0x5EA1, EVENT, MODULE, FUNCTION, POOL, GRAPH };
// kind: 0 once it is destroyed. It is freed when nothing that is queued needs it any more; `end`, if any, frees what it has.
typedef struct { int kind, references; device *device; void (*end)(void *); } handle;

typedef struct stream stream;
typedef struct graph graph;
typedef struct capture capture;
typedef struct item item;

typedef struct { uint32_t count, *nodes; } node_set;  // nodes of a graph, by number

// One hipEventRecord: those who wait for it hold it, whatever becomes of the event.
typedef struct { int references, done; struct timespec time; } record;

// latest: NULL before the first record. capture: where it was recorded last, if that was captured, and after which nodes.
typedef struct { handle handle; record *latest; capture *capture; node_set after; } event;

typedef struct function { handle handle; layout layout; struct function *next; } function;

struct stream {
  handle handle;
  item *first, **last;  // what is queued, the one that is being executed included
  uint32_t length;
  stream *next_busy;
  capture *capture;  // what is enqueued becomes a node of it, after these nodes
  node_set after;
  stream *next_captured;
};

struct device {
  int ordinal, owners;  // owners: Python, and everyone who retains the context
  properties properties;
  memory *memory;  // NULL once nobody owns the device
  callbacks callbacks;
  int failed;  // the error that a launch ended with: sticky, as a GPU's is
  uint64_t handles;

  pthread_mutex_t lock;  // of what follows, of streams and of events; never held while Python is called
  pthread_cond_t changed;
  int contexts;
  int deferred;  // else what is enqueued runs at once
  uint64_t random;
  uint64_t tickets;  // how much has been queued
  stream null;
  stream *busy, *favourite;
  uint32_t patience;  // for how many steps the favourite goes on
  int executing, abandoned;  // a thread runs an operation; and is to drop the rest
  pthread_t executor;
  item *later;  // memory that was freed by the executing thread itself
  capture *captures;
};

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
void *retain(void *handle);
void drop(void *handle);

// The calling thread's, or NULL; and if it can be used.
device *current(void);
device *usable(device *d, int *status);
// The live device whose address it is, or was; may be called on any thread, with whatever context.
device *owner(const void *p);
stream *stream_of(device *d, void *s);

// ---- Operations: what is queued, and what the nodes of graphs are

typedef struct {
  enum { EMPTY, KERNEL, COPY, FILL, CALL, FREE, SIGNAL, WAIT, RECORD, RUN } kind;  // RECORD only in graphs, SIGNAL and WAIT only in queues
  union {
    struct { function *function; uint32_t dims[6]; void *kernarg; } kernel;
    // check_*: the device's side, which must be there. snapshot: a copy of `from`, made when it was enqueued.
    struct { const char *what; void *to; const void *from; void *snapshot; size_t size; int check_to, check_from, pageable; } copy;
    struct { const char *what; void *to; unsigned value, width; size_t count; } fill;
    struct { void (*function)(void *); void *data; } call;
    void *memory;
    record *record;
    event *event;
    struct { graph *graph; record **records; unsigned char *done; uint32_t left; } run;  // records: of the nodes that record
  };
} operation;

// Whether it could run now, its memory included. Both say to Python what is wrong with an address.
int operation_check(device *d, const operation *o);
int operation_run(device *d, const operation *o);
int operation_copy(operation *to, const operation *from);
void operation_end(operation *o);

// A launch with the caller's arguments in its kernarg segment; Python adds the hidden ones.
int launch_prepare(operation *out, function *f, const uint32_t dims[6], void **arguments);

int give_back(device *d, const char *what, void *p, uint64_t kinds);

record *record_create(void);
record *record_retain(record *r);
void record_drop(record *r);
void record_done(record *r);
// A new latest record of an event, held by the event and by the caller. With the lock held.
record *event_begin(event *e);

// ---- Queues. Whatever is given to `submit` and `push` is theirs from then on, even if they fail

// Run it at once, or queue it, or make it a node of the graph that is being captured.
int submit(device *d, stream *s, operation *o);
// Queue it or capture it; with the lock held, on a device that defers. Call `relieve` when the lock is free again.
int push(device *d, stream *s, operation *o);
void relieve(device *d, stream *s);
// Execute until all of a stream's operations that are queued now are done, or a record is, or if both are NULL, all of the device's.
int wait_for(device *d, stream *s, record *r);
// Execute a few operations, unless another thread does.
void progress(device *d);
int executes(device *d);  // whether this thread is within an operation of the device
void free_later(device *d, void *p, uint64_t kinds);
// Drop what is queued and end all captures. Waits for the operation that another thread executes.
void abandon(device *d);
uint64_t draw(device *d);

// ---- Graphs and captures

typedef struct { operation operation; node_set after; } node;
struct graph { handle handle; node **nodes; uint32_t count, room; int fixed; };  // fixed: it has been instantiated

// 0 when there is no memory for it.
int set_join(node_set *into, const node_set *other);
graph *graph_create(device *d, int *status);
// `o` belongs to the graph, or is ended.
int graph_add(graph *g, operation *o, const node_set *after, node **out);
// The number of a node that can run next, of those that are left.
uint32_t graph_choose(device *d, const operation *run);

// With the lock held.
int capture_add(stream *s, operation *o);
int capture_record(stream *s, event *e);
int capture_wait(stream *s, event *e);
void capture_leave(stream *s);
void capture_invalidate(capture *c);
void capture_end_all(device *d);
void capture_drop(capture *c);
// Without it: an error, if the calling thread may not make a call that could wait for captured work; the captures in question are invalid then.
int capture_forbids(device *d);
// The same for a call that would wait for this stream (NULL: for all).
int capture_forbids_waiting(device *d, stream *s);
