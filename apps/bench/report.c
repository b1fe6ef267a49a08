// The report: a table for people, or JSON.
#include <jansson.h>
#include <stdio.h>

#include "apps/bench/bench.h"

// What the row reaches of its ceiling: bytes over reading, or operations over the product.
static double share(const bench_row *row, const bench_ceilings *ceilings) {
    const double s = row->ms * 1e-3;
    if (row->ms <= 0) {
        return 0;
    }
    if (row->bytes > 0) {
        return ceilings->read_bytes > 0 ? row->bytes / s / ceilings->read_bytes : 0;
    }
    return row->flops > 0 && ceilings->flops > 0 ? row->flops / s / ceilings->flops : 0;
}

static void print_row(const bench_row *row, const bench_ceilings *ceilings) {
    const double s = row->ms * 1e-3;
    printf("%-12s %-38s", row->name, row->detail);
    if (row->note[0]) {
        printf(" %s\n", row->note);
        return;
    }
    if (row->ms > 0) {
        printf(" %10.3f ms %10.2f %-10s", row->ms, row->rate, row->unit);
    } else {
        printf(" %24s %10s", "", "");
    }
    if (row->bytes > 0) {
        printf(" %8.1f GB/s    %4.0f%% of reading ", row->bytes / s * 1e-9,
               100 * share(row, ceilings));
    } else if (row->flops > 0) {
        printf(" %8.1f GFLOP/s %4.0f%% of %s", row->flops / s * 1e-9, 100 * share(row, ceilings),
               ceilings->product);
    }
    if (row->memory_bytes > 0) {
        printf(" %7.2f GB", row->memory_bytes * 1e-9);
    }
    printf("\n");
}

static json_t *row_json(const bench_row *r, const bench_ceilings *ceilings) {
    return json_pack("{s:s, s:s, s:f, s:f, s:s, s:f, s:f, s:f, s:f, s:s}", "stage", r->name,
                     "detail", r->detail, "ms", r->ms, "rate", r->rate, "unit", r->unit, "bytes",
                     r->bytes, "flops", r->flops, "share", share(r, ceilings), "memory_bytes",
                     r->memory_bytes, "note", r->note);
}

static const char *model_name(const bench_options *o) {
    return o->synthetic ? o->synthetic : o->model;
}

static void print_json(const bench *b) {
    const bench_report *report = b->report;
    const bench_ceilings *c = &report->ceilings;
    json_t *stages = json_array();
    for (int i = 0; i < report->n_rows; i++) {
        json_array_append_new(stages, row_json(&report->rows[i], c));
    }
    json_t *root =
        json_pack("{s:s, s:s, s:f, s:f, s:f, s:s, s:I, s:o}", "model", model_name(b->options),
                  "device", b->be->device, "read_bytes_per_s", c->read_bytes, "copied_bytes_per_s",
                  c->copied_bytes, "flops_per_s", c->flops, "product", c->product ? c->product : "",
                  "weight_bytes_per_token", (json_int_t)report->weight_bytes, "stages", stages);
    if (root) {
        json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
        printf("\n");
    }
    json_decref(root);
}

void bench_print(const bench *b) {
    const bench_options *o = b->options;
    const bench_ceilings *c = &b->report->ceilings;
    if (o->json) {
        print_json(b);
        return;
    }
    printf("%s%s%s%s on %s\n", model_name(o), o->dense ? ", f16" : "",
           o->llm.int4_weights ? ", int4 while loading" : "", o->llm.int8_head ? ", int8 head" : "",
           b->be->device);
    if (c->product) {
        printf("ceilings: reading %.1f GB/s, ", c->read_bytes * 1e-9);
        if (c->copied_bytes > 0) {
            printf("copying %.1f GB/s, ", c->copied_bytes * 1e-9);
        }
        printf("%s %.1f GFLOP/s\n", c->product, c->flops * 1e-9);
    }
    if (b->report->weight_bytes) {
        printf("decoder: %.3f GB read a token\n", (double)b->report->weight_bytes * 1e-9);
    }
    printf("\n");
    for (int i = 0; i < b->report->n_rows; i++) {
        print_row(&b->report->rows[i], c);
    }
}
