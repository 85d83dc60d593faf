#include "async_engine.hpp"

#include "machine.hpp"

namespace swa::emu {

void submit(AsyncOp op) {
  Machine& m = machine();
  if (!m.lands_now(4)) {
    m.in_flight.push_back(std::move(op));
    return;
  }
  m.progress++;
  op();
}

bool land_one() {
  Machine& m = machine();
  const size_t n = m.in_flight.size();
  if (n == 0) return false;
  size_t i = 0;
  if (m.config.order == Order::kReverse) i = n - 1;
  if (m.config.order == Order::kRandom) i = m.random() % n;
  AsyncOp op = std::move(m.in_flight[i]);
  m.in_flight.erase(m.in_flight.begin() + long(i));
  m.progress++;
  op();
  return true;
}

}  // namespace swa::emu
