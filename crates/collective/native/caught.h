// How each C function that can fail says so: null, or what went wrong, to be freed by `collective_free`.
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
