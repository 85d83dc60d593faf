// Prefill for full attention and large windows: cp.async and mma.sync, a CTA per tile of rows, K
// and V streamed through a few stages of shared memory.
//
// Work: kWarps x 16 rows, which are tokens_per_tile = rows / group_size query tokens with all heads
// of their group. The walk starts at the tile of keys that holds the first visible one and ends
// with the last row's own. A warp skips the slices that none of its rows sees and masks only where
// some row does not see some key. Later tokens, which have more keys, are started first.
//
// Shared memory: flags and num_stages tiles of Traits::kTileSlices slices. For 192 / 128 in bf16: 2
// stages of 40 KB.
#pragma once
#include "cuda/attention/epilogue.cuh"
#include "cuda/attention/everybody.cuh"
#include "cuda/attention/kv_loader.cuh"
#include "cuda/attention/special_values.cuh"
#include "cuda/attention/work.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"

namespace swa::cuda::sm80_prefill {

constexpr int kWarps = 8, kThreads = kWarps * 32, kRows = kWarps * kWarpRows;
constexpr int kMaxStages = 4;

struct Schedule {
  int tokens_per_tile, num_stages;
};

struct SharedStorage {
  alignas(128) uint32_t finite[kWarps];  // of each warp, for everybody()
  alignas(128) uint8_t stages[128];      // num_stages tiles; how many there are is known at launch
};

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ AttentionParams p, const Schedule schedule) {
  constexpr uint32_t kStageBytes = Traits::kTileSlices * Traits::Slice::kBytes;
  const int index = int(ptx::grid_dim().x - 1 - ptx::block_idx().x);
  const QueryRange range = find_query_range(p, index, schedule.tokens_per_tile);
  if (range.seq < 0) return;
  const int kv_head = int(ptx::block_idx().y), warp = ptx::warp_id();
  const ptx::GlobalPointer<const int32_t> seqlens_k = p.seqlens_k;
  const int position = seqlens_k[range.seq] - range.q_len + range.first;  // of the first row
  const int num_tokens = range.end - range.first;
  const int begin = ptx::max(0, position - p.window + 1), end = position + num_tokens;
  const KvLoader<Traits> loader(p, range.seq, kv_head, begin, end);
  const WarpRows rows = warp_rows(warp * kWarpRows, num_tokens, p.group_size, position, p.window);
  const int head = kv_head * p.group_size;
  const int64_t row = range.first_row + range.first;
  Query<Traits> query;
  query.load(p, p.q + row * p.q_token_stride + head * p.q_head_stride, rows);

  SharedStorage& smem = ptx::shared_storage<SharedStorage>();
  const uint32_t stages = ptx::smem_u32(smem.stages);
  const int first_tile = begin / Traits::kTileKeys;
  const int end_tile = end <= 0 ? first_tile : (end - 1) / Traits::kTileKeys + 1;
  const auto stage_of = [&](int tile) {
    return stages + uint32_t((tile - first_tile) % schedule.num_stages) * kStageBytes;
  };
  // f(index, address) for the slices of a tile that hold visible keys.
  const auto for_slices = [&](int tile, auto f) {
    for (int i = 0; tile < end_tile && i < Traits::kTileSlices; ++i) {
      const int slice = tile * Traits::kTileSlices + i;
      if (slice * kSliceKeys < end && (slice + 1) * kSliceKeys > begin)
        f(slice, stage_of(tile) + uint32_t(i * Traits::Slice::kBytes));
    }
  };
  const auto load_tile = [&](int tile) {
    for_slices(tile, [&](int slice, uint32_t to) { loader.load(slice, to, warp, kWarps); });
    ptx::cp_async_commit();
  };
  const auto clear_tile = [&](int tile) {
    for_slices(tile, [&](int, uint32_t in) { loader.clear_special_values(in, warp, kWarps); });
  };

  const ScoreScale scale(p);
  SoftmaxState state;
  Output<Traits> out;
  for (bool careful = false;; careful = true) {
    state = SoftmaxState();
    for (float (&columns)[4] : out)
      for (float& x : columns) x = 0.f;
    for (int i = 0; i < schedule.num_stages - 1; ++i) load_tile(first_tile + i);
    for (int tile = first_tile; tile < end_tile; ++tile) {
      const uint32_t stage = stage_of(tile);
      wait_for_copies(schedule.num_stages - 2);
      if (careful) clear_tile(tile);
      ptx::sync_threads();  // the tile has landed, and everybody is done with the one before it
      load_tile(tile + schedule.num_stages - 1);
      const auto slice_at = [&](int i) { return stage + uint32_t(i * Traits::Slice::kBytes); };
      attend_tile<Traits, Traits::kTileSlices>(query, tile * Traits::kTileKeys, rows, scale,
                                               slice_at, state, out);
    }
    ptx::cp_async_wait<0>();
    if (careful) add_special_values(out, loader, rows);
    if (careful || everybody(smem.finite, all_finite<Traits>(out, rows))) break;
  }
  store_results<Traits>(p, rows, head, p.out + row * p.out_token_stride + head * p.out_head_stride,
                        p.lse + row * p.num_kv_heads * p.group_size + head, state, out);
}

// num_stages = 0 if the device has no room for two.
template <class Traits>
Schedule schedule_for(const AttentionParams& p, const Device& device) {
  constexpr int kStageBytes = Traits::kTileSlices * Traits::Slice::kBytes;
  const int room = (device.max_smem_bytes - int(offsetof(SharedStorage, stages))) / kStageBytes;
  return {kRows / p.group_size, room < 2 ? 0 : ptx::min(room, kMaxStages)};
}

template <class Traits>
ptx::Error launch(const AttentionParams& p, const Schedule& schedule, ptx::Stream stream) {
  const unsigned ranges =
      unsigned(max_query_ranges(p.total_q, p.num_seqs, schedule.tokens_per_tile));
  const size_t smem_bytes = offsetof(SharedStorage, stages) + size_t(schedule.num_stages) *
                                                                  Traits::kTileSlices *
                                                                  Traits::Slice::kBytes;
  return ptx::launch({ptx::Dim3(ranges, unsigned(p.num_kv_heads)), kThreads, smem_bytes, 1, stream},
                     kernel<Traits>, p, schedule);
}

}  // namespace swa::cuda::sm80_prefill
