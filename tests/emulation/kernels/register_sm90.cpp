// The kernels of primitives_sm90.cuh and misc_sm90.cuh under their names, for the Python side;
// built for the emulator and for a card.
#include "emulation/registry.hpp"
#include "misc_sm90.cuh"
#include "one_warp.hpp"
#include "primitives_sm90.cuh"

namespace swa::test {
namespace {

using emu::Args;
using emu::Registration;

const Registration stmatrix("stmatrix", [](const Args& a) {
  one_warp(1024, primitives::stmatrix, a.pointer<const uint32_t>("in"), a.pointer<uint32_t>("out"));
});

const Registration elect("elect", [](const Args& a) {
  one_warp(0, primitives::elect, a.pointer<uint32_t>("out"));
});
const Registration e4m3("e4m3", [](const Args& a) {
  ptx::launch({256, 256}, primitives::e4m3, a.pointer<uint32_t>("out"));
});

// The tensor is given as sizes and byte strides; dimension 0 is contiguous.
ptx::TensorMapSpec spec_of(const Args& a, const void* base) {
  ptx::TensorMapSpec spec{};
  spec.base = base;
  spec.type = ptx::ElementType::kBf16;
  spec.rank = a.integer("rank");
  spec.swizzle = ptx::Swizzle(a.integer("swizzle"));
  for (int i = 0; i < spec.rank; ++i) {
    const std::string n = std::to_string(i);
    spec.size[i] = uint64_t(a.integer("size" + n));
    spec.box[i] = uint32_t(a.integer("box" + n));
    if (i) spec.stride_bytes[i - 1] = uint64_t(a.integer("stride" + n));
  }
  return spec;
}

int bytes_of_box(const ptx::TensorMapSpec& spec) {
  int bytes = 2;
  for (int i = 0; i < spec.rank; ++i) bytes *= int(spec.box[i]);
  return bytes;
}

const Registration tma("tma", [](const Args& a) {
  const ptx::TensorMapSpec spec = spec_of(a, a.pointer<const void>("in"));
  one_warp(sizeof(primitives::BoxStorage), primitives::tma, ptx::encode_tensor_map(spec),
           a.integer("instruction_rank"), a.integer("c0"), a.integer("c1"), a.integer("c2"),
           a.integer("c3"), a.pointer<uint32_t>("out"), bytes_of_box(spec));
});
const Registration tma_store("tma_store", [](const Args& a) {
  const ptx::TensorMapSpec spec = spec_of(a, a.pointer<void>("out"));
  one_warp(sizeof(primitives::BoxStorage), primitives::tma_store, ptx::encode_tensor_map(spec),
           a.pointer<const uint32_t>("in"), a.integer("c0"), a.integer("c1"), a.integer("c2"),
           bytes_of_box(spec));
});

template <int kN, ptx::Half kType, ptx::Major kB, bool kAInRegisters>
void run_wgmma(const Args& a) {
  auto map = [](const void* base, uint64_t columns, uint64_t rows, uint32_t box_rows) {
    return ptx::encode_tensor_map({base,
                                   ptx::ElementType::kBf16,
                                   2,
                                   {columns, rows},
                                   {columns * 2},
                                   {64, box_rows},
                                   ptx::Swizzle::k128});
  };
  constexpr uint64_t kDepth = primitives::kDepth;
  const void* b = a.pointer<const void>("b");
  ptx::launch({1, 128, sizeof(primitives::WgmmaStorage<kN>)},
              primitives::wgmma<kN, kType, kB, kAInRegisters>,
              map(a.pointer<const void>("a"), kDepth, 64, 64),
              kB == ptx::Major::kK ? map(b, kDepth, kN, kN) : map(b, kN, kDepth, kDepth),
              a.pointer<float>("out"));
}

template <int kN, ptx::Half kType>
struct WgmmaRegistrations {
  explicit WgmmaRegistrations(const std::string& prefix)
      : k_ss(prefix + "_k_ss", run_wgmma<kN, kType, ptx::Major::kK, false>),
        k_rs(prefix + "_k_rs", run_wgmma<kN, kType, ptx::Major::kK, true>),
        mn_ss(prefix + "_mn_ss", run_wgmma<kN, kType, ptx::Major::kMn, false>),
        mn_rs(prefix + "_mn_rs", run_wgmma<kN, kType, ptx::Major::kMn, true>) {}
  Registration k_ss, k_rs, mn_ss, mn_rs;
};
template <int kN, ptx::Half kType>
constexpr auto run_wgmma_edge = run_wgmma<kN, kType, ptx::Major::kK, false>;
const Registration wgmma_edges[] = {
    {"wgmma_16_bf16_k_ss", run_wgmma_edge<16, ptx::Half::kBf16>},
    {"wgmma_32_bf16_k_ss", run_wgmma_edge<32, ptx::Half::kBf16>},
    {"wgmma_48_bf16_k_ss", run_wgmma_edge<48, ptx::Half::kBf16>},
    {"wgmma_16_fp16_k_ss", run_wgmma_edge<16, ptx::Half::kFp16>},
    {"wgmma_32_fp16_k_ss", run_wgmma_edge<32, ptx::Half::kFp16>},
    {"wgmma_48_fp16_k_ss", run_wgmma_edge<48, ptx::Half::kFp16>},
};
const WgmmaRegistrations<64, ptx::Half::kBf16> wgmma_64_bf16("wgmma_64_bf16");
const WgmmaRegistrations<128, ptx::Half::kBf16> wgmma_128_bf16("wgmma_128_bf16");
const WgmmaRegistrations<64, ptx::Half::kFp16> wgmma_64_fp16("wgmma_64_fp16");
const WgmmaRegistrations<128, ptx::Half::kFp16> wgmma_128_fp16("wgmma_128_fp16");

const Registration cluster_sum("cluster_sum", [](const Args& a) {
  const int num_tiles = a.integer("num_tiles");
  const auto map = ptx::encode_tensor_map({a.pointer<const void>("in"),
                                           ptx::ElementType::kBf16,
                                           2,
                                           {64, uint64_t(num_tiles) * 64},
                                           {128},
                                           {64, 32},
                                           ptx::Swizzle::k128});
  ptx::launch({2, 128, sizeof(misc::ClusterStorage), 2}, misc::cluster_sum, map,
              a.pointer<const float>("bias"), a.pointer<float>("out"), num_tiles);
});
const Registration dependent("dependent", [](const Args& a) {
  constexpr unsigned kBlocks = 64;
  ptx::LaunchConfig config{kBlocks, 32};
  ptx::launch(config, misc::primary, a.pointer<uint32_t>("words"));
  config.dependent = true;
  ptx::launch(config, misc::dependent, a.pointer<const uint32_t>("words"),
              a.pointer<uint32_t>("out"));
});
const Registration handover("handover", [](const Args& a) {
  ptx::launch({1, 64, sizeof(misc::HandoverStorage)}, misc::handover,
              a.pointer<const uint32_t>("in"), a.pointer<uint32_t>("out"));
});
const Registration phases("phases", [](const Args& a) {
  ptx::launch({1, 64, sizeof(misc::PhasesStorage)}, misc::phases, a.pointer<const uint32_t>("in"),
              a.pointer<uint32_t>("out"));
});

}  // namespace
}  // namespace swa::test
