// Rounding a matrix column by column, the error of each fed back into the columns not yet rounded.
//
// For the second moments H of what the matrix reads, H = R R^T with R upper triangular and
// F = I - diag(R) R^-1, column c is rounded to the grid point q[c] nearest to
//
//     t[c] = w[c] + sum over j < c of (t[j] - q[j]) F[j, c]
//
// the best it can be after the columns before it (GPTQ, arXiv 2210.17323, whose factor of the
// inverse is R^-1). The grid of a block is ggml's own: its search, weighted by the importance, on
// what the block's columns are after the feedback from the blocks before. Codes go into the bytes
// of the block that the search has left (ggml-common.h, ggml-quants.c of the pinned commit).
// Without a search the grid stands in `out` already.
//
// Rows do not depend on each other: 64 lie side by side, so that all loops run over rows, and
// neither threads nor the cut of a matrix into strips change a bit.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <vector>

namespace {

constexpr int64_t ROWS = 64;
constexpr int64_t WIDEST = 256;  // columns of a block
constexpr int64_t TILE = 4;      // columns that take errors from other blocks together
typedef float Lanes __attribute__((vector_size(64), may_alias));
constexpr int64_t LANES = sizeof(Lanes) / sizeof(float);

struct alignas(64) Column {  // of a strip
    float row[ROWS];
    float &operator[](int64_t r) { return row[r]; }
    const float &operator[](int64_t r) const { return row[r]; }
};

// ggml_quantize_chunk and ggml_fp16_to_fp32
using Quantize = size_t (*)(int32_t, const float *, void *, int64_t, int64_t, int64_t,
                            const float *);
using FromHalf = float (*)(uint16_t);

// ---- the bytes of a block: value = offset + step * code, codes from 0; a grid for each group

float half(const uint8_t *bytes, FromHalf from_half) {
    uint16_t bits;
    std::memcpy(&bits, bytes, sizeof bits);
    return from_half(bits);
}

using Grid = void (*)(const uint8_t *block, FromHalf from_half, float *step, float *offset);
using Pack = void (*)(uint8_t *block, const uint8_t *codes);

template <int ZERO>  // the code of zero
void grid_scale(const uint8_t *block, FromHalf from_half, float *step, float *offset) {
    *step = half(block, from_half);
    *offset = -ZERO * *step;
}

void grid_scale_min(const uint8_t *block, FromHalf from_half, float *step, float *offset) {
    *step = half(block, from_half);
    *offset = half(block + 2, from_half);
}

void grid_q2_k(const uint8_t *block, FromHalf from_half, float *step, float *offset) {
    const float d = half(block + 80, from_half), d_min = half(block + 82, from_half);
    for (int g = 0; g < 16; ++g) {
        step[g] = d * float(block[g] & 15);
        offset[g] = -d_min * float(block[g] >> 4);
    }
}

void grid_q3_k(const uint8_t *block, FromHalf from_half, float *step, float *offset) {
    const float d = half(block + 108, from_half);
    const uint8_t *scales = block + 96;
    for (int g = 0; g < 16; ++g) {
        const int low = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4;
        const int high = scales[8 + g % 4] >> 2 * (g / 4) & 3;
        step[g] = d * float((low | high << 4) - 32);
        offset[g] = -4 * step[g];
    }
}

void grid_q45_k(const uint8_t *block, FromHalf from_half, float *step, float *offset) {
    const float d = half(block, from_half), d_min = half(block + 2, from_half);
    const uint8_t *s = block + 4;
    for (int g = 0; g < 8; ++g) {  // get_scale_min_k4
        const int scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
        const int min = g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | s[g] >> 6 << 4;
        step[g] = d * float(scale);
        offset[g] = -d_min * float(min);
    }
}

void grid_q6_k(const uint8_t *block, FromHalf from_half, float *step, float *offset) {
    const float d = half(block + 208, from_half);
    for (int g = 0; g < 16; ++g) {
        step[g] = d * float(int8_t(block[192 + g]));
        offset[g] = -32 * step[g];
    }
}

void nibbles(uint8_t *bytes, const uint8_t *codes) {  // of 32 codes
    for (int i = 0; i < 16; ++i) bytes[i] = uint8_t((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

void fifth_bits(uint8_t *bytes, const uint8_t *codes) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= uint32_t(codes[i] >> 4) << i;
    for (int i = 0; i < 4; ++i) bytes[i] = uint8_t(bits >> 8 * i);
}

void pack_q4_0(uint8_t *block, const uint8_t *codes) { nibbles(block + 2, codes); }
void pack_q4_1(uint8_t *block, const uint8_t *codes) { nibbles(block + 4, codes); }

void pack_q5_0(uint8_t *block, const uint8_t *codes) {
    fifth_bits(block + 2, codes);
    nibbles(block + 6, codes);
}

void pack_q5_1(uint8_t *block, const uint8_t *codes) {
    fifth_bits(block + 4, codes);
    nibbles(block + 8, codes);
}

void pack_q8_0(uint8_t *block, const uint8_t *codes) {
    for (int i = 0; i < 32; ++i) block[2 + i] = uint8_t(codes[i] - 127);
}

void low_pairs(uint8_t *bytes, const uint8_t *codes) {  // the low two bits of 256 codes
    for (int i = 0; i < 64; ++i) {
        const uint8_t *c = codes + i / 32 * 128 + i % 32;
        bytes[i] = uint8_t((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
    }
}

void pack_q2_k(uint8_t *block, const uint8_t *codes) { low_pairs(block + 16, codes); }

void pack_q3_k(uint8_t *block, const uint8_t *codes) {
    std::memset(block, 0, 32);
    for (int i = 0; i < 256; ++i) block[i % 32] |= uint8_t(codes[i] >> 2 << i / 32);
    low_pairs(block + 32, codes);
}

void nibbles_k(uint8_t *bytes, const uint8_t *codes) {  // of 256 codes, 32 beside the next 32
    for (int i = 0; i < 128; ++i) {
        const uint8_t *c = codes + i / 32 * 64 + i % 32;
        bytes[i] = uint8_t((c[0] & 15) | (c[32] & 15) << 4);
    }
}

void pack_q4_k(uint8_t *block, const uint8_t *codes) { nibbles_k(block + 16, codes); }

void pack_q5_k(uint8_t *block, const uint8_t *codes) {
    std::memset(block + 16, 0, 32);
    for (int i = 0; i < 256; ++i) block[16 + i % 32] |= uint8_t(codes[i] >> 4 << i / 32);
    nibbles_k(block + 48, codes);
}

void pack_q6_k(uint8_t *block, const uint8_t *codes) {
    for (int i = 0; i < 64; ++i) {
        const uint8_t *c = codes + i / 32 * 128 + i % 32;
        uint8_t *low = block + i / 32 * 64 + i % 32;
        low[0] = uint8_t((c[0] & 15) | (c[64] & 15) << 4);
        low[32] = uint8_t((c[32] & 15) | (c[96] & 15) << 4);
        block[128 + i] =
            uint8_t(c[0] >> 4 | c[32] >> 4 << 2 | c[64] >> 4 << 4 | c[96] >> 4 << 6);
    }
}

void grid_floats(const uint8_t *block, FromHalf, float *step, float *offset) {
    std::memcpy(step, block, sizeof *step);
    std::memcpy(offset, block + 4, sizeof *offset);
}

void pack_bytes(uint8_t *block, const uint8_t *codes) { std::memcpy(block + 8, codes, 128); }

struct Type {
    int32_t code;  // ggml_type; -1: four bits in groups of 128, a byte each
    int64_t columns, bytes, group;
    int highest;
    Grid grid;
    Pack pack;
};

constexpr Type TYPES[] = {
    {-1, 128, 136, 128, 15, grid_floats, pack_bytes},
    {2, 32, 18, 32, 15, grid_scale<8>, pack_q4_0},
    {3, 32, 20, 32, 15, grid_scale_min, pack_q4_1},
    {6, 32, 22, 32, 31, grid_scale<16>, pack_q5_0},
    {7, 32, 24, 32, 31, grid_scale_min, pack_q5_1},
    {8, 32, 34, 32, 254, grid_scale<127>, pack_q8_0},
    {10, 256, 84, 16, 3, grid_q2_k, pack_q2_k},
    {11, 256, 110, 16, 7, grid_q3_k, pack_q3_k},
    {12, 256, 144, 32, 15, grid_q45_k, pack_q4_k},
    {13, 256, 176, 32, 31, grid_q45_k, pack_q5_k},
    {14, 256, 210, 16, 63, grid_q6_k, pack_q6_k},
};

// ---- feedback

// target[i] += sum over j < n of errors[j] * factors[i * stride + j], for N columns
template <int64_t N>
void feed(Column *target, const Column *errors, const float *factors, int64_t stride, int64_t n) {
    for (int64_t lane = 0; lane < ROWS; lane += 2 * LANES) {
        Lanes sums[N][2];
        for (int64_t i = 0; i < N; ++i)
            for (int64_t k = 0; k < 2; ++k)
                sums[i][k] = *reinterpret_cast<Lanes *>(&target[i][lane + k * LANES]);
        for (int64_t j = 0; j < n; ++j) {
            const Lanes *error = reinterpret_cast<const Lanes *>(&errors[j][lane]);
            for (int64_t i = 0; i < N; ++i)
                for (int64_t k = 0; k < 2; ++k) sums[i][k] += error[k] * factors[i * stride + j];
        }
        for (int64_t i = 0; i < N; ++i)
            for (int64_t k = 0; k < 2; ++k)
                *reinterpret_cast<Lanes *>(&target[i][lane + k * LANES]) = sums[i][k];
    }
}

struct alignas(64) Strip {
    Column target[WIDEST];
    float rows[ROWS * WIDEST];
    Column step[16], offset[16];
    uint8_t codes[WIDEST][ROWS];
    uint8_t bytes[ROWS * 210];
};

// The nearest codes of a column, and how far they are off.
void round_column(const Column &target, const Column &step, const Column &offset, float highest,
                  uint8_t *__restrict codes, Column &error) {
    for (int64_t r = 0; r < ROWS; ++r) {
        const float place = step[r] != 0 ? (target[r] - offset[r]) / step[r] : 0;
        const float code = std::min(std::max(std::rint(place), 0.0f), highest);
        codes[r] = uint8_t(code);
        error[r] = target[r] - (offset[r] + step[r] * code);
    }
}

}  // namespace

extern "C" {

// `factor` holds F for each `width` columns, by the column that takes: factor[c][j] = F[j, c].
struct Matrix {
    int64_t n_columns, width;
    const float *factor, *importance;
    int32_t type;
    Quantize quantize;
    FromHalf from_half;
};

// Rounds rows of weights into `out`, whole blocks as the type has them; false for other types.
bool feed_back(const Matrix *m, const float *weights, int64_t n_rows, uint8_t *out) {
    const Type *type = std::find_if(std::begin(TYPES), std::end(TYPES),
                                    [&](const Type &t) { return t.code == m->type; });
    if (type == std::end(TYPES) || m->n_columns % type->columns || m->width % type->columns)
        return false;
    const int64_t row_bytes = m->n_columns / type->columns * type->bytes;
    std::vector<Column> errors(m->width);
    const auto strip = std::make_unique<Strip>();
    Strip &s = *strip;
    for (int64_t first = 0; first < n_rows; first += ROWS) {
        const int64_t n = std::min(ROWS, n_rows - first);
        s = Strip{};  // rows that are not there stay zero
        for (int64_t begin = 0; begin < m->n_columns; begin += type->columns) {
            const int64_t at = begin % m->width, block = begin / m->width;
            const float *factor = m->factor + (block * m->width + at) * m->width;
            for (int64_t r = 0; r < n; ++r) {
                const float *row = weights + (first + r) * m->n_columns + begin;
                for (int64_t c = 0; c < type->columns; ++c)
                    s.target[c][r] = row[c];
            }
            for (int64_t j = 0; j < at; j += WIDEST)
                for (int64_t c = 0; c < type->columns; c += TILE)
                    feed<TILE>(&s.target[c], &errors[j], factor + c * m->width + j, m->width,
                               std::min(WIDEST, at - j));
            for (int64_t r = 0; r < n; ++r)
                for (int64_t c = 0; c < type->columns; ++c)
                    s.rows[r * type->columns + c] = s.target[c][r];
            uint8_t *blocks = out + first * row_bytes + begin / type->columns * type->bytes;
            if (m->quantize)
                m->quantize(m->type, s.rows, s.bytes, 0, n, type->columns, m->importance + begin);
            else
                for (int64_t r = 0; r < n; ++r)
                    std::memcpy(s.bytes + r * type->bytes, blocks + r * row_bytes, type->bytes);
            for (int64_t r = 0; r < n; ++r) {
                float step[16], offset[16];
                type->grid(s.bytes + r * type->bytes, m->from_half, step, offset);
                for (int64_t g = 0; g < type->columns / type->group; ++g) {
                    s.step[g][r] = step[g];
                    s.offset[g][r] = offset[g];
                }
            }
            for (int64_t c = 0; c < type->columns; ++c) {
                const int64_t g = c / type->group;
                feed<1>(&s.target[c], &errors[at], factor + c * m->width + at, 0, c);
                round_column(s.target[c], s.step[g], s.offset[g], float(type->highest), s.codes[c],
                             errors[at + c]);
            }
            for (int64_t r = 0; r < n; ++r) {
                uint8_t codes[WIDEST];
                for (int64_t c = 0; c < type->columns; ++c) codes[c] = s.codes[c][r];
                uint8_t *bytes = s.bytes + r * type->bytes;
                type->pack(bytes, codes);
                std::memcpy(blocks + r * row_bytes, bytes, type->bytes);
            }
        }
    }
    return true;
}
}
