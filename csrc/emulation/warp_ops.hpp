// Shuffles, votes and elect.sync. None of them orders memory accesses.
#pragma once
#include <cstdint>

#include "source_location.hpp"

namespace swa::emu {

// The value that lane `source` brings; the running lane keeps its own when source is its own lane.
uint32_t shuffle(const char* op, uint32_t mask, uint32_t value, int source, Loc loc);
// Bit i of the result: the predicate of lane i.
uint32_t ballot(uint32_t mask, bool predicate, Loc loc);
// True in one lane. Hardware does not say which; in reverse order it is the highest.
bool elect(uint32_t mask, Loc loc);

int lane_id();

}  // namespace swa::emu
