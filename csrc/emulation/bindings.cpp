// The Python module: run a registered kernel on memory given by address, get reports and counts
// back.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "launch.hpp"
#include "planted.hpp"
#include "registry.hpp"

namespace py = pybind11;

namespace swa::emu {
namespace {

template <class Enum>
Enum choice(const std::string& option, const std::string& value,
            const std::vector<std::pair<const char*, Enum>>& known) {
  for (const auto& [name, result] : known)
    if (value == name) return result;
  throw std::invalid_argument("unknown value '" + value + "' of option " + option);
}

Config config_from(const py::dict& options) {
  Config c;
  c.async =
      choice<Async>("asynchrony", options["asynchrony"].cast<std::string>(),
                    {{"lazy", Async::kLazy}, {"eager", Async::kEager}, {"random", Async::kRandom}});
  c.order = choice<Order>(
      "order", options["order"].cast<std::string>(),
      {{"forward", Order::kForward}, {"reverse", Order::kReverse}, {"random", Order::kRandom}});
  c.arithmetic = choice<Arithmetic>("arithmetic", options["arithmetic"].cast<std::string>(),
                                    {{"exact", Arithmetic::kExact},
                                     {"above", Arithmetic::kAbove},
                                     {"below", Arithmetic::kBelow},
                                     {"edges", Arithmetic::kEdges}});
  c.seed = options["seed"].cast<uint64_t>();
  c.race = options["race"].cast<bool>();
  c.cp_async_proxy = options["cp_async_proxy"].cast<bool>();
  c.poison = options["poison"].cast<bool>();
  c.counters = options["counters"].cast<bool>();
  c.workers = options["workers"].cast<int>();
  return c;
}

py::list reports_of(const Session& session) {
  py::list all;
  for (const Report& r : session.reports.kept())
    all.append(py::make_tuple(to_string(r.kind), r.text, r.where.file, r.where.line, r.other.file,
                              r.other.line, py::make_tuple(r.block.x, r.block.y, r.block.z),
                              r.thread));
  return all;
}

py::list sites_of(const Session& session) {
  py::list all;
  const auto& tags = session.memory.tags();
  for (const auto& [site, c] : session.counts.sites())
    all.append(py::make_tuple(site.loc.file, site.loc.line, to_string(site.op),
                              site.tag == kNoTag ? "" : tags[size_t(site.tag)], c.requests, c.lanes,
                              c.bytes, c.sectors, c.min_sectors, c.wavefronts, c.min_wavefronts));
  return all;
}

py::dict tallies_of(const Session& session) {
  py::dict all;
  for (int i = 0; i < int(Tally::kNumTallies); ++i)
    all[to_string(Tally(i))] = session.counts.tally(Tally(i));
  return all;
}

using BufferArgument = std::tuple<std::string, uintptr_t, size_t, std::string, bool>;

// buffers: (name, address, bytes, tag, writable). Returns (reports, number of distinct reports,
// sites, tallies).
py::tuple run(const std::string& kernel, const std::vector<BufferArgument>& buffers,
              std::map<std::string, int64_t> integers, std::map<std::string, double> numbers,
              const py::dict& options) {
  Session session;
  session.config = config_from(options);
  planted::current = options["bug"].cast<int>();
  Args args;
  args.integers = std::move(integers);
  args.numbers = std::move(numbers);
  for (const auto& [name, address, bytes, tag, writable] : buffers) {
    args.pointers[name] = reinterpret_cast<void*>(address);
    if (bytes) session.memory.add(args.pointers[name], bytes, name, tag, writable);
  }
  const Launcher launcher = find_kernel(kernel);
  {
    py::gil_scoped_release unlocked;
    const SessionScope scope(session);
    try {
      launcher(args);
    } catch (const Stopped&) {  // the reports say why
    }
  }
  return py::make_tuple(reports_of(session), session.reports.distinct(), sites_of(session),
                        tallies_of(session));
}

}  // namespace
}  // namespace swa::emu

PYBIND11_MODULE(swa_emulator, m) {
  m.def("run", &swa::emu::run);
  m.def("kernel_names", &swa::emu::kernel_names);
}
