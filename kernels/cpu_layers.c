/* What a decoder's layers do row by row between their matrix products, each in one pass, on the CPU.

   Every row is computed by itself and in one order, so that its neighbours in the step cannot change it. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define MIDDLE 128 /* as in cpu_layers.py */
#define LEVELS 127
#define SMALL (1 << 14) /* values for which a second thread costs more than it saves */
#define FOR_ROWS(rows, width) \
    PRAGMA(omp parallel for num_threads(num_threads) schedule(static) if ((rows) * (width) > SMALL))
#define PRAGMA(text) _Pragma(#text)
#define ROWS(rows, width) FOR_ROWS(rows, width) for (int64_t r = 0; r < (rows); r++)

/* e^x for |x| <= 87, farther x as these: 2^n times a polynomial on [-ln2 / 2, ln2 / 2], Cephes' expf. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
    float n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded */
    int32_t power, bits;
    memcpy(&power, &n, 4);
    n -= 12582912.0f;
    float s = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * s + 1.3981999507e-3f;
    p = p * s + 8.3334519073e-3f;
    p = p * s + 4.1665795894e-2f;
    p = p * s + 1.6666665459e-1f;
    p = p * s + 5.0000001201e-1f;
    p = p * s * s + s + 1.0f;
    memcpy(&bits, &p, 4);
    bits += (int32_t)((uint32_t)power << 23);
    memcpy(&p, &bits, 4);
    return p;
}

/* y = x / sqrt(mean(x^2) + eps) * weight; x and y [rows, width]. */
void rms_norm(const float *x, const float *weight, float *y, int64_t rows, int64_t width, float eps,
              int num_threads) {
    ROWS(rows, width) {
        const float *in = x + r * width;
        float *out = y + r * width, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; i++) sum += in[i] * in[i];
        float factor = 1.0f / sqrtf(sum / (float)width + eps);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) out[i] = weight[i] * (in[i] * factor);
    }
}

/* y = silu(gate) * up, silu(g) = g / (1 + e^-g); all [rows, width]. */
void silu_gate(const float *gate, const float *up, float *y, int64_t rows, int64_t width, int num_threads) {
    ROWS(rows, width) {
        const float *g = gate + r * width, *u = up + r * width;
        float *out = y + r * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) out[i] = g[i] / (1.0f + exponential(-g[i])) * u[i];
    }
}

/* Rotates pairs (d, d + dim / 2) of each head: y = x cos + (-x2, x1) sin. x [rows, heads, dim] with strides, y
   contiguous, cos and sin [rows, dim]. */
void rotate(const float *x, const float *cosine, const float *sine, float *y, int64_t rows, int64_t heads,
            int64_t dim, int64_t x_row, int64_t x_head, int num_threads) {
    int64_t half = dim / 2;
    ROWS(rows, heads * dim) {
        const float *c = cosine + r * dim, *s = sine + r * dim;
        for (int64_t h = 0; h < heads; h++) {
            const float *in = x + r * x_row + h * x_head;
            float *out = y + (r * heads + h) * dim;
#pragma omp simd
            for (int64_t d = 0; d < half; d++) {
                out[d] = in[d] * c[d] - in[d + half] * s[d];
                out[d + half] = in[d + half] * c[d + half] + in[d] * s[d + half];
            }
        }
    }
}

/* q = round(x / scale) + MIDDLE with the row's scale = max |x| / LEVELS; x and q [rows, width]. */
void quantize_rows(const float *x, uint8_t *q, float *scale, int64_t rows, int64_t width, int num_threads) {
    ROWS(rows, width) {
        const float *in = x + r * width;
        uint8_t *out = q + r * width;
        float most = 0;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < width; i++) most = fabsf(in[i]) > most ? fabsf(in[i]) : most;
        scale[r] = most / LEVELS;
        float factor = most > 0 ? LEVELS / most : 0;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) out[i] = (uint8_t)(int32_t)(rintf(in[i] * factor) + MIDDLE);
    }
}

/* y = y * scale of the row + bias, which may be NULL; in place, [rows, width]. */
void scale_rows(float *y, const float *scale, const float *bias, int64_t rows, int64_t width,
                int num_threads) {
    ROWS(rows, width) {
        float *out = y + r * width, factor = scale[r];
        if (bias) {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) out[i] = out[i] * factor + bias[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) out[i] *= factor;
        }
    }
}
