// ldmatrix, stmatrix and mma.sync.
#pragma once
#include <cstdint>

#include "float16.hpp"
#include "source_location.hpp"

namespace swa::emu {

enum class Transpose { kNo, kYes };

// num_matrices: 1, 2 or 4 matrices of 8 x 8 16-bit elements; lane 8 i + r gives the address of row
// r of matrix i.
void ldmatrix(int num_matrices, Transpose transpose, uint32_t* registers, uint32_t row_address,
              Loc loc);
void stmatrix(int num_matrices, Transpose transpose, uint32_t row_address,
              const uint32_t* registers, Loc loc);

// d += a b, m16n8k16, 16-bit operands, fp32 accumulators. Sums in order of k; the hardware's order
// is not documented.
void mma_m16n8k16(Half type, float* d, const uint32_t* a, const uint32_t* b, Loc loc);

// Where the 16 x 16 fragment of an A operand and the 16 x n fragment of an accumulator lie (PTX
// ISA, mma and wgmma): register r of a lane holds elements (row, column) and (row, column + 1).
struct FragmentPosition {
  int row, column;
};
constexpr FragmentPosition a_fragment(int lane, int r) {
  return {lane / 4 + 8 * (r & 1), lane % 4 * 2 + 8 * (r >> 1)};
}
constexpr FragmentPosition accumulator(int lane, int i) {
  return {lane / 4 + 8 * (i >> 1 & 1), i / 4 * 8 + lane % 4 * 2 + (i & 1)};
}

// c[16][n] += a[16][16] * b[16][n], rows of b and c `ld` floats apart.
void accumulate(const float (*a)[16], const float* b, float* c, int n, int ld);

}  // namespace swa::emu
