// What the emulator found wrong: structured reports, collected per session.
#pragma once
#include <mutex>
#include <string>
#include <vector>

#include "config.hpp"
#include "source_location.hpp"

namespace swa::emu {

enum class Kind {
  kReadAfterWrite,
  kWriteAfterWrite,
  kWriteAfterRead,
  kInFlight,       // shared memory touched while an asynchronous copy to it is under way
  kUninitialized,  // shared memory read that nobody wrote
  kProxyFence,     // generic write, then asynchronous-proxy access, no fence.proxy.async between
  kMbarrier,       // use before init, without synchronization, too many arrivals ...
  kMbarrierFence,  // mbarrier.init not made visible to the asynchronous proxy
  kBarrier,        // wrong id or count, arriving twice
  kDivergence,     // lanes or warps execute different collectives or barriers
  kDeadlock,
  kOutOfBounds,
  kReadOnly,
  kMisaligned,
  kMemoryFault,     // a raw pointer left shared memory
  kWgmma,           // missing wgmma.fence, accumulator touched in flight, bad descriptor ...
  kNeverWaited,     // an asynchronous operation still pending at exit
  kExitedPeer,      // access to a CTA of the cluster that has exited
  kGridDependency,  // a dependent kernel ahead of the one that it depends on
  kInvalid,         // an argument that the instruction does not allow
};
const char* to_string(Kind kind);

struct Report {
  Kind kind;
  std::string text;  // self-contained: names the access, the line, and for races the other access
  Loc where;         // the access that showed the problem; line 0 when there is none
  Loc other;         // the earlier access it conflicts with; line 0 when there is none
  Dim3 block;
  int thread = -1;  // linear index in the block; -1: not a thread
};

// Collects reports from all host threads; equal ones (kind and both lines) are kept once.
class ReportList {
 public:
  void add(Report report, int limit);
  const std::vector<Report>& kept() const { return kept_; }
  size_t distinct() const { return seen_.size(); }

 private:
  std::mutex mutex_;
  std::vector<Report> kept_;
  std::vector<Report> seen_;  // without text
};

std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

// Records a problem and goes on.
void report(Kind kind, Loc where, Loc other, std::string text);
// Records a problem after which going on makes no sense: the launch stops, its fibers are abandoned
// without unwinding.
[[noreturn]] void fail(Kind kind, Loc where, std::string text);

// Thrown out of a launch that was stopped by fail(); the reports are in the session.
struct Stopped {};

}  // namespace swa::emu
