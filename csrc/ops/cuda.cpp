// torch.ops.swa_attn._native_* for CUDA tensors: fill the kernels' parameters, launch on the
// current stream. Arguments were checked in Python; values stay on the device. Pinned host tensors
// are used through their own address, which a GPU shares.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <map>
#include <mutex>
#include <string>

#include "cuda/fill_params.h"
#include "cuda/kernels/kernels.h"
#include "ops/tensors.h"

// Weak: libtorch_cuda.so has it, and where torch is a CPU build the library must load without.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                            void** stream);

namespace swa::ops {

namespace {

using cuda::DType;
using cuda::TensorView;
using torch::headeronly::ScalarType;

TensorView view(const Tensor& x) {
  TensorView found{};
  found.data = bytes(x);
  found.dtype = dtype_of<DType>(x);
  found.dims = int(x.dim());
  for (int i = 0; i < found.dims; ++i) {
    found.size[i] = x.size(i);
    found.stride[i] = x.stride(i);
  }
  return found;
}

TensorView view(const OptionalTensor& x) { return x ? view(*x) : TensorView{}; }

// What a device is does not change: asked once.
cuda::Device device_facts(int32_t index) {
  static std::mutex mutex;
  static std::map<int32_t, cuda::Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) return found->second;
  cuda::Device device{};
  const int error = cuda::query_device(index, &device);
  STD_TORCH_CHECK(error == 0, "swa_attn: CUDA device ", index, ": ", cuda::error_text(error));
  return known[index] = device;
}

// The device and the current stream of a tensor, for the time of a launch.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x) : index_(x.get_device_index()), guard_(index_) {}

  cuda::Device device() const { return device_facts(index_); }

  cuda::Stream stream() const {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "swa_attn: this torch has no CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

void check(const char* op, int error) {
  STD_TORCH_CHECK(error == 0, "swa_attn.", op, ": ", cuda::error_text(error));
}

cuda::AttentionParams attention(const char* op, const Tensor& q, const Tensor& k_cache,
                                const Tensor& v_cache, const Tensor& block_table,
                                const Tensor& seqlens_k, const OptionalTensor& cu_seqlens_q,
                                double softmax_scale, int64_t window, double softcap,
                                const OptionalTensor& sinks, const OptionalTensor& k_scale,
                                const OptionalTensor& v_scale, const OptionalTensor& k_host_cache,
                                const OptionalTensor& v_host_cache, const Tensor& out,
                                const Tensor& lse) {
  cuda::AttentionViews views{};
  views.q = view(q);
  views.out = view(out);
  views.lse = view(lse);
  views.block_table = view(block_table);
  views.seqlens_k = view(seqlens_k);
  views.cu_seqlens_q = view(cu_seqlens_q);
  views.sinks = view(sinks);
  views.k = {view(k_cache), view(k_host_cache), view(k_scale)};
  views.v = {view(v_cache), view(v_host_cache), view(v_scale)};
  const cuda::AttentionParams p = cuda::attention_params(views, {softmax_scale, softcap, window});
  const char* lacks =
      cuda::attention_lacks(p.group_size, p.head_dim, p.v_head_dim, p.dtype, p.kv_dtype);
  STD_TORCH_CHECK(!lacks, "swa_attn.", op, ": ", lacks ? lacks : "");
  return p;
}

void prefill(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seqlens_k,
             Tensor cu_seqlens_q, double softmax_scale, int64_t window, double softcap,
             OptionalTensor sinks, OptionalTensor k_scale, OptionalTensor v_scale,
             OptionalTensor k_host_cache, OptionalTensor v_host_cache, Tensor out, Tensor lse) {
  const cuda::AttentionParams p =
      attention("prefill", q, k_cache, v_cache, block_table, seqlens_k, cu_seqlens_q, softmax_scale,
                window, softcap, sinks, k_scale, v_scale, k_host_cache, v_host_cache, out, lse);
  const OnDevice on(q);
  check("prefill", cuda::prefill(p, on.device(), on.stream()));
}

void decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seqlens_k,
            double softmax_scale, int64_t window, double softcap, OptionalTensor sinks,
            OptionalTensor k_scale, OptionalTensor v_scale, OptionalTensor k_host_cache,
            OptionalTensor v_host_cache, Tensor out, Tensor lse) {
  cuda::AttentionParams p =
      attention("decode", q, k_cache, v_cache, block_table, seqlens_k, std::nullopt, softmax_scale,
                window, softcap, sinks, k_scale, v_scale, k_host_cache, v_host_cache, out, lse);
  const OnDevice on(q);
  p.num_splits = cuda::decode_splits(p);
  if (p.num_splits == 1) return check("decode", cuda::decode(p, on.device(), on.stream()));
  // Freed once the launch is queued: torch's allocator hands it out again only behind this stream.
  const int64_t rows = cuda::partial_rows(p);
  const Tensor workspace =
      torch::stable::new_empty(q, {rows * (p.v_head_dim + 1)}, ScalarType::Float);
  p.partial_out = static_cast<float*>(workspace.data_ptr());
  p.partial_lse = p.partial_out + rows * p.v_head_dim;
  check("decode", cuda::decode(p, on.device(), on.stream()));
}

void append_kv(Tensor key, Tensor value, Tensor k_cache, Tensor v_cache, Tensor slot_mapping,
               OptionalTensor k_scale, OptionalTensor v_scale, OptionalTensor k_host_cache,
               OptionalTensor v_host_cache) {
  const cuda::AppendParams p =
      cuda::append_params({view(key),
                           view(value),
                           view(slot_mapping),
                           {view(k_cache), view(k_host_cache), view(k_scale)},
                           {view(v_cache), view(v_host_cache), view(v_scale)}});
  const OnDevice on(key);
  check("append_kv", cuda::append_kv(p, on.stream()));
}

void copy_pages(Tensor src, Tensor dst, Tensor src_pages, Tensor dst_pages,
                OptionalTensor src_scale, OptionalTensor dst_scale) {
  const cuda::CopyParams p = cuda::copy_params(
      {view(src), view(dst), view(src_pages), view(dst_pages), view(src_scale), view(dst_scale)});
  const OnDevice on(src.is_cuda() ? src : dst);
  check("copy_pages", cuda::copy_pages(p, on.device(), on.stream()));
}

void merge_states(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b, OptionalTensor sinks,
                  Tensor out, Tensor lse) {
  const cuda::MergeParams p = cuda::merge_params(
      {view(out_a), view(lse_a), view(out_b), view(lse_b), view(sinks), view(out), view(lse)});
  const OnDevice on(out);
  check("merge_states", cuda::merge_states(p, on.stream()));
}

// Empty: there are kernels for it.
std::string attention_lacks(int64_t group_size, int64_t head_dim, int64_t v_head_dim, int64_t dtype,
                            int64_t kv_dtype) {
  const char* reason = cuda::attention_lacks(int(group_size), int(head_dim), int(v_head_dim),
                                             DType(dtype), DType(kv_dtype));
  return reason ? reason : "";
}

}  // namespace

}  // namespace swa::ops

STABLE_TORCH_LIBRARY_IMPL(swa_attn, CUDA, m) {
  m.impl("_native_append_kv", TORCH_BOX(&swa::ops::append_kv));
  m.impl("_native_prefill", TORCH_BOX(&swa::ops::prefill));
  m.impl("_native_decode", TORCH_BOX(&swa::ops::decode));
  m.impl("_native_merge_states", TORCH_BOX(&swa::ops::merge_states));
  m.impl("_native_copy_pages", TORCH_BOX(&swa::ops::copy_pages));
}

STABLE_TORCH_LIBRARY_IMPL(swa_attn, CompositeImplicitAutograd, m) {
  m.impl("_native_cuda_attention_lacks", TORCH_BOX(&swa::ops::attention_lacks));
}
