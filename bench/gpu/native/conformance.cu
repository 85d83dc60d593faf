// The test kernels of tests/emulation/kernels on a card, by name: a C interface for ctypes. The
// kernels register themselves as they do for the emulator.
#include <cuda_runtime.h>

#include <cstdio>
#include <exception>
#include <string>

#include "emulation/registry.hpp"

namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

}  // namespace

// Runs a kernel on device memory and waits for it. Returns 0, or 1 with the reason in `message`.
extern "C" int swa_conformance_run(const char* kernel, int num_buffers, const char** buffer_names,
                                   void** buffers, int num_integers, const char** integer_names,
                                   const int64_t* integers, int num_numbers,
                                   const char** number_names, const double* numbers, char* message,
                                   size_t message_bytes) {
  try {
    swa::emu::Args args;
    for (int i = 0; i < num_buffers; ++i) args.pointers[buffer_names[i]] = buffers[i];
    for (int i = 0; i < num_integers; ++i) args.integers[integer_names[i]] = integers[i];
    for (int i = 0; i < num_numbers; ++i) args.numbers[number_names[i]] = numbers[i];
    swa::emu::find_kernel(kernel)(args);
    check(cudaGetLastError(), "launch");
    check(cudaDeviceSynchronize(), "execution");
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, message_bytes, "%s", error.what());
    return 1;
  }
}
