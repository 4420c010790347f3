#pragma once
#include <cstdint>

// The part of MPI that is used here, with the numbers of its standard ABI (MPI 5.0, chapter 20), which libmpi_abi of
// any implementation has. The library is opened at run time, and no header of an implementation is needed.
namespace st_moe::mpi {

using Comm = struct CommHandle*;
using Group = struct GroupHandle*;
using Request = struct RequestHandle*;
using Datatype = struct DatatypeHandle*;
using Errhandler = struct ErrhandlerHandle*;
struct Status;          // only ignored
using Count = int64_t;  // and MPI_Aint, on all systems of 64 bits

template <class Handle>
Handle handle(uintptr_t number) {
  return reinterpret_cast<Handle>(number);
}

constexpr uintptr_t kCommWorld = 0x101, kCommSelf = 0x102, kErrorsReturn = 0x143, kRequestNull = 0x180, kByte = 0x247;
inline void* const kInPlace = handle<void*>(1);  // instead of the own part of what is gathered
constexpr int kSuccess = 0, kThreadMultiple = 4096, kMaxErrorString = 512, kMaxVersionString = 8192;

// The functions, each a pointer of this name that is looked up as MPI_<name>.
#define ST_MOE_MPI_FUNCTIONS(FUNCTION)                                                                         \
  FUNCTION(Abi_get_version, int*, int*)                                                                        \
  FUNCTION(Get_library_version, char*, int*)                                                                   \
  FUNCTION(Error_string, int, char*, int*)                                                                     \
  FUNCTION(Initialized, int*)                                                                                  \
  FUNCTION(Init_thread, int*, char***, int, int*)                                                              \
  FUNCTION(Finalize, )                                                                                         \
  FUNCTION(Comm_set_errhandler, Comm, Errhandler)                                                              \
  FUNCTION(Comm_rank, Comm, int*)                                                                              \
  FUNCTION(Comm_size, Comm, int*)                                                                              \
  FUNCTION(Comm_group, Comm, Group*)                                                                           \
  FUNCTION(Comm_create_group, Comm, Group, int, Comm*)                                                         \
  FUNCTION(Group_incl, Group, int, const int*, Group*)                                                         \
  FUNCTION(Group_free, Group*)                                                                                 \
  FUNCTION(Test, Request*, int*, Status*)                                                                      \
  FUNCTION(Ibarrier, Comm, Request*)                                                                           \
  FUNCTION(Ibcast_c, void*, Count, Datatype, int, Comm, Request*)                                              \
  FUNCTION(Iallgather_c, const void*, Count, Datatype, void*, Count, Datatype, Comm, Request*)                 \
  FUNCTION(Ialltoall_c, const void*, Count, Datatype, void*, Count, Datatype, Comm, Request*)                  \
  FUNCTION(Ialltoallv_c, const void*, const Count*, const Count*, Datatype, void*, const Count*, const Count*, \
           Datatype, Comm, Request*)                                                                           \
  FUNCTION(Isend_c, const void*, Count, Datatype, int, int, Comm, Request*)                                    \
  FUNCTION(Irecv_c, void*, Count, Datatype, int, int, Comm, Request*)

}  // namespace st_moe::mpi
