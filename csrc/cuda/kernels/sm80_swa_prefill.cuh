// Prefill for small windows: cp.async and mma.sync, a CTA walks along a segment of one sequence and
// KV head with the window in a ring of shared memory.
//
// Work: a CTA has kWarps x 16 rows, which are tokens_per_step = rows / group_size query tokens with
// all heads of their group. A segment is a number of such steps. The ring holds the slices that a
// step sees and those that the next step adds, so that every key is loaded once per segment: K and
// V cost 1 + (window - 1) / segment of the least there is. The next step's slices are on their way
// while a step computes; one barrier per step says both that they have landed and that the slots of
// the slices nobody sees any more may be overwritten.
//
// Shared memory: num_slots x Slice::kBytes. For 192 / 128 in bf16, W = 128, group_size 8: 11 slices
// of 10 KB.
#pragma once
#include "cuda/attention/epilogue.cuh"
#include "cuda/attention/everybody.cuh"
#include "cuda/attention/kv_loader.cuh"
#include "cuda/attention/special_values.cuh"
#include "cuda/attention/work.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"

namespace swa::cuda::sm80_swa_prefill {

constexpr int kWarps = 8, kThreads = kWarps * 32, kRows = kWarps * kWarpRows;

struct Schedule {
  int tokens_per_step, tokens_per_segment, num_slots;
};

struct SharedStorage {
  uint32_t finite[kWarps];         // of each warp, for everybody()
  alignas(128) uint8_t ring[128];  // num_slots slices; how many is known at launch
};

SWA_DEVICE int slice_of(int key) { return key / kSliceKeys; }

// A warp's rows of one step, from slices that are in the ring.
template <class Traits, class SliceAddress>
SWA_DEVICE void attend_step(const Query<Traits>& query, const WarpRows& rows,
                            const ScoreScale& scale, SliceAddress slice_address,
                            SoftmaxState& state, Output<Traits>& out) {
  const int first_tile = ptx::max(0, rows.first - rows.window + 1) / Traits::kTileKeys;
  const int last_tile = rows.last < 0 ? -1 : rows.last / Traits::kTileKeys;
  for (int tile = first_tile; tile <= last_tile; ++tile) {
    const auto slice_at = [&](int i) { return slice_address(tile * Traits::kTileSlices + i); };
    attend_tile<Traits, Traits::kTileSlices>(query, tile * Traits::kTileKeys, rows, scale, slice_at,
                                             state, out);
  }
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ AttentionParams p, const Schedule schedule) {
  const QueryRange segment =
      find_query_range(p, int(ptx::block_idx().x), schedule.tokens_per_segment);
  if (segment.seq < 0) return;
  const int kv_head = int(ptx::block_idx().y), warp = ptx::warp_id();
  const ptx::GlobalPointer<const int32_t> seqlens_k = p.seqlens_k;
  const int first_position = seqlens_k[segment.seq] - segment.q_len;  // of token 0
  const int begin = ptx::max(0, first_position + segment.first - p.window + 1);
  const int end = first_position + segment.end;
  const KvLoader<Traits> loader(p, segment.seq, kv_head, begin, end);

  SharedStorage& smem = ptx::shared_storage<SharedStorage>();
  const uint32_t ring = ptx::smem_u32(smem.ring);
  const auto slice_address = [&](int slice) {
    return ring + uint32_t(slice % schedule.num_slots * Traits::Slice::kBytes);
  };
  int landed = 0, next_slice = 0;  // slices that are in the ring; that are on their way or there
  const auto load_for_step = [&](int first_token) {
    const int last_token = ptx::min(first_token + schedule.tokens_per_step, segment.end) - 1;
    const int last_position = first_position + last_token;
    for (; last_position >= 0 && next_slice <= slice_of(last_position); ++next_slice)
      loader.load(next_slice, slice_address(next_slice), warp, kWarps);
    ptx::cp_async_commit();
  };
  const auto rows_of = [&](int first_token) {
    const int num_tokens = ptx::min(schedule.tokens_per_step, segment.end - first_token);
    return warp_rows(warp * kWarpRows, ptx::max(0, num_tokens), p.group_size,
                     first_position + first_token, p.window);
  };
  const auto first_head = [&] { return ptx::recomputed(kv_head) * p.group_size; };
  const auto query_of = [&](int first_token) {
    const int head = first_head();
    return p.q + (segment.first_row + first_token) * p.q_token_stride + head * p.q_head_stride;
  };

  Query<Traits> query;
  for (bool careful = false, finite = true;; careful = true) {
    landed = next_slice = slice_of(begin);
    load_for_step(ptx::recomputed(segment.first));
    query.load(p, query_of(segment.first), rows_of(segment.first));
    for (int token = segment.first; token < segment.end; token += schedule.tokens_per_step) {
      ptx::cp_async_wait<0>();
      for (; careful && landed < next_slice; ++landed)
        loader.clear_special_values(slice_address(landed), warp, kWarps);
      ptx::sync_threads();
      const WarpRows rows = rows_of(token);
      const int next_token = token + schedule.tokens_per_step;
      load_for_step(next_token);

      SoftmaxState state;
      Output<Traits> out = {};
      attend_step<Traits>(query, rows, ScoreScale(p), slice_address, state, out);
      // On their way while the results are stored.
      if (next_token < segment.end) query.load(p, query_of(next_token), rows_of(next_token));
      if (careful)
        add_special_values(out, loader, rows);
      else
        finite = all_finite<Traits>(out, rows) && finite;
      const int64_t row = segment.first_row + token;
      const int head = first_head();
      store_results<Traits>(p, rows, head,
                            p.out + row * p.out_token_stride + head * p.out_head_stride,
                            p.lse + row * p.num_kv_heads * p.group_size + head, state, out);
    }
    ptx::cp_async_wait<0>();
    if (careful || everybody(smem.finite, finite)) break;
  }
}

template <class Traits>
size_t smem_bytes(int num_slots) {
  return offsetof(SharedStorage, ring) + size_t(num_slots) * Traits::Slice::kBytes;
}

// How to cut this case up on this device, or num_slots = 0 if the ring does not fit.
template <class Traits>
Schedule schedule_for(const AttentionParams& p, const Device& device) {
  const int tokens = kRows / p.group_size;
  if (tokens == 0 || p.window > device.max_smem_bytes / Traits::Slice::kBytes * kSliceKeys)
    return {0, 0, 0};
  const int keys = p.window - 1 + 2 * tokens;  // that a step and the next one see
  const int num_slots = (keys + kSliceKeys - 2) / kSliceKeys + 1;
  if (smem_bytes<Traits>(num_slots) > size_t(device.max_smem_bytes)) return {0, 0, 0};
  const int64_t work = int64_t(p.total_q) * p.num_kv_heads;
  const int per_cta = int((work + device.num_sms - 1) / device.num_sms);
  return {tokens, (per_cta + tokens - 1) / tokens * tokens, num_slots};
}

template <class Traits>
ptx::Error launch(const AttentionParams& p, const Schedule& schedule, ptx::Stream stream) {
  const unsigned ranges =
      unsigned(max_query_ranges(p.total_q, p.num_seqs, schedule.tokens_per_segment));
  const ptx::Dim3 grid(ranges, unsigned(p.num_kv_heads));
  return ptx::launch({grid, kThreads, smem_bytes<Traits>(schedule.num_slots), 1, stream},
                     kernel<Traits>, p, schedule);
}

}  // namespace swa::cuda::sm80_swa_prefill
