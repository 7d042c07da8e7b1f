// The fake HIP runtime's stream capture: what is enqueued becomes nodes of a graph, in CUDA's rules.
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

enum { GLOBAL, THREAD_LOCAL, RELAXED };  // hipStreamCaptureMode
enum { NONE, ACTIVE, INVALIDATED };  // hipStreamCaptureStatus

// Held by its device until it ends, and by the events that were recorded in it.
struct capture {
  int references, mode, invalid, ended;
  uint64_t id;
  pthread_t thread;
  graph *graph;
  stream *origin, *streams;
  capture *next;
};

static __thread int thread_mode = GLOBAL;

void capture_drop(capture *c) {
  if (c && !__atomic_sub_fetch(&c->references, 1, __ATOMIC_SEQ_CST)) free(c);
}
void capture_invalidate(capture *c) { c->invalid = 1; }

static int refuse(capture *c, int status) { return c->invalid = 1, status; }

static void set_empty(node_set *s) { free(s->nodes), *s = (node_set){0}; }

static void join(capture *c, stream *s) { s->capture = c, s->next_captured = c->streams, c->streams = s; }

// The graph, which is the caller's from here on.
static graph *end(capture *c) {
  for (stream *s; (s = c->streams);) c->streams = s->next_captured, s->capture = NULL, set_empty(&s->after);
  capture **link = &c->graph->handle.device->captures;
  while (*link != c) link = &(*link)->next;
  *link = c->next;
  graph *g = c->graph;
  c->graph = NULL, c->ended = 1;
  capture_drop(c);
  return g;
}

void capture_leave(stream *s) {
  capture *c = s->capture;
  if (!c) return;
  if (c->origin == s) { destroy(end(c), GRAPH); return; }
  stream **link = &c->streams;
  while (*link != s) link = &(*link)->next_captured;
  *link = s->next_captured;
  s->capture = NULL;
}

void capture_end_all(device *d) { while (d->captures) destroy(end(d->captures), GRAPH); }

// ---- What becomes a node

static int add(stream *s, operation *o, const node_set *after, node_set *into) {
  graph *g = s->capture->graph;
  int status = graph_add(g, o, after, NULL);
  uint32_t n = g->count - 1;
  return status ? status : set_join(into, &(node_set){1, &n}) ? SUCCESS : OUT_OF_MEMORY;
}

// A launch of a graph: its nodes, after those of the stream; the stream goes on after those that nothing in the graph comes after.
static int add_graph(stream *s, const graph *launched) {
  graph *g = s->capture->graph;
  uint32_t base = g->count;
  unsigned char *inner = calloc(launched->count + 1, 1);
  int status = inner ? SUCCESS : OUT_OF_MEMORY;
  node_set last = {0};
  for (uint32_t i = 0; i < launched->count && !status; ++i) {
    const node_set *inside = &launched->nodes[i]->after;
    node_set after = {0}, ignored = {0};
    operation o;
    for (uint32_t j = 0, n; j < inside->count; ++j) {
      n = base + inside->nodes[j], inner[inside->nodes[j]] = 1;
      if (!set_join(&after, &(node_set){1, &n})) status = OUT_OF_MEMORY;
    }
    if (!status) status = operation_copy(&o, &launched->nodes[i]->operation);
    if (!status) status = add(s, &o, inside->count ? &after : &s->after, &ignored);
    free(after.nodes), free(ignored.nodes);
  }
  for (uint32_t i = 0, n; i < launched->count && !status; ++i)
    if (n = base + i, !inner[i] && !set_join(&last, &(node_set){1, &n})) status = OUT_OF_MEMORY;
  free(inner);
  if (launched->count && !status) free(s->after.nodes), s->after = last;
  else free(last.nodes);
  return status;
}

int capture_add(stream *s, operation *o) {
  capture *c = s->capture;
  int status = c->invalid ? CAPTURE_INVALIDATED : SUCCESS;
  node_set after = {0};
  // A copy of pageable memory would have to wait, and memory nodes are not emulated.
  if (!status && (o->kind == FREE || o->kind == SIGNAL || (o->kind == COPY && o->copy.pageable))) status = refuse(c, CAPTURE_UNSUPPORTED);
  if (status || o->kind == RUN) {
    if (!status) status = add_graph(s, o->run.graph);
    operation_end(o);
    return status;
  }
  status = add(s, o, &s->after, &after);
  if (status) return free(after.nodes), c->invalid = 1, status;
  free(s->after.nodes);
  s->after = after;
  return SUCCESS;
}

// ---- Events carry dependencies from one stream to another, and streams into the capture

int capture_record(stream *s, event *e) {
  capture *c = s->capture;
  if (c->invalid) return CAPTURE_INVALIDATED;
  node_set after = {0};
  if (!set_join(&after, &s->after)) return OUT_OF_MEMORY;
  __atomic_add_fetch(&c->references, 1, __ATOMIC_SEQ_CST);
  capture_drop(e->capture), free(e->after.nodes);
  e->capture = c, e->after = after;
  return SUCCESS;
}

int capture_wait(stream *s, event *e) {
  capture *own = s->capture, *other = e->capture;
  if (own && own->invalid) return CAPTURE_INVALIDATED;
  if (!other || other->ended) return own ? refuse(own, CAPTURE_ISOLATION) : CAPTURED_EVENT;
  if (other->invalid) return CAPTURE_INVALIDATED;
  if (own && own != other) return refuse(own, refuse(other, CAPTURE_MERGE));
  if (!own) join(other, s);
  return set_join(&s->after, &e->after) ? SUCCESS : OUT_OF_MEMORY;
}

// ---- What is refused meanwhile

// Whether a call that may wait for work of any stream is refused in this thread because of this capture.
static int guards(const capture *c) {
  if (thread_mode == RELAXED || c->mode == RELAXED) return 0;
  return pthread_equal(c->thread, pthread_self()) || (thread_mode == GLOBAL && c->mode == GLOBAL);
}

int capture_forbids(device *d) {
  int status = SUCCESS;
  pthread_mutex_lock(&d->lock);
  for (capture *c = d->captures; c; c = c->next) if (guards(c)) status = refuse(c, CAPTURE_UNSUPPORTED);
  pthread_mutex_unlock(&d->lock);
  return status;
}

int capture_forbids_waiting(device *d, stream *s) {
  int status = SUCCESS;
  pthread_mutex_lock(&d->lock);
  for (capture *c = d->captures; c; c = c->next)
    if (!s || s->capture == c) status = s && c->invalid ? CAPTURE_INVALIDATED : refuse(c, CAPTURE_UNSUPPORTED);
  pthread_mutex_unlock(&d->lock);
  return status;
}

API hipThreadExchangeStreamCaptureMode(int *mode) {
  if (!mode || *mode < GLOBAL || *mode > RELAXED) return INVALID_VALUE;
  int before = thread_mode;
  thread_mode = *mode, *mode = before;
  return SUCCESS;
}

// ---- Begin and end

API hipStreamBeginCapture(stream *s, int mode) {
  static uint64_t ids;
  int status;
  if (!s) return CAPTURE_UNSUPPORTED;
  device *d = of(s, STREAM, &status);
  if (!d) return status;
  if (mode < GLOBAL || mode > RELAXED) return INVALID_VALUE;
  pthread_mutex_lock(&d->lock);
  capture *c = s->capture ? NULL : calloc(1, sizeof *c);
  status = c ? SUCCESS : s->capture ? ILLEGAL_STATE : OUT_OF_MEMORY;
  if (c) {
    *c = (capture){.references = 1, .mode = mode, .thread = pthread_self(), .origin = s, .id = __atomic_add_fetch(&ids, 1, __ATOMIC_SEQ_CST)};
    if ((c->graph = graph_create(d, &status))) join(c, s), c->next = d->captures, d->captures = c;
    else free(c);
  }
  pthread_mutex_unlock(&d->lock);
  return status;
}

// Whether all that was captured comes before what the origin would do next.
static int joined(const capture *c) {
  const graph *g = c->graph;
  unsigned char *before = calloc(g->count + 1, 1);
  int all = before != NULL;
  for (uint32_t i = 0; all && i < c->origin->after.count; ++i) before[c->origin->after.nodes[i]] = 1;
  for (uint32_t i = g->count; all && i--;) {  // nodes come after earlier ones only
    all = before[i];
    for (uint32_t j = 0; j < g->nodes[i]->after.count; ++j) before[g->nodes[i]->after.nodes[j]] = 1;
  }
  free(before);
  return all;
}

API hipStreamEndCapture(stream *s, graph **out) {
  int status;
  if (!out) return INVALID_VALUE;
  *out = NULL;
  if (!s) return ILLEGAL_STATE;
  device *d = of(s, STREAM, &status);
  if (!d) return status;
  pthread_mutex_lock(&d->lock);
  capture *c = s->capture;
  if (!c) status = ILLEGAL_STATE;
  else if (c->origin != s) status = refuse(c, CAPTURE_UNMATCHED);
  else if (c->mode != RELAXED && !pthread_equal(c->thread, pthread_self())) status = CAPTURE_WRONG_THREAD;
  else {
    status = c->invalid ? CAPTURE_INVALIDATED : joined(c) ? SUCCESS : CAPTURE_UNJOINED;
    graph *g = end(c);
    if (status) destroy(g, GRAPH);
    else *out = g;
  }
  pthread_mutex_unlock(&d->lock);
  return status;
}

API hipStreamGetCaptureInfo(stream *s, int *status, unsigned long long *id) {
  int error;
  device *d = on(s, &error);
  if (!d) return error;
  if (!status) return INVALID_VALUE;
  pthread_mutex_lock(&d->lock);
  capture *c = s ? s->capture : NULL;
  *status = !c ? NONE : c->invalid ? INVALIDATED : ACTIVE;
  if (*status == ACTIVE && id) *id = c->id;
  pthread_mutex_unlock(&d->lock);
  return SUCCESS;
}
API hipStreamIsCapturing(stream *s, int *status) { return hipStreamGetCaptureInfo(s, status, NULL); }
