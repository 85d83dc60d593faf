// What a card reaches at best, for the ceilings of the benchmark: a C interface for ctypes. Every
// function launches on `stream` and returns CUDA's error code.
#include <cuda_runtime.h>

#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/thread.cuh"

namespace swa::ceilings {

constexpr int kThreads = 512, kUnroll = 8;  // 64 KB in flight per CTA

// Reads num_vectors times 16 bytes once. `out` is written when the bits mix to one certain value,
// which keeps the loads alive.
__global__ void __launch_bounds__(kThreads)
    read_once(const ptx::U32x4* in, long num_vectors, uint32_t* out) {
  const long step = long(ptx::grid_dim().x) * kThreads * kUnroll;
  uint32_t mixed = 0;
  for (long first = (long(ptx::block_idx().x) * kThreads * kUnroll) + ptx::thread_idx().x;
       first < num_vectors; first += step) {
    ptx::U32x4 v[kUnroll] = {};
    SWA_UNROLL
    for (int i = 0; i < kUnroll; ++i)
      if (first + i * kThreads < num_vectors)
        v[i] = ptx::ldg<ptx::U32x4>(in + first + i * kThreads);
    SWA_UNROLL
    for (int i = 0; i < kUnroll; ++i) mixed |= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  if (mixed == 0x5a5a5a5bu) ptx::stg(out, mixed);
}

// kChains independent chains of ex2 per thread, num_steps long.
__global__ void __launch_bounds__(kThreads) exponentials(int num_steps, float* out) {
  constexpr int kChains = 8;
  float x[kChains];
  SWA_UNROLL
  for (int i = 0; i < kChains; ++i) x[i] = -0.1f * float(i + 1) - float(ptx::thread_idx().x);
  for (int step = 0; step < num_steps; ++step) {
    SWA_UNROLL
    for (int i = 0; i < kChains; ++i) x[i] = ptx::ex2(x[i]);
  }
  float sum = 0.f;
  SWA_UNROLL
  for (int i = 0; i < kChains; ++i) sum += x[i];
  if (sum < 0.f) ptx::stg(out, sum);
}
constexpr int kExpsPerStep = kThreads * 8;

__global__ void nothing() {}

}  // namespace swa::ceilings

extern "C" {

// in: device memory, or pinned host memory by its device address; num_bytes: a multiple of 16.
int swa_ceilings_read(const void* in, long num_bytes, void* out, int num_ctas, void* stream) {
  using namespace swa;
  return int(ptx::launch({unsigned(num_ctas), ceilings::kThreads, 0, 1, ptx::Stream(stream)},
                         ceilings::read_once, static_cast<const ptx::U32x4*>(in), num_bytes / 16,
                         static_cast<uint32_t*>(out)));
}

// Computes num_ctas * num_steps * swa_ceilings_exps_per_step() exponentials.
int swa_ceilings_exps(int num_steps, void* out, int num_ctas, void* stream) {
  using namespace swa;
  return int(ptx::launch({unsigned(num_ctas), ceilings::kThreads, 0, 1, ptx::Stream(stream)},
                         ceilings::exponentials, num_steps, static_cast<float*>(out)));
}
int swa_ceilings_exps_per_step() { return swa::ceilings::kExpsPerStep; }

int swa_ceilings_nothing(void* stream) {
  using namespace swa;
  return int(ptx::launch({1, 32, 0, 1, ptx::Stream(stream)}, ceilings::nothing));
}

}  // extern "C"
