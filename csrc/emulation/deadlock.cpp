// The report of a launch in which no thread can go on.
#include <map>

#include "scheduler.hpp"

namespace swa::emu {
namespace {

std::string describe_wait(const Thread& t) {
  const std::string at = to_string(t.waits_at);
  switch (t.state) {
    case State::kDone:
      return "exited";
    case State::kAtBarrier: {
      const NamedBarrier& b = t.block->barriers[t.waits_for];
      return format("waiting at barrier %d (%u of %u arrived) %s", int(t.waits_for), b.arrived,
                    b.expected, at.c_str());
    }
    case State::kAtMbarrier: {
      const Mbarrier& b = t.block->mbarriers[uint32_t(t.waits_for)];
      return format(
          "waiting on mbarrier @smem+%u parity %d (phase %llu, pending arrivals %u of %u, pending "
          "tx %lld) %s",
          smem_offset(uint32_t(t.waits_for)), int(t.waits_detail),
          static_cast<unsigned long long>(b.phase), b.pending, b.expected,
          static_cast<long long>(b.pending_bytes), at.c_str());
    }
    case State::kInCollective: {
      uint32_t missing = 0;
      for (const Collective& c : t.warp->collectives)
        if (c.arrived && c.mask == t.waits_for) missing = c.mask & ~c.arrived;
      return format("waiting in warp collective %s mask 0x%08x, missing lanes 0x%08x, %s",
                    t.waits_in, uint32_t(t.waits_for), missing, at.c_str());
    }
    case State::kAtClusterBarrier:
      return "waiting at cluster barrier " + at;
    case State::kReady:
      return "ready";
  }
  return "";
}

// "0-3,7"
std::string ranges(const std::vector<int>& sorted) {
  std::string text;
  for (size_t i = 0; i < sorted.size();) {
    size_t j = i;
    while (j + 1 < sorted.size() && sorted[j + 1] == sorted[j] + 1) ++j;
    text += (text.empty() ? "" : ",") + std::to_string(sorted[i]);
    if (j > i) text += "-" + std::to_string(sorted[j]);
    i = j + 1;
  }
  return text;
}

}  // namespace

std::string deadlock_text() {
  Machine& m = machine();
  std::map<std::string, std::vector<int>> groups;
  for (const Thread& t : m.threads)
    groups[format("block (%u,%u,%u): ", t.block->idx.x, t.block->idx.y, t.block->idx.z) +
           describe_wait(t)]
        .push_back(t.linear);
  std::string text = format("deadlock: no thread can make progress (%u of %zu threads alive)\n",
                            m.live, m.threads.size());
  for (const auto& [wait, threads] : groups)
    text += "  threads " + ranges(threads) + ": " + wait + "\n";
  return text;
}

}  // namespace swa::emu
