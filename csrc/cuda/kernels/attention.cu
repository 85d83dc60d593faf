// prefill and decode: from head dimensions to the translation unit that has the kernels.
#include "cuda/attention/decode_split.cuh"
#include "cuda/kernels/kernels.h"
#include "cuda/kernels/smxx_combine.cuh"

namespace swa::cuda {

template <int kHeadDim, int kValueDim>
int prefill_dims(const AttentionParams&, const Device&, Stream);
template <int kHeadDim, int kValueDim>
int decode_dims(const AttentionParams&, const Device&, Stream);

namespace {

using Launcher = int (*)(const AttentionParams&, const Device&, Stream);

constexpr int kMaxGroupSize = 128;  // the rows of a prefill CTA

struct Dims {
  int head_dim, v_head_dim;
  Launcher prefill, decode;
};

constexpr Dims kDims[] = {
    {64, 64, prefill_dims<64, 64>, decode_dims<64, 64>},
    {128, 128, prefill_dims<128, 128>, decode_dims<128, 128>},
    {192, 128, prefill_dims<192, 128>, decode_dims<192, 128>},
    {256, 256, prefill_dims<256, 256>, decode_dims<256, 256>},
};

const Dims* find(int head_dim, int v_head_dim) {
  for (const Dims& dims : kDims)
    if (dims.head_dim == head_dim && dims.v_head_dim == v_head_dim) return &dims;
  return nullptr;
}

}  // namespace

const char* attention_lacks(int group_size, int head_dim, int v_head_dim, DType dtype,
                            DType kv_dtype) {
  if (group_size > kMaxGroupSize)
    return "its attention kernels take at most 128 query heads per KV head";
  if (!find(head_dim, v_head_dim))
    return "its attention kernels take head dims 64/64, 128/128, 192/128 and 256/256";
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16)
    return "its attention kernels take bfloat16 and float16 queries";
  if (kv_dtype != dtype && kv_dtype != DType::kFloat8)
    return "its attention kernels take pools in the queries' dtype or float8_e4m3fn";
  return nullptr;
}

int decode_splits(const AttentionParams& p) {
  return max_decode_splits(p.window, p.q_len, int64_t(p.max_pages) * p.page_size);
}

int prefill(const AttentionParams& p, const Device& device, Stream stream) {
  if (p.total_q == 0 || p.num_seqs == 0) return 0;
  return find(p.head_dim, p.v_head_dim)->prefill(p, device, stream);
}

int decode(const AttentionParams& p, const Device& device, Stream stream) {
  if (p.num_seqs == 0) return 0;
  const int error = find(p.head_dim, p.v_head_dim)->decode(p, device, stream);
  if (error || p.num_splits == 1) return error;
  const auto combine = p.dtype == DType::kBFloat16 ? smxx_combine::launch<ptx::Half::kBf16>
                                                   : smxx_combine::launch<ptx::Half::kFp16>;
  return int(combine(p, device, static_cast<ptx::Stream>(stream)));
}

}  // namespace swa::cuda
