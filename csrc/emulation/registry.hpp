// Kernels by name, for callers that have arguments by name: the Python binding and through it the
// tests.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace swa::emu {

// Arguments of a launch: buffers, integers and floating-point numbers. Asking for one that is
// missing throws std::invalid_argument with its name.
class Args {
 public:
  std::map<std::string, void*> pointers;
  std::map<std::string, int64_t> integers;
  std::map<std::string, double> numbers;

  template <class T>
  T* pointer(const std::string& name) const {
    return static_cast<T*>(get(pointers, name, "buffer"));
  }
  int integer(const std::string& name) const { return int(integer64(name)); }
  int64_t integer64(const std::string& name) const { return get(integers, name, "integer"); }
  float number(const std::string& name) const { return float(get(numbers, name, "number")); }

 private:
  template <class V>
  static V get(const std::map<std::string, V>& from, const std::string& name, const char* what) {
    auto it = from.find(name);
    if (it == from.end())
      throw std::invalid_argument("the kernel needs a " + std::string(what) + " '" + name + "'");
    return it->second;
  }
};

using Launcher = std::function<void(const Args&)>;

// A static object of this type in a kernel's file makes it known under `name`.
struct Registration {
  Registration(const std::string& name, Launcher launcher);
};
std::vector<std::string> kernel_names();
Launcher find_kernel(
    const std::string& name);  // throws std::invalid_argument that lists the known names

}  // namespace swa::emu
