// Decode: 1 to 8 query tokens per sequence; cp.async and mma.sync, a CTA per sequence, KV head and
// split of the keys.
//
// Work: the rows are the query tokens with all heads of their group, 16 per product. Four key warps
// take every fourth slice each, into slots of their own, so that in the main loop a warp waits for
// nobody but itself (and its twin, if more than 16 rows make it two warps per key warp). For a
// window of 128 every slice is on its way before the first one is used. At the end the four partial
// results of a row are joined (decode_join.cuh). More than 32 rows are further passes over the same
// keys. A row's bits depend on the absolute place of its keys alone.
//
// Windows up to kSplitKeys are one launch: no plan, no combine. Longer ranges are cut into splits,
// whose results smxx_combine joins. The grid depends on shapes only.
//
// Shared memory: 4 x depth slices, and what the join takes. For 192 / 128 in bf16, 3 slices deep:
// 131 KB.
#pragma once
#include "cuda/attention/decode_join.cuh"
#include "cuda/attention/decode_split.cuh"
#include "cuda/attention/kv_loader.cuh"
#include "cuda/ptx/launch.cuh"

namespace swa::cuda::sm80_decode {

constexpr int kMaxRowWarps = 2, kMaxThreads = 32 * kKeyWarps * kMaxRowWarps;
constexpr int kMaxDepth = 4;

struct Schedule {
  int row_warps;    // per key warp
  int depth;        // slices of a key warp in shared memory; 0: the device has no room
  int slots_bytes;  // of them all
};

struct SharedStorage {
  uint32_t finite[kKeyWarps * kMaxRowWarps];
  alignas(128) uint8_t data[128];  // slots, then JoinStorage of each row warp
};

// This warp's slices of `keys`: attention of its rows over them.
template <class Traits>
SWA_DEVICE void attend_slices(const KvLoader<Traits>& loader, uint32_t slots,
                              const Schedule& schedule, const Query<Traits>& query,
                              const WarpRows& rows, const ScoreScale& scale, bool careful,
                              SoftmaxState& state, Output<Traits>& out) {
  const int key_warp = ptx::warp_id() % kKeyWarps, row_warp = ptx::warp_id() / kKeyWarps;
  const int first_slice = loader.first_key() / kSliceKeys;
  const int own = first_slice + ((key_warp - first_slice) & (kKeyWarps - 1));  // the first one
  const int end = (loader.end_key() + kSliceKeys - 1) / kSliceKeys;
  const auto slot_of = [&](int i) {
    return slots +
           uint32_t((key_warp * schedule.depth + i % schedule.depth) * Traits::Slice::kBytes);
  };
  const auto load = [&](int i) {
    const int slice = own + i * kKeyWarps;
    if (slice < end) loader.load(slice, slot_of(i), row_warp, schedule.row_warps);
    ptx::cp_async_commit();
  };
  const auto meet = [&] { ptx::barrier_sync(1 + key_warp, 32 * schedule.row_warps); };

  for (int i = 0; i < schedule.depth; ++i) load(i);
  for (int i = 0; own + i * kKeyWarps < end; ++i) {
    wait_for_copies(schedule.depth - 1);
    if (careful) loader.clear_special_values(slot_of(i), row_warp, schedule.row_warps);
    meet();  // the slice has landed for both
    const auto slice_at = [&](int) { return slot_of(i); };
    attend_tile<Traits, 1>(query, (own + i * kKeyWarps) * kSliceKeys, rows, scale, slice_at, state,
                           out);
    meet();  // both are done with the slot
    load(i + schedule.depth);
  }
  ptx::cp_async_wait<0>();
}

template <class Traits>
__global__ void __launch_bounds__(kMaxThreads, 1)
    kernel(const __grid_constant__ AttentionParams p, const Schedule schedule) {
  const int kv_head = int(ptx::block_idx().y), seq = int(ptx::block_idx().z);
  const ptx::GlobalPointer<const int32_t> seqlens_k = p.seqlens_k;
  const int seqlen_k = seqlens_k[seq];
  KeyRange keys = visible_keys(p, seqlen_k);
  if (p.num_splits > 1) {
    if (int(ptx::block_idx().x) >= splits_touched(keys)) return;
    keys = split_of(keys, int(ptx::block_idx().x));
  }
  SharedStorage& smem = ptx::shared_storage<SharedStorage>();
  const uint32_t slots = ptx::smem_u32(smem.data);
  auto* join = reinterpret_cast<JoinStorage<Traits>*>(smem.data + schedule.slots_bytes);
  const KvLoader<Traits> loader(p, seq, kv_head, keys.begin, keys.end);
  const ScoreScale scale(p);
  const char* first_query =
      p.q + seq * p.q_seq_stride + int64_t(kv_head) * p.group_size * p.q_head_stride;
  const int row_warp = ptx::warp_id() / kKeyWarps;

  for (int first_row = 0; first_row < p.q_len * p.group_size;
       first_row += schedule.row_warps * kWarpRows) {
    const WarpRows rows = warp_rows(first_row + row_warp * kWarpRows, p.q_len, p.group_size,
                                    seqlen_k - p.q_len, p.window);
    Query<Traits> query;
    query.load(p, first_query, rows);
    for (bool careful = false;; careful = true) {
      SoftmaxState state;
      Output<Traits> out = {};
      attend_slices(loader, slots, schedule, query, rows, scale, careful, state, out);
      const DecodePass pass = {seq, kv_head, int(ptx::block_idx().x), first_row,
                               seqlen_k - p.q_len};
      if (join_and_store(p, join, smem.finite, pass, loader, careful, state, out) || careful) break;
    }
  }
}

// As deep as the longest range of a CTA needs and the device allows.
template <class Traits>
Schedule schedule_for(const AttentionParams& p, const Device& device) {
  const int row_warps = p.q_len * p.group_size > kWarpRows ? kMaxRowWarps : 1;
  const int room = device.max_smem_bytes - int(offsetof(SharedStorage, data)) -
                   row_warps * int(sizeof(JoinStorage<Traits>));
  const int stage_bytes = kKeyWarps * Traits::Slice::kBytes;
  const int64_t keys = ptx::min(int64_t(p.window) + p.q_len - 1, int64_t(kSplitKeys));
  const int64_t slices = (keys + kSliceKeys - 2) / kSliceKeys + 1;
  const int depth = int(ptx::min(int64_t(ptx::min(kMaxDepth, room / stage_bytes)),
                                 (slices + kKeyWarps - 1) / kKeyWarps));
  return {row_warps, depth, depth * stage_bytes};
}

template <class Traits>
ptx::Error launch(const AttentionParams& p, const Schedule& schedule, ptx::Stream stream) {
  const size_t smem_bytes = offsetof(SharedStorage, data) + size_t(schedule.slots_bytes) +
                            size_t(schedule.row_warps) * sizeof(JoinStorage<Traits>);
  const ptx::Dim3 grid(unsigned(p.num_splits), unsigned(p.num_kv_heads), unsigned(p.num_seqs));
  const unsigned threads = unsigned(32 * kKeyWarps * schedule.row_warps);
  return ptx::launch({grid, threads, smem_bytes, 1, stream}, kernel<Traits>, p, schedule);
}

}  // namespace swa::cuda::sm80_decode
