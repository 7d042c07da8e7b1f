// The fake HIP runtime's graphs: nodes that run when those that they come after have run.
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

typedef struct { dim3 block; void **extra; function *function; dim3 grid; void **arguments; unsigned dynamic_lds; } hipKernelNodeParams;
typedef struct { void *to; unsigned width; size_t height, pitch; unsigned value; size_t count; } hipMemsetParams;
typedef struct { size_t x, y, z, lod; int type; void *host, *device, *array; size_t pitch, height; } side;
typedef struct { side from, to; size_t width, height, depth; } HIP_MEMCPY3D;

int set_join(node_set *into, const node_set *other) {
  if (!other->count) return 1;
  uint32_t *grown = realloc(into->nodes, (into->count + other->count) * sizeof *grown);
  if (!grown) return 0;
  into->nodes = grown;
  for (uint32_t i = 0, j; i < other->count; ++i) {
    for (j = 0; j < into->count && into->nodes[j] != other->nodes[i]; ++j);
    if (j == into->count) into->nodes[into->count++] = other->nodes[i];
  }
  return 1;
}

static void end_graph(void *p) {
  graph *g = p;
  for (uint32_t i = 0; i < g->count; ++i) operation_end(&g->nodes[i]->operation), free(g->nodes[i]->after.nodes), free(g->nodes[i]);
  free(g->nodes);
}

graph *graph_create(device *d, int *status) {
  graph *g = create_for(d, GRAPH, sizeof *g, status);
  if (g) g->handle.end = end_graph;
  return g;
}

API hipGraphCreate(graph **out, unsigned flags) {
  (void)flags;
  int status;
  device *d = usable(current(), &status);
  graph *g = d ? graph_create(d, &status) : NULL;
  if (g) *out = g;
  return status;
}
API hipGraphDestroy(graph *g) { return destroy(g, GRAPH); }
API hipGraphExecDestroy(graph *g) { return destroy(g, GRAPH); }

int graph_add(graph *g, operation *o, const node_set *after, node **out) {
  node *n = calloc(1, sizeof *n);
  if (n && g->count == g->room) {
    uint32_t room = g->room ? 2 * g->room : 16;
    node **grown = realloc(g->nodes, room * sizeof *grown);
    if (grown) g->nodes = grown, g->room = room;
  }
  if (!n || g->count == g->room || !set_join(&n->after, after)) return free(n), operation_end(o), OUT_OF_MEMORY;
  n->operation = *o;
  g->nodes[g->count++] = n;
  if (out) *out = n;
  return SUCCESS;
}

// ---- Nodes by hand

static int add(node **out, graph *g, node *const *after, size_t count, operation o) {
  int status;
  node_set set = {0};
  if (!of(g, GRAPH, &status)) return operation_end(&o), status;
  if (g->fixed) status = INVALID_VALUE;
  for (size_t i = 0; i < count && !status; ++i) {
    uint32_t n = 0;
    while (n < g->count && g->nodes[n] != after[i]) ++n;
    status = n == g->count ? INVALID_VALUE : set_join(&set, &(node_set){1, &n}) ? SUCCESS : OUT_OF_MEMORY;
  }
  if (status) operation_end(&o);
  else status = graph_add(g, &o, &set, out);
  free(set.nodes);
  return status;
}
API hipGraphAddEmptyNode(node **out, graph *g, node *const *after, size_t count) { return add(out, g, after, count, (operation){.kind = EMPTY}); }
API hipGraphAddEventRecordNode(node **out, graph *g, node *const *after, size_t count, event *e) {
  int status;
  return of(e, EVENT, &status) ? add(out, g, after, count, (operation){.kind = RECORD, .event = retain(e)}) : status;
}
API hipGraphAddKernelNode(node **out, graph *g, node *const *after, size_t count, const hipKernelNodeParams *p) {
  int status;
  if (!of(p->function, FUNCTION, &status)) return status;
  if (p->dynamic_lds || p->extra) return NOT_SUPPORTED;
  operation o;
  uint32_t dims[6] = {p->grid.x, p->grid.y, p->grid.z, p->block.x, p->block.y, p->block.z};
  status = launch_prepare(&o, p->function, dims, p->arguments);
  return status ? status : add(out, g, after, count, o);
}
API hipGraphAddMemsetNode(node **out, graph *g, node *const *after, size_t count, const hipMemsetParams *p) {
  if (p->height != 1 || (p->width != 1 && p->width != 2 && p->width != 4)) return NOT_SUPPORTED;
  return add(out, g, after, count, (operation){.kind = FILL, .fill = {"a memset node of a graph", p->to, p->value, p->width, p->count}});
}
API hipDrvGraphAddMemcpyNode(node **out, graph *g, node *const *after, size_t count, const HIP_MEMCPY3D *p, device *context) {
  (void)context;
  if (p->height != 1 || p->depth != 1 || p->from.array || p->to.array || p->to.host) return NOT_SUPPORTED;
  const char *from = p->from.host ? p->from.host : p->from.device;  // the other is null
  operation o = {.kind = COPY};
  o.copy.what = "a memcpy node of a graph", o.copy.to = (char *)p->to.device + p->to.x, o.copy.from = from + p->from.x, o.copy.size = p->width;
  o.copy.check_to = 1, o.copy.check_from = !p->from.host;
  return add(out, g, after, count, o);
}
API hipGraphGetNodes(graph *g, node **out, size_t *count) {
  int status;
  if (!of(g, GRAPH, &status)) return status;
  for (size_t i = 0; out && i < *count; ++i) out[i] = i < g->count ? g->nodes[i] : NULL;
  if (!out || *count > g->count) *count = g->count;
  return SUCCESS;
}

// ---- Instances and launches

API hipGraphInstantiate(graph **out, graph *g, node **error, char *log, size_t size) {
  (void)error, (void)log, (void)size;
  int status;
  device *d = of(g, GRAPH, &status);
  if (!d) return status;
  graph *made = graph_create(d, &status);
  for (uint32_t i = 0; made && i < g->count && !status; ++i) {
    operation o;
    status = operation_copy(&o, &g->nodes[i]->operation);
    if (!status) status = graph_add(made, &o, &g->nodes[i]->after, NULL);
  }
  if (status) return made ? (destroy(made, GRAPH), status) : status;
  made->fixed = 1;
  *out = made;
  return SUCCESS;
}
API hipGraphInstantiateWithFlags(graph **out, graph *g, unsigned long long flags) { (void)flags; return hipGraphInstantiate(out, g, NULL, NULL, 0); }
API hipGraphUpload(graph *g, void *s) { int status; return of(g, GRAPH, &status) ? on(s, &status), status : status; }

uint32_t graph_choose(device *d, const operation *run) {
  const graph *g = run->run.graph;
  uint32_t ready = 0, chosen = 0;
  for (uint32_t i = 0; i < g->count; ++i) {
    const node_set *after = &g->nodes[i]->after;
    uint32_t j = 0;
    if (run->run.done[i]) continue;
    while (j < after->count && run->run.done[after->nodes[j]]) ++j;
    if (j == after->count && draw(d) % ++ready == 0) chosen = i;
  }
  return chosen;
}

API hipGraphLaunch(graph *g, void *where) {
  int status;
  device *d = of(g, GRAPH, &status);
  if (!d) return status;
  if (on(where, &status) != d) return status ? status : INVALID_HANDLE;
  if (!g->fixed) return INVALID_HANDLE;
  operation o = {.kind = RUN, .run = {.graph = retain(g), .left = g->count}};
  o.run.done = calloc(g->count + 1, 1);
  o.run.records = calloc(g->count + 1, sizeof *o.run.records);
  if (!o.run.done || !o.run.records) return operation_end(&o), OUT_OF_MEMORY;
  pthread_mutex_lock(&d->lock);
  stream *s = stream_of(d, where);
  for (uint32_t i = 0; i < g->count && !s->capture && !status; ++i) {
    operation *each = &g->nodes[i]->operation;
    if (each->kind == RECORD) status = (o.run.records[i] = event_begin(each->event)) ? SUCCESS : OUT_OF_MEMORY;
    else status = operation_check(d, each);
  }
  int now = !d->deferred && !s->capture;
  if (status || !now) status = status ? (operation_end(&o), status) : push(d, s, &o);
  pthread_mutex_unlock(&d->lock);
  if (!status && now) status = operation_run(d, &o), operation_end(&o);
  else relieve(d, s);
  return status;
}
