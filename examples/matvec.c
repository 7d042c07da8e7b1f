/* A matrix of GGML's q4_0 times a vector, on an AMD GPU, from C: neither Python nor IREE, only HIP and what `iq extract` wrote.

     iq compile --target gfx1100 && iq extract artifacts/gfx1100 --out kernels
     cc -std=c99 -D__HIP_PLATFORM_AMD__ -Ikernels -I/opt/rocm/include matvec.c -L/opt/rocm/lib -lamdhip64 -lm -o matvec
     ./matvec kernels [DEVICE]

   The result is compared with a plain loop over the activations, which the kernel rounds to 8 bits. Exit status: 0 where they agree,
   1 where not, 2 where it cannot run. */
#include <hip/hip_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "iq_kernels.h"

enum { N = 70, BLOCKS = 16, BLOCK = 32, BLOCK_BYTES = 18, K = BLOCKS * BLOCK, SPARE = 16 };

static void check(hipError_t status, const char *what) {
  if (status == hipSuccess) return;
  fprintf(stderr, "matvec: %s: %s\n", what, hipGetErrorString(status));
  exit(2);
}

static void *read_file(const char *folder, const char *name) {
  char path[4096];
  void *data = NULL;
  long size = 0;
  FILE *file;
  snprintf(path, sizeof path, "%s/%s", folder, name);
  file = fopen(path, "rb");
  if (file && !fseek(file, 0, SEEK_END) && (size = ftell(file)) > 0) data = malloc((size_t)size);
  if (!data || fseek(file, 0, SEEK_SET) || fread(data, 1, (size_t)size, file) != (size_t)size) {
    fprintf(stderr, "matvec: cannot read %s\n", path);
    exit(2);
  }
  fclose(file);
  return data;
}

int main(int argc, char **argv) {
  static unsigned char w[N * BLOCKS * BLOCK_BYTES];
  static float x[K], y[N], want[N];
  const int32_t sizes[] = {1, N, BLOCKS}; /* m, n and blocks, as the kernel's table has them */
  const iq_kernel *kernel = iq_find("mul_mat_vec.q4_0.1");
  void *memory[IQ_MOST_CALL_BUFFERS] = {NULL}, *code;
  double error = 0, total = 0;
  hipModule_t module;
  uint32_t seed = 1;
  int i, j;
  if (argc < 2 || !kernel) {
    fprintf(stderr, "usage: matvec FOLDER [DEVICE], where FOLDER has mul_mat_vec.q4_0.1\n");
    return 2;
  }

  /* A block is an f16 scale (here 2^-7, 2^-6 or 2^-5), then 16 bytes: weights 0 to 15 in the low halves, 16 to 31 in the high ones. */
  for (i = 0; i < K; i++) x[i] = sinf((float)i);
  for (i = 0; i < N * BLOCKS; i++) {
    unsigned char *block = w + i * BLOCK_BYTES;
    block[1] = (unsigned char)(0x20 + 4 * (i % 3));
    for (j = 0; j < 16; j++) {
      seed = seed * 1664525 + 1013904223;
      block[2 + j] = (unsigned char)(seed >> 24);
      want[i / BLOCKS] += ldexpf(1, i % 3 - 7) * (float)((block[2 + j] & 15) - 8) * x[i % BLOCKS * BLOCK + j];
      want[i / BLOCKS] += ldexpf(1, i % 3 - 7) * (float)((block[2 + j] >> 4) - 8) * x[i % BLOCKS * BLOCK + j + 16];
    }
  }

  check(hipSetDevice(argc > 2 ? atoi(argv[2]) : 0), "the device");
  code = read_file(argv[1], kernel->file);
  check(hipModuleLoadData(&module, code), kernel->file);
  for (i = 0; i < iq_buffer_count(kernel); i++)
    check(hipMalloc(&memory[i], iq_bytes(kernel, sizes, &kernel->buffers[i]) + SPARE), "memory");
  check(hipMemcpy(memory[iq_buffer(kernel, "w")], w, sizeof w, hipMemcpyHostToDevice), "the weights");
  check(hipMemcpy(memory[iq_buffer(kernel, "x")], x, sizeof x, hipMemcpyHostToDevice), "the activations");

  for (i = 0; i < kernel->dispatch_count; i++) { /* on one stream, so one after another */
    const iq_dispatch *d = &kernel->dispatches[i];
    uint64_t values[IQ_MOST_ARGUMENTS];
    void *arguments[IQ_MOST_ARGUMENTS];
    hipFunction_t function;
    uint32_t grid[3];
    if (iq_grid(kernel, sizes, d, grid) < 1) return 2; /* not for these sizes; 0 would be nothing to launch */
    iq_arguments(kernel, sizes, d, memory, values, arguments);
    check(hipModuleGetFunction(&function, module, d->function), d->function);
    check(hipModuleLaunchKernel(function, grid[0], grid[1], grid[2], d->block[0], d->block[1], d->block[2], d->shared_bytes, NULL,
                                arguments, NULL), d->function);
  }
  check(hipMemcpy(y, memory[iq_buffer(kernel, "y")], sizeof y, hipMemcpyDeviceToHost), "the result"); /* waits for the kernels */

  for (i = 0; i < N; i++) error += pow(y[i] - want[i], 2), total += pow(want[i], 2);
  printf("%s on %s: y[0] = %f, want %f; normalized mean square error %.1e\n", kernel->key, IQ_TARGET, y[0], want[0], error / total);
  for (i = 0; i < iq_buffer_count(kernel); i++) check(hipFree(memory[i]), "freeing memory");
  check(hipModuleUnload(module), "unloading the code");
  free(code);
  return error / total < 5e-4 ? 0 : 1; /* llama.cpp's bound for products with quantized activations; a NaN is not below it */
}
