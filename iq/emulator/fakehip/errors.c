// The fake HIP runtime's errors: names and texts.
#include "runtime.h"

static const struct { int code; const char *name, *text; } ERRORS[] = {
  {SUCCESS, "hipSuccess", "no error"},
  {INVALID_VALUE, "hipErrorInvalidValue", "invalid argument"},
  {OUT_OF_MEMORY, "hipErrorOutOfMemory", "out of memory"},
  {DEINITIALIZED, "hipErrorDeinitialized", "the emulated device has been closed"},
  {INVALID_DEVICE, "hipErrorInvalidDevice", "invalid device ordinal"},
  {INVALID_CONTEXT, "hipErrorInvalidContext", "invalid device context"},
  {NO_BINARY, "hipErrorNoBinaryForGpu", "no kernel image is available for execution on the device"},
  {INVALID_HANDLE, "hipErrorInvalidHandle", "invalid resource handle"},
  {ILLEGAL_STATE, "hipErrorIllegalState", "the operation cannot be performed in the present state"},
  {NOT_FOUND, "hipErrorNotFound", "named symbol not found"},
  {NOT_READY, "hipErrorNotReady", "device not ready"},
  {ILLEGAL_ADDRESS, "hipErrorIllegalAddress", "an illegal memory access was encountered"},
  {LAUNCH_FAILURE, "hipErrorLaunchFailure", "a kernel failed, which leaves the emulated device unusable: open it again"},
  {NOT_SUPPORTED, "hipErrorNotSupported", "operation not supported"},
  {CAPTURE_UNSUPPORTED, "hipErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
  {CAPTURE_INVALIDATED, "hipErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"},
  {CAPTURE_MERGE, "hipErrorStreamCaptureMerge", "operation would result in a merge of separate capture sequences"},
  {CAPTURE_UNMATCHED, "hipErrorStreamCaptureUnmatched", "capture was not ended in the same stream as it began"},
  {CAPTURE_UNJOINED, "hipErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
  {CAPTURE_ISOLATION, "hipErrorStreamCaptureIsolation", "dependency created on uncaptured work in another stream"},
  {CAPTURE_IMPLICIT, "hipErrorStreamCaptureImplicit", "operation would make the legacy stream depend on a capturing blocking stream"},
  {CAPTURED_EVENT, "hipErrorCapturedEvent", "operation not permitted on an event last recorded in a capturing stream"},
  {CAPTURE_WRONG_THREAD, "hipErrorStreamCaptureWrongThread", "attempt to terminate a thread-local capture sequence from another thread"},
};

API hipDrvGetErrorName(int code, const char **out) {
  *out = NULL;
  for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; ++i) if (ERRORS[i].code == code) *out = ERRORS[i].name;
  return *out ? SUCCESS : INVALID_VALUE;
}
API hipDrvGetErrorString(int code, const char **out) {
  *out = NULL;
  for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; ++i) if (ERRORS[i].code == code) *out = ERRORS[i].text;
  return *out ? SUCCESS : INVALID_VALUE;
}
EXPORT const char *hipGetErrorName(int code) { const char *name; return hipDrvGetErrorName(code, &name) ? "hipErrorUnknown" : name; }
EXPORT const char *hipGetErrorString(int code) { const char *text; return hipDrvGetErrorString(code, &text) ? "unknown error" : text; }
API hipGetLastError(void) { return SUCCESS; }
