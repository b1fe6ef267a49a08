// Opening the CPU backend: instruction set, threads, memory.
#include <errno.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/cpu.h"

static const char *const isa_keys[] = {"portable", "avx2", "avx512", "vnni"};
static const char *const isa_names[] = {"portable", "AVX2", "AVX-512", "AVX-512 VNNI"};

static lv_cpu_isa best_isa(void) {
#if defined(__x86_64__)
    // F16C came before AVX2 (clang 14 cannot ask for it).
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
            return __builtin_cpu_supports("avx512vnni") ? LV_ISA_VNNI : LV_ISA_AVX512;
        }
        return LV_ISA_AVX2;
    }
#endif
    return LV_ISA_PORTABLE;
}

// LV_CPU_ISA names a lesser instruction set than the machine's best (tests, comparisons).
static lv_status choose_isa(lv_cpu_isa *out) {
    lv_cpu_isa best = best_isa();
    const char *name = getenv("LV_CPU_ISA");
    *out = best;
    if (!name || !*name) {
        return LV_OK;
    }
    for (int i = LV_ISA_PORTABLE; i <= LV_ISA_VNNI; i++) {
        if (strcmp(name, isa_keys[i]) == 0) {
            if (i > (int)best) {
                return lv_fail(LV_EDEVICE, "LV_CPU_ISA=%s: this CPU has only %s", name,
                               isa_names[best]);
            }
            *out = (lv_cpu_isa)i;
            return LV_OK;
        }
    }
    return lv_fail(LV_EINVAL, "LV_CPU_ISA=%s: expected portable, avx2, avx512 or vnni", name);
}

int lv_cpu_cores(void) {
    cpu_set_t set;
    int n = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        n = CPU_COUNT(&set);
    } else {
        n = omp_get_num_procs(); // more cores than a cpu_set_t holds
    }
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (file) {
        long long quota, period;
        if (fscanf(file, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
            long long granted = (quota + period - 1) / period;
            n = granted < n ? (int)granted : n;
        }
        fclose(file);
    }
    return n > 0 ? n : 1;
}

static void cpu_close(lv_backend *be) {
    lv_cpu *cpu = (lv_cpu *)be;
    for (int i = 0; i < LV_CPU_N_SCRATCH; i++) {
        lv_cpu_unmap(cpu->scratch[i].data, cpu->scratch[i].n_bytes);
    }
    free((void *)cpu->base.ops);
    free(cpu);
}

static lv_status cpu_sync(lv_backend *be) {
    (void)be;
    return LV_OK;
}

static lv_status cpu_pass(lv_backend *be, const lv_batch *batch, lv_pass_body *body, void *user) {
    (void)be;
    return body(user, batch);
}

// Of the machine; what this process has taken shows in free_bytes only.
static lv_status cpu_memory(lv_backend *be, lv_memory *out) {
    (void)be;
    *out = (lv_memory){0};
    FILE *file = fopen("/proc/meminfo", "r");
    if (!file) {
        return lv_fail(LV_EIO, "/proc/meminfo cannot be read");
    }
    char line[256];
    while (fgets(line, sizeof line, file)) {
        unsigned long long kib;
        if (sscanf(line, "MemTotal: %llu", &kib) == 1) {
            out->total_bytes = (size_t)kib * 1024;
        } else if (sscanf(line, "MemAvailable: %llu", &kib) == 1) {
            out->free_bytes = (size_t)kib * 1024;
        }
    }
    fclose(file);
    return LV_OK;
}

static lv_status cpu_ceilings(lv_backend *be, lv_ceilings *out) {
    *out = (lv_ceilings){0};
    return lv_fail(LV_EUNSUPPORTED, "%s: ceilings are not measured by the backend", be->device);
}

static lv_status download_act(lv_backend *be, float *host, const void *dev, size_t n) {
    return lv_cpu_copy(be, host, dev, n * sizeof(float));
}

static lv_status upload_act(lv_backend *be, void *dev, const float *host, size_t n) {
    return lv_cpu_copy(be, dev, host, n * sizeof(float));
}

static void shared_ops(lv_ops *ops) {
    ops->alloc = lv_cpu_alloc;
    ops->free = lv_cpu_free;
    ops->upload = lv_cpu_copy;
    ops->download = lv_cpu_copy;
    ops->sync = cpu_sync;
    ops->memory = cpu_memory;
    ops->ceilings = cpu_ceilings;
    ops->share = lv_share_alone;
    ops->pass = cpu_pass;
    ops->upload_act = upload_act;
    ops->download_act = download_act;
    ops->linear_load = lv_cpu_linear_load;
    ops->linear_free = lv_cpu_linear_free;
    ops->linear_shape = lv_cpu_linear_shape;
    ops->tensor_load = lv_cpu_tensor_load;
    ops->embed = lv_cpu_embed;
    ops->gather_rows = lv_cpu_gather_rows;
    ops->kv_create = lv_cpu_kv_create;
    ops->kv_free = lv_cpu_kv_free;
    ops->kv_block_bytes = lv_cpu_kv_block_bytes;
    ops->kv_copy = lv_cpu_kv_copy;
    ops->sample = lv_cpu_sample;
    ops->collect = lv_cpu_collect;
    ops->close = cpu_close;
}

static void set_kernels(lv_cpu *cpu) {
    cpu->vector = &lv_vector_portable;
    cpu->int4 = lv_int4_portable;
    cpu->int4_rows = 6;
#if defined(__x86_64__)
    if (cpu->isa >= LV_ISA_AVX2) {
        cpu->vector = &lv_vector_avx2;
        cpu->int4 = lv_int4_avx2;
    }
    if (cpu->isa >= LV_ISA_AVX512) {
        cpu->vector = &lv_vector_avx512;
        cpu->int4 = cpu->isa >= LV_ISA_VNNI ? lv_int4_vnni : lv_int4_avx512;
        cpu->int4_rows = 12;
    }
#endif
}

lv_status lv_cpu_open(const lv_backend_options *options, lv_backend **out) {
    lv_cpu_isa isa;
    *out = NULL;
    LV_TRY(choose_isa(&isa));
    if (options->n_threads < 0 || options->n_threads > 1024) {
        return lv_fail(LV_EINVAL, "%d CPU threads: expected 0 to 1024", options->n_threads);
    }
    lv_cpu *cpu = calloc(1, sizeof *cpu);
    lv_ops *ops = calloc(1, sizeof *ops);
    if (!cpu || !ops) {
        free(cpu);
        free(ops);
        return lv_fail(LV_ENOMEM, "CPU backend: out of memory");
    }
    cpu->isa = isa;
    cpu->reference = options->reference;
    cpu->n_threads = options->reference   ? 1
                     : options->n_threads ? options->n_threads
                                          : lv_cpu_cores();
    set_kernels(cpu);
    shared_ops(ops);
    if (options->reference) {
        lv_cpu_reference_ops(ops);
    } else {
        lv_cpu_fast_ops(ops);
    }
    cpu->base.ops = ops;
    cpu->base.act = LV_F32;
    snprintf(cpu->base.device, sizeof cpu->base.device, "CPU, %d thread%s, %s", cpu->n_threads,
             cpu->n_threads == 1 ? "" : "s", options->reference ? "reference" : isa_names[isa]);
    *out = &cpu->base;
    return LV_OK;
}

void *lv_cpu_map(size_t n_bytes, bool large_pages) {
    void *data = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
        return NULL;
    }
    if (large_pages) {
        madvise(data, n_bytes, MADV_HUGEPAGE); // only a wish: fewer faults and TLB misses
    }
    return data;
}

void lv_cpu_unmap(void *data, size_t n_bytes) {
    if (data) {
        munmap(data, n_bytes);
    }
}

lv_status lv_cpu_scratch(lv_cpu *cpu, int slot, size_t n_bytes, void **out) {
    if (cpu->scratch[slot].n_bytes < n_bytes) {
        void *data = lv_cpu_map(n_bytes, false);
        if (!data) {
            return lv_fail(LV_ENOMEM, "CPU scratch: no %zu bytes", n_bytes);
        }
        lv_cpu_unmap(cpu->scratch[slot].data, cpu->scratch[slot].n_bytes);
        cpu->scratch[slot].data = data;
        cpu->scratch[slot].n_bytes = n_bytes;
    }
    *out = cpu->scratch[slot].data;
    return LV_OK;
}

lv_status lv_cpu_alloc(lv_backend *be, size_t n_bytes, void **out) {
    (void)be;
    *out = NULL;
    size_t rounded;
    if (__builtin_add_overflow(n_bytes, (size_t)64, &rounded) || // 0 bytes are an allocation too
        !(*out = aligned_alloc(64, rounded & ~(size_t)63))) {
        return lv_fail(LV_ENOMEM, "CPU memory: no %zu bytes", n_bytes);
    }
    return LV_OK;
}

void lv_cpu_free(lv_backend *be, void *dev) {
    (void)be;
    free(dev);
}

lv_status lv_cpu_copy(lv_backend *be, void *to, const void *from, size_t n_bytes) {
    (void)be;
    if (n_bytes > 0) {
        memcpy(to, from, n_bytes);
    }
    return LV_OK;
}
