#include "python/src/engine.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include <pybind11/stl.h>

#include "cli/embedded_host.h"
#include "python/src/errors.h"

namespace py = pybind11;

namespace thaw::python {
namespace {

using std::chrono::milliseconds;

/// An EmbeddedHost that notices that it is in a forked child, where it is nobody's.
class Engine {
 public:
  Engine(std::vector<std::string> arguments, std::string worker_binary) {
    cli::ServeSettings settings;
    settings.log_level = "warn";  // somebody else's terminal
    settings = take(cli::parse_serve_settings(std::move(arguments), std::move(settings)));
    host_ = take(cli::EmbeddedHost::start(std::move(settings), cli::model_paths_from_environment(),
                                          std::move(worker_binary)));
    const std::scoped_lock lock(all_mutex());
    all().insert(this);
  }
  ~Engine() {
    if (::getpid() != pid_) {
      abandon();
      return;
    }
    {
      const std::scoped_lock lock(all_mutex());
      all().erase(this);
    }
    const py::gil_scoped_release free;
    host_.reset();
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  int connect() { return take(host().connect()).release(); }
  std::string model_name() const { return host().model_name(); }
  void close(double drain_s) {
    if (host_ != nullptr && ::getpid() == pid_)
      host_->close(milliseconds{static_cast<std::int64_t>(drain_s * 1000)});
  }
  void abandon() {
    if (::getpid() != pid_) cli::EmbeddedHost::abandon(std::move(host_));
  }

  static void close_all() {
    const std::scoped_lock lock(all_mutex());
    for (Engine* engine : all())
      engine->close(0);
  }
  /// In the child of a fork there is one thread, and a lock may be another's.
  static void abandon_all() {
    for (Engine* engine : all())
      engine->abandon();
    all().clear();
    new (&all_mutex()) std::mutex;
  }

 private:
  cli::EmbeddedHost& host() const {
    if (host_ == nullptr || ::getpid() != pid_) {
      throw Exception(make_error(Errc::kUnavailable,
                                 "the engine is of the process that this one was forked from"));
    }
    return *host_;
  }
  static std::mutex& all_mutex() {
    static auto* mutex = new std::mutex;  // NOLINT: outlives the interpreter
    return *mutex;
  }
  static std::unordered_set<Engine*>& all() {
    static auto* engines = new std::unordered_set<Engine*>;  // NOLINT: likewise
    return *engines;
  }

  const pid_t pid_ = ::getpid();
  std::unique_ptr<cli::EmbeddedHost> host_;
};

/// {"kv_bytes": "64MiB", "register": ["a=b"], "verify_weights": True} as `thaw serve` takes it.
std::vector<std::string> arguments_of(const std::string& model, const py::dict& settings) {
  std::vector<std::string> arguments;
  if (!model.empty()) arguments.push_back("--model=" + model);
  for (const auto& [key, value] : settings) {
    std::string flag = "--" + py::str(key).cast<std::string>();
    std::replace(flag.begin(), flag.end(), '_', '-');
    const auto add = [&](const py::handle& item) {
      arguments.push_back(flag + "=" + py::str(item).cast<std::string>());
    };
    if (value.is_none() || value.is(py::handle(Py_False))) continue;
    if (value.is(py::handle(Py_True))) {
      arguments.push_back(flag);
    } else if (py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value)) {
      for (const auto& item : value)
        add(item);
    } else {
      add(value);
    }
  }
  return arguments;
}

}  // namespace

void register_engine(py::module_& module) {
  py::class_<Engine>(module, "Engine")
      .def(py::init([](const std::string& model, const py::dict& settings,
                       const std::string& worker_binary) {
             auto arguments = arguments_of(model, settings);
             const py::gil_scoped_release free;
             return std::make_unique<Engine>(std::move(arguments), worker_binary);
           }),
           py::arg("model"), py::kw_only(), py::arg("settings") = py::dict(),
           py::arg("worker_binary"))
      .def("connect", &Engine::connect, py::call_guard<py::gil_scoped_release>())
      .def("close", &Engine::close, py::arg("drain_s") = 0.0,
           py::call_guard<py::gil_scoped_release>())
      .def("abandon", &Engine::abandon)
      .def_property_readonly("model_name", &Engine::model_name);
  const auto gil_free = py::call_guard<py::gil_scoped_release>();
  py::module_::import("atexit").attr("register")(py::cpp_function(&Engine::close_all, gil_free));
  py::module_::import("os").attr("register_at_fork")(py::arg("after_in_child") =
                                                         py::cpp_function(&Engine::abandon_all));
}

}  // namespace thaw::python
