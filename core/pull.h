// Downloads a model of a Hugging Face hub into the cache, in the layout that huggingface_hub and
// lv_model_find share: blobs/<checksum>, snapshots/<commit>/<file> -> ../../blobs/<checksum>,
// refs/main.
#ifndef LV_CORE_PULL_H
#define LV_CORE_PULL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/status.h"

typedef struct lv_pull_progress {
    const char *file; // the one at work; NULL while the hub is asked what there is
    bool file_done;   // it has been downloaded, checked and put in its place
    uint64_t file_bytes;
    uint64_t n_bytes, total_bytes; // of the weights, or of the small files that come before them
    uint64_t n_received_bytes;     // over the network, since lv_pull began
} lv_pull_progress;

typedef struct lv_pull_options {
    // Called several times a second, and once with file_done for each file. False cancels.
    bool (*progress)(void *user, const lv_pull_progress *now);
    void *user;
} lv_pull_options;

// Downloads what this library reads of org/name: the .json files, tokenizer.model, chat templates
// and safetensors weights. What is complete stays, what is half there is gone on with, and the
// checksum that the hub gives for each file must be right. refs/main is written last, so that
// lv_model_find finds whole models only. *out_dir, which the caller frees, is the snapshot's folder
// (out_dir may be NULL).
//
// Environment: HF_ENDPOINT (default https://huggingface.co), HF_TOKEN (else HF_TOKEN_PATH, else the
// file `token` of HF_HOME), and where the cache lies, as for lv_model_find.
//
// LV_ENOTFOUND: no such model, or no weights in it. LV_EUNSUPPORTED: only pickled weights.
// LV_ENETWORK: the transfer failed or is not allowed. LV_EFORMAT: the hub lies: unsafe names, wrong
// checksums. LV_EFULL: the disk is full. LV_EIO: it is not writable. LV_ECANCELLED: stopped by
// `progress`. After each of these, the same call goes on where this one ended.
lv_status lv_pull(const char *name, const lv_pull_options *options, char **out_dir) LV_MUST_CHECK;

// The hub name of the second checkpoint, with CLIP, that the model in folder `dir` wants; NULL
// where it wants none. The caller frees *out_name.
lv_status lv_pull_tower(const char *dir, char **out_name) LV_MUST_CHECK;

#endif
