// Queries of a warpgroup by TMA: a box has all heads of a group for some consecutive tokens, and
// lands as the first rows of the 64 that a product has.
#pragma once
#include "cuda/attention/wgmma_attention.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/thread.cuh"
#include "cuda/ptx/tma.cuh"

namespace swa::cuda {

template <class Traits>
constexpr int kQueryBytes = kWarpgroupRows * Traits::kHeadDim * 2;  // of a warpgroup

// By one thread: the box of `rows` rows from head `head` of row `row` of q on; completes on `full`.
template <class Traits>
SWA_DEVICE void load_query_box(uint32_t q, uint32_t full, const ptx::TensorMap& map, int head,
                               int row, int rows) {
  ptx::mbarrier_arrive_expect_tx(full, uint32_t(rows * Traits::kHeadDim * 2));
  SWA_UNROLL
  for (int panel = 0; panel < Traits::kHeadDim / kPanelElements; ++panel)
    ptx::tma_load_3d(q + uint32_t(panel * kWarpgroupRows * kPanelRowBytes), &map, full,
                     panel * kPanelElements, head, row);
}

// By all threads of the CTA: the rows that no box of `rows` rows reaches become zeros, for
// kWarpgroups warpgroups.
template <class Traits, int kWarpgroups>
SWA_DEVICE void clear_rows_without_queries(uint8_t (&q)[kWarpgroups][kQueryBytes<Traits>],
                                           int rows) {
  constexpr int kChunks = Traits::kHeadDim / 8;
  const int missing = (kWarpgroupRows - rows) * kChunks;
  for (int c = int(ptx::thread_idx().x); c < kWarpgroups * missing; c += int(ptx::block_dim().x)) {
    const int row = rows + c % missing / kChunks;
    ptx::sts(ptx::smem_u32(q[c / missing]) + panel_offset(kWarpgroupRows, row, c % kChunks),
             ptx::U32x4{0, 0, 0, 0});
  }
}

}  // namespace swa::cuda
