// Decode: 1 to 8 query tokens per sequence; cp.async and mma.sync, a CTA per sequence, KV head and
// split of the keys.
//
// Work: the rows are the query tokens with all heads of their group, 16 per product. Four key warps
// take every fourth slice each, into slots of their own, so that in the main loop a warp waits for
// nobody but itself (and its twin, if more than 16 rows make it two warps per key warp). For a
// window of 128 every slice is on its way before the first one is used. At the end the four partial
// results of a row are added in shared memory, in a fixed order. More than 32 rows are further
// passes over the same keys. A row's bits depend on the absolute place of its keys alone.
//
// Windows up to kSplitKeys are one launch: no plan, no combine. Longer ranges are cut into splits,
// whose results smxx_combine joins. The grid depends on shapes only.
//
// Shared memory: 4 x depth slices, the partial results in the same place, maxima and sums. For 192
// / 128 in bf16: 3 slices deep, 120 KB.
#pragma once
#include "cuda/attention/decode_split.cuh"
#include "cuda/attention/epilogue.cuh"
#include "cuda/attention/everybody.cuh"
#include "cuda/attention/kv_loader.cuh"
#include "cuda/attention/special_values.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"

namespace swa::cuda::sm80_decode {

constexpr int kKeyWarps = 4, kMaxRowWarps = 2, kMaxThreads = 32 * kKeyWarps * kMaxRowWarps;
constexpr int kMaxDepth = 4;

struct Schedule {
  int row_warps;  // per key warp
  int depth;      // slices of a key warp in shared memory; 0: the device has no room
};

struct SharedStorage {
  float max[kMaxRowWarps][kKeyWarps][kWarpRows];  // in base 2
  float sum[kMaxRowWarps][kKeyWarps][kWarpRows];
  uint32_t finite[kKeyWarps * kMaxRowWarps];
  alignas(128) uint8_t data[128];  // slices or partial results; how many is known at launch
};

// Partial results: a row of floats per row of the product, apart so that the stores of several rows
// do not meet in a bank.
template <class Traits>
constexpr int kPartialStride = Traits::kValueDim + (Traits::kFloat8 ? 16 : 8);

template <class Traits>
SWA_DEVICE uint32_t partial_offset(int row_warp, int key_warp, int row) {
  return uint32_t(((row_warp * kKeyWarps + key_warp) * kWarpRows + row) * kPartialStride<Traits> *
                  int(sizeof(float)));
}

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

// This warp's results, for everybody to read after a barrier.
template <class Traits>
SWA_DEVICE void publish(SharedStorage& smem, const SoftmaxState& state, const Output<Traits>& out) {
  const int key_warp = ptx::warp_id() % kKeyWarps, row_warp = ptx::warp_id() / kKeyWarps;
  const ptx::SharedPointer<float> maxima = smem.max[row_warp][key_warp];
  const ptx::SharedPointer<float> sums = smem.sum[row_warp][key_warp];
  const uint32_t data = ptx::smem_u32(smem.data);
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = ptx::lane_id() / 4 + 8 * r;
    const float sum = quad_sum(state.sum[r]);
    if (ptx::lane_id() % 4 == 0) {
      maxima[row] = state.max[r];
      sums[row] = sum;
    }
    const uint32_t partial = data + partial_offset<Traits>(row_warp, key_warp, row);
    SWA_UNROLL
    for (int j = 0; j < Traits::kValueDim / 8; ++j) {
      const float* x = out[j] + 2 * r;
      if constexpr (!Traits::kFloat8) {
        ptx::sts(partial + uint32_t(output_column<Traits>(j, 0) * 4),
                 ptx::U32x2{ptx::bit_cast<uint32_t>(x[0]), ptx::bit_cast<uint32_t>(x[1])});
      } else if (j % 2 == 0) {  // together with the odd columns of j + 1
        const float* y = out[j + 1] + 2 * r;
        ptx::sts(partial + uint32_t(output_column<Traits>(j, 0) * 4),
                 ptx::U32x4{ptx::bit_cast<uint32_t>(x[0]), ptx::bit_cast<uint32_t>(y[0]),
                            ptx::bit_cast<uint32_t>(x[1]), ptx::bit_cast<uint32_t>(y[1])});
      }
    }
  }
}

// Four columns of a row, added up over the key warps, and the row's maximum and sum.
struct JoinedRow {
  float x[4];
  float max, sum;
};

template <class Traits>
SWA_DEVICE JoinedRow join(SharedStorage& smem, int row_warp, int row, int column) {
  JoinedRow joined = {{0.f, 0.f, 0.f, 0.f}, -INFINITY, 0.f};
  for (int w = 0; w < kKeyWarps; ++w) {
    const ptx::SharedPointer<float> maxima = smem.max[row_warp][w];
    joined.max = fmaxf(joined.max, maxima[row]);
  }
  const float base = joined.max == -INFINITY ? 0.f : joined.max;
  for (int w = 0; w < kKeyWarps; ++w) {
    const ptx::SharedPointer<float> maxima = smem.max[row_warp][w], sums = smem.sum[row_warp][w];
    const float factor = ptx::ex2(maxima[row] - base);
    joined.sum += sums[row] * factor;
    const ptx::U32x4 raw = ptx::lds<ptx::U32x4>(
        ptx::smem_u32(smem.data) + partial_offset<Traits>(row_warp, w, row) + uint32_t(column * 4));
    joined.x[0] += ptx::bit_cast<float>(raw.x) * factor;
    joined.x[1] += ptx::bit_cast<float>(raw.y) * factor;
    joined.x[2] += ptx::bit_cast<float>(raw.z) * factor;
    joined.x[3] += ptx::bit_cast<float>(raw.w) * factor;
  }
  return joined;
}

// Where a row's results go.
struct RowPlace {
  int seq, token, head;  // head: of all query heads
  int64_t index;         // of the row and head in lse
};

template <class Traits>
SWA_DEVICE void store_joined(const AttentionParams& p, const RowPlace& place, int column,
                             const JoinedRow& row) {
  if (p.num_splits > 1) {
    const int64_t at = place.index * p.num_splits + ptx::block_idx().x;
    const float factor = row.sum == 0.f ? 0.f : 1.f / row.sum;
    const ptx::U32x4 scaled = {
        ptx::bit_cast<uint32_t>(row.x[0] * factor), ptx::bit_cast<uint32_t>(row.x[1] * factor),
        ptx::bit_cast<uint32_t>(row.x[2] * factor), ptx::bit_cast<uint32_t>(row.x[3] * factor)};
    ptx::stg(p.partial_out + at * Traits::kValueDim + column, scaled);
    const ptx::GlobalPointer<float> lse = p.partial_lse;
    if (column == 0) lse[at] = row.sum == 0.f ? -INFINITY : row.max + ptx::lg2(row.sum);
    return;
  }
  const RowResult result = finish_row(row.max, row.sum, p.sinks, place.head);
  char* dst = p.out + place.seq * p.out_seq_stride + place.token * p.out_token_stride +
              place.head * p.out_head_stride + column * 2;
  const bool aligned = aligned_8(p.out, p.out_seq_stride | p.out_token_stride | p.out_head_stride);
  constexpr ptx::Half kHalf = Traits::kHalf;
  store_half4(dst,
              {ptx::pack_half<kHalf>(row.x[0] * result.factor, row.x[1] * result.factor),
               ptx::pack_half<kHalf>(row.x[2] * result.factor, row.x[3] * result.factor)},
              aligned);
  const ptx::GlobalPointer<float> lse = p.lse;
  if (column == 0) lse[place.index] = result.lse;
}

// Joins and stores the rows of a pass; whether they are all finite. A barrier before and after.
template <class Traits>
SWA_DEVICE bool store_pass(const AttentionParams& p, SharedStorage& smem, const Schedule& schedule,
                           const KvLoader<Traits>& loader, int seq, int kv_head, int first_row,
                           int first_position, bool careful) {
  constexpr int kParts = Traits::kValueDim / 4;
  const int num_rows = ptx::min(schedule.row_warps * kWarpRows, p.q_len * p.group_size - first_row);
  const int num_threads = 32 * kKeyWarps * schedule.row_warps;
  bool finite = true;
  ptx::sync_threads();
  for (int i = int(ptx::thread_idx().x); i < num_rows * kParts; i += num_threads) {
    const int row = i / kParts, column = i % kParts * 4;
    const int token = (first_row + row) / p.group_size;
    JoinedRow joined = join<Traits>(smem, row / kWarpRows, row % kWarpRows, column);
    for (float x : joined.x) finite = finite && fabsf(x) < INFINITY;
    if (careful) add_special_values(joined.x, loader, column, first_position + token, p.window);
    const int head = kv_head * p.group_size + (first_row + row) % p.group_size;
    const int64_t index = (int64_t(seq) * p.q_len + token) * p.num_kv_heads * p.group_size + head;
    store_joined<Traits>(p, {seq, token, head, index}, column, joined);
  }
  return everybody(smem.finite, ptx::all(finite));
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
      ptx::sync_threads();  // everybody is done with the slices, which make room for the results
      publish<Traits>(smem, state, out);
      const bool finite = store_pass(p, smem, schedule, loader, seq, kv_head, first_row,
                                     seqlen_k - p.q_len, careful);
      if (finite || careful) break;
    }
  }
}

// As deep as the longest range of a CTA needs and the device allows.
template <class Traits>
Schedule schedule_for(const AttentionParams& p, const Device& device) {
  const int room = device.max_smem_bytes - int(offsetof(SharedStorage, data));
  const int depth = ptx::min(kMaxDepth, room / (kKeyWarps * Traits::Slice::kBytes));
  const int partial_bytes = int(partial_offset<Traits>(1, 0, 0));
  const int row_warps =
      p.q_len * p.group_size > kWarpRows && 2 * partial_bytes <= room ? kMaxRowWarps : 1;
  if (row_warps * partial_bytes > room) return {0, 0};
  const int64_t keys = ptx::min(int64_t(p.window) + p.q_len - 1, int64_t(kSplitKeys));
  const int64_t slices = (keys + kSliceKeys - 2) / kSliceKeys + 1;
  return {row_warps, int(ptx::min(int64_t(depth), (slices + kKeyWarps - 1) / kKeyWarps))};
}

template <class Traits>
ptx::Error launch(const AttentionParams& p, const Schedule& schedule, ptx::Stream stream) {
  const size_t slices = size_t(kKeyWarps * schedule.depth * Traits::Slice::kBytes);
  const size_t partials = partial_offset<Traits>(schedule.row_warps, 0, 0);
  const size_t smem_bytes = offsetof(SharedStorage, data) + (slices > partials ? slices : partials);
  const ptx::Dim3 grid(unsigned(p.num_splits), unsigned(p.num_kv_heads), unsigned(p.num_seqs));
  const unsigned threads = unsigned(32 * kKeyWarps * schedule.row_warps);
  return ptx::launch({grid, threads, smem_bytes, 1, stream}, kernel<Traits>, p, schedule);
}

}  // namespace swa::cuda::sm80_decode
