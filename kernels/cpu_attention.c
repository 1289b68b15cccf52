/* Attention of one layer in one step, on the CPU, fp32: all items of the work list in one call.

   A task is a block of rows and one KV head. The query heads of that KV head are stacked as lanes of vectors, and
   each element of a key or value is broadcast against all lanes. So keys and values are read in place, whatever
   pages they lie in, and the softmax needs no sum across lanes:

       S[key][lane]  = sum over d of K[key][d] Q[d][lane]
       O[d][lane]   += sum over keys of V[key][d] P[key][lane]

   with the running maximum and sum of the online softmax (Milakov and Gimelshein, 2018). A row's items (its own
   segment, and one for each ancestor) are merged in the order in which they come, in the row's place of the output.

   Built on the machine it runs on, by engine/attention/compiled.py; wants the vector extensions of GCC and Clang. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define WIDTH 16  /* floats of a vector */
#define VECTORS 4 /* vectors of a register tile: 6 x 4 accumulators of 32 registers */
#elif defined(__AVX2__)
#include <immintrin.h>
#define WIDTH 8
#define VECTORS 2 /* 6 x 2 accumulators of 16 registers */
#else
#define WIDTH 4
#define VECTORS 4
#endif

#define TILE 6        /* keys, or dimensions of values, of a register tile */
#define LANES 64      /* most lanes of a task: rows times query heads of a KV head */
#define KEYS 64       /* keys between two updates of the softmax's state: their scores stay in the first cache */
#define NONE (-1e30f) /* maximum of a lane that has seen nothing: finite, so that no difference is NaN */

typedef float vec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

/* What the layers of one window share. */
typedef struct {
    int64_t num_rows, num_blocks, page_size, num_threads;
    const int32_t *positions, *slots;               /* of the rows; where a row's key and value are stored */
    const int32_t *block_row_start, *block_row_end; /* of the blocks */
    const int32_t *block_item_start;                /* [num_blocks + 1], into block_items */
    const int32_t *block_items;                     /* the items that meet each block */
    const int32_t *row_start, *row_end, *segment, *kv_start, *kv_end; /* of the items */
    const int32_t *kv_position, *page_start, *page_ids; /* of the segments: first position, pages */
} Step;

/* One layer. Strides count floats; a head's elements lie side by side. */
typedef struct {
    int64_t num_query_heads, num_kv_heads, key_dim, value_dim; /* dims: multiples of 4 */
    const float *query, *key, *value;                          /* [num_rows, heads, dim] */
    int64_t query_row, query_head, key_row, key_head, value_row, value_head;
    float *keys, *values; /* the pool: [num_slots, num_kv_heads, dim] */
    float *output;        /* [num_rows, num_query_heads, value_dim] */
    const float *sinks;   /* [num_query_heads], or NULL */
    int64_t window;       /* 0: none */
    float scaling, soft_cap; /* soft_cap 0: none */
} Layer;

/* A thread's own memory. */
typedef struct {
    float *query;                      /* [key_dim][LANES] */
    float *output;                     /* [value_dim][LANES] */
    float scores[KEYS + TILE][LANES];  /* then probabilities */
    float maximum[LANES], sum[LANES];  /* of the item at hand */
    float row_maximum[LANES], row_sum[LANES]; /* of all items so far */
    int32_t position[LANES];
    const float *key[KEYS + TILE], *value[KEYS];
} Scratch;

INLINE vec splat(float x) { return x - (vec){0}; }

INLINE vec larger(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    ivec less = a < b;
    return (vec)(((ivec)b & less) | ((ivec)a & ~less));
#endif
}

/* e^x for x <= 88, and 0 below -87: 2^n times a polynomial on [-ln2 / 2, ln2 / 2], Cephes' expf. */
INLINE vec exponential(vec x) {
    ivec inside = x > splat(-87.0f);
    vec n = x * splat(1.44269504f) + splat(12582912.0f); /* 1.5 * 2^23: what is added to it is rounded */
    ivec power = (ivec)n << 23;
    n -= splat(12582912.0f);
    vec r = x - n * splat(0.693359375f) + n * splat(2.12194440e-4f);
    vec p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * r * r + r + splat(1.0f);
    return (vec)(((ivec)p + power) & inside);
}

/* scores[k][lane] of `TILE` keys and `n` vectors of lanes. */
INLINE void score_tile(int n, const float *const *key, const float *query, float *scores, int64_t dim) {
    vec sum[TILE][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < TILE; i++)
#pragma GCC unroll 8
        for (int v = 0; v < n; v++) sum[i][v] = splat(0);
    for (int64_t d = 0; d < dim; d++) {
        vec q[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < n; v++) q[v] = *(const vec *)(query + d * LANES + v * WIDTH);
#pragma GCC unroll 8
        for (int i = 0; i < TILE; i++) {
            vec k = splat(key[i][d]);
#pragma GCC unroll 8
            for (int v = 0; v < n; v++) sum[i][v] += k * q[v];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < TILE; i++)
#pragma GCC unroll 8
        for (int v = 0; v < n; v++) *(vec *)(scores + i * LANES + v * WIDTH) = sum[i][v];
}

/* output[d][lane] of `dims` dimensions from `first` on, and `n` vectors of lanes: scaled, then added to. */
INLINE void value_tile(int n, int dims, const float *const *value, int64_t first, int num_keys,
                       const float *probability, const vec *scale, float *output) {
    vec sum[TILE][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < dims; i++)
#pragma GCC unroll 8
        for (int v = 0; v < n; v++) sum[i][v] = *(vec *)(output + (first + i) * LANES + v * WIDTH) * scale[v];
    for (int k = 0; k < num_keys; k++) {
        const float *row = value[k] + first;
        vec p[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < n; v++) p[v] = *(const vec *)(probability + k * LANES + v * WIDTH);
#pragma GCC unroll 8
        for (int i = 0; i < dims; i++) {
            vec x = splat(row[i]);
#pragma GCC unroll 8
            for (int v = 0; v < n; v++) sum[i][v] += x * p[v];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < dims; i++)
#pragma GCC unroll 8
        for (int v = 0; v < n; v++) *(vec *)(output + (first + i) * LANES + v * WIDTH) = sum[i][v];
}

INLINE void scores_of(int n, Scratch *s, int lane, int num_keys, int64_t dim) {
    for (int k = 0; k < num_keys; k += TILE)
        score_tile(n, s->key + k, s->query + lane, s->scores[k] + lane, dim);
}

INLINE void output_of(int n, Scratch *s, int lane, int num_keys, int64_t dim, const vec *scale) {
    int64_t d = 0;
    for (; d + TILE <= dim; d += TILE)
        value_tile(n, TILE, s->value, d, num_keys, s->scores[0] + lane, scale, s->output + lane);
    for (; d < dim; d += 2)
        value_tile(n, 2, s->value, d, num_keys, s->scores[0] + lane, scale, s->output + lane);
}

/* Scores to probabilities relative to the maximum so far, which is updated; returns what earlier sums shrink by. */
INLINE vec soften(Scratch *s, int lane, int num_keys, const Layer *layer, int64_t first_position, int masked) {
    vec before = *(vec *)(s->maximum + lane), now = before;
    ivec position = *(ivec *)(s->position + lane);
    for (int k = 0; k < num_keys; k++) {
        vec *score = (vec *)(s->scores[k] + lane);
        if (layer->soft_cap > 0) { /* c tanh(x / c), tanh(y) = 1 - 2 / (e^2y + 1); beyond 40 it is 1 in fp32 */
            vec twice = *score * splat(2 / layer->soft_cap);
            twice = larger(splat(-80), -larger(-twice, splat(-80)));
            *score = splat(layer->soft_cap) - splat(2 * layer->soft_cap) / (exponential(twice) + splat(1));
        }
        if (masked) {
            ivec distance = position - (int32_t)(first_position + k);
            ivec seen = distance >= 0;
            if (layer->window > 0) seen &= distance < (int32_t)layer->window;
            *score = (vec)(((ivec)*score & seen) | ((ivec)splat(-INFINITY) & ~seen));
        }
        now = larger(now, *score);
    }
    vec sum = splat(0);
    for (int k = 0; k < num_keys; k++) {
        vec *score = (vec *)(s->scores[k] + lane);
        *score = exponential(*score - now);
        sum += *score;
    }
    vec shrink = exponential(before - now);
    *(vec *)(s->sum + lane) = *(vec *)(s->sum + lane) * shrink + sum;
    *(vec *)(s->maximum + lane) = now;
    return shrink;
}

/* `call` with the constant N = n, 1 <= n <= VECTORS. */
#define WITH(n, constant, call)  \
    case n: {                    \
        enum { N = constant };   \
        call;                    \
    } break;
#define FOR_VECTORS(n, call)                         \
    switch (n) {                                     \
        WITH(1, 1, call)                             \
        WITH(2, 2, call)                             \
        WITH(3, VECTORS < 3 ? 1 : 3, call)           \
        WITH(4, VECTORS < 4 ? 1 : 4, call)           \
    }

/* One run of at most KEYS tokens of a segment, for all lanes. */
static void attend_keys(Scratch *s, const Layer *layer, int num_lanes, int num_keys, int64_t first_position,
                        int masked) {
    for (int k = num_keys; k < num_keys + TILE; k++) s->key[k] = s->key[num_keys - 1]; /* a full last tile */
    for (int lane = 0; lane < num_lanes; lane += VECTORS * WIDTH) {
        int left = (num_lanes - lane + WIDTH - 1) / WIDTH, n = left < VECTORS ? left : VECTORS;
        FOR_VECTORS(n, scores_of(N, s, lane, num_keys, layer->key_dim))
        vec scale[VECTORS];
        for (int v = 0; v < n; v++)
            scale[v] = soften(s, lane + v * WIDTH, num_keys, layer, first_position, masked);
        FOR_VECTORS(n, output_of(N, s, lane, num_keys, layer->value_dim, scale))
    }
}

INLINE int64_t slot_of(const Step *step, const int32_t *pages, int64_t token) {
    return (int64_t)pages[token / step->page_size] * step->page_size + token % step->page_size;
}

INLINE void prefetch(const float *row, int64_t dim) {
    for (int64_t d = 0; d < dim; d += 16) __builtin_prefetch(row + d, 0, 2);
}

/* The rows [row, row_end) of a block over an item, merged into what the rows have so far. */
static void attend_item(Scratch *s, const Step *step, const Layer *layer, int item, int row, int row_end,
                        int kv_head, int block_row) {
    int group = layer->num_query_heads / layer->num_kv_heads, first_head = kv_head * group;
    int num_lanes = (row_end - row) * group, padded = (num_lanes + WIDTH - 1) / WIDTH * WIDTH;
    int segment = step->segment[item];
    int64_t segment_position = step->kv_position[segment];
    int64_t lowest = INT64_MAX, highest = 0;
    for (int lane = 0; lane < padded; lane++) {
        int used = lane < num_lanes, r = row + (used ? lane / group : 0);
        const float *q = layer->query + r * layer->query_row + (first_head + lane % group) * layer->query_head;
        for (int64_t d = 0; d < layer->key_dim; d++)
            s->query[d * LANES + lane] = used ? q[d] * layer->scaling : 0;
        s->position[lane] = step->positions[r];
        s->maximum[lane] = NONE;
        s->sum[lane] = 0;
        if (s->position[lane] < lowest) lowest = s->position[lane];
        if (s->position[lane] > highest) highest = s->position[lane];
    }
    for (int64_t d = 0; d < layer->value_dim; d++) memset(s->output + d * LANES, 0, padded * sizeof(float));

    int64_t start = step->kv_start[item], end = step->kv_end[item];
    if (end > highest - segment_position + 1) end = highest - segment_position + 1;
    if (layer->window > 0 && start < lowest - layer->window + 1 - segment_position)
        start = lowest - layer->window + 1 - segment_position;
    const int32_t *pages = step->page_ids + step->page_start[segment];
    int64_t key_slot = layer->num_kv_heads * layer->key_dim, value_slot = layer->num_kv_heads * layer->value_dim;
    for (int64_t token = start; token < end; token += KEYS) {
        int num_keys = end - token < KEYS ? end - token : KEYS;
        for (int k = 0; k < num_keys; k++) {
            int64_t slot = slot_of(step, pages, token + k);
            s->key[k] = layer->keys + slot * key_slot + kv_head * layer->key_dim;
            s->value[k] = layer->values + slot * value_slot + kv_head * layer->value_dim;
        }
        for (int64_t next = token + KEYS; next < end && next < token + 2 * KEYS; next++) {
            int64_t slot = slot_of(step, pages, next);
            prefetch(layer->keys + slot * key_slot + kv_head * layer->key_dim, layer->key_dim);
            prefetch(layer->values + slot * value_slot + kv_head * layer->value_dim, layer->value_dim);
        }
        int64_t first = segment_position + token, last = first + num_keys - 1;
        int masked = last > lowest || (layer->window > 0 && highest - first >= layer->window);
        attend_keys(s, layer, num_lanes, num_keys, first, masked);
    }

    for (int lane = 0; lane < num_lanes; lane++) {
        int r = row + lane / group, place = (r - block_row) * group + lane % group;
        float *out = layer->output + (r * layer->num_query_heads + first_head + lane % group) * layer->value_dim;
        float old = s->row_maximum[place], new = s->maximum[lane], most = old > new ? old : new;
        float keep = expf(old - most), add = expf(new - most);
        s->row_maximum[place] = most;
        s->row_sum[place] = s->row_sum[place] * keep + s->sum[lane] * add;
        for (int64_t d = 0; d < layer->value_dim; d++)
            out[d] = out[d] * keep + s->output[d * LANES + lane] * add;
    }
}

static void attend_block(Scratch *s, const Step *step, const Layer *layer, int block, int kv_head) {
    int group = layer->num_query_heads / layer->num_kv_heads, first_head = kv_head * group;
    int row = step->block_row_start[block], row_end = step->block_row_end[block];
    for (int lane = 0; lane < (row_end - row) * group; lane++) {
        int head = first_head + lane % group;
        /* A sink is a key without a value: one more term of the row's sum, once. */
        s->row_maximum[lane] = layer->sinks ? layer->sinks[head] : NONE;
        s->row_sum[lane] = layer->sinks ? 1 : 0;
        memset(layer->output + ((row + lane / group) * layer->num_query_heads + head) * layer->value_dim, 0,
               layer->value_dim * sizeof(float));
    }
    for (int i = step->block_item_start[block]; i < step->block_item_start[block + 1]; i++) {
        int item = step->block_items[i];
        int from = step->row_start[item] > row ? step->row_start[item] : row;
        int to = step->row_end[item] < row_end ? step->row_end[item] : row_end;
        attend_item(s, step, layer, item, from, to, kv_head, row);
    }
    for (int lane = 0; lane < (row_end - row) * group; lane++) {
        float *out = layer->output +
                     ((row + lane / group) * layer->num_query_heads + first_head + lane % group) * layer->value_dim;
        float scale = 1 / s->row_sum[lane];
        for (int64_t d = 0; d < layer->value_dim; d++) out[d] *= scale;
    }
}

static void write_row(const Step *step, const Layer *layer, int64_t row) {
    for (int64_t head = 0; head < layer->num_kv_heads; head++) {
        int64_t at = step->slots[row] * layer->num_kv_heads + head;
        memcpy(layer->keys + at * layer->key_dim, layer->key + row * layer->key_row + head * layer->key_head,
               layer->key_dim * sizeof(float));
        memcpy(layer->values + at * layer->value_dim,
               layer->value + row * layer->value_row + head * layer->value_head,
               layer->value_dim * sizeof(float));
    }
}

/* Stores the step's keys and values, then attends. Returns 0, or 1 where memory is not to be had. */
int prefix_attention(const Step *step, const Layer *layer) {
    int failed = 0;
#pragma omp parallel num_threads(step->num_threads)
    {
        Scratch *s = malloc(sizeof(Scratch));
        float *rows = malloc((layer->key_dim + layer->value_dim) * LANES * sizeof(float));
        if (!s || !rows) {
#pragma omp atomic write
            failed = 1;
        } else {
            s->query = rows;
            s->output = rows + layer->key_dim * LANES;
        }
#pragma omp for schedule(static)
        for (int64_t row = 0; row < step->num_rows; row++) write_row(step, layer, row);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < step->num_blocks * layer->num_kv_heads; task++)
            if (s && rows) attend_block(s, step, layer, task / layer->num_kv_heads, task % layer->num_kv_heads);
        free(rows);
        free(s);
    }
    return failed;
}
