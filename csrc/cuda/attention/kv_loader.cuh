// Slices of a sequence's keys and values from their pages to shared memory.
#pragma once
#include "cuda/attention/chunk.cuh"
#include "cuda/attention/page_pool.cuh"
#include "cuda/ptx/thread.cuh"
#include "cuda/tile/fp8.cuh"
#include "cuda/tile/traits.cuh"

namespace swa::cuda {

SWA_DEVICE bool aligned_16(const PagePool& pool) {
  return aligned_16(pool.device,
                    pool.device_page_stride | pool.device_slot_stride | pool.device_head_stride) &&
         aligned_16(pool.host,
                    pool.host_page_stride | pool.host_slot_stride | pool.host_head_stride);
}

template <class Traits>
class KvLoader {
  using Slice = typename Traits::Slice;

 public:
  // Keys outside first_key .. end_key - 1 become zeros; neither their pages nor their entries of
  // the block table are touched.
  SWA_DEVICE KvLoader(const AttentionParams& params, int seq, int kv_head, int first_key,
                      int end_key)
      : p_(params),
        table_(params.block_table + seq * params.block_table_stride),
        kv_head_(kv_head),
        first_key_(first_key),
        end_key_(end_key),
        key_aligned_(aligned_16(params.k)),
        value_aligned_(aligned_16(params.v)) {}

  // This warp's share of slice `index` (keys 16 index ..), as one of num_warps that load it.
  SWA_DEVICE void load(int index, uint32_t slice, int warp, int num_warps) const {
    for (int unit = warp; unit < kUnits; unit += num_warps) {
      if (unit < KeyRows::kUnits)
        load_rows<KeyRows>(p_.k, index, slice, unit, key_aligned_);
      else
        load_rows<ValueRows>(p_.v, index, slice, unit - KeyRows::kUnits, value_aligned_);
    }
    if constexpr (Traits::kFloat8)
      if (warp == num_warps - 1) load_scales(index, slice);
  }

  // After load of the same slice and a wait, before the barrier: infinities and NaN in what this
  // thread has loaded of V become 0.
  SWA_DEVICE void clear_special_values(uint32_t slice, int warp, int num_warps) const {
    for (int unit = warp; unit < kUnits; unit += num_warps) {
      const int row =
          (unit - KeyRows::kUnits) * ValueRows::kRows + ptx::lane_id() / ValueRows::kLanes;
      for (int i = 0; row >= 0 && i < ValueRows::kChunks / ValueRows::kLanes; ++i) {
        const int chunk = i * ValueRows::kLanes + ptx::lane_id() % ValueRows::kLanes;
        const uint32_t address = slice + ValueRows::offset(row, chunk);
        const ptx::U32x4 x = ptx::lds<ptx::U32x4>(address);
        ptx::sts(address, ptx::U32x4{finite(x.x), finite(x.y), finite(x.z), finite(x.w)});
      }
    }
  }

  // V of a visible key in its page, and one element of such a row.
  SWA_DEVICE const char* value_row(int key) const {
    return slot_address(p_.v, page_of(key), key % p_.page_size, kv_head_);
  }
  SWA_DEVICE static float element(const char* row, int column) {
    uint32_t bits;
    if constexpr (Traits::kFloat8) {
      const ptx::GlobalPointer<const uint8_t> elements = reinterpret_cast<const uint8_t*>(row);
      bits = decode_e4m3_pair<Traits::kHalf>(elements[column]);
    } else {
      const ptx::GlobalPointer<const uint16_t> elements = reinterpret_cast<const uint16_t*>(row);
      bits = elements[column];
    }
    return ptx::half_low<Traits::kHalf>(bits);
  }

  // Elements of a word, those that are infinite or NaN replaced by 0.
  static SWA_DEVICE uint32_t finite(uint32_t word) {
    constexpr int kBits = Traits::kFloat8 ? 8 : 16;
    constexpr uint32_t kElement = (1u << kBits) - 1;
    constexpr uint32_t kSpecial =  // bits that are all set in a special value
        Traits::kFloat8                     ? 0x7fu
        : Traits::kHalf == ptx::Half::kBf16 ? 0x7f80u
                                            : 0x7c00u;
    for (int shift = 0; shift < 32; shift += kBits)
      if ((word >> shift & kSpecial) == kSpecial) word &= ~(kElement << shift);
    return word;
  }

  // The factors of float8 keys and values of slice `index`, by a whole warp.
  SWA_DEVICE void load_scales(int index, uint32_t slice) const {
    const int row = ptx::lane_id() % kSliceKeys, key = index * kSliceKeys + row;
    const bool is_value = ptx::lane_id() >= kSliceKeys;
    const float* scale = is_value ? p_.v.scale : p_.k.scale;
    if (!scale) return;
    const float* src = scale;
    if (valid(key)) src += int64_t(page_of(key)) * p_.num_kv_heads + kv_head_;
    const int offset = is_value ? Slice::kValueScaleOffset : Slice::kKeyScaleOffset;
    ptx::cp_async<4>(slice + uint32_t(offset + row * 4), src, valid(key) ? 4 : 0);
  }

  SWA_DEVICE int page_of(int key) const { return table_[key / p_.page_size]; }
  SWA_DEVICE int first_key() const { return first_key_; }
  SWA_DEVICE int end_key() const { return end_key_; }

 private:
  // A warp loads some whole rows at once, as many lanes per row as a panel has chunks.
  template <int kRowBytes>
  struct Shape {
    static constexpr int kChunks = kRowBytes / 16, kLanes = Slice::Panel::kChunks;
    static constexpr int kRows = 32 / kLanes, kUnits = kSliceKeys / kRows;
  };
  struct KeyRows : Shape<Slice::kKeyRowBytes> {
    static SWA_DEVICE uint32_t offset(int row, int chunk) { return Slice::key_offset(row, chunk); }
  };
  struct ValueRows : Shape<Slice::kValueRowBytes> {
    static SWA_DEVICE uint32_t offset(int row, int chunk) {
      return Slice::value_offset(row, chunk);
    }
  };
  static constexpr int kUnits = KeyRows::kUnits + ValueRows::kUnits;

  SWA_DEVICE bool valid(int key) const { return key >= first_key_ && key < end_key_; }

  template <class Rows>
  SWA_DEVICE void load_rows(const PagePool& pool, int index, uint32_t slice, int unit,
                            bool aligned) const {
    const int row = unit * Rows::kRows + ptx::lane_id() / Rows::kLanes;
    const int first_chunk = ptx::lane_id() % Rows::kLanes;
    const int key = index * kSliceKeys + row;
    const bool is_valid = valid(key);
    const char* src = pool.device;
    if (is_valid) src = slot_address(pool, page_of(key), key % p_.page_size, kv_head_);
    SWA_UNROLL
    for (int i = 0; i < Rows::kChunks / Rows::kLanes; ++i) {
      const int chunk = i * Rows::kLanes + first_chunk;
      copy_chunk(slice + Rows::offset(row, chunk), src + chunk * 16, is_valid, aligned);
    }
  }

  const AttentionParams& p_;
  ptx::GlobalPointer<const int32_t> table_;
  int kv_head_, first_key_, end_key_;
  bool key_aligned_, value_aligned_;
};

}  // namespace swa::cuda
