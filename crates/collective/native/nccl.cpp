// Sums on GPUs by NCCL as a few C functions. NCCL is what PyTorch with CUDA brings along: it is looked up when the program
// runs, and its few functions are declared here, so that the program is built where it is not.

#include <dlfcn.h>

#include <memory>
#include <optional>

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "caught.h"

namespace {

// As in nccl.h of NCCL 2.
constexpr int SUCCESS = 0;
constexpr int FLOAT32 = 7;
constexpr int SUM = 0;
struct UniqueId {
  char bytes[128];
};

// A name of the library as what it is.
template <typename F>
F* symbol(void* library, const char* name) {
  auto found = dlsym(library, name);
  TORCH_CHECK(found, "the library has no `", name, "`");
  return reinterpret_cast<F*>(found);
}

struct Library {
  void* handle; // Never closed: its threads may still run.
  int (*get_unique_id)(UniqueId*);
  int (*comm_init_rank)(void**, int, UniqueId, int);
  int (*comm_destroy)(void*);
  int (*comm_abort)(void*);
  int (*comm_get_async_error)(void*, int*);
  int (*all_reduce)(const void*, void*, size_t, int, int, void*, void*);
  const char* (*get_error_string)(int);
  const char* (*get_last_error)(void*);

  explicit Library(const char* path) : handle(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    TORCH_CHECK(handle, dlerror());
    get_unique_id = symbol<int(UniqueId*)>(handle, "ncclGetUniqueId");
    comm_init_rank = symbol<int(void**, int, UniqueId, int)>(handle, "ncclCommInitRank");
    comm_destroy = symbol<int(void*)>(handle, "ncclCommDestroy");
    comm_abort = symbol<int(void*)>(handle, "ncclCommAbort");
    comm_get_async_error = symbol<int(void*, int*)>(handle, "ncclCommGetAsyncError");
    all_reduce = symbol<int(const void*, void*, size_t, int, int, void*, void*)>(handle, "ncclAllReduce");
    get_error_string = symbol<const char*(int)>(handle, "ncclGetErrorString");
    get_last_error = symbol<const char*(void*)>(handle, "ncclGetLastError");
  }

  void require(int result) const {
    if (result == SUCCESS) {
      return;
    }
    const auto more = get_last_error(nullptr);
    TORCH_CHECK(false, get_error_string(result), more && *more ? ": " : "", more ? more : "");
  }
};

struct Nccl {
  Library library;
  c10::Device device;
  void* communicator = nullptr;
  // Where sums are made beside what else the device does; none on the CPU, where tests are.
  std::optional<c10::Stream> stream;
  // Whether sums were begun that nobody waited for.
  bool under_way = false;

  Nccl(const char* path, c10::Device device) : library(path), device(device) {}

  // Makes `second` wait for what `first` was given so far.
  void after(const c10::Stream& first, const c10::Stream& second) const {
    c10::Event done(device.type());
    done.record(first);
    done.block(second);
  }

  c10::Stream current() const {
    return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  }
};

} // namespace

extern "C" {

// Loads the library for one device: a GPU's number, or -1 for the CPU.
char* collective_nccl_load(const char* path, int gpu, Nccl** out) {
  return caught([&] {
    const auto device = gpu < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(gpu));
    *out = new Nccl(path, device);
  });
}

// What one process makes for all to meet by: 128 bytes.
char* collective_nccl_id(Nccl* nccl, char* id) {
  return caught([&] {
    UniqueId made;
    nccl->library.require(nccl->library.get_unique_id(&made));
    memcpy(id, made.bytes, sizeof made.bytes);
  });
}

// Meets the others, who all call this with the same id.
char* collective_nccl_meet(Nccl* nccl, const char* id, int rank, int size) {
  return caught([&] {
    const c10::DeviceGuard guard(nccl->device);
    if (nccl->device.is_cuda()) {
      nccl->stream = c10::impl::VirtualGuardImpl(nccl->device.type()).getNewStream(nccl->device, -1);
    }
    UniqueId common;
    memcpy(common.bytes, id, sizeof common.bytes);
    nccl->library.require(nccl->library.comm_init_rank(&nccl->communicator, size, common, rank));
  });
}

// Begins to sum a tensor of f32 in place, once the device has made it. It must not be let go of before `collective_nccl_wait`.
char* collective_nccl_start_sum(Nccl* nccl, const at::Tensor* tensor) {
  return caught([&] {
    TORCH_CHECK(
        tensor->is_contiguous() && tensor->scalar_type() == at::kFloat && tensor->device() == nccl->device,
        "not a contiguous tensor of f32 on ",
        nccl->device);
    const c10::DeviceGuard guard(nccl->device);
    void* handle = nullptr;
    if (nccl->stream) {
      nccl->after(nccl->current(), *nccl->stream);
      handle = nccl->stream->native_handle();
    }
    auto numbers = tensor->mutable_data_ptr();
    const auto count = static_cast<size_t>(tensor->numel());
    nccl->under_way = true;
    nccl->library.require(
        nccl->library.all_reduce(numbers, numbers, count, FLOAT32, SUM, nccl->communicator, handle));
  });
}

// Makes what the device does from here on wait for all sums that were begun.
char* collective_nccl_wait(Nccl* nccl) {
  return caught([&] {
    int error = SUCCESS;
    nccl->library.require(nccl->library.comm_get_async_error(nccl->communicator, &error));
    nccl->library.require(error);
    if (nccl->stream) {
      const c10::DeviceGuard guard(nccl->device);
      nccl->after(*nccl->stream, nccl->current());
    }
    nccl->under_way = false;
  });
}

// Leaves the others; sums that nobody waited for are given up, since one who is gone would never take part in them.
void collective_nccl_close(Nccl* nccl) {
  caught([&] {
    const std::unique_ptr<Nccl> closed(nccl);
    if (closed->communicator) {
      const c10::DeviceGuard guard(closed->device);
      (closed->under_way ? closed->library.comm_abort : closed->library.comm_destroy)(closed->communicator);
    }
  });
}

} // extern "C"
