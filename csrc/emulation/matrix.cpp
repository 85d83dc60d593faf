#include "matrix.hpp"

#include <cmath>
#include <cstring>

#include "machine.hpp"

namespace swa::emu {
namespace {

struct MatrixArgument {
  uint32_t address;
  uint32_t* registers;
};

constexpr int kRowBytes = 16;

// Runs body(row, lane's argument) for every row, in the name of the lane that gave its address.
template <class Body>
void for_each_row(const Collective& c, Warp& warp, int num_rows, Body&& body) {
  Machine& m = machine();
  Thread* const runner = m.current;
  for (int row = 0; row < num_rows; ++row) {
    m.current = &warp.lane(row);
    body(row, c.of<MatrixArgument>(row));
  }
  m.current = runner;
}

void count_rows(Op op, const Collective& c, int num_rows) {
  uint32_t addresses[32];
  for (int row = 0; row < num_rows; ++row) addresses[row] = c.of<MatrixArgument>(row).address;
  count_matrix(op, addresses, num_rows, c.loc);
}

// Which element of a matrix half `h` of a lane's register holds.
struct Element {
  int row, column;
};
Element element_of(int lane, int h, Transpose transpose) {
  const int major = lane / 4, minor = lane % 4 * 2 + h;
  return transpose == Transpose::kYes ? Element{minor, major} : Element{major, minor};
}

}  // namespace

void ldmatrix(int num_matrices, Transpose transpose, uint32_t* registers, uint32_t row_address,
              Loc loc) {
  MatrixArgument argument{row_address, registers};
  const char* op = transpose == Transpose::kYes ? "ldmatrix.trans" : "ldmatrix";
  collective(op, kFullMask, argument, loc, Aligned::kYes, [&](Collective& c, Warp& warp) {
    uint16_t rows[32][8];
    for_each_row(c, warp, num_matrices * 8, [&](int row, const MatrixArgument& a) {
      check_aligned(a.address, kRowBytes, "ldmatrix row address", loc);
      std::memcpy(rows[row], smem_at(*warp.block, a.address, kRowBytes, "ldmatrix", loc),
                  kRowBytes);
      note_read(a.address, kRowBytes, loc);
    });
    count_rows(Op::kLdmatrix, c, num_matrices * 8);
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < num_matrices; ++i) {
        const Element low = element_of(lane, 0, transpose), high = element_of(lane, 1, transpose);
        c.of<MatrixArgument>(lane).registers[i] =
            rows[i * 8 + low.row][low.column] | uint32_t(rows[i * 8 + high.row][high.column]) << 16;
      }
  });
}

void stmatrix(int num_matrices, Transpose transpose, uint32_t row_address,
              const uint32_t* registers, Loc loc) {
  MatrixArgument argument{row_address, const_cast<uint32_t*>(registers)};
  const char* op = transpose == Transpose::kYes ? "stmatrix.trans" : "stmatrix";
  collective(op, kFullMask, argument, loc, Aligned::kYes, [&](Collective& c, Warp& warp) {
    uint16_t rows[32][8];
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < num_matrices; ++i)
        for (int h = 0; h < 2; ++h) {
          const Element e = element_of(lane, h, transpose);
          rows[i * 8 + e.row][e.column] =
              uint16_t(c.of<MatrixArgument>(lane).registers[i] >> (16 * h));
        }
    for_each_row(c, warp, num_matrices * 8, [&](int row, const MatrixArgument& a) {
      check_aligned(a.address, kRowBytes, "stmatrix row address", loc);
      std::memcpy(smem_at(*warp.block, a.address, kRowBytes, "stmatrix", loc), rows[row],
                  kRowBytes);
      note_write(a.address, kRowBytes, loc);
    });
    count_rows(Op::kStmatrix, c, num_matrices * 8);
  });
}

namespace {

constexpr int kStepProducts = 8;  // the fewest that a card from sm_80 on adds at once

// c plus the products of a step as tensor cores are seen to add: every term is cut at 2^-23 of the
// largest one's power of two, towards zero, and so is the sum.
float add_and_cut(const float* a, const float* b, int ld, float c) {
  double terms[kStepProducts + 1], largest = std::fabs(c);
  terms[kStepProducts] = c;
  for (int k = 0; k < kStepProducts; ++k) {
    terms[k] = double(a[k]) * b[k * ld];
    largest = std::fmax(largest, std::fabs(terms[k]));
  }
  double sum = 0;
  if (largest == 0 || !std::isfinite(largest)) {
    for (double term : terms) sum += term;
    return float(sum);
  }
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 23);
  for (double term : terms) sum += std::trunc(term / unit);
  sum *= unit;
  const float nearest = float(sum);
  return std::fabs(nearest) > std::fabs(sum) ? std::nextafter(nearest, 0.f) : nearest;
}

struct MmaArgument {
  float* d;
  const uint32_t *a, *b;
};

template <Half kType>
void multiply(const Collective& c) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaArgument& x = c.of<MmaArgument>(lane);
    for (int r = 0; r < 4; ++r)
      for (int h = 0; h < 2; ++h) {
        const FragmentPosition p = a_fragment(lane, r);
        a[p.row][p.column + h] = half_to_float(uint16_t(x.a[r] >> (16 * h)), kType);
      }
    for (int r = 0; r < 2; ++r)
      for (int h = 0; h < 2; ++h)
        b[lane % 4 * 2 + h + 8 * r][lane / 4] = half_to_float(uint16_t(x.b[r] >> (16 * h)), kType);
    for (int i = 0; i < 4; ++i) {
      const FragmentPosition p = accumulator(lane, i);
      d[p.row][p.column] = x.d[i];
    }
  }
  accumulate(a, b[0], d[0], 8, 8);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const FragmentPosition p = accumulator(lane, i);
      c.of<MmaArgument>(lane).d[i] = d[p.row][p.column];
    }
}

}  // namespace

void accumulate(const float (*a)[16], const float* b, float* c, int n, int ld) {
  const Arithmetic arithmetic = machine().config.arithmetic;
  if (arithmetic == Arithmetic::kAbove || arithmetic == Arithmetic::kBelow) {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < n; ++j)
        for (int k = 0; k < 16; k += kStepProducts)
          c[i * ld + j] = add_and_cut(a[i] + k, b + k * ld + j, ld, c[i * ld + j]);
    return;
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k) {
      const float value = a[i][k];
      for (int j = 0; j < n; ++j) c[i * ld + j] += value * b[k * ld + j];
    }
}

void mma_m16n8k16(Half type, float* d, const uint32_t* a, const uint32_t* b, Loc loc) {
  MmaArgument argument{d, a, b};
  collective("mma.m16n8k16", kFullMask, argument, loc, Aligned::kYes, [&](Collective& c, Warp&) {
    machine().counts.add(Tally::kMma);
    machine().counts.add(Tally::kMmaMacs, 16 * 8 * 16);
    type == Half::kBf16 ? multiply<Half::kBf16>(c) : multiply<Half::kFp16>(c);
  });
}

}  // namespace swa::emu
