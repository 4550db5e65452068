/* The noise of box_muller.py: the same operations in the same order, so the same bits.

   Compiled without fused multiply-adds, which round once where the definition rounds twice.  A
   shared library without Python's API, called by cpu.py. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCKS 256 /* Philox blocks of a piece, of four values each: it stays in the first cache */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define ON_EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define ON_EVERY_CPU
#endif
#ifdef _WIN32
#define PUBLIC __declspec(dllexport)
PUBLIC void *PyInit_noise(void) { return 0; } /* which setuptools exports there */
#else
#define PUBLIC
#endif

static inline double of_bits(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint64_t bits_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Exact; vector units convert signed words only. */
static inline double of_word(uint32_t w) {
    return (double)(int32_t)(w ^ 0x80000000u) + 2147483648.0;
}

/* Natural logarithm of 2^-33 <= x <= 1: x = m 2^e with sqrt(1/2) <= m < sqrt(2). */
static inline double natural_log(double x) {
    const uint64_t root_half = bits_of(0.7071067811865476);
    uint64_t bits = bits_of(x), shifted = (bits - root_half + ((uint64_t)64 << 52)) >> 52;
    double m = of_bits(bits - (shifted << 52) + ((uint64_t)64 << 52));
    double y = (m - 1.0) / (m + 1.0), y2 = y * y, s = 1.0 / 19;
    s = s * y2 + 1.0 / 17, s = s * y2 + 1.0 / 15, s = s * y2 + 1.0 / 13;
    s = s * y2 + 1.0 / 11, s = s * y2 + 1.0 / 9, s = s * y2 + 1.0 / 7;
    s = s * y2 + 1.0 / 5, s = s * y2 + 1.0 / 3, s = s * y2 + 1.0;
    return (double)((int32_t)shifted - 64) * 0.6931471805599453 + 2.0 * y * s;
}

static inline void box_muller(uint32_t w0, uint32_t w1, float *z) {
    double r = sqrt(-2.0 * natural_log((of_word(w0) + 0.5) * 0x1p-32));
    double angle = of_word(w1) * 0x1p-30; /* quadrants, in [0, 4) */
    int32_t q = (int32_t)(angle + 0.5);
    double x = (angle - (double)q) * 1.5707963267948966, x2 = x * x;
    double c = 1.0 / 6402373705728000.0, s = 1.0 / 121645100408832000.0;
    c = 1.0 / 20922789888000.0 - c * x2, s = 1.0 / 355687428096000.0 - s * x2;
    c = 1.0 / 87178291200.0 - c * x2, s = 1.0 / 1307674368000.0 - s * x2;
    c = 1.0 / 479001600.0 - c * x2, s = 1.0 / 6227020800.0 - s * x2;
    c = 1.0 / 3628800.0 - c * x2, s = 1.0 / 39916800.0 - s * x2;
    c = 1.0 / 40320.0 - c * x2, s = 1.0 / 362880.0 - s * x2;
    c = 1.0 / 720.0 - c * x2, s = 1.0 / 5040.0 - s * x2;
    c = 1.0 / 24.0 - c * x2, s = 1.0 / 120.0 - s * x2;
    c = 1.0 / 2.0 - c * x2, s = 1.0 / 6.0 - s * x2;
    c = 1.0 - c * x2, s = (1.0 - s * x2) * x;
    uint64_t odd = -(uint64_t)(q & 1), cb = bits_of(c), sb = bits_of(s), both = (cb ^ sb) & odd;
    uint64_t minus_c = (uint64_t)((q + 1) & 2) << 62, minus_s = (uint64_t)(q & 2) << 62;
    z[0] = (float)(r * of_bits(cb ^ both ^ minus_c)); /* in quadrants 1 and 2 */
    z[1] = (float)(r * of_bits(sb ^ both ^ minus_s)); /* in quadrants 2 and 3 */
}

/* Four values of each of the Philox blocks of counters first, first + 1, ... */
ON_EVERY_CPU
static void piece(uint64_t key, uint64_t first, int64_t n, float *z) {
    for (int64_t i = 0; i < n; i++) {
        uint64_t counter = first + (uint64_t)i;
        uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = 0, c3 = 0;
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
#define ROUND                                                                  \
    {                                                                          \
        uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u; \
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, c1 = (uint32_t)p1;                \
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1, c3 = (uint32_t)p0;                \
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;                                  \
    }
        ROUND ROUND ROUND ROUND ROUND ROUND ROUND ROUND ROUND ROUND
        box_muller(c0, c1, z + 4 * i);
        box_muller(c2, c3, z + 4 * i + 2);
    }
}

/* `size` standard normal values of each of `rows` indices, into out (rows, size). */
PUBLIC void rfpp_normal(uint64_t key, const int64_t *index, int64_t rows, int64_t size,
                        float *out) {
    float z[4 * BLOCKS];
    for (int64_t row = 0; row < rows; row++)
        for (int64_t at = 0; at < size; at += 4 * BLOCKS) {
            int64_t values = size - at < 4 * BLOCKS ? size - at : 4 * BLOCKS;
            uint64_t first = ((uint64_t)index[row] << 20) + (uint64_t)(at / 4);
            piece(key, first, (values + 3) / 4, z);
            memcpy(out + row * size + at, z, (size_t)values * sizeof *z);
        }
}
