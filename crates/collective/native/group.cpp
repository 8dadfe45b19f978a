// A process group of c10d as a few C functions.
//
// libtorch carries Gloo but not its headers. c10d/ProcessGroupGloo.hpp, which includes them, holds Gloo's classes by pointer
// only, so their names are enough: gloo/ declares those, and nothing of it is ever constructed or called on this side.

#include <ATen/ops/from_blob.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "caught.h"

namespace {

struct Group {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
};

struct Work {
  c10::intrusive_ptr<c10d::Work> work;
};

} // namespace

extern "C" {

// Meets the others at host:port, where `serves` says whether this process keeps the store.
char* collective_open(
    const char* host,
    uint16_t port,
    bool serves,
    const char* prefix,
    int rank,
    int size,
    uint64_t timeout_seconds,
    Group** out) {
  return caught([&] {
    const std::chrono::milliseconds timeout(timeout_seconds * 1000);
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serves;
    options.numWorkers = static_cast<size_t>(size);
    options.waitWorkers = false; // The group itself waits for all.
    options.timeout = timeout;
    auto tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
    auto store = c10::make_intrusive<c10d::PrefixStore>(prefix, tcp);
    // With the network interfaces that GLOO_SOCKET_IFNAME names.
    auto settings = c10d::ProcessGroupGloo::Options::create_default(timeout);
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, settings);
    *out = new Group{std::move(gloo)};
  });
}

void collective_close(Group* group) {
  caught([&] { delete group; });
}

// Begins to sum numbers over all processes, in place: they must stay where they are until `collective_wait` is back.
char* collective_start_sum(Group* group, void* numbers, int64_t count, bool is_double, Work** out) {
  return caught([&] {
    const auto type = is_double ? at::kDouble : at::kFloat;
    std::vector<at::Tensor> tensors{at::from_blob(numbers, {count}, type)};
    *out = new Work{group->gloo->allreduce(tensors, c10d::AllreduceOptions())};
  });
}

// Waits for a sum and frees its handle.
char* collective_wait(Work* work) {
  auto error = caught([&] { work->work->wait(); });
  caught([&] { delete work; });
  return error;
}

} // extern "C"
