// llava.c: describe pictures and answer questions about them with a LLaVA model.
//
//   lv_model    a loaded model: immutable, used by any thread                    (pipeline/model.h)
//   lv_picture  a picture of it: immutable once made, used by any thread, counted   (the same)
//   lv_engine   answers many requests at once; its own thread is the only one to touch the device
//
// A program opens a model, an engine on it, and submits requests; callbacks bring the answers.
// lv_engine_answer does that for one question and waits.
#ifndef LV_LLAVA_H
#define LV_LLAVA_H

#include "core/tensor.h"
#include "llm/grammar.h"
#include "pipeline/model.h"

// --- requests ------------------------------------------------------------------------------------

#define LV_MAX_TOP_LOGPROBS 20
#define LV_MAX_STOPS 32 // of at most LV_MAX_STOP_BYTES each
#define LV_MAX_STOP_BYTES 1024

typedef struct lv_message {
    const char *role; // "system", "user", "assistant"
    const char *text; // "<image>" marks where a picture stands; pictures without a mark go in front
    lv_picture *const *pictures;
    int n_pictures;
} lv_message;

// Zero-initialised means greedy, 512 tokens, no penalties. What lies outside the range in brackets
// is refused with LV_EINVAL.
typedef struct lv_params {
    int max_tokens;                            // 0: 512 [0, 16777216]
    float temperature, top_p, min_p;           // [0, 10], [0, 1], [0, 1]
    int top_k;                                 // [0, any]
    float repetition_penalty;                  // 0: 1 [0.01, 10]
    float presence_penalty, frequency_penalty; // [-2, 2]
    uint64_t seed;
    const char *const *stop; // [n_stop] strings that end the answer and are not part of it
    int n_stop;              // [0, LV_MAX_STOPS]
    // The answer is a text of this grammar (lv_grammar_compile), whatever the model would rather
    // say; where the model wants to end, it ends what it can. It is cut short, and finishes with
    // LV_FINISH_LENGTH or _CONTEXT, so as to be whole within max_tokens; only where these are too
    // few for any text of the grammar it is not whole. May be shared; lives until on_done.
    const lv_grammar *grammar;
    bool ignore_eos;      // goes on where the model would end, to measure with; not with a grammar
    bool logprobs;        // lv_piece.tokens and lv_answer.tokens are wanted
    int top_logprobs;     // with how many likeliest tokens each [0, LV_MAX_TOP_LOGPROBS]
    const char *dump_dir; // each stage's tensors as .npy (NULL: none)
} lv_params;

typedef struct lv_token { // logprobs are of the model's own distribution, before any sampling
    int32_t id;
    float logprob;
    struct {
        int32_t id;
        float logprob;
    } top[LV_MAX_TOP_LOGPROBS]; // [top_logprobs] the likeliest first
} lv_token;

// New text of the answer: whole UTF-8 characters, stop strings withheld. "" without tokens: the
// prompt is being read.
typedef struct lv_piece {
    const char *text;
    const lv_token *tokens; // [n_tokens] drawn since the last piece; without logprobs 0 of them
    int n_tokens;
} lv_piece;

typedef enum lv_finish {
    LV_FINISH_STOP,    // the model's end, a stop string, or the grammar's end
    LV_FINISH_LENGTH,  // max_tokens
    LV_FINISH_CONTEXT, // session_len
    LV_FINISH_CANCELLED
} lv_finish;
const char *lv_finish_name(lv_finish finish); // "stop", "length", "context", "cancelled"

typedef struct lv_answer {
    char *text; // owned; lv_answer_free. Without outer white space
    lv_finish finish;
    int n_prompt_tokens; // pictures included
    int n_image_tokens;
    int n_reused_tokens; // of the prompt, whose keys and values were in the cache
    int n_reused_images; // whose embeddings were
    int n_tokens;        // of the answer, its end token included
    lv_token *tokens;    // [n_logprobs] owned: those of the text; NULL without logprobs
    int n_logprobs;
    double queue_ms, encode_ms, prefill_ms, decode_ms; // prepare and wait; see; read; answer
    double first_token_ms;                             // from submit
} lv_answer;

void lv_answer_free(lv_answer *answer); // leaves it zeroed

// Both are called on the engine's thread, which waits for them: they may submit and cancel, and
// must neither block nor answer or close. on_text (may be NULL) returns false to cancel. on_done
// comes exactly once for each submitted request, and last: with status LV_OK an answer, which the
// engine frees unless the callback takes it (*answer = (lv_answer){0}); else NULL and a message.
typedef bool (*lv_text_callback)(void *user, const lv_piece *piece);
typedef void (*lv_done_callback)(void *user, lv_status status, const char *message,
                                 lv_answer *answer);

typedef struct lv_request { // all of it is copied, the grammar excepted; pictures are held
    const lv_message *messages;
    int n_messages;
    lv_params params;
    lv_text_callback on_text;
    lv_done_callback on_done;
    void *user;
} lv_request;

// --- engine --------------------------------------------------------------------------------------

typedef struct lv_engine lv_engine;

typedef struct lv_engine_options { // 0: the default
    int max_sequences;             // requests answered at once [1, 256]: 64 on a GPU, 16 on the CPU
    int queue_length;              // requests that may wait besides: 256
    int n_workers; // threads that decode pictures and tokenise prompts: by the cores
    // Keys and values, in blocks of 64 tokens: a share of the memory that is free beside the
    // weights, in (0, 1): 0.8 on a GPU, 0.2 on the CPU, no more than max_sequences of session_len
    // need; or so many bytes.
    double cache_max_entry_count;
    size_t kv_bytes;
    lv_dtype kv_dtype;        // LV_NONE: the backend's own; LV_F32, LV_F16, LV_I8
    size_t image_cache_bytes; // embeddings kept for pictures to come; those in use come on top
    // A prompt is read in chunks that end at multiples of this, whatever else runs: 512, on a GPU,
    // whose matrix products want some thousand rows, as many as a pass takes. A step reads no more
    // than one of a prompt.
    int chunk_tokens;
    int pass_tokens; // prompt tokens that one step reads beside answers going on: a chunk's
    bool no_reuse;   // keep no keys and values once a request has ended
} lv_engine_options;

// One engine at a time for a model, which must outlive it. options may be NULL. LV_ELIMIT where the
// memory is not enough for one block of keys and values; LV_EINVAL: an option.
lv_status lv_engine_open(lv_model *model, const lv_engine_options *options,
                         lv_engine **out) LV_MUST_CHECK;
// Cancels what is going on (on_done is called), waits for all threads, those in lv_engine_answer
// too. Not from a callback; accepts NULL.
void lv_engine_close(lv_engine *engine);

// The rest may be called by any thread.

// Queues a request and returns at once. LV_ELIMIT: the queue is full; LV_EINVAL: a parameter, or
// no message; LV_EDEVICE: the device has failed. on_done is not called then.
// Later failures come by on_done: a picture's own; LV_ELIMIT where the prompt leaves no room in
// session_len, or prompt and max_tokens can never fit the cache (says the numbers). *out_id may be
// NULL; it is never 0 and never given again.
lv_status lv_engine_submit(lv_engine *engine, const lv_request *request,
                           uint64_t *out_id) LV_MUST_CHECK;
// The request ends within one step as LV_FINISH_CANCELLED with the text so far. Nothing happens
// where it has ended already.
void lv_engine_cancel(lv_engine *engine, uint64_t id);

// One question, waited for (also for room in the queue). on_text is called with `user` on the
// engine's thread while the caller waits. Not from a callback.
lv_status lv_engine_answer(lv_engine *engine, const lv_message *messages, int n_messages,
                           const lv_params *params, lv_text_callback on_text, void *user,
                           lv_answer *out) LV_MUST_CHECK;

typedef struct lv_engine_stats {           // counts are since the engine was opened
    int n_waiting, n_running;              // requests: in the queue, in decoder passes
    int n_kv_blocks, n_kv_used, n_kv_kept; // all; held by requests; kept for reuse besides
    int block_tokens;
    size_t kv_bytes, image_cache_bytes; // as laid out; as used
    // Of a GPU's memory once the engine is open: by weights, work space and caches; free beside.
    size_t device_used_bytes, device_free_bytes;
    uint64_t n_requests, n_finished, n_failed, n_cancelled, n_preempted, n_refused;
    uint64_t n_prompt_tokens, n_reused_tokens, n_tokens; // n_tokens: of answers
    uint64_t n_images, n_reused_images;                  // encoded; taken from the cache
    uint64_t n_passes, n_pass_tokens;                    // decoder passes, tokens in them
    double encode_ms, pass_ms;                           // time spent seeing; reading and answering
} lv_engine_stats;

void lv_engine_snapshot(lv_engine *engine, lv_engine_stats *out); // of the last step

#endif
