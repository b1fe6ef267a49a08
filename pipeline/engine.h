// Inside the pipeline: the engine's parts. One thread runs all of them but prepare and the queue.
#ifndef LV_PIPELINE_ENGINE_H
#define LV_PIPELINE_ENGINE_H

#include "pipeline/internal.h"

// --- a request on its way (request.c) ------------------------------------------------------------

typedef enum lv_stage {
    LV_STAGE_NEW,       // waits for a worker
    LV_STAGE_PREPARING, // a worker has it
    LV_STAGE_READY,     // waits for the decoder; also after it had to make room
    LV_STAGE_RUNNING
} lv_stage;

typedef struct lv_node lv_node; // prefix.c

// The blocks of a sequence that the index knows: [n] from the first on.
typedef struct lv_path {
    lv_node **nodes;
    int n;
    lv_hash name; // of the last one, or the beginning
    lv_hash beginning;
} lv_path;

enum { LV_SLOT_NONE = -1, LV_SLOT_LEFT = -2 }; // no picture held: never one, no longer one

typedef struct lv_job {
    uint64_t id;    // in order of submission
    lv_stage stage; // this and was_admitted are written under the engine's lock
    bool was_admitted;
    atomic_bool cancelled;
    // As asked
    lv_turn *turns;
    int n_turns;
    lv_picture **pictures;
    int n_pictures;
    lv_params params; // its strings are the job's own
    lv_text_callback on_text;
    lv_done_callback on_done;
    void *user;
    double submit_ms;
    // As prepared
    lv_status status; // a failure, with its reason
    char *reason;
    lv_place *places; // [n_known] prompt, then the answer's tokens but the last, as it grows
    int n_prompt, n_known;
    int max_draws; // tokens of the answer at most
    int limit;     // places that the sequence may hold
    int *slots;    // [n_pictures] of images, or an LV_SLOT_
    // In the decoder
    lv_sequence sequence;
    lv_path path;
    bool is_admitted;
    int n_read; // places of the prompt whose pictures have been let go
    int row;    // of the logits at hand, -1: none
    double prefill_start_ms, first_token_ms;
    // The answer
    lv_answer answer;
    lv_answer_stream *stream;
    lv_matcher *matcher;
    bool is_cut;                                  // by its grammar, to be whole in time
    int32_t *seen_ids, *seen_counts, *seen_index; // for penalties: distinct ids, how often each is
    int n_seen;                                   // in the answer; 1 + place in them of each id
    lv_token token;                               // its likeliest tokens, for the draw at hand
} lv_job;

// Copies a request, refusing parameters outside their range.
lv_status lv_job_create(const lv_request *request, lv_job **out) LV_MUST_CHECK;
void lv_job_free(lv_job *job);
// Makes its pictures ready and lays out the prompt: any thread. job->status says how it went.
void lv_job_prepare(lv_job *job, const lv_model *model, int n_cache_tokens);
void lv_job_fail(lv_job *job, lv_status status); // with lv_error as its reason
// Hands the answer or the reason over and frees the job.
void lv_job_end(lv_job *job);

// --- what stands in the cache (prefix.c) ---------------------------------------------------------

typedef struct lv_timeline {
    const lv_place *places;
    lv_picture *const *pictures;
} lv_timeline;

typedef struct lv_prefix lv_prefix;

lv_status lv_prefix_create(lv_cache *cache, int n_blocks, lv_prefix **out) LV_MUST_CHECK;
void lv_prefix_free(lv_prefix *prefix);
int lv_prefix_kept(const lv_prefix *prefix); // blocks that only the index holds
// Gives blocks up until n_blocks are free; false where that cannot be.
bool lv_prefix_make_room(lv_prefix *prefix, int n_blocks);

lv_status lv_path_open(const lv_sequence *sequence, int head_dim, lv_path *out) LV_MUST_CHECK;
void lv_path_close(lv_path *path);
// Gives an empty sequence what is known of the first n places.
void lv_prefix_match(lv_prefix *prefix, const lv_timeline *timeline, int n, lv_sequence *sequence,
                     lv_path *path);
// Then copies into a free block what a block of others', who go on in it, has in common with the
// places that follow.
lv_status lv_prefix_copy(lv_prefix *prefix, const lv_timeline *timeline, int n,
                         lv_sequence *sequence, lv_path *path) LV_MUST_CHECK;
// Takes the path back to the first n places, a multiple of a block.
void lv_prefix_forget(lv_prefix *prefix, int n, lv_path *path);
// Notes the full blocks of the first n places, which the sequence holds.
void lv_prefix_keep(lv_prefix *prefix, const lv_timeline *timeline, int n,
                    const lv_sequence *sequence, lv_path *path);
// The same with the last block, before the sequence is closed.
void lv_prefix_leave(lv_prefix *prefix, const lv_timeline *timeline, int n,
                     const lv_sequence *sequence, lv_path *path);

// --- embeddings of pictures (images.c) -----------------------------------------------------------

typedef struct lv_images lv_images;

// max_bytes 0: by the backend. At least what the pictures of one chunk take.
lv_status lv_images_create(lv_model *model, size_t max_bytes, int chunk_tokens,
                           lv_images **out) LV_MUST_CHECK;
void lv_images_free(lv_images *images);
int lv_images_find(lv_images *images, const lv_hash *id); // its slot, held; -1: not there
void lv_images_release(lv_images *images, int slot);
const void *lv_images_row(const lv_images *images, int slot, int row); // dev act [.., d_model]
size_t lv_images_bytes(const lv_images *images);                       // filled
int lv_images_unheld(const lv_images *images);                         // slots
// Encodes the first of n pictures, as many as find a slot, and holds them. Returns how many; 0 with
// *status where they cannot be.
int lv_images_encode(lv_images *images, lv_picture *const *pictures, int n, int *slots,
                     lv_status *status);
lv_status lv_images_dump(lv_images *images, const lv_picture *picture, int index, int slot,
                         const char *dump_dir) LV_MUST_CHECK;

// --- the engine (engine.c: queue and threads; schedule.c: steps; draw.c: tokens) -----------------

struct lv_engine {
    lv_model *model;
    lv_engine_options options; // without zeros
    lv_cache *cache;
    lv_prefix *prefix;
    lv_images *images;
    int n_blocks;
    size_t block_bytes;
    // The queue: under the lock
    pthread_mutex_t lock;
    pthread_cond_t changed; // something for the engine's thread or the workers, or room
    lv_job **jobs;          // [n_jobs] all that have not ended, in order
    int n_jobs, max_jobs;
    uint64_t last_id, n_refused;
    int n_callers; // threads in lv_engine_answer
    bool closes;
    lv_status broken; // the device has failed
    char *broken_reason;
    lv_engine_stats shown;
    pthread_t thread, *workers;
    int n_workers;
    // The engine's thread alone
    lv_engine_stats stats;
    lv_job **ready;   // [n_ready] in order, as of the step's start
    lv_job **running; // [n_running] in order
    int n_ready, n_running;
    lv_job **rows, **next_rows; // [n_rows] whose each row of logits is; NULL: it has ended
    int n_rows, n_next_rows;
    float *logits;      // dev f32 [n_rows, vocab]
    lv_sampling *draws; // [max_sequences]
    int32_t *tokens;    // [max_sequences]
    float *logprobs;    // [max_sequences]
    float *raw;         // [vocab] host
    int max_pass_tokens, tiles_per_step;
    lv_chunk *chunks; // [max_pass_tokens], n_chunks of them of the pass at hand
    int n_chunks;
    int32_t *ids; // [max_pass_tokens]
};

// One step: draws from the logits at hand, admits, encodes, and runs the next pass.
void lv_engine_step(lv_engine *engine);
// Takes a job out of the decoder and ends it.
void lv_engine_end(lv_engine *engine, lv_job *job);
// Ends a job that is not in the decoder, whatever it has come to.
void lv_engine_hand_over(lv_engine *engine, lv_job *job);

lv_status lv_job_open_answer(lv_engine *engine, lv_job *job) LV_MUST_CHECK;
// How to draw the job's next token from row `row`.
lv_status lv_job_draw(lv_engine *engine, lv_job *job, int row, lv_sampling *out) LV_MUST_CHECK;
// Takes the token drawn. *out_ended: the answer ends here (answer.finish says why).
lv_status lv_job_take(lv_engine *engine, lv_job *job, int32_t token, float logprob,
                      bool *out_ended) LV_MUST_CHECK;
bool lv_job_may_go_on(const lv_job *job); // the next token drawn need not be the last

#endif
