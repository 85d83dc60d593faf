// Named arguments of an emulated launch as tensor views. The Python side, which knows the tensors,
// gives a buffer `name` and the integers `name.dtype`, `name.dims`, `name.size0`, `name.stride0`
// ...
#pragma once

#include <stdexcept>

#include "cuda/fill_params.h"
#include "emulation/registry.hpp"

namespace swa::cuda::emulated {

inline TensorView view(const emu::Args& args, const std::string& name) {
  TensorView x{};
  x.dims = args.integer(name + ".dims");
  if (x.dims < 0) return x;  // not given
  x.data = args.pointer<char>(name);
  x.dtype = DType(args.integer(name + ".dtype"));
  for (int i = 0; i < x.dims; ++i) {
    x.size[i] = args.integer64(name + ".size" + std::to_string(i));
    x.stride[i] = args.integer64(name + ".stride" + std::to_string(i));
  }
  return x;
}

inline CacheViews cache_views(const emu::Args& args, const std::string& name) {
  return {view(args, name + "_cache"), view(args, name + "_host_cache"),
          view(args, name + "_scale")};
}

inline Device device(const emu::Args& args) {
  return {args.integer("num_sms"), args.integer("max_smem_bytes"),
          args.integer("compute_capability")};
}

inline void check(int error) {
  if (error) throw std::runtime_error("the launch failed with error " + std::to_string(error));
}

}  // namespace swa::cuda::emulated
