// libtorch carries Gloo but not its headers. c10d/ProcessGroupGloo.hpp, which includes this, holds Gloo's classes by pointer only,
// so their names are enough; nothing here is ever constructed or called on this side.
#pragma once
