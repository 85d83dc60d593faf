// Attention forward with cp.async and mma.sync: K and V double buffered, one CTA per 64 query
// tokens of one head, 4 warps of 16 rows. A subject for the emulator's own tests, with mistakes to
// plant; not a kernel of the package.
#pragma once
#include "attention_params.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/thread.cuh"
#include "planted.cuh"
#include "softmax.cuh"

namespace swa::test::fa80 {

constexpr int kBlockM = 64, kBlockN = 64, kThreads = 128;
constexpr int kRowBytes = kHeadDim * 2, kTileBytes = kBlockN * kRowBytes;

struct SharedStorage {
  uint8_t q[kBlockM * kRowBytes], k[2][kTileBytes], v[2][kTileBytes];
};

// Byte offset of a 16-byte chunk in a tile of 128-byte rows: chunks XORed with the row, so that
// ldmatrix has no conflicts.
SWA_DEVICE uint32_t swizzled_offset(int row, int chunk) {
  return uint32_t(row * kRowBytes + ((chunk ^ (row & 7)) << 4));
}
SWA_DEVICE uint32_t k_read_offset(int row, int chunk) {
  return PLANTED(3) ? uint32_t(row * kRowBytes + ((chunk ^ ((row >> 1) & 7)) << 4))
                    : swizzled_offset(row, chunk);
}

SWA_DEVICE void load_kv(const AttentionParams& p, uint32_t k_tile, uint32_t v_tile, int tile,
                        int seq, int kv_head, int seqlen_k) {
  ptx::GlobalPointer<const int> pages = p.block_table + long(seq) * p.max_pages;
  SWA_UNROLL
  for (int i = 0; i < kBlockN * 8 / kThreads; ++i) {
    const int c = i * kThreads + int(ptx::thread_idx().x), row = c >> 3, chunk = c & 7,
              key = tile * kBlockN + row;
    const bool valid = key < seqlen_k || PLANTED(5);
    const int page = valid ? int(pages[key / kPageSize]) : 0;
    long offset =
        ((long(page) * kPageSize + key % kPageSize) * p.num_kv_heads + kv_head) * kHeadDim +
        chunk * 8;
    if (PLANTED(23)) offset = int(uint32_t(offset));  // a 32-bit offset
    ptx::cp_async<16>(k_tile + swizzled_offset(row, chunk), p.k_pages + offset, valid ? 16 : 0);
    ptx::cp_async<16>(v_tile + swizzled_offset(row, chunk), p.v_pages + offset, valid ? 16 : 0);
  }
}

__global__ void __launch_bounds__(kThreads) kernel(const AttentionParams p) {
  SharedStorage& smem = ptx::shared_storage<SharedStorage>();
  const int tid = int(ptx::thread_idx().x), warp = ptx::warp_id(), lane = ptx::lane_id();
  const int seq = int(ptx::block_idx().z), head = int(ptx::block_idx().y),
            m0 = int(ptx::block_idx().x) * kBlockM;
  const int kv_head = head / (p.num_q_heads / p.num_kv_heads);
  ptx::GlobalPointer<const int> cu_seqlens_q = p.cu_seqlens_q, seqlens_k = p.seqlens_k;
  const int q0 = cu_seqlens_q[seq], q_len = cu_seqlens_q[seq + 1] - q0, seqlen_k = seqlens_k[seq];
  if (m0 >= q_len) return;
  const uint32_t q_tile = ptx::smem_u32(smem.q), k_tiles = ptx::smem_u32(smem.k),
                 v_tiles = ptx::smem_u32(smem.v);

  SWA_UNROLL
  for (int i = 0; i < kBlockM * 8 / kThreads; ++i) {
    const int c = i * kThreads + tid, row = c >> 3, chunk = c & 7;
    const bool valid = m0 + row < q_len;
    const long token = q0 + (valid ? m0 + row : 0);
    ptx::cp_async<16>(q_tile + swizzled_offset(row, chunk),
                      p.q + (token * p.num_q_heads + head) * kHeadDim + chunk * 8, valid ? 16 : 0);
  }
  const int first_position = seqlen_k - q_len + m0;
  const int last_key = ptx::min(first_position + kBlockM, seqlen_k) - 1;
  const int first_tile = p.window > 0 ? ptx::max(0, first_position - p.window + 1) / kBlockN : 0;
  const int last_tile = last_key / kBlockN;
  load_kv(p, k_tiles, v_tiles, first_tile, seq, kv_head, seqlen_k);
  ptx::cp_async_commit();

  float out[8][4] = {};
  RowState rows;
  uint32_t q_fragments[4][4];
  for (int tile = first_tile; tile <= last_tile; ++tile) {
    const int stage = (tile - first_tile) & 1;
    const uint32_t next = uint32_t(stage ^ 1) * kTileBytes;
    if (tile < last_tile)
      load_kv(p, k_tiles + next, v_tiles + next, tile + 1, seq, kv_head, seqlen_k);
    ptx::cp_async_commit();
    if (!PLANTED(1)) ptx::cp_async_wait<1>();
    if (!PLANTED(2) && !(PLANTED(6) && m0 + warp * 16 >= q_len))
      ptx::sync_threads();  // the tile has landed for everybody
    const uint32_t k_tile = k_tiles + uint32_t(stage) * kTileBytes,
                   v_tile = v_tiles + uint32_t(stage) * kTileBytes;
    if (tile == first_tile) {
      SWA_UNROLL
      for (int k = 0; k < 4; ++k)
        ptx::ldmatrix_x4(q_fragments[k],
                         q_tile + swizzled_offset(warp * 16 + (lane & 15), 2 * k + (lane >> 4)));
    }
    float scores[8][4] = {};
    SWA_UNROLL
    for (int k = 0; k < 4; ++k) {
      SWA_UNROLL
      for (int n = 0; n < 4; ++n) {
        uint32_t b[4];
        ptx::ldmatrix_x4(b, k_tile + k_read_offset(n * 16 + (lane & 7) + (lane >> 4 << 3),
                                                   2 * k + (lane >> 3 & 1)));
        ptx::mma_m16n8k16<ptx::Half::kBf16>(scores[2 * n], q_fragments[k], b[0], b[1]);
        ptx::mma_m16n8k16<ptx::Half::kBf16>(scores[2 * n + 1], q_fragments[k], b[2], b[3]);
      }
    }
    const int row_position = first_position + warp * 16 + (lane >> 2);
    online_softmax<kBlockN, kHeadDim>(
        scores[0], out[0], rows, p.scale_log2, [&](int r, int column) {
          const int distance = row_position + 8 * r - (tile * kBlockN + column);
          return distance >= 0 && (p.window <= 0 || distance < p.window + (PLANTED(4) ? 1 : 0));
        });
    SWA_UNROLL
    for (int k = 0; k < 4; ++k) {
      uint32_t a[4];
      SWA_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float* s = scores[2 * k + i / 2] + i % 2 * 2;
        a[i] = ptx::pack_half<ptx::Half::kBf16>(s[0], s[1]);
      }
      SWA_UNROLL
      for (int n = 0; n < 4; ++n) {
        uint32_t b[4];
        ptx::ldmatrix_x4_trans(b,
                               v_tile + swizzled_offset(k * 16 + (lane & 15), 2 * n + (lane >> 4)));
        ptx::mma_m16n8k16<ptx::Half::kBf16>(out[2 * n], a, b[0], b[1]);
        ptx::mma_m16n8k16<ptx::Half::kBf16>(out[2 * n + 1], a, b[2], b[3]);
      }
    }
    if (!PLANTED(9))
      ptx::sync_threads();  // everybody has read the stage that the next iteration overwrites
  }
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float inverse = inverse_row_sum(rows, r);
    const int row = m0 + warp * 16 + (lane >> 2) + 8 * r;
    if (row >= q_len) continue;
    uint16_t* out_row = p.out + (long(q0 + row) * p.num_q_heads + head) * kHeadDim;
    SWA_UNROLL
    for (int n = 0; n < 8; ++n)
      ptx::stg(
          out_row + n * 8 + (lane & 3) * 2,
          ptx::pack_half<ptx::Half::kBf16>(out[n][2 * r] * inverse, out[n][2 * r + 1] * inverse));
  }
  ptx::cp_async_wait<0>();
}

inline ptx::Error launch(const AttentionParams& p, int num_seqs, int max_q_len,
                         ptx::Stream stream) {
  const ptx::Dim3 grid(unsigned((max_q_len + kBlockM - 1) / kBlockM), unsigned(p.num_q_heads),
                       unsigned(num_seqs));
  return ptx::launch({grid, kThreads, sizeof(SharedStorage), 1, stream}, kernel, p);
}

}  // namespace swa::test::fa80
