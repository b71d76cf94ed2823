/* A CUDA driver whose GPUs are this machine's memory: what the calls move really moves, and what is wrong with them is an error. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int initialized = 0, blocks = 0, streams = 0, contexts = 0, current = 0, pending = 0;

static int setting(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) {
    int status = setting("FAKE_CUDA_INIT", 0);
    initialized = status == 0 && flags == 0;
    return status;
}
int cuGetErrorName(int status, const char **name) {
    *name = status == 100 ? "CUDA_ERROR_NO_DEVICE" : status == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : status == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_INVALID_VALUE";
    return 0;
}
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return initialized ? 0 : 3; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, device ? "Fake 4090" : "Fake 3090", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (attribute != 75 && attribute != 76) return 1;
    *value = attribute == 75 ? 8 : device ? 9 : 6;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)24 << 30; return 0; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { *free_bytes = (size_t)setting("FAKE_CUDA_FREE", 1 << 30); *total = (size_t)24 << 30; return current ? 0 : 201; }
int cuDevicePrimaryCtxRetain(void **context, int device) { contexts++; *context = (void *)(uintptr_t)(device + 1); return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { contexts--; return 0; }
int cuCtxSetCurrent(void *context) { current = context != NULL; return 0; }
int cuStreamCreate(void **stream, unsigned flags) { streams++; *stream = (void *)(uintptr_t)4096; return flags == 1 ? 0 : 1; }
int cuStreamDestroy_v2(void *stream) { streams--; return stream == (void *)(uintptr_t)4096 ? 0 : 1; }
int cuStreamSynchronize(void *stream) { pending = 0; return setting("FAKE_CUDA_SYNC", 0); }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (!current || size == 0) return 1;
    if (size > (size_t)setting("FAKE_CUDA_FREE", 1 << 30)) return 2;
    blocks++;
    *address = (uint64_t)(uintptr_t)malloc(size);
    return 0;
}
int cuMemFree_v2(uint64_t address) { blocks--; free((void *)(uintptr_t)address); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t size, void *stream) {
    pending++;
    memcpy((void *)(uintptr_t)target, source, size);
    return stream == (void *)(uintptr_t)4096 ? 0 : 1;
}
int cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t size, void *stream) {
    pending++;
    memcpy(target, (const void *)(uintptr_t)source, size);
    return stream == (void *)(uintptr_t)4096 ? 0 : 1;
}
/* Events: a counter stands for the time, one millisecond per event. A capture takes no copies, and a graph counts its launches. */
static int marks = 0, graphs = 0, launched = 0, capturing = 0;
static float ticks[64];
int cuEventCreate(void **event, unsigned flags) { marks++; *event = (void *)(uintptr_t)marks; return flags == 0 ? 0 : 1; }
int cuEventDestroy_v2(void *event) { marks--; return 0; }
int cuEventRecord(void *event, void *stream) {
    static float now = 0;
    ticks[(uintptr_t)event % 64] = now += 1;
    return stream == (void *)(uintptr_t)4096 ? 0 : 1;
}
int cuEventElapsedTime(float *taken, void *first, void *last) { *taken = ticks[(uintptr_t)last % 64] - ticks[(uintptr_t)first % 64]; return pending ? 600 : 0; }
int cuStreamBeginCapture_v2(void *stream, int mode) { capturing = 1; return mode == 1 ? 0 : 1; }
int cuStreamEndCapture(void *stream, void **graph) {
    int status = capturing ? setting("FAKE_CUDA_CAPTURE", 0) : 1;
    capturing = 0;
    *graph = status ? NULL : (void *)(uintptr_t)7;
    graphs += status == 0;
    return status;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) { *executable = (void *)(uintptr_t)8; graphs++; return graph == (void *)(uintptr_t)7 && !flags ? 0 : 1; }
int cuGraphDestroy(void *graph) { graphs--; return 0; }
int cuGraphExecDestroy(void *executable) { graphs--; return 0; }
int cuGraphLaunch(void *executable, void *stream) { launched++; pending++; return executable == (void *)(uintptr_t)8 ? 0 : 1; }
int cuDeviceGetPCIBusId(char *text, int size, int device) { strncpy(text, device ? "0000:07:00.0" : "0000:06:00.0", size); return 0; }
/* For the tests alone: what is still held, and whether anything is queued that was not waited for. */
int fakeHeld(void) { return blocks + streams + contexts + marks + graphs; }
int fakePending(void) { return pending; }
int fakeLaunched(void) { return launched; }
