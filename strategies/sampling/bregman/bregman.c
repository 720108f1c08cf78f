/* Bregman decoding of a batch in one pass over the logits: normaliser and chunk maxima, the K best tokens, how many of
 * them to keep, and their probabilities. The formulas are those of select.py and renormalise.py, for the families with
 * closed forms; for the others the candidates alone. Built and called by native.py.
 *
 * Arrays are contiguous. A row's result depends on that row only, bit for bit: never on the threads or the other rows.
 * No fast-math: infinities and NaN keep their meaning.
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

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
enum { WIDTH = 16 };
#else
enum { WIDTH = 8 };
#endif
typedef float vf __attribute__((vector_size(4 * WIDTH)));
typedef int32_t vi __attribute__((vector_size(4 * WIDTH)));
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));
typedef float vf_unaligned __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

enum {
    CHUNK = 64,   /* logits that share a maximum */
    BLOCK = 4096, /* logits that are exponentiated while they are in the first-level cache */
    GROWTH = 8    /* of the number of candidates between attempts */
};

enum family { PROPORTIONAL, SQUARE_ROOT, EUCLIDEAN, WATER_FILLING, ALL_TO_TOP };

/* What a row asks for: see `Group` in plan.py. penalty < 0: a fixed k, which is k_min = k_max. */
struct wanted {
    int64_t family, start, K, k_min, k_max;
    double penalty;
};

/* One thread's workspace: keys and spare [V], p [V], maxima [V / CHUNK + 1]. Of most of it no page is ever touched. */
struct scratch {
    int64_t *keys, *spare;
    double *p;
    int32_t *maxima;
};

/* ---- the pass over the vocabulary ---- */

INLINE vf load(const float *p) { return *(const vf_unaligned *)p; }
INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vf pick(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

/* a > b ? a : b, so that b decides what becomes of a NaN; and whether a or b holds one. */
#if defined(__AVX512F__)
INLINE vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE int unordered(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q); }
#elif defined(__AVX__)
INLINE vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE int unordered(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q)); }
#else
INLINE vf larger(vf a, vf b) { return pick(a > b, a, b); }
INLINE int unordered(vf a, vf b) {
    vi bad = (a != a) | (b != b);
    int any = 0;
    for (int i = 0; i < WIDTH; i++) any |= bad[i];
    return any;
}
#endif

INLINE v4 max4(v4 a, v4 b) {
#if defined(__AVX__)
    return (v4)_mm_max_ps((__m128)a, (__m128)b);
#else
    v4i first = a > b;
    return (v4)((first & (v4i)a) | (~first & (v4i)b));
#endif
}

/* The largest lane; no lane is NaN. */
INLINE float lane_max(vf x) {
    v4 part[WIDTH / 4];
    memcpy(part, &x, sizeof x);
    v4 m = max4(part[0], part[1]);
    if (WIDTH == 16) m = max4(m, max4(part[WIDTH / 4 - 2], part[WIDTH / 4 - 1]));
    m = max4(m, __builtin_shuffle(m, (v4i){2, 3, 0, 1}));
    m = max4(m, __builtin_shuffle(m, (v4i){1, 0, 3, 2}));
    return m[0];
}

INLINE float lane_sum(vf x) {
    float half[WIDTH / 2], s = 0;
    for (int i = 0; i < WIDTH / 2; i++) half[i] = x[i] + x[i + WIDTH / 2];
    for (int i = 0; i < WIDTH / 2; i++) s += half[i];
    return s;
}

/* 2^t for t <= 0, NaN for NaN: n = round t, and a polynomial of 2^(t - n), its relative error below 1.1e-7. */
INLINE vf power_of_two(vf t) {
    const float round_to_int = 12582912.0f; /* 1.5 * 2^23: adding it leaves no fraction bits */
    t = larger(splat(-126.0f), t); /* nothing beside the largest term, which is 1 */
    vf shifted = t + round_to_int, r = t - (shifted - round_to_int);
    vf p = splat(1.32647272e-3f);
    p = p * r + 9.67151264e-3f;
    p = p * r + 5.55073374e-2f;
    p = p * r + 2.40222421e-1f;
    p = p * r + 6.93146978e-1f;
    p = p * r + 1.0f;
    return p * (vf)((((vi)shifted) << 23) + (127 << 23)); /* the low bits of `shifted` are n */
}

/* The sum of exp(x - top) over n logits, a multiple of CHUNK. Meanwhile the next block is fetched, which the processor
 * does not foresee: it would wait for memory and compute by turns. */
INLINE float exponentials(const float *x, int64_t n, float top) {
    const float log2_e = 1.44269504f;
    vf a = splat(0), b = a, c = a, d = a;
    for (int64_t i = 0; i < n; i += 4 * WIDTH) {
        for (int64_t j = i + BLOCK; j < i + BLOCK + 4 * WIDTH; j += 16) /* one per cache line; may lie behind the end */
            __builtin_prefetch((const void *)((uintptr_t)x + (uintptr_t)j * sizeof *x));
        a += power_of_two((load(x + i) - top) * log2_e);
        b += power_of_two((load(x + i + WIDTH) - top) * log2_e);
        c += power_of_two((load(x + i + 2 * WIDTH) - top) * log2_e);
        d += power_of_two((load(x + i + 3 * WIDTH) - top) * log2_e);
    }
    return lane_sum((a + b) + (c + d));
}

/* The maxima of n / CHUNK chunks, NaN passed over, and the highest of them; *faulty is set where there is a NaN. */
INLINE float highest(const float *x, int64_t n, float *maxima, int *faulty) {
    float top = -INFINITY;
    int any = 0;
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        vf m = splat(-INFINITY);
        for (int64_t i = begin; i < begin + CHUNK; i += 2 * WIDTH) {
            vf a = load(x + i), b = load(x + i + WIDTH);
            any |= unordered(a, b);
            m = larger(a, larger(b, m));
        }
        float best = lane_max(m);
        maxima[begin / CHUNK] = best;
        top = best > top ? best : top;
    }
    *faulty |= any;
    return top;
}

/* Floats as integers in the same order; -0.0 equals 0.0. */
INLINE int32_t rank_of(float x) {
    int32_t bits;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

INLINE float value_of(int32_t rank) {
    float x;
    rank ^= (rank >> 31) & INT32_MAX;
    memcpy(&x, &rank, sizeof x);
    return x;
}

/* Reads a row once: ranks of the chunks' maxima (a partial chunk at the end counts as one), the row's highest logit, and
 * with `scaled` the sum of exp(x - top). Returns the highest logit; NaN for a row with a NaN or +inf, or all -inf. */
INLINE float scan_row(const float *x, int64_t V, int scaled, int32_t *maxima, double *sum) {
    float top = -INFINITY, tail[CHUNK], best[BLOCK / CHUNK];
    int faulty = 0;
    *sum = 0;
    for (int64_t begin = 0; begin < V; begin += BLOCK) {
        int64_t n = V - begin < BLOCK ? V - begin : BLOCK, whole = n / CHUNK * CHUNK;
        float found = highest(x + begin, whole, best, &faulty);
        if (whole < n) {
            for (int64_t i = 0; i < CHUNK; i++) tail[i] = whole + i < n ? x[begin + whole + i] : -INFINITY;
            float last = highest(tail, CHUNK, best + whole / CHUNK, &faulty);
            found = last > found ? last : found;
        }
        for (int64_t i = 0; i < (n + CHUNK - 1) / CHUNK; i++) maxima[begin / CHUNK + i] = rank_of(best[i]);
        if (found > top) {
            *sum *= exp((double)top - (double)found);
            top = found;
        }
        if (!scaled || top == -INFINITY || top == INFINITY) continue;
        *sum += exponentials(x + begin, whole, top);
        if (whole < n) *sum += exponentials(tail, CHUNK, top);
    }
    return faulty || !(top < INFINITY && top > -INFINITY) ? NAN : top;
}

/* ---- the K best tokens ---- */

/* Bit i: whether x[i] >= bound, for CHUNK logits. */
INLINE uint64_t at_least(const float *x, float bound) {
    uint64_t mask = 0;
#if defined(__AVX512F__)
    for (int i = 0; i < CHUNK; i += 16)
        mask |= (uint64_t)_mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_set1_ps(bound), _CMP_GE_OQ) << i;
#elif defined(__AVX__)
    for (int i = 0; i < CHUNK; i += 8)
        mask |= (uint64_t)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(bound), _CMP_GE_OQ)) << i;
#else
    for (int i = 0; i < CHUNK; i++) mask |= (uint64_t)(x[i] >= bound) << i;
#endif
    return mask;
}

/* The largest bound that K or more of n ranks reach, or one that at most K / 8 more of them reach; n >= K. */
static int32_t bound_of_ranks(const int32_t *ranks, int64_t n, int64_t K) {
    int64_t low = rank_of(-INFINITY), high = (int64_t)INT32_MAX + 1; /* low is reached by K, high is not */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        int32_t bound = (int32_t)middle, count = 0;
#pragma omp simd reduction(+ : count)
        for (int64_t i = 0; i < n; i++) count += ranks[i] >= bound;
        if (count >= K)
            low = middle;
        else
            high = middle;
        if (count >= K && count <= K + K / 8) break;
    }
    return (int32_t)low;
}

/* The K-th largest of n different keys. */
static int64_t bound_of_keys(const int64_t *keys, int64_t n, int64_t K) {
    int64_t low = keys[0], high = keys[0];
    for (int64_t i = 1; i < n; i++) {
        low = keys[i] < low ? keys[i] : low;
        high = keys[i] > high ? keys[i] : high;
    }
    while (low < high) { /* the answer is in [low, high] */
        int64_t middle = (int64_t)((uint64_t)low + ((uint64_t)high - (uint64_t)low + 1) / 2), count = 0;
#pragma omp simd reduction(+ : count)
        for (int64_t i = 0; i < n; i++) count += keys[i] >= middle;
        if (count == K) { /* all that is left to find is which of these is the smallest */
            low = INT64_MAX;
            for (int64_t i = 0; i < n; i++) low = keys[i] >= middle && keys[i] < low ? keys[i] : low;
            return low;
        }
        if (count > K)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Sorts n keys, largest first: runs by insertion, then merges without branches. Returns where they are, keys or spare. */
static int64_t *sort(int64_t *keys, int64_t *spare, int64_t n) {
    const int64_t run = 8;
    for (int64_t begin = 0; begin < n; begin += run)
        for (int64_t i = begin + 1; i < n && i < begin + run; i++) {
            int64_t key = keys[i], j = i;
            for (; j > begin && keys[j - 1] < key; j--) keys[j] = keys[j - 1];
            keys[j] = key;
        }
    for (int64_t size = run; size < n; size *= 2) {
        for (int64_t begin = 0; begin < n; begin += 2 * size) {
            int64_t middle = begin + size < n ? begin + size : n, end = middle + size < n ? middle + size : n;
            int64_t i = begin, j = middle, to = begin;
            while (i < middle && j < end) {
                int64_t a = keys[i], b = keys[j], first = a > b;
                spare[to++] = first ? a : b;
                i += first, j += !first;
            }
            memcpy(spare + to, keys + i, (size_t)(middle - i) * sizeof *keys);
            memcpy(spare + to + (middle - i), keys + j, (size_t)(end - j) * sizeof *keys);
        }
        int64_t *other = keys;
        keys = spare, spare = other;
    }
    return keys;
}

/* Keys of the K <= V best tokens of a scanned row, best first: the logit's rank in the high word, and in the low word
 * what makes the lower id the larger key. The chunks of the K highest maxima hold them all. */
static const int64_t *best_keys(const float *x, int64_t V, int64_t K, struct scratch *s) {
    int64_t chunks = (V + CHUNK - 1) / CHUNK, n = 0;
    int32_t least = chunks > K ? bound_of_ranks(s->maxima, chunks, K) : rank_of(-INFINITY);
    int64_t equal = K; /* of the chunks whose maximum is just the bound, no more than complete K are needed */
    for (int64_t c = 0; c < chunks; c++) equal -= s->maxima[c] > least;
    float bound = value_of(least);
    for (int64_t c = 0; c < chunks; c++) {
        if (s->maxima[c] < least || (s->maxima[c] == least && chunks > K && equal-- <= 0)) continue;
        const float *from = x + c * CHUNK;
        float tail[CHUNK];
        int64_t size = V - c * CHUNK;
        if (size < CHUNK) {
            for (int64_t i = 0; i < CHUNK; i++) tail[i] = i < size ? from[i] : -INFINITY;
            from = tail;
        }
        uint64_t hits = at_least(from, bound);
        if (size < CHUNK) hits &= ((uint64_t)1 << size) - 1;
        for (; hits; hits &= hits - 1) {
            int64_t i = __builtin_ctzll(hits);
            s->keys[n++] = (int64_t)((uint64_t)(uint32_t)rank_of(from[i]) << 32 | (UINT32_MAX - (uint32_t)(c * CHUNK + i)));
        }
    }
    if (n > K) {
        int64_t last = bound_of_keys(s->keys, n, K), kept = 0;
        for (int64_t i = 0; i < n; i++) {
            s->keys[kept] = s->keys[i];
            kept += s->keys[i] >= last;
        }
    }
    return sort(s->keys, s->spare, K);
}

INLINE int64_t id_of(int64_t key) { return (int64_t)(UINT32_MAX - (uint32_t)key); }
INLINE float logit_of(int64_t key) { return value_of((int32_t)(key >> 32)); }

/* ---- how many to keep, and their probabilities ---- */

/* min {k : delta_k <= penalty} among the first n of the probabilities p, largest first; n if there is none. */
static int64_t optimal_k(enum family family, const double *p, int64_t n, double penalty) {
    double mass = 0, root = 0, missing, gain, before_c = 0, before_d = 0;
    for (int64_t k = 1; k < n; k++) {
        mass += p[k - 1];
        if (family == PROPORTIONAL) {
            gain = log1p(p[k] / mass);
        } else if (family == EUCLIDEAN) {
            missing = mass < 1 ? 1 - mass : 0;
            double rise = missing + (double)k * p[k];
            gain = rise * rise / (2.0 * (double)k * (double)(k + 1));
        } else {
            if (k == 1) {
                root = sqrt(p[0]);
                missing = mass < 1 ? 1 - mass : 0;
                before_d = sqrt(root * root + missing);
                before_c = missing / (root + before_d);
            }
            double next = sqrt(p[k]);
            root += next;
            missing = mass + p[k] < 1 ? 1 - (mass + p[k]) : 0;
            double d = sqrt(root * root + (double)(k + 1) * missing), c = missing / (root + d);
            double h = before_c - c, size = next + c;
            gain = 2.0 / 3 * size * size * size + 2 * h * h * (before_d - (double)k * h / 3);
            before_c = c, before_d = d;
        }
        if (!(gain > penalty)) return k;
    }
    return n;
}

/* q[k] of the k largest probabilities p, in place; q sums to 1. */
static void renormalise(enum family family, double *p, int64_t k) {
    double mass = 0, total = 0;
    for (int64_t i = 0; i < k; i++) mass += p[i];
    double missing = mass < 1 ? 1 - mass : 0;
    if (family == EUCLIDEAN) {
        double share = missing / (double)k;
        for (int64_t i = 0; i < k; i++) p[i] += share;
    } else if (family == SQUARE_ROOT) {
        double root = 0;
        for (int64_t i = 0; i < k; i++) root += sqrt(p[i]);
        double c = missing / (root + sqrt(root * root + (double)k * missing));
        for (int64_t i = 0; i < k; i++) p[i] += c * (2 * sqrt(p[i]) + c);
    } else if (family == WATER_FILLING) {
        /* sum max(p_i, t) is the largest, over j, of S_j + (k - j) t; it reaches 1 first at the smallest solution. */
        double level = INFINITY, before = 0;
        for (int64_t i = 0; i < k; i++) {
            double reached = (1 - before) / (double)(k - i);
            level = reached < level ? reached : level;
            before += p[i];
        }
        for (int64_t i = 0; i < k; i++) p[i] = p[i] < level ? level : p[i];
    } else if (family == ALL_TO_TOP) {
        int64_t count = 1;
        while (count < k && p[count] == p[0]) count++;
        for (int64_t i = 0; i < count; i++) p[i] += missing / (double)count;
    }
    for (int64_t i = 0; i < k; i++) total += p[i];
    for (int64_t i = 0; i < k; i++) p[i] /= total;
}

/* ids and q of the kept tokens of one row; returns their number, 0 for a faulty row. */
static int64_t decode_row(const float *x, int64_t V, const struct wanted *w, struct scratch *s, int64_t *ids, double *q) {
    enum family family = (enum family)w->family;
    double sum;
    float top = family == PROPORTIONAL ? scan_row(x, V, 0, s->maxima, &sum) : scan_row(x, V, 1, s->maxima, &sum);
    if (top != top) {
        ids[0] = 0, q[0] = NAN;
        return 0;
    }
    /* PROPORTIONAL is free of scale. */
    double log_top = family == PROPORTIONAL ? 0 : -log(sum), *p = s->p;
    for (int64_t K = w->penalty < 0 ? w->K : w->start;; K = K * GROWTH < w->K ? K * GROWTH : w->K) {
        const int64_t *keys = best_keys(x, V, K, s);
        int64_t n = 0, k = w->k_min;
        for (; n < K; n++) {
            p[n] = exp((double)logit_of(keys[n]) - (double)top + log_top);
            if (!(p[n] > 0)) break;
        }
        if (w->penalty >= 0) {
            int64_t best = optimal_k(family, p, n, w->penalty);
            if (best == K && K < w->K) continue; /* the stop test has not fired among these */
            k = best > k ? best : k;
        }
        k = k < w->k_max ? k : w->k_max;
        k = k < n ? k : n;
        renormalise(family, p, k);
        for (int64_t i = 0; i < k; i++) ids[i] = id_of(keys[i]);
        memcpy(q, p, (size_t)k * sizeof *q);
        return k;
    }
}

/* ---- batches ---- */

static int64_t scratch_size(int64_t V) {
    int64_t size = 2 * V * (int64_t)sizeof(int64_t) + V * (int64_t)sizeof(double) +
                   (V / CHUNK + 1) * (int64_t)sizeof(int32_t);
    return (size + 127) / 64 * 64; /* no two threads share a cache line */
}

static struct scratch scratch_of_thread(char *all, int64_t V) {
#if defined(_OPENMP)
    all += omp_get_thread_num() * scratch_size(V);
#endif
    int64_t *keys = (int64_t *)all;
    return (struct scratch){keys, keys + V, (double *)(keys + 2 * V), (int32_t *)(keys + 3 * V)};
}

/* Decodes R rows of logits[.,V], those numbered in rows[R] (null: the first R), as wanted[R] says, into ids and q
 * [R,stride] and k[R]. Behind the k of a row q is 0 and the ids repeat the first, up to column `width`, or up to the
 * largest k where width is 0. Returns how many columns hold something, or -1 when out of memory. */
int64_t bregman_decode(int64_t R, int64_t V, const float *logits, const int64_t *rows, const struct wanted *wanted,
                       int64_t stride, int64_t width, int64_t *ids, double *q, int64_t *k, int threads) {
    if (R * V <= 65536) threads = 1;
    char *all = malloc((size_t)(threads * scratch_size(V)));
    if (!all) return -1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        struct scratch mine = scratch_of_thread(all, V);
#pragma omp for schedule(dynamic, 1)
        for (int64_t r = 0; r < R; r++)
            k[r] = decode_row(logits + (rows ? rows[r] : r) * V, V, &wanted[r], &mine, ids + r * stride, q + r * stride);
    }
    free(all);
    if (width == 0) width = 1;
    for (int64_t r = 0; r < R; r++) width = k[r] > width ? k[r] : width;
    for (int64_t r = 0; r < R; r++)
        for (int64_t i = k[r] ? k[r] : 1; i < width; i++) ids[r * stride + i] = ids[r * stride], q[r * stride + i] = 0;
    return width;
}

/* The K <= V best tokens of R rows of logits[.,V], those numbered in rows[R] (null: the first R), best first: values and
 * ids [R,K], and the log-probability of the best in the whole vocabulary, top[R]: NaN for a faulty row, whose candidates
 * mean nothing. Returns 0, or -1 when out of memory. */
int64_t bregman_candidates(int64_t R, int64_t V, const float *logits, const int64_t *rows, int64_t K, float *values,
                           int64_t *ids, double *top, int threads) {
    if (R * V <= 65536) threads = 1;
    char *all = malloc((size_t)(threads * scratch_size(V)));
    if (!all) return -1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        struct scratch mine = scratch_of_thread(all, V);
#pragma omp for schedule(dynamic, 1)
        for (int64_t r = 0; r < R; r++) {
            const float *x = logits + (rows ? rows[r] : r) * V;
            double sum;
            float best = scan_row(x, V, 1, mine.maxima, &sum);
            top[r] = best == best ? -log(sum) : NAN;
            if (best == best) {
                const int64_t *keys = best_keys(x, V, K, &mine);
                for (int64_t i = 0; i < K; i++) values[r * K + i] = logit_of(keys[i]), ids[r * K + i] = id_of(keys[i]);
            } else {
                for (int64_t i = 0; i < K; i++) values[r * K + i] = 0, ids[r * K + i] = 0;
            }
        }
    }
    free(all);
    return 0;
}
