// The end of a pass of decode: four key warps have attended with the same 16 rows to different
// keys, and their results are added up through shared memory, kJoinColumns columns at a time so
// that it takes little of it, always in the order of the warps.
#pragma once
#include "cuda/attention/epilogue.cuh"
#include "cuda/attention/everybody.cuh"
#include "cuda/attention/special_values.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"

namespace swa::cuda {

constexpr int kKeyWarps = 4;
constexpr int kJoinColumns = 32, kJoinParts = kJoinColumns / 4;  // a thread has 4 columns of a row

// For one block of 16 rows.
template <class Traits>
struct JoinStorage {
  // Rows apart so that the stores of several rows do not meet in a bank.
  static constexpr int kStride = kJoinColumns + (Traits::kFloat8 ? 16 : 8);
  float max[kKeyWarps][kWarpRows];  // in base 2
  float sum[kKeyWarps][kWarpRows];
  alignas(16) float columns[kKeyWarps][kWarpRows][kStride];
};

// Which rows a pass of a CTA has, and of which split.
struct DecodePass {
  int seq, kv_head, split;
  int first_row;       // (query token, head of the group), heads running faster
  int first_position;  // of query token 0
};

// What makes sums of the key warps' sums: a row's weight for each of them.
struct JoinedRow {
  float factor[kKeyWarps];
  float max, sum;
};

template <class Traits>
SWA_DEVICE void publish_state(JoinStorage<Traits>& storage, const SoftmaxState& state) {
  const int key_warp = ptx::warp_id() % kKeyWarps;
  const ptx::SharedPointer<float> maxima = storage.max[key_warp], sums = storage.sum[key_warp];
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = ptx::lane_id() / 4 + 8 * r;
    const float sum = quad_sum(state.sum[r]);
    if (ptx::lane_id() % 4 != 0) continue;
    maxima[row] = state.max[r];
    sums[row] = sum;
  }
}

// Columns first .. first + kJoinColumns - 1 of this warp's rows.
template <class Traits>
SWA_DEVICE void publish_columns(JoinStorage<Traits>& storage, const Output<Traits>& out,
                                int first) {
  const int key_warp = ptx::warp_id() % kKeyWarps;
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) {
    const uint32_t row = ptx::smem_u32(storage.columns[key_warp][ptx::lane_id() / 4 + 8 * r]);
    SWA_UNROLL
    for (int j = first / 8; j < (first + kJoinColumns) / 8; ++j) {
      const uint32_t address = row + uint32_t((output_column<Traits>(j, 0) - first) * 4);
      const float* x = out[j] + 2 * r;
      if constexpr (!Traits::kFloat8) {
        ptx::sts(address, ptx::U32x2{ptx::bit_cast<uint32_t>(x[0]), ptx::bit_cast<uint32_t>(x[1])});
      } else if (j % 2 == 0) {  // together with the odd columns of j + 1
        const float* y = out[j + 1] + 2 * r;
        ptx::sts(address, ptx::U32x4{ptx::bit_cast<uint32_t>(x[0]), ptx::bit_cast<uint32_t>(y[0]),
                                     ptx::bit_cast<uint32_t>(x[1]), ptx::bit_cast<uint32_t>(y[1])});
      }
    }
  }
}

template <class Traits>
SWA_DEVICE JoinedRow weigh(JoinStorage<Traits>& storage, int row) {
  JoinedRow joined;
  joined.max = -INFINITY;
  joined.sum = 0.f;
  SWA_UNROLL
  for (int w = 0; w < kKeyWarps; ++w) {
    const ptx::SharedPointer<float> maxima = storage.max[w];
    joined.max = fmaxf(joined.max, maxima[row]);
  }
  const float base = joined.max == -INFINITY ? 0.f : joined.max;
  SWA_UNROLL
  for (int w = 0; w < kKeyWarps; ++w) {
    const ptx::SharedPointer<float> maxima = storage.max[w], sums = storage.sum[w];
    joined.factor[w] = ptx::ex2(maxima[row] - base);
    joined.sum += sums[row] * joined.factor[w];
  }
  return joined;
}

// Four of the columns that are in shared memory.
template <class Traits>
SWA_DEVICE void join_columns(float (&x)[4], JoinStorage<Traits>& storage, const JoinedRow& joined,
                             int row, int part) {
  for (float& value : x) value = 0.f;
  SWA_UNROLL
  for (int w = 0; w < kKeyWarps; ++w) {
    const ptx::U32x4 raw = ptx::lds<ptx::U32x4>(ptx::smem_u32(storage.columns[w][row] + part * 4));
    x[0] += ptx::bit_cast<float>(raw.x) * joined.factor[w];
    x[1] += ptx::bit_cast<float>(raw.y) * joined.factor[w];
    x[2] += ptx::bit_cast<float>(raw.z) * joined.factor[w];
    x[3] += ptx::bit_cast<float>(raw.w) * joined.factor[w];
  }
}

// Where a row's results go.
struct RowPlace {
  int seq, token, head;  // head: of all query heads
  int64_t index;         // of the row and head in lse
};

SWA_DEVICE RowPlace place_of(const AttentionParams& p, const DecodePass& pass, int row) {
  const int token = (pass.first_row + row) / p.group_size;
  const int head = pass.kv_head * p.group_size + (pass.first_row + row) % p.group_size;
  return {pass.seq, token, head,
          (int64_t(pass.seq) * p.q_len + token) * p.num_kv_heads * p.group_size + head};
}

// Four columns of a row as the result of a split, which smxx_combine joins with the others.
template <class Traits>
SWA_DEVICE void store_partial(const AttentionParams& p, const RowPlace& place, int split,
                              int column, const float (&x)[4], const JoinedRow& row) {
  const int64_t at = place.index * p.num_splits + split;
  const float factor = row.sum == 0.f ? 0.f : 1.f / row.sum;
  const ptx::U32x4 scaled = {
      ptx::bit_cast<uint32_t>(x[0] * factor), ptx::bit_cast<uint32_t>(x[1] * factor),
      ptx::bit_cast<uint32_t>(x[2] * factor), ptx::bit_cast<uint32_t>(x[3] * factor)};
  ptx::stg(p.partial_out + at * Traits::kValueDim + column, scaled);
  const ptx::GlobalPointer<float> lse = p.partial_lse;
  if (column == 0) lse[at] = row.sum == 0.f ? -INFINITY : row.max + ptx::lg2(row.sum);
}

// Four columns of a row as the final result.
template <class Traits>
SWA_DEVICE void store_final(const AttentionParams& p, const RowPlace& place, int column,
                            const float (&x)[4], const JoinedRow& row) {
  const RowResult result = finish_row(row.max, row.sum, p.sinks, place.head);
  char* dst = p.out + place.seq * p.out_seq_stride + place.token * p.out_token_stride +
              place.head * p.out_head_stride + column * 2;
  const bool aligned = aligned_8(p.out, p.out_seq_stride | p.out_token_stride | p.out_head_stride);
  constexpr ptx::Half kHalf = Traits::kHalf;
  store_half4(dst,
              {ptx::pack_half<kHalf>(x[0] * result.factor, x[1] * result.factor),
               ptx::pack_half<kHalf>(x[2] * result.factor, x[3] * result.factor)},
              aligned);
  const ptx::GlobalPointer<float> lse = p.lse;
  if (column == 0) lse[place.index] = result.lse;
}

// Joins and stores the rows of a pass, by all threads of the CTA: kKeyWarps warps for each of the
// blocks of 16 rows in `storage`. Returns whether all results are finite; a barrier by then.
// Careful: special values were left out, and are added to the rows that see them.
template <class Traits>
SWA_DEVICE bool join_and_store(const AttentionParams& p, JoinStorage<Traits>* storage,
                               uint32_t* flags, const DecodePass& pass,
                               const KvLoader<Traits>& loader, bool careful,
                               const SoftmaxState& state, const Output<Traits>& out) {
  JoinStorage<Traits>& own = storage[ptx::warp_id() / kKeyWarps];
  const int row = int(ptx::thread_idx().x) / kJoinParts;
  const int part = int(ptx::thread_idx().x) % kJoinParts;
  const RowPlace place = place_of(p, pass, row);
  bool finite = true;
  publish_state(own, state);
  SWA_UNROLL
  for (int first = 0; first < Traits::kValueDim; first += kJoinColumns) {
    if (first > 0) ptx::sync_threads();  // the columns before have been read
    publish_columns<Traits>(own, out, first);
    ptx::sync_threads();
    if (pass.first_row + row >= p.q_len * p.group_size) continue;
    const JoinedRow joined = weigh(storage[row / kWarpRows], row % kWarpRows);
    float x[4];
    join_columns(x, storage[row / kWarpRows], joined, row % kWarpRows, part);
    for (float value : x) finite = finite && fabsf(value) < INFINITY;
    const int column = first + part * 4;
    if (careful) add_special_values(x, loader, column, pass.first_position + place.token, p.window);
    if (p.num_splits > 1)
      store_partial<Traits>(p, place, pass.split, column, x, joined);
    else
      store_final<Traits>(p, place, column, x, joined);
  }
  return everybody(flags, ptx::all(finite));
}

}  // namespace swa::cuda
