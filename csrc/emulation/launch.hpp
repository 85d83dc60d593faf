// Sessions and launches: what to emulate with which memory, and the grid that is run.
#pragma once
#include <atomic>
#include <functional>
#include <mutex>

#include "config.hpp"
#include "counters.hpp"
#include "memory_map.hpp"
#include "report.hpp"

namespace swa::emu {

// The surroundings of one or more launches: registered memory in, reports and counts out.
struct Session {
  Config config;
  MemoryMap memory;
  ReportList reports;
  Counts counts;
};

// Makes a session the one that launches on this host thread use, for the lifetime of the scope.
class SessionScope {
 public:
  explicit SessionScope(Session& session);
  ~SessionScope();
  SessionScope(const SessionScope&) = delete;
  SessionScope& operator=(const SessionScope&) = delete;

 private:
  Session* previous_;
};
Session& active_session();  // throws std::logic_error when there is none

struct LaunchShape {
  Dim3 grid, block;
  size_t smem_bytes = 0;
  unsigned cluster = 1;    // CTAs per cluster, along x
  bool dependent = false;  // may start before the kernel ahead has ended
};

// One kernel launch, shared by the host threads that run its clusters.
struct Launch {
  LaunchShape shape;
  std::function<void()> body;  // what every thread executes
  uint64_t num_clusters = 0;
  std::atomic<uint64_t> next_cluster{0};
  std::atomic<bool> stop{false};
};

// Runs a grid in the active session. Throws Stopped after a fatal report, std::invalid_argument for
// a shape no GPU takes.
void launch(LaunchShape shape, std::function<void()> body);

}  // namespace swa::emu
