// llava-bench: speed of each stage beside the ceilings measured in the same run.
#include <errno.h>
#include <getopt.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "apps/bench/bench.h"
#include "apps/polite.h"

static const char usage[] =
    "usage: llava-bench (--synthetic NAME | -m MODEL) [options]\n"
    "  --synthetic NAME   random weights of real shapes, W4 decoder: llava-1.5-7b, llava-1.6-7b,\n"
    "                     llava-1.5-13b, llava-1.6-mistral-7b, demo\n"
    "                     (written to $TMPDIR, or /tmp, and removed: 4.5 GB for 7B)\n"
    "  -m, --model MODEL  a checkpoint folder or org/name\n"
    "  --device NAME      auto, cpu, cuda, cuda:N\n"
    "  --threads N        CPU threads (default: all this process may use)\n"
    "  --tiles N          tiles of the CLIP pass (default 1; 5 for LLaVA-1.6)\n"
    "  --prompt N         tokens of the prefill (default 128)\n"
    "  --context N        tokens cached before decoding (default 128)\n"
    "  --decode-tokens N  tokens decoded (default 32)\n"
    "  --batch N          sequences decoded together (default 1)\n"
    "  --kv TYPE          f32, f16 or i8 (default: the device's)\n"
    "  --json             print JSON\n"
    "LV_CPU_ISA=portable|avx2|avx512|vnni takes a lesser instruction set than the CPU's best.\n";

static bool read_count(const char *text, int min, int max, int *out) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < min || value > max) {
        fprintf(stderr, "llava-bench: \"%s\": expected a number from %d to %d\n", text, min, max);
        return false;
    }
    *out = (int)value;
    return true;
}

static bool read_kv(const char *text, lv_dtype *out) {
    *out = strcmp(text, "f32") == 0   ? LV_F32
           : strcmp(text, "f16") == 0 ? LV_F16
           : strcmp(text, "i8") == 0  ? LV_I8
                                      : LV_NONE;
    if (*out == LV_NONE) {
        fprintf(stderr, "llava-bench: --kv %s: expected f32, f16 or i8\n", text);
    }
    return *out != LV_NONE;
}

// Returns an exit status, or -1 to go on.
static int read_options(int argc, char **argv, bench_options *o) {
    enum { SYNTHETIC = 256, DEVICE, THREADS, TILES, PROMPT, CONTEXT, DECODE, BATCH, KV, JSON };
    static const struct option names[] = {{"synthetic", 1, NULL, SYNTHETIC},
                                          {"model", 1, NULL, 'm'},
                                          {"device", 1, NULL, DEVICE},
                                          {"threads", 1, NULL, THREADS},
                                          {"tiles", 1, NULL, TILES},
                                          {"prompt", 1, NULL, PROMPT},
                                          {"context", 1, NULL, CONTEXT},
                                          {"decode-tokens", 1, NULL, DECODE},
                                          {"batch", 1, NULL, BATCH},
                                          {"kv", 1, NULL, KV},
                                          {"json", 0, NULL, JSON},
                                          {"help", 0, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    bool ok = true;
    for (int c; ok && (c = getopt_long(argc, argv, "m:h", names, NULL)) != -1;) {
        switch (c) {
        case SYNTHETIC:
            o->synthetic = optarg;
            break;
        case 'm':
            o->model = optarg;
            break;
        case DEVICE:
            o->device = optarg;
            break;
        case THREADS:
            ok = read_count(optarg, 1, 1024, &o->n_threads);
            break;
        case TILES:
            ok = read_count(optarg, 1, 1024, &o->n_tiles);
            break;
        case PROMPT:
            ok = read_count(optarg, 1, 65536, &o->n_prompt);
            break;
        case CONTEXT:
            ok = read_count(optarg, 1, 65536, &o->context);
            break;
        case DECODE:
            ok = read_count(optarg, 1, 65536, &o->n_decode);
            break;
        case BATCH:
            ok = read_count(optarg, 1, 256, &o->batch);
            break;
        case KV:
            ok = read_kv(optarg, &o->kv_dtype);
            break;
        case JSON:
            o->json = true;
            break;
        case 'h':
            fputs(usage, stdout);
            return 0;
        default:
            ok = false;
        }
    }
    if (!ok || optind < argc || !o->synthetic == !o->model) {
        fputs(usage, stderr);
        return 2;
    }
    return -1;
}

// The checkpoint's folder: the model's own, or a temporary one with random weights.
static lv_status make_folder(const bench_options *o, char *dir, size_t n) {
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, n, "%s/llava-bench-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) {
        return lv_fail(LV_EIO, "%s: cannot be made", dir);
    }
    return bench_write_synthetic(o->synthetic, dir);
}

static void remove_folder(const char *dir) {
    static const char *const files[] = {"model.safetensors", "config.json",
                                        "preprocessor_config.json"};
    char path[600];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        unlink(path);
    }
    rmdir(dir);
}

int main(int argc, char **argv) {
    bench_options o = {.n_prompt = 128, .context = 128, .n_decode = 32, .batch = 1};
    char dir[512] = "";
    wait_politely(argv);
    int exit_status = read_options(argc, argv, &o);
    if (exit_status >= 0) {
        return exit_status;
    }
    lv_backend_options backend = {.device = o.device, .n_threads = o.n_threads};
    lv_backend *be = NULL;
    lv_checkpoint *checkpoint = NULL;
    bench_report report = {0};
    const int n_threads = o.n_threads ? o.n_threads : omp_get_num_procs();
    lv_status status = LV_OK;
    LV_TRY_DONE(lv_backend_open(&backend, &be));
    LV_TRY_DONE(bench_measure_ceilings(n_threads, &report.ceilings));
    if (o.synthetic) {
        LV_TRY_DONE(make_folder(&o, dir, sizeof dir));
    }
    LV_TRY_DONE(lv_checkpoint_open(o.synthetic ? dir : o.model, NULL, &checkpoint));
    if (o.synthetic) { // mapped by now: nothing is left behind even where the process is killed
        remove_folder(dir);
        dir[0] = 0;
    }
    LV_TRY_DONE(bench_run_stages(&o, checkpoint, be, &report));
    // Again: what else the machine does changes from minute to minute, and the best counts.
    LV_TRY_DONE(bench_measure_ceilings(n_threads, &report.ceilings));
    bench_print(&o, be, &report);
done:
    if (status != LV_OK) {
        fprintf(stderr, "llava-bench: %s\n", lv_error());
    }
    if (dir[0]) {
        remove_folder(dir);
    }
    lv_checkpoint_free(checkpoint);
    lv_backend_close(be);
    return status == LV_OK ? 0 : 1;
}
