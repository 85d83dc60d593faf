// The kernels of *_sm80.cuh under their names, for the Python side; built for the emulator and for
// a card.
#include "emulation/registry.hpp"
#include "misc_sm80.cuh"
#include "one_warp.hpp"
#include "primitives_sm80.cuh"

namespace swa::test {
namespace {

using emu::Args;
using emu::Registration;

const Registration ldmatrix("ldmatrix", [](const Args& a) {
  one_warp(sizeof(primitives::Tile), primitives::ldmatrix, a.pointer<const uint16_t>("in"),
           a.pointer<uint32_t>("out"));
});

template <ptx::Half kType>
void run_mma(const Args& a) {
  one_warp(0, primitives::mma<kType>, a.pointer<const uint32_t>("a"),
           a.pointer<const uint32_t>("b"), a.pointer<const float>("c"), a.pointer<float>("out"));
}
const Registration mma_bf16("mma_bf16", run_mma<ptx::Half::kBf16>);
const Registration mma_fp16("mma_fp16", run_mma<ptx::Half::kFp16>);

const Registration shuffle("shuffle", [](const Args& a) {
  one_warp(0, primitives::shuffle, a.pointer<const float>("in"), a.pointer<uint32_t>("out"));
});
const Registration math("math", [](const Args& a) {
  one_warp(0, primitives::math, a.pointer<const float>("in"), a.pointer<float>("out"));
});
const Registration ld_st("ld_st", [](const Args& a) {
  one_warp(1024, primitives::ld_st, a.pointer<const uint32_t>("in4"),
           a.pointer<const uint32_t>("in8"), a.pointer<const uint32_t>("in16"),
           a.pointer<uint32_t>("out4"), a.pointer<uint32_t>("out8"), a.pointer<uint32_t>("out16"));
});

const Registration cp_async("cp_async", [](const Args& a) {
  const int bytes = a.integer("bytes");
  one_warp(512,
           bytes == 16  ? primitives::cp_async<16>
           : bytes == 8 ? primitives::cp_async<8>
                        : primitives::cp_async<4>,
           a.pointer<const uint8_t>("in"), a.pointer<const int>("sizes"),
           a.pointer<uint32_t>("out"));
});

const Registration exchange("exchange", [](const Args& a) {
  ptx::launch({unsigned(a.integer("grid")), 128, sizeof(misc::ExchangeStorage)}, misc::exchange,
              a.pointer<const int>("in"), a.pointer<int>("out"));
});
const Registration sweep("sweep", [](const Args& a) {
  ptx::launch({2, 64, 0}, misc::sweep, a.pointer<const float>("in"), a.pointer<float>("out"),
              a.integer("num_values"));
});
const Registration cp_async_groups("cp_async_groups", [](const Args& a) {
  one_warp(sizeof(misc::GroupsStorage), misc::cp_async_groups, a.pointer<const uint32_t>("in"),
           a.pointer<uint32_t>("out"));
});

}  // namespace
}  // namespace swa::test
