// Runs the test kernels without Python and prints what they found and computed: for sanitizers and
// other machines.
#include <cstdio>
#include <cstring>

#include "attention_params.cuh"
#include "emulation/float16.hpp"
#include "emulation/launch.hpp"
#include "emulation/registry.hpp"

namespace swa {
namespace {

template <class T>
struct Array {  // 256-byte aligned, between unregistered bytes
  explicit Array(size_t n) : size(n), storage(n * sizeof(T) + 512) {
    auto address = reinterpret_cast<uintptr_t>(storage.data());
    data = reinterpret_cast<T*>((address + 255) / 256 * 256);
  }
  size_t size;
  std::vector<uint8_t> storage;
  T* data;
};

class Run {
 public:
  Run(emu::Async async, emu::Order order) {
    session.config.async = async;
    session.config.order = order;
  }
  template <class T>
  void buffer(const char* name, Array<T>& array, bool writable) {
    args.pointers[name] = array.data;
    session.memory.add(array.data, array.size * sizeof(T), name, name, writable);
  }
  // Prints the kinds of report, the counters and a hash of the result.
  template <class T>
  void go(const std::string& kernel, const Array<T>& result) {
    const emu::SessionScope scope(session);
    try {
      emu::find_kernel(kernel)(args);
    } catch (const emu::Stopped&) {
    }
    std::printf("%s:", kernel.c_str());
    for (const emu::Report& r : session.reports.kept())
      std::printf(" %s@%u", emu::to_string(r.kind), r.where.line);
    uint64_t hash = 0xcbf29ce484222325ull, bytes = 0;
    const auto* p = reinterpret_cast<const uint8_t*>(result.data);
    for (size_t i = 0; i < result.size * sizeof(T); ++i) hash = (hash ^ p[i]) * 0x100000001b3ull;
    for (const auto& [site, count] : session.counts.sites()) bytes += count.bytes;
    std::printf(" result %016llx bytes %llu\n", static_cast<unsigned long long>(hash),
                static_cast<unsigned long long>(bytes));
  }

  emu::Session session;
  emu::Args args;
};

void fill(Array<uint16_t>& a, uint32_t seed) {  // bf16 multiples of 1/8 in [-2, 2)
  for (size_t i = 0; i < a.size; ++i) {
    seed = seed * 1664525u + 1013904223u;
    a.data[i] = emu::float_to_bf16(float(int(seed >> 27)) / 8.f - 2.f);
  }
}

void attention(const char* kernel, emu::Async async, emu::Order order) {
  constexpr int kQLen = 100, kKLen = 150, kHeads = 2, kPages = 10, kRow = test::kHeadDim;
  Array<uint16_t> q(kQLen * kHeads * kRow), k(kPages * test::kPageSize * kRow), v(k.size),
      out(q.size);
  Array<int> table(kPages), cu(2), lengths(1);
  fill(q, 1);
  fill(k, 2);
  fill(v, 3);
  for (int i = 0; i < kPages; ++i) table.data[i] = (i * 7 + 3) % kPages;
  cu.data[0] = 0;
  cu.data[1] = kQLen;
  lengths.data[0] = kKLen;
  Run run(async, order);
  run.buffer("q", q, false);
  run.buffer("k_pages", k, false);
  run.buffer("v_pages", v, false);
  run.buffer("out", out, true);
  run.buffer("block_table", table, false);
  run.buffer("cu_seqlens_q", cu, false);
  run.buffer("seqlens_k", lengths, false);
  run.args.integers = {{"num_q_heads", kHeads}, {"num_kv_heads", 1}, {"max_pages", kPages},
                       {"num_pages", kPages},   {"window", 60},      {"num_seqs", 1},
                       {"max_q_len", kQLen},    {"total_q", kQLen}};
  run.args.numbers = {{"scale_log2", 0.18033688}};
  run.go(kernel, out);
}

void detectors(emu::Async async, emu::Order order) {
  for (const std::string& name : emu::kernel_names()) {
    if (name.rfind("detector/", 0) != 0 || name == "detector/wild_pointer")
      continue;  // sanitizers have their own say
    Array<uint32_t> source(1024), sink(1024);
    Run run(async, order);
    run.buffer("source", source, false);
    run.buffer("sink", sink, true);
    run.go(name, sink);
  }
}

}  // namespace
}  // namespace swa

int main() {
  using swa::emu::Async;
  using swa::emu::Order;
  for (auto [async, order] :
       {std::pair(Async::kLazy, Order::kForward), std::pair(Async::kEager, Order::kReverse),
        std::pair(Async::kRandom, Order::kRandom)}) {
    swa::detectors(async, order);
    swa::attention("fa_sm80", async, order);
    swa::attention("fa_sm90", async, order);
  }
}
