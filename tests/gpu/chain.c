// Products of a step in one kernel (small_chain.cu): the bits that each gives by itself, again and
// again, for one row to four.
#include "tests/gpu/util.h"

#ifndef LV_HAVE_CUDA

int main(void) {
    return check_skip("built without CUDA");
}

#else

#include "tests/gpu/linear_util.h"

#define CHAIN_LINEARS 5

typedef struct link {
    lv_linear *w;
    bool norm, gate, residual;
} link;

// o, gate and up, down, o again, and one that none of them feeds, from x through buffers of their
// own; all outputs of `m` rows come back one after another.
static void run_links(lv_cuda *cuda, const link *links, int m, void *const *buffers, float *norm,
                      bool may_wait, uint8_t *got) {
    lv_backend *be = &cuda->base;
    for (int i = 0; i < CHAIN_LINEARS; i++) {
        const lv_linear *w = links[i].w;
        const lv_small s = {.w = w,
                            .x = buffers[i],
                            .m = m,
                            .norm = links[i].norm ? norm : NULL,
                            .eps = 1e-5f,
                            .epilogue = links[i].gate ? LV_GATE : LV_STORE,
                            .residual = links[i].residual ? buffers[0] : NULL,
                            .out = buffers[i + 1],
                            .may_wait = may_wait};
        CHECK_OK(lv_cuda_small(cuda, &s));
    }
    CHECK_OK(lv_cuda_flush(cuda));
    for (int i = 0; i < CHAIN_LINEARS; i++) {
        const int width = links[i].w->n_out / (links[i].gate ? 2 : 1);
        const size_t n_bytes = (size_t)m * (size_t)width * 2;
        CHECK_OK(be->ops->download(be, got, buffers[i + 1], n_bytes));
        poison(cuda, buffers[i + 1], n_bytes);
        got += n_bytes;
    }
}

static void test_chain(lv_backend *be, int d, int d_ff) {
    lv_cuda *cuda = (lv_cuda *)be;
    const int shapes[CHAIN_LINEARS][2] = {{d, d}, {2 * d_ff, d}, {d, d_ff}, {d, d}, {3 * d, d}};
    link links[CHAIN_LINEARS] = {{.residual = true},
                                 {.norm = true, .gate = true},
                                 {.residual = true},
                                 {.norm = true},
                                 {.norm = true}};
    size_t n_bytes = 0;
    for (int i = 0; i < CHAIN_LINEARS; i++) {
        lv_linear_source source = awq_source(shapes[i][0], shapes[i][1], LV_RECORD_K, false);
        links[i].w = load(be, &source, 1, links[i].gate ? d_ff : 8, LV_W_INT4);
        free_source(&source, 0);
        n_bytes += (size_t)(shapes[i][0] * 4) * 2;
    }
    float *x = random_halves((size_t)d * 4), *norm_host = random_floats((size_t)d);
    float *norm = dev_f32(be, norm_host, (size_t)d);
    void *buffers[CHAIN_LINEARS + 1] = {dev_act(be, x, (size_t)d * 4)};
    for (int i = 0; i < CHAIN_LINEARS; i++) {
        buffers[i + 1] = dev_bytes(be, (size_t)shapes[i][0] * 4 * 2);
    }
    uint8_t *alone = calloc(1, n_bytes), *chained = calloc(1, n_bytes);
    for (int m = 1; m <= 4; m += gpu_small(3) ? 3 : 1) {
        run_links(cuda, links, m, buffers, norm, false, alone);
        for (size_t i = 0; i < n_bytes; i += 2) {
            CHECK((alone[i + 1] & 0x7c) != 0x7c, "chain of %d, %d: not finite", d, d_ff);
        }
        for (int again = 0; again < (gpu_small(3) ? 2 : 20); again++) {
            run_links(cuda, links, m, buffers, norm, true, chained);
            size_t at = 0;
            while (at < n_bytes && alone[at] == chained[at]) {
                at++;
            }
            CHECK(at == n_bytes, "chain of %d, %d, %d rows: byte %zu of %zu differs", d, d_ff, m,
                  at, n_bytes);
        }
    }
    for (int i = 0; i < CHAIN_LINEARS; i++) {
        be->ops->linear_free(be, links[i].w);
        be->ops->free(be, buffers[i + 1]);
    }
    be->ops->free(be, buffers[0]);
    be->ops->free(be, norm);
    free(alone);
    free(chained);
    free(x);
    free(norm_host);
}

int main(void) {
    lv_backend *be = open_cuda();
    test_chain(be, 128, 256); // slices without records, halves without tiles
    test_chain(be, 640, 1152);
    if (!gpu_small(3)) {
        test_chain(be, 4096, 11008);
    }
    lv_backend_close(be);
    return check_done();
}

#endif
