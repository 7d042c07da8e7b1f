// The memory of an emulated device: host addresses are device addresses.
//
// Addresses are never used twice, so that a use after free cannot hit a younger allocation. Every allocation starts on a page and ends before
// one that cannot be accessed.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fakehip.h"

enum { PAGE = 4096, FREED_KEPT = 1024 };

// NaN in every float type, and far out of bounds as an index.
static const int POISON = 0xFF;

// Address space is reserved in pieces of this size.
static const uint64_t RESERVED = 1ull << 36;

typedef struct {
  uint64_t start, end;
} range;

struct memory {
  pthread_mutex_t lock;
  int owners;
  uint64_t capacity, used;
  range *reserved;  // the last one is being handed out
  uint64_t reserved_count, next;
  allocation *live;  // by address
  uint64_t live_count, live_room;
  allocation freed[FREED_KEPT];  // a ring
  uint64_t freed_count;
  fault fault;
  int faulted;
};

memory *memory_create(uint64_t capacity) {
  memory *m = calloc(1, sizeof *m);
  if (!m) return NULL;
  pthread_mutex_init(&m->lock, NULL);
  m->capacity = capacity;
  m->owners = 1;
  return m;
}

void memory_retain(memory *m) { __atomic_add_fetch(&m->owners, 1, __ATOMIC_SEQ_CST); }

void memory_release(memory *m) {
  if (__atomic_sub_fetch(&m->owners, 1, __ATOMIC_SEQ_CST)) return;
  for (uint64_t i = 0; i < m->reserved_count; ++i) munmap((void *)m->reserved[i].start, m->reserved[i].end - m->reserved[i].start);
  free(m->reserved);
  free(m->live);
  pthread_mutex_destroy(&m->lock);
  free(m);
}

// How many live allocations start at or before an address.
static uint64_t rank(memory *m, uint64_t address) {
  uint64_t low = 0, high = m->live_count;
  while (low < high) {
    uint64_t middle = (low + high) / 2;
    if (m->live[middle].start <= address) low = middle + 1;
    else high = middle;
  }
  return low;
}

static int insert(memory *m, allocation a) {
  if (m->live_count == m->live_room) {
    uint64_t room = m->live_room ? 2 * m->live_room : 64;
    allocation *grown = realloc(m->live, room * sizeof *grown);
    if (!grown) return 0;
    m->live = grown, m->live_room = room;
  }
  uint64_t at = rank(m, a.start);
  memmove(&m->live[at + 1], &m->live[at], (m->live_count - at) * sizeof a);
  m->live[at] = a;
  ++m->live_count;
  return 1;
}

static int reserve(memory *m, uint64_t pages) {
  uint64_t size = pages > RESERVED ? pages : RESERVED;
  range *grown = realloc(m->reserved, (m->reserved_count + 1) * sizeof *grown);
  if (!grown) return 0;
  m->reserved = grown;
  void *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return 0;
  m->reserved[m->reserved_count++] = (range){(uint64_t)p, (uint64_t)p + size};
  m->next = (uint64_t)p;
  return 1;
}

static uint64_t page_up(uint64_t size) { return (size + PAGE - 1) / PAGE * PAGE; }

static uint64_t allocate(memory *m, uint64_t size, uint64_t kind) {
  if (size > m->capacity - m->used) return 0;
  uint64_t pages = page_up(size ? size : 1) + PAGE;  // and one that stays out of reach
  if (!m->reserved_count || pages > m->reserved[m->reserved_count - 1].end - m->next)
    if (!reserve(m, pages)) return 0;
  uint64_t start = m->next;
  if (mprotect((void *)start, pages - PAGE, PROT_READ | PROT_WRITE)) return 0;
  if (!insert(m, (allocation){start, size, kind})) return 0;
  m->next += pages;
  m->used += size;
  return start;
}

uint64_t memory_allocate(memory *m, uint64_t size, uint64_t kind) {
  pthread_mutex_lock(&m->lock);
  uint64_t start = allocate(m, size, kind);
  pthread_mutex_unlock(&m->lock);
  // Not the host's: IREE takes 128 MiB of it for each device and uses little.
  if (start && kind != MEMORY_HOST) memset((void *)start, POISON, size);
  return start;
}

int memory_register(memory *m, uint64_t address, uint64_t size) {
  pthread_mutex_lock(&m->lock);
  uint64_t at = rank(m, address);
  int apart = (!at || m->live[at - 1].start + m->live[at - 1].size <= address) && (at == m->live_count || address + size <= m->live[at].start);
  int done = apart && insert(m, (allocation){address, size, MEMORY_REGISTERED});
  pthread_mutex_unlock(&m->lock);
  return done;
}

int memory_free(memory *m, uint64_t address, uint64_t kinds) {
  pthread_mutex_lock(&m->lock);
  uint64_t at = rank(m, address);
  int found = at && m->live[at - 1].start == address && (m->live[at - 1].kind & kinds);
  if (found) {
    allocation a = m->live[at - 1];
    if (a.kind != MEMORY_REGISTERED) {
      uint64_t pages = page_up(a.size ? a.size : 1);
      madvise((void *)a.start, pages, MADV_DONTNEED);
      mprotect((void *)a.start, pages, PROT_NONE);
      m->used -= a.size;
    }
    m->freed[m->freed_count++ % FREED_KEPT] = a;
    memmove(&m->live[at - 1], &m->live[at], (m->live_count - at) * sizeof a);
    --m->live_count;
  }
  pthread_mutex_unlock(&m->lock);
  return found;
}

int memory_holds(memory *m, uint64_t address, uint64_t size) {
  pthread_mutex_lock(&m->lock);
  uint64_t at = rank(m, address);
  int holds = at && size <= m->live[at - 1].size && address - m->live[at - 1].start <= m->live[at - 1].size - size;
  pthread_mutex_unlock(&m->lock);
  return holds;
}

int memory_owns(memory *m, uint64_t address) {
  pthread_mutex_lock(&m->lock);
  int owns = 0;
  for (uint64_t i = 0; i < m->reserved_count; ++i) owns |= address >= m->reserved[i].start && address < m->reserved[i].end;
  uint64_t at = rank(m, address);
  owns |= at && address - m->live[at - 1].start < m->live[at - 1].size;
  pthread_mutex_unlock(&m->lock);
  return owns;
}

int memory_find(memory *m, uint64_t address, allocation *out) {
  pthread_mutex_lock(&m->lock);
  uint64_t at = rank(m, address);
  int found = at && address - m->live[at - 1].start < m->live[at - 1].size;
  if (found) *out = m->live[at - 1];
  pthread_mutex_unlock(&m->lock);
  return found;
}

void memory_usage(memory *m, uint64_t *used, uint64_t *capacity) {
  pthread_mutex_lock(&m->lock);
  *used = m->used, *capacity = m->capacity;
  pthread_mutex_unlock(&m->lock);
}

uint64_t memory_live(memory *m, allocation *out, uint64_t room) {
  pthread_mutex_lock(&m->lock);
  uint64_t count = m->live_count;
  for (uint64_t i = 0; i < count && i < room; ++i) out[i] = m->live[i];
  pthread_mutex_unlock(&m->lock);
  return count;
}

uint64_t memory_freed(memory *m, allocation *out, uint64_t room) {
  pthread_mutex_lock(&m->lock);
  uint64_t count = m->freed_count < FREED_KEPT ? m->freed_count : FREED_KEPT;
  for (uint64_t i = 0; i < count && i < room; ++i) out[i] = m->freed[(m->freed_count - count + i) % FREED_KEPT];
  pthread_mutex_unlock(&m->lock);
  return count;
}

void memory_note(memory *m, const char *what, uint64_t address, uint64_t size) {
  pthread_mutex_lock(&m->lock);
  if (!m->faulted) {
    m->faulted = 1;
    m->fault = (fault){.address = address, .size = size};
    strncpy(m->fault.what, what, sizeof m->fault.what - 1);
  }
  pthread_mutex_unlock(&m->lock);
}

int memory_take_fault(memory *m, fault *out) {
  pthread_mutex_lock(&m->lock);
  int faulted = m->faulted;
  if (faulted) *out = m->fault;
  m->faulted = 0;
  pthread_mutex_unlock(&m->lock);
  return faulted;
}
