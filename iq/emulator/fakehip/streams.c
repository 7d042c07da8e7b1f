// The fake HIP runtime's streams and events.
#include <stdlib.h>

#include "runtime.h"

// ---- Streams

static void end_stream(void *s) { free(((stream *)s)->after.nodes); }

API hipStreamCreateWithFlags(stream **out, unsigned flags) {
  (void)flags;  // all are as independent of the null stream as hipStreamNonBlocking ones
  int status;
  stream *s = create(STREAM, sizeof *s, &status);
  if (s) s->handle.end = end_stream;
  *out = s;
  return status;
}
API hipStreamCreate(stream **s) { return hipStreamCreateWithFlags(s, 0); }
API hipStreamCreateWithPriority(stream **s, unsigned flags, int priority) { (void)priority; return hipStreamCreateWithFlags(s, flags); }
API hipStreamDestroy(stream *s) {
  if (!known(s, STREAM)) return INVALID_HANDLE;
  device *d = s->handle.device;
  pthread_mutex_lock(&d->lock);
  capture_leave(s);
  pthread_mutex_unlock(&d->lock);
  return destroy(s, STREAM);
}

API hipStreamSynchronize(void *s) {
  int status;
  device *d = on(s, &status);
  if (!d || (status = capture_forbids_waiting(d, stream_of(d, s))) || (status = capture_forbids(d))) return status;
  return wait_for(d, stream_of(d, s), NULL);
}
API hipStreamQuery(void *s) {
  int status;
  device *d = on(s, &status);
  if (!d || (status = capture_forbids_waiting(d, stream_of(d, s))) || (status = capture_forbids(d))) return status;
  progress(d);
  pthread_mutex_lock(&d->lock);
  status = d->failed ? d->failed : stream_of(d, s)->first ? NOT_READY : SUCCESS;
  pthread_mutex_unlock(&d->lock);
  return status;
}
API hipDeviceSynchronize(void) {
  int status;
  device *d = usable(current(), &status);
  return !d || (status = capture_forbids_waiting(d, NULL)) ? status : wait_for(d, NULL, NULL);
}
API hipCtxSynchronize(void) { return hipDeviceSynchronize(); }

API hipLaunchHostFunc(void *s, void (*call)(void *), void *data) {
  int status;
  device *d = on(s, &status);
  return d ? submit(d, stream_of(d, s), &(operation){.kind = CALL, .call = {call, data}}) : status;
}

// ---- Events

static void end_event(void *p) {
  event *e = p;
  record_drop(e->latest);
  capture_drop(e->capture);
  free(e->after.nodes);
}

API hipEventCreateWithFlags(event **out, unsigned flags) {
  (void)flags;
  int status;
  event *e = create(EVENT, sizeof *e, &status);
  if (e) e->handle.end = end_event;
  *out = e;
  return status;
}
API hipEventCreate(event **e) { return hipEventCreateWithFlags(e, 0); }
API hipEventDestroy(event *e) { return destroy(e, EVENT); }

API hipEventRecord(event *e, void *where) {
  int status;
  device *d = of(e, EVENT, &status);
  if (!d) return status;
  if (on(where, &status) != d) return status ? status : INVALID_HANDLE;
  stream *s = stream_of(d, where);
  pthread_mutex_lock(&d->lock);
  int full = 0;
  if (s->capture) status = capture_record(s, e);
  else {
    operation o = {.kind = SIGNAL, .record = event_begin(e)};
    status = !o.record ? OUT_OF_MEMORY : d->deferred ? push(d, s, &o) : (operation_end(&o), SUCCESS);
    full = d->deferred;
  }
  pthread_mutex_unlock(&d->lock);
  if (full) relieve(d, s);
  return status;
}

// The latest record of an event, for the caller to hold; NULL when there is none, with an error in `status` if it was captured.
static record *latest(event *e, int *status) {
  device *d = e->handle.device;
  pthread_mutex_lock(&d->lock);
  record *r = e->latest && !e->capture ? record_retain(e->latest) : NULL;
  *status = e->capture ? CAPTURED_EVENT : SUCCESS;
  if (e->capture) capture_invalidate(e->capture);
  pthread_mutex_unlock(&d->lock);
  return r;
}

// A recorded event has happened on a device that does not defer, even where a kernel that was launched later has failed since. IREE's hip
// driver relies on it: an error here, or of hipFreeAsync, is one that its cleanup thread keeps, and that each buffer which is released from
// then on frees once more (cleanup_thread.c: iree_hal_hip_cleanup_thread_add_cleanup gives its callers the status itself, not a clone, and they
// own what they get).
static int look(event *e, int wait) {
  if (!known(e, EVENT)) return INVALID_HANDLE;
  device *d = e->handle.device;
  int status;
  record *r = latest(e, &status);
  if (!status && d->memory) status = capture_forbids(d);
  if (!status && d->deferred && d->failed) status = d->failed;
  if (!status && r && d->deferred) {
    if (wait) status = wait_for(d, NULL, r);
    else progress(d), status = r->done ? d->failed : NOT_READY;
  }
  record_drop(r);
  return status;
}
API hipEventQuery(event *e) { return look(e, 0); }
API hipEventSynchronize(event *e) { return look(e, 1); }

API hipEventElapsedTime(float *milliseconds, event *a, event *b) {
  int status;
  if (!of(a, EVENT, &status) || !of(b, EVENT, &status)) return status;
  record *from = latest(a, &status), *to = status ? NULL : latest(b, &status);
  if (!status) status = !from || !to ? INVALID_HANDLE : !from->done || !to->done ? NOT_READY : SUCCESS;
  if (!status) *milliseconds = (float)(to->time.tv_sec - from->time.tv_sec) * 1e3f + (float)(to->time.tv_nsec - from->time.tv_nsec) * 1e-6f;
  record_drop(from), record_drop(to);
  return status;
}

// An event of another device: done before this returns, which is early enough.
static int wait_elsewhere(device *d, stream *s, event *e) {
  pthread_mutex_lock(&d->lock);
  int status = s->capture ? CAPTURE_ISOLATION : SUCCESS;
  if (s->capture) capture_invalidate(s->capture);
  pthread_mutex_unlock(&d->lock);
  record *r = status ? NULL : latest(e, &status);
  if (r) status = wait_for(e->handle.device, NULL, r);
  record_drop(r);
  return status;
}

API hipStreamWaitEvent(void *where, event *e, unsigned flags) {
  (void)flags;
  int status;
  device *other = of(e, EVENT, &status), *d = other ? on(where, &status) : NULL;
  if (!d) return status;
  stream *s = stream_of(d, where);
  if (d != other) return wait_elsewhere(d, s, e);
  pthread_mutex_lock(&d->lock);
  if (s->capture || e->capture) status = capture_wait(s, e);
  else if (e->latest && !e->latest->done) status = push(d, s, &(operation){.kind = WAIT, .record = record_retain(e->latest)});
  pthread_mutex_unlock(&d->lock);
  relieve(d, s);
  return status;
}
