// One caption as a record: a line of JSON, or of CSV as RFC 4180 has it.
#include "folders.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char csv_header[] =
    "source,text,finish_reason,prompt_tokens,image_tokens,cached_tokens,completion_tokens,width,"
    "height,tiles,load_ms,preprocess_ms,encode_ms,prefill_ms,decode_ms\r\n";

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

// Bytes of the field at `data`, without what ends it; n_bytes where it is torn.
static size_t field_length(const char *data, size_t n_bytes) {
    bool quoted = false;
    size_t i = 0;
    while (i < n_bytes && (quoted || (data[i] != ',' && data[i] != '\n'))) {
        quoted = quoted != (data[i] == '"');
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

static size_t next_csv(const char *data, size_t n_bytes, char **out_source) {
    size_t n_source = field_length(data, n_bytes), end = n_source;
    while (end < n_bytes && data[end] == ',') {
        end += 1 + field_length(data + end + 1, n_bytes - end - 1);
    }
    if (end == n_bytes) {
        return 0;
    }
    *out_source = unquote(data, n_source);
    return end + 1;
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
    *out_bad = stop && n_blank < n && !json_is_object(object);
    // A person's editor may have left the last line without its end; a torn object never parses.
    bool whole = stop || json_is_object(object);
    json_decref(object);
    return whole ? n + (stop != NULL) : 0;
}

size_t record_next(const char *data, size_t n_bytes, bool is_csv, char **out_source,
                   bool *out_bad) {
    *out_source = NULL;
    *out_bad = false;
    return is_csv ? next_csv(data, n_bytes, out_source)
                  : next_json(data, n_bytes, out_source, out_bad);
}
