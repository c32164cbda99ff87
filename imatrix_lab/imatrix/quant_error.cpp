// What quantizing does to a block of rows: column by column, and weighted by second moments.
//
// Both sides are made float by ggml's own functions, some rows at a time, so that nothing but
// those is ever in memory; squares are summed in double, in the order of the rows.

#include <algorithm>
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

constexpr int64_t GROUP = 128;  // rows of one float sum of products
constexpr int64_t LANES = 32;   // sums side by side, for the vectors of any processor
#if defined(__AVX512F__)
constexpr int64_t MI = 8;
#else
constexpr int64_t MI = 4;
#endif
constexpr int64_t NJ = MI * 4;
static_assert(LANES % NJ == 0, "a block's width is padded to LANES");

// c[MI x NJ] = sum over the rows of panel[.., i..] panel[.., j..], in float.
inline void tile(const float *panel, int64_t width, int64_t n, int64_t i, int64_t j,
                 float (&out)[MI][NJ]) {
    float c[MI][NJ] = {};
    for (int64_t row = 0; row < n; ++row) {
        const float *x = panel + row * width;
        for (int64_t a = 0; a < MI; ++a)
            for (int64_t b = 0; b < NJ; ++b) c[a][b] += x[i + a] * x[j + b];
    }
    std::memcpy(out, c, sizeof c);
}

double dot(const double *__restrict mean, const float *__restrict x, int64_t n) {
    double part[LANES] = {}, sum = 0;
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES)
        for (int64_t k = 0; k < LANES; ++k) part[k] += mean[c + k] * x[c + k];
    for (; c < n; ++c) sum += mean[c] * x[c];
    for (double p : part) sum += p;
    return sum;
}

struct Moments {  // of several languages, in blocks of `block` columns, padded to `width`
    int64_t n_columns, block, width, n_languages;
    const float *const *upper;  // (blocks, width, width): products with x[i] x[j], i <= j
    const double *const *mean;

    // sums[l] += sum over rows x of sum_{i<=j} upper[l][i][j] x[i] x[j] + (mean[l] . x)^2
    void add(const float *rows, int64_t n_rows, double *sums) const {
        for (int64_t l = 0; l < n_languages; ++l)
            for (int64_t row = 0; row < n_rows; ++row) {
                const double output = dot(mean[l], rows + row * n_columns, n_columns);
                sums[l] += output * output;
            }
        std::vector<float> panel(n_rows * width);
        for (int64_t first = 0, b = 0; first < n_columns; first += block, ++b) {
            const int64_t real = std::min(block, n_columns - first);
            for (int64_t row = 0; row < n_rows; ++row)
                std::memcpy(&panel[row * width], rows + row * n_columns + first,
                            real * sizeof(float));
            for (int64_t row = 0; row < n_rows && real < width; ++row)
                std::memset(&panel[row * width + real], 0, (width - real) * sizeof(float));
            add_block(panel.data(), n_rows, real, b * width * width, sums);
        }
    }

    void add_block(const float *panel, int64_t n_rows, int64_t real, int64_t at,
                   double *sums) const {
        std::vector<double> parts(n_languages * NJ);
        float c[MI][NJ];
        for (int64_t i = 0; i < real; i += MI)
            for (int64_t j = i / NJ * NJ; j < real; j += NJ) {
                tile(panel, width, n_rows, i, j, c);
                for (int64_t l = 0; l < n_languages; ++l) {
                    double *__restrict part = &parts[l * NJ];
                    for (int64_t a = 0; a < MI; ++a) {
                        const float *__restrict u = upper[l] + at + (i + a) * width + j;
                        for (int64_t k = 0; k < NJ; ++k) part[k] += double(c[a][k]) * u[k];
                    }
                }
            }
        for (int64_t l = 0; l < n_languages; ++l)
            for (int64_t k = 0; k < NJ; ++k) sums[l] += parts[l * NJ + k];
    }
};

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

// lost[l] = sum over rows e = w - q of e^T M e, and energy[l] that over the rows of w, where M has
// the diagonal blocks `upper` (doubled above the diagonal, zero below) and mean mean^T throughout.
extern "C" void expected_sums(const unsigned char *w, ToFloat w_to_float, int64_t w_row_bytes,
                              const unsigned char *q, ToFloat q_to_float, int64_t q_row_bytes,
                              int64_t n_rows, int64_t n_columns, int64_t block, int64_t width,
                              int64_t n_languages, const float *const *upper,
                              const double *const *mean, double *lost, double *energy) {
    const Moments moments{n_columns, block, width, n_languages, upper, mean};
    std::vector<float> a(n_columns), b(n_columns);
    std::vector<float> weights(GROUP * n_columns), errors(GROUP * n_columns);
    std::fill_n(lost, n_languages, 0.0);
    std::fill_n(energy, n_languages, 0.0);
    for (int64_t first = 0; first < n_rows; first += GROUP) {
        const int64_t n = std::min(GROUP, n_rows - first);
        for (int64_t row = 0; row < n; ++row) {
            const float *x = as_float(w + (first + row) * w_row_bytes, w_to_float, a);
            const float *y = as_float(q + (first + row) * q_row_bytes, q_to_float, b);
            for (int64_t c = 0; c < n_columns; ++c) {
                weights[row * n_columns + c] = x[c];
                errors[row * n_columns + c] = x[c] - y[c];
            }
        }
        moments.add(errors.data(), n, lost);
        moments.add(weights.data(), n, energy);
    }
}
