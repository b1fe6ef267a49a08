// Small exchanges among GPUs that can write one another's memory (peers.cu).
#ifndef LV_KERNELS_GROUP_PEERS_H
#define LV_KERNELS_GROUP_PEERS_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LV_MAX_PEERS 8
#define LV_PEER_PACKETS (256 << 10) // most in one exchange, of 8 bytes each

// One member's view. A packet is 16 bytes: twice 4 bytes of values and the number of its use.
typedef struct lv_peers {
    int n, me;
    void *inbox[LV_MAX_PEERS]; // dev [2, n, LV_PEER_PACKETS] packets of each member, zeros at first
    uint32_t *uses;            // dev, own [LV_PEER_PACKETS] how often each packet was sent
    const int *aborted;        // mapped host memory: set once, then nobody waits any more
} lv_peers;

#define LV_PEER_INBOX_BYTES(n) ((size_t)2 * (size_t)(n)*LV_PEER_PACKETS * 16)

// x f16 [n], 8-byte aligned -> the members' sum. LV_EUNSUPPORTED for other sizes than multiples of
// 4 up to 4 LV_PEER_PACKETS.
lv_status lv_peers_sum(lv_cuda *cuda, const lv_peers *peers, void *x, size_t n) LV_MUST_CHECK;
// mine dev [n_rows, row_bytes] of each member -> out [n_rows, n, row_bytes], 8-byte aligned; `mine`
// may be its place in `out` where n_rows is 1. LV_EUNSUPPORTED as above.
lv_status lv_peers_join(lv_cuda *cuda, const lv_peers *peers, const void *mine, int n_rows,
                        size_t row_bytes, void *out) LV_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
