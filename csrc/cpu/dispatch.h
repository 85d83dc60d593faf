// The kernels of the best instruction-set level that this machine has.
#pragma once

#include "cpu/params.h"

namespace swa::cpu {

// Ranges are of independent pieces of work; any split of them over threads gives the same bits.
struct Kernels {
  const char* level;
  void (*attention)(const AttentionParams&, const AttentionTile&, BadIndex&);
  void (*append_kv)(const AppendParams&, int64_t first_token, int64_t last_token);
  void (*copy_pages)(const CopyParams&, int64_t first_piece, int64_t last_piece);  // layer x pair
  void (*merge_states)(const MergeParams&, int64_t first_row, int64_t last_row);   // row x head
};

// SWA_ATTN_CPU_ISA=baseline|avx2|avx512|avx512_bf16 caps the level (for tests and comparisons).
const Kernels& kernels();

}  // namespace swa::cpu
