// Sums over the inputs of a model's matrices, gathered while llama.cpp computes.
//
// `collect` is an evaluation callback: the scheduler asks it about each node of the graph, and
// shows it the multiplications it wants once they are computed. What is summed, for each matrix
// (expert) and the rows x of its input:
//
//   n = number of rows   squares[c] = sum x[c]^2   sum[c] = sum x[c]   products = sum x x^T
//
// Products are kept for diagonal blocks of `block` columns, upper triangle, in strips of 32 rows.
// Rows are added in the order of the tokens, a window at a time, and each sum belongs to one
// thread: neither threads nor the number of windows in a decode change a bit. Squares and sums are
// double throughout; products are float over at most 128 tokens, then double. Squares are summed
// over shards of the text, each from zero, and shards added in order: so other machines may sum some.
//
// Which multiplications count, and how their rows belong to matrices, is llama-imatrix's rule
// (tools/imatrix/imatrix.cpp). Matrices that read one input (q, k, v; gate, up) share its sums.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

// ggml_tensor of the pinned commit (ggml.h); `layout_agrees` compares it with the library.
struct Tensor {
    int32_t type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
    int32_t op;
    int32_t op_params[16];
    int32_t flags;
    Tensor *src[10];
    Tensor *view_src;
    size_t view_offs;
    void *data;
    char name[64];
    void *extra;
    char padding[8];
};
constexpr int32_t F32 = 0;
constexpr int64_t ROWS_MIN = 16;  // llama-imatrix ignores smaller products
constexpr int64_t STRIP = 32;     // rows of x x^T that one thread takes at a time
constexpr int64_t GROUP = 128;    // tokens of one float sum of products
#if defined(__AVX512F__)
constexpr int64_t MI = 8, NJ = 32;
#else
constexpr int64_t MI = 4, NJ = 16;
#endif

struct Sums {  // of one matrix
    int64_t n = 0;
    std::vector<double> squares, shard, sum, products;  // squares of ended shards, of the present one
};

struct Input {
    int64_t n_columns = 0;
    int64_t block = 0;  // 0: no products
    bool experts = false;
    std::vector<Sums> matrices;
    std::string first;  // the matrix that was seen first

    void open(Sums &s, bool moments) {
        if (s.squares.empty()) {
            s.squares.resize(n_columns);
            s.shard.resize(n_columns);
        }
        if (!moments) return;
        if (s.sum.empty()) s.sum.resize(n_columns);
        if (s.products.empty() && block) s.products.resize(n_products());
    }
    int64_t width(int64_t b) const { return std::min(block, n_columns - b * block); }
    int64_t n_blocks() const { return block ? (n_columns + block - 1) / block : 0; }
    // Values of a block's strips above strip s: each strip holds the columns from its own on.
    static int64_t before(int64_t width, int64_t s) {
        return s * STRIP * width - STRIP * STRIP * (s * (s - 1) / 2);
    }
    static int64_t padded(int64_t width) { return (width + STRIP - 1) / STRIP * STRIP; }
    static int64_t block_values(int64_t width) {
        const int64_t p = padded(width);
        return before(p, p / STRIP);
    }
    int64_t n_products() const {
        int64_t n = 0;
        for (int64_t b = 0; b < n_blocks(); ++b) n += block_values(width(b));
        return n;
    }
};

struct Rows {  // where rows of float32 lie, in the order of the tokens
    std::vector<const float *> at;
    std::vector<int64_t> ends;  // of windows
    void end() { ends.push_back(int64_t(at.size())); }
};

// C[MI x NJ] = sum over the rows of a[.., i..] b[.., j..], in float.
inline void tile(const float *panel, int64_t stride, int64_t n, int64_t i, int64_t j, float *out) {
    float c[MI][NJ] = {};
    for (int64_t t = 0; t < n; ++t) {
        const float *row = panel + t * stride;
        for (int64_t a = 0; a < MI; ++a)
            for (int64_t b = 0; b < NJ; ++b) c[a][b] += row[i + a] * row[j + b];
    }
    std::memcpy(out, c, sizeof c);
}

// Add rows to one strip of one block: x[strip] x[strip..]^T.
void add_strip(const Rows &rows, int64_t column, int64_t width, int64_t strip, double *sums) {
    const int64_t first = strip * STRIP, n = Input::padded(width) - first;
    const int64_t real = std::min(n, width - first);
    std::vector<float> panel(GROUP * n);
    float c[MI * NJ];
    size_t at = 0;
    for (int64_t end : rows.ends) {
        while (at < size_t(end)) {
            const int64_t n_rows = std::min(GROUP, end - int64_t(at));
            for (int64_t t = 0; t < n_rows; ++t) {
                std::memcpy(&panel[t * n], rows.at[at + t] + column + first, real * sizeof(float));
                std::memset(&panel[t * n + real], 0, (n - real) * sizeof(float));
            }
            for (int64_t i = 0; i < STRIP; i += MI)
                for (int64_t j = i / NJ * NJ; j < n; j += NJ) {
                    tile(panel.data(), n, n_rows, i, j, c);
                    for (int64_t a = 0; a < MI; ++a)
                        for (int64_t b = 0; b < NJ; ++b)
                            sums[(i + a) * n + j + b] += c[a * NJ + b];
                }
            at += n_rows;
        }
    }
}

// Add rows to squares and sums of some columns.
void add_columns(const Rows &rows, int64_t begin, int64_t end, double *__restrict squares,
                 double *__restrict sum) {
    for (const float *x : rows.at) {
        for (int64_t c = begin; c < end; ++c) squares[c] += double(x[c]) * double(x[c]);
        if (sum)
            for (int64_t c = begin; c < end; ++c) sum[c] += double(x[c]);
    }
}

template <class Work>
void spread(int threads, int64_t n_items, Work work) {
    std::atomic<int64_t> next{0};
    auto run = [&] {
        for (int64_t i; (i = next.fetch_add(1)) < n_items;) work(i);
    };
    const int64_t n = std::min<int64_t>(threads, n_items);
    std::vector<std::thread> workers;
    for (int64_t i = 1; i < n; ++i) workers.emplace_back(run);
    run();
    for (auto &worker : workers) worker.join();
}

// "CUDA0#blk.0.attn_k.weight#0" -> "blk.0.attn_k.weight"
std::string plain_name(const Tensor *t) {
    if (!t) return "";
    std::string name(t->name, strnlen(t->name, sizeof t->name));
    const size_t first = name.find('#');
    if (first == std::string::npos) return name;
    return name.substr(first + 1, name.find('#', first + 1) - first - 1);
}

}  // namespace

struct Functions {  // of ggml
    bool (*is_host)(void *buffer);
    void (*get)(const Tensor *, void *, size_t, size_t);
    size_t (*n_bytes)(const Tensor *);
    int32_t mul_mat, mul_mat_id;
};

struct Collector {
    Functions ggml{};
    int threads = 1;
    int64_t block = 0;   // columns of a block of products
    int64_t window = 0;  // tokens of each window of a decode, and how many of them are text
    std::vector<int64_t> lengths;
    bool moments = false, head = false;
    std::atomic<int64_t> n_multiplied{0};  // in this decode, read by another thread
    const int32_t *interrupted = nullptr;
    bool may_end = false, ended = false;
    std::map<std::string, size_t> input_of;
    std::vector<Input> inputs;
    std::unordered_set<std::string> full;
    // inputs summed in this decode, with the choice of experts
    std::map<std::pair<const Tensor *, const Tensor *>, size_t> graph;
    std::string fault;
    std::vector<char> data, ids;

    bool wanted(const Tensor *t) const {
        if (t->op == ggml.mul_mat_id) return true;
        if (t->op != ggml.mul_mat || t->src[1]->type != F32 || t->src[1]->ne[1] < ROWS_MIN)
            return false;
        const std::string name = plain_name(t->src[0]);
        return name.rfind("blk.", 0) == 0 || (head && name == "output.weight");
    }

    // Nothing that is collected comes after the final norm.
    bool is_end(const Tensor *t) const {
        if (head) return false;
        if (std::strcmp(t->name, "result_norm") == 0) return true;
        if (t->op != ggml.mul_mat) return false;
        const std::string name = plain_name(t->src[0]);
        return name == "output.weight" || name == "token_embd.weight";
    }

    const char *host(const Tensor *t, std::vector<char> &buffer) {
        if (ggml.is_host(t->buffer)) return static_cast<const char *>(t->data);
        buffer.resize(ggml.n_bytes(t));
        ggml.get(t, buffer.data(), 0, buffer.size());
        return buffer.data();
    }

    Input *input(const std::string &name, int64_t n_columns, int64_t n_matrices) {
        Input &in = inputs[input_of.at(name)];
        if (in.n_columns == n_columns && int64_t(in.matrices.size()) == n_matrices) return &in;
        fault = name + " has another shape than before";
        return nullptr;
    }

    size_t new_input(const std::string &name, int64_t n_columns, int64_t n_matrices, bool experts) {
        Input in;
        in.n_columns = n_columns;
        in.experts = experts;
        in.first = name;
        in.matrices.resize(n_matrices);
        if (moments) in.block = full.count(name) ? n_columns : block;
        inputs.push_back(std::move(in));
        return input_of[name] = inputs.size() - 1;
    }

    bool take(const Tensor *t) {
        const Tensor *w = t->src[0], *x = t->src[1];
        const std::string name = plain_name(w);
        const bool by_id = t->op == ggml.mul_mat_id;
        const int64_t n_matrices = by_id ? w->ne[2] : w->ne[2] * w->ne[3];
        const bool alone = full.count(name) || (n_matrices > 1 && !by_id);  // shares with nobody
        const std::pair<const Tensor *, const Tensor *> key{x, by_id ? t->src[2] : nullptr};
        auto seen = alone ? graph.end() : graph.find(key);
        auto known = input_of.find(name);
        if (seen != graph.end()) {
            if (known == input_of.end()) input_of[name] = seen->second;
            else if (known->second != seen->second) {
                fault = name + " reads another input than before";
                return false;
            }
            return true;
        }
        const size_t index = known == input_of.end()
                                 ? new_input(name, x->ne[0], n_matrices, by_id)
                                 : known->second;
        Input *in = input(name, x->ne[0], n_matrices);
        if (!in) return false;
        if (!alone) graph[key] = index;
        return by_id ? experts(t, *in) : dense(t, *in);
    }

    int64_t n_tokens() const { return window * int64_t(lengths.size()); }
    bool is_text(int64_t token) const { return token % window < lengths[token / window]; }
    bool is_padded() const {
        return std::any_of(lengths.begin(), lengths.end(), [&](int64_t n) { return n < window; });
    }
    bool no_tokens(const std::string &name) {
        fault = name + " reads rows that are not those of tokens (use one window a decode)";
        return false;
    }

    // Which token a row belongs to: rows lie in the order of the tokens (models with a state have
    // the windows in another dimension), or tokens in one dimension and heads in another.
    struct Steps {
        int64_t in_1 = 1, in_2 = 0, in_3 = 0;
        int64_t token(int64_t i1, int64_t i2, int64_t i3) const {
            return i1 * in_1 + i2 * in_2 + i3 * in_3;
        }
    };
    bool steps(const Tensor *x, Steps &steps) const {
        const int64_t n = n_tokens();
        if (x->ne[1] * x->ne[2] * x->ne[3] == n) steps = {1, x->ne[1], x->ne[1] * x->ne[2]};
        else if (x->ne[2] == n) steps = {0, 1, 0};
        else return x->ne[1] == n;
        return true;
    }

    bool dense(const Tensor *t, Input &in) {
        const Tensor *w = t->src[0], *x = t->src[1];
        const char *at = host(x, data);
        std::vector<Rows> rows(in.matrices.size());
        Steps step;
        const bool known = steps(x, step);
        if (!known && is_padded()) return no_tokens(in.first);
        for (int64_t i3 = 0; i3 < x->ne[3]; ++i3)
            for (int64_t i2 = 0; i2 < x->ne[2]; ++i2) {
                Rows &r = rows[(i3 % w->ne[3]) * w->ne[2] + i2 % w->ne[2]];
                for (int64_t i1 = 0; i1 < x->ne[1]; ++i1) {
                    const int64_t token = step.token(i1, i2, i3);
                    if (i1 && token % window == 0) r.end();
                    if (known && !is_text(token)) continue;
                    const size_t offset = i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3];
                    r.at.push_back(reinterpret_cast<const float *>(at + offset));
                }
                r.end();
            }
        return add(in, rows);
    }

    bool experts(const Tensor *t, Input &in) {
        const Tensor *x = t->src[1], *chosen = t->src[2];
        const bool known = x->ne[2] == n_tokens();
        if (!known && is_padded()) return no_tokens(in.first);
        const char *at = host(x, data);
        ids.resize(ggml.n_bytes(chosen));
        ggml.get(chosen, ids.data(), 0, ids.size());
        std::vector<Rows> rows(in.matrices.size());
        for (int64_t token = 0; token < x->ne[2]; ++token) {
            if (token && token % window == 0)
                for (Rows &r : rows) r.end();
            if (known && !is_text(token)) continue;
            for (int64_t k = 0; k < chosen->ne[0]; ++k) {
                int32_t expert;
                std::memcpy(&expert, ids.data() + token * chosen->nb[1] + k * chosen->nb[0], 4);
                if (expert < 0 || expert >= int64_t(rows.size())) {
                    fault = plain_name(t->src[0]) + " was given an expert that it does not have";
                    return false;
                }
                const size_t offset = (k % x->ne[1]) * x->nb[1] + token * x->nb[2];
                rows[expert].at.push_back(reinterpret_cast<const float *>(at + offset));
            }
        }
        for (Rows &r : rows) r.end();
        return add(in, rows);
    }

    bool add(Input &in, const std::vector<Rows> &rows) {
        for (size_t m = 0; m < rows.size(); ++m) {
            if (rows[m].at.empty()) continue;
            Sums &s = in.matrices[m];
            in.open(s, moments);
            s.n += int64_t(rows[m].at.size());
            const int64_t step = 512;
            const bool small = in.n_columns * int64_t(rows[m].at.size()) < 1 << 20;
            spread(small ? 1 : threads, (in.n_columns + step - 1) / step, [&](int64_t i) {
                add_columns(rows[m], i * step, std::min(in.n_columns, (i + 1) * step),
                            s.shard.data(), moments ? s.sum.data() : nullptr);
            });
            for (double square : s.shard)
                if (!std::isfinite(square)) {
                    fault = in.first + " has values that are not finite";
                    return false;
                }
            if (in.block) products(in, rows[m], s.products.data());
        }
        return true;
    }

    void products(const Input &in, const Rows &rows, double *values) {
        struct Strip {
            int64_t column, width, strip;
            double *sums;
        };
        std::vector<Strip> strips;
        for (int64_t b = 0; b < in.n_blocks(); ++b) {
            const int64_t width = in.width(b), padded = Input::padded(width);
            for (int64_t s = 0; s * STRIP < padded; ++s)
                strips.push_back({b * in.block, width, s, values + Input::before(padded, s)});
            values += Input::block_values(width);
        }
        spread(threads, int64_t(strips.size()), [&](int64_t i) {
            const Strip &s = strips[i];
            add_strip(rows, s.column, s.width, s.strip, s.sums);
        });
    }
};

extern "C" {

// The scheduler's callback; `fault` says why it stops.
bool collect(Tensor *t, bool ask, void *collector) {
    Collector &c = *static_cast<Collector *>(collector);
    if (ask) {
        if (!c.fault.empty()) return true;
        const bool end = c.is_end(t);
        // on a CPU this aborts the computation before the head, and no logits are copied
        if (end && c.may_end) c.ended = true;
        return end || c.wanted(t);
    }
    if (!c.fault.empty() || c.is_end(t)) return false;  // elsewhere no node after this is computed
    ++c.n_multiplied;
    return c.take(t);
}

// llama.cpp's abort callback.
bool should_stop(void *collector) {
    const Collector &c = *static_cast<Collector *>(collector);
    return c.ended || !c.fault.empty() || (c.interrupted && *c.interrupted);
}

Collector *collector_new(const Functions *ggml, int threads, int64_t block, bool head,
                         const int32_t *interrupted) {
    Collector *c = new Collector;
    c->ggml = *ggml;
    c->threads = threads;
    c->block = block;
    c->moments = block > 0;
    c->head = head;
    c->interrupted = interrupted;
    return c;
}

void collector_free(Collector *c) { delete c; }
void collector_full(Collector *c, const char *name) { c->full.insert(name); }

// Before each decode, of `n` windows of `window` tokens each, of which the first `lengths[i]` are
// text. `may_end`: nothing needs the memory of its tokens afterwards.
void collector_begin(Collector *c, bool may_end, int64_t window, int64_t n,
                     const int64_t *lengths) {
    c->window = window;
    c->lengths.assign(lengths, lengths + n);
    c->graph.clear();
    c->n_multiplied = 0;
    c->ended = false;
    c->may_end = may_end;
}

// Abort the decode that was begun: it allocates what a whole one needs, and computes nothing.
void collector_abort(Collector *c) { c->ended = true; }

// Give the pages of a buffer of zeros back; where one is touched again, it is zeros again.
void release(char *buffer, size_t size) {
#ifdef __linux__
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t first = (page - uintptr_t(buffer) % page) % page;
    if (size > first) madvise(buffer + first, (size - first) / page * page, MADV_DONTNEED);
#else
    (void)buffer;
    (void)size;
#endif
}

int64_t collector_n_multiplied(const Collector *c) { return c->n_multiplied; }
bool collector_ended(const Collector *c) { return c->ended; }
const char *collector_fault(const Collector *c) { return c->fault.c_str(); }

// Matrices and their inputs, for reading the sums and for filling in saved ones.
int64_t collector_n_matrices(const Collector *c) { return int64_t(c->input_of.size()); }
const char *collector_matrix(const Collector *c, int64_t i, int64_t *input) {
    auto at = c->input_of.begin();
    std::advance(at, i);
    *input = int64_t(at->second);
    return at->first.c_str();
}
int64_t collector_n_inputs(const Collector *c) { return int64_t(c->inputs.size()); }
// `facts`: columns, matrices, whether they are experts, columns of a block, values of all blocks.
const char *collector_input(const Collector *c, int64_t i, int64_t *facts) {
    const Input &in = c->inputs[i];
    facts[0] = in.n_columns;
    facts[1] = int64_t(in.matrices.size());
    facts[2] = in.experts;
    facts[3] = in.block;
    facts[4] = in.n_products();
    return in.first.c_str();
}
void collector_add(Collector *c, const char *name, int64_t n_columns, int64_t n_matrices,
                   bool experts) {
    c->new_input(name, n_columns, n_matrices, experts);
}
void collector_alias(Collector *c, const char *name, int64_t input) {
    c->input_of[name] = size_t(input);
}

// The shard ends that rows were added to; the next begins.
void collector_end_shard(Collector *c) {
    for (Input &in : c->inputs)
        for (Sums &s : in.matrices)
            for (size_t i = 0; i < s.shard.size(); ++i) {
                s.squares[i] += s.shard[i];
                s.shard[i] = 0;
            }
}

// A matrix's sums: number of rows, and pointers that are null before the first row. With `open`
// they are made.
int64_t *collector_sums(Collector *c, int64_t input, int64_t matrix, bool open, double **squares,
                        double **shard, double **sum, double **products) {
    Input &in = c->inputs[input];
    Sums &s = in.matrices[matrix];
    if (open) in.open(s, c->moments);
    *squares = s.squares.empty() ? nullptr : s.squares.data();
    *shard = s.shard.empty() ? nullptr : s.shard.data();
    *sum = s.sum.empty() ? nullptr : s.sum.data();
    *products = s.products.empty() ? nullptr : s.products.data();
    return &s.n;
}

// Whether a product of two tensors that ggml made looks as `Tensor` says.
bool layout_agrees(const Tensor *product, const Tensor *w, const Tensor *x, int32_t mul_mat) {
    return product->op == mul_mat && product->src[0] == w && product->src[1] == x &&
           w->ne[0] == 32 && w->ne[1] == 3 && x->ne[1] == 5 && x->nb[1] == 128 &&
           product->ne[0] == 3 && product->ne[1] == 5 && std::strcmp(w->name, "w.weight") == 0;
}
}
