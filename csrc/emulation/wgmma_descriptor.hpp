// The 64-bit shared-memory descriptor of wgmma, and which bytes it names.
#pragma once
#include <cstdint>

#include "tensor_map.hpp"

namespace swa::emu {

enum class Major { kK, kMn };  // which dimension of the operand is contiguous in shared memory

struct WgmmaDescriptor {
  uint32_t start, leading_bytes, stride_bytes;
  int base_offset;
  Swizzle swizzle;
};

inline WgmmaDescriptor decode_descriptor(uint64_t d) {
  constexpr Swizzle kModes[] = {Swizzle::kNone, Swizzle::k128, Swizzle::k64, Swizzle::k32};
  return {uint32_t(d & 0x3fff) << 4, uint32_t(d >> 16 & 0x3fff) << 4,
          uint32_t(d >> 32 & 0x3fff) << 4, int(d >> 49 & 7), kModes[d >> 62 & 3]};
}

// Shared address of the 16-byte chunk that holds 8 consecutive elements along the contiguous
// dimension, at element (mn, k).
inline uint32_t chunk_address(const WgmmaDescriptor& d, Major major, int mn, int k) {
  const bool swizzle = d.swizzle != Swizzle::kNone;
  const int chunks_per_row = swizzle ? int(swizzle_repeat_bytes(d.swizzle)) / 8 / 16 : 1;
  uint32_t address = d.start;
  if (major == Major::kK) {
    address += uint32_t(mn / 8) * d.stride_bytes + uint32_t(mn % 8 * chunks_per_row * 16);
    address += uint32_t(k / 8) * (swizzle ? 16 : d.leading_bytes);
  } else if (swizzle) {
    const int chunk = mn / 8;
    address +=
        uint32_t(chunk % chunks_per_row * 16) + uint32_t(chunk / chunks_per_row) * d.leading_bytes;
    address += uint32_t(k % 8 * chunks_per_row * 16) + uint32_t(k / 8) * d.stride_bytes;
  } else {
    address += uint32_t(mn / 8) * d.stride_bytes + uint32_t(k % 8 * 16) +
               uint32_t(k / 8) * d.leading_bytes;
  }
  return swizzled(address, d.swizzle);
}

}  // namespace swa::emu
