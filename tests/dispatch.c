// Calls a dispatch of one of IREE's embedded ELFs, as its CPU driver does (executable_library.h, version 6), for a CPU that is not this one:
//   dispatch ELF FUNCTION X Y Z CONSTANTS... -- BUFFER_FILES...
// X, Y, Z: workgroups. Each file becomes a buffer, and holds what is in it afterwards.

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  uint32_t size_x, size_y;
  uint16_t size_z, constant_count;
  uint32_t count_x, count_y;
  uint16_t count_z;
  uint8_t max_concurrency, binding_count;
  const uint32_t *constants;
  void *const *bindings;
  const size_t *lengths;
} dispatch_state;

typedef struct {
  uint32_t x, y;
  uint16_t z, reserved;
  uint32_t processor;
  void *local_memory;
  uint32_t local_memory_size;
} workgroup_state;

typedef int (*function)(const void *environment, const dispatch_state *, const workgroup_state *);

typedef struct {
  const void *header;
  struct { uint32_t count; const void *symbols; } imports;
  struct { uint32_t count; const function *functions; const void *attributes, *parameters, *occupancy; const char *const *names; } exports;
} library;

enum { MOST = 16, PADDING = 256 };

static void fail(const char *what, const char *which) {
  fprintf(stderr, "%s: %s\n", what, which);
  exit(1);
}

static function found(const library *in, const char *name) {
  for (uint32_t i = 0; i < in->exports.count; ++i)
    if (!strcmp(in->exports.names[i], name)) return in->exports.functions[i];
  fail("no function", name);
  return NULL;
}

int main(int count, char **arguments) {
  if (count < 7) fail("usage", "dispatch ELF FUNCTION X Y Z CONSTANTS... -- BUFFER_FILES...");
  void *elf = dlopen(arguments[1], RTLD_NOW);
  if (!elf) fail("dlopen", dlerror());
  const void *(*query)(uint32_t, const void *) = (const void *(*)(uint32_t, const void *))dlsym(elf, "iree_hal_executable_library_query");
  uint64_t environment[64] = {0};
  const library *loaded = query ? query(6, environment) : NULL;
  if (!loaded) fail("no library of version 6", arguments[1]);
  function run = found(loaded, arguments[2]);

  uint32_t constants[MOST];
  void *bindings[MOST];
  size_t lengths[MOST];
  dispatch_state state = {.size_x = 1, .size_y = 1, .size_z = 1, .max_concurrency = 1, .constants = constants, .bindings = bindings, .lengths = lengths};
  state.count_x = atoi(arguments[3]), state.count_y = atoi(arguments[4]), state.count_z = atoi(arguments[5]);
  int at = 6;
  for (; at < count && strcmp(arguments[at], "--") && state.constant_count < MOST; ++at)
    constants[state.constant_count++] = strtoul(arguments[at], NULL, 10);
  char **files = arguments + at + 1;
  for (; files + state.binding_count < arguments + count && state.binding_count < MOST; ++state.binding_count) {
    int n = state.binding_count;
    FILE *file = fopen(files[n], "rb");
    if (!file) fail("cannot read", files[n]);
    fseek(file, 0, SEEK_END);
    lengths[n] = ftell(file);
    rewind(file);
    bindings[n] = aligned_alloc(64, (lengths[n] + PADDING + 63) / 64 * 64);
    if (fread(bindings[n], 1, lengths[n], file) != lengths[n]) fail("cannot read", files[n]);
    fclose(file);
  }

  for (uint32_t z = 0; z < state.count_z; ++z)
    for (uint32_t y = 0; y < state.count_y; ++y)
      for (uint32_t x = 0; x < state.count_x; ++x) {
        workgroup_state workgroup = {.x = x, .y = y, .z = z};
        if (run(environment, &state, &workgroup)) fail("failed", arguments[2]);
      }

  for (int n = 0; n < state.binding_count; ++n) {
    FILE *file = fopen(files[n], "wb");
    if (!file || fwrite(bindings[n], 1, lengths[n], file) != lengths[n] || fclose(file)) fail("cannot write", files[n]);
  }
  return 0;
}
