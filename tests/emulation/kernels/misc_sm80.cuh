// Kernels that put several sm_80 primitives together: named barriers with votes, groups of
// cp.async, arithmetic over many values.
#pragma once
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/shuffle.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/thread.cuh"

namespace swa::test::misc {

// Two warps produce, two consume, through named barriers. in and out: [grid, 128]; out is in
// reversed per 64, doubled, plus the result of votes in the last element.
struct ExchangeStorage {
  int buffer[64];
  float vote;
};
__global__ void __launch_bounds__(128) exchange(const int* in_, int* out_) {
  ExchangeStorage& smem = ptx::shared_storage<ExchangeStorage>();
  ptx::GlobalPointer<const int> in = in_;
  ptx::GlobalPointer<int> out = out_;
  ptx::SharedPointer<int> buffer(smem.buffer);
  ptx::SharedPointer<float> vote(&smem.vote);
  const int t = int(ptx::thread_idx().x), lane = ptx::lane_id(),
            first = int(ptx::block_idx().x) * 128;
  constexpr int kFilled = 1, kEmptied = 2;
  for (int i = 0; i < 2; ++i) {
    if (t < 64) {
      if (i) ptx::barrier_sync(kEmptied, 128);
      buffer[t] = in[first + i * 64 + t] * 2;
      ptx::barrier_arrive(kFilled, 128);
    } else {
      ptx::barrier_sync(kFilled, 128);
      out[first + i * 64 + t - 64] = int(buffer[127 - t]);
      if (i == 0) ptx::barrier_arrive(kEmptied, 128);
    }
  }
  ptx::sync_threads();
  const int s = lane < 16 ? ptx::shfl_xor(lane, 1, 0x0000ffffu) : ptx::shfl(lane, 16, 0xffff0000u);
  const uint32_t odd = ptx::ballot(s & 1);
  if (t == 0) vote[0] = float(odd >> 16 == 0);
  ptx::sync_threads();
  if (t == 127)
    out[first + 127] = int(out[first + 127]) + int(float(vote[0])) * 1000 + int(odd & 3);
}

// What `math` computes, over many values. in: [num_values], out: [num_values, 7].
__global__ void sweep(const float* in, float* out, int num_values) {
  ptx::GlobalPointer<const float> values = in;
  ptx::GlobalPointer<float> o = out;
  const int stride = int(ptx::grid_dim().x * ptx::block_dim().x);
  for (int i = int(ptx::block_idx().x * ptx::block_dim().x + ptx::thread_idx().x); i < num_values;
       i += stride) {
    const float x = values[i];
    const uint32_t bf16 = ptx::pack_half<ptx::Half::kBf16>(x, -x),
                   fp16 = ptx::pack_half<ptx::Half::kFp16>(x, -x);
    const float results[7] = {ptx::ex2(x),
                              ptx::lg2(x),
                              ptx::tanh_approx(x),
                              ptx::half_low<ptx::Half::kBf16>(bf16),
                              ptx::half_high<ptx::Half::kBf16>(bf16),
                              ptx::half_low<ptx::Half::kFp16>(fp16),
                              ptx::half_high<ptx::Half::kFp16>(fp16)};
    for (int j = 0; j < 7; ++j) o[i * 7 + j] = results[j];
  }
}

// Four groups of cp.async into four stages, each read as soon as it has landed. One warp; in and
// out: [4, 32] words.
struct GroupsStorage {
  uint32_t stages[4][32];
};
__global__ void cp_async_groups(const uint32_t* in, uint32_t* out) {
  GroupsStorage& smem = ptx::shared_storage<GroupsStorage>();
  const int lane = ptx::lane_id();
  auto stage = [&](int i) { return ptx::smem_u32(&smem.stages[i][lane]); };
  for (int i = 0; i < 4; ++i) {
    ptx::cp_async<4>(stage(i), in + i * 32 + lane, 4);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<3>();
  ptx::stg(out + lane, ptx::lds<uint32_t>(stage(0)));
  ptx::cp_async_wait<1>();
  ptx::stg(out + 32 + lane, ptx::lds<uint32_t>(stage(1)));
  ptx::stg(out + 64 + lane, ptx::lds<uint32_t>(stage(2)));
  ptx::cp_async_wait<0>();
  ptx::stg(out + 96 + lane, ptx::lds<uint32_t>(stage(3)));
}

}  // namespace swa::test::misc
