// The two halves of pulling: pull.c knows models, pull_file.c single files. Internal to core.
#ifndef LV_CORE_PULL_PARTS_H
#define LV_CORE_PULL_PARTS_H

#include "core/files.h"
#include "core/http.h"
#include "core/pull.h"

#define LV_SHA256_DIGITS 64 // the checksum of a large file (LFS, Xet)
#define LV_SHA1_DIGITS 40   // git's own, of a small file

typedef struct lv_pull_job {
    const lv_pull_options *options;
    const char *name;           // org/name
    char *endpoint;             // without a / at its end
    const char *schemes;        // of URLs that may be asked
    bool has_token;             // `headers` hold one
    struct curl_slist *headers; // with the token, which libcurl sends to the first host only
    char *folder;               // <cache>/models--org--name
    char *locks;                // <cache>/.locks/models--org--name, as huggingface_hub has them
    char *snapshot;             // <folder>/snapshots/<commit>
    char commit[LV_SHA1_DIGITS + 1];
    lv_http http;
    lv_pull_progress now;
} lv_pull_job;

typedef struct lv_pull_file {
    const char *name;                    // borrowed; plain, without folders
    char checksum[LV_SHA256_DIGITS + 1]; // hexadecimal, lower case
    uint64_t n_bytes;
    char *path;     // where it is, or will be
    bool is_linked; // by the snapshot already: it is complete
} lv_pull_file;

// GET of `url` into *out, at most max_bytes.
lv_status lv_pull_text(lv_pull_job *job, const char *url, size_t max_bytes,
                       lv_buffer *out) LV_MUST_CHECK;

// Asks the hub for file->name: sets checksum, n_bytes, path. Messages name the file.
lv_status lv_pull_look(lv_pull_job *job, lv_pull_file *file) LV_MUST_CHECK;

// Of a file that lv_pull_look has seen: whether it is in its place, and how many bytes are to come.
bool lv_pull_is_complete(const lv_pull_file *file);
uint64_t lv_pull_missing(const lv_pull_file *file);

// Downloads it, going on with <path>.incomplete, checks it, and renames it to its path.
lv_status lv_pull_get(lv_pull_job *job, const lv_pull_file *file) LV_MUST_CHECK;

// The folder and those above it.
lv_status lv_pull_folder(const char *path) LV_MUST_CHECK;

#endif
