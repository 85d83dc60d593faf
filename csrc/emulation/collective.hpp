// Warp collectives: a rendezvous of the lanes named in a mask; the last lane to come computes for
// all.
#pragma once
#include <cstdint>

#include "source_location.hpp"

namespace swa::emu {

struct Warp;

// One rendezvous under way. Overlapping masks in flight are legal (lanes may run ahead), so a warp
// has several.
struct Collective {
  const char* op = nullptr;
  uint32_t mask = 0, arrived = 0;
  Loc loc;
  void* argument[32];

  template <class Argument>
  Argument& of(int lane) const {
    return *static_cast<Argument*>(argument[lane]);
  }
};

enum class Aligned {
  kNo,
  kYes
};  // kYes: the instruction is .aligned, all lanes must execute the same one

// Registers the running lane. Returns the rendezvous if this lane completes it; otherwise waits
// until another lane has and returns nullptr. The one who completes it does the work, then calls
// collective_release.
Collective* collective_arrive(const char* op, uint32_t mask, void* argument, Loc loc,
                              Aligned aligned);
void collective_release(Collective& c);

// finish(Collective&, Warp&) runs once, in the last lane.
template <class Argument, class Finish>
void collective(const char* op, uint32_t mask, Argument& argument, Loc loc, Aligned aligned,
                Finish&& finish);

constexpr uint32_t kFullMask = 0xffffffffu;

void sync_warp(uint32_t mask, Loc loc);

// The lanes of a mask, for range loops.
struct Lanes {
  uint32_t mask;
  struct Iterator {
    uint32_t rest;
    int operator*() const { return __builtin_ctz(rest); }
    Iterator& operator++() {
      rest &= rest - 1;
      return *this;
    }
    bool operator!=(const Iterator& o) const { return rest != o.rest; }
  };
  Iterator begin() const { return {mask}; }
  Iterator end() const { return {0}; }
};

Warp& running_warp();

template <class Argument, class Finish>
void collective(const char* op, uint32_t mask, Argument& argument, Loc loc, Aligned aligned,
                Finish&& finish) {
  if (Collective* c = collective_arrive(op, mask, &argument, loc, aligned)) {
    finish(*c, running_warp());
    collective_release(*c);
  }
}

}  // namespace swa::emu
