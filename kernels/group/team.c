// One thread a member. Runs follow one another in microseconds while a model decodes, so threads
// look for the next one a while before they sleep.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "kernels/group/group.h"

#define PATIENCE_S 5 // after a member's failure, for those that may wait for it

static _Thread_local const lv_group *inside; // whose member this thread is, while a body runs
static _Thread_local int inside_member;

static long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Looks at *value for a while; true once it is not `old`.
static bool spin_while(const lv_group *g, const atomic_uint *value, unsigned old) {
    const long end = g->spin_ns > 0 ? now_ns() + g->spin_ns : 0;
    do {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(value, memory_order_acquire) != old) {
                return true;
            }
            pause_briefly();
        }
    } while (g->spin_ns > 0 && now_ns() < end);
    return false;
}

bool lv_team_is_inside(const lv_group *group) {
    return inside == group;
}

// --- members ------------------------------------------------------------------------------------

// Under the lock. Who is done with the run comes to no meeting any more.
static void end_meeting(lv_group *g) {
    if (g->n_waiting > 0 && g->n_waiting + g->n_finished >= g->n) {
        g->n_waiting = 0;
        atomic_fetch_add(&g->meeting, 1);
        pthread_cond_broadcast(&g->met);
    }
}

static void finish(lv_member *m, lv_status status) {
    lv_group *g = m->group;
    m->status = status;
    pthread_mutex_lock(&g->lock);
    g->n_finished++;
    if (status != LV_OK) {
        snprintf(m->message, sizeof m->message, "%s", lv_error());
        if (!atomic_load(&g->has_failed)) {
            g->first_failed = m->index;
        }
        atomic_store(&g->has_failed, true);
    }
    end_meeting(g);
    if (atomic_fetch_sub(&g->n_left, 1) == 1) {
        pthread_cond_signal(&g->done);
    }
    pthread_mutex_unlock(&g->lock);
}

static void *work(void *user) {
    lv_member *m = user;
    lv_group *g = m->group;
    for (unsigned turn = 0;; turn++) {
        if (!spin_while(g, &g->turn, turn)) {
            pthread_mutex_lock(&g->lock);
            while (atomic_load(&g->turn) == turn) {
                pthread_cond_wait(&g->wake, &g->lock);
            }
            pthread_mutex_unlock(&g->lock);
        }
        if (g->ends) {
            return NULL;
        }
        inside = g;
        inside_member = m->index;
        const lv_status status = g->body(g, m->index, g->call);
        inside = NULL;
        finish(m, status);
    }
}

lv_status lv_team_start(lv_group *g) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->wake, NULL);
    pthread_cond_init(&g->done, &monotonic);
    pthread_cond_init(&g->met, NULL);
    pthread_condattr_destroy(&monotonic);
    for (int i = 0; i < g->n; i++) {
        g->members[i].group = g;
        g->members[i].index = i;
        if (pthread_create(&g->members[i].thread, NULL, work, &g->members[i]) != 0) {
            return lv_fail(LV_ENOMEM, "no thread for member %d of %d", i, g->n);
        }
        g->n_threads++;
    }
    return LV_OK;
}

static void begin(lv_group *g) {
    pthread_mutex_lock(&g->lock);
    atomic_store(&g->n_left, g->n);
    atomic_store(&g->has_failed, false);
    g->n_waiting = g->n_finished = 0;
    atomic_fetch_add(&g->turn, 1);
    pthread_cond_broadcast(&g->wake);
    pthread_mutex_unlock(&g->lock);
}

void lv_team_end(lv_group *g) {
    g->ends = true;
    begin(g);
    for (int i = 0; i < g->n_threads; i++) {
        pthread_join(g->members[i].thread, NULL);
    }
    pthread_cond_destroy(&g->met);
    pthread_cond_destroy(&g->done);
    pthread_cond_destroy(&g->wake);
    pthread_mutex_destroy(&g->lock);
}

// --- runs ---------------------------------------------------------------------------------------

void lv_team_break(lv_group *g, const char *why) {
    pthread_mutex_lock(&g->lock);
    const bool is_first = !g->is_broken;
    if (is_first) {
        g->is_broken = true;
        snprintf(g->broken_by, sizeof g->broken_by, "%s", why);
    }
    pthread_mutex_unlock(&g->lock);
    if (is_first && g->collectives) {
        g->collectives->abort(g->collectives);
    }
}

// Sleeps until all members are done. Where one has failed and others are not done long after, their
// devices wait for what will never come.
static void wait_for_all(lv_group *g) {
    bool is_late = false;
    pthread_mutex_lock(&g->lock);
    while (atomic_load(&g->n_left) > 0) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_sec += PATIENCE_S;
        if (pthread_cond_timedwait(&g->done, &g->lock, &t) == ETIMEDOUT &&
            atomic_load(&g->has_failed) && !is_late) {
            is_late = true;
            pthread_mutex_unlock(&g->lock);
            lv_team_break(g, g->members[g->first_failed].message);
            pthread_mutex_lock(&g->lock);
        }
    }
    pthread_mutex_unlock(&g->lock);
}

lv_status lv_team_run(lv_group *g, lv_member_body *body, const void *call) {
    if (inside == g) {
        return body(g, inside_member, call);
    }
    g->body = body;
    g->call = call;
    begin(g);
    const long end = now_ns() + g->spin_ns;
    while (atomic_load_explicit(&g->n_left, memory_order_acquire) > 0 && now_ns() < end) {
        pause_briefly();
    }
    wait_for_all(g); // takes the lock in any case: the last member may still hold it
    if (!atomic_load(&g->has_failed)) {
        return LV_OK;
    }
    const lv_member *m = &g->members[g->first_failed];
    return lv_fail(m->status, "%s", m->message);
}

lv_status lv_team_meet(lv_group *g) {
    pthread_mutex_lock(&g->lock);
    const unsigned meeting = atomic_load(&g->meeting);
    g->n_waiting++;
    end_meeting(g);
    pthread_mutex_unlock(&g->lock);
    if (!spin_while(g, &g->meeting, meeting)) {
        pthread_mutex_lock(&g->lock);
        while (atomic_load(&g->meeting) == meeting) {
            pthread_cond_wait(&g->met, &g->lock);
        }
        pthread_mutex_unlock(&g->lock);
    }
    return atomic_load(&g->has_failed) ? lv_fail(LV_EDEVICE, "another member of the group failed")
                                       : LV_OK;
}
