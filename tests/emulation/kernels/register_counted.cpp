// The kernels of counted.cuh under their names, for the Python side, and a launch that must fail.
#include "counted.cuh"
#include "emulation/launch.hpp"
#include "emulation/registry.hpp"
#include "one_warp.hpp"

namespace swa::test {
namespace {

using emu::Args;
using emu::Registration;

const Registration global_loads("counted/global_loads", [](const Args& a) {
  one_warp(0, counted::global_loads, a.pointer<const uint8_t>("in"), a.integer("stride"),
           a.integer("times"), a.integer("active_lanes"), a.pointer<uint32_t>("out"));
});
template <class V>
void run_shared(const Args& a) {
  one_warp(sizeof(counted::Storage), counted::shared_accesses<V>, a.integer("stride"));
}
const Registration shared_4("counted/shared_4", run_shared<uint32_t>);
const Registration shared_8("counted/shared_8", run_shared<ptx::U32x2>);
const Registration shared_16("counted/shared_16", run_shared<ptx::U32x4>);
const Registration counted_cp_async("counted/cp_async", [](const Args& a) {
  one_warp(sizeof(counted::Storage), counted::cp_async, a.pointer<const uint8_t>("device_pages"),
           a.pointer<const uint8_t>("host_pages"), a.integer("split"), a.integer("end"),
           a.integer("stride"));
});
const Registration counted_ldmatrix("counted/ldmatrix", [](const Args& a) {
  one_warp(sizeof(counted::Storage), counted::ldmatrix, a.integer("stride"));
});
const Registration arithmetic("counted/arithmetic", [](const Args& a) {
  ptx::launch({1, 64, 0}, counted::arithmetic, a.pointer<float>("out"));
});

// A launch that no GPU would take.
const Registration bad_launch("bad_launch", [](const Args& a) {
  emu::launch({unsigned(a.integer("grid")), unsigned(a.integer("threads")),
               size_t(a.integer("smem_bytes")), unsigned(a.integer("cluster"))},
              [] {});
});

}  // namespace
}  // namespace swa::test
