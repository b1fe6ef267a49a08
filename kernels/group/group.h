// Inside of a group: several devices of one kind behind the table of one backend, each run by a
// thread of its own. Only opening is for others.
//
// An operation called by the host's thread is done by all members' threads, and waited for. Inside
// a body of pass or share, which every member's thread runs, it is done by that member alone; so a
// member of CUDA records its own graph, with what it exchanges with the others in it.
//
// A dev pointer of the group is member 0's. Each allocation is made by all members, and another
// member's address is found by the allocation that the pointer lies in.
#ifndef LV_KERNELS_GROUP_H
#define LV_KERNELS_GROUP_H

#include <pthread.h>
#include <stdatomic.h>

#include "kernels/ops.h"

#define LV_MAX_MEMBERS 8

typedef struct lv_group lv_group;
typedef struct lv_collectives lv_collectives;

// What members exchange: host.c for the CPU, nccl.c for CUDA. All members call the same ones in the
// same order. lv_group_exchange surrounds each by two meetings and publishes the addresses:
// where[j] is member j's.
struct lv_collectives {
    char name[64];
    size_t small_bytes; // of f16 values: sums up to here are peers.cu's
    // where[i]: act [n] -> the members' sum, the same bits on all.
    lv_status (*sum)(lv_collectives *c, int member, void *const *where, size_t n);
    // where[i]: [n members, n_rows, row_bytes], the member's own part filled in -> out [n_rows, n
    // members, row_bytes]. out is where[i] where n_rows is 1.
    lv_status (*join)(lv_collectives *c, int member, void *const *where, int n_rows,
                      size_t row_bytes, void *out);
    // Bytes [first[j], first[j + 1]) at where[i] are member j's: they go to all others.
    lv_status (*spread)(lv_collectives *c, int member, void *const *where, const size_t *first);
    // Ends what devices wait for, for good. Called by any thread, at most once.
    void (*abort)(lv_collectives *c);
    void (*close)(lv_collectives *c);
};

#define LV_MAX_COPIES 9

// Memory for copies that is used again by the next linear: fresh pages cost as much as copying.
typedef struct lv_copies {
    void *data[LV_MAX_COPIES];
    size_t n_bytes[LV_MAX_COPIES];
} lv_copies;
// Work for all members: `call` is what the operation was called with.
typedef lv_status lv_member_body(lv_group *group, int member, const void *call);

typedef struct lv_member {
    lv_group *group;
    int index;
    lv_backend *be;
    pthread_t thread;
    lv_copies copies; // of shares of weights on their way to a GPU, while models are loaded
    lv_status status; // of the last run
    char message[512];
} lv_member;

typedef struct lv_allocation {
    uint8_t *at[LV_MAX_MEMBERS];
    size_t n_bytes;
} lv_allocation;

struct lv_group {
    lv_backend base;
    int n, n_threads; // members; those whose thread runs
    lv_member members[LV_MAX_MEMBERS];
    lv_collectives *collectives;
    lv_allocation *allocations; // [n_allocations] by member 0's address
    int n_allocations, capacity;
    void *parts[LV_MAX_MEMBERS]; // dev, of logits before they are joined
    size_t part_row_bytes[LV_MAX_MEMBERS];
    // Team (team.c)
    long spin_ns; // how long a thread looks before it sleeps
    pthread_mutex_t lock;
    pthread_cond_t wake, done, met;
    atomic_uint turn; // one more with each run
    atomic_int n_left;
    bool ends;
    lv_member_body *body;
    const void *call;
    atomic_bool has_failed; // a member, in this run
    int first_failed;
    int n_waiting, n_finished; // at the meeting; of the run
    atomic_uint meeting;       // one more with each
    void *where[LV_MAX_MEMBERS];
    atomic_bool is_broken; // collectives were aborted: nothing can be exchanged any more
    char broken_by[256];
};

// options->tp members, from the named device on.
lv_status lv_group_open(const lv_backend_options *options, lv_backend **out) LV_MUST_CHECK;
void lv_group_ops(lv_ops *ops); // ops.c

// --- team.c: threads

lv_status lv_team_start(lv_group *group) LV_MUST_CHECK;
void lv_team_end(lv_group *group);
// Inside a member's body: body(group, that member, call). Else all members do it, and the first
// failure is returned with its message.
lv_status lv_team_run(lv_group *group, lv_member_body *body, const void *call) LV_MUST_CHECK;
// Waits until all members are here or done with the run; fails where one has failed.
lv_status lv_team_meet(lv_group *group) LV_MUST_CHECK;
bool lv_team_is_inside(const lv_group *group); // a member's thread, inside a body
void lv_team_break(lv_group *group, const char *why);

// --- memory.c: addresses

lv_status lv_group_alloc(lv_backend *be, size_t n_bytes, void **out);
void lv_group_free(lv_backend *be, void *dev);
lv_status lv_group_tensor_load(lv_backend *be, const lv_tensor *source, float **out);
void *lv_group_at(const lv_group *group, int member, const void *dev); // NULL for NULL

// --- slice.c: a member's share of weights

// first[j] .. first[j + 1] - 1: member j's of the units, in runs that are multiples of 128 values
// where there are enough of them; the first members have more. LV_EUNSUPPORTED where there are
// fewer units than members.
lv_status lv_units_share(lv_units units, int n_members, int *first) LV_MUST_CHECK;

void lv_copies_free(lv_copies *copies);

typedef struct lv_slices {
    lv_linear_source parts[3];
    lv_linear_options options; // for these parts
    lv_copies copies;          // of columns, which do not lie together
    int n_copies, n_threads;
} lv_slices;

// Whether all members' shares keep groups and the kernels' layouts; LV_EUNSUPPORTED with the
// numbers. *out: LV_SPLIT_HEAD resolved.
lv_status lv_slices_check(const lv_linear_source *parts, int n_parts,
                          const lv_linear_options *options, int n_members,
                          lv_split *out) LV_MUST_CHECK;
// Member `member`'s share of checked parts; borrows what it can of the sources. out->copies are
// used where they are large enough, and replaced; set them to {0} at first.
lv_status lv_slices_make(const lv_linear_source *parts, int n_parts,
                         const lv_linear_options *options, lv_split split, int member,
                         int n_members, lv_slices *out) LV_MUST_CHECK;

// --- host.c, nccl.c: collectives

lv_status lv_host_collectives(const lv_group *group, lv_collectives **out) LV_MUST_CHECK;
// LV_EUNSUPPORTED where this was built without NCCL, or its library is absent.
lv_status lv_nccl_collectives(const lv_group *group, lv_collectives **out) LV_MUST_CHECK;

#endif
