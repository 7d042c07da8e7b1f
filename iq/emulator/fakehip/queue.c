// The fake HIP runtime's queues: when what is enqueued runs.
//
// By default everything runs when it is enqueued, in the calling thread, which is one of the orders a GPU may choose: streams and events have
// nothing to wait for. `fakehip_defer` makes a device choose others: what is enqueued stays in its stream's queue until somebody waits, and
// then the heads of all streams take turns at random. One stream often goes on for a while, so that it gets far ahead of the others. Each
// stream keeps its order and events are waited for, so that what such a run gets wrong, a GPU may get wrong.
//
// Operations run in the threads that wait, one at a time, without any lock: they call Python, which other threads hold while they enqueue.
#include <stdlib.h>

#include "runtime.h"

enum { LONGEST = 1024 };  // a queue that is longer makes its caller wait, as real ones do

struct item { operation operation; uint64_t ticket, kinds; item *next; };  // kinds: of memory that is freed later

// xorshift64*
uint64_t draw(device *d) {
  d->random ^= d->random >> 12, d->random ^= d->random << 25, d->random ^= d->random >> 27;
  return (d->random * 0x2545F4914F6CDD1Dull) >> 32;
}

int executes(device *d) {
  pthread_mutex_lock(&d->lock);
  int mine = d->executing && pthread_equal(d->executor, pthread_self());
  pthread_mutex_unlock(&d->lock);
  return mine;
}

// Whether nothing is left of what had been queued when this ticket was the latest.
static int past(device *d, uint64_t ticket) {
  for (stream *s = d->busy; s; s = s->next_busy) if (s->first->ticket <= ticket) return 0;
  return 1;
}

static void pop(device *d, stream *s) {
  item *i = s->first;
  s->first = i->next, --s->length;
  operation_end(&i->operation);
  free(i);
  if (s->first) return;
  stream **link = &d->busy;
  while (*link != s) link = &(*link)->next_busy;
  *link = s->next_busy;
  if (s == d->favourite) d->favourite = NULL;
  drop(s);
}

static void free_what_can_be(device *d) {
  for (item *i; (i = d->later) && past(d, i->ticket);) {
    d->later = i->next;
    if (d->memory) give_back(d, "hipFree", i->operation.memory, i->kinds);
    free(i);
  }
}

static void empty(device *d) {
  while (d->busy) {
    stream *s = d->busy;
    // What would have been freed is, so that a device that has failed does not leak.
    if (s->first->operation.kind == FREE && d->memory) give_back(d, "hipFreeAsync", s->first->operation.memory, MEMORY_DEVICE);
    pop(d, s);
  }
  free_what_can_be(d);
}

static stream *choose(device *d) {
  uint32_t able = 0;
  stream *chosen = NULL;
  for (stream *s = d->busy; s; s = s->next_busy) {
    const operation *o = &s->first->operation;
    if (o->kind == WAIT && !o->record->done) continue;
    if (s == d->favourite && d->patience) return --d->patience, s;
    if (draw(d) % ++able == 0) chosen = s;
  }
  // Half of the time streams take turns.
  if (chosen) d->favourite = chosen, d->patience = draw(d) % 2 ? (uint32_t)(draw(d) % 64) : 0;
  return chosen;
}

// Execute one operation, or one node of a graph; with the lock held, which is free meanwhile. 0 when none can run.
static int step(device *d) {
  stream *s = d->memory ? choose(d) : NULL;
  if (!s) return 0;
  operation *o = &s->first->operation, *todo = o;
  uint32_t n = 0;
  if (o->kind == RUN && o->run.left) n = graph_choose(d, o), todo = &o->run.graph->nodes[n]->operation;
  int status = SUCCESS;
  if (todo->kind == SIGNAL) record_done(todo->record), d->patience = 0;  // those who waited may be faster than what comes next
  else if (todo->kind == RECORD) record_done(o->run.records[n]), d->patience = 0;
  else if (todo->kind != RUN) {
    d->executing = 1, d->executor = pthread_self();
    pthread_mutex_unlock(&d->lock);
    status = operation_run(d, todo);
    pthread_mutex_lock(&d->lock);
    d->executing = 0;
  }
  // There is no caller to tell: to a GPU a wrong address is one more reason to stop.
  if (status && !d->failed) d->failed = status == INVALID_VALUE ? ILLEGAL_ADDRESS : status;
  int more = 0;  // the rest of the graph comes later
  if (o->kind == RUN && o->run.left) o->run.done[n] = 1, more = --o->run.left > 0;
  if (d->failed || d->abandoned) empty(d), d->abandoned = 0;
  else if (!more) pop(d, s);
  free_what_can_be(d);
  pthread_cond_broadcast(&d->changed);
  return 1;
}

static int reached(device *d, stream *s, record *r, uint64_t ticket) {
  return r ? r->done : s ? !s->first || s->first->ticket > ticket : past(d, ticket);
}

int wait_for(device *d, stream *s, record *r) {
  pthread_mutex_lock(&d->lock);
  if (s) retain(s);
  uint64_t ticket = d->tickets;
  int mine = d->executing && pthread_equal(d->executor, pthread_self()), status = SUCCESS;
  while (!status && !d->failed && d->memory && !reached(d, s, r, ticket)) {
    if (mine) status = NOT_SUPPORTED;  // within a host function: it would wait for itself
    else if (d->executing) pthread_cond_wait(&d->changed, &d->lock);
    else if (!step(d)) break;
  }
  if (!status) status = d->memory ? d->failed : DEINITIALIZED;
  if (s) drop(s);
  pthread_mutex_unlock(&d->lock);
  return status;
}

void progress(device *d) {
  pthread_mutex_lock(&d->lock);
  for (uint64_t n = d->deferred && !d->executing ? draw(d) % 4 : 0; n && !d->executing && step(d); --n);
  pthread_mutex_unlock(&d->lock);
}

int push(device *d, stream *s, operation *o) {
  if (s->capture) return capture_add(s, o);
  item *i = calloc(1, sizeof *i);
  if (!i) return operation_end(o), OUT_OF_MEMORY;
  *i = (item){.operation = *o, .ticket = ++d->tickets};
  if (!s->first) retain(s), s->next_busy = d->busy, d->busy = s, s->last = &s->first;
  *s->last = i, s->last = &i->next;
  ++s->length;
  return SUCCESS;
}

// Not while another thread executes: that one may need what this one holds, Python's lock for example.
void relieve(device *d, stream *s) {
  pthread_mutex_lock(&d->lock);
  retain(s);
  while (s->length > LONGEST && !d->executing && step(d));
  drop(s);
  pthread_mutex_unlock(&d->lock);
}

int submit(device *d, stream *s, operation *o) {
  int status = operation_check(d, o);
  if (status) return operation_end(o), status;
  pthread_mutex_lock(&d->lock);
  int now = !d->deferred && !s->capture;
  status = now ? SUCCESS : d->failed ? (operation_end(o), d->failed) : push(d, s, o);
  int full = !now && s->length > LONGEST;
  pthread_mutex_unlock(&d->lock);
  if (now) status = operation_run(d, o), operation_end(o);
  if (full) relieve(d, s);
  return status;
}

void free_later(device *d, void *p, uint64_t kinds) {
  pthread_mutex_lock(&d->lock);
  item *i = calloc(1, sizeof *i), **link = &d->later;
  while (*link) link = &(*link)->next;
  if (i) *i = (item){.operation = {.kind = FREE, .memory = p}, .ticket = d->tickets, .kinds = kinds}, *link = i;
  pthread_mutex_unlock(&d->lock);
}

void abandon(device *d) {
  pthread_mutex_lock(&d->lock);
  int mine = d->executing && pthread_equal(d->executor, pthread_self());
  while (d->executing && !mine) pthread_cond_wait(&d->changed, &d->lock);
  if (mine) d->abandoned = 1;  // `step` drops the rest when the operation is done that this is a part of
  else empty(d);
  capture_end_all(d);
  pthread_cond_broadcast(&d->changed);
  pthread_mutex_unlock(&d->lock);
}
