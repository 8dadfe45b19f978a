// How a C function over libtorch's C++ says what went wrong: null, or a string that the caller frees (`caught::checked`).
#pragma once

#include <cstring>
#include <exception>

#include <c10/util/Exception.h>

namespace {

template <typename F>
char* caught(F&& body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an unknown error");
  }
}

} // namespace
