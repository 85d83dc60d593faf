// mma.sync (sm_80): warp-wide matrix multiply-accumulate.
#pragma once
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/matrix.hpp"
#endif

namespace swa::ptx {

// d[16 x 8] += a[16 x 16] b[16 x 8]; a row-major, b column-major fragments as ldmatrix gives them,
// fp32 accumulators.
template <Half kType>
SWA_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                             uint32_t b1 SWA_LOC) {
#if SWA_EMULATED
  const uint32_t b[2] = {b0, b1};
  emu::mma_m16n8k16(kType, d, a, b, loc);
#else
  if constexpr (kType == Half::kBf16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace swa::ptx
