// ldmatrix (sm_75) and stmatrix (sm_90): 8 x 8 matrices of 16-bit elements between shared memory
// and mma fragments.
//
// Lane 8 i + r gives the address of row r (16 bytes) of matrix i. In register i, lane l holds
// elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i; of column l / 4 in the _trans
// variants.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/matrix.hpp"
#endif

namespace swa::ptx {

SWA_DEVICE void ldmatrix_x1(uint32_t (&r)[1], uint32_t row SWA_LOC) {
#if SWA_EMULATED
  emu::ldmatrix(1, emu::Transpose::kNo, r, row, loc);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(row)
               : "memory");
#endif
}

SWA_DEVICE void ldmatrix_x2(uint32_t (&r)[2], uint32_t row SWA_LOC) {
#if SWA_EMULATED
  emu::ldmatrix(2, emu::Transpose::kNo, r, row, loc);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
#endif
}

SWA_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row SWA_LOC) {
#if SWA_EMULATED
  emu::ldmatrix(4, emu::Transpose::kNo, r, row, loc);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
#endif
}

SWA_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row SWA_LOC) {
#if SWA_EMULATED
  emu::ldmatrix(2, emu::Transpose::kYes, r, row, loc);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
#endif
}

SWA_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row SWA_LOC) {
#if SWA_EMULATED
  emu::ldmatrix(4, emu::Transpose::kYes, r, row, loc);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
#endif
}

SWA_DEVICE void stmatrix_x4(uint32_t row, const uint32_t (&r)[4] SWA_LOC) {
#if SWA_EMULATED
  emu::stmatrix(4, emu::Transpose::kNo, row, r, loc);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}

SWA_DEVICE void stmatrix_x4_trans(uint32_t row, const uint32_t (&r)[4] SWA_LOC) {
#if SWA_EMULATED
  emu::stmatrix(4, emu::Transpose::kYes, row, r, loc);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}

}  // namespace swa::ptx
