// The page ops under their names, for the emulated backend of the tests.
#include "cuda/emulated/arguments.h"
#include "cuda/kernels/kernels.h"

namespace swa::cuda::emulated {

static const emu::Registration append_op("append_kv", [](const emu::Args& a) {
  check(append_kv(append_params({view(a, "key"), view(a, "value"), view(a, "slot_mapping"),
                                 cache_views(a, "k"), cache_views(a, "v")}),
                  nullptr));
});

static const emu::Registration copy_op("copy_pages", [](const emu::Args& a) {
  check(copy_pages(copy_params({view(a, "src"), view(a, "dst"), view(a, "src_pages"),
                                view(a, "dst_pages"), view(a, "src_scale"), view(a, "dst_scale")}),
                   device(a), nullptr));
});

static const emu::Registration merge_op("merge_states", [](const emu::Args& a) {
  check(merge_states(
      merge_params({view(a, "out_a"), view(a, "lse_a"), view(a, "out_b"), view(a, "lse_b"),
                    view(a, "sinks"), view(a, "out"), view(a, "lse")}),
      nullptr));
});

}  // namespace swa::cuda::emulated
