#include "wgmma.hpp"

#include <cstring>

#include "machine.hpp"
#include "matrix.hpp"

namespace swa::emu {
namespace {

constexpr uint32_t kPoison = 0x7fc0dead;
constexpr int kMaxN = 256;

struct Argument {
  float* d;
  const uint32_t* a;
  uint64_t a_descriptor, b_descriptor;
  bool accumulate;
};
struct Nothing {};

void check_descriptor(uint64_t bits, const char* operand, Loc loc) {
  const WgmmaDescriptor d = decode_descriptor(bits);
  if (d.base_offset)
    fail(Kind::kWgmma, loc,
         "wgmma at " + to_string(loc) + ": descriptors with base_offset != 0 are not emulated");
  if ((d.start ^ swizzled(d.start, d.swizzle)) != 0)
    fail(Kind::kWgmma, loc,
         format("wgmma at %s: start address 0x%x of descriptor %s is not in the first row of the "
                "swizzle pattern",
                to_string(loc).c_str(), d.start, operand));
}

// Calls visit(is_b, mn, k, address) for every 16-byte chunk that the warp of this rank reads.
template <class Visit>
void for_each_chunk(const WgmmaOp& op, int rank, Visit&& visit) {
  if (!op.shape.a_in_registers) {
    const WgmmaDescriptor d = decode_descriptor(op.a_descriptor);
    for (int m = rank * 16; m < rank * 16 + 16; ++m)
      for (int k = 0; k < 16; k += 8) visit(false, m, k, chunk_address(d, Major::kK, m, k));
  }
  const WgmmaDescriptor d = decode_descriptor(op.b_descriptor);
  const bool k_major = op.shape.b_major == Major::kK;
  for (int n = 0; n < op.shape.n; n += k_major ? 1 : 8)
    for (int k = 0; k < 16; k += k_major ? 8 : 1)
      visit(true, n, k, chunk_address(d, op.shape.b_major, n, k));
}

// Reads the operands and updates the hidden copy of the accumulator.
void compute(Warp& warp, WgmmaOp& op) {
  if (op.computed) return;
  op.computed = true;
  static thread_local float A[16][16], B[16][kMaxN], C[16][kMaxN];
  const int n = op.shape.n, rank = warp.id % 4;
  std::vector<float>& values = op.accumulator->values;
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; op.shape.a_in_registers && r < 4; ++r)
      for (int h = 0; h < 2; ++h) {
        const FragmentPosition p = a_fragment(lane, r);
        A[p.row][p.column + h] =
            half_to_float(uint16_t(op.a_registers[lane][r] >> (16 * h)), op.shape.type);
      }
    for (int i = 0; i < n / 2; ++i) {
      const FragmentPosition p = accumulator(lane, i);
      C[p.row][p.column] = op.accumulate ? values[size_t(lane * (n / 2) + i)] : 0.f;
    }
  }
  for_each_chunk(op, rank, [&](bool is_b, int mn, int k, uint32_t address) {
    uint16_t elements[8];
    std::memcpy(elements, warp.block->smem + smem_offset(address), sizeof elements);
    for (int i = 0; i < 8; ++i) {
      const float value = half_to_float(elements[i], op.shape.type);
      if (!is_b)
        A[mn - rank * 16][k + i] = value;
      else if (op.shape.b_major == Major::kK)
        B[k + i][mn] = value;
      else
        B[k][mn + i] = value;
    }
  });
  accumulate(A, B[0], C[0], n, kMaxN);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < n / 2; ++i) {
      const FragmentPosition p = accumulator(lane, i);
      values[size_t(lane * (n / 2) + i)] = C[p.row][p.column];
    }
}

// The registers become valid when the last operation on them is done.
void land(Warp& warp, WgmmaOp& op) {
  compute(warp, op);
  WgmmaAccumulator& acc = *op.accumulator;
  if (--acc.pending) return;
  for (float* registers : acc.registers)
    for (int i = 0; i < acc.per_lane; ++i) {
      uint32_t bits;
      std::memcpy(&bits, &registers[i], sizeof bits);
      if (bits != kPoison)
        fail(Kind::kWgmma, acc.loc,
             "accumulator register of wgmma at " + to_string(acc.loc) +
                 " was written while the operation was in flight (or its array went out of scope "
                 "before "
                 "wgmma.wait_group)");
    }
  for (size_t lane = 0; lane < 32; ++lane)
    std::memcpy(acc.registers[lane], &acc.values[lane * size_t(acc.per_lane)],
                size_t(acc.per_lane) * sizeof(float));
  auto& all = warp.wgmma.accumulators;
  all.erase(std::find(all.begin(), all.end(), op.accumulator));
}

std::shared_ptr<WgmmaAccumulator> take_accumulator(Warp& warp, const Collective& c, int per_lane,
                                                   Loc loc) {
  for (auto& acc : warp.wgmma.accumulators)
    if (acc->registers[0] == c.of<Argument>(0).d) {
      if (acc->per_lane != per_lane)
        fail(Kind::kWgmma, loc,
             "wgmma at " + to_string(loc) +
                 ": accumulator reused with another shape while in flight");
      return acc;
    }
  auto acc = std::make_shared<WgmmaAccumulator>();
  acc->per_lane = per_lane;
  acc->loc = loc;
  acc->values.resize(size_t(32 * per_lane));
  for (int lane = 0; lane < 32; ++lane) {
    float* registers = acc->registers[lane] = c.of<Argument>(lane).d;
    std::memcpy(&acc->values[size_t(lane * per_lane)], registers, size_t(per_lane) * sizeof(float));
    for (int i = 0; i < per_lane; ++i) std::memcpy(&registers[i], &kPoison, sizeof kPoison);
  }
  warp.wgmma.accumulators.push_back(acc);
  return acc;
}

// What all lanes know; a lane's own writes come before the warp's instruction in program order.
void refresh_common_clock(Warp& warp) {
  if (!warp.common_clock_stale) return;
  Clocks& clocks = machine().clocks;
  const uint32_t* first = clocks.of(warp.lane(0).entity);
  warp.common_clock.assign(first, first + clocks.size());
  for (int lane = 1; lane < 32; ++lane) {
    const uint32_t* other = clocks.of(warp.lane(lane).entity);
    for (size_t e = 0; e < warp.common_clock.size(); ++e)
      warp.common_clock[e] = std::min(warp.common_clock[e], other[e]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int e = warp.lane(lane).entity;
    warp.common_clock[size_t(e)] = clocks.now(e);
  }
  warp.common_clock_stale = false;
}

void note_operand_reads(Warp& warp, const WgmmaOp& op) {
  Machine& m = machine();
  if (m.config.race) refresh_common_clock(warp);
  const int engine = m.clocks.wgmma_entity(warp.global_id);
  for_each_chunk(op, warp.id % 4, [&](bool, int, int, uint32_t address) {
    smem_at(*warp.block, address, 16, "wgmma operand", op.loc);
    if (m.config.race)
      shadow_read(
          {*warp.block, smem_offset(address), 16, engine, warp.common_clock.data(), true, op.loc},
          op.clock);
  });
}

void check_lanes_agree(const Collective& c, const Argument& first, bool a_in_registers, Loc loc) {
  for (int lane = 0; lane < 32; ++lane) {
    const Argument& x = c.of<Argument>(lane);
    if (x.b_descriptor != first.b_descriptor || x.accumulate != first.accumulate ||
        (!a_in_registers && x.a_descriptor != first.a_descriptor))
      fail(
          Kind::kWgmma, loc,
          "wgmma at " + to_string(loc) + ": descriptors or scale-d differ between lanes of a warp");
  }
}

}  // namespace

void wgmma(WgmmaShape shape, float* d, const uint32_t* a, uint64_t a_descriptor,
           uint64_t b_descriptor, bool accumulate, Loc loc) {
  Argument argument{d, a, a_descriptor, b_descriptor, accumulate};
  collective(
      "wgmma.mma_async", kFullMask, argument, loc, Aligned::kYes, [&](Collective& c, Warp& warp) {
        Machine& m = machine();
        WgmmaState& state = warp.wgmma;
        if (warp.block->num_threads % 128)
          fail(Kind::kWgmma, loc,
               "wgmma at " + to_string(loc) + ": the block is not a multiple of a warpgroup");
        if (!state.fenced)
          report(Kind::kWgmma, loc, {},
                 "wgmma.mma_async at " + to_string(loc) +
                     " without wgmma.fence since kernel start / the last wgmma.wait_group");
        check_lanes_agree(c, argument, shape.a_in_registers, loc);
        if (!shape.a_in_registers) check_descriptor(a_descriptor, "A", loc);
        check_descriptor(b_descriptor, "B", loc);
        const uint64_t what = b_descriptor ^ (shape.a_in_registers ? 0 : a_descriptor * 31) ^
                              uint64_t(shape.n * 2 + accumulate);
        state.sequence_hash = (state.sequence_hash ^ what) * 0x100000001b3ull;
        state.num_issued++;
        m.counts.add(Tally::kWgmma, warp.id % 4 == 0);
        m.counts.add(Tally::kMmaMacs, uint64_t(16 * 16 * shape.n));

        WgmmaOp op{shape,   a_descriptor, b_descriptor,  accumulate, {},
                   nullptr, state.group,  ++state.clock, false,      loc};
        if (shape.a_in_registers)
          for (int lane = 0; lane < 32; ++lane)
            std::memcpy(op.a_registers[lane], c.of<Argument>(lane).a, sizeof op.a_registers[lane]);
        op.accumulator = take_accumulator(warp, c, shape.n / 2, loc);
        op.accumulator->pending++;
        note_operand_reads(warp, op);
        state.ops.push_back(std::move(op));
        if (m.lands_now(4))  // operands are read now; registers stay poisoned until wait_group
          for (WgmmaOp& issued : state.ops) compute(warp, issued);
      });
}

void wgmma_fence(Loc loc) {
  Nothing nothing;
  collective("wgmma.fence", kFullMask, nothing, loc, Aligned::kYes,
             [](Collective&, Warp& warp) { warp.wgmma.fenced = true; });
}

void wgmma_commit(Loc loc) {
  Nothing nothing;
  collective("wgmma.commit_group", kFullMask, nothing, loc, Aligned::kYes,
             [](Collective&, Warp& warp) { warp.wgmma.group++; });
}

void wgmma_wait(uint32_t n, Loc loc) {
  Nothing nothing;
  collective("wgmma.wait_group", kFullMask, nothing, loc, Aligned::kYes,
             [n](Collective&, Warp& warp) {
               Machine& m = machine();
               WgmmaState& state = warp.wgmma;
               const uint32_t limit = state.group > n ? state.group - n : 0;
               size_t done = 0;
               while (done < state.ops.size() && state.ops[done].group < limit)
                 land(warp, state.ops[done++]);
               state.ops.erase(state.ops.begin(), state.ops.begin() + long(done));
               state.fenced = false;
               if (!m.config.race) return;
               const uint32_t clock = state.ops.empty() ? state.clock : state.ops.front().clock - 1;
               const int engine = m.clocks.wgmma_entity(warp.global_id);
               for (int lane = 0; lane < 32; ++lane) {
                 uint32_t& seen = m.clocks.of(warp.lane(lane).entity)[engine];
                 seen = std::max(seen, clock);
               }
               warp.common_clock_stale = true;
             });
}

void check_wgmma_at_exit() {
  for (const Block& block : machine().blocks) {
    for (size_t first = 0; first + 3 < block.warps.size(); first += 4)
      for (size_t i = 1; i < 4; ++i) {
        const WgmmaState &a = block.warps[first]->wgmma, &b = block.warps[first + i]->wgmma;
        if (a.num_issued != b.num_issued || a.sequence_hash != b.sequence_hash)
          report(Kind::kDivergence, {}, {},
                 format("warps of warpgroup %zu executed different wgmma sequences (%u and %u "
                        "operations)",
                        first / 4, a.num_issued, b.num_issued));
      }
    for (const Warp* warp : block.warps)
      if (!warp->wgmma.ops.empty()) {
        const Loc loc = warp->wgmma.ops[0].loc;
        report(Kind::kNeverWaited, loc, {},
               "kernel ends with wgmma from " + to_string(loc) + " never waited for");
      }
  }
}

}  // namespace swa::emu
