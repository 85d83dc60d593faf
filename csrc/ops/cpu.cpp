// torch.ops.swa_attn._native_* for CPU tensors: fill the kernels' plain parameters, spread the work
// over torch's threads. Arguments were checked in Python; what is checked here are values, before
// or while they are used as indices.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "ops/tensors.h"

namespace swa::ops {

namespace {

using cpu::AttentionParams;
using cpu::AttentionTile;
using cpu::BadIndex;
using cpu::DType;
using cpu::PagePool;

constexpr int64_t kRowsPerTile =
    128;  // query rows (tokens x group) that share a gathered tile of keys
constexpr int64_t kTokensPerTile =
    64;  // bounds the keys outside a row's window that its tile walks over
constexpr int64_t kCacheBytes = 65536;   // queries and sums that a piece of several heads may keep
constexpr int64_t kPiecesPerThread = 4;  // enough to share unequal pieces out
constexpr int64_t kBytesPerThread = 32768;  // less than this is not worth another thread

PagePool pool_of(const Tensor& cache, const OptionalTensor& host, const OptionalTensor& scale) {
  PagePool pool{};
  pool.device = bytes(cache);
  pool.num_device_pages = cache.size(0);
  pool.device_page_stride = byte_stride(cache, 0);
  pool.device_slot_stride = byte_stride(cache, 1);
  pool.device_head_stride = byte_stride(cache, 2);
  if (host) {
    pool.host = bytes(*host);
    pool.num_host_pages = host->size(0);
    pool.host_page_stride = byte_stride(*host, 0);
    pool.host_slot_stride = byte_stride(*host, 1);
    pool.host_head_stride = byte_stride(*host, 2);
  }
  pool.scale = data_or_null<float>(scale);
  pool.dim = cache.size(3);
  pool.dtype = dtype_of<DType>(cache);
  return pool;
}

// Pieces of unequal cost: every thread takes the next one until none is left.
template <class F>
void for_each_piece(int64_t count, const F& piece) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) piece(i);
  });
}

int64_t grain(int64_t bytes_per_piece) {
  return std::max<int64_t>(1, kBytesPerThread / std::max<int64_t>(1, bytes_per_piece));
}

void check_lengths(const char* op, const AttentionParams& p, int64_t num_seqs, int64_t num_rows,
                   int64_t max_pages) {
  for (int64_t s = 0; s < num_seqs; ++s) {
    STD_TORCH_CHECK(
        0 <= p.seqlens_k[s] && p.seqlens_k[s] <= max_pages * p.page_size, "IndexError: swa_attn.",
        op, ": seqlens_k[", s, "] must be at least 0 and at most ", max_pages * p.page_size,
        " (block_table has ", max_pages, " pages of ", p.page_size, "), got ", p.seqlens_k[s]);
  }
  if (!p.cu_seqlens_q) return;
  for (int64_t s = 0; s < num_seqs; ++s) {
    const int64_t from = p.cu_seqlens_q[s], to = p.cu_seqlens_q[s + 1];
    STD_TORCH_CHECK((s > 0 || from == 0) && from <= to && to <= num_rows, "IndexError: swa_attn.",
                    op, ": cu_seqlens_q must rise from 0 to at most ", num_rows, ", got ", from,
                    ", ", to, " at ", s);
  }
}

// How many KV heads one piece of work takes. Together they read whole slots, which lie in one
// place; apart they are more pieces for the threads, and the rows of many tokens need the cache
// themselves.
int64_t heads_per_tile(const AttentionParams& p, int64_t num_seqs, int64_t num_tokens) {
  const int64_t row_bytes = (p.k.dim + p.v.dim) * int64_t(sizeof(float));
  const int64_t fit = kCacheBytes / std::max<int64_t>(1, num_tokens * p.group_size * row_bytes);
  const int64_t pieces = num_seqs * p.num_kv_heads;
  const int64_t wanted = kPiecesPerThread * torch::stable::get_num_threads();
  return std::max<int64_t>(1, std::min({p.num_kv_heads, fit, pieces / wanted}));
}

void attention(const char* op, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
               const Tensor& block_table, const Tensor& seqlens_k,
               const OptionalTensor& cu_seqlens_q, double softmax_scale, int64_t window,
               double softcap, const OptionalTensor& sinks, const OptionalTensor& k_scale,
               const OptionalTensor& v_scale, const OptionalTensor& k_host_cache,
               const OptionalTensor& v_host_cache, const Tensor& out, const Tensor& lse) {
  const bool ragged = cu_seqlens_q.has_value();
  const int64_t token = ragged ? 0 : 1;  // the dimension of q that counts tokens
  AttentionParams p{};
  p.q = bytes(q);
  p.out = bytes(out);
  p.lse = static_cast<float*>(lse.data_ptr());
  p.k = pool_of(k_cache, k_host_cache, k_scale);
  p.v = pool_of(v_cache, v_host_cache, v_scale);
  p.block_table = data<int32_t>(block_table);
  p.seqlens_k = data<int32_t>(seqlens_k);
  p.cu_seqlens_q = data_or_null<int32_t>(cu_seqlens_q);
  p.sinks = data_or_null<float>(sinks);
  p.q_seq_stride = byte_stride(q, 0);
  p.q_token_stride = byte_stride(q, token);
  p.q_head_stride = byte_stride(q, token + 1);
  p.out_seq_stride = byte_stride(out, 0);
  p.out_token_stride = byte_stride(out, token);
  p.out_head_stride = byte_stride(out, token + 1);
  p.block_table_stride = block_table.stride(0);
  p.q_len = ragged ? 0 : q.size(1);
  p.page_size = k_cache.size(1);
  p.num_kv_heads = k_cache.size(2);
  p.group_size = q.size(token + 1) / p.num_kv_heads;
  p.window = window;
  p.softmax_scale = float(softmax_scale);
  p.softcap = float(softcap);
  p.dtype = dtype_of<DType>(q);

  const int64_t num_seqs = seqlens_k.size(0);
  check_lengths(op, p, num_seqs, ragged ? q.size(0) : 0, block_table.size(1));
  const int64_t per_tile =
      std::max<int64_t>(1, std::min(kTokensPerTile, kRowsPerTile / p.group_size));
  std::vector<AttentionTile> tiles;
  for (int64_t s = 0; s < num_seqs; ++s) {
    const int64_t length = p.query_len(s);
    const int64_t heads = heads_per_tile(p, num_seqs, std::min(length, per_tile));
    for (int64_t head = 0; head < p.num_kv_heads; head += heads) {
      for (int64_t first = 0; first < length; first += per_tile) {
        tiles.push_back({s, first, std::min(per_tile, length - first), head,
                         std::min(heads, p.num_kv_heads - head)});
      }
    }
  }
  BadIndex bad;
  const auto run = cpu::kernels().attention;
  for_each_piece(int64_t(tiles.size()), [&](int64_t i) { run(p, tiles[size_t(i)], bad); });
  STD_TORCH_CHECK(!bad.found, "IndexError: swa_attn.", op, ": block_table[", bad.sequence, ", ",
                  bad.position, "] = ", bad.value,
                  " holds a visible key but is not a page id of 0..",
                  p.k.num_device_pages + p.k.num_host_pages - 1);
}

void prefill(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seqlens_k,
             Tensor cu_seqlens_q, double softmax_scale, int64_t window, double softcap,
             OptionalTensor sinks, OptionalTensor k_scale, OptionalTensor v_scale,
             OptionalTensor k_host_cache, OptionalTensor v_host_cache, Tensor out, Tensor lse) {
  attention("prefill", q, k_cache, v_cache, block_table, seqlens_k, cu_seqlens_q, softmax_scale,
            window, softcap, sinks, k_scale, v_scale, k_host_cache, v_host_cache, out, lse);
}

void decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seqlens_k,
            double softmax_scale, int64_t window, double softcap, OptionalTensor sinks,
            OptionalTensor k_scale, OptionalTensor v_scale, OptionalTensor k_host_cache,
            OptionalTensor v_host_cache, Tensor out, Tensor lse) {
  attention("decode", q, k_cache, v_cache, block_table, seqlens_k, std::nullopt, softmax_scale,
            window, softcap, sinks, k_scale, v_scale, k_host_cache, v_host_cache, out, lse);
}

void append_kv(Tensor key, Tensor value, Tensor k_cache, Tensor v_cache, Tensor slot_mapping,
               OptionalTensor k_scale, OptionalTensor v_scale, OptionalTensor k_host_cache,
               OptionalTensor v_host_cache) {
  cpu::AppendParams p{};
  p.key = bytes(key);
  p.value = bytes(value);
  p.slot_mapping = data<int64_t>(slot_mapping);
  p.k = pool_of(k_cache, k_host_cache, k_scale);
  p.v = pool_of(v_cache, v_host_cache, v_scale);
  p.key_token_stride = byte_stride(key, 0);
  p.key_head_stride = byte_stride(key, 1);
  p.value_token_stride = byte_stride(value, 0);
  p.value_head_stride = byte_stride(value, 1);
  p.page_size = k_cache.size(1);
  p.num_kv_heads = k_cache.size(2);
  p.dtype = dtype_of<DType>(key);
  const int64_t num_tokens = key.size(0);
  const int64_t num_slots = (p.k.num_device_pages + p.k.num_host_pages) * p.page_size;
  for (int64_t i = 0; i < num_tokens; ++i) {
    STD_TORCH_CHECK(p.slot_mapping[i] < num_slots, "IndexError: swa_attn.append_kv: slot_mapping[",
                    i, "] = ", p.slot_mapping[i], " is beyond the ", num_slots,
                    " slots of the pools");
  }
  const int64_t token_bytes = p.num_kv_heads * (p.k.dim + p.v.dim) * cpu::size_of(p.dtype);
  torch::stable::parallel_for(0, num_tokens, grain(token_bytes), [&](int64_t first, int64_t last) {
    cpu::kernels().append_kv(p, first, last);
  });
}

void check_pages(const char* name, const int64_t* pages, int64_t count, int64_t num_pages) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(pages[i] < num_pages, "IndexError: swa_attn.copy_pages: ", name, "[", i,
                    "] = ", pages[i], " is not a page of 0..", num_pages - 1);
  }
}

void copy_pages(Tensor src, Tensor dst, Tensor src_pages, Tensor dst_pages,
                OptionalTensor src_scale, OptionalTensor dst_scale) {
  cpu::CopyParams p{};
  p.src = bytes(src);
  p.dst = bytes(dst);
  p.src_pages = data<int64_t>(src_pages);
  p.dst_pages = data<int64_t>(dst_pages);
  for (int64_t i = 0; i < 4; ++i) {
    p.src_stride[i] = byte_stride(src, i);
    p.dst_stride[i] = byte_stride(dst, i);
  }
  p.src_scale = data_or_null<float>(src_scale);
  p.dst_scale = dst_scale ? static_cast<float*>(dst_scale->data_ptr()) : nullptr;
  for (int64_t i = 0; i < 2; ++i) {
    p.src_scale_stride[i] = src_scale ? src_scale->stride(i) : 0;
    p.dst_scale_stride[i] = dst_scale ? dst_scale->stride(i) : 0;
  }
  p.num_layers = src.size(0);
  p.num_pairs = src_pages.size(0);
  p.page_size = src.size(2);
  p.num_kv_heads = src.size(3);
  p.dim = src.size(4);
  p.src_dtype = dtype_of<DType>(src);
  p.dst_dtype = dtype_of<DType>(dst);
  check_pages("src_pages", p.src_pages, p.num_pairs, src.size(1));
  check_pages("dst_pages", p.dst_pages, p.num_pairs, dst.size(1));
  const int64_t page_bytes = p.page_size * p.num_kv_heads * p.dim * cpu::size_of(p.src_dtype);
  torch::stable::parallel_for(
      0, p.num_layers * p.num_pairs, grain(page_bytes),
      [&](int64_t first, int64_t last) { cpu::kernels().copy_pages(p, first, last); });
}

// out `[rows, heads, dim]` and lse `[rows, heads]`.
cpu::Partial partial_of(const Tensor& out, const Tensor& lse) {
  return {bytes(out),          data<float>(lse), byte_stride(out, 0),
          byte_stride(out, 1), lse.stride(0),    lse.stride(1)};
}

void merge_states(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b, OptionalTensor sinks,
                  Tensor out, Tensor lse) {
  cpu::MergeParams p{};
  p.a = partial_of(out_a, lse_a);
  p.b = partial_of(out_b, lse_b);
  p.sinks = data_or_null<float>(sinks);
  p.out = bytes(out);
  p.lse = static_cast<float*>(lse.data_ptr());
  p.num_heads = out.size(1);
  p.dim = out.size(2);
  p.dtype = dtype_of<DType>(out);
  torch::stable::parallel_for(
      0, lse.numel(), grain(p.dim * cpu::size_of(p.dtype)),
      [&](int64_t first, int64_t last) { cpu::kernels().merge_states(p, first, last); });
}

std::string cpu_level() { return cpu::kernels().level; }

}  // namespace

}  // namespace swa::ops

STABLE_TORCH_LIBRARY_IMPL(swa_attn, CPU, m) {
  m.impl("_native_append_kv", TORCH_BOX(&swa::ops::append_kv));
  m.impl("_native_prefill", TORCH_BOX(&swa::ops::prefill));
  m.impl("_native_decode", TORCH_BOX(&swa::ops::decode));
  m.impl("_native_merge_states", TORCH_BOX(&swa::ops::merge_states));
  m.impl("_native_copy_pages", TORCH_BOX(&swa::ops::copy_pages));
}

STABLE_TORCH_LIBRARY_IMPL(swa_attn, CompositeImplicitAutograd, m) {
  m.impl("_native_cpu_level", TORCH_BOX(&swa::ops::cpu_level));
}
