// The unit in which keys and values lie in shared memory: a slice, 16 consecutive keys of one KV
// head, K rows then V rows, in the pool's dtype.
//
// Rows are 64 to 512 bytes without padding. 16-byte chunks within a row are exchanged so that the
// three ways to touch them are free of bank conflicts:
//   cp.async    8 lanes write 8 neighbouring chunks of a row (4 chunks each of two rows if rows are
//               not a multiple of 128 bytes)
//   K           lane (g, t) reads 8 elements at 8 (4 u + t) of row g: 16 bytes in phases of two
//               rows, or 8 bytes (float8) in phases of four
//   V           ldmatrix.trans reads a chunk of 8 rows per phase
#pragma once
#include "cuda/ptx/platform.cuh"

namespace swa::cuda {

constexpr int kSliceKeys = 16;

template <int kHeadDim, int kValueDim, int kElementBytes>
struct KvSlice {
  static constexpr int kKeyRowBytes = kHeadDim * kElementBytes;
  static constexpr int kValueRowBytes = kValueDim * kElementBytes;
  static constexpr int kValueOffset = kSliceKeys * kKeyRowBytes;
  // float8 only: the factors of K and V, a float per key each.
  static constexpr int kKeyScaleOffset = kValueOffset + kSliceKeys * kValueRowBytes;
  static constexpr int kValueScaleOffset = kKeyScaleOffset + kSliceKeys * int(sizeof(float));
  static constexpr int kBytes =
      kKeyScaleOffset + (kElementBytes == 1 ? 2 * kSliceKeys * int(sizeof(float)) : 0);
  static_assert(kBytes % 128 == 0, "slices start at bank 0");

  // Byte offset of a 16-byte chunk of a K row from the start of the slice.
  static SWA_DEVICE uint32_t key_offset(int row, int chunk) {
    int exchange;
    if constexpr (kElementBytes == 2)
      exchange = (row & 1) << 2;
    else
      exchange = (kKeyRowBytes % 128 == 0 ? row & 3 : row >> 1 & 1) << 1;
    return uint32_t(row * kKeyRowBytes) + exchanged(chunk, exchange);
  }

  static SWA_DEVICE uint32_t value_offset(int row, int chunk) {
    const int exchange = kValueRowBytes % 128 == 0 ? row & 7 : row >> 1 & 3;
    return uint32_t(kValueOffset + row * kValueRowBytes) + exchanged(chunk, exchange);
  }

 private:
  // Chunks change places within 128 bytes. Written so that the compiler sees the constant part of a
  // constant chunk and keeps a few addresses in registers instead of one for each chunk.
  static SWA_DEVICE uint32_t exchanged(int chunk, int exchange) {
    return uint32_t((chunk & ~7) << 4) + uint32_t(((chunk & 7) ^ exchange) << 4);
  }
};

}  // namespace swa::cuda
