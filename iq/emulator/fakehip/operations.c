// The fake HIP runtime's operations: what each does, and what it holds until it is done.
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

// Whether a device may touch these bytes; if not, says so to Python.
static int reaches(device *d, const char *what, const void *p, size_t size) {
  if (!size || memory_holds(d->memory, (uint64_t)p, size)) return 1;
  memory_note(d->memory, what, (uint64_t)p, size);
  return 0;
}

int operation_check(device *d, const operation *o) {
  switch (o->kind) {
    case KERNEL: return known(o->kernel.function, FUNCTION) ? SUCCESS : INVALID_HANDLE;
    case COPY:
      if (o->copy.check_to && !reaches(d, o->copy.what, o->copy.to, o->copy.size)) return INVALID_VALUE;
      return !o->copy.check_from || reaches(d, o->copy.what, o->copy.from, o->copy.size) ? SUCCESS : INVALID_VALUE;
    case FILL:
      if (o->fill.count > SIZE_MAX / o->fill.width) return INVALID_VALUE;
      return reaches(d, o->fill.what, o->fill.to, o->fill.width * o->fill.count) ? SUCCESS : INVALID_VALUE;
    default: return SUCCESS;
  }
}

static int launch(device *d, const operation *o) {
  const layout *l = &o->kernel.function->layout;
  if (!d->callbacks.launch) return DEINITIALIZED;
  int status = d->callbacks.launch(l->id, o->kernel.dims, o->kernel.kernarg, l->kernarg);
  if (status) d->failed = status;
  return status;
}

// All nodes of a graph in the order they were added, which their dependencies allow.
static int run(device *d, const operation *o) {
  int status = SUCCESS;
  for (uint32_t i = 0; i < o->run.graph->count && !status; ++i) {
    const operation *each = &o->run.graph->nodes[i]->operation;
    if (each->kind == RECORD) record_done(o->run.records[i]);
    else status = operation_run(d, each);
  }
  return status;
}

int operation_run(device *d, const operation *o) {
  int status = operation_check(d, o);
  if (status) return status;
  switch (o->kind) {
    case KERNEL: return launch(d, o);
    case COPY: memmove(o->copy.to, o->copy.snapshot ? o->copy.snapshot : o->copy.from, o->copy.size); return SUCCESS;
    case FILL:  // little endian: the low bytes
      for (size_t i = 0; i < o->fill.count; ++i) memcpy((char *)o->fill.to + o->fill.width * i, &o->fill.value, o->fill.width);
      return SUCCESS;
    case CALL: o->call.function(o->call.data); return SUCCESS;
    // What is wrong with the address is noted for Python; to IREE it is no error (see hipEventQuery).
    case FREE: give_back(d, "hipFreeAsync", o->memory, MEMORY_DEVICE); return SUCCESS;
    case RUN: return run(d, o);
    default: return SUCCESS;
  }
}

// For nodes of graphs, which hold no snapshots, records or other graphs.
int operation_copy(operation *to, const operation *from) {
  *to = *from;
  if (from->kind == RECORD) retain(from->event);
  if (from->kind != KERNEL) return SUCCESS;
  uint32_t size = from->kernel.function->layout.kernarg;
  if (!(to->kernel.kernarg = malloc(size ? size : 1))) return OUT_OF_MEMORY;
  memcpy(to->kernel.kernarg, from->kernel.kernarg, size);
  retain(from->kernel.function);
  return SUCCESS;
}

void operation_end(operation *o) {
  switch (o->kind) {
    case KERNEL: free(o->kernel.kernarg), drop(o->kernel.function); break;
    case COPY: free(o->copy.snapshot); break;
    case SIGNAL: record_done(o->record), record_drop(o->record); break;  // where it did not run, nobody is to wait for it
    case WAIT: record_drop(o->record); break;
    case RECORD: drop(o->event); break;
    case RUN:
      for (uint32_t i = 0; o->run.records && i < o->run.graph->count; ++i)
        if (o->run.records[i]) record_done(o->run.records[i]), record_drop(o->run.records[i]);
      free(o->run.records), free(o->run.done), drop(o->run.graph);
      break;
    default: break;
  }
  o->kind = EMPTY;
}

int give_back(device *d, const char *what, void *p, uint64_t kinds) {
  if (!p || (d && memory_free(d->memory, (uint64_t)p, kinds))) return SUCCESS;
  if (d) memory_note(d->memory, what, (uint64_t)p, 0);
  return INVALID_VALUE;
}

// ---- Records of events

record *record_create(void) {
  record *r = calloc(1, sizeof *r);
  if (r) r->references = 1;
  return r;
}
record *record_retain(record *r) { __atomic_add_fetch(&r->references, 1, __ATOMIC_SEQ_CST); return r; }
void record_drop(record *r) {
  if (r && !__atomic_sub_fetch(&r->references, 1, __ATOMIC_SEQ_CST)) free(r);
}
void record_done(record *r) {
  if (__atomic_load_n(&r->done, __ATOMIC_SEQ_CST)) return;
  clock_gettime(CLOCK_MONOTONIC, &r->time);
  __atomic_store_n(&r->done, 1, __ATOMIC_SEQ_CST);
}

record *event_begin(event *e) {
  record *r = record_create();
  if (!r) return NULL;
  record_drop(e->latest);
  e->latest = record_retain(r);
  capture_drop(e->capture), e->capture = NULL;
  return r;
}
