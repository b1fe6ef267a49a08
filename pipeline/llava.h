// llava.c: describe pictures and answer questions about them with a LLaVA model.
//
// lv_model is a loaded model; lv_picture a picture made ready for it; lv_session one conversation,
// which keeps what it has already read, so that a further question costs only its own tokens.
#ifndef LV_LLAVA_H
#define LV_LLAVA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/config.h"
#include "core/fetch.h"
#include "core/status.h"
#include "core/tensor.h"
#include "llm/grammar.h"

// --- model ---------------------------------------------------------------------------------------

typedef struct lv_model lv_model;

typedef struct lv_model_options {
    const char *model; // folder or org/name; NULL: $LLAVA_MODEL, else the embedded demo model
    const char
        *vision_model;  // second checkpoint with CLIP, where the first has none (NULL: as it says)
    const char *device; // NULL or "auto", "cpu", "cuda", "cuda:N"
    int n_threads;      // CPU threads; 0: all the cores this process may use
    const char *template_name; // NULL: by the checkpoint
    int session_len;           // most tokens a conversation may hold; 0: the trained length
    const lv_rope_config
        *rope_scaling; // beyond the trained length; NULL: the config's own, or dynamic NTK
    lv_dtype kv_dtype; // 0: the backend's default
    bool int4_weights; // rounds a decoder that is not quantised to int4 while loading
    bool int8_head;    // and its last linear to int8
} lv_model_options;

lv_status lv_model_open(const lv_model_options *options, lv_model **out) LV_MUST_CHECK;
void lv_model_free(lv_model *model);

typedef struct lv_model_info {
    const char *name;   // the folder's last part, or org/name
    const char *dir;    // where it lies
    bool is_demo;       // the embedded demo model was taken because none was named
    const char *device; // "CPU, 2 threads, AVX-512 VNNI"
    const char *no_gpu; // why "auto" took no GPU; "" where it did or was not asked
    const char *template_name;
    int session_len;
    size_t weight_bytes;
    // On a GPU: what weights and work space take, what a conversation of session_len tokens takes
    // in keys and values, and what is free of the rest now. 0 on a CPU.
    size_t used_bytes, kv_bytes, free_bytes;
    double load_ms;
    const lv_config *config;
} lv_model_info;

lv_model_info lv_model_describe(const lv_model *model);

// --- pictures ------------------------------------------------------------------------------------

typedef struct lv_picture lv_picture;

typedef struct lv_picture_limits {
    size_t max_bytes, max_pixels; // 0: 64 MiB, 178,956,970
    int max_side;                 // 0: 65,535
} lv_picture_limits;

// From a file, an http(s) URL, a data: URI or "-" (standard input). Decoded and cut into tiles; the
// model's device is not touched, so worker threads may do it. `fetch` and `limits` may be NULL.
lv_status lv_picture_load(const lv_model *model, const char *source,
                          const lv_picture_limits *limits, const lv_fetch_options *fetch,
                          lv_picture **out) LV_MUST_CHECK;
lv_status lv_picture_from_bytes(const lv_model *model, const uint8_t *bytes, size_t n_bytes,
                                const lv_picture_limits *limits, lv_picture **out) LV_MUST_CHECK;
void lv_picture_free(lv_picture *picture);

typedef struct lv_picture_info {
    int width, height; // as decoded, after EXIF rotation
    int n_tiles, tile_size, n_tokens;
    double load_ms, preprocess_ms, encode_ms; // encode_ms 0 until a session has used it
} lv_picture_info;

lv_picture_info lv_picture_describe(const lv_picture *picture);

// --- conversations -------------------------------------------------------------------------------

typedef struct lv_session lv_session;

lv_status lv_session_open(lv_model *model, lv_session **out) LV_MUST_CHECK;
void lv_session_free(lv_session *session);

typedef struct lv_message {
    const char *role; // "system", "user", "assistant"
    const char *text; // "<image>" marks where a picture stands; pictures without a mark go in front
    lv_picture *const *pictures;
    int n_pictures;
} lv_message;

// Zero-initialised means greedy, 512 tokens, no penalties.
typedef struct lv_params {
    int max_tokens; // 0: 512
    float temperature, top_p, min_p;
    int top_k;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint64_t seed;
    const char *const *stop; // [n_stop] strings that end the answer and are not part of it
    int n_stop;
    // The answer is a text of this grammar (lv_grammar_compile), whatever the model would rather
    // say; where the model wants to end, it ends what it can. It is cut short, and finishes with
    // LV_FINISH_LENGTH or _CONTEXT, so as to be whole within max_tokens; only where these are too
    // few for any text of the grammar it is not whole. May be shared by sessions. NULL: none.
    const lv_grammar *grammar;
    const char *dump_dir; // each stage's tensors as .npy (NULL: none)
} lv_params;

// New text of the answer, whole UTF-8 characters, stop strings withheld; "" while the prompt is
// being read. false stops the answer.
typedef bool (*lv_text_callback)(void *user, const char *text);

typedef enum lv_finish {
    LV_FINISH_STOP,
    LV_FINISH_LENGTH,
    LV_FINISH_CONTEXT,
    LV_FINISH_CANCELLED
} lv_finish;
const char *lv_finish_name(lv_finish finish); // "stop", "length", "context", "cancelled"

typedef struct lv_answer {
    char *text; // owned; lv_answer_free
    lv_finish finish;
    int n_prompt_tokens; // pictures included
    int n_image_tokens;
    int n_reused_tokens; // of the prompt, already in the session
    int n_tokens;        // of the answer
    double encode_ms, prefill_ms, decode_ms, first_token_ms; // first_token_ms from the call's start
} lv_answer;

// Answers the last message of the conversation. LV_ELIMIT where the prompt alone passes session_len
// (says both numbers); an answer that reaches it finishes with LV_FINISH_CONTEXT.
lv_status lv_session_answer(lv_session *session, const lv_message *messages, int n_messages,
                            const lv_params *params, lv_text_callback on_text, void *user,
                            lv_answer *out) LV_MUST_CHECK;
void lv_answer_free(lv_answer *answer);

// Where the programs' assets lie: $LLAVA_ASSETS, beside the running program, the installation's
// share folder, or the source tree. NULL where there are none. Borrowed, constant.
const char *lv_assets_dir(void);

#endif
