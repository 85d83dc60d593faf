// The attention test kernels under their names, for the Python side.
#include "emulation/registry.hpp"
#include "fa_sm80.cuh"
#include "ws_sm90.cuh"

namespace swa::test {

static AttentionParams params_from(const emu::Args& a) {
  return {a.pointer<const uint16_t>("q"),
          a.pointer<const uint16_t>("k_pages"),
          a.pointer<const uint16_t>("v_pages"),
          a.pointer<uint16_t>("out"),
          a.pointer<const int>("block_table"),
          a.pointer<const int>("cu_seqlens_q"),
          a.pointer<const int>("seqlens_k"),
          a.integer("num_q_heads"),
          a.integer("num_kv_heads"),
          a.integer("max_pages"),
          a.integer("num_pages"),
          a.integer("window"),
          a.number("scale_log2")};
}

static const emu::Registration attention_sm80("fa_sm80", [](const emu::Args& a) {
  fa80::launch(params_from(a), a.integer("num_seqs"), a.integer("max_q_len"), nullptr);
});

static const emu::Registration attention_sm90("fa_sm90", [](const emu::Args& a) {
  ws90::attention::launch(params_from(a), a.integer("total_q"), a.integer("num_seqs"),
                          a.integer("max_q_len"), nullptr);
});

static const emu::Registration gemm_sm90("gemm_sm90", [](const emu::Args& a) {
  ws90::gemm::launch(a.pointer<const void>("a"), a.pointer<const void>("b"),
                     a.pointer<float>("out"), a.integer("m"), a.integer("n"), a.integer("k"),
                     nullptr);
});

}  // namespace swa::test
