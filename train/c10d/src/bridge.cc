#include "c10d/src/bridge.h"

#include <chrono>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

// Of c10, which declares it in a source file only.
C10_API extern int FLAGS_caffe2_log_level;

namespace rabtriever {

using std::chrono::milliseconds;

struct StoreHandle::Inner {
  c10::intrusive_ptr<c10d::Store> store;
  uint16_t port;
};

StoreHandle::StoreHandle(std::unique_ptr<Inner> inner) : inner(std::move(inner)) {}
StoreHandle::~StoreHandle() = default;

struct GroupHandle::Inner {
  c10::intrusive_ptr<c10d::Backend> backend;
  milliseconds timeout;
};

GroupHandle::GroupHandle(std::unique_ptr<Inner> inner) : inner(std::move(inner)) {}
GroupHandle::~GroupHandle() = default;

namespace {

std::unique_ptr<StoreHandle> store_handle(c10::intrusive_ptr<c10d::Store> store, uint16_t port) {
  return std::make_unique<StoreHandle>(
      std::make_unique<StoreHandle::Inner>(StoreHandle::Inner{std::move(store), port}));
}

std::unique_ptr<GroupHandle> group_handle(c10::intrusive_ptr<c10d::Backend> backend, milliseconds timeout) {
  return std::make_unique<GroupHandle>(
      std::make_unique<GroupHandle::Inner>(GroupHandle::Inner{std::move(backend), timeout}));
}

std::unique_ptr<StoreHandle> open_store(std::string host, uint16_t port, uint64_t timeout_ms, bool server) {
  c10d::TCPStoreOptions options;
  options.port = port;
  options.isServer = server;
  // Who is missing is for the caller to find out, by name.
  options.waitWorkers = false;
  options.timeout = milliseconds(timeout_ms);
  auto store = c10::make_intrusive<c10d::TCPStore>(std::move(host), options);
  const uint16_t served = store->getPort();
  return store_handle(std::move(store), served);
}

void finish(const c10::intrusive_ptr<c10d::Work>& work, milliseconds timeout) {
  // A second more than the collective's own limit, whose message says more.
  TORCH_CHECK(work->wait(timeout + milliseconds(1000)), "the operation was aborted");
  work->synchronize();
}

}  // namespace

std::unique_ptr<StoreHandle> host_store(uint16_t port, uint64_t timeout_ms) {
  return open_store("localhost", port, timeout_ms, true);
}

std::unique_ptr<StoreHandle> join_store(rust::Str host, uint16_t port, uint64_t timeout_ms) {
  return open_store(std::string(host), port, timeout_ms, false);
}

std::unique_ptr<StoreHandle> prefix_store(const StoreHandle& store, rust::Str prefix) {
  return store_handle(
      c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), store.inner->store), store.inner->port);
}

uint16_t store_port(const StoreHandle& store) { return store.inner->port; }

void store_set(const StoreHandle& store, rust::Str key, rust::Slice<const uint8_t> value) {
  store.inner->store->set(std::string(key), std::vector<uint8_t>(value.begin(), value.end()));
}

rust::Vec<uint8_t> store_get(const StoreHandle& store, rust::Str key, uint64_t timeout_ms) {
  const std::string name(key);
  store.inner->store->wait({name}, milliseconds(timeout_ms));
  rust::Vec<uint8_t> value;
  for (uint8_t byte : store.inner->store->get(name)) {
    value.push_back(byte);
  }
  return value;
}

bool store_has(const StoreHandle& store, rust::Str key) { return store.inner->store->check({std::string(key)}); }

int64_t store_add(const StoreHandle& store, rust::Str key, int64_t amount) {
  return store.inner->store->add(std::string(key), amount);
}

void silence() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) {
    FLAGS_caffe2_log_level = 3;  // fatal ones only
  }
}

bool has_nccl() {
#ifdef USE_C10D_NCCL
  return true;
#else
  return false;
#endif
}

std::unique_ptr<GroupHandle> gloo_group(const StoreHandle& store, int32_t rank, int32_t size, uint64_t timeout_ms) {
  const milliseconds timeout(timeout_ms);
  // Obeys GLOO_SOCKET_IFNAME, as PyTorch does.
  auto options = c10d::ProcessGroupGloo::Options::create_default(timeout);
  return group_handle(
      c10::make_intrusive<c10d::ProcessGroupGloo>(store.inner->store, rank, size, std::move(options)), timeout);
}

std::unique_ptr<GroupHandle> nccl_group(const StoreHandle& store, int32_t rank, int32_t size, uint64_t timeout_ms) {
#ifdef USE_C10D_NCCL
  const milliseconds timeout(timeout_ms);
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  return group_handle(
      c10::make_intrusive<c10d::ProcessGroupNCCL>(store.inner->store, rank, size, std::move(options)), timeout);
#else
  (void)store, (void)rank, (void)size, (void)timeout_ms;
  TORCH_CHECK(false, "this program is built without NCCL");
#endif
}

void group_broadcast(const GroupHandle& group, at::Tensor* tensor, int32_t root) {
  c10d::BroadcastOptions options;
  options.rootRank = root;
  options.timeout = group.inner->timeout;
  std::vector<at::Tensor> tensors{tensor->detach()};
  finish(group.inner->backend->broadcast(tensors, options), group.inner->timeout);
}

void group_all_reduce(const GroupHandle& group, at::Tensor* tensor) {
  c10d::AllreduceOptions options;
  options.timeout = group.inner->timeout;
  std::vector<at::Tensor> tensors{tensor->detach()};
  finish(group.inner->backend->allreduce(tensors, options), group.inner->timeout);
}

void group_reduce_scatter(const GroupHandle& group, at::Tensor* output, const at::Tensor* input) {
  c10d::ReduceScatterOptions options;
  options.timeout = group.inner->timeout;
  at::Tensor to = output->detach().view({-1});
  at::Tensor from = input->detach().view({-1});
  finish(group.inner->backend->_reduce_scatter_base(to, from, options), group.inner->timeout);
}

void group_all_gather(const GroupHandle& group, at::Tensor* output, const at::Tensor* input) {
  c10d::AllgatherOptions options;
  options.timeout = group.inner->timeout;
  at::Tensor to = output->detach().view({-1});
  at::Tensor from = input->detach().view({-1});
  finish(group.inner->backend->_allgather_base(to, from, options), group.inner->timeout);
}

void group_barrier(const GroupHandle& group) {
  c10d::BarrierOptions options;
  options.timeout = group.inner->timeout;
  finish(group.inner->backend->barrier(options), group.inner->timeout);
}

void group_monitored_barrier(const GroupHandle& group, uint64_t timeout_ms) {
  c10d::BarrierOptions options;
  options.timeout = milliseconds(timeout_ms);
  group.inner->backend->monitoredBarrier(options, /*waitAllRanks=*/true);
}

}  // namespace rabtriever
