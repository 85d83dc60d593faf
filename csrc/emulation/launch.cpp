#include "launch.hpp"

#include <algorithm>
#include <csignal>
#include <stdexcept>
#include <thread>

#include "machine.hpp"
#include "scheduler.hpp"

namespace swa::emu {

thread_local Machine* current_machine = nullptr;

std::string name_of(const Thread& t) {
  const Dim3 b = t.block->idx;
  return format("block (%u,%u,%u) thread %d (warp %d lane %d)", b.x, b.y, b.z, t.linear,
                t.linear / 32, t.lane);
}

namespace {

thread_local Session* session_of_thread = nullptr;

constexpr unsigned kMaxThreadsPerBlock = 1024, kMaxClusterSize = 16;

void set_up_thread(Machine& m, Thread& t, Warp& warp, unsigned linear, size_t index) {
  t.idx = unflatten(m.launch->shape.block, linear);
  t.block = warp.block;
  t.warp = &warp;
  t.lane = int(linear % 32);
  t.linear = int(linear);
  t.entity = int(index);
  t.state = State::kReady;
  t.cp_async.clear();
  t.cp_async_group = t.bulk_group = t.fenced_clock = t.epoch = 0;
  t.waited_for_grid = false;
  fiber_make(t.fiber, m.stacks.low(index), m.stacks.bytes_each(), thread_main, &t);
}

void set_up_block(Machine& m, unsigned rank, uint64_t linear_block) {
  const LaunchShape& shape = m.launch->shape;
  const auto num_threads = unsigned(shape.block.count()), num_warps = (num_threads + 31) / 32;
  Block& b = m.blocks[rank];
  b.idx = unflatten(shape.grid, linear_block);
  b.rank = int(rank);
  b.num_threads = b.live = num_threads;
  b.smem_bytes = shape.smem_bytes;
  b.smem = m.arenas[rank]->place(shape.smem_bytes);
  if (m.config.poison) std::fill_n(b.smem, shape.smem_bytes, uint8_t(0xff));
  if (m.config.race) b.shadow.reset(shape.smem_bytes, int(2 * m.warps.size() + 1));
  for (unsigned k = 0; k < num_warps; ++k) {
    Warp& warp = m.warps[rank * num_warps + k];
    warp.block = &b;
    warp.id = int(k);
    warp.global_id = int(rank * num_warps + k);
    const size_t first = size_t(rank) * num_threads + k * 32;
    warp.threads = &m.threads[first];
    const unsigned lanes = std::min(32u, num_threads - k * 32);
    warp.full_mask = warp.ready = lanes == 32 ? kFullMask : (1u << lanes) - 1;
    b.warps.push_back(&warp);
    for (unsigned lane = 0; lane < lanes; ++lane)
      set_up_thread(m, warp.lane(int(lane)), warp, k * 32 + lane, first + lane);
  }
}

void set_up_cluster(Machine& m, uint64_t index) {
  const LaunchShape& shape = m.launch->shape;
  const size_t cluster = shape.cluster, num_threads = cluster * shape.block.count();
  const size_t num_warps = cluster * ((shape.block.count() + 31) / 32);
  // The schedule depends on (seed, cluster), not on the host thread: every failure can be repeated.
  m.random_state = (m.config.seed * 0x9e3779b97f4a7c15ull) ^ (index * 0xbf58476d1ce4e5b9ull + 1);
  m.stacks.reserve(num_threads, m.config.stack_bytes);
  m.threads.resize(num_threads);
  m.warps = std::vector<Warp>(num_warps);
  m.blocks = std::vector<Block>(cluster);
  m.in_flight.clear();
  m.bulk_stores.clear();
  m.clocks.reset(int(num_threads), int(num_warps), m.config.race);
  m.cluster_barrier = {};
  m.cluster_barrier.awaited_phase.assign(num_threads, 0);
  while (m.arenas.size() < cluster) m.arenas.push_back(std::make_unique<SharedArena>());
  m.live = unsigned(num_threads);
  m.current_warp = 0;
  m.current = nullptr;
  m.abandoned = false;
  for (unsigned rank = 0; rank < cluster; ++rank) set_up_block(m, rank, index * cluster + rank);
}

void check_at_exit(Machine& m) {
  check_wgmma_at_exit();
  check_remote_accesses_at_exit();
  for (const Block& b : m.blocks)
    for (const auto& [address, barrier] : b.mbarriers)
      if (barrier.pending_bytes)
        report(Kind::kNeverWaited, barrier.loc, {},
               format("kernel ends with %lld pending tx bytes on mbarrier smem+%u",
                      static_cast<long long>(barrier.pending_bytes), smem_offset(address)));
  if (!m.bulk_stores.empty())
    report(Kind::kNeverWaited, m.bulk_stores[0].loc, {},
           "kernel ends with bulk stores from " + to_string(m.bulk_stores[0].loc) +
               " never waited for");
}

void run_cluster(Machine& m, uint64_t index) {
  set_up_cluster(m, index);
  fiber_adopt_host_stack(m.main);
  if (sigsetjmp(m.fault, 1)) {  // a fiber left its memory
    m.current = nullptr;
    m.launch->stop = true;
    return;
  }
  try {
    run_to_completion();
    if (m.abandoned) return;
    check_at_exit(m);
    for (Warp& warp : m.warps) warp.requests.flush();
  } catch (const Stopped&) {  // fail() has recorded why
  }
}

void on_memory_fault(int signal, siginfo_t* info, void*) {
  Machine* m = current_machine;
  if (m && m->current) {
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    const auto smem = reinterpret_cast<uintptr_t>(m->current->block->smem);
    const bool near = address + SharedArena::kGuardBytes >= smem &&
                      address < smem + SharedArena::kBytes + SharedArena::kGuardBytes;
    report(
        Kind::kMemoryFault, {}, {},
        format("memory fault (signal %d) at %p%s by %s", signal, info->si_addr,
               near ? format(" (shared memory offset %lld)", static_cast<long long>(address - smem))
                          .c_str()
                    : "",
               name_of(*m->current).c_str()));
    siglongjmp(m->fault, 1);
  }
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

class FaultHandler {
 public:
  FaultHandler() {
    struct sigaction action = {};
    action.sa_sigaction = on_memory_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &old_segv_);
    sigaction(SIGBUS, &action, &old_bus_);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &old_segv_, nullptr);
    sigaction(SIGBUS, &old_bus_, nullptr);
  }

 private:
  struct sigaction old_segv_, old_bus_;
};

// Signal handlers run on a stack of their own: the fault may be an overrun of the fiber's.
class AlternateStack {
 public:
  AlternateStack() : memory_(64 << 10) {
    stack_t stack = {};
    stack.ss_sp = memory_.data();
    stack.ss_size = memory_.size();
    sigaltstack(&stack, &old_);
  }
  ~AlternateStack() { sigaltstack(&old_, nullptr); }

 private:
  std::vector<char> memory_;
  stack_t old_ = {};
};

// The i-th cluster to run. A card promises no order: what one CTA writes over another's results
// shows in one of them.
uint64_t in_order(const Config& config, uint64_t num_clusters, uint64_t i) {
  if (config.order == Order::kForward) return i;
  if (config.order == Order::kReverse) return num_clusters - 1 - i;
  return (i + config.seed) % num_clusters;
}

void run_clusters(Launch& launch, Session& session) {
  static thread_local std::unique_ptr<Machine>
      kept;  // stacks and arenas are reused between launches
  if (!kept) kept = std::make_unique<Machine>();
  const AlternateStack alternate_stack;
  Machine& m = *kept;
  m.launch = &launch;
  m.session = &session;
  m.config = session.config;
  m.last_buffer = nullptr;
  m.counts = {};
  current_machine = &m;
  for (uint64_t i; (i = launch.next_cluster++) < launch.num_clusters && !launch.stop;)
    run_cluster(m, in_order(m.config, launch.num_clusters, i));
  current_machine = nullptr;
  static std::mutex mutex;
  std::lock_guard<std::mutex> guard(mutex);
  session.counts.add(m.counts);
}

void check_shape(const LaunchShape& s) {
  auto require = [](bool ok, const std::string& text) {
    if (!ok) throw std::invalid_argument("launch: " + text);
  };
  require(s.grid.count() > 0, "the grid is empty");
  require(s.block.count() > 0 && s.block.count() <= kMaxThreadsPerBlock,
          format("%llu threads per block, a GPU takes 1..1024",
                 static_cast<unsigned long long>(s.block.count())));
  require(s.cluster >= 1 && s.cluster <= kMaxClusterSize && s.grid.x % s.cluster == 0,
          format("grid.x %u is not a multiple of the cluster size %u", s.grid.x, s.cluster));
  require(
      s.smem_bytes <= 227 << 10,
      format("%zu bytes of shared memory per block, a GPU gives at most 227 KiB", s.smem_bytes));
}

}  // namespace

SessionScope::SessionScope(Session& session) : previous_(session_of_thread) {
  session_of_thread = &session;
}
SessionScope::~SessionScope() { session_of_thread = previous_; }

Session& active_session() {
  if (!session_of_thread) throw std::logic_error("no emulator session is active on this thread");
  return *session_of_thread;
}

void launch(LaunchShape shape, std::function<void()> body) {
  check_shape(shape);
  Session& session = active_session();
  Launch launch;
  launch.shape = shape;
  launch.body = std::move(body);
  launch.num_clusters = shape.grid.count() / shape.cluster;
  const auto workers =
      std::min<uint64_t>(uint64_t(std::max(1, session.config.workers)), launch.num_clusters);
  const FaultHandler fault_handler;
  std::vector<std::thread> threads;
  for (uint64_t i = 1; i < workers; ++i)
    threads.emplace_back(run_clusters, std::ref(launch), std::ref(session));
  run_clusters(launch, session);
  for (std::thread& t : threads) t.join();
  if (launch.stop) throw Stopped{};
}

}  // namespace swa::emu
