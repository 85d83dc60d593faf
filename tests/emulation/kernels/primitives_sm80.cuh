// One small kernel per sm_80 primitive: inputs in, what the instruction gave out. Launched with one
// warp.
#pragma once
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/shuffle.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/thread.cuh"

namespace swa::test::primitives {

struct Tile {
  alignas(16) uint16_t rows[32][8];
};

// in: [32, 8] 16-bit; out: [5, 32 lanes, 4 registers]: x1, x2, x4, x2_trans, x4_trans (unused
// registers 0).
__global__ void ldmatrix(const uint16_t* in, uint32_t* out) {
  Tile& tile = ptx::shared_storage<Tile>();
  const int lane = ptx::lane_id();
  const uint32_t row = ptx::smem_u32(tile.rows[lane]);
  ptx::sts(row, ptx::ldg<ptx::U32x4>(in + lane * 8));
  ptx::sync_warp();
  uint32_t x1[1], x2[2], x4[4], x2t[2], x4t[4];
  ptx::ldmatrix_x1(x1, row);
  ptx::ldmatrix_x2(x2, row);
  ptx::ldmatrix_x4(x4, row);
  ptx::ldmatrix_x2_trans(x2t, row);
  ptx::ldmatrix_x4_trans(x4t, row);
  ptx::stg(out + (0 * 32 + lane) * 4, ptx::U32x4{x1[0], 0, 0, 0});
  ptx::stg(out + (1 * 32 + lane) * 4, ptx::U32x4{x2[0], x2[1], 0, 0});
  ptx::stg(out + (2 * 32 + lane) * 4, ptx::U32x4{x4[0], x4[1], x4[2], x4[3]});
  ptx::stg(out + (3 * 32 + lane) * 4, ptx::U32x4{x2t[0], x2t[1], 0, 0});
  ptx::stg(out + (4 * 32 + lane) * 4, ptx::U32x4{x4t[0], x4t[1], x4t[2], x4t[3]});
}

// Fragments as the instruction takes them. a: [32 lanes, 4], b: [32, 2], c and out: [32, 4] fp32.
// out = a b + c.
template <ptx::Half kType>
__global__ void mma(const uint32_t* a, const uint32_t* b, const float* c, float* out) {
  const int lane = ptx::lane_id();
  const ptx::U32x4 av = ptx::ldg<ptx::U32x4>(a + lane * 4);
  const ptx::U32x2 bv = ptx::ldg<ptx::U32x2>(b + lane * 2);
  const ptx::U32x4 cv = ptx::ldg<ptx::U32x4>(c + lane * 4);
  const uint32_t fragment[4] = {av.x, av.y, av.z, av.w};
  float d[4] = {ptx::bit_cast<float>(cv.x), ptx::bit_cast<float>(cv.y), ptx::bit_cast<float>(cv.z),
                ptx::bit_cast<float>(cv.w)};
  ptx::mma_m16n8k16<kType>(d, fragment, bv.x, bv.y);
  ptx::GlobalPointer<float> o = out;
  for (int i = 0; i < 4; ++i) o[lane * 4 + i] = d[i];
}

// out: [32 lanes, 6]: shfl_xor 5, shfl from (lane + 3), ballot, half-warp ballot, any, all of
// lane-dependent predicates.
__global__ void shuffle(const float* in, uint32_t* out) {
  const int lane = ptx::lane_id();
  ptx::GlobalPointer<const float> values = in;
  const float v = values[lane];
  const uint32_t half = lane < 16 ? 0xffffu : 0xffff0000u;
  const uint32_t results[6] = {ptx::bit_cast<uint32_t>(ptx::shfl_xor(v, 5)),
                               ptx::bit_cast<uint32_t>(ptx::shfl(v, lane + 3)),
                               ptx::ballot(lane % 3 == 0),
                               ptx::ballot(lane % 5 == 0, half),
                               ptx::any(lane == 7),
                               ptx::all(lane < 31)};
  ptx::GlobalPointer<uint32_t> o = out;
  for (int i = 0; i < 6; ++i) o[lane * 6 + i] = results[i];
}

// in: [32] fp32; out: [32, 7] fp32: ex2, lg2, tanh, bf16 round trip (low, high of (x, -x)), fp16
// round trip.
__global__ void math(const float* in, float* out) {
  const int lane = ptx::lane_id();
  ptx::GlobalPointer<const float> values = in;
  const float x = values[lane];
  const uint32_t bf16 = ptx::pack_half<ptx::Half::kBf16>(x, -x),
                 fp16 = ptx::pack_half<ptx::Half::kFp16>(x, -x);
  const float results[7] = {ptx::ex2(x),
                            ptx::lg2(x),
                            ptx::tanh_approx(x),
                            ptx::half_low<ptx::Half::kBf16>(bf16),
                            ptx::half_high<ptx::Half::kBf16>(bf16),
                            ptx::half_low<ptx::Half::kFp16>(fp16),
                            ptx::half_high<ptx::Half::kFp16>(fp16)};
  ptx::GlobalPointer<float> o = out;
  for (int i = 0; i < 7; ++i) o[lane * 7 + i] = results[i];
}

// Moves in to out, each [32 lanes, 7 words], as 4, 8 and 16 bytes through registers and shared
// memory.
__global__ void ld_st(const uint32_t* in4, const uint32_t* in8, const uint32_t* in16,
                      uint32_t* out4, uint32_t* out8, uint32_t* out16) {
  struct Storage {
    ptx::U32x4 wide[32];
    ptx::U32x2 pair[32];
    uint32_t word[32];
  };
  Storage& smem = ptx::shared_storage<Storage>();
  const int lane = ptx::lane_id();
  ptx::sts(ptx::smem_u32(&smem.word[lane]), ptx::ldg<uint32_t>(in4 + lane));
  ptx::sts(ptx::smem_u32(&smem.pair[lane]), ptx::ldg<ptx::U32x2>(in8 + lane * 2));
  ptx::sts(ptx::smem_u32(&smem.wide[lane]), ptx::ldg<ptx::U32x4>(in16 + lane * 4));
  ptx::sync_warp();
  const int other = lane ^ 9;
  ptx::stg(out4 + lane, ptx::lds<uint32_t>(ptx::smem_u32(&smem.word[other])));
  ptx::stg(out8 + lane * 2, ptx::lds<ptx::U32x2>(ptx::smem_u32(&smem.pair[other])));
  ptx::stg(out16 + lane * 4, ptx::lds<ptx::U32x4>(ptx::smem_u32(&smem.wide[other])));
}

// Lane i copies sizes[i] of 16 (8, 4) bytes of in, the rest is zeros. in and out: [32, 16 bytes]
// bytes.
template <int kBytes>
__global__ void cp_async(const uint8_t* in, const int* sizes, uint32_t* out) {
  struct Storage {
    alignas(16) uint8_t bytes[32][16];
  };
  Storage& smem = ptx::shared_storage<Storage>();
  const int lane = ptx::lane_id();
  ptx::GlobalPointer<const int> sizes_in = sizes;
  const uint32_t row = ptx::smem_u32(smem.bytes[lane]);
  ptx::cp_async<kBytes>(row, in + lane * 16, sizes_in[lane]);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  for (int i = 0; i < kBytes / 4; ++i)
    ptx::stg(out + lane * 4 + i, ptx::lds<uint32_t>(row + uint32_t(i) * 4));
}

}  // namespace swa::test::primitives
