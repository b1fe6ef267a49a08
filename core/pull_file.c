#include "core/pull_parts.h"

#include "core/path.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define QUESTION_S 60L // for an answer that is not a file
#define MAX_REDIRECTS 5L
#define MAX_TRIES 5 // of one file, as long as each brings bytes
#define MAX_FILE_BYTES ((uint64_t)1 << 50)
#define READ_BYTES ((size_t)1 << 20)

lv_status lv_pull_folder(const char *path) {
    char *copy = strdup(path);
    if (!copy) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    lv_status status = LV_OK;
    for (char *at = copy; at;) {
        at = strchr(at + 1, '/');
        if (at) {
            *at = 0;
        }
        if (mkdir(copy, 0777) != 0 && errno != EEXIST) {
            status = lv_fail(LV_EIO, "%s: cannot make the folder: %s", copy, strerror(errno));
            break;
        }
        if (at) {
            *at = '/';
        }
    }
    free(copy);
    return status;
}

// --- requests -----------------------------------------------------------------------------------

static int on_progress(void *user, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up_now) {
    (void)total, (void)now, (void)up_total, (void)up_now;
    const lv_pull_job *job = user;
    return job->options->progress && !job->options->progress(job->options->user, &job->now);
}

static void begin(lv_pull_job *job, const char *url) {
    lv_http_begin(&job->http, url, job->schemes);
    curl_easy_setopt(job->http.curl, CURLOPT_HTTPHEADER, job->headers);
    curl_easy_setopt(job->http.curl, CURLOPT_MAXREDIRS, MAX_REDIRECTS);
    curl_easy_setopt(job->http.curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(job->http.curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(job->http.curl, CURLOPT_XFERINFODATA, job);
}

static long http_status_of(const lv_pull_job *job) {
    long status = 0;
    curl_easy_getinfo(job->http.curl, CURLINFO_RESPONSE_CODE, &status);
    return status;
}

// The value of the last answer's header, "" where it has none.
static const char *header_of(const lv_pull_job *job, const char *name) {
    struct curl_header *header;
    return curl_easy_header(job->http.curl, name, 0, CURLH_HEADER, -1, &header) == CURLHE_OK
               ? header->value
               : "";
}

// What an HTTP status of 400 and more, or another surprise, means.
static lv_status fail_http(const lv_pull_job *job, long status) {
    if (status == 403 || strcmp(header_of(job, "X-Error-Code"), "GatedRepo") == 0) {
        return lv_fail(LV_ENETWORK,
                       "not allowed (HTTP status %ld): accept the model's conditions at %s/%s and "
                       "set HF_TOKEN to a token of that account",
                       status, job->endpoint, job->name);
    }
    if (status == 401 && job->has_token) {
        return lv_fail(LV_ENETWORK, "the hub refuses the token (HTTP status 401): check HF_TOKEN "
                                    "and the model's name");
    }
    if (status == 401) {
        return lv_fail(LV_ENETWORK, "not for the public (HTTP status 401): the name is wrong, or "
                                    "the model is private or gated and wants HF_TOKEN to be set");
    }
    if (status == 404) {
        return lv_fail(LV_ENOTFOUND, "not found at %s (HTTP status 404)", job->endpoint);
    }
    return lv_fail(LV_ENETWORK, "%s answers with HTTP status %ld", job->http.host, status);
}

typedef struct text_answer {
    lv_buffer *out;
    lv_status status;
} text_answer;

static size_t on_text(char *data, size_t size, size_t n, void *user) {
    text_answer *answer = user;
    answer->status = lv_buffer_append(answer->out, data, size * n);
    return answer->status == LV_OK ? size * n : 0;
}

lv_status lv_pull_text(lv_pull_job *job, const char *url, size_t max_bytes, lv_buffer *out) {
    CURL *curl = job->http.curl;
    text_answer answer = {.out = out};
    *out = (lv_buffer){.max_bytes = max_bytes};
    begin(job, url);
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, QUESTION_S);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_text);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
    CURLcode code = curl_easy_perform(curl);
    lv_status status = answer.status;
    LV_TRY_DONE(status);
    LV_TRY_DONE(lv_http_result(&job->http, code));
    long http_status = http_status_of(job);
    status = http_status == 200 ? lv_buffer_append(out, NULL, 0) : fail_http(job, http_status);
done:
    if (status != LV_OK) {
        lv_buffer_free(out);
    }
    return status;
}

// --- what the hub says about a file -------------------------------------------------------------

// W/"0123..." or "0123...": the digits. False for any other text: it becomes a file's name.
static bool read_checksum(const char *text, char out[LV_SHA256_DIGITS + 1]) {
    text += strncmp(text, "W/", 2) ? 0 : 2;
    text += *text == '"';
    size_t n = strspn(text, "0123456789abcdef");
    if ((n != LV_SHA256_DIGITS && n != LV_SHA1_DIGITS) ||
        (text[n] && strcmp(text + n, "\"") != 0)) {
        return false;
    }
    memcpy(out, text, n);
    out[n] = 0;
    return true;
}

static bool read_size(const char *text, uint64_t *out) {
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && !*end && !errno && *out <= MAX_FILE_BYTES;
}

static lv_status read_answer(const lv_pull_job *job, lv_pull_file *file) {
    const char *checksum = header_of(job, "X-Linked-Etag"), *size = header_of(job, "X-Linked-Size");
    if (!read_checksum(*checksum ? checksum : header_of(job, "ETag"), file->checksum)) {
        return lv_fail(LV_EFORMAT, "the hub gives no checksum (ETag) of a known kind");
    }
    if (!read_size(*size ? size : header_of(job, "Content-Length"), &file->n_bytes)) {
        return lv_fail(LV_EFORMAT, "the hub does not say how long the file is");
    }
    return lv_text_format(&file->path, "%s/blobs/%s", job->folder, file->checksum);
}

// endpoint/org/name/resolve/commit/file
static lv_status url_of(const lv_pull_job *job, const char *name, char **out) {
    char *escaped = curl_easy_escape(job->http.curl, name, 0);
    if (!escaped) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    lv_status status =
        lv_text_format(out, "%s/%s/resolve/%s/%s", job->endpoint, job->name, job->commit, escaped);
    curl_free(escaped);
    return status;
}

// The hub's answer about a large file is a redirect to where its bytes lie: the answer counts. A
// redirect inside the hub (a model that was renamed, a cache) begins with / and is followed.
lv_status lv_pull_look(lv_pull_job *job, lv_pull_file *file) {
    CURL *curl = job->http.curl;
    char *url = NULL, *next = NULL;
    lv_status status = url_of(job, file->name, &url);
    for (long n = 0; status == LV_OK; n++) {
        begin(job, url);
        curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
        curl_easy_setopt(curl, CURLOPT_TIMEOUT, QUESTION_S);
        LV_TRY_DONE(lv_http_result(&job->http, curl_easy_perform(curl)));
        long http_status = http_status_of(job);
        const char *location = header_of(job, "Location");
        if (http_status >= 400 || http_status < 200) {
            status = fail_http(job, http_status);
        } else if (http_status < 300 || location[0] != '/' || location[1] == '/' ||
                   *header_of(job, "X-Linked-Etag")) {
            status = read_answer(job, file);
            break;
        } else if (n == MAX_REDIRECTS) {
            status = lv_fail(LV_ENETWORK, "redirected more than %ld times", n);
        } else if (curl_easy_getinfo(curl, CURLINFO_REDIRECT_URL, &next) != CURLE_OK || !next) {
            status = fail_http(job, http_status);
        } else {
            next = strdup(next); // the next request's options forget it
            free(url);
            url = next;
            status = url ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
        }
    }
done:
    free(url);
    return status == LV_OK ? LV_OK : lv_fail_in(status, "%s", file->name);
}

// --- a file's bytes -----------------------------------------------------------------------------

typedef struct incoming {
    lv_pull_job *job;
    const lv_pull_file *file;
    const char *path; // <checksum>.incomplete
    int fd;
    EVP_MD_CTX *hash; // of the first n_bytes
    uint64_t n_bytes; // in the file
    bool started;     // this answer's headers were looked at
    lv_status status;
} incoming;

// Git hashes "blob <length>", a 0 byte, and the bytes.
static lv_status begin_hash(incoming *in) {
    bool git = strlen(in->file->checksum) == LV_SHA1_DIGITS;
    char head[32];
    int n = snprintf(head, sizeof head, "blob %" PRIu64, in->file->n_bytes);
    if (EVP_DigestInit_ex(in->hash, git ? EVP_sha1() : EVP_sha256(), NULL) != 1 ||
        (git && EVP_DigestUpdate(in->hash, head, (size_t)n + 1) != 1)) {
        return lv_fail(LV_EUNSUPPORTED, "OpenSSL cannot compute %s here",
                       git ? "SHA-1" : "SHA-256");
    }
    return LV_OK;
}

static lv_status add_hash(incoming *in, const void *data, size_t n_bytes) {
    return EVP_DigestUpdate(in->hash, data, n_bytes) == 1
               ? LV_OK
               : lv_fail(LV_EIO, "OpenSSL cannot hash it");
}

static lv_status fail_write(const incoming *in) {
    if (errno == ENOSPC || errno == EDQUOT) {
        return lv_fail(LV_EFULL, "the disk is full with %.1f MB to come (%s)",
                       (double)(in->file->n_bytes - in->n_bytes) / 1e6, in->path);
    }
    return lv_fail(LV_EIO, "%s: cannot write: %s", in->path, strerror(errno));
}

// Forgets the bytes that are there.
static lv_status start_over(incoming *in) {
    in->job->now.n_bytes -= in->n_bytes;
    in->n_bytes = 0;
    if (ftruncate(in->fd, 0) != 0 || lseek(in->fd, 0, SEEK_SET) < 0) {
        return fail_write(in);
    }
    return begin_hash(in);
}

static lv_status append(incoming *in, const char *data, size_t n_bytes) {
    if (n_bytes > in->file->n_bytes - in->n_bytes) {
        return lv_fail(LV_EFORMAT, "more than the %" PRIu64 " bytes that the hub has named",
                       in->file->n_bytes);
    }
    while (n_bytes) {
        ssize_t n = write(in->fd, data, n_bytes);
        if (n < 0 && errno != EINTR) {
            return fail_write(in);
        }
        if (n > 0) {
            LV_TRY(add_hash(in, data, (size_t)n));
            data += n;
            n_bytes -= (size_t)n;
            in->n_bytes += (uint64_t)n;
            in->job->now.n_bytes += (uint64_t)n;
            in->job->now.n_received_bytes += (uint64_t)n;
        }
    }
    return LV_OK;
}

// 206 goes on where we asked it to; 200 means that the server knows no ranges, or knew better.
static lv_status start(incoming *in) {
    long http_status = http_status_of(in->job);
    in->started = true;
    if (http_status == 200) {
        return in->n_bytes ? start_over(in) : LV_OK;
    }
    if (http_status != 206) {
        return fail_http(in->job, http_status);
    }
    unsigned long long first;
    const char *range = header_of(in->job, "Content-Range");
    if (sscanf(range, "bytes %llu-", &first) != 1 || first != in->n_bytes) {
        return lv_fail(LV_EFORMAT, "asked for the bytes from %" PRIu64 ", got \"%s\"", in->n_bytes,
                       range);
    }
    return LV_OK;
}

static size_t on_data(char *data, size_t size, size_t n, void *user) {
    incoming *in = user;
    in->status = in->started ? LV_OK : start(in);
    in->status = in->status == LV_OK ? append(in, data, size * n) : in->status;
    return in->status == LV_OK ? size * n : 0;
}

// One request for what is missing.
static lv_status receive(incoming *in, const char *url) {
    CURL *curl = in->job->http.curl;
    char range[32];
    begin(in->job, url);
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, in);
    if (in->n_bytes) {
        snprintf(range, sizeof range, "%" PRIu64 "-", in->n_bytes);
        curl_easy_setopt(curl, CURLOPT_RANGE, range);
    }
    in->started = false;
    in->status = LV_OK;
    CURLcode code = curl_easy_perform(curl);
    LV_TRY(in->status);
    LV_TRY(lv_http_result(&in->job->http, code));
    if (!in->started) { // an answer without a body
        LV_TRY(start(in));
    }
    if (in->n_bytes != in->file->n_bytes) {
        return lv_fail(LV_ENETWORK, "the answer ended after %" PRIu64 " of %" PRIu64 " bytes",
                       in->n_bytes, in->file->n_bytes);
    }
    return LV_OK;
}

// A connection that breaks is made again as long as each brings something.
static lv_status receive_all(incoming *in) {
    char *url;
    LV_TRY(url_of(in->job, in->file->name, &url));
    lv_status status = LV_OK;
    for (int n = 0; in->n_bytes < in->file->n_bytes && n < MAX_TRIES; n++) {
        uint64_t before = in->n_bytes;
        status = receive(in, url);
        if (status != LV_ENETWORK || in->n_bytes <= before) {
            break;
        }
    }
    free(url);
    return status;
}

// Takes up what an earlier call has left: n_bytes of it, hashed.
static lv_status take_up(incoming *in) {
    struct stat info;
    LV_TRY(begin_hash(in));
    if (fstat(in->fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        return lv_fail(LV_EIO, "%s: not a regular file", in->path);
    }
    if ((uint64_t)info.st_size > in->file->n_bytes) {
        return start_over(in);
    }
    char *piece = malloc(READ_BYTES);
    lv_status status = piece ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    ssize_t n = 0;
    while (status == LV_OK && (n = read(in->fd, piece, READ_BYTES)) > 0) {
        status = add_hash(in, piece, (size_t)n);
        in->n_bytes += (uint64_t)n;
        in->job->now.n_bytes += (uint64_t)n;
        if (status == LV_OK && on_progress(in->job, 0, 0, 0, 0)) {
            status = lv_fail(LV_ECANCELLED, "cancelled");
        }
    }
    free(piece);
    LV_TRY(status);
    return n < 0 ? lv_fail(LV_EIO, "%s: cannot read: %s", in->path, strerror(errno)) : LV_OK;
}

static lv_status check_hash(incoming *in) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    char text[2 * EVP_MAX_MD_SIZE + 1];
    if (EVP_DigestFinal_ex(in->hash, digest, &n) != 1) {
        return lv_fail(LV_EIO, "OpenSSL cannot hash it");
    }
    for (unsigned i = 0; i < n; i++) {
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    }
    if (strcmp(text, in->file->checksum) != 0) {
        unlink(in->path); // going on with it could not mend it
        return lv_fail(LV_EFORMAT,
                       "the bytes that came are not the file's: their %s is %s, expected %s; "
                       "they were thrown away",
                       n == 32 ? "SHA-256" : "git's SHA-1", text, in->file->checksum);
    }
    return LV_OK;
}

// Held while a file is written, by huggingface_hub too. *out is closed by the caller.
static lv_status lock(const lv_pull_job *job, const lv_pull_file *file, int *out) {
    char *path = NULL;
    *out = -1;
    LV_TRY(lv_pull_folder(job->locks));
    LV_TRY(lv_text_format(&path, "%s/%s.lock", job->locks, file->checksum));
    lv_status status = LV_OK;
    *out = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (*out < 0) {
        status = lv_fail(LV_EIO, "%s: cannot open: %s", path, strerror(errno));
    } else if (flock(*out, LOCK_EX | LOCK_NB) != 0) {
        status = lv_fail(LV_EIO, "another program is downloading it (it holds %s)", path);
    }
    free(path);
    return status;
}

bool lv_pull_is_complete(const lv_pull_file *file) {
    struct stat info;
    return lstat(file->path, &info) == 0 && S_ISREG(info.st_mode) &&
           (uint64_t)info.st_size == file->n_bytes;
}

uint64_t lv_pull_missing(const lv_pull_file *file) {
    struct stat info;
    char *path;
    uint64_t n_there = 0;
    if (lv_pull_is_complete(file)) {
        return 0;
    }
    if (lv_text_format(&path, "%s.incomplete", file->path) == LV_OK) {
        n_there = stat(path, &info) == 0 ? (uint64_t)info.st_size : 0;
        free(path);
    }
    return n_there < file->n_bytes ? file->n_bytes - n_there : file->n_bytes;
}

lv_status lv_pull_get(lv_pull_job *job, const lv_pull_file *file) {
    char *path = NULL;
    int lock_fd = -1;
    incoming in = {.job = job, .file = file, .fd = -1, .hash = EVP_MD_CTX_new()};
    lv_status status = in.hash ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    LV_TRY_DONE(status);
    LV_TRY_DONE(lv_text_format(&path, "%s.incomplete", file->path));
    LV_TRY_DONE(lock(job, file, &lock_fd));
    in.path = path;
    in.fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (in.fd < 0) {
        status = lv_fail(LV_EIO, "%s: cannot open: %s", path, strerror(errno));
        goto done;
    }
    LV_TRY_DONE(take_up(&in));
    LV_TRY_DONE(receive_all(&in));
    LV_TRY_DONE(check_hash(&in));
    if (fsync(in.fd) != 0) {
        status = fail_write(&in);
    } else if (rename(path, file->path) != 0) {
        status = lv_fail(LV_EIO, "%s: cannot rename: %s", path, strerror(errno));
    }
done:
    if (in.fd >= 0) {
        close(in.fd);
    }
    if (lock_fd >= 0) {
        close(lock_fd);
    }
    EVP_MD_CTX_free(in.hash);
    free(path);
    return status == LV_OK ? LV_OK : lv_fail_in(status, "%s", file->name);
}
