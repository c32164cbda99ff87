// What quantizing does to a block of rows, column by column.
//
// Both sides are made float by ggml's own functions, a row at a time, so that nothing but a row
// of each is ever in memory; squares are summed in double, in the order of the rows.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using ToFloat = void (*)(const void *, float *, int64_t);  // ggml_to_float_t

const float *as_float(const unsigned char *row, ToFloat to_float, std::vector<float> &buffer) {
    if (to_float)
        to_float(row, buffer.data(), int64_t(buffer.size()));
    else  // float32 already, wherever it lies
        std::memcpy(buffer.data(), row, buffer.size() * sizeof(float));
    return buffer.data();
}

}  // namespace

// error[c] = sum over rows of (w - q)^2 and power[c] = sum over rows of w^2.
extern "C" void column_sums(const unsigned char *w, ToFloat w_to_float, int64_t w_row_bytes,
                            const unsigned char *q, ToFloat q_to_float, int64_t q_row_bytes,
                            int64_t n_rows, int64_t n_columns, double *__restrict error,
                            double *__restrict power) {
    std::vector<float> w_buffer(n_columns), q_buffer(n_columns);
    std::memset(error, 0, n_columns * sizeof(double));
    std::memset(power, 0, n_columns * sizeof(double));
    for (int64_t row = 0; row < n_rows; ++row) {
        const float *__restrict a = as_float(w + row * w_row_bytes, w_to_float, w_buffer);
        const float *__restrict b = as_float(q + row * q_row_bytes, q_to_float, q_buffer);
        for (int64_t c = 0; c < n_columns; ++c) {
            const double weight = a[c], difference = weight - b[c];
            error[c] += difference * difference;
            power[c] += weight * weight;
        }
    }
}
