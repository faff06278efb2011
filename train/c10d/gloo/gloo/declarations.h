// What libtorch's `ProcessGroupGloo.hpp` names of Gloo. The wheels bring that header and, inside libtorch_cpu.so, Gloo
// itself, but none of Gloo's own headers. ProcessGroupGloo holds Gloo's objects behind pointers only, and all that makes or
// calls one is compiled into libtorch, so declarations are enough: nothing of Gloo is defined or laid out here.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

namespace rendezvous {

// The base of `GlooStore`, a wrapper that the header defines and only libtorch makes.
class Store {
 public:
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& data) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) = 0;
};

}  // namespace rendezvous

namespace transport {

class Device {
 public:
  virtual ~Device() = 0;
};

class UnboundBuffer {
 public:
  virtual ~UnboundBuffer() = 0;
};

}  // namespace transport
}  // namespace gloo
