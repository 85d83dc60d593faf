// What the CPU kernels are called with: plain structs, no torch. Strides are in bytes unless said
// otherwise.
#pragma once

#include <atomic>
#include <cstdint>

namespace swa::cpu {

enum class DType { kFloat32, kBFloat16, kFloat16, kFloat8 };

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kFloat8 ? 1 : 2;
}

// The first page id (or slot, or page index) that names nothing; kernels record it and skip the
// work.
struct BadIndex {
  std::atomic<bool> found{false};
  int64_t sequence = 0;  // row of the block table, or position in a list
  int64_t position = 0;  // column of the block table
  int64_t value = 0;

  void record(int64_t at_sequence, int64_t at_position, int64_t bad_value) {
    if (!found.exchange(true)) {
      sequence = at_sequence;
      position = at_position;
      value = bad_value;
    }
  }
};

// K or V: device pages, and the host pages whose ids follow them.
struct PagePool {
  char* device;        // [num_device_pages, page_size, num_kv_heads, dim]
  char* host;          // [num_host_pages, page_size, num_kv_heads, dim] or null
  const float* scale;  // [num_device_pages + num_host_pages, num_kv_heads] or null
  int64_t num_device_pages, num_host_pages;
  int64_t device_page_stride, device_slot_stride, device_head_stride;
  int64_t host_page_stride, host_slot_stride, host_head_stride;
  int64_t dim;
  DType dtype;

  bool holds(int64_t page_id) const {
    return page_id >= 0 && page_id < num_device_pages + num_host_pages;
  }

  // The `dim` elements of one head in one slot.
  char* row(int64_t page_id, int64_t slot, int64_t head) const {
    return page(page_id, head) + slot * slot_stride(page_id);
  }

  // Slot 0 of one head in a page; slot i lies `i * slot_stride` further.
  char* page(int64_t page_id, int64_t head) const {
    if (page_id < num_device_pages) {
      return device + page_id * device_page_stride + head * device_head_stride;
    }
    return host + (page_id - num_device_pages) * host_page_stride + head * host_head_stride;
  }
  int64_t slot_stride(int64_t page_id) const {
    return page_id < num_device_pages ? device_slot_stride : host_slot_stride;
  }
};

// Queries of one sequence are rows `first_row(seq) + 0 .. query_len(seq) - 1` of q, out and lse.
struct AttentionParams {
  const char* q;  // [rows, num_q_heads, head_dim]
  char* out;      // [rows, num_q_heads, v_head_dim], dtype of q
  float* lse;     // [rows, num_q_heads]
  PagePool k, v;
  const int32_t* block_table;   // [num_seqs, max_pages]
  const int32_t* seqlens_k;     // [num_seqs]
  const int32_t* cu_seqlens_q;  // [num_seqs + 1], or null: every sequence has q_len queries
  const float* sinks;           // [num_q_heads] or null
  int64_t q_seq_stride, q_token_stride, q_head_stride;  // q_seq_stride: only without cu_seqlens_q
  int64_t out_seq_stride, out_token_stride, out_head_stride;
  int64_t block_table_stride;  // entries
  int64_t q_len, page_size, num_kv_heads, group_size;
  int64_t window;  // visible keys, the query's own included; -1: all
  float softmax_scale, softcap;
  DType dtype;

  int64_t query_len(int64_t seq) const {
    return cu_seqlens_q ? cu_seqlens_q[seq + 1] - cu_seqlens_q[seq] : q_len;
  }
  int64_t first_row(int64_t seq) const { return cu_seqlens_q ? cu_seqlens_q[seq] : seq * q_len; }
  int64_t offset(int64_t seq, int64_t token, int64_t seq_stride, int64_t token_stride) const {
    return cu_seqlens_q ? (cu_seqlens_q[seq] + token) * token_stride
                        : seq * seq_stride + token * token_stride;
  }
};

// A piece of work: some consecutive queries of one sequence, all query heads of num_heads KV heads.
struct AttentionTile {
  int64_t sequence, first_token, num_tokens, kv_head, num_heads;
};

struct AppendParams {
  const char *key, *value;      // [num_tokens, num_kv_heads, head_dim | v_head_dim]
  const int64_t* slot_mapping;  // [num_tokens]
  PagePool k, v;
  int64_t key_token_stride, key_head_stride, value_token_stride, value_head_stride;
  int64_t page_size, num_kv_heads;
  DType dtype;  // of key and value
};

struct CopyParams {
  const char* src;  // [num_layers, num_src_pages, page_size, num_kv_heads, dim]
  char* dst;        // [num_layers, num_dst_pages, page_size, num_kv_heads, dim]
  const int64_t *src_pages, *dst_pages;  // [num_pairs]
  const float* src_scale;                // [num_layers, num_src_pages, num_kv_heads] or null
  float* dst_scale;                      // [num_layers, num_dst_pages, num_kv_heads] or null
  int64_t src_stride[4], dst_stride[4];  // layer, page, slot, head
  int64_t src_scale_stride[2], dst_scale_stride[2];  // layer, page; in elements
  int64_t num_layers, num_pairs, page_size, num_kv_heads, dim;
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
  int64_t num_heads, dim;
  DType dtype;
};

}  // namespace swa::cpu
