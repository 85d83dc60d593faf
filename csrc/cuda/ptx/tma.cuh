// TMA (sm_90): loads a box of a tensor into shared memory, zeros outside the tensor, swizzled by
// address; completes the whole box's bytes on the mbarrier. Or stores one, in the thread's current
// bulk group (bulk.cuh). Issued by one thread. Coordinates are in elements, dimension 0 first.
#pragma once
#include "cuda/ptx/platform.cuh"
#include "cuda/ptx/tensor_map.cuh"
#if SWA_EMULATED
#include "emulation/tma.hpp"
#endif

namespace swa::ptx {

SWA_DEVICE void tma_load_2d(uint32_t dst, const TensorMap* map, uint32_t mbarrier, int c0,
                            int c1 SWA_LOC) {
#if SWA_EMULATED
  const int c[] = {c0, c1};
  emu::tma_load(2, dst, map, mbarrier, c, 0, loc);
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4}], [%2];" ::"r"(dst),
      "l"(map), "r"(mbarrier), "r"(c0), "r"(c1)
      : "memory");
#endif
}

SWA_DEVICE void tma_load_3d(uint32_t dst, const TensorMap* map, uint32_t mbarrier, int c0, int c1,
                            int c2 SWA_LOC) {
#if SWA_EMULATED
  const int c[] = {c0, c1, c2};
  emu::tma_load(3, dst, map, mbarrier, c, 0, loc);
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5}], [%2];" ::"r"(dst),
      "l"(map), "r"(mbarrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
#endif
}

SWA_DEVICE void tma_load_4d(uint32_t dst, const TensorMap* map, uint32_t mbarrier, int c0, int c1,
                            int c2, int c3 SWA_LOC) {
#if SWA_EMULATED
  const int c[] = {c0, c1, c2, c3};
  emu::tma_load(4, dst, map, mbarrier, c, 0, loc);
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5, %6}], "
      "[%2];" ::"r"(dst),
      "l"(map), "r"(mbarrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
#endif
}

// To the same offsets in every CTA whose bit is set; each gets the bytes on its own mbarrier at the
// same offset.
SWA_DEVICE void tma_load_2d_multicast(uint32_t dst, const TensorMap* map, uint32_t mbarrier, int c0,
                                      int c1, uint16_t ctas SWA_LOC) {
#if SWA_EMULATED
  const int c[] = {c0, c1};
  emu::tma_load(2, dst, map, mbarrier, c, ctas, loc);
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::"
      "cluster [%0], "
      "[%1, {%3, %4}], [%2], %5;" ::"r"(dst),
      "l"(map), "r"(mbarrier), "r"(c0), "r"(c1), "h"(ctas)
      : "memory");
#endif
}

SWA_DEVICE void tma_store_3d(const TensorMap* map, uint32_t src, int c0, int c1, int c2 SWA_LOC) {
#if SWA_EMULATED
  const int c[] = {c0, c1, c2};
  emu::tma_store(3, map, src, c, loc);
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
      "r"(src), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
#endif
}

}  // namespace swa::ptx
