// prefill and decode under their names, for the emulated backend of the tests.
#include <limits>
#include <vector>

#include "cuda/emulated/arguments.h"
#include "cuda/kernels/kernels.h"
#include "emulation/launch.hpp"

namespace swa::cuda::emulated {

static AttentionParams params(const emu::Args& a, const TensorView& cu_seqlens_q) {
  return attention_params(
      {view(a, "q"), view(a, "out"), view(a, "lse"), view(a, "block_table"), view(a, "seqlens_k"),
       cu_seqlens_q, view(a, "sinks"), cache_views(a, "k"), cache_views(a, "v")},
      {a.number("softmax_scale"), a.number("softcap"), a.integer64("window")});
}

// What a card's allocator would give: memory full of NaN, known to the emulator.
class Workspace {
 public:
  explicit Workspace(const std::string& name, int64_t count)
      : values_(size_t(count), std::numeric_limits<float>::quiet_NaN()) {
    emu::active_session().memory.add(values_.data(), values_.size() * sizeof(float), name,
                                     "workspace", true);
  }
  float* data() { return values_.data(); }

 private:
  std::vector<float> values_;
};

static const emu::Registration prefill_op("prefill", [](const emu::Args& a) {
  check(prefill(params(a, view(a, "cu_seqlens_q")), device(a), nullptr));
});

static const emu::Registration decode_op("decode", [](const emu::Args& a) {
  AttentionParams p = params(a, {});
  p.num_splits = decode_splits(p);
  if (p.num_splits == 1) return check(decode(p, device(a), nullptr));
  Workspace partial_out("partial_out", partial_rows(p) * p.v_head_dim);
  Workspace partial_lse("partial_lse", partial_rows(p));
  p.partial_out = partial_out.data();
  p.partial_lse = partial_lse.data();
  check(decode(p, device(a), nullptr));
});

// Writes the reason, zero-terminated, into `reason`: nothing when there is a kernel.
static const emu::Registration lacks_op("attention_lacks", [](const emu::Args& a) {
  const char* reason =
      attention_lacks(a.integer("group_size"), a.integer("head_dim"), a.integer("v_head_dim"),
                      DType(a.integer("dtype")), DType(a.integer("kv_dtype")));
  const std::string text = reason ? reason : "";
  text.copy(a.pointer<char>("reason"), size_t(a.integer("capacity")));
});

}  // namespace swa::cuda::emulated
