// Where a loaded model keeps its tensors: llama.cpp's own list, which only C++ can read.

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

struct Model;
struct Tensor;
using Tensors = std::vector<std::pair<std::string, Tensor *>>;
using TensorsOf = const Tensors &(*)(const Model *);  // llama_internal_get_tensor_map

extern "C" {

size_t n_tensors(TensorsOf of, const Model *model) { return of(model).size(); }

Tensor *tensor_at(TensorsOf of, const Model *model, size_t i, const char **name) {
    const auto &entry = of(model)[i];
    *name = entry.first.c_str();
    return entry.second;
}
}
