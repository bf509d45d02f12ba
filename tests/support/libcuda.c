/* A driver of CUDA without a GPU, for the calls that kedge_agent.runtime.cuda_bindings makes: device memory is memory,
   streams run at once. Every call that needs a context fails without one, and what is open is counted. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SUCCESS 0
#define OUT_OF_MEMORY 2
#define INVALID_CONTEXT 201
#define NOT_FOUND 500
#define NEED_CONTEXT if (stub_depth <= 0) return INVALID_CONTEXT

typedef int R;
typedef void *H;
typedef unsigned long long P;

int stub_depth = 0, stub_open = 0, stub_flags = -1;

static R made(H *out, size_t size) {
  if (size > 1ul << 30) return OUT_OF_MEMORY;
  *out = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
  stub_open++;
  return SUCCESS;
}
static R gone(H what) { free(what); stub_open--; return SUCCESS; }

R cuInit(unsigned flags) { return SUCCESS; }
R cuDriverGetVersion(int *version) { *version = 12060; return SUCCESS; }
R cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }
R cuDeviceGetAttribute(int *value, int attribute, int device) {
  /* CU_DEVICE_ATTRIBUTE_…: compute capability 8.7, an integrated GPU without concurrent managed access. */
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute != 89 && attribute != 88;
  return SUCCESS;
}
R cuDevicePrimaryCtxRetain(H *context, int device) { *context = (H)0x1000; return SUCCESS; }
R cuCtxPushCurrent_v2(H context) { stub_depth++; return SUCCESS; }
R cuCtxPopCurrent_v2(H *context) {
  NEED_CONTEXT;
  stub_depth--;
  if (context) *context = (H)0x1000;
  return SUCCESS;
}
R cuStreamCreate(H *stream, unsigned flags) { NEED_CONTEXT; stub_flags = flags; return made(stream, 8); }
R cuStreamDestroy_v2(H stream) { NEED_CONTEXT; return gone(stream); }
R cuStreamSynchronize(H stream) { NEED_CONTEXT; return SUCCESS; }
R cuStreamWaitEvent(H stream, H event, unsigned flags) { NEED_CONTEXT; return SUCCESS; }
R cuEventCreate(H *event, unsigned flags) { NEED_CONTEXT; return made(event, 8); }
R cuEventDestroy_v2(H event) { NEED_CONTEXT; return gone(event); }
R cuEventRecord(H event, H stream) {
  struct timespec now;
  NEED_CONTEXT;
  clock_gettime(CLOCK_MONOTONIC, &now);
  *(double *)event = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
  return SUCCESS;
}
R cuEventSynchronize(H event) { return SUCCESS; }
R cuEventElapsedTime_v2(float *ms, H start, H end) { *ms = *(double *)end - *(double *)start; return SUCCESS; }
R cuEventElapsedTime(float *ms, H start, H end) { return cuEventElapsedTime_v2(ms, start, end); }
R cuMemHostAlloc(H *out, size_t size, unsigned flags) { NEED_CONTEXT; stub_flags = flags; return made(out, size); }
R cuMemFreeHost(H host) { NEED_CONTEXT; return gone(host); }
R cuMemHostGetDevicePointer_v2(P *device, H host, unsigned flags) { *device = (P)host; return SUCCESS; }
R cuMemAllocManaged(P *out, size_t size, unsigned flags) { NEED_CONTEXT; stub_flags = flags; return made((H *)out, size); }
R cuMemAlloc_v2(P *out, size_t size) { NEED_CONTEXT; return made((H *)out, size); }
R cuMemFree_v2(P device) { NEED_CONTEXT; return gone((H)device); }
R cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { NEED_CONTEXT; *free_bytes = 5; *total = 9; return SUCCESS; }
R cuMemcpyHtoDAsync_v2(P to, const void *from, size_t size, H stream) {
  NEED_CONTEXT;
  memcpy((H)to, from, size);
  return SUCCESS;
}
R cuMemcpyDtoHAsync_v2(H to, P from, size_t size, H stream) {
  NEED_CONTEXT;
  memcpy(to, (H)from, size);
  return SUCCESS;
}
R cuStreamBeginCapture_v2(H stream, int mode) { NEED_CONTEXT; stub_flags = mode; return SUCCESS; }
R cuStreamEndCapture(H stream, H *graph) { NEED_CONTEXT; return made(graph, 8); }
R cuGraphInstantiateWithFlags(H *launchable, H graph, P flags) { NEED_CONTEXT; return made(launchable, 8); }
R cuGraphLaunch(H launchable, H stream) { NEED_CONTEXT; return SUCCESS; }
R cuGraphExecDestroy(H launchable) { NEED_CONTEXT; return gone(launchable); }
R cuGraphDestroy(H graph) { NEED_CONTEXT; return gone(graph); }

R cuGetProcAddress_v2(const char *name, H *function, int version, P flags, int *found) {
  char full[128];
  H self = dlopen("libcuda.so.1", RTLD_LAZY);
  const char *ends[] = {"_v2", "", "WithFlags"};
  *function = 0;
  for (int i = 0; i < 3 && !*function && strlen(name) < 100; i++) {
    strcpy(full, name);
    strcat(full, ends[i]);
    *function = dlsym(self, full);
  }
  if (found) *found = *function ? 0 : 1;
  return *function ? SUCCESS : NOT_FOUND;
}
