// The report: a table for people, or JSON.
#include <jansson.h>
#include <stdio.h>

#include "apps/bench/bench.h"

static void print_row(const bench_row *row, const bench_ceilings *ceilings) {
    double s = row->ms * 1e-3;
    printf("%-12s %-24s %10.2f ms %9.2f %-10s", row->name, row->detail, row->ms, row->rate,
           row->unit);
    if (row->bytes > 0) {
        printf(" %7.1f GB/s    %4.0f%% of reading", row->bytes / s * 1e-9,
               100 * row->bytes / s / ceilings->bytes_per_s);
    } else if (row->flops > 0) {
        printf(" %7.1f GFLOP/s %4.0f%% of sgemm", row->flops / s * 1e-9,
               100 * row->flops / s / ceilings->flops_per_s);
    }
    printf("\n");
}

static void print_json(const bench_options *options, const lv_backend *be,
                       const bench_report *report) {
    json_t *stages = json_array();
    for (int i = 0; i < report->n_rows; i++) {
        const bench_row *r = &report->rows[i];
        json_array_append_new(stages,
                              json_pack("{s:s, s:s, s:f, s:f, s:s, s:f, s:f}", "stage", r->name,
                                        "detail", r->detail, "ms", r->ms, "rate", r->rate, "unit",
                                        r->unit, "bytes", r->bytes, "flops", r->flops));
    }
    json_t *root =
        json_pack("{s:s, s:s, s:f, s:f, s:f, s:I, s:o}", "model",
                  options->synthetic ? options->synthetic : options->model, "device", be->device,
                  "read_bytes_per_s", report->ceilings.bytes_per_s, "sgemm_flops_per_s",
                  report->ceilings.flops_per_s, "load_ms", report->load_ms,
                  "weight_bytes_per_token", (json_int_t)report->weight_bytes, "stages", stages);
    if (root) {
        json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
        printf("\n");
    }
    json_decref(root);
}

void bench_print(const bench_options *options, const lv_backend *be, const bench_report *report) {
    if (options->json) {
        print_json(options, be, report);
        return;
    }
    printf("%s on %s\n", options->synthetic ? options->synthetic : options->model, be->device);
    printf("ceilings: reading %.1f GB/s, f32 sgemm %.1f GFLOP/s\n",
           report->ceilings.bytes_per_s * 1e-9, report->ceilings.flops_per_s * 1e-9);
    printf("decoder: %.3f GB read a token, loaded in %.1f s\n\n",
           (double)report->weight_bytes * 1e-9, report->load_ms * 1e-3);
    for (int i = 0; i < report->n_rows; i++) {
        print_row(&report->rows[i], &report->ceilings);
    }
}
