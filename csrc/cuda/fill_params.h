// From tensors, as plain views, to the kernels' parameters: one way for the ops on a card and for
// the emulator, so that what the tests run is what ships.
#pragma once

#include <algorithm>

#include "cuda/params.h"

namespace swa::cuda {

// A tensor without its library; data is null where an optional tensor is missing.
struct TensorView {
  static constexpr int kMaxDims = 5;

  char* data;
  DType dtype;
  int dims;
  int64_t size[kMaxDims], stride[kMaxDims];  // in elements

  int64_t byte_stride(int dim) const { return stride[dim] * size_of(dtype); }
  int32_t size32(int dim) const { return int32_t(size[dim]); }

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

// K or V: the pools of both tiers and the scales of their pages.
struct CacheViews {
  TensorView device, host, scale;
};

struct AttentionViews {
  TensorView q, out, lse, block_table, seqlens_k, cu_seqlens_q, sinks;
  CacheViews k, v;
};

struct AttentionOptions {
  double softmax_scale, softcap;
  int64_t window;  // -1: none
};

struct AppendViews {
  TensorView key, value, slot_mapping;
  CacheViews k, v;
};

struct CopyViews {
  TensorView src, dst, src_pages, dst_pages, src_scale, dst_scale;
};

struct MergeViews {
  TensorView out_a, lse_a, out_b, lse_b, sinks, out, lse;
};

inline PagePool page_pool(const CacheViews& cache) {
  PagePool pool{};
  pool.device = cache.device.data;
  pool.scale = cache.scale.as<const float>();
  pool.num_device_pages = cache.device.size32(0);
  pool.device_page_stride = cache.device.byte_stride(0);
  pool.device_slot_stride = cache.device.byte_stride(1);
  pool.device_head_stride = cache.device.byte_stride(2);
  if (cache.host.data) {
    pool.host = cache.host.data;
    pool.num_host_pages = cache.host.size32(0);
    pool.host_page_stride = cache.host.byte_stride(0);
    pool.host_slot_stride = cache.host.byte_stride(1);
    pool.host_head_stride = cache.host.byte_stride(2);
  }
  return pool;
}

// Of prefill, or of decode when there is no cu_seqlens_q. num_splits is left at 1.
inline AttentionParams attention_params(const AttentionViews& views,
                                        const AttentionOptions& options) {
  const TensorView &q = views.q, &out = views.out;
  const bool ragged = views.cu_seqlens_q.data;
  const int token = ragged ? 0 : 1;  // the dimension of q that counts tokens
  AttentionParams p{};
  p.q = q.data;
  p.out = out.data;
  p.lse = views.lse.as<float>();
  p.k = page_pool(views.k);
  p.v = page_pool(views.v);
  p.block_table = views.block_table.as<const int32_t>();
  p.seqlens_k = views.seqlens_k.as<const int32_t>();
  p.cu_seqlens_q = views.cu_seqlens_q.as<const int32_t>();
  p.sinks = views.sinks.as<const float>();
  p.q_seq_stride = q.byte_stride(0);
  p.q_token_stride = q.byte_stride(token);
  p.q_head_stride = q.byte_stride(token + 1);
  p.out_seq_stride = out.byte_stride(0);
  p.out_token_stride = out.byte_stride(token);
  p.out_head_stride = out.byte_stride(token + 1);
  p.block_table_stride = views.block_table.stride[0];
  p.num_seqs = views.seqlens_k.size32(0);
  p.q_len = ragged ? 0 : q.size32(1);
  p.total_q = ragged ? q.size32(0) : p.num_seqs * p.q_len;
  p.max_pages = views.block_table.size32(1);
  p.page_size = views.k.device.size32(1);
  p.num_kv_heads = views.k.device.size32(2);
  p.group_size = q.size32(token + 1) / p.num_kv_heads;
  p.head_dim = q.size32(token + 2);
  p.v_head_dim = views.v.device.size32(3);
  p.window = options.window < 0 ? kNoWindow : int32_t(std::min<int64_t>(options.window, kNoWindow));
  p.num_splits = 1;
  p.softmax_scale = float(options.softmax_scale);
  p.softcap = float(options.softcap);
  p.dtype = q.dtype;
  p.kv_dtype = views.k.device.dtype;
  return p;
}

// Rows of the partial results of a decode in splits.
inline int64_t partial_rows(const AttentionParams& p) {
  return int64_t(p.total_q) * p.num_kv_heads * p.group_size * p.num_splits;
}

inline AppendParams append_params(const AppendViews& views) {
  AppendParams p{};
  p.key = views.key.data;
  p.value = views.value.data;
  p.slot_mapping = views.slot_mapping.as<const int64_t>();
  p.k = page_pool(views.k);
  p.v = page_pool(views.v);
  p.key_token_stride = views.key.byte_stride(0);
  p.key_head_stride = views.key.byte_stride(1);
  p.value_token_stride = views.value.byte_stride(0);
  p.value_head_stride = views.value.byte_stride(1);
  p.num_tokens = views.key.size32(0);
  p.page_size = views.k.device.size32(1);
  p.num_kv_heads = views.k.device.size32(2);
  p.head_dim = views.k.device.size32(3);
  p.v_head_dim = views.v.device.size32(3);
  p.dtype = views.key.dtype;
  p.kv_dtype = views.k.device.dtype;
  return p;
}

inline CopyParams copy_params(const CopyViews& views) {
  CopyParams p{};
  p.src = views.src.data;
  p.dst = views.dst.data;
  p.src_pages = views.src_pages.as<const int64_t>();
  p.dst_pages = views.dst_pages.as<const int64_t>();
  p.src_scale = views.src_scale.as<const float>();
  p.dst_scale = views.dst_scale.as<float>();
  for (int i = 0; i < 4; ++i) {
    p.src_stride[i] = views.src.byte_stride(i);
    p.dst_stride[i] = views.dst.byte_stride(i);
  }
  for (int i = 0; i < 2; ++i) {
    p.src_scale_stride[i] = views.src_scale.stride[i];
    p.dst_scale_stride[i] = views.dst_scale.stride[i];
  }
  p.num_src_pages = views.src.size[1];
  p.num_dst_pages = views.dst.size[1];
  p.num_layers = views.src.size32(0);
  p.num_pairs = views.src_pages.size32(0);
  p.page_size = views.src.size32(2);
  p.num_kv_heads = views.src.size32(3);
  p.dim = views.src.size32(4);
  p.src_dtype = views.src.dtype;
  p.dst_dtype = views.dst.dtype;
  return p;
}

inline Partial partial_of(const TensorView& out, const TensorView& lse) {
  return {out.data,           lse.as<const float>(), out.byte_stride(0),
          out.byte_stride(1), lse.stride[0],         lse.stride[1]};
}

inline MergeParams merge_params(const MergeViews& views) {
  MergeParams p{};
  p.a = partial_of(views.out_a, views.lse_a);
  p.b = partial_of(views.out_b, views.lse_b);
  p.sinks = views.sinks.as<const float>();
  p.out = views.out.data;
  p.lse = views.lse.as<float>();
  p.rows = views.out.size[0];
  p.num_heads = views.out.size32(1);
  p.dim = views.out.size32(2);
  p.dtype = views.out.dtype;
  return p;
}

}  // namespace swa::cuda
