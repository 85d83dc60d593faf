#include "tensor_map.hpp"

#include "machine.hpp"

namespace swa::emu {

std::string encode_tensor_map(TensorMap& map, int element_bytes, int rank, const void* base,
                              const uint64_t* size, const uint64_t* stride_bytes,
                              const uint32_t* box, Swizzle swizzle) {
  map = TensorMap{};
  if (rank < 1 || rank > 5) return format("rank must be 1..5, got %d", rank);
  if (reinterpret_cast<uintptr_t>(base) % 16) return "the address must be a multiple of 16";
  uint64_t bytes = size[0] * uint64_t(element_bytes);
  for (int i = 0; i < rank; ++i) {
    if (size[i] == 0 || size[i] > (1ull << 32))
      return format("size of dimension %d is not in 1..2^32", i);
    if (box[i] == 0 || box[i] > 256)
      return format("box of dimension %d must be 1..256, got %u", i, box[i]);
    if (i) {
      if (stride_bytes[i - 1] % 16 || stride_bytes[i - 1] >= (1ull << 40))
        return format("stride of dimension %d must be a multiple of 16 below 2^40", i);
      map.stride[i - 1] = stride_bytes[i - 1];
      bytes += (size[i] - 1) * stride_bytes[i - 1];
    }
    map.size[i] = uint32_t(size[i]);
    map.box[i] = uint16_t(box[i]);
  }
  const uint32_t inner = box[0] * uint32_t(element_bytes);
  if (inner % 16) return format("the inner box must be a multiple of 16 bytes, got %u", inner);
  if (swizzle != Swizzle::kNone && inner > swizzle_repeat_bytes(swizzle) / 8)
    return format("the inner box of %u bytes exceeds the swizzle span", inner);
  map.magic = kTensorMapMagic;
  map.base = reinterpret_cast<uintptr_t>(base);
  map.rank = uint8_t(rank);
  map.element_bytes = uint8_t(element_bytes);
  map.swizzle = uint8_t(swizzle);
  if (!active_session().memory.find(map.base, bytes))
    return "the view is not inside a registered buffer";
  return "";
}

}  // namespace swa::emu
