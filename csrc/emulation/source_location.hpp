// Where in a kernel a primitive was called: a defaulted argument of every primitive, filled in by
// the compiler.
#pragma once
#include <cstring>
#include <string>

namespace swa::emu {

struct Loc {
  const char* file = "";
  unsigned line = 0;

  static constexpr Loc here(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Loc& o) const {
    return line == o.line && (file == o.file || std::strcmp(file, o.file) == 0);
  }
};

// "file.cuh:12", without folders.
inline std::string to_string(Loc loc) {
  const char* slash = std::strrchr(loc.file, '/');
  return std::string(slash ? slash + 1 : loc.file) + ":" + std::to_string(loc.line);
}

// An array index that remembers the caller's line, so that a plain p[i] can be reported.
struct Index {
  long value;
  Loc loc;
  template <class I>
  Index(I i, Loc l = Loc::here()) : value(static_cast<long>(i)), loc(l) {}
};

}  // namespace swa::emu
