// What scoring does with a row of logits, in one walk over the vocabulary.
//
// A row is read in blocks that fit the first-level cache. Sums are float inside a block, in
// independent lanes that any compiler turns into vector instructions, and double between
// blocks: the order is fixed, so a row gives the same bits on any number of threads.
// A NaN or an infinity anywhere in a row makes its divergence NaN or infinite.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 32;
constexpr int BLOCK = 32 * LANES;

// exp(x) for x <= 0, relative error below 2e-7; 1.2e-38 or less where x < -87; NaN stays NaN.
// 2^(x log2 e), the integral part by the exponent bits, the rest by a minimax polynomial.
inline float exp_of(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float biased = x * 1.44269504f + shift;
    const float n = biased - shift;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;  // a shift may carry out of an int
    std::memcpy(&bits, &biased, sizeof bits);
    bits = (bits + 127) << 23;  // the low bits of `biased` are n
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

struct Softmax {  // running maximum, and sum of exp(z - maximum)
    float maximum = -INFINITY;
    double sum = 0;
    int32_t best_block = 0;

    // Take in a block's maximum before its terms are added.
    void raise_to(float block_maximum, int32_t block) {
        if (block_maximum > maximum) {
            // times 0 rather than 0: a NaN stays
            sum *= maximum == -INFINITY ? 0 : std::exp(double(maximum) - block_maximum);
            maximum = block_maximum;
            best_block = block;
        }
    }
    double log_sum() const { return double(maximum) + std::log(sum); }
};

inline float maximum_of(const float *z, int n) {
    float lane[LANES];
    for (int j = 0; j < LANES; ++j) lane[j] = -INFINITY;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; ++j) lane[j] = z[i + j] > lane[j] ? z[i + j] : lane[j];
    for (; i < n; ++i) lane[0] = z[i] > lane[0] ? z[i] : lane[0];
    for (int j = 1; j < LANES; ++j) lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
    return lane[0];
}

inline double total(const float *lane) {
    double sum = 0;
    for (int j = 0; j < LANES; ++j) sum += lane[j];
    return sum;
}

inline double sum_exp(const float *z, int n, float maximum) {
    float lane[LANES] = {};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; ++j) lane[j] += exp_of(z[i + j] - maximum);
    for (; i < n; ++i) lane[0] += exp_of(z[i] - maximum);
    return total(lane);
}

// Sum over a block of exp(z_ref - maximum_ref) * (z_ref - z).
inline double sum_difference(const float *z_ref, const float *z, int n, float maximum_ref) {
    float lane[LANES] = {};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; ++j)
            lane[j] += exp_of(z_ref[i + j] - maximum_ref) * (z_ref[i + j] - z[i + j]);
    for (; i < n; ++i) lane[0] += exp_of(z_ref[i] - maximum_ref) * (z_ref[i] - z[i]);
    return total(lane);
}

inline int32_t first_of(const float *z, int32_t start, int32_t n, float value) {
    const int32_t end = start + BLOCK < n ? start + BLOCK : n;
    for (int32_t i = start; i < end; ++i)
        if (z[i] == value) return i;
    return -1;  // a row of NaN
}

}  // namespace

extern "C" {

// Per row of `logits`: its maximum, the log of the sum of exp(z), and the index of the maximum
// (the first, on a tie).
void score_rows(const float *logits, int32_t n_rows, int32_t n_vocab, float *maximum,
                double *log_sum, int32_t *top) {
    for (int32_t row = 0; row < n_rows; ++row) {
        const float *z = logits + int64_t(row) * n_vocab;
        Softmax softmax;
        for (int32_t start = 0; start < n_vocab; start += BLOCK) {
            const int n = n_vocab - start < BLOCK ? n_vocab - start : BLOCK;
            softmax.raise_to(maximum_of(z + start, n), start);
            softmax.sum += sum_exp(z + start, n, softmax.maximum);
        }
        maximum[row] = softmax.maximum;
        log_sum[row] = softmax.log_sum();
        top[row] = first_of(z, softmax.best_block, n_vocab, softmax.maximum);
    }
}

// The same for a quant's rows, and KL(ref || row) in nats, from the reference's logits and what
// `score_rows` said of them: sum p_ref (z_ref - z) - (log_sum_ref - log_sum).
void compare_rows(const float *ref_logits, const float *ref_maximum, const double *ref_log_sum,
                  const float *logits, int32_t n_rows, int32_t n_vocab, float *maximum,
                  double *log_sum, int32_t *top, double *kld) {
    for (int32_t row = 0; row < n_rows; ++row) {
        const float *z = logits + int64_t(row) * n_vocab;
        const float *z_ref = ref_logits + int64_t(row) * n_vocab;
        Softmax softmax;
        double difference = 0;
        for (int32_t start = 0; start < n_vocab; start += BLOCK) {
            const int n = n_vocab - start < BLOCK ? n_vocab - start : BLOCK;
            softmax.raise_to(maximum_of(z + start, n), start);
            softmax.sum += sum_exp(z + start, n, softmax.maximum);
            difference += sum_difference(z_ref + start, z + start, n, ref_maximum[row]);
        }
        maximum[row] = softmax.maximum;
        log_sum[row] = softmax.log_sum();
        top[row] = first_of(z, softmax.best_block, n_vocab, softmax.maximum);
        difference *= std::exp(ref_maximum[row] - ref_log_sum[row]);
        kld[row] = difference - (ref_log_sum[row] - log_sum[row]);
    }
}

// Per row: indices of the `k` largest logits, in increasing order. On a tie at the edge the
// lower index is in. A histogram finds the few that are worth sorting.
void top_rows(const float *logits, int32_t n_rows, int32_t n_vocab, int32_t k, int32_t *indices) {
    constexpr int BUCKETS = 4096;
    constexpr float PER_NAT = 128.0f;
    std::vector<int32_t> candidates;
    for (int32_t row = 0; row < n_rows; ++row) {
        const float *z = logits + int64_t(row) * n_vocab;
        const float maximum = maximum_of(z, n_vocab);
        const auto bucket = [&](int32_t i) {
            const float below = (maximum - z[i]) * PER_NAT;
            return below < BUCKETS - 1 ? int(below) : BUCKETS - 1;  // NaN comes last
        };
        int32_t count[BUCKETS] = {};
        for (int32_t i = 0; i < n_vocab; ++i) ++count[bucket(i)];
        int edge = 0;
        for (int32_t n = count[0]; n < k; n += count[edge]) ++edge;
        candidates.clear();
        for (int32_t i = 0; i < n_vocab; ++i)
            if (bucket(i) <= edge) candidates.push_back(i);
        const auto before = [&](int32_t a, int32_t b) {
            const float x = std::isnan(z[a]) ? -INFINITY : z[a];
            const float y = std::isnan(z[b]) ? -INFINITY : z[b];
            return x > y || (x == y && a < b);
        };
        std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(), before);
        std::sort(candidates.begin(), candidates.begin() + k);
        std::copy(candidates.begin(), candidates.begin() + k, indices + int64_t(row) * k);
    }
}

// For llama_context's abort callback: whether the flag at `data` is set.
bool is_set(void *data) { return *static_cast<volatile int32_t *>(data) != 0; }

}
