#include "registry.hpp"

namespace swa::emu {

static std::map<std::string, Launcher>& kernels() {
  static std::map<std::string, Launcher> all;
  return all;
}

Registration::Registration(const std::string& name, Launcher launcher) {
  if (!kernels().emplace(name, std::move(launcher)).second)
    throw std::logic_error("two emulated kernels are called '" + name + "'");
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const auto& [name, launcher] : kernels()) names.push_back(name);
  return names;
}

Launcher find_kernel(const std::string& name) {
  auto it = kernels().find(name);
  if (it != kernels().end()) return it->second;
  std::string known;
  for (const std::string& n : kernel_names()) known += (known.empty() ? "" : ", ") + n;
  throw std::invalid_argument("no emulated kernel is called '" + name + "'; there are: " + known);
}

}  // namespace swa::emu
