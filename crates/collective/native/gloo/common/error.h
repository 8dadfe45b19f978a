// Names alone; see ../../group.cpp.
#pragma once
