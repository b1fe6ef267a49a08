// libsentencepiece behind a C face. Nothing here aborts or throws on a hostile file.
#ifndef LV_LLM_SPM_H
#define LV_LLM_SPM_H

#include "llm/text.h"

typedef struct lv_spm lv_spm;

typedef enum lv_piece_kind {
    LV_PIECE_NORMAL,
    LV_PIECE_BYTE,    // "<0x0A>": one raw byte
    LV_PIECE_CONTROL, // "<s>", "</s>": never found in text
    LV_PIECE_UNKNOWN
} lv_piece_kind;

// Opens a model file of at most 32 MiB. `prefix` keeps what the file says about a space put in
// front of each text; without it none is put. LV_EFORMAT where the file is no SentencePiece model.
lv_status lv_spm_open(const char *path, bool prefix, lv_spm **out) LV_MUST_CHECK;
void lv_spm_free(lv_spm *spm);

int lv_spm_size(const lv_spm *spm);                      // number of pieces
const char *lv_spm_piece(const lv_spm *spm, int32_t id); // UTF-8 with U+2581 for spaces; borrowed
lv_piece_kind lv_spm_kind(const lv_spm *spm, int32_t id);
int32_t lv_spm_find(const lv_spm *spm, const char *piece); // its id, or -1

// Appends the ids of valid UTF-8 text.
lv_status lv_spm_encode(const lv_spm *spm, const char *text, size_t n_bytes,
                        lv_ids *out) LV_MUST_CHECK;

#endif
