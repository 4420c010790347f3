#pragma once

// Stands in for the header of the CUDA toolkit where .cu files are compiled by a host compiler for the tests.
#include "emulator/qualifiers.h"
#include "emulator/vector_types.h"
#include "emulator/engine.h"
#include "emulator/device_builtins.h"
#include "emulator/runtime_api.h"
