#pragma once
#include "core/pack.h"
#include "cpu/gemm.h"

// A batch of weights as the products read them, kept with the parameter: a second product with the same values need
// not pack them again, and reads half of the bytes. In training the values change before that, so the first use only
// leaves a mark.
namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
class PackedWeights {
 public:
  // weights [batch, K, N], batch_stride elements apart.
  PackedWeights(const Context& ctx, PackedCopies* copies, const MatrixView<T>& weights, int64_t batch,
                int64_t batch_stride, int64_t K, int64_t N, DType compute)
      : size_(copies ? packed_size<T>(K, N, compute) : 0) {
    if (size_ == 0 || batch == 0) return;
    const int32_t along_k = weights.row_stride == 1;
    const PackKey key{kPanels + along_k, compute, batch, K, N}, mark{kMark + along_k, compute, batch, K, N};
    data_ = static_cast<const T*>(copies->find(*copies, key));
    if (data_) return;
    const bool again = copies->find(*copies, mark);
    const size_t bytes = again ? static_cast<size_t>(batch * size_) * sizeof(T) : 1;
    void* memory = cache_allocate(bytes);
    if (!memory) return;  // the product packs as it goes
    if (again) pack_weights(ctx, weights, batch, batch_stride, K, N, compute, static_cast<T*>(memory));
    if (!copies->keep(*copies, again ? key : mark, memory, bytes))
      cache_release(memory, bytes);
    else if (again)
      data_ = static_cast<const T*>(memory);
  }

  // For GemmProblem::packed_b; null where there is no copy.
  const T* at(int64_t index) const { return data_ ? data_ + index * size_ : nullptr; }

 private:
  enum Layout : int32_t { kPanels = 0, kMark = 2 };

  int64_t size_;
  const T* data_ = nullptr;
};

}  // namespace st_moe::cpu::ST_MOE_ISA
