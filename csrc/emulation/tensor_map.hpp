// The emulated CUtensorMap: 128 opaque bytes that describe a tiled view of global memory for TMA.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace swa::emu {

enum class Swizzle : uint8_t {
  kNone = 0,
  k32 = 1,
  k64 = 2,
  k128 = 3
};  // the values of CU_TENSOR_MAP_SWIZZLE_*

// Bytes of one row of the swizzle pattern; the whole pattern repeats every 8 rows of 128 bytes at
// most.
constexpr uint32_t swizzle_repeat_bytes(Swizzle s) {
  return s == Swizzle::k128 ? 1024 : s == Swizzle::k64 ? 512 : s == Swizzle::k32 ? 256 : 128;
}
// TMA and wgmma exchange 16-byte chunks by address bits: bits 4-6 are XORed with bits 7-9, as many
// as the mode has.
constexpr uint32_t swizzled(uint32_t address, Swizzle s) {
  const uint32_t mask = s == Swizzle::k128 ? 7 : s == Swizzle::k64 ? 3 : s == Swizzle::k32 ? 1 : 0;
  return address ^ (((address >> 7) & mask) << 4);
}

// CUtensorMap is aligned to 64; arguments passed by value keep at most 16 on aarch64.
struct alignas(16) TensorMap {
  uint64_t magic, base;
  uint64_t stride[4];  // bytes, of dimensions 1..4
  uint32_t size[5];
  uint16_t box[5];
  uint8_t rank, element_bytes, swizzle, unused;
  uint8_t padding[128 - 8 * 6 - 20 - 10 - 4];
};
static_assert(sizeof(TensorMap) == 128, "CUtensorMap is 128 bytes");

constexpr uint64_t kTensorMapMagic = 0x70a5e11e00d1ull;

// Checks what cuTensorMapEncodeTiled documents (tiled mode, no interleave), and that the view lies
// in a registered buffer. Returns an empty string, or what is wrong.
std::string encode_tensor_map(TensorMap& map, int element_bytes, int rank, const void* base,
                              const uint64_t* size, const uint64_t* stride_bytes,
                              const uint32_t* box, Swizzle swizzle);

}  // namespace swa::emu
