// What the pipeline's own files share.
#ifndef LV_PIPELINE_INTERNAL_H
#define LV_PIPELINE_INTERNAL_H

#include "llm/llm.h"
#include "llm/text.h"
#include "pipeline/llava.h"
#include "preprocess/preprocess.h"
#include "projector/projector.h"
#include "vision/vision.h"

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
    lv_vision *vision;
    lv_projector *projector;
    lv_llm *llm;
    int session_len;
    bool has_rope_scaling;
    lv_rope_config rope_scaling;
    lv_dtype kv_dtype;
    double load_ms;
};

struct lv_picture {
    const lv_model *model;
    uint64_t serial; // distinguishes pictures in a session's timeline; never reused
    lv_tiles tiles;
    lv_picture_shape shape;
    int n_tokens;
    void *embeddings; // dev act [n_tokens, d_model]; NULL until encoded
    double load_ms, preprocess_ms, encode_ms;
};

double lv_now_ms(void); // monotonic

// Encodes the picture where that has not been done (or where its stages are to be dumped). dump_dir
// and the index that names a further picture's files may be NULL, 0.
lv_status lv_picture_encode(lv_picture *picture, const char *dump_dir, int index) LV_MUST_CHECK;

// Writes an array to dump_dir/name.npy.
lv_status lv_dump(const char *dump_dir, const char *name, int index, lv_dtype dtype,
                  const void *data, int n_dims, const int64_t *dims) LV_MUST_CHECK;

// --- an answer's text: characters, stop strings, outer white space -------------------------------

typedef struct lv_answer_stream lv_answer_stream;

lv_status
lv_answer_stream_open(const lv_tokenizer *tokenizer, const char *const *stops, int n_stops,
                      const char *const *more_stops, lv_text_callback on_text, void *user,
                      lv_answer_stream **out) LV_MUST_CHECK; // more_stops NULL-terminated or NULL
void lv_answer_stream_free(lv_answer_stream *stream);
// Feeds one token. *is_done: a stop string was met. LV_ECANCELLED: the callback said stop.
lv_status lv_answer_stream_push(lv_answer_stream *stream, int32_t id, bool *is_done) LV_MUST_CHECK;
// Ends the text and hands it over; the caller frees it.
lv_status lv_answer_stream_finish(lv_answer_stream *stream, char **out_text) LV_MUST_CHECK;

#endif
