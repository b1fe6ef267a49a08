// Sums and joins of few values among GPUs that see one another's memory, for decoding.
//
//   sum:  x[i] = f16(sum over members j, in order, of f32(x_j[i]))
//   join: out[r, j, :] = part_j[r, :]
//
// x f16 [m, d], 8-byte aligned; parts and out f32 rows as 8-byte words. One launch a member, the
// same on all. A thread has one packet of 8 bytes: it writes it to each peer's inbox, then waits
// for the peers' packets in its own, which its L2 cache holds. A packet carries the number of its
// use beside each 4 bytes of values, and 8 bytes are written as one: whoever sees the number sees
// the values. So no fence and no barrier is needed, and an exchange costs one way over NVLink.
// Numbers are counted by each thread for its packet, in device memory: a recorded graph goes on
// counting.
//
// Two inboxes in turn: a peer can write a packet's next but one use only after it has received the
// next one, which is sent by a later launch than the one that read this use.
//
// One token of LLaVA 7B: 8 KB a sum, 64 sums; 16 KB over the wire. 32 tokens: 256 KB, 512 KB over
// the wire at 450 GB/s: 1.2 us. No shared memory. Latency binds, beyond some 64 tokens NVLink.
// measured: two H200, NVLink, rows of 4096, us a sum in a recorded graph, and NCCL 2.28's:
//   1 row 2.0 (6.6), 8 rows 2.3 (7.0), 32 3.5 (8.4), 64 4.9 (9.9), 128 7.9 (13.7), 256 13.6 (26.7)
// (test_gpu_group). Twice the wire's bytes for one way: NCCL's sum is the one for more.
#include "kernels/cuda/launch.cuh"
#include "kernels/group/peers.h"

#define BLOCK 256
#define LOOKS_BEFORE_ASKING 65536 // whether the exchange was given up, over the bus

static __device__ __forceinline__ void push(uint4 *to, uint2 v, uint32_t use) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(use),
                 "r"(v.y), "r"(use)
                 : "memory");
}

static __device__ __forceinline__ uint2 pull(const uint4 *from, uint32_t use, const int *aborted) {
    uint32_t a, use_a, b, use_b;
    for (int looks = 1;; looks++) {
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(a), "=r"(use_a), "=r"(b), "=r"(use_b)
                     : "l"(from)
                     : "memory");
        if (use_a == use && use_b == use) {
            break;
        }
        if (looks % LOOKS_BEFORE_ASKING == 0 && *(const volatile int *)aborted) {
            break;
        }
    }
    return make_uint2(a, b);
}

// Packet p's place in an inbox, for this use of it and from this member.
static __device__ __forceinline__ uint4 *place(const lv_peers &peers, int owner, uint32_t use,
                                               int from, int p) {
    return (uint4 *)peers.inbox[owner] + ((size_t)(use & 1) * peers.n + from) * LV_PEER_PACKETS + p;
}

static __device__ __forceinline__ uint32_t send(const lv_peers &peers, int p, uint2 mine) {
    const uint32_t use = peers.uses[p] + 1;
    for (int j = 0; j < peers.n; j++) {
        if (j != peers.me) {
            push(place(peers, j, use, peers.me, p), mine, use);
        }
    }
    peers.uses[p] = use;
    return use;
}

static __device__ __forceinline__ void add(float4 *sum, uint2 v) {
    const float2 a = __half22float2(*(const __half2 *)&v.x);
    const float2 b = __half22float2(*(const __half2 *)&v.y);
    sum->x += a.x;
    sum->y += a.y;
    sum->z += b.x;
    sum->w += b.y;
}

static __global__ void __launch_bounds__(BLOCK)
    peers_sum(const __grid_constant__ lv_peers peers, uint2 *x, int n) {
    const int p = blockIdx.x * BLOCK + threadIdx.x;
    lv_launch_next();
    lv_wait_previous();
    if (p >= n) {
        return;
    }
    const uint2 mine = x[p];
    const uint32_t use = send(peers, p, mine);
    float4 sum = make_float4(0, 0, 0, 0);
    for (int j = 0; j < peers.n; j++) {
        add(&sum,
            j == peers.me ? mine : pull(place(peers, peers.me, use, j, p), use, peers.aborted));
    }
    const __half2 a = __floats2half2_rn(sum.x, sum.y), b = __floats2half2_rn(sum.z, sum.w);
    x[p] = make_uint2(*(const uint32_t *)&a, *(const uint32_t *)&b);
}

static __global__ void __launch_bounds__(BLOCK)
    peers_join(const __grid_constant__ lv_peers peers, const uint2 *part, int n, int row_words,
               uint2 *out) {
    const int p = blockIdx.x * BLOCK + threadIdx.x;
    lv_launch_next();
    lv_wait_previous();
    if (p >= n) {
        return;
    }
    const uint2 mine = part[p];
    const uint32_t use = send(peers, p, mine);
    uint2 *to = out + (size_t)(p / row_words) * peers.n * row_words + p % row_words;
    for (int j = 0; j < peers.n; j++) {
        to[(size_t)j * row_words] =
            j == peers.me ? mine : pull(place(peers, peers.me, use, j, p), use, peers.aborted);
    }
}

static bool is_aligned(const void *dev) {
    return (uintptr_t)dev % sizeof(uint2) == 0;
}

lv_status lv_peers_sum(lv_cuda *cuda, const lv_peers *peers, void *x, size_t n) {
    const size_t n_packets = n / 4;
    if (n % 4 || n_packets > LV_PEER_PACKETS || !is_aligned(x)) {
        return lv_fail(LV_EUNSUPPORTED, "sum of %zu values among GPUs", n);
    }
    return lv_launch(cuda, "sum among GPUs", peers_sum,
                     dim3((unsigned)((n_packets + BLOCK - 1) / BLOCK)), BLOCK, 0, *peers,
                     (uint2 *)x, (int)n_packets);
}

lv_status lv_peers_join(lv_cuda *cuda, const lv_peers *peers, const void *mine, int n_rows,
                        size_t row_bytes, void *out) {
    const size_t row_words = row_bytes / sizeof(uint2), n_packets = row_words * (size_t)n_rows;
    if (row_bytes % sizeof(uint2) || n_packets > LV_PEER_PACKETS || !is_aligned(mine) ||
        !is_aligned(out)) {
        return lv_fail(LV_EUNSUPPORTED, "join of %d rows of %zu bytes among GPUs", n_rows,
                       row_bytes);
    }
    return lv_launch(cuda, "join among GPUs", peers_join,
                     dim3((unsigned)((n_packets + BLOCK - 1) / BLOCK)), BLOCK, 0, *peers,
                     (const uint2 *)mine, (int)n_packets, (int)row_words, (uint2 *)out);
}
