#include "cp_async.hpp"

#include <cstring>

#include "machine.hpp"

namespace swa::emu {
namespace {

void take_data(CpAsync& op) {
  if (op.src_bytes) std::memcpy(op.data, op.src, op.src_bytes);
  std::memset(op.data + op.src_bytes, 0, size_t(op.bytes - op.src_bytes));
  op.data_taken = true;
}

// The data is there as of `clock` of `writer`.
void land(const Thread& t, CpAsync& op, int writer, uint32_t clock) {
  if (!op.data_taken) {
    take_data(op);
    std::memcpy(smem_at(*t.block, op.dst, op.bytes, "cp.async destination", op.loc), op.data,
                op.bytes);
  }
  if (machine().config.race)
    shadow_set_write(*t.block, smem_offset(op.dst), op.bytes, writer, clock, Shadow::kCpAsync,
                     op.loc);
}

}  // namespace

void cp_async(uint32_t dst, const void* src, int bytes, int src_bytes, Loc loc) {
  Machine& m = machine();
  Thread& t = self();
  if (src_bytes < 0 || src_bytes > bytes)
    fail(Kind::kInvalid, loc,
         format("cp.async at %s: src-size %d is not in 0..%d", to_string(loc).c_str(), src_bytes,
                bytes));
  check_aligned(dst, size_t(bytes), "cp.async shared destination", loc);
  check_aligned(reinterpret_cast<uintptr_t>(src), size_t(bytes), "cp.async global source", loc);
  const Buffer* buffer = src_bytes ? &check_global(src, size_t(src_bytes), false, loc) : nullptr;
  uint8_t* destination = smem_at(*t.block, dst, size_t(bytes), "cp.async destination", loc);
  count_cp_async(dst, bytes, src, src_bytes, buffer ? buffer->tag : 0, loc);
  if (m.config.race) {
    const uint32_t offset = smem_offset(dst);
    shadow_check_write(
        {*t.block, offset, size_t(bytes), t.entity, m.clocks.of(t.entity), false, loc});
    shadow_set_write(*t.block, offset, size_t(bytes), t.entity, m.clocks.now(t.entity),
                     Shadow::kInFlight | Shadow::kCpAsync, loc);
  }
  CpAsync op{dst, src, uint16_t(bytes), uint16_t(src_bytes), t.cp_async_group, false, loc, {}};
  if (m.lands_now(
          2)) {  // the data is there at once; for the race checker it is in flight until waited for
    take_data(op);
    std::memcpy(destination, op.data, size_t(bytes));
  } else if (m.config.poison) {
    std::memset(destination, 0xff, size_t(bytes));
  }
  t.cp_async.push_back(op);
}

void cp_async_commit() { self().cp_async_group++; }

void cp_async_wait(uint32_t n) {
  Thread& t = self();
  const uint32_t limit = t.cp_async_group > n ? t.cp_async_group - n : 0;
  size_t kept = 0;
  for (CpAsync& op : t.cp_async)
    if (op.group < limit)
      land(t, op, t.entity, machine().clocks.now(t.entity));
    else
      t.cp_async[kept++] = op;
  t.cp_async.resize(kept);
}

void cp_async_mbarrier_arrive_noinc(uint32_t mbarrier, Loc loc) {
  Thread& t = self();
  check_mbarrier(mbarrier, loc);
  auto ops = std::make_shared<std::vector<CpAsync>>(std::move(t.cp_async));
  t.cp_async.clear();
  submit([&t, ops, mbarrier, clock = fork_clock(t), loc]() mutable {
    Clocks& clocks = machine().clocks;
    const int loader =
        clocks.loader_entity();  // not the thread: only a wait on the barrier makes the data known
    uint32_t now = 0;
    if (clocks.enabled()) clock[size_t(loader)] = now = ++clocks.of(loader)[loader];
    for (CpAsync& op : *ops) land(t, op, loader, now);
    mbarrier_arrive_detached(*t.block, mbarrier, clock, loc);
  });
}

}  // namespace swa::emu
