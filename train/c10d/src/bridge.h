// The C++ side of the bridge: handles around c10d's reference-counted objects, and exceptions as text.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "rust/cxx.h"

// cxx calls this around every function that may throw, so that no exception crosses into Rust. c10's own texts end with
// a stack trace, which is left out.
namespace rust {
namespace behavior {

template <typename Try, typename Fail>
static void trycatch(Try&& attempt, Fail&& fail) noexcept try {
  attempt();
} catch (const c10::Error& error) {
  fail(error.what_without_backtrace());
} catch (const std::exception& error) {
  fail(error.what());
} catch (...) {
  fail("an exception without a text");
}

}  // namespace behavior
}  // namespace rust

namespace rabtriever {

// What they hold is c10d's, whose headers are long: only bridge.cc reads them.
class StoreHandle {
 public:
  struct Inner;
  explicit StoreHandle(std::unique_ptr<Inner> inner);
  ~StoreHandle();
  const std::unique_ptr<Inner> inner;
};

class GroupHandle {
 public:
  struct Inner;
  explicit GroupHandle(std::unique_ptr<Inner> inner);
  ~GroupHandle();
  const std::unique_ptr<Inner> inner;
};

std::unique_ptr<StoreHandle> host_store(uint16_t port, uint64_t timeout_ms);
std::unique_ptr<StoreHandle> join_store(rust::Str host, uint16_t port, uint64_t timeout_ms);
std::unique_ptr<StoreHandle> prefix_store(const StoreHandle& store, rust::Str prefix);
uint16_t store_port(const StoreHandle& store);
void store_set(const StoreHandle& store, rust::Str key, rust::Slice<const uint8_t> value);
rust::Vec<uint8_t> store_get(const StoreHandle& store, rust::Str key, uint64_t timeout_ms);
bool store_has(const StoreHandle& store, rust::Str key);
int64_t store_add(const StoreHandle& store, rust::Str key, int64_t amount);

void silence();
bool has_nccl();
std::unique_ptr<GroupHandle> gloo_group(const StoreHandle& store, int32_t rank, int32_t size, uint64_t timeout_ms);
std::unique_ptr<GroupHandle> nccl_group(const StoreHandle& store, int32_t rank, int32_t size, uint64_t timeout_ms);
void group_broadcast(const GroupHandle& group, at::Tensor* tensor, int32_t root);
void group_all_reduce(const GroupHandle& group, at::Tensor* tensor);
void group_reduce_scatter(const GroupHandle& group, at::Tensor* output, const at::Tensor* input);
void group_all_gather(const GroupHandle& group, at::Tensor* output, const at::Tensor* input);
void group_barrier(const GroupHandle& group);
void group_monitored_barrier(const GroupHandle& group, uint64_t timeout_ms);

}  // namespace rabtriever
