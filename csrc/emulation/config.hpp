// How a launch is emulated: when asynchronous operations land, who runs next, what is checked.
#pragma once
#include <cstddef>
#include <cstdint>

namespace swa::emu {

// When an asynchronous operation takes effect. kLazy: at the latest legal moment; kEager: at issue.
// Each shows bugs that the other hides, kRandom mixes them.
enum class Async { kLazy, kEager, kRandom };

// Which ready warp and lane runs next.
enum class Order { kForward, kReverse, kRandom };

// What approximate instructions and tensor cores return. kExact: correctly rounded, and sums of
// float32 additions. The others: as far off as is documented, above or below the exact value, or by
// turns (a bit of the argument decides). kAbove and kBelow also cut sums as tensor cores are seen
// to, which takes its time.
enum class Arithmetic { kExact, kAbove, kBelow, kEdges };

struct Config {
  Async async = Async::kLazy;
  Order order = Order::kForward;
  Arithmetic arithmetic = Arithmetic::kExact;
  uint64_t seed = 1;           // of the random choices; a schedule depends on (seed, block) only
  bool race = true;            // shadow memory and vector clocks for shared memory
  bool cp_async_proxy = true;  // cp.async writes count as generic-proxy writes in the proxy check
  bool poison = true;          // NaN in shared memory at block start and under copies in flight
  bool counters = true;
  int workers = 1;  // host threads; blocks are distributed over them
  int max_reports = 16;
  size_t stack_bytes = 64 << 10;  // per fiber
};

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr uint64_t count() const { return uint64_t(x) * y * z; }
};

// The coordinates of element `linear` of a grid of this shape, x fastest.
constexpr Dim3 unflatten(Dim3 shape, uint64_t linear) {
  return {unsigned(linear % shape.x), unsigned(linear / shape.x % shape.y),
          unsigned(linear / shape.x / shape.y)};
}

}  // namespace swa::emu
