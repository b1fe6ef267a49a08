// What the pipeline's own files share.
#ifndef LV_PIPELINE_INTERNAL_H
#define LV_PIPELINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "core/hash.h"
#include "llm/llm.h"
#include "llm/text.h"
#include "pipeline/llava.h"
#include "preprocess/preprocess.h"
#include "projector/projector.h"
#include "vision/vision.h"

#define LV_DEFAULT_MAX_TOKENS 512

struct lv_model {
    char *dir;
    char *name; // points into what the user called it, or the folder's last part
    bool is_demo;
    lv_checkpoint *checkpoint;
    const lv_config *config;
    lv_backend *be;
    lv_tokenizer *tokenizer;
    lv_vocabulary *vocabulary; // for answers bound to a grammar
    int template_id;
    lv_vision *vision; // these three have work space: the engine's thread alone runs them
    lv_projector *projector;
    lv_llm *llm;
    int session_len;
    bool has_rope_scaling;
    lv_rope_config rope_scaling;
    double load_ms;
    lv_hash id; // of what makes another embedding of the same pixels
    atomic_flag has_engine;
};

double lv_now_ms(void); // monotonic

// --- pictures (picture.c) ------------------------------------------------------------------------

typedef enum lv_picture_state {
    LV_PICTURE_NOTED,
    LV_PICTURE_READY,
    LV_PICTURE_FAILED
} lv_picture_state;

struct lv_picture {
    const lv_model *model;
    atomic_int n_holds;
    pthread_mutex_t lock;            // held while it is made
    _Atomic(lv_picture_state) state; // what follows is constant once it is READY or FAILED
    char *source;                    // of a picture of later; NULL: `bytes`
    lv_buffer bytes;
    lv_picture_limits limits;
    lv_fetch_options fetch;
    lv_tiles tiles;
    lv_picture_shape shape;
    int n_tokens;
    lv_hash id;
    double load_ms, preprocess_ms;
    lv_status status; // FAILED
    char *reason;
};

// Makes a picture of later ready, or says why it cannot be. goes_on(user) false ends a transfer
// with LV_ECANCELLED, after which it can be tried again.
lv_status lv_picture_make(lv_picture *picture, bool (*goes_on)(void *user),
                          void *user) LV_MUST_CHECK;
lv_picture *lv_picture_hold(lv_picture *picture);

// --- dumps (dump.c) ------------------------------------------------------------------------------

// Writes an array to dump_dir/name.npy; of a further picture (index > 0) to name_2.npy, ...
lv_status lv_dump(const char *dump_dir, const char *name, int index, lv_dtype dtype,
                  const void *data, int n_dims, const int64_t *dims) LV_MUST_CHECK;
// dev act [n_tiles (0: none), n_rows, n_columns], written as f32.
lv_status lv_dump_act(lv_backend *be, const char *dump_dir, const char *name, int index,
                      const void *dev, int64_t n_tiles, int64_t n_rows,
                      int64_t n_columns) LV_MUST_CHECK;

// --- timelines (prompt.c) ------------------------------------------------------------------------

// What stands at one place of a timeline: a token, or a row of a picture.
typedef struct lv_place {
    int32_t picture; // 1 + its index among the request's; 0: a token
    int32_t value;   // token id, or the row
} lv_place;

// A prompt laid out; the caller frees *out_places, [*out_n], of which *out_n_image are rows of
// pictures. LV_EINVAL where the text marks more pictures than there are.
lv_status lv_timeline_lay(const lv_model *model, const lv_turn *turns, int n_turns,
                          lv_picture *const *pictures, int n_pictures, const char *dump_dir,
                          lv_place **out_places, int *out_n, int *out_n_image) LV_MUST_CHECK;

// --- an answer's text: characters, stop strings, outer white space (stream.c) --------------------

typedef struct lv_answer_stream lv_answer_stream;

lv_status
lv_answer_stream_open(const lv_tokenizer *tokenizer, const char *const *stops, int n_stops,
                      const char *const *more_stops, lv_text_callback on_text, void *user,
                      lv_answer_stream **out) LV_MUST_CHECK; // more_stops NULL-terminated or NULL
void lv_answer_stream_free(lv_answer_stream *stream);
// Feeds one token, told about where its logprob is wanted (else NULL). *is_done: a stop string was
// met. LV_ECANCELLED: the callback said stop.
lv_status lv_answer_stream_push(lv_answer_stream *stream, int32_t id, const lv_token *token,
                                bool *is_done) LV_MUST_CHECK;
// Ends the text and hands it over with its tokens; the caller frees both.
lv_status lv_answer_stream_finish(lv_answer_stream *stream, lv_answer *out) LV_MUST_CHECK;

#endif
