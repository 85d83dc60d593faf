// The sm_90a primitives, like golden_sm80.cu.
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/grid_dependency.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/shuffle.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"

using namespace swa::ptx;

#define GOLDEN(name) extern "C" __global__ void golden_##name(void* out, const void* in, uint32_t i)

template <class V>
__device__ void keep(void* out, V v) {
  *static_cast<V*>(out) = v;
}

GOLDEN(mbarrier_init) { mbarrier_init(256, 3); }
GOLDEN(mbarrier_inval) { mbarrier_inval(256); }
GOLDEN(mbarrier_arrive) { mbarrier_arrive(256); }
GOLDEN(mbarrier_arrive_remote) { mbarrier_arrive_remote(256, 1); }
GOLDEN(mbarrier_arrive_expect_tx) { mbarrier_arrive_expect_tx(256, 512); }
GOLDEN(mbarrier_try_wait) { keep(out, int(mbarrier_try_wait(256, 1))); }
GOLDEN(mbarrier_wait) { mbarrier_wait(256, 1); }
GOLDEN(cp_async_mbarrier_arrive_noinc) { cp_async_mbarrier_arrive_noinc(256); }

GOLDEN(fence_proxy_async) { fence_proxy_async(); }
GOLDEN(fence_mbarrier_init) { fence_mbarrier_init(); }

GOLDEN(bulk_load) { bulk_load(256, in, 512, 768); }
GOLDEN(bulk_store) { bulk_store(out, 256, 512); }
GOLDEN(bulk_commit) { bulk_commit(); }
GOLDEN(bulk_wait) { bulk_wait<2>(); }

GOLDEN(tma_load_2d) { tma_load_2d(256, static_cast<const TensorMap*>(in), 768, 1, 2); }
GOLDEN(tma_load_3d) { tma_load_3d(256, static_cast<const TensorMap*>(in), 768, 1, 2, 3); }
GOLDEN(tma_load_4d) { tma_load_4d(256, static_cast<const TensorMap*>(in), 768, 1, 2, 3, 4); }
GOLDEN(tma_load_2d_multicast) {
  tma_load_2d_multicast(256, static_cast<const TensorMap*>(in), 768, 1, 2, 5);
}

GOLDEN(tma_store_3d) { tma_store_3d(static_cast<const TensorMap*>(in), 256, 1, 2, 3); }
GOLDEN(bulk_wait_read) { bulk_wait_read<2>(); }

GOLDEN(launch_dependents) { launch_dependents(); }
GOLDEN(wait_for_grid) { wait_for_grid(); }

GOLDEN(e4m3_to_fp16) { keep(out, e4m3_to_fp16(i)); }

GOLDEN(cluster_rank) { keep(out, cluster_rank()); }
GOLDEN(cluster_arrive) { cluster_arrive(); }
GOLDEN(cluster_wait) { cluster_wait(); }

GOLDEN(elect_one) { keep(out, int(elect_one())); }

GOLDEN(stmatrix_x4) {
  const uint32_t r[4] = {1, 2, 3, 4};
  stmatrix_x4(256, r);
}
GOLDEN(stmatrix_x4_trans) {
  const uint32_t r[4] = {1, 2, 3, 4};
  stmatrix_x4_trans(256, r);
}

GOLDEN(set_max_registers_up) { set_max_registers_up<240>(); }
GOLDEN(set_max_registers_down) { set_max_registers_down<24>(); }

template <int kN, Half kType, Major kB, bool kAInRegisters>
__device__ void golden_wgmma(void* out, uint32_t i) {
  float d[kN / 2];
  const uint32_t a[4] = {5, 6, 7, 8};
  wgmma_fence(d);
  if constexpr (kAInRegisters)
    wgmma_rs<kN, kType, kB>(d, a, 12, i != 0);
  else
    wgmma_ss<kN, kType, kB>(d, 11, 12, i != 0);
  wgmma_commit();
  wgmma_wait<1>(d);
  for (int k = 0; k < kN / 2; ++k) static_cast<float*>(out)[k] = d[k];
}
#define GOLDEN_WGMMA(name, n, type, major)                                              \
  GOLDEN(wgmma_ss_##name) { golden_wgmma<n, Half::type, Major::major, false>(out, i); } \
  GOLDEN(wgmma_rs_##name) { golden_wgmma<n, Half::type, Major::major, true>(out, i); }
#define GOLDEN_WGMMA_EDGE(name, n, type) \
  GOLDEN(wgmma_ss_##name) { golden_wgmma<n, Half::type, Major::kK, false>(out, i); }
GOLDEN_WGMMA_EDGE(16_bf16_k, 16, kBf16)
GOLDEN_WGMMA_EDGE(32_bf16_k, 32, kBf16)
GOLDEN_WGMMA_EDGE(48_bf16_k, 48, kBf16)
GOLDEN_WGMMA_EDGE(16_fp16_k, 16, kFp16)
GOLDEN_WGMMA_EDGE(32_fp16_k, 32, kFp16)
GOLDEN_WGMMA_EDGE(48_fp16_k, 48, kFp16)
GOLDEN_WGMMA(64_bf16_k, 64, kBf16, kK)
GOLDEN_WGMMA(64_bf16_mn, 64, kBf16, kMn)
GOLDEN_WGMMA(64_fp16_k, 64, kFp16, kK)
GOLDEN_WGMMA(64_fp16_mn, 64, kFp16, kMn)
GOLDEN_WGMMA(128_bf16_k, 128, kBf16, kK)
GOLDEN_WGMMA(128_bf16_mn, 128, kBf16, kMn)
GOLDEN_WGMMA(128_fp16_k, 128, kFp16, kK)
GOLDEN_WGMMA(128_fp16_mn, 128, kFp16, kMn)
