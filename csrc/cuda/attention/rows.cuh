// Rows of a product: (query token, query head of the group), heads running faster, 16 per warp.
#pragma once
#include <cstdint>

#include "cuda/ptx/math.cuh"
#include "cuda/ptx/thread.cuh"

namespace swa::cuda {

constexpr int kWarpRows = 16;

enum class Visibility { kNone, kSome, kAll };  // of some keys to the rows of a warp

// A warp's 16 rows as a lane sees them: mma gives it rows lane / 4 and lane / 4 + 8.
struct WarpRows {
  int token[2];     // of the tile's tokens
  int head[2];      // of the group
  int position[2];  // of the token in its sequence; -1: it sees nothing
  bool exists[2];   // the tile has such a row
  int first, last;  // positions of the warp's first and last row; last < 0: no row sees anything
  int window;

  SWA_DEVICE bool sees(int r, int key) const {
    return key <= position[r] && key > position[r] - window;
  }
  // Of the keys first_key .. first_key + num_keys - 1.
  SWA_DEVICE Visibility visibility(int first_key, int num_keys) const {
    const int last_key = first_key + num_keys - 1;
    if (first_key > last || last_key <= first - window) return Visibility::kNone;
    return last_key <= first && first_key > last - window ? Visibility::kAll : Visibility::kSome;
  }
};

// Rows first_row .. first_row + 15 of a tile of num_tokens tokens, the first of which is at
// `position`. A negative position (more queries than keys) is that of an empty row.
SWA_DEVICE WarpRows warp_rows(int first_row, int num_tokens, int group_size, int position,
                              int window) {
  WarpRows rows;
  const int num_rows = num_tokens * group_size;
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + ptx::lane_id() / 4 + 8 * r;
    rows.token[r] = row / group_size;
    rows.head[r] = row - rows.token[r] * group_size;
    rows.exists[r] = row < num_rows;
    rows.position[r] = rows.exists[r] ? ptx::max(-1, position + rows.token[r]) : -1;
  }
  const int last_row = ptx::min(first_row + kWarpRows, num_rows) - 1;
  rows.first = ptx::max(0, position + first_row / group_size);
  rows.last = first_row < num_rows ? position + last_row / group_size : -1;
  rows.window = window;
  return rows;
}

}  // namespace swa::cuda
