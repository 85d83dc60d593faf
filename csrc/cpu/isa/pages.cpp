// Moving pages and merging partial results: bound by memory, so simple loops over rows.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/convert.h"
#include "cpu/dispatch.h"
#include "cpu/simd.h"

namespace swa::cpu::SWA_ISA {

void attention(const AttentionParams&, const AttentionTile&, BadIndex&);

namespace {

// One row of `dim` elements from one type to another; equal types copy bits.
void convert_row(DType from, const char* src, DType to, char* dst, int64_t dim, float src_scale,
                 float dst_scale, float* scratch) {
  if (from == to) {
    std::memcpy(dst, src, size_t(dim * size_of(from)));
    return;
  }
  to_float32(from, src, dim, src_scale, scratch);
  from_float32(to, scratch, dim, dst_scale, dst);
}

void append_to(const PagePool& pool, DType dtype, const char* row, int64_t page, int64_t slot,
               int64_t head, int64_t num_kv_heads, float* scratch) {
  const float scale = pool.scale ? pool.scale[page * num_kv_heads + head] : 1.0f;
  convert_row(dtype, row, pool.dtype, pool.row(page, slot, head), pool.dim, 1.0f, scale, scratch);
}

void append_kv(const AppendParams& p, int64_t first_token, int64_t last_token) {
  std::vector<float> scratch(size_t(std::max(p.k.dim, p.v.dim)));
  for (int64_t token = first_token; token < last_token; ++token) {
    if (p.slot_mapping[token] < 0) continue;
    const int64_t page = p.slot_mapping[token] / p.page_size;
    const int64_t slot = p.slot_mapping[token] % p.page_size;
    for (int64_t head = 0; head < p.num_kv_heads; ++head) {
      append_to(p.k, p.dtype, p.key + token * p.key_token_stride + head * p.key_head_stride, page,
                slot, head, p.num_kv_heads, scratch.data());
      append_to(p.v, p.dtype, p.value + token * p.value_token_stride + head * p.value_head_stride,
                page, slot, head, p.num_kv_heads, scratch.data());
    }
  }
}

// One page of one layer, head by head, because scales are per head.
class PageCopy {
 public:
  PageCopy(const CopyParams& p, int64_t layer, int64_t pair)
      : p_(p), layer_(layer), from_(p.src_pages[pair]), to_(p.dst_pages[pair]) {
    src_ = p.src + layer * p.src_stride[0] + from_ * p.src_stride[1];
    dst_ = p.dst + layer * p.dst_stride[0] + to_ * p.dst_stride[1];
  }

  void run(float* scratch) {
    for (int64_t head = 0; head < p_.num_kv_heads; ++head) {
      const float src_scale = p_.src_scale ? scale_of_source(head) : 1.0f;
      float dst_scale = src_scale;
      if (p_.src_dtype != p_.dst_dtype && p_.dst_dtype == DType::kFloat8) {
        dst_scale = std::max(largest(head, scratch) / kFloat8Max, 1e-12f);
      }
      for (int64_t slot = 0; slot < p_.page_size; ++slot) {
        convert_row(p_.src_dtype, source(slot, head), p_.dst_dtype,
                    dst_ + slot * p_.dst_stride[2] + head * p_.dst_stride[3], p_.dim, src_scale,
                    dst_scale, scratch);
      }
      if (p_.dst_scale) {
        p_.dst_scale[layer_ * p_.dst_scale_stride[0] + to_ * p_.dst_scale_stride[1] + head] =
            dst_scale;
      }
    }
  }

 private:
  const char* source(int64_t slot, int64_t head) const {
    return src_ + slot * p_.src_stride[2] + head * p_.src_stride[3];
  }

  float scale_of_source(int64_t head) const {
    return p_.src_scale[layer_ * p_.src_scale_stride[0] + from_ * p_.src_scale_stride[1] + head];
  }

  float largest(int64_t head, float* scratch) const {
    float size = 0;
    for (int64_t slot = 0; slot < p_.page_size; ++slot) {
      to_float32(p_.src_dtype, source(slot, head), p_.dim, 1.0f, scratch);
      for (int64_t d = 0; d < p_.dim; ++d) size = std::max(size, std::fabs(scratch[d]));
    }
    return size;
  }

  const CopyParams& p_;
  int64_t layer_, from_, to_;
  const char* src_;
  char* dst_;
};

void copy_pages(const CopyParams& p, int64_t first_piece, int64_t last_piece) {
  std::vector<float> scratch(size_t(p.dim));
  for (int64_t piece = first_piece; piece < last_piece; ++piece) {
    const int64_t layer = piece / p.num_pairs, pair = piece % p.num_pairs;
    if (p.src_pages[pair] < 0 || p.dst_pages[pair] < 0) continue;
    PageCopy(p, layer, pair).run(scratch.data());
  }
}

// A partial that saw no key has lse -inf here and +inf in FlashAttention.
float lse_of(const Partial& part, int64_t row, int64_t head) {
  const float lse = part.lse[row * part.lse_row_stride + head * part.lse_head_stride];
  return lse == INFINITY ? -INFINITY : lse;
}

void merge_states(const MergeParams& p, int64_t first_piece, int64_t last_piece) {
  std::vector<float> a(size_t(p.dim)), b(size_t(p.dim));
  for (int64_t piece = first_piece; piece < last_piece; ++piece) {
    const int64_t row = piece / p.num_heads, head = piece % p.num_heads;
    const float lse_a = lse_of(p.a, row, head), lse_b = lse_of(p.b, row, head);
    const bool empty = lse_a == -INFINITY && lse_b == -INFINITY;
    const float largest = empty ? 0.0f : std::max(lse_a, lse_b);
    const float weight_a = std::exp(lse_a - largest), weight_b = std::exp(lse_b - largest);
    const float total = weight_a + weight_b;
    const float sink = p.sinks && !empty ? std::exp(p.sinks[head] - largest) : 0.0f;
    const float factor = empty ? 0 : 1.0f / (total + sink);
    // An empty partial's out may be anything, NaN included: it is not read.
    const auto load = [&](const Partial& part, float lse, std::vector<float>& to) {
      const char* out = part.out + row * part.out_row_stride + head * part.out_head_stride;
      if (lse == -INFINITY) return std::fill(to.begin(), to.end(), 0.0f);
      to_float32(p.dtype, out, p.dim, 1.0f, to.data());
    };
    load(p.a, lse_a, a);
    load(p.b, lse_b, b);
    for (int64_t d = 0; d < p.dim; ++d) {
      a[size_t(d)] = (a[size_t(d)] * weight_a + b[size_t(d)] * weight_b) * factor;
    }
    from_float32(p.dtype, a.data(), p.dim, 1.0f, p.out + piece * p.dim * size_of(p.dtype));
    p.lse[piece] = empty ? -INFINITY : largest + std::log(total);
  }
}

#define SWA_NAME_OF(level) #level
#define SWA_NAME(level) SWA_NAME_OF(level)

}  // namespace

extern const Kernels table;
const Kernels table{SWA_NAME(SWA_ISA), attention, append_kv, copy_pages, merge_states};

}  // namespace swa::cpu::SWA_ISA
