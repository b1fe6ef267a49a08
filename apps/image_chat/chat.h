// Chat requests: read and checked (chat_request.c, chat_messages.c), answered (chat_job.c), written
// (chat_write.c).
#ifndef LV_CHAT_CHAT_H
#define LV_CHAT_CHAT_H

#include <jansson.h>
#include <pthread.h>

#include "apps/image_chat/server.h"

#define MAX_CHOICES 16
#define MAX_MESSAGES 4096
#define ROOT_FIELD "the request"

// --- requests ------------------------------------------------------------------------------------

// A picture of a request: made of bytes at once, or of a URL later.
typedef struct chat_picture {
    char *url;            // owned; NULL: there already
    lv_picture *picture;  // NULL: not there yet, or seen and let go
    lv_picture_info info; // once it was let go
} chat_picture;

lv_picture_info chat_picture_info(const chat_picture *picture);

typedef struct chat_request {
    lv_message *messages; // texts owned; pictures: stretches of `shown`
    int n_messages;
    chat_picture *pictures; // of all messages, in order
    int n_pictures;
    lv_picture **shown; // [n_pictures] once all are there
    int *first_picture; // [n_messages] a message's first
    lv_params params;   // grammar owned
    char *stops[LV_MAX_STOPS];
    int n_choices;
    bool has_seed, stream, include_usage;
    bool has_urls;
} chat_request;

// Reads a request, whose long data: URIs are in `uris`, into a zeroed *out. False after filling
// *error.
bool chat_request_read(const server *s, json_t *root, const lift *uris, chat_request *out,
                       api_error *error);
void chat_request_free(chat_request *request);

// The messages' part of it.
bool chat_messages_read(const server *s, json_t *messages, const lift *uris, chat_request *out,
                        api_error *error);

// --- fields --------------------------------------------------------------------------------------

typedef enum field_kind {
    FIELD_ANY,     // looked at by hand
    FIELD_INTEGER, // int
    FIELD_INTEGER64,
    FIELD_NUMBER, // float
    FIELD_BOOL,
    FIELD_STRING,  // const char *, borrowed; max: bytes
    FIELD_IGNORED, // known, and without effect
    FIELD_REFUSED  // known, and not supported unless empty: `why`
} field_kind;

typedef struct field {
    const char *name;
    field_kind kind;
    double min, max;
    size_t offset; // of its place in the struct that is filled
    const char *why;
} field;

// Fills *out from an object: absent and null fields leave it as it is. False after filling *error,
// for a value of another kind or out of bounds, and for a field that is not in the table. `where`
// is "" or the object's own place, as "messages[1]".
bool fields_read(const json_t *object, const char *where, const field *fields, int n_fields,
                 void *out, api_error *error);
// The value of a key, NULL where it is absent or null.
json_t *field_get(const json_t *object, const char *name);

// --- jobs ----------------------------------------------------------------------------------------

typedef struct choice {
    chat_job *job;
    int index;
    uint64_t id; // the engine's; 0: not submitted
    bool begun, ended;
    lv_answer answer;
    double last_text_ms; // 0: none yet
} choice;

// The exchange holds a reference, and so do the watch and each choice at the engine.
struct chat_job {
    atomic_int refs;
    server *server;
    uint64_t request_id;
    char id[40];    // "chatcmpl-..."
    time_t created; // UNIX time
    double start_ms;
    chat_request request; // constant once submitted
    choice choices[MAX_CHOICES];

    pthread_mutex_t mutex;             // over all that follows; the innermost
    struct MHD_Connection *connection; // NULL: the exchange is over
    bool suspended;
    bool submitted; // all choices are at the engine
    bool gone;      // nobody reads any more
    bool failed;    // `error`
    bool committed; // the response's head may go: its status is known
    bool ended;     // nothing more will be added to `out`
    int n_left;     // choices not ended
    api_error error;
    out_text out; // what is still to be read, from n_read on
    size_t n_read;
    double last_out_ms;
    size_t n_sent;
};

// Takes the request. NULL without memory.
chat_job *job_create(server *s, uint64_t request_id, chat_request *request);
// Suspends the exchange and sets to work.
void job_start(chat_job *job, struct MHD_Connection *connection);
chat_job *job_hold(chat_job *job); // NULL passes
void job_release(chat_job *job);
// The exchange is over.
void job_leave(chat_job *job);

void job_client_gone(chat_job *job);
void job_tick(chat_job *job);
void job_end(chat_job *job); // the server's time is over

// What the response is, once it is committed; for a stream it may go on.
bool job_is_stream(chat_job *job);
// The whole text of one that is not a stream, the caller's.
out_text job_take_text(chat_job *job, api_error *error);
// MHD_ContentReaderCallback of a stream.
ssize_t job_read(void *job, uint64_t at, char *to, size_t n);
size_t job_bytes_sent(chat_job *job);

// --- writing -------------------------------------------------------------------------------------

// With the job's mutex held, into job->out.
void write_first_chunk(chat_job *job, const choice *c);
void write_piece_chunk(chat_job *job, const choice *c, const lv_piece *piece);
void write_finish_chunk(chat_job *job, const choice *c);
void write_stream_error(chat_job *job);
void write_stream_end(chat_job *job); // usage where asked for, [DONE]
void write_whole(chat_job *job);      // all choices

#endif
