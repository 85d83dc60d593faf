// What the CUDA kernels are called with, and who launches them: plain structs, no torch. Strides
// are in bytes unless said otherwise. Kernels receive these structs by value.
#pragma once

#include <cstdint>

namespace swa::cuda {

enum class DType : int { kFloat32, kBFloat16, kFloat16, kFloat8 };

constexpr int size_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kFloat8 ? 1 : 2;
}

// K or V: device pages, and the host pages whose ids follow them.
struct PagePool {
  char* device;        // [num_device_pages, page_size, num_kv_heads, dim]
  char* host;          // [num_host_pages, page_size, num_kv_heads, dim], pinned, or null
  const float* scale;  // [num_device_pages + num_host_pages, num_kv_heads] or null
  int32_t num_device_pages, num_host_pages;
  int64_t device_page_stride, device_slot_stride, device_head_stride;
  int64_t host_page_stride, host_slot_stride, host_head_stride;
};

// A window that no sequence reaches, small enough to be added to positions in 32 bits.
constexpr int32_t kNoWindow = 1 << 30;

// Queries of one sequence are consecutive rows: those of sequence s are
// cu_seqlens_q[s] .. cu_seqlens_q[s + 1] - 1, or q_len rows from s * q_len without cu_seqlens_q.
struct AttentionParams {
  const char* q;  // [rows, num_q_heads, head_dim]
  char* out;      // [rows, num_q_heads, v_head_dim], dtype of q
  float* lse;     // [rows, num_q_heads]
  PagePool k, v;
  const int32_t* block_table;   // [num_seqs, max_pages]
  const int32_t* seqlens_k;     // [num_seqs]
  const int32_t* cu_seqlens_q;  // [num_seqs + 1] or null
  const float* sinks;           // [num_q_heads] or null
  float* partial_out;  // decode in splits: [rows, num_q_heads, num_splits, v_head_dim], else null
  float* partial_lse;  // decode in splits: [rows, num_q_heads, num_splits], in base 2
  int64_t q_seq_stride, q_token_stride, q_head_stride;  // seq strides: only without cu_seqlens_q
  int64_t out_seq_stride, out_token_stride, out_head_stride;
  int64_t block_table_stride;  // entries
  int32_t num_seqs, total_q, q_len, max_pages;
  int32_t page_size, num_kv_heads, group_size, head_dim, v_head_dim;
  int32_t window;      // visible keys, the query's own included; at most kNoWindow
  int32_t num_splits;  // of a decode's keys; 1: none
  float softmax_scale, softcap;
  DType dtype;     // of q: bfloat16 or float16
  DType kv_dtype;  // of the pools: q's, or float8
};

struct AppendParams {
  const char *key, *value;      // [num_tokens, num_kv_heads, head_dim | v_head_dim]
  const int64_t* slot_mapping;  // [num_tokens]
  PagePool k, v;
  int64_t key_token_stride, key_head_stride, value_token_stride, value_head_stride;
  int32_t num_tokens, page_size, num_kv_heads, head_dim, v_head_dim;
  DType dtype;     // of key and value
  DType kv_dtype;  // of the pools
};

struct CopyParams {
  const char* src;  // [num_layers, num_src_pages, page_size, num_kv_heads, dim]
  char* dst;        // [num_layers, num_dst_pages, page_size, num_kv_heads, dim]
  const int64_t *src_pages, *dst_pages;  // [num_pairs]
  const float* src_scale;                // [num_layers, num_src_pages, num_kv_heads] or null
  float* dst_scale;                      // [num_layers, num_dst_pages, num_kv_heads] or null
  int64_t src_stride[4], dst_stride[4];  // layer, page, slot, head
  int64_t src_scale_stride[2], dst_scale_stride[2];  // layer, page; in elements
  int64_t num_src_pages, num_dst_pages;
  int32_t num_layers, num_pairs, page_size, num_kv_heads, dim;
  DType src_dtype, dst_dtype;
};

// One of the two attentions to merge.
struct Partial {
  const char* out;                          // [rows, num_heads, dim]
  const float* lse;                         // [rows, num_heads]
  int64_t out_row_stride, out_head_stride;  // of out
  int64_t lse_row_stride, lse_head_stride;  // of lse, in elements
};

struct MergeParams {
  Partial a, b;
  const float* sinks;  // [num_heads] or null
  char* out;           // [rows, num_heads, dim], contiguous
  float* lse;          // [rows, num_heads], contiguous
  int64_t rows;
  int32_t num_heads, dim;
  DType dtype;
};

// What decides between kernels and tiles, besides the case.
struct Device {
  int num_sms;
  int max_smem_bytes;      // a block may ask for
  int compute_capability;  // 10 major + minor
};

}  // namespace swa::cuda
