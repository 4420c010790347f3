#include "cuda/blas_library.h"

#include <dlfcn.h>
#include <glob.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "cuda/stream.h"

namespace st_moe::cuda {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// Folders of the program, in which there may be a Python environment.
std::vector<std::string>& program_folders() {
  static auto* const folders = new std::vector<std::string>;
  return *folders;
}

// Folders outside the loader's paths: what is known of them, and a pattern of the rest.
struct Place {
  std::string prefix, pattern;
};

// The toolkits, then the wheels of Python environments: of the active one, the user's and the system's, and of those
// beside the program.
std::vector<Place> places() {
  std::vector<Place> places;
  for (const char* toolkit : {"CUDA_PATH", "CUDA_HOME"})
    if (const std::string folder = environment(toolkit); !folder.empty()) places.push_back({folder, "/lib64"});
  places.push_back({"/usr/local", "/cuda{,-1[23]*}/lib64"});
  std::vector<std::string> pythons;
  const auto add = [&](const std::string& folder, const std::string& below = "") {
    if (!folder.empty()) pythons.push_back(folder + below);
  };
  add(environment("VIRTUAL_ENV"));
  if (const std::string conda = environment("CONDA_PREFIX"); !conda.empty()) {
    places.push_back({conda, "/lib"});
    add(conda);
  }
  for (const std::string& folder : program_folders()) add(folder, "/.venv"), add(folder, "/venv");
  add(environment("HOME"), "/.local");
  add("/usr/local");
  add("/usr");
  for (const std::string& python : pythons)
    places.push_back({python, "/lib/python3*/{site,dist}-packages/nvidia/{cu13,cublas}/lib"});
  return places;
}

std::vector<std::string> matches_of(const Place& place, const std::string& file) {
  std::string pattern;
  for (const char c : place.prefix) {
    if (std::string("*?[]{},~\\").find(c) != std::string::npos) pattern += '\\';
    pattern += c;
  }
  pattern += place.pattern + "/" + file;
  std::vector<std::string> found;
  glob_t matches{};
  if (glob(pattern.c_str(), GLOB_BRACE, nullptr, &matches) == 0)
    for (size_t i = 0; i < matches.gl_pathc; ++i) found.push_back(matches.gl_pathv[i]);
  globfree(&matches);
  return found;
}

// Best first. A driver for CUDA 12 cannot run cuBLAS 13; one for CUDA 13 runs both.
std::vector<std::string> candidates(const std::vector<Place>& places) {
  if (const std::string path = environment("ST_MOE_CUBLAS_LIBRARY"); !path.empty()) return {path};
  int driver = 0;
  cudaDriverGetVersion(&driver);
  std::vector<std::string> names{"libcublas.so.13", "libcublas.so.12"}, paths;
  if (driver < 13000) std::swap(names[0], names[1]);
  for (const std::string& name : names) {
    paths.push_back(name);
    for (const Place& place : places)
      for (const std::string& path : matches_of(place, name)) paths.push_back(path);
  }
  return paths;
}

// libcublas needs the libcublasLt next to it, which the loader may not find.
void* open_library(const std::string& path) {
  const size_t file = path.rfind('/'), name = path.rfind("libcublas.");
  if (file != std::string::npos && name == file + 1)
    dlopen((path.substr(0, file) + "/libcublasLt." + path.substr(file + 1 + sizeof "libcublas")).c_str(),
           RTLD_NOW | RTLD_LOCAL);
  return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
}

template <class Function>
bool find(void* library, const char* name, Function** function) {
  *function = reinterpret_cast<Function*>(dlsym(library, name));
  return *function != nullptr;
}

bool find_all(void* library, BlasLibrary* blas) {
  find(library, "cublasGemmGroupedBatchedEx", &blas->gemm_grouped_batched);
  return find(library, "cublasCreate_v2", &blas->create) && find(library, "cublasDestroy_v2", &blas->destroy) &&
         find(library, "cublasSetStream_v2", &blas->set_stream) &&
         find(library, "cublasSetWorkspace_v2", &blas->set_workspace) &&
         find(library, "cublasGetStatusString", &blas->status_string) &&
         find(library, "cublasGemmStridedBatchedEx", &blas->gemm_strided_batched);
}

constexpr int kSide = 32;  // of the matrices of the trial
constexpr size_t kTrialBytes = kSide * kSide * sizeof(float);

// The device memory of a trial.
struct Trial {
  const BlasLibrary& blas;
  cudaStream_t stream = nullptr;
  float* device = nullptr;  // a, b and c
  cublasHandle_t handle = nullptr;

  explicit Trial(const BlasLibrary& library) : blas(library) {}
  ~Trial() {
    if (handle) blas.destroy(handle);
    cudaFree(device);
    if (stream) cudaStreamDestroy(stream);
    cudaGetLastError();
  }
};

// The error of a library; empty if it multiplies small integers correctly, whose sums are exact in any order.
std::string try_library(const BlasLibrary& blas) {
  std::vector<float> a(kSide * kSide), b(a.size()), c(a.size()), wanted(a.size());
  for (int i = 0; i < kSide * kSide; ++i) a[i] = static_cast<float>(i % 7 - 3), b[i] = static_cast<float>(i % 5 - 2);
  for (int i = 0; i < kSide * kSide; ++i)
    for (int k = 0; k < kSide; ++k) wanted[i] += a[i % kSide + k * kSide] * b[k + i / kSide * kSide];
  Trial trial(blas);
  check(cudaStreamCreateWithFlags(&trial.stream, cudaStreamNonBlocking), "trial of cuBLAS");
  check(cudaMalloc(&trial.device, 3 * kTrialBytes), "trial of cuBLAS");
  float *on_a = trial.device, *on_b = on_a + a.size(), *on_c = on_b + b.size();
  const auto copy = [&](void* to, const void* from, cudaMemcpyKind kind) {
    check(cudaMemcpyAsync(to, from, kTrialBytes, kind, trial.stream), "trial of cuBLAS");
  };
  copy(on_a, a.data(), cudaMemcpyHostToDevice);
  copy(on_b, b.data(), cudaMemcpyHostToDevice);
  copy(on_c, c.data(), cudaMemcpyHostToDevice);

  const auto says = [&](const char* what, cublasStatus_t status) {
    return std::string(what) + " gives " + blas.status_string(status);
  };
  const float one = 1, zero = 0;
  cublasStatus_t status = blas.create(&trial.handle);
  if (status == CUBLAS_STATUS_ALLOC_FAILED) fail(ErrorCode::out_of_memory, "not enough memory on cuda for cuBLAS");
  if (status != CUBLAS_STATUS_SUCCESS) return says("cublasCreate", status);
  status = blas.set_stream(trial.handle, trial.stream);
  if (status != CUBLAS_STATUS_SUCCESS) return says("cublasSetStream", status);
  status = blas.gemm_strided_batched(trial.handle, CUBLAS_OP_N, CUBLAS_OP_N, kSide, kSide, kSide, &one, on_a,
                                     CUDA_R_32F, kSide, 0, on_b, CUDA_R_32F, kSide, 0, &zero, on_c, CUDA_R_32F, kSide,
                                     0, 1, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  if (status != CUBLAS_STATUS_SUCCESS) return says("a small GEMM", status);
  copy(c.data(), on_c, cudaMemcpyDeviceToHost);
  check(cudaStreamSynchronize(trial.stream), "trial of cuBLAS");
  return c == wanted ? "" : "the result of a small GEMM is wrong";
}

std::string open_blas(const std::string& path, BlasLibrary* blas) {
  void* library = open_library(path);
  if (!library) {
    const char* error = dlerror();
    return error ? error : "cannot be opened";
  }
  return find_all(library, blas) ? "" : "this is not cuBLAS 12 or 13";
}

std::string open_and_try(const std::string& path, BlasLibrary* blas) {
  if (const std::string wrong = open_blas(path, blas); !wrong.empty()) return wrong;
  try {
    return try_library(*blas);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::device_fault) throw;
    return error.what();
  }
}

struct BlasSearch {
  const BlasLibrary* library;  // null if none works
  std::string reason;          // what was tried, and the error of each
};

#if defined(ST_MOE_SIMT)
bool is_emulated() {
  return environment("ST_MOE_CUBLAS_LIBRARY").empty() && environment("SIMT_CUBLAS") != "files";
}
#endif

// The first library that `open` finds nothing wrong with.
template <class Open>
BlasSearch search(const Open& open) {
  BlasLibrary blas{};
#if defined(ST_MOE_SIMT)
  if (is_emulated()) {
    blas = {cublasCreate_v2,       cublasDestroy_v2,           cublasSetStream_v2,        cublasSetWorkspace_v2,
            cublasGetStatusString, cublasGemmStridedBatchedEx, cublasGemmGroupedBatchedEx};
    const std::string wrong = try_library(blas);
    return {wrong.empty() ? new BlasLibrary{blas} : nullptr, wrong};
  }
#endif
  const std::vector<Place> looked_in = places();
  std::string tried, looked;
  for (const std::string& path : candidates(looked_in)) {
    const std::string wrong = open(path, &blas);
    if (wrong.empty()) return {new BlasLibrary{blas}, ""};
    tried += (wrong.rfind(path, 0) == 0 ? "" : path + ": ") + wrong + "; ";
  }
  if (!environment("ST_MOE_CUBLAS_LIBRARY").empty()) return {nullptr, "ST_MOE_CUBLAS_LIBRARY: " + tried};
  for (const Place& place : looked_in) looked += ", " + place.prefix + place.pattern;
  return {nullptr, tried + "looked in the paths of the loader" + looked +
                       "; install CUDA 12 or 13, or name the file in ST_MOE_CUBLAS_LIBRARY"};
}

}  // namespace

std::string blas_fault(const std::vector<std::string>& folders) {
  program_folders() = folders;
#if defined(ST_MOE_SIMT)
  if (is_emulated()) return "";
#endif
  return search(open_blas).reason;
}

const BlasLibrary& blas_library() {
  static std::mutex mutex;
  static std::atomic<const BlasLibrary*> found{nullptr};
  if (const BlasLibrary* library = found) return *library;
  std::lock_guard<std::mutex> lock(mutex);
  if (found) return *found;
  const BlasSearch searched = search(open_and_try);
  if (!searched.library) fail(ErrorCode::backend_unavailable, "cublas: %s", searched.reason.c_str());
  found = searched.library;
  return *searched.library;
}

}  // namespace st_moe::cuda
