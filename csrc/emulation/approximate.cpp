#include "approximate.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "machine.hpp"

namespace swa::emu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Which end of an interval a result is taken from: the same one for the same argument, so that
// equal work gives equal bits, as it does on a card.
bool is_above(float x, Arithmetic arithmetic) {
  if (arithmetic != Arithmetic::kEdges) return arithmetic == Arithmetic::kAbove;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits * 2654435761u) >> 31;
}

// A float within `error` of `exact`: the nearest one, or the last one on a side.
float within(double exact, double error, float x) {
  const Arithmetic arithmetic = machine().config.arithmetic;
  if (arithmetic == Arithmetic::kExact) return float(exact);
  const bool above = is_above(x, arithmetic);
  const double edge = above ? exact + error : exact - error;
  const float nearest = float(edge);
  if (above && double(nearest) > edge) return std::nextafter(nearest, -kInfinity);
  if (!above && double(nearest) < edge) return std::nextafter(nearest, kInfinity);
  return nearest;
}

}  // namespace

float ex2(float x) {
  machine().counts.add(Tally::kEx2);
  const double exact = std::exp2(double(x));
  if (x == 0.f || !(exact < double(std::numeric_limits<float>::max()))) return float(exact);
  if (exact < double(std::numeric_limits<float>::min())) return 0.f;
  const float y = within(exact, std::ldexp(2.0, std::ilogb(exact) - 23), x);
  return y < std::numeric_limits<float>::min() ? 0.f : y;
}

float lg2(float x) {
  const double exact = std::log2(double(x));
  if (!std::isfinite(exact)) return float(exact);
  return within(exact, 0x1p-22 * (x > 0.5f && x < 2.f ? 1.0 : std::fabs(exact)), x);
}

float tanh_approx(float x) {
  const double exact = std::tanh(double(x));
  if (x == 0.f || std::isnan(x)) return x;
  return within(exact, 0x1p-11 * std::fabs(exact), x);
}

}  // namespace swa::emu
