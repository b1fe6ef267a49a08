// --server: questions to a running image-chat instead of a model here.
#ifndef LV_DESCRIBE_CLIENT_H
#define LV_DESCRIBE_CLIENT_H

#include "describe.h"

typedef struct client client;

// Finds out which model answers at options->server. LV_EDEVICE where none does.
lv_status client_open(const describe_options *options, client **out) LV_MUST_CHECK;
void client_close(client *c); // ends what is under way; accepts NULL
const char *client_model(const client *c);
int client_n_threads(const client *c); // requests under way at once

// Reads n pictures, asks the options' question about them and waits. on_text may be NULL.
// LV_EDEVICE where no further question can be answered.
lv_status client_ask(client *c, const describe_input *inputs, int n, lv_text_callback on_text,
                     void *user, lv_picture_info *out_infos, lv_answer *out) LV_MUST_CHECK;

// The same about one picture, by a thread of the client's, which calls both callbacks as an engine
// does. `input` and *info live until on_done.
lv_status client_submit(client *c, const describe_input *input, lv_text_callback on_text,
                        lv_done_callback on_done, void *user, lv_picture_info *info) LV_MUST_CHECK;
// What waits or is under way ends as LV_FINISH_CANCELLED; nothing is asked any more.
void client_stop(client *c);

// --- one exchange (client_http.c)

typedef struct client_reply {
    lv_text_callback on_text;
    void *user;
    bool (*goes_on)(void *user); // asked from time to time
    void *goes_on_user;
    lv_answer *answer;
    lv_picture_info *infos; // [n_infos]
    int n_infos;
    lv_buffer line, text, error; // of the stream; of the answer; a body that is no stream
    bool is_done, is_cancelled;
    lv_status status; // of what the stream says
} client_reply;

struct client_link { // where to, and with which key
    char *url, *authorization;
};

// The request's body. LV_EFORMAT and the like name the picture.
lv_status client_body(const describe_options *options, const char *model, lv_buffer *pictures,
                      int n, lv_buffer *out) LV_MUST_CHECK;
// Posts it and reads the stream. *out_again: the server asks to come back later.
lv_status client_post(const struct client_link *link, const lv_buffer *body, client_reply *reply,
                      bool *out_again) LV_MUST_CHECK;
// A JSON object from a path of the server; the caller frees it with json_decref.
lv_status client_get(const struct client_link *link, const char *path,
                     struct json_t **out) LV_MUST_CHECK;

#endif
