// TMA tensor copies (cp.async.bulk.tensor), 1 to 5 dimensions, with swizzle: loads with zeros
// outside the tensor and multicast, stores that leave out what is outside.
#pragma once
#include <cstdint>

#include "source_location.hpp"
#include "tensor_map.hpp"

namespace swa::emu {

// multicast: 0, or a mask of CTA ranks that each get the tile at the same offsets and signal their
// own mbarrier.
void tma_load(int rank, uint32_t dst, const TensorMap* map, uint32_t mbarrier,
              const int* coordinates, uint16_t multicast, Loc loc);

// In the thread's current bulk group.
void tma_store(int rank, const TensorMap* map, uint32_t src, const int* coordinates, Loc loc);

}  // namespace swa::emu
