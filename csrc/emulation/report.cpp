#include "report.hpp"

#include <cstdarg>
#include <cstdio>

#include "machine.hpp"

namespace swa::emu {

const char* to_string(Kind kind) {
  switch (kind) {
    case Kind::kReadAfterWrite:
      return "read-after-write";
    case Kind::kWriteAfterWrite:
      return "write-after-write";
    case Kind::kWriteAfterRead:
      return "write-after-read";
    case Kind::kInFlight:
      return "in-flight";
    case Kind::kUninitialized:
      return "uninitialized";
    case Kind::kProxyFence:
      return "proxy-fence";
    case Kind::kMbarrier:
      return "mbarrier";
    case Kind::kMbarrierFence:
      return "mbarrier-fence";
    case Kind::kBarrier:
      return "barrier";
    case Kind::kDivergence:
      return "divergence";
    case Kind::kDeadlock:
      return "deadlock";
    case Kind::kOutOfBounds:
      return "out-of-bounds";
    case Kind::kReadOnly:
      return "read-only";
    case Kind::kMisaligned:
      return "misaligned";
    case Kind::kMemoryFault:
      return "memory-fault";
    case Kind::kWgmma:
      return "wgmma";
    case Kind::kNeverWaited:
      return "never-waited";
    case Kind::kExitedPeer:
      return "exited-peer";
    case Kind::kGridDependency:
      return "grid-dependency";
    case Kind::kInvalid:
      return "invalid";
  }
  return "?";
}

void ReportList::add(Report report, int limit) {
  std::lock_guard<std::mutex> guard(mutex_);
  for (const Report& r : seen_)
    if (r.kind == report.kind && r.where == report.where && r.other == report.other) return;
  Report key = report;
  key.text.clear();
  seen_.push_back(key);
  if (int(kept_.size()) < limit) kept_.push_back(std::move(report));
}

std::string format(const char* pattern, ...) {
  char text[2048];
  va_list args;
  va_start(args, pattern);
  std::vsnprintf(text, sizeof text, pattern, args);
  va_end(args);
  return text;
}

void report(Kind kind, Loc where, Loc other, std::string text) {
  Machine& m = machine();
  Report r{kind, std::move(text), where, other, {}, -1};
  if (const Thread* t = m.current) {
    r.block = t->block->idx;
    r.thread = t->linear;
  }
  m.session->reports.add(std::move(r), m.config.max_reports);
}

void fail(Kind kind, Loc where, std::string text) {
  Machine& m = machine();
  Thread* t = m.current;
  report(kind, where, {}, text + (t ? "  [" + name_of(*t) + "]" : ""));
  m.abandoned = true;
  m.launch->stop = true;
  if (!t) throw Stopped{};
  m.current = nullptr;
  fiber_switch(t->fiber, m.main);
  __builtin_unreachable();
}

}  // namespace swa::emu
