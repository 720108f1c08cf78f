/* CPU kernels of the decode step: what is left beside the linear layers, one call each. Built and called by native.py.
 *
 * Floats are fp32, arrays are contiguous, T is the number of packed new tokens. No fast-math: infinities and NaN keep
 * their meaning. Every output row is summed in an order that depends on that row's own data only, never on the number of
 * threads, on the other rows, or on how a sequence was cut into chunks, so that results are equal bit for bit.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif
#if defined(_OPENMP)
extern int omp_get_thread_num(void); /* omp.h is not always installed with the compiler */
#endif

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef float v8_unaligned __attribute__((vector_size(32), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE v8 load(const float *p) { return *(const v8_unaligned *)p; }
INLINE void store(float *p, v8 x) { *(v8_unaligned *)p = x; }
INLINE v8 splat(float x) { return (v8){x, x, x, x, x, x, x, x}; }
INLINE v8 pick(v8i mask, v8 a, v8 b) { return (v8)((mask & (v8i)a) | (~mask & (v8i)b)); }
INLINE float lane_sum(v8 x) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }

/* exp to about 1 ulp for every float: x = n ln 2 + r, |r| <= ln 2 / 2, Taylor series to r^7 (next term: 5e-9).
 * 2^n is applied in two halves, so that overflow gives inf and the smallest results are subnormal. */
INLINE v8 exp8(v8 x) {
    const float round_to_int = 12582912.0f; /* 1.5 * 2^23: adding it leaves no fraction bits */
    x = pick(x > splat(89.0f), splat(89.0f), x);
    x = pick(x < splat(-104.0f), splat(-104.0f), x);
    v8 n = (x * 1.44269504f + round_to_int) - round_to_int;
    v8 r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two pieces; the first product is exact */
    v8 p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    v8i exponent = __builtin_convertvector(n, v8i), half = exponent >> 1;
    return p * (v8)((half + 127) << 23) * (v8)((exponent - half + 127) << 23);
}

INLINE float sum_of_squares(const float *x, int64_t n) {
    v8 a = splat(0), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        v8 p = load(x + i), q = load(x + i + 8), r = load(x + i + 16), s = load(x + i + 24);
        a += p * p, b += q * q, c += r * r, d += s * s;
    }
    for (; i + 8 <= n; i += 8) {
        v8 p = load(x + i);
        a += p * p;
    }
    float tail = 0;
    for (; i < n; i++) tail += x[i] * x[i];
    return lane_sum((a + b) + (c + d)) + tail;
}

INLINE void normalise(const float *x, const float *weight, int64_t n, float eps, float *out) {
    float inverse = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * inverse * weight[i];
}

/* out[T,C] = x / rms(x) * weight. With delta, x += delta comes first, in place. */
void rms_norm(int64_t T, int64_t C, float *x, const float *delta, const float *weight, float eps, float *out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && T * C > 65536)
    for (int64_t t = 0; t < T; t++) {
        float *row = x + t * C;
        if (delta)
            for (int64_t i = 0; i < C; i++) row[i] += delta[t * C + i];
        normalise(row, weight, C, eps, out + t * C);
    }
}

/* One head: optional norm, then rotation of the pairs (i, i + half) for i < half. */
INLINE void rope_head(const float *x, const float *norm, float eps, const float *cosine, const float *sine, int64_t half,
                      int64_t D, float *out) {
    if (norm)
        normalise(x, norm, D, eps, out);
    else
        memcpy(out, x, (size_t)D * sizeof(float));
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float a = out[i], b = out[i + half];
        out[i] = a * cosine[i] - b * sine[i];
        out[i + half] = b * cosine[i] + a * sine[i];
    }
}

/* qkv[T,(H+2G)*D] -> rotated queries q[T,H,D]; rotated keys and values into pools [S,G,D] at the tokens' slots. */
void rope_store(int64_t T, int64_t H, int64_t G, int64_t D, int64_t half, const float *qkv, const float *cosine,
                const float *sine, const int64_t *positions, const int64_t *slots, const float *q_norm,
                const float *k_norm, float eps, float *k_pool, float *v_pool, float *q, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && T * (H + 2 * G) * D > 65536)
    for (int64_t t = 0; t < T; t++) {
        const float *row = qkv + t * (H + 2 * G) * D;
        const float *c = cosine + positions[t] * half, *s = sine + positions[t] * half;
        float *k = k_pool + slots[t] * G * D;
        for (int64_t h = 0; h < H; h++) rope_head(row + h * D, q_norm, eps, c, s, half, D, q + (t * H + h) * D);
        for (int64_t g = 0; g < G; g++) rope_head(row + (H + g) * D, k_norm, eps, c, s, half, D, k + g * D);
        memcpy(v_pool + slots[t] * G * D, row + (H + G) * D, (size_t)(G * D) * sizeof(float));
    }
}

/* out[T,I] = silu(gate) * up, where a row of gate_up[T,2I] is gate then up. */
void silu_mul(int64_t T, int64_t I, const float *gate_up, float *out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && T * I > 32768)
    for (int64_t t = 0; t < T; t++) {
        const float *gate = gate_up + t * 2 * I, *up = gate + I;
        float *row = out + t * I;
        int64_t i = 0;
        for (; i + 8 <= I; i += 8) {
            v8 x = load(gate + i);
            store(row + i, x / (1.0f + exp8(-x)) * load(up + i));
        }
        if (i < I) {
            v8 x = splat(0);
            for (int64_t j = i; j < I; j++) x[j - i] = gate[j];
            x = x / (1.0f + exp8(-x));
            for (int64_t j = i; j < I; j++) row[j] = x[j - i] * up[j];
        }
    }
}

/* ---- attention ---- */

enum {
    ROWS = 24,  /* query rows (token, head of the group) that share one reading of K and V */
    KEYS = 256, /* keys per softmax block; blocks are merged in order, at borders fixed by the key's index */
    AHEAD = 8,  /* keys between prefetch and use */
    TILE = 32   /* keys whose values stay in the first-level cache while all rows use them */
};

struct plan { /* native.AttentionPlan; one entry per segment unless said */
    int64_t segments;
    const int64_t *start, *length, *context_begin, *context_length, *tree_begin;
    const int64_t *context_slots; /* of all segments */
    const uint8_t *tree_mask;     /* of all segments */
    const int64_t *slots, *positions; /* [T] */
};

struct attention {
    int64_t H, G, D, repeat, window;
    const float *q, *k_pool, *v_pool;
    float *out, scale;
};

/* Query rows [row, row + rows) of one segment and kv head against keys [begin, end); row / repeat is the token. The state
 * of the softmax goes to `partial` if set (maximum[rows], sum[rows], values[rows, D]), else the result goes to out. */
struct unit {
    int64_t segment, group, row, rows, begin, end;
    float *partial;
};

INLINE void sums4(v8 a, v8 b, v8 c, v8 d, float *out) {
#if defined(__AVX__)
    __m256 pair = _mm256_hadd_ps(_mm256_hadd_ps((__m256)a, (__m256)b), _mm256_hadd_ps((__m256)c, (__m256)d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pair), _mm256_extractf128_ps(pair, 1)));
#else
    out[0] = lane_sum(a), out[1] = lane_sum(b), out[2] = lane_sum(c), out[3] = lane_sum(d);
#endif
}

/* Scores of n query rows (1..3) against 4 keys; scores has stride KEYS. */
INLINE void scores4(const int n, const float *q, int64_t D, const float *const key[4], float *scores) {
    v8 z = splat(0), a0 = z, a1 = z, a2 = z, a3 = z, b0 = z, b1 = z, b2 = z, b3 = z, c0 = z, c1 = z, c2 = z, c3 = z;
    for (int64_t d = 0; d < D; d += 8) { /* 12 sums, 3 queries and 1 key fill the 16 registers */
        v8 x = load(q + d), y = n > 1 ? load(q + D + d) : z, w = n > 2 ? load(q + 2 * D + d) : z, k;
#define KEY(i, ai, bi, ci)        \
    k = load(key[i] + d);         \
    ai += x * k;                  \
    if (n > 1) bi += y * k;       \
    if (n > 2) ci += w * k;
        KEY(0, a0, b0, c0) KEY(1, a1, b1, c1) KEY(2, a2, b2, c2) KEY(3, a3, b3, c3)
#undef KEY
    }
    sums4(a0, a1, a2, a3, scores);
    if (n > 1) sums4(b0, b1, b2, b3, scores + KEYS);
    if (n > 2) sums4(c0, c1, c2, c3, scores + 2 * KEYS);
}

/* values[r, 0..8*w) += sum over keys of weight[r, key] * v[key, 0..8*w), for n rows (1..3) and w vectors (1..4). */
INLINE void values_tile(const int n, const int w, const float *weight, const float *v, const int64_t *offset, int64_t keys,
                        int64_t D, float *values) {
    v8 z = splat(0), a0 = z, a1 = z, a2 = z, a3 = z, b0 = z, b1 = z, b2 = z, b3 = z, c0 = z, c1 = z, c2 = z, c3 = z;
#define EACH_ROW(DO)                          \
    DO(a0, a1, a2, a3, 0)                     \
    if (n > 1) { DO(b0, b1, b2, b3, 1) }      \
    if (n > 2) { DO(c0, c1, c2, c3, 2) }
#define LOAD(x0, x1, x2, x3, r)               \
    x0 = load(values + r * D);                \
    if (w > 1) x1 = load(values + r * D + 8); \
    if (w > 2) x2 = load(values + r * D + 16); \
    if (w > 3) x3 = load(values + r * D + 24);
#define ADD(x0, x1, x2, x3, r)                \
    p = splat(weight[r * KEYS + key]);        \
    x0 += p * v0;                             \
    if (w > 1) x1 += p * v1;                  \
    if (w > 2) x2 += p * v2;                  \
    if (w > 3) x3 += p * v3;
#define STORE(x0, x1, x2, x3, r)              \
    store(values + r * D, x0);                \
    if (w > 1) store(values + r * D + 8, x1); \
    if (w > 2) store(values + r * D + 16, x2); \
    if (w > 3) store(values + r * D + 24, x3);
    EACH_ROW(LOAD)
    for (int64_t key = 0; key < keys; key++) {
        const float *row = v + offset[key];
        v8 p, v0 = load(row), v1 = z, v2 = z, v3 = z;
        if (w > 1) v1 = load(row + 8);
        if (w > 2) v2 = load(row + 16);
        if (w > 3) v3 = load(row + 24);
        EACH_ROW(ADD)
    }
    EACH_ROW(STORE)
#undef EACH_ROW
#undef LOAD
#undef ADD
#undef STORE
}

static void values_rows(int64_t rows, int64_t w, const float *weight, const float *v, const int64_t *offset, int64_t keys,
                        int64_t D, float *values) {
#define CASE(n, w) case (n) * 4 + (w) - 1: values_tile(n, w, weight, v, offset, keys, D, values); break;
    switch (rows * 4 + w - 1) {
        CASE(1, 1) CASE(1, 2) CASE(1, 3) CASE(1, 4)
        CASE(2, 1) CASE(2, 2) CASE(2, 3) CASE(2, 4)
        CASE(3, 1) CASE(3, 2) CASE(3, 3) CASE(3, 4)
    }
#undef CASE
}

static void scores_rows(int64_t rows, const float *q, int64_t D, const float *const key[4], float *scores) {
    switch (rows) {
        case 1: scores4(1, q, D, key, scores); break;
        case 2: scores4(2, q, D, key, scores); break;
        default: scores4(3, q, D, key, scores);
    }
}

/* Sets the scores of one row's invisible keys to -inf. Keys are [begin, begin + n) in the order context, new tokens. */
static void hide(const struct attention *a, const struct plan *p, int64_t s, int64_t token, int64_t begin, int64_t n,
                 float *scores) {
    const int64_t context = p->context_length[s], length = p->length[s], end = begin + n;
    const int64_t *positions = p->positions + p->start[s];
    if (a->window > 0) {
        int64_t first = positions[token] - a->window + 1; /* the first visible position */
        for (int64_t t = begin; t < end && t < context && t < first; t++) scores[t - begin] = -INFINITY;
        for (int64_t t = begin > context ? begin : context; t < end; t++)
            if (positions[t - context] < first) scores[t - begin] = -INFINITY;
    }
    if (p->tree_begin[s] < 0) {
        int64_t t = context + token + 1;
        for (t = t > begin ? t : begin; t < end; t++) scores[t - begin] = -INFINITY;
    } else {
        const uint8_t *mask = p->tree_mask + p->tree_begin[s] + token * length;
        for (int64_t t = begin > context ? begin : context; t < end; t++)
            if (!mask[t - context]) scores[t - begin] = -INFINITY;
    }
}

/* scores[n] (n a multiple of 8) -> exp(scores - maximum); returns the sum, sets the maximum. */
static float exponentials(float *scores, int64_t n, float *maximum) {
    v8 m = splat(-INFINITY), sum = splat(0);
    for (int64_t t = 0; t < n; t += 8) {
        v8 x = load(scores + t);
        m = pick(x > m, x, m);
    }
    float highest = m[0];
    for (int i = 1; i < 8; i++) highest = m[i] > highest ? m[i] : highest;
    *maximum = highest;
    float base = highest == -INFINITY ? 0.0f : highest;
    for (int64_t t = 0; t < n; t += 8) {
        v8 x = load(scores + t) - base;
        v8i tiny = x < splat(-87.0f); /* zero, not subnormal: those are slow on some processors */
        v8 e = pick(tiny, splat(0), exp8(pick(tiny, splat(0), x)));
        store(scores + t, e);
        sum += e;
    }
    return lane_sum(sum);
}

/* Softmax state (maximum, sum, values) of the first set of keys, extended by that of the next; not inlined, so that
 * both callers round alike. */
static __attribute__((noinline)) void merge(float *maximum, float *sum, float *values, float next_maximum, float next_sum,
                                            const float *next_values, int64_t D) {
    float highest = *maximum > next_maximum ? *maximum : next_maximum;
    float base = highest == -INFINITY ? 0.0f : highest;
    v8 factor = exp8((v8){*maximum - base, next_maximum - base});
    float f = factor[0], g = factor[1];
    *maximum = highest;
    *sum = *sum * f + next_sum * g;
    for (int64_t d = 0; d < D; d++) values[d] = values[d] * f + next_values[d] * g;
}

static void finish(const struct attention *a, const struct plan *p, const struct unit *u, const float *sum,
                   const float *values) {
    for (int64_t r = 0; r < u->rows; r++) {
        int64_t token = p->start[u->segment] + (u->row + r) / a->repeat;
        float *out = a->out + (token * a->H + u->group * a->repeat + (u->row + r) % a->repeat) * a->D;
        for (int64_t d = 0; d < a->D; d++) out[d] = values[r * a->D + d] / sum[r];
    }
}

static void attend(const struct attention *a, const struct plan *p, const struct unit *u, float *scratch) {
    const int64_t D = a->D, s = u->segment, context = p->context_length[s], stride = a->G * D;
    float *q = scratch, *values = q + ROWS * D, *block = values + ROWS * D, *scores = block + ROWS * D;
    float maximum[ROWS], sum[ROWS], block_maximum[ROWS], block_sum[ROWS];
    int64_t offset[KEYS];
    for (int64_t r = 0; r < u->rows; r++) {
        int64_t token = p->start[s] + (u->row + r) / a->repeat;
        const float *row = a->q + (token * a->H + u->group * a->repeat + (u->row + r) % a->repeat) * D;
        for (int64_t d = 0; d < D; d++) q[r * D + d] = row[d] * a->scale;
        maximum[r] = -INFINITY, sum[r] = 0;
    }
    memset(values, 0, (size_t)(u->rows * D) * sizeof(float));
    for (int64_t begin = u->begin; begin < u->end; begin += KEYS) {
        int64_t n = u->end - begin < KEYS ? u->end - begin : KEYS, padded = (n + 7) / 8 * 8;
        for (int64_t t = 0; t < n; t++) {
            int64_t key = begin + t;
            int64_t slot = key < context ? p->context_slots[p->context_begin[s] + key] : p->slots[p->start[s] + key - context];
            offset[t] = slot * stride + u->group * D;
        }
        for (int64_t t = 0; t < n; t += 4) {
            const float *key[4];
            for (int64_t i = 0; i < 4; i++) {
                key[i] = a->k_pool + offset[t + i < n ? t + i : n - 1];
                for (int64_t d = 0; d < D; d += 16) { /* slots are scattered, so the processor does not foresee them */
                    if (t + i + AHEAD < n) __builtin_prefetch(a->k_pool + offset[t + i + AHEAD] + d, 0, 3);
                    if (t + i < n) __builtin_prefetch(a->v_pool + offset[t + i] + d, 0, 2);
                }
            }
            for (int64_t r = 0; r < u->rows; r += 3)
                scores_rows(u->rows - r, q + r * D, D, key, scores + r * KEYS + t);
        }
        for (int64_t r = 0; r < u->rows; r++) {
            hide(a, p, s, (u->row + r) / a->repeat, begin, n, scores + r * KEYS);
            for (int64_t t = n; t < padded; t++) scores[r * KEYS + t] = -INFINITY;
            block_sum[r] = exponentials(scores + r * KEYS, padded, &block_maximum[r]);
        }
        memset(block, 0, (size_t)(u->rows * D) * sizeof(float));
        for (int64_t t = 0; t < n; t += TILE)
            for (int64_t d = 0; d < D; d += 32)
                for (int64_t r = 0; r < u->rows; r += 3)
                    values_rows(u->rows - r < 3 ? u->rows - r : 3, D - d < 32 ? (D - d) / 8 : 4, scores + r * KEYS + t,
                                a->v_pool + d, offset + t, n - t < TILE ? n - t : TILE, D, block + r * D + d);
        for (int64_t r = 0; r < u->rows; r++)
            merge(&maximum[r], &sum[r], values + r * D, block_maximum[r], block_sum[r], block + r * D, D);
    }
    if (u->partial) {
        memcpy(u->partial, maximum, (size_t)u->rows * sizeof(float));
        memcpy(u->partial + u->rows, sum, (size_t)u->rows * sizeof(float));
        memcpy(u->partial + 2 * u->rows, values, (size_t)(u->rows * D) * sizeof(float));
    } else {
        finish(a, p, u, sum, values);
    }
}

/* The units of one segment, appended to `units` (or only counted if null). With `split`, one unit per block of keys. */
static int64_t list_units(const struct attention *a, const struct plan *p, int64_t s, int split, struct unit *units,
                          int64_t *work) {
    const int64_t context = p->context_length[s], length = p->length[s], total = length * a->repeat;
    int64_t count = 0;
    for (int64_t row = 0; row < total; row += ROWS) {
        int64_t rows = total - row < ROWS ? total - row : ROWS, first = row / a->repeat, last = (row + rows - 1) / a->repeat;
        int64_t begin = 0, end = context + (p->tree_begin[s] < 0 ? last + 1 : length);
        if (a->window > 0) { /* whole blocks of context that no row sees */
            begin = context;
            for (int64_t i = first; i <= last; i++) {
                int64_t visible = p->positions[p->start[s] + i] - a->window + 1;
                if (visible < begin) begin = visible < 0 ? 0 : visible;
            }
            begin = begin / KEYS * KEYS;
        }
        *work += rows * (end - begin) * a->D * a->G;
        for (int64_t g = 0; g < a->G; g++)
            for (int64_t b = begin; b < end; b += split ? KEYS : end - begin) {
                int64_t e = split && b + KEYS < end ? b + KEYS : end;
                if (units) units[count] = (struct unit){s, g, row, rows, b, e, NULL};
                count++;
            }
    }
    return count;
}

/* Attention of the packed queries q[T,H,D] over each segment's context and visible new tokens, read from pools [S,G,D]
 * at the plan's slots; D is a multiple of 8. window > 0: only positions less than `window` back are visible.
 * Returns 0, or 1 when out of memory. */
int tree_attention(int64_t H, int64_t G, int64_t D, const float *q, const float *k_pool, const float *v_pool,
                   const struct plan *p, float *out, float scale, int64_t window, int threads) {
    const struct attention a = {H, G, D, H / G, window, q, k_pool, v_pool, out, scale};
    int64_t count = 0, work = 0, state = ROWS * (D + 2), ignored = 0;
    int split = 0, failed = 0;
    for (int64_t s = 0; s < p->segments; s++) count += list_units(&a, p, s, 0, NULL, &work);
    if (work < 200000) threads = 1;
    if (threads > 1 && count < 4 * threads) { /* too few units to balance: share long contexts between threads */
        split = 1, count = 0;
        for (int64_t s = 0; s < p->segments; s++) count += list_units(&a, p, s, 1, NULL, &ignored);
    }
    int64_t per_thread = 3 * ROWS * D + ROWS * KEYS;
    struct unit *units = malloc((size_t)count * sizeof *units);
    float *scratch = malloc((size_t)(threads * per_thread + (split ? count * state : 0)) * sizeof(float));
    if ((!units || !scratch) && count) failed = 1;
    if (!failed) {
        count = 0;
        for (int64_t s = 0; s < p->segments; s++) count += list_units(&a, p, s, split, units + count, &ignored);
        if (split)
            for (int64_t i = 0; i < count; i++) units[i].partial = scratch + threads * per_thread + i * state;
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            float *mine = scratch;
#if defined(_OPENMP)
            mine += omp_get_thread_num() * per_thread;
#endif
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < count; i++) attend(&a, p, &units[i], mine);
        }
        for (int64_t i = 0, next; split && i < count; i = next) { /* merge the blocks of each run, in order */
            float *maximum = units[i].partial, *sum = maximum + units[i].rows, *values = sum + units[i].rows;
            for (next = i + 1; next < count && units[next].row == units[i].row && units[next].group == units[i].group &&
                               units[next].segment == units[i].segment;
                 next++) {
                const float *other = units[next].partial;
                for (int64_t r = 0; r < units[i].rows; r++)
                    merge(&maximum[r], &sum[r], values + r * D, other[r], other[units[i].rows + r],
                          other + 2 * units[i].rows + r * D, D);
            }
            finish(&a, p, &units[i], sum, values);
        }
    }
    free(scratch);
    free(units);
    return failed;
}

/* ---- sampling ---- */

enum { BLOCK = 256 };
static const uint64_t GOLDEN = 0x9E3779B97F4A7C15u;

/* SplitMix64's output function (Steele, Lea, Flood 2014). */
INLINE uint64_t mix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static double gumbel(uint64_t bits) { return -log(-log(((double)(bits >> 12) + 0.5) * 0x1p-52)); }

/* The least hash whose noise may lift `logit` to `best` or above; too low by a margin that covers all rounding. */
static uint64_t threshold(double best, double logit) {
    double needed = best - logit - 1e-9 * (1.0 + fabs(best) + fabs(logit));
    double u = exp(-exp(-needed)) - 1e-15;
    if (!(u > 0)) return 0;
    uint64_t step = (uint64_t)(u * 0x1p52);
    return (step > 1 ? step - 1 : 0) << 12;
}

static float highest(const float *x, int64_t n) {
    float m = -INFINITY;
#pragma omp simd reduction(max : m)
    for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

/* argmax of logit + noise. A block's highest logit bounds the hash that a winner needs, so that almost no entry pays
 * for the logarithms; the row's highest logit is tried first. */
static int64_t gumbel_row(const float *logits, int64_t V, uint64_t key) {
    int64_t chosen = -1, unordered = 0;
    float top = highest(logits, V);
#pragma omp simd reduction(+ : unordered)
    for (int64_t v = 0; v < V; v++) unordered += logits[v] != logits[v];
    if (unordered || top == -INFINITY) return -1;
    for (chosen = 0; logits[chosen] != top; chosen++) {}
    if (top == INFINITY) return chosen;
    double best = (double)top + gumbel(mix64(key + (uint64_t)(chosen + 1) * GOLDEN));
    for (int64_t begin = 0; begin < V; begin += BLOCK) {
        int64_t n = V - begin < BLOCK ? V - begin : BLOCK;
        float bound = highest(logits + begin, n);
        if (bound == -INFINITY) continue;
        uint64_t hash[BLOCK], least = threshold(best, bound);
        for (int64_t i = 0; i < n; i++) hash[i] = mix64(key + (uint64_t)(begin + i + 1) * GOLDEN);
        for (int64_t i = 0; i < n; i++) {
            if (hash[i] < least || logits[begin + i] == -INFINITY) continue;
            double noisy = (double)logits[begin + i] + gumbel(hash[i]);
            if (noisy > best || (noisy == best && begin + i < chosen)) {
                best = noisy, chosen = begin + i;
                least = threshold(best, bound);
            }
        }
    }
    return chosen;
}

/* out[R] = argmax over v of logits[r,v] + Gumbel noise of (keys[r], v): the lowest id among equals; -inf never wins;
 * the first +inf always does; -1 where a row holds NaN or nothing above -inf. */
void gumbel_argmax(int64_t R, int64_t V, const float *logits, const uint64_t *keys, int64_t *out, int threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && R > 1 && R * V > 65536)
    for (int64_t r = 0; r < R; r++) out[r] = gumbel_row(logits + r * V, V, keys[r]);
}
