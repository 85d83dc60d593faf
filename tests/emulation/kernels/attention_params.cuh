// Arguments of the two attention test kernels: bf16, head_dim 64, pages of 16, causal, ragged
// queries.
#pragma once
#include <cstdint>

namespace swa::test {

constexpr int kHeadDim = 64, kPageSize = 16;

struct AttentionParams {
  const uint16_t* q;        // [total_q, num_q_heads, 64]
  const uint16_t* k_pages;  // [num_pages, 16, num_kv_heads, 64]
  const uint16_t* v_pages;  // [num_pages, 16, num_kv_heads, 64]
  uint16_t* out;            // [total_q, num_q_heads, 64]
  const int* block_table;   // [num_seqs, max_pages]
  const int* cu_seqlens_q;  // [num_seqs + 1]
  const int* seqlens_k;     // [num_seqs]
  int num_q_heads, num_kv_heads, max_pages, num_pages;
  int window;  // visible keys including the query's own; 0: all
  float scale_log2;
};

}  // namespace swa::test
