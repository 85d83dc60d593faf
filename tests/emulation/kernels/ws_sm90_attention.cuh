// Attention forward with TMA and wgmma: QK^T with both operands in shared memory, PV with P in
// registers; a ring of 2 stages with barriers of their own for K and V.
#pragma once
#include "attention_params.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "planted.cuh"
#include "ring.cuh"
#include "softmax.cuh"

namespace swa::test::ws90::attention {

constexpr int kBlockM = 128, kBlockN = 64, kStages = 2, kThreads = 384;
constexpr int kRowBytes = kHeadDim * 2, kTileBytes = kBlockN * kRowBytes,
              kPageBytes = kPageSize * kRowBytes;
constexpr int kPagesPerTile = kBlockN / kPageSize;

struct SharedStorage {
  uint8_t q[kBlockM * kRowBytes], k[kStages][kTileBytes], v[kStages][kTileBytes];
  uint64_t q_full, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
};

struct Work {  // of a CTA
  int seq, head, kv_head, m0, q0, q_len, seqlen_k;
  int first_position, first_tile, last_tile;
};

SWA_DEVICE Work work_of_cta(const AttentionParams& p) {
  Work w;
  w.seq = int(ptx::block_idx().z);
  w.head = int(ptx::block_idx().y);
  w.kv_head = w.head / (p.num_q_heads / p.num_kv_heads);
  w.m0 = int(ptx::block_idx().x) * kBlockM;
  ptx::GlobalPointer<const int> cu_seqlens_q = p.cu_seqlens_q, seqlens_k = p.seqlens_k;
  w.q0 = cu_seqlens_q[w.seq];
  w.q_len = cu_seqlens_q[w.seq + 1] - w.q0;
  w.seqlen_k = seqlens_k[w.seq];
  w.first_position = w.seqlen_k - w.q_len + w.m0;
  w.first_tile = p.window > 0 ? ptx::max(0, w.first_position - p.window + 1) / kBlockN : 0;
  w.last_tile = (ptx::min(w.first_position + kBlockM, w.seqlen_k) - 1) / kBlockN;
  return w;
}

SWA_DEVICE void init_barriers(SharedStorage& smem) {
  ptx::mbarrier_init(ptx::smem_u32(&smem.q_full), 1);
  for (int s = 0; s < kStages; ++s) {
    ptx::mbarrier_init(ptx::smem_u32(&smem.k_full[s]), 1);
    ptx::mbarrier_init(ptx::smem_u32(&smem.k_empty[s]),
                       PLANTED(22) ? 2 : 8);  // one arrival per consumer warp
    ptx::mbarrier_init(ptx::smem_u32(&smem.v_full[s]), 1);
    ptx::mbarrier_init(ptx::smem_u32(&smem.v_empty[s]), 8);
  }
  if (!PLANTED(15)) ptx::fence_mbarrier_init();
}

SWA_DEVICE void produce(SharedStorage& smem, const AttentionParams& p, const Work& w,
                        const ptx::TensorMap& q_map, const ptx::TensorMap& k_map,
                        const ptx::TensorMap& v_map) {
  const uint32_t q_full = ptx::smem_u32(&smem.q_full);
  ptx::mbarrier_arrive_expect_tx(q_full, sizeof smem.q);
  for (int i = 0; i < kBlockM / 64; ++i)
    ptx::tma_load_3d(ptx::smem_u32(smem.q) + uint32_t(i * 64 * kRowBytes), &q_map, q_full, 0,
                     w.head, w.q0 + w.m0 + i * 64);
  ptx::GlobalPointer<const int> block_table = p.block_table + long(w.seq) * p.max_pages;
  Ring<kStages> ring{0, 1};
  for (int tile = w.first_tile; tile <= w.last_tile; ++tile, ring.advance()) {
    const int s = ring.stage;
    const uint32_t k_full = ptx::smem_u32(&smem.k_full[s]), v_full = ptx::smem_u32(&smem.v_full[s]);
    ptx::mbarrier_wait(ptx::smem_u32(&smem.k_empty[s]), PLANTED(8) ? ring.parity ^ 1 : ring.parity);
    ptx::mbarrier_arrive_expect_tx(k_full, PLANTED(11) ? kTileBytes / 2 : kTileBytes);
    int pages[kPagesPerTile];
    SWA_UNROLL
    for (int i = 0; i < kPagesPerTile; ++i) {
      const int index = tile * kPagesPerTile + i;
      // Past the sequence a page id outside the tensor, for which TMA gives zeros.
      pages[i] = index * kPageSize < w.seqlen_k ? int(block_table[index]) : p.num_pages;
      ptx::tma_load_4d(ptx::smem_u32(smem.k[s]) + uint32_t(i * kPageBytes), &k_map, k_full, 0,
                       w.kv_head, 0, pages[i]);
    }
    ptx::mbarrier_wait(ptx::smem_u32(&smem.v_empty[s]), ring.parity);
    ptx::mbarrier_arrive_expect_tx(v_full, kTileBytes);
    SWA_UNROLL
    for (int i = 0; i < kPagesPerTile; ++i)
      ptx::tma_load_4d(ptx::smem_u32(smem.v[s]) + uint32_t(i * kPageBytes), &v_map, v_full, 0,
                       w.kv_head, 0, pages[i]);
  }
}

// Stale slots of the last page: 0 * NaN must not reach the output.
SWA_DEVICE void clear_rows_past_the_end(uint32_t v_tile, int first_key, int seqlen_k,
                                        int consumer) {
  if (consumer == 0) {
    for (int c = int(ptx::thread_idx().x) - 128; c < kBlockN * 8; c += 128)
      if (first_key + (c >> 3) >= seqlen_k)
        ptx::sts(v_tile + uint32_t(c) * 16, ptx::U32x4{0, 0, 0, 0});
    if (!PLANTED(7)) ptx::fence_proxy_async();
  }
  ptx::barrier_sync(1, 256);
}

SWA_DEVICE void consume(SharedStorage& smem, const AttentionParams& p, const Work& w,
                        int consumer) {
  const int warp = ptx::warp_id() & 3, lane = ptx::lane_id();
  const int row_in_cta = consumer * 64 + warp * 16 + (lane >> 2);
  float out[kHeadDim / 2];
  SWA_UNROLL
  for (float& x : out) x = 0.f;
  RowState rows;
  const uint64_t q = ptx::wgmma_descriptor(
      ptx::Swizzle::k128, ptx::smem_u32(smem.q) + uint32_t(consumer * 64 * kRowBytes), 16,
      PLANTED(13) ? 512 : 1024);
  Ring<kStages> ring{0, 0};
  ptx::mbarrier_wait(ptx::smem_u32(&smem.q_full), 0);
  for (int tile = w.first_tile; tile <= w.last_tile; ++tile, ring.advance()) {
    const int s = ring.stage;
    const uint32_t k_empty = ptx::smem_u32(&smem.k_empty[s]);
    const uint32_t v_tile = ptx::smem_u32(smem.v[s]);
    const uint64_t k =
        ptx::wgmma_descriptor(ptx::Swizzle::k128, ptx::smem_u32(smem.k[s]), 16, 1024);
    const uint64_t v = ptx::wgmma_descriptor(ptx::Swizzle::k128, v_tile, 16, 1024);
    float scores[kBlockN / 2];
    ptx::mbarrier_wait(ptx::smem_u32(&smem.k_full[s]), PLANTED(16) ? ring.parity ^ 1 : ring.parity);
    if (!PLANTED(17)) ptx::wgmma_fence(scores);
    SWA_UNROLL
    for (int j = 0; j < kHeadDim / 16; ++j)
      ptx::wgmma_ss<kBlockN, ptx::Half::kBf16, ptx::Major::kK>(scores, q + 2 * j, k + 2 * j, j > 0);
    ptx::wgmma_commit();
    if (PLANTED(10) && lane == 0)
      ptx::mbarrier_arrive(k_empty);  // the stage is released before it has been read
    if (!PLANTED(12)) ptx::wgmma_wait<0>(scores);
    const bool releases =
        lane == 0 && !PLANTED(10) && !(PLANTED(22) && warp != 0);  // 22: one warp for the warpgroup
    if (releases) ptx::mbarrier_arrive(k_empty);
    online_softmax<kBlockN, kHeadDim>(scores, out, rows, p.scale_log2, [&](int r, int column) {
      const int distance = w.first_position + row_in_cta + 8 * r - (tile * kBlockN + column);
      return distance >= 0 && (p.window <= 0 || distance < p.window);
    });
    uint32_t probabilities[kBlockN / 16][4];
    SWA_UNROLL
    for (int j = 0; j < kBlockN / 16; ++j) {
      SWA_UNROLL
      for (int r = 0; r < 4; ++r)
        probabilities[j][r] =
            ptx::pack_half<ptx::Half::kBf16>(scores[8 * j + 2 * r], scores[8 * j + 2 * r + 1]);
    }
    ptx::mbarrier_wait(ptx::smem_u32(&smem.v_full[s]), ring.parity);
    if ((tile + 1) * kBlockN > w.seqlen_k)
      clear_rows_past_the_end(v_tile, tile * kBlockN, w.seqlen_k, consumer);
    ptx::wgmma_fence(out);
    SWA_UNROLL
    for (int j = 0; j < kBlockN / 16; ++j)
      ptx::wgmma_rs<kHeadDim, ptx::Half::kBf16, ptx::Major::kMn>(
          out, probabilities[j], v + uint64_t(j * 16 * kRowBytes >> 4), true);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(out);
    if (lane == 0) ptx::mbarrier_arrive(ptx::smem_u32(&smem.v_empty[s]));
  }
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float inverse = inverse_row_sum(rows, r);
    const int row = w.m0 + row_in_cta + 8 * r;
    if (row >= w.q_len) continue;
    uint16_t* out_row = p.out + (long(w.q0 + row) * p.num_q_heads + w.head) * kHeadDim;
    SWA_UNROLL
    for (int n = 0; n < 8; ++n)
      ptx::stg(out_row + n * 8 + (lane & 3) * 2,
               ptx::pack_half<ptx::Half::kBf16>(out[n * 4 + 2 * r] * inverse,
                                                out[n * 4 + 2 * r + 1] * inverse));
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ ptx::TensorMap q_map,
           const __grid_constant__ ptx::TensorMap k_map,
           const __grid_constant__ ptx::TensorMap v_map, const AttentionParams p) {
  SharedStorage& smem = ptx::shared_storage<SharedStorage>();
  const Work w = work_of_cta(p);
  if (w.m0 >= w.q_len) return;
  if (ptx::thread_idx().x == 0) init_barriers(smem);
  ptx::sync_threads();
  const int warpgroup = ptx::warp_id() / 4;
  if (warpgroup == 0) {
    ptx::set_max_registers_down<24>();
    if (ptx::warp_id() == 0 && ptx::elect_one()) produce(smem, p, w, q_map, k_map, v_map);
  } else {
    ptx::set_max_registers_up<240>();
    consume(smem, p, w, warpgroup - 1);
  }
}

inline ptx::Error launch(const AttentionParams& p, int total_q, int num_seqs, int max_q_len,
                         ptx::Stream stream) {
  const uint64_t row = kRowBytes, heads = uint64_t(p.num_q_heads),
                 kv_heads = uint64_t(p.num_kv_heads);
  const auto bf16 = ptx::ElementType::kBf16;
  auto pages = [&](const void* base) {
    return ptx::encode_tensor_map({base,
                                   bf16,
                                   4,
                                   {kHeadDim, kv_heads, kPageSize, uint64_t(p.num_pages)},
                                   {row, row * kv_heads, row * kv_heads * kPageSize},
                                   {kHeadDim, 1, kPageSize, 1},
                                   ptx::Swizzle::k128});
  };
  const auto q_map = ptx::encode_tensor_map({p.q,
                                             bf16,
                                             3,
                                             {kHeadDim, heads, uint64_t(total_q)},
                                             {row, row * heads},
                                             {kHeadDim, 1, 64},
                                             ptx::Swizzle::k128});
  const ptx::Dim3 grid(unsigned((max_q_len + kBlockM - 1) / kBlockM), unsigned(p.num_q_heads),
                       unsigned(num_seqs));
  return ptx::launch({grid, kThreads, sizeof(SharedStorage), 1, stream}, kernel, q_map,
                     pages(p.k_pages), pages(p.v_pages), p);
}

}  // namespace swa::test::ws90::attention
