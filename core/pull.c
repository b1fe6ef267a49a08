#include "core/pull.h"

#include "core/config_parts.h"
#include "core/hub.h"
#include "core/path.h"
#include "core/pull_parts.h"
#include "core/shards.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MAX_LIST_BYTES ((size_t)16 << 20)
#define MAX_INDEX_BYTES ((size_t)64 << 20)
#define MAX_LISTED 10000
#define MAX_NAME_BYTES 255 // what file systems take
#define MAX_TOKEN_BYTES 1024

static const char index_name[] = "model.safetensors.index.json";

typedef struct file_set {
    lv_pull_file *items;
    size_t n;
} file_set;

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

static bool begins_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

// --- what the environment says ------------------------------------------------------------------

static lv_status find_endpoint(lv_pull_job *job) {
    const char *endpoint = lv_hub_variable("HF_ENDPOINT");
    endpoint = endpoint ? endpoint : "https://huggingface.co";
    job->schemes = begins_with(endpoint, "http://") ? "http,https" : "https";
    if (!begins_with(endpoint, "http://") && !begins_with(endpoint, "https://")) {
        return lv_fail(LV_EINVAL, "HF_ENDPOINT: expected https://HOST or http://HOST, found %s",
                       endpoint);
    }
    LV_TRY(lv_text_format(&job->endpoint, "%s", endpoint));
    for (size_t n = strlen(endpoint); job->endpoint[n - 1] == '/'; n--) {
        job->endpoint[n - 1] = 0;
    }
    return LV_OK;
}

// HF_TOKEN, or the file where the hub's own tools keep it; *out stays empty where there is none.
static lv_status read_token(lv_buffer *out) {
    const char *token = lv_hub_variable("HF_TOKEN"), *named = lv_hub_variable("HF_TOKEN_PATH");
    if (token) {
        *out = (lv_buffer){.max_bytes = MAX_TOKEN_BYTES};
        return lv_buffer_append(out, token, strlen(token));
    }
    char *home = NULL, *path = NULL;
    lv_status status;
    LV_TRY_DONE(lv_hub_home(&home));
    LV_TRY_DONE(named ? lv_text_format(&path, "%s", named) : lv_path_join(home, "token", &path));
    status = lv_file_read(path, MAX_TOKEN_BYTES, out);
    status = status == LV_ENOTFOUND ? LV_OK : status;
done:
    free(home);
    free(path);
    return status;
}

static lv_status add_header(lv_pull_job *job, const char *line) {
    struct curl_slist *grown = curl_slist_append(job->headers, line);
    job->headers = grown ? grown : job->headers;
    return grown ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
}

static lv_status make_headers(lv_pull_job *job) {
    lv_buffer token = {0};
    char *line = NULL;
    lv_status status;
    LV_TRY_DONE(add_header(job, "Accept-Encoding: identity")); // ranges and lengths of the file
    LV_TRY_DONE(read_token(&token));
    LV_TRY_DONE(lv_buffer_append(&token, NULL, 0)); // text of its own also where there is none
    char *text = (char *)token.data;
    text += strspn(text, " \t\r\n");
    text[strcspn(text, " \t\r\n")] = 0;
    for (const char *at = text; *at; at++) {
        if (*at < 0x21 || *at > 0x7e) { // it would break the header's line
            status = lv_fail(LV_EINVAL, "HF_TOKEN: holds characters that no token has");
            goto done;
        }
    }
    if (*text) {
        LV_TRY_DONE(lv_text_format(&line, "Authorization: Bearer %s", text));
        LV_TRY_DONE(add_header(job, line));
        job->has_token = true;
    }
done:
    free(line);
    lv_buffer_free(&token);
    return status;
}

static lv_status open_job(lv_pull_job *job) {
    char *cache = NULL;
    lv_status status;
    LV_TRY_DONE(find_endpoint(job));
    LV_TRY_DONE(make_headers(job));
    LV_TRY_DONE(lv_hub_cache(&cache));
    LV_TRY_DONE(lv_hub_folder(job->name, &job->folder));
    LV_TRY_DONE(lv_text_format(&job->locks, "%s/.locks%s", cache, strrchr(job->folder, '/')));
    status = lv_http_open(&job->http);
done:
    free(cache);
    return status;
}

static void close_job(lv_pull_job *job) {
    lv_http_close(&job->http);
    curl_slist_free_all(job->headers);
    free(job->endpoint);
    free(job->folder);
    free(job->locks);
    free(job->snapshot);
}

// --- which files --------------------------------------------------------------------------------

// Names come from outside and become names of ours: no way out of the folder, no control
// characters, nothing too long.
static bool is_safe(const char *name) {
    if (!*name) {
        return false;
    }
    for (const char *at = name; *at;) {
        size_t n = strcspn(at, "/");
        if (n == 0 || n > MAX_NAME_BYTES || (n == 1 && at[0] == '.') ||
            (n == 2 && at[0] == '.' && at[1] == '.')) {
            return false;
        }
        for (size_t i = 0; i < n; i++) {
            if ((unsigned char)at[i] < 0x20 || at[i] == 0x7f || at[i] == '\\') {
                return false;
            }
        }
        at += n + (at[n] == '/');
    }
    return true;
}

// The model's commit and the list of its files, every name safe. *out owns the names.
static lv_status list_files(lv_pull_job *job, json_t **out, const json_t **out_siblings) {
    lv_buffer text = {0};
    char *url = NULL;
    *out = NULL;
    lv_status status;
    LV_TRY_DONE(lv_text_format(&url, "%s/api/models/%s/revision/main", job->endpoint, job->name));
    LV_TRY_DONE(lv_pull_text(job, url, MAX_LIST_BYTES, &text));
    LV_TRY_DONE(lv_json_parse((const char *)text.data, text.n_bytes, url, out));
    lv_json list = lv_json_at(*out, url);
    LV_TRY_DONE(lv_json_string(&list, "sha", job->commit, sizeof job->commit));
    if (strspn(job->commit, "0123456789abcdef") != LV_SHA1_DIGITS) {
        status = lv_json_wrong(&list, "sha", "a commit");
        goto done;
    }
    *out_siblings = lv_json_get(&list, "siblings");
    if (!json_is_array(*out_siblings)) {
        status = lv_json_wrong(&list, "siblings", "the list of files");
    } else if (json_array_size(*out_siblings) > MAX_LISTED) {
        status = lv_fail(LV_ELIMIT, "%zu files, more than %d", json_array_size(*out_siblings),
                         MAX_LISTED);
    }
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)*out_siblings, i, item) {
        const char *name = json_string_value(json_object_get(item, "rfilename"));
        if (status == LV_OK && (!name || !is_safe(name))) {
            status = lv_fail(LV_EFORMAT, "the hub names a file that is refused: \"%.80s\"",
                             name ? name : "(no text)");
        }
    }
done:
    free(url);
    lv_buffer_free(&text);
    return status;
}

// The i-th name, or "" where it is of no use: in a folder, or hidden.
static const char *plain_name(const json_t *siblings, size_t i) {
    const char *name = json_string_value(json_object_get(json_array_get(siblings, i), "rfilename"));
    return *name == '.' || strchr(name, '/') ? "" : name;
}

static bool is_small(const char *name) {
    return (ends_with(name, ".json") &&
            (!ends_with(name, ".index.json") || strcmp(name, index_name) == 0)) ||
           strcmp(name, "tokenizer.model") == 0 || begins_with(name, "chat_template.");
}

static bool is_weights(const char *name) {
    // consolidated.*: the same weights once more, under other names
    return ends_with(name, ".safetensors") && !begins_with(name, "consolidated");
}

static lv_status make_set(const json_t *siblings, bool (*wanted)(const char *), file_set *out) {
    size_t n = json_array_size(siblings);
    out->items = calloc(n + 1, sizeof *out->items);
    if (!out->items) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < n; i++) {
        const char *name = plain_name(siblings, i);
        if (wanted(name)) {
            out->items[out->n++] = (lv_pull_file){.name = name};
        }
    }
    return LV_OK;
}

static void free_set(file_set *set) {
    for (size_t i = 0; i < set->n; i++) {
        free(set->items[i].path);
    }
    free(set->items);
}

static lv_status check_weights(const json_t *siblings) {
    bool pickled = false, gguf = false;
    for (size_t i = 0; i < json_array_size(siblings); i++) {
        const char *name = plain_name(siblings, i);
        if (is_weights(name)) {
            return LV_OK;
        }
        pickled |= ends_with(name, ".bin") || ends_with(name, ".pth") || ends_with(name, ".pt");
        gguf |= ends_with(name, ".gguf");
    }
    if (pickled) {
        return lv_fail(LV_EUNSUPPORTED,
                       "only pickled weights (.bin), which can run code when opened and are "
                       "refused: take a version with .safetensors, such as "
                       "llava-hf/llava-1.5-7b-hf of liuhaotian/llava-v1.5-7b, or convert a copy "
                       "of your own");
    }
    return gguf ? lv_fail(LV_EUNSUPPORTED, "only GGUF weights, which are not read: take the "
                                           "version with .safetensors")
                : lv_fail(LV_ENOTFOUND, "no weights (.safetensors)");
}

static bool holds(const file_set *set, const char *name) {
    for (size_t i = 0; i < set->n; i++) {
        if (strcmp(set->items[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

// Leaves of the weights those that the index names.
static lv_status choose_shards(const file_set *small, file_set *weights) {
    const char *path = NULL, *tensor;
    json_t *root = NULL, *value;
    lv_json map;
    for (size_t i = 0; i < small->n; i++) {
        path = strcmp(small->items[i].name, index_name) == 0 ? small->items[i].path : path;
    }
    if (!path) {
        return LV_OK;
    }
    file_set chosen = {calloc(weights->n + 1, sizeof *chosen.items), 0};
    lv_status status = chosen.items ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    LV_TRY_DONE(status);
    LV_TRY_DONE(lv_json_load(path, MAX_INDEX_BYTES, &root));
    lv_json index = lv_json_at(root, index_name);
    LV_TRY_DONE(lv_json_child(&index, "weight_map", &map));
    json_object_foreach((json_t *)map.object, tensor, value) {
        const char *name = json_string_value(value);
        size_t i = 0;
        while (name && i < weights->n && strcmp(weights->items[i].name, name) != 0) {
            i++;
        }
        if (!name || i == weights->n) {
            status = lv_json_wrong(&map, tensor, "a .safetensors file of the model");
            goto done;
        }
        if (!holds(&chosen, name)) {
            chosen.items[chosen.n++] = weights->items[i];
        }
    }
    if (!chosen.n) {
        status = lv_json_wrong(&index, "weight_map", "the tensors' files");
        goto done;
    }
    free(weights->items);
    *weights = chosen;
    chosen.items = NULL;
done:
    free(chosen.items);
    json_decref(root);
    return status;
}

// What lv_shards_open will read: one file where there is one, else the index's, else all.
static lv_status choose_weights(const file_set *small, file_set *weights) {
    static const char single[] = "model.safetensors";
    if (!holds(weights, single)) {
        return choose_shards(small, weights);
    }
    weights->items[0] = (lv_pull_file){.name = single};
    weights->n = 1;
    return LV_OK;
}

// --- fetching them ------------------------------------------------------------------------------

// A file that the snapshot links to was complete when it was linked.
static lv_status look(lv_pull_job *job, lv_pull_file *file) {
    struct stat info;
    LV_TRY(lv_path_join(job->snapshot, file->name, &file->path));
    if (stat(file->path, &info) == 0 && S_ISREG(info.st_mode)) {
        file->n_bytes = (uint64_t)info.st_size;
        file->is_linked = true;
        return LV_OK;
    }
    free(file->path);
    file->path = NULL;
    return lv_pull_look(job, file);
}

static lv_status check_disk(const lv_pull_job *job, uint64_t n_missing) {
    struct statvfs disk;
    if (statvfs(job->folder, &disk) != 0) {
        return LV_OK; // writing will tell
    }
    uint64_t n_free = (uint64_t)disk.f_bavail * disk.f_frsize;
    if (n_missing > n_free) {
        return lv_fail(LV_EIO, "the disk is too full: %.1f MB to come, %.1f MB free in %s",
                       (double)n_missing / 1e6, (double)n_free / 1e6, job->folder);
    }
    return LV_OK;
}

static lv_status get(lv_pull_job *job, const lv_pull_file *file) {
    const lv_pull_options *options = job->options;
    job->now.file = file->name;
    job->now.file_bytes = file->n_bytes;
    LV_TRY(lv_pull_get(job, file));
    job->now.file_done = true;
    bool goes_on = !options->progress || options->progress(options->user, &job->now);
    job->now.file_done = false;
    job->now.file = NULL;
    return goes_on ? LV_OK : lv_fail(LV_ECANCELLED, "cancelled");
}

static lv_status get_all(lv_pull_job *job, file_set *set) {
    uint64_t n_missing = 0;
    job->now.n_bytes = job->now.total_bytes = 0;
    for (size_t i = 0; i < set->n; i++) {
        lv_pull_file *file = &set->items[i];
        LV_TRY(look(job, file));
        job->now.total_bytes += file->n_bytes; // 10,000 files of at most 2^50 bytes
        n_missing += file->is_linked ? 0 : lv_pull_missing(file);
    }
    LV_TRY(check_disk(job, n_missing));
    for (size_t i = 0; i < set->n; i++) {
        const lv_pull_file *file = &set->items[i];
        if (file->is_linked || lv_pull_is_complete(file)) {
            job->now.n_bytes += file->n_bytes;
        } else {
            LV_TRY(get(job, file));
        }
    }
    return LV_OK;
}

// snapshots/<commit>/<name> -> ../../blobs/<checksum>, replacing a link that leads nowhere.
static lv_status link_file(const lv_pull_job *job, const lv_pull_file *file) {
    char *path = NULL, *target = NULL;
    lv_status status;
    LV_TRY_DONE(lv_path_join(job->snapshot, file->name, &path));
    LV_TRY_DONE(lv_text_format(&target, "../../blobs/%s", file->checksum));
    if ((unlink(path) != 0 && errno != ENOENT) || symlink(target, path) != 0) {
        status = lv_fail(LV_EIO, "%s: cannot make the link: %s", path, strerror(errno));
    }
done:
    free(path);
    free(target);
    return status;
}

static lv_status link_all(const lv_pull_job *job, const file_set *set) {
    for (size_t i = 0; i < set->n; i++) {
        if (!set->items[i].is_linked) {
            LV_TRY(link_file(job, &set->items[i]));
        }
    }
    return LV_OK;
}

static lv_status write_main(const lv_pull_job *job) {
    char *refs = NULL, *path = NULL;
    lv_status status;
    LV_TRY_DONE(lv_path_join(job->folder, "refs", &refs));
    LV_TRY_DONE(lv_pull_folder(refs));
    LV_TRY_DONE(lv_path_join(refs, "main", &path));
    status = lv_file_write_atomic(path, job->commit, strlen(job->commit));
done:
    free(refs);
    free(path);
    return status;
}

static lv_status pull_model(lv_pull_job *job) {
    json_t *root = NULL;
    const json_t *siblings = NULL;
    file_set small = {0}, weights = {0};
    char *blobs = NULL;
    lv_status status;
    LV_TRY_DONE(open_job(job));
    LV_TRY_DONE(list_files(job, &root, &siblings));
    LV_TRY_DONE(check_weights(siblings));
    LV_TRY_DONE(lv_text_format(&job->snapshot, "%s/snapshots/%s", job->folder, job->commit));
    LV_TRY_DONE(lv_path_join(job->folder, "blobs", &blobs));
    LV_TRY_DONE(lv_pull_folder(blobs));
    LV_TRY_DONE(make_set(siblings, is_small, &small));
    LV_TRY_DONE(make_set(siblings, is_weights, &weights));
    LV_TRY_DONE(get_all(job, &small)); // the index says which weights
    LV_TRY_DONE(choose_weights(&small, &weights));
    LV_TRY_DONE(get_all(job, &weights));
    LV_TRY_DONE(lv_pull_folder(job->snapshot));
    LV_TRY_DONE(link_all(job, &small));
    LV_TRY_DONE(link_all(job, &weights));
    status = write_main(job);
done:
    free_set(&small);
    free_set(&weights);
    free(blobs);
    json_decref(root);
    return status;
}

lv_status lv_pull(const char *name, const lv_pull_options *options, char **out_dir) {
    static const lv_pull_options defaults;
    lv_pull_job job = {.options = options ? options : &defaults, .name = name};
    if (out_dir) {
        *out_dir = NULL;
    }
    lv_status status = lv_hub_is_name(name)
                           ? pull_model(&job)
                           : lv_fail(LV_EINVAL, "not a model's name on the hub, as org/name");
    if (status == LV_OK && out_dir) {
        *out_dir = job.snapshot;
        job.snapshot = NULL;
    }
    close_job(&job);
    return status == LV_OK ? LV_OK : lv_fail_in(status, "%s", name);
}

// --- the second checkpoint ----------------------------------------------------------------------

static bool holds_tower(const lv_shards *shards) {
    for (size_t i = 0; i < shards->n; i++) {
        size_t n;
        const lv_named_tensor *tensors = lv_safetensors_list(shards->files[i], &n);
        for (size_t t = 0; t < n; t++) {
            if (strstr(tensors[t].name, "vision_tower.")) {
                return true;
            }
        }
    }
    return false;
}

lv_status lv_pull_tower(const char *dir, char **out_name) {
    json_t *root = NULL;
    lv_shards shards = {0};
    *out_name = NULL;
    lv_status status;
    LV_TRY_DONE(lv_config_file(dir, "config.json", &root));
    const char *name = json_string_value(json_object_get(root, "mm_vision_tower"));
    if (!name || !lv_hub_is_name(name)) {
        goto done;
    }
    LV_TRY_DONE(lv_shards_open(dir, &shards));
    if (!holds_tower(&shards)) {
        status = lv_text_format(out_name, "%s", name);
    }
done:
    lv_shards_close(&shards);
    json_decref(root);
    return status;
}
