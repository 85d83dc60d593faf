// One kernel per primitive and form, so that the PTX of each can be read alone. Constants are
// distinct to show operand order.
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/shuffle.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/thread.cuh"

using namespace swa::ptx;

#define GOLDEN(name) \
  extern "C" __global__ void golden_##name(void* out, const void* in, float x, float y, uint32_t i)

template <class V>
__device__ void keep(void* out, V v) {
  *static_cast<V*>(out) = v;
}

GOLDEN(cp_async_4) { cp_async<4>(256, in, 3); }
GOLDEN(cp_async_8) { cp_async<8>(256, in, 5); }
GOLDEN(cp_async_16) { cp_async<16>(256, in, 9); }
GOLDEN(cp_async_commit) { cp_async_commit(); }
GOLDEN(cp_async_wait) { cp_async_wait<3>(); }

GOLDEN(ldg_4) { keep(out, ldg<uint32_t>(in)); }
GOLDEN(ldg_8) { keep(out, ldg<U32x2>(in)); }
GOLDEN(ldg_16) { keep(out, ldg<U32x4>(in)); }
GOLDEN(stg_4) { stg(out, 1u); }
GOLDEN(stg_8) { stg(out, U32x2{1, 2}); }
GOLDEN(stg_16) { stg(out, U32x4{1, 2, 3, 4}); }
GOLDEN(lds_4) { keep(out, lds<uint32_t>(256)); }
GOLDEN(lds_8) { keep(out, lds<U32x2>(256)); }
GOLDEN(lds_16) { keep(out, lds<U32x4>(256)); }
GOLDEN(sts_4) { sts(256, 1u); }
GOLDEN(sts_8) { sts(256, U32x2{1, 2}); }
GOLDEN(sts_16) { sts(256, U32x4{1, 2, 3, 4}); }

GOLDEN(ldmatrix_x1) {
  uint32_t r[1];
  ldmatrix_x1(r, 256);
  keep(out, r[0]);
}
GOLDEN(ldmatrix_x2) {
  uint32_t r[2];
  ldmatrix_x2(r, 256);
  keep(out, U32x2{r[0], r[1]});
}
GOLDEN(ldmatrix_x4) {
  uint32_t r[4];
  ldmatrix_x4(r, 256);
  keep(out, U32x4{r[0], r[1], r[2], r[3]});
}
GOLDEN(ldmatrix_x2_trans) {
  uint32_t r[2];
  ldmatrix_x2_trans(r, 256);
  keep(out, U32x2{r[0], r[1]});
}
GOLDEN(ldmatrix_x4_trans) {
  uint32_t r[4];
  ldmatrix_x4_trans(r, 256);
  keep(out, U32x4{r[0], r[1], r[2], r[3]});
}

template <Half kType>
__device__ void golden_mma(void* out) {
  float d[4] = {1.f, 2.f, 3.f, 4.f};
  const uint32_t a[4] = {5, 6, 7, 8};
  mma_m16n8k16<kType>(d, a, 9, 10);
  keep(out, float4{d[0], d[1], d[2], d[3]});
}
GOLDEN(mma_m16n8k16_bf16) { golden_mma<Half::kBf16>(out); }
GOLDEN(mma_m16n8k16_fp16) { golden_mma<Half::kFp16>(out); }

GOLDEN(pack_half_bf16) { keep(out, pack_half<Half::kBf16>(x, y)); }
GOLDEN(pack_half_fp16) { keep(out, pack_half<Half::kFp16>(x, y)); }
GOLDEN(half_low_bf16) { keep(out, half_low<Half::kBf16>(i)); }
GOLDEN(half_low_fp16) { keep(out, half_low<Half::kFp16>(i)); }
GOLDEN(half_high_bf16) { keep(out, half_high<Half::kBf16>(i)); }
GOLDEN(half_high_fp16) { keep(out, half_high<Half::kFp16>(i)); }

GOLDEN(ex2) { keep(out, ex2(x)); }
GOLDEN(lg2) { keep(out, lg2(x)); }
GOLDEN(tanh_approx) { keep(out, tanh_approx(x)); }

GOLDEN(shfl_xor) { keep(out, shfl_xor(x, 5, 0xffff)); }
GOLDEN(shfl) { keep(out, shfl(x, 5, 0xffff)); }
GOLDEN(ballot) { keep(out, ballot(i == 7, 0xffff)); }
GOLDEN(any) { keep(out, int(any(i == 7, 0xffff))); }
GOLDEN(all) { keep(out, int(all(i == 7, 0xffff))); }
GOLDEN(lane_id) { keep(out, lane_id()); }
GOLDEN(warp_id) { keep(out, warp_id()); }

GOLDEN(sync_warp) { sync_warp(0xffff); }
GOLDEN(sync_threads) { sync_threads(); }
GOLDEN(barrier_sync) { barrier_sync(3, 64); }
GOLDEN(barrier_arrive) { barrier_arrive(3, 64); }
