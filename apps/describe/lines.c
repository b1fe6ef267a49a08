// One caption as a record: a line of JSON, or of CSV as RFC 4180 has it.
#include "folders.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char csv_header[] =
    "source,text,finish_reason,prompt_tokens,image_tokens,cached_tokens,completion_tokens,width,"
    "height,tiles,load_ms,preprocess_ms,encode_ms,prefill_ms,decode_ms\r\n";
enum { CSV_FIELDS = 15, CSV_NUMBERS = 12 }; // numbers at the end

static void put_field(FILE *to, const char *text) {
    if (!text[strcspn(text, ",\"\r\n")]) {
        fputs(text, to);
        return;
    }
    fputc('"', to);
    for (; *text; text++) {
        fputs(*text == '"' ? "\"\"" : (char[]){*text, 0}, to);
    }
    fputc('"', to);
}

char *csv_record(const describe_input *input, const lv_picture_info *info,
                 const lv_answer *answer) {
    char *source = clean_utf8(input->source), *text = clean_utf8(answer->text), *out = NULL;
    size_t n_bytes = 0;
    FILE *to = source && text ? open_memstream(&out, &n_bytes) : NULL;
    if (to) {
        put_field(to, source);
        fputc(',', to);
        put_field(to, text);
        fprintf(to, ",%s,%d,%d,%d,%d,%d,%d,%d,%.2f,%.2f,%.2f,%.2f,%.2f\r\n",
                lv_finish_name(answer->finish), answer->n_prompt_tokens, answer->n_image_tokens,
                answer->n_reused_tokens, answer->n_tokens, info->width, info->height, info->n_tiles,
                info->load_ms, info->preprocess_ms, answer->encode_ms, answer->prefill_ms,
                answer->decode_ms);
        bool bad = ferror(to);
        if (fclose(to) != 0 || bad) {
            free(out);
            out = NULL;
        }
    }
    free(source);
    free(text);
    return out;
}

// Bytes of the field at `data`, without what ends it; n_bytes where it is torn. A quote that does
// not begin the field is text: spreadsheets and Python read it so too.
static size_t field_length(const char *data, size_t n_bytes) {
    bool quoted = n_bytes > 0 && data[0] == '"';
    size_t i = quoted;
    while (i < n_bytes && (quoted || (data[i] != ',' && data[i] != '\n'))) {
        if (quoted && data[i] == '"') {
            const bool is_twin = i + 1 < n_bytes && data[i + 1] == '"';
            quoted = is_twin;
            i += is_twin;
        }
        i++;
    }
    return i;
}

static char *unquote(const char *field, size_t n_bytes) {
    char *out = malloc(n_bytes + 1), *to = out;
    bool quoted = n_bytes >= 2 && field[0] == '"' && field[n_bytes - 1] == '"';
    for (size_t i = quoted; out && i < n_bytes - quoted; i++) {
        *to++ = field[i];
        i += quoted && field[i] == '"'; // its twin
    }
    if (out) {
        *to = 0;
    }
    return out;
}

static bool is_number(const char *text, size_t n_bytes) {
    size_t i = 0;
    while (i < n_bytes && memchr("0123456789.", text[i], 11)) {
        i++;
    }
    return n_bytes > 0 && i == n_bytes;
}

// Whether a line in the data ends as a record does, in nothing but numbers.
static bool ends_record(const char *data, size_t n_bytes) {
    const char *end = data + n_bytes, *stop = NULL;
    for (const char *line = data; (stop = memchr(line, '\n', (size_t)(end - line)));
         line = stop + 1) {
        const char *cut = stop > line && stop[-1] == '\r' ? stop - 1 : stop, *field = cut;
        int n = 0;
        for (const char *at = cut; at > line && n < CSV_NUMBERS; at--) {
            if (at[-1] == ',') {
                n = is_number(at, (size_t)(field - at)) ? n + 1 : CSV_FIELDS;
                field = at - 1;
            }
        }
        if (n == CSV_NUMBERS) {
            return true;
        }
    }
    return false;
}

static size_t next_csv(const char *data, size_t n_bytes, char **out_source, bool *out_bad) {
    size_t n_source = field_length(data, n_bytes), end = n_source, last = 0;
    int n_fields = 1;
    while (end < n_bytes && data[end] == ',') {
        last = end + 1;
        end = last + field_length(data + last, n_bytes - last);
        n_fields++;
    }
    size_t n_last = n_bytes - last;
    n_last -= n_last > 0 && data[n_bytes - 1] == '\r';
    // A person's editor may have left the last line without its end, or a number is torn.
    bool whole = end < n_bytes || (n_fields == CSV_FIELDS && is_number(data + last, n_last));
    const bool is_blank = n_fields == 1 && (n_source == 0 || (n_source == 1 && data[0] == '\r'));
    *out_bad = whole ? n_fields != CSV_FIELDS && !is_blank : ends_record(data, n_bytes);
    *out_source = whole && !is_blank && !*out_bad ? unquote(data, n_source) : NULL;
    return whole ? end + (end < n_bytes) : 0;
}

// Whether what has no end of line is the beginning of a record, or what a file system leaves of one
// after a power cut.
static bool is_torn_json(const char *data, size_t n_bytes) {
    static const char begin[] = "{\"source\":\"";
    size_t n_begin = sizeof begin - 1, n_blank = 0;
    while (n_blank < n_bytes && strchr(" \t\r", data[n_blank])) { // strchr finds NUL as well
        n_blank++;
    }
    return n_blank == n_bytes || !strncmp(data, begin, n_bytes < n_begin ? n_bytes : n_begin);
}

static size_t next_json(const char *data, size_t n_bytes, char **out_source, bool *out_bad) {
    const char *stop = memchr(data, '\n', n_bytes);
    size_t n = stop ? (size_t)(stop - data) : n_bytes;
    size_t n_blank = 0;
    while (n_blank < n && strchr(" \t\r", data[n_blank])) {
        n_blank++;
    }
    json_t *object = n_blank < n ? json_loadb(data, n, 0, NULL) : NULL;
    const char *source = json_string_value(json_object_get(object, "source"));
    *out_source = source ? strdup(source) : NULL;
    // A person's editor may have left the last line without its end; a torn object never parses.
    bool whole = stop || json_is_object(object);
    *out_bad = stop ? n_blank < n && !json_is_object(object) : !whole && !is_torn_json(data, n);
    json_decref(object);
    return whole ? n + (stop != NULL) : 0;
}

size_t record_next(const char *data, size_t n_bytes, bool is_csv, char **out_source,
                   bool *out_bad) {
    *out_source = NULL;
    *out_bad = false;
    return is_csv ? next_csv(data, n_bytes, out_source, out_bad)
                  : next_json(data, n_bytes, out_source, out_bad);
}
