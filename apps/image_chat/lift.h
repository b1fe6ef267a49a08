// A request's data: URIs, taken out of its text in front of the JSON parser, which would spend 15
// ns and several copies on each of their millions of bytes.
#ifndef LV_CHAT_LIFT_H
#define LV_CHAT_LIFT_H

#include "apps/image_chat/json_out.h"

enum { MAX_LIFTED = 1024, MIN_LIFTED_BYTES = 1024 };

typedef struct lifted {
    const char *uri; // [n_bytes] where it stands in the request
    size_t n_bytes;
} lifted;

typedef struct lift {
    lifted items[MAX_LIFTED];
    int n;
} lift;

// Appends JSON text[n_bytes] to *out with each long data: URI that is the value of a key "url"
// replaced by a mark, and notes it in *found. What is no JSON stays none.
void lift_uris(const char *text, size_t n_bytes, lift *found, out_text *out);

// What a string of the parsed text stands for: a lifted URI, or itself. (A client that writes a
// mark of its own gets a picture of its own, or none.)
lifted lift_find(const lift *found, const char *text);
bool lift_is_mark(const char *text); // somewhere in it

#endif
