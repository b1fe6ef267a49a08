// Grammars of JSON schemas: what each accepts and refuses, byte by byte and by tokens; random
// answers, which must always end and match; hostile schemas.
#include "tests/check.h"

#include <jansson.h>
#include <time.h>
#include <unistd.h>

#include "llm/grammar.h"

#define TINY LV_SOURCE_DIR "/tests/data/tokenizer/tiny.model"
#define LLAMA LV_SHARED_DIR "/data/tokenizer/tokenizer.model"
#define MAX_TEXT 8192

static const lv_config config = {.family = LV_FAMILY_ORIGINAL,
                                 .image_token_id = -1,
                                 .text = {.bos_id = 1, .eos_ids = {2}, .n_eos = 1}};

typedef struct words {
    lv_tokenizer *tokenizer;
    lv_vocabulary *vocabulary;
    lv_matcher *matcher;
    int n_tokens;
} words;

static words open_words(const char *model) {
    words w = {0};
    char folder[] = "/tmp/lv_grammar_XXXXXX", path[64];
    lv_buffer file = {0};
    CHECK(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    CHECK_OK(lv_file_read(model, (size_t)1 << 24, &file));
    CHECK_OK(lv_file_write_atomic(path, file.data, file.n_bytes));
    CHECK_OK(lv_tokenizer_open(folder, &config, &w.tokenizer));
    w.n_tokens = lv_tokenizer_size(w.tokenizer) + 64; // as padded embeddings are
    CHECK_OK(lv_vocabulary_create(w.tokenizer, &config.text, w.n_tokens, &w.vocabulary));
    CHECK_OK(lv_matcher_open(w.vocabulary, &w.matcher));
    lv_buffer_free(&file);
    unlink(path);
    rmdir(folder);
    return w;
}

static void close_words(words *w) {
    lv_matcher_free(w->matcher);
    lv_vocabulary_free(w->vocabulary);
    lv_tokenizer_free(w->tokenizer);
}

static lv_grammar *compile(const char *schema) {
    lv_grammar *grammar = NULL;
    CHECK_OK(lv_grammar_compile(schema, schema ? strlen(schema) : 0, "schema", &grammar));
    return grammar;
}

static bool is_allowed(const uint32_t *mask, int32_t id) {
    return mask[id / 32] >> (id % 32) & 1;
}

// --- accepted and refused texts -----------------------------------------------------------------

static bool accepts_bytes(lv_matcher *m, const lv_grammar *grammar, const char *text) {
    CHECK_OK(lv_matcher_start(m, grammar));
    for (const char *c = text; *c; c++) {
        if (!lv_matcher_push_text(m, c, 1)) {
            return false;
        }
    }
    return lv_matcher_is_complete(m);
}

// By the tokenizer's own tokens; each must be in the mask exactly when it can be pushed, and the
// end where the text is complete.
static bool accepts_tokens(const words *w, const lv_grammar *grammar, const char *text) {
    lv_ids ids = {0};
    const uint32_t *mask;
    bool ok = true;
    CHECK_OK(lv_tokenize(w->tokenizer, text, strlen(text), &ids));
    CHECK_OK(lv_matcher_start(w->matcher, grammar));
    for (int i = 0; i < ids.n && ok; i++) {
        CHECK_OK(lv_matcher_allowed(w->matcher, (lv_matcher_wish){0}, &mask, NULL));
        CHECK(is_allowed(mask, 2) == lv_matcher_is_complete(w->matcher));
        ok = is_allowed(mask, ids.ids[i]);
        CHECK((lv_matcher_push(w->matcher, ids.ids[i]) == LV_OK) == ok, "%s", text);
    }
    lv_ids_free(&ids);
    return ok && lv_matcher_is_complete(w->matcher);
}

typedef struct example {
    const char *schema, *accepted[8], *refused[12];
} example;

static const example examples[] = {
    {"{\"type\":\"string\"}",
     {"\"\"", "\"a b\"", "\"\\n\\\"\\u00e9\"", "\"\xC3\xA9\xF0\x9F\x98\x80\"", "\"\\ud83d\\ude00\"",
      " \"x\""},
     {"", "\"", "x", "\"\n\"", "\"\\x\"", "\"\\u12\"", "\"\\ud83d\"", "\"\\udc00\"", "\"\\u0000\"",
      "\"a\"\"", "  \"x\"", "\"a\" "}},
    {"{\"minLength\":0}", // well-formed UTF-8 only: table 3-7 of the Unicode standard
     {"\"\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF\xC2\x80\xE0\xA0\x80\xF0\x90\x80\x80\""},
     {"\"\x80\"", "\"\xC3\"", "\"\xC0\xAF\"", "\"\xE0\x80\xAF\"", "\"\xED\xA0\x80\"",
      "\"\xF0\x80\x80\x80\"", "\"\xF4\x90\x80\x80\"", "\"\xF5\x80\x80\x80\"", "\"\xFF\""}},
    {"{\"type\":\"integer\"}",
     {"0", "7", "-12", "123456789012345"},
     {"", "-", "01", "1.5", "1e3", "+1", "1234567890123456", "x", "--1", "-0"}},
    {"{\"type\":\"number\"}",
     {"0", "-0.5", "1e9", "12.25E-10", "3.14"},
     {".5", "1.", "1e", "1e+", "1e123", "0x1", "1.2.3", "NaN", "00"}},
    {"{\"type\":[\"boolean\",\"null\"]}", {"true", "false", "null"}, {"t", "True", "nul", "0"}},
    {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":"
     "\"string\"},\"c\":{\"type\":\"null\"}},\"required\":[\"b\"]}",
     {"{\"b\":\"\"}", "{\"a\":1,\"b\":\"x\"}", "{\"a\": 1, \"b\": \"x\", \"c\": null}",
      "{\"b\":\"x\",\"c\":null}"},
     {"{}", "{\"a\":1}", "{\"b\":\"x\",\"a\":1}", "{\"b\":1}", "{\"b\":\"x\",}", "{,\"b\":\"x\"}",
      "{\"b\":\"x\",\"d\":1}", "{\"b\":  \"x\"}", "{\"b\":\"x\"", "{ \"b\":\"x\"}"}},
    {"{\"type\":\"object\",\"properties\":{\"ab\":{\"type\":\"null\"},\"ac\":{\"type\":\"null\"}},"
     "\"additionalProperties\":{\"type\":\"integer\"}}",
     {"{}", "{\"ab\":null}", "{\"ab\":null,\"x\":1}", "{\"a\":1,\"abc\":2}",
      "{\"ac\":null,\"\":3}"},
     {"{\"ab\":1}", "{\"ac\":1}", "{\"x\":null}", "{\"x\":1,\"ab\":null}", "{\"\\u0061b\":1}"}},
    {"{\"type\":\"object\",\"additionalProperties\":false}", {"{}"}, {"{\"a\":1}", "[]"}},
    {"{\"type\":\"array\",\"items\":{\"type\":\"boolean\"},\"minItems\":1,\"maxItems\":3}",
     {"[true]", "[true,false]", "[true, false, true]"},
     {"[]", "[true,]", "[true,true,true,true]", "[1]", "[true  ,true]", "[,true]"}},
    {"{\"items\":{\"type\":\"null\"},\"maxItems\":0}", {"[]"}, {"[null]"}},
    {"{\"type\":\"array\",\"minItems\":2}", {"[1,2]", "[{},[],\"\",null]"}, {"[]", "[1]"}},
    {"{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}",
     {"\"ab\"", "\"abc\"", "\"\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80\"", "\"\\u00e9\\n\""},
     {"\"a\"", "\"abcd\"", "\"\""}},
    {"{\"enum\":[\"red\",\"reddish\",\"green\",1,12,null,{\"a\":[1,0.1]}]}",
     {"\"red\"", "\"reddish\"", "1", "12", "null", "{\"a\":[1,0.1]}"},
     {"\"re\"", "\"reds\"", "123", "2", "\"redd\""}},
    {"{\"type\":\"string\",\"enum\":[\"a\",1]}", {"\"a\""}, {"1"}},
    {"{\"const\":\"a\\\"\xC3\xB6\"}", {"\"a\\\"\xC3\xB6\""}, {"\"a\"", "\"a\\\"\xC3\xA4\""}},
    {"{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"object\",\"properties\":{\"k\":{\"const\":1}},"
     "\"required\":[\"k\"]},{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"x\"}}}]}",
     {"5", "{\"k\":1}", "{\"k\":\"x\"}", "{}"},
     {"{\"k\":2}", "[]"}},
    {"{\"$defs\":{\"node\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},"
     "\"next\":{\"anyOf\":[{\"$ref\":\"#/$defs/node\"},{\"type\":\"null\"}]}},\"required\":["
     "\"v\",\"next\"]}},\"$ref\":\"#/$defs/node\"}",
     {"{\"v\":1,\"next\":null}", "{\"v\":1,\"next\":{\"v\":2,\"next\":{\"v\":3,\"next\":null}}}"},
     {"{\"v\":1}", "{\"v\":1,\"next\":{}}", "null"}},
    {"{\"$schema\":\"x\",\"title\":\"t\",\"description\":\"d\"}",
     {"1", "\"x\"", "[[],{\"a\":[{}]}]", "{\"a\": {\"b\": null}}"},
     {"", "[", "tru", "{\"a\"}"}},
    {NULL, {"{}", "{\"a\":1}", "{\"a\": [1, {\"b\": \"c\"}], \"\xC3\xA9\": true}"}, {"[]", "1"}},
};

enum { N_EXAMPLES = sizeof examples / sizeof *examples };

static void check_examples(const words *w) {
    for (const example *e = examples; e < examples + N_EXAMPLES; e++) {
        lv_grammar *grammar = compile(e->schema);
        for (int i = 0; i < 8 && e->accepted[i]; i++) {
            CHECK(accepts_bytes(w->matcher, grammar, e->accepted[i]), "%s %s", e->schema,
                  e->accepted[i]);
            // A tokenizer puts a space of its own in front, which is all that is allowed.
            const char *text = e->accepted[i] + (e->accepted[i][0] == ' ');
            CHECK(accepts_tokens(w, grammar, text), "%s %s", e->schema, text);
        }
        for (int i = 0; i < 12 && e->refused[i]; i++) {
            CHECK(!accepts_bytes(w->matcher, grammar, e->refused[i]), "%s %s", e->schema,
                  e->refused[i]);
        }
        lv_grammar_free(grammar);
    }
}

// --- random answers -----------------------------------------------------------------------------

static const char *const walked[] = {
    "{\"type\":\"object\",\"properties\":{\"caption\":{\"type\":\"string\"},\"tags\":{\"type\":"
    "\"array\",\"items\":{\"type\":\"string\",\"maxLength\":12},\"maxItems\":5},\"count\":{"
    "\"type\":"
    "\"integer\"},\"sure\":{\"type\":\"boolean\"}},\"required\":[\"caption\",\"tags\",\"count\","
    "\"sure\"]}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"number\"},\"b\":{\"enum\":[\"x\","
    "\"xy\",null]},\"c\":{\"type\":\"string\",\"minLength\":3,\"maxLength\":40}},\"required\":["
    "\"b\"],\"additionalProperties\":{\"type\":\"boolean\"}}",
    "{\"$defs\":{\"t\":{\"type\":\"object\",\"properties\":{\"n\":{\"type\":\"integer\"},\"kids\":{"
    "\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/t\"},\"maxItems\":3}},\"required\":[\"n\","
    "\"kids\"]}},\"$ref\":\"#/$defs/t\"}",
    "{\"type\":\"array\",\"items\":{\"anyOf\":[{\"type\":\"array\",\"items\":{\"type\":\"null\"}},{"
    "\"type\":\"array\",\"items\":{\"type\":\"integer\"}}]},\"minItems\":2}",
    "{\"type\":\"object\",\"properties\":{\"gr\xC3\xB6\xC3\x9F"
    "e\":{\"type\":\"string\"},\"\xE5\xA4\xA7\":{\"const\":\"\xE5\xB0\x8F\"}},\"required\":["
    "\"gr\xC3\xB6\xC3\x9F"
    "e\",\"\xE5\xA4\xA7\"]}",
};

enum { N_WALKED = sizeof walked / sizeof *walked };

static const json_t *target(const json_t *root, const json_t *schema) {
    const char *ref = json_string_value(json_object_get(schema, "$ref"));
    const char *name = ref && strrchr(ref, '/') ? strrchr(ref, '/') + 1 : NULL;
    return name ? json_object_get(json_object_get(root, "$defs"), name) : schema;
}

static size_t length_in_characters(const char *text) {
    size_t n = 0;
    for (; *text; text++) {
        n += ((unsigned char)*text & 0xC0) != 0x80;
    }
    return n;
}

static bool is_type(const json_t *v, const char *type) {
    return !type || (!strcmp(type, "string") && json_is_string(v)) ||
           (!strcmp(type, "integer") && json_is_integer(v)) ||
           (!strcmp(type, "number") && json_is_number(v)) ||
           (!strcmp(type, "boolean") && json_is_boolean(v)) ||
           (!strcmp(type, "null") && json_is_null(v)) ||
           (!strcmp(type, "object") && json_is_object(v)) ||
           (!strcmp(type, "array") && json_is_array(v));
}

static bool valid(const json_t *root, const json_t *schema, const json_t *v);

static bool valid_object(const json_t *root, const json_t *schema, const json_t *v) {
    const json_t *properties = json_object_get(schema, "properties"), *one;
    const json_t *more = json_object_get(schema, "additionalProperties");
    const char *key;
    json_t *content;
    size_t i;
    json_object_foreach((json_t *)v, key, content) {
        one = json_object_get(properties, key);
        if (one ? !valid(root, one, content)
                : json_is_false(more) || (properties && !more) ||
                      (json_is_object(more) && !valid(root, more, content))) {
            return false;
        }
    }
    json_array_foreach(json_object_get(schema, "required"), i, content) {
        if (!json_object_get(v, json_string_value(content))) {
            return false;
        }
    }
    return true;
}

static bool within(const json_t *schema, const char *min, const char *max, size_t n) {
    const json_t *low = json_object_get(schema, min), *high = json_object_get(schema, max);
    return (json_int_t)n >= json_integer_value(low) &&
           (!high || (json_int_t)n <= json_integer_value(high));
}

static bool valid_list(const json_t *root, const json_t *schema, const json_t *v) {
    const json_t *items = json_object_get(schema, "items");
    for (size_t i = 0; items && i < json_array_size(v); i++) {
        if (!valid(root, items, json_array_get(v, i))) {
            return false;
        }
    }
    return within(schema, "minItems", "maxItems", json_array_size(v));
}

// A plain reading of the schemas above, on its own.
static bool valid(const json_t *root, const json_t *schema, const json_t *v) {
    schema = target(root, schema);
    const json_t *any = json_object_get(schema, "anyOf"),
                 *constant = json_object_get(schema, "const");
    const json_t *list = json_object_get(schema, "enum"), *type = json_object_get(schema, "type");
    bool found = !any && !list;
    for (size_t i = 0; i < json_array_size(any); i++) {
        found |= valid(root, json_array_get(any, i), v);
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        found |= json_equal((json_t *)json_array_get(list, i), (json_t *)v);
    }
    bool typed = json_is_array(type) ? false : is_type(v, json_string_value(type));
    for (size_t i = 0; i < json_array_size(type); i++) {
        typed |= is_type(v, json_string_value(json_array_get(type, i)));
    }
    return found && typed && (!constant || json_equal((json_t *)constant, (json_t *)v)) &&
           (!json_is_object(v) || valid_object(root, schema, v)) &&
           (!json_is_array(v) || valid_list(root, schema, v)) &&
           (!json_is_string(v) ||
            within(schema, "minLength", "maxLength", length_in_characters(json_string_value(v))));
}

static uint32_t random_state = 1;

static uint32_t draw(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

// A random token of the mask, -1 where it is empty. Tokens that close something are rare among
// thousands, so one in four draws takes the mask's first.
static int32_t draw_token(const uint32_t *mask, int n_tokens) {
    const bool any = draw() % 4 != 0;
    int32_t id = any ? (int32_t)(draw() % (uint32_t)n_tokens) : 0;
    for (int i = 0; i < n_tokens; i++, id = (id + 1) % n_tokens) {
        if (is_allowed(mask, id)) {
            return id;
        }
    }
    return -1;
}

typedef struct outcome {
    char text[MAX_TEXT];
    int n_tokens, n_steps;
    bool is_short;
    double ms, worst_ms; // in lv_matcher_allowed
} outcome;

static double cpu_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

// At most n_left tokens, through the detokeniser as an answer goes. False where no token is left.
static bool walk(const words *w, const lv_grammar *grammar, int n_left, outcome *out) {
    lv_detokenizer *d = NULL;
    const char *text;
    *out = (outcome){0};
    CHECK_OK(lv_detokenizer_open(w->tokenizer, &d));
    CHECK_OK(lv_matcher_start(w->matcher, grammar));
    int32_t id = 0;
    for (; n_left > 0 && !lv_matcher_is_final(w->matcher); n_left--) {
        const uint32_t *mask = NULL;
        const lv_matcher_wish wish = {.n_left = n_left, .closing = draw() % 16 == 0};
        bool is_short;
        const double start = cpu_ms();
        const lv_status status = lv_matcher_allowed(w->matcher, wish, &mask, &is_short);
        const double ms = cpu_ms() - start;
        out->ms += ms;
        out->worst_ms = ms > out->worst_ms ? ms : out->worst_ms;
        out->n_steps++;
        out->is_short |= is_short && !wish.closing;
        id = status == LV_OK ? draw_token(mask, w->n_tokens) : -1;
        if (id < 0 || id == 2) {
            break;
        }
        CHECK_OK(lv_matcher_push(w->matcher, id));
        CHECK_OK(lv_detokenizer_push(d, id, &text));
        strncat(out->text, text, sizeof out->text - strlen(out->text) - 1);
        out->n_tokens++;
    }
    CHECK_OK(lv_detokenizer_flush(d, &text));
    strncat(out->text, text, sizeof out->text - strlen(out->text) - 1);
    lv_detokenizer_free(d);
    return id >= 0;
}

// Every answer that may have enough tokens ends, parses and matches.
static void check_walks(const words *w, const char *name, int n_walks) {
    double ms = 0, worst_ms = 0;
    int n_steps = 0, n_short = 0;
    for (int i = 0; i < N_EXAMPLES + N_WALKED; i++) {
        const char *schema = i < N_EXAMPLES ? examples[i].schema : walked[i - N_EXAMPLES];
        json_t *root = schema ? json_loads(schema, 0, NULL) : json_object();
        lv_grammar *grammar = compile(schema);
        for (int j = 0; j < n_walks; j++) {
            outcome o;
            CHECK(walk(w, grammar, 100 + 50 * (j % 4), &o), "dead end: %s: %s",
                  schema ? schema : "any object", o.text);
            json_t *v = json_loads(o.text, JSON_DECODE_ANY, NULL);
            CHECK(v && valid(root, root, v), "%s: %s", schema ? schema : "any object", o.text);
            json_decref(v);
            ms += o.ms;
            worst_ms = o.worst_ms > worst_ms ? o.worst_ms : worst_ms;
            n_steps += o.n_steps;
            n_short += o.is_short;
        }
        lv_grammar_free(grammar);
        json_decref(root);
    }
    CHECK(n_short > 0);
    printf("%s, %d tokens: %.3f ms a mask, %.2f at worst (%d masks)\n", name, w->n_tokens,
           ms / n_steps, worst_ms, n_steps);
}

// The memory of a matcher is bounded: long answers over many places must go on all the same.
static void check_long(const words *w) {
    lv_grammar *grammar =
        compile("{\"type\":\"array\",\"items\":{\"type\":\"string\",\"maxLength\":5000}}");
    CHECK_OK(lv_matcher_start(w->matcher, grammar));
    CHECK(lv_matcher_push_text(w->matcher, "[\"", 2));
    for (int i = 0; i < 4999; i++) {
        CHECK(lv_matcher_push_text(w->matcher, "\xC3\xA9", 2));
    }
    CHECK(lv_matcher_push_text(w->matcher, "x", 1));
    CHECK(!lv_matcher_push_text(w->matcher, "x", 1), "more than maxLength");
    CHECK(lv_matcher_push_text(w->matcher, "\"]", 2) && lv_matcher_is_final(w->matcher));
    lv_grammar_free(grammar);

    grammar = compile(NULL);
    int depth = 0;
    CHECK_OK(lv_matcher_start(w->matcher, grammar));
    while (depth < 1000 && lv_matcher_push_text(w->matcher, "{\"a\":", 5)) {
        depth++;
    }
    CHECK(depth >= 50 && depth < 200, "%d deep", depth);
    CHECK(lv_matcher_push_text(w->matcher, "1", 1));
    for (; depth > 0; depth--) {
        CHECK(lv_matcher_push_text(w->matcher, "}", 1));
    }
    CHECK(lv_matcher_is_final(w->matcher));
    lv_grammar_free(grammar);
}

// Nobody is let so deep that the only way out, here through five lists, would be too deep.
static void check_way_out(const words *w) {
    lv_grammar *grammar = compile(
        "{\"$defs\":{\"l\":{\"minItems\":1,\"items\":{\"minItems\":1,\"items\":{\"minItems\":1,"
        "\"items\":{\"minItems\":1,\"items\":{\"const\":[1]}}}}}},\"anyOf\":[{\"$ref\":\"#/$defs/"
        "l\"},"
        "{\"properties\":{\"k\":{\"$ref\":\"#\"}},\"required\":[\"k\"]}]}");
    const uint32_t *mask;
    int depth = 0;
    CHECK_OK(lv_matcher_start(w->matcher, grammar));
    while (depth < 1000 && lv_matcher_push_text(w->matcher, "{\"k\":", 5)) {
        CHECK_OK(lv_matcher_allowed(w->matcher, (lv_matcher_wish){0}, &mask, NULL));
        depth++;
    }
    CHECK(depth > 100 && depth < 1000, "%d deep", depth);
    CHECK(lv_matcher_push_text(w->matcher, "[[[[[1]]]]]", 11));
    for (; depth > 0; depth--) {
        CHECK(lv_matcher_push_text(w->matcher, "}", 1));
    }
    CHECK(lv_matcher_is_final(w->matcher));
    lv_grammar_free(grammar);
}

// --- vocabularies without byte pieces -----------------------------------------------------------

// ModelProto.pieces: { piece (1), score (2), type (3: 1 normal, 2 unknown, 3 control) }.
static void add_piece(lv_buffer *model, const char *text, uint8_t type) {
    const uint8_t n = (uint8_t)strlen(text);
    const uint8_t head[] = {0x0A, (uint8_t)(n + 9), 0x0A, n};
    const uint8_t tail[] = {0x15, 0, 0, 0, 0, 0x18, type};
    CHECK_OK(lv_buffer_append(model, head, sizeof head));
    CHECK_OK(lv_buffer_append(model, text, n));
    CHECK_OK(lv_buffer_append(model, tail, sizeof tail));
}

// Printable ASCII from `first` on, two wide characters and bytes that are none.
static words open_plain(int first) {
    char path[] = "/tmp/lv_model_XXXXXX", text[8];
    lv_buffer model = {.max_bytes = 1 << 16};
    add_piece(&model, "<unk>", 2);
    add_piece(&model, "<s>", 3);
    add_piece(&model, "</s>", 3);
    for (int c = first; c < 0x7F; c++) {
        snprintf(text, sizeof text, "%c", c);
        add_piece(&model, c == ' ' ? "\xE2\x96\x81" : text, 1);
    }
    add_piece(&model, "\xC3\xA9", 1);
    add_piece(&model, "a\xE4\xB8\xAD", 1);
    add_piece(&model, "\xE4\xB8", 1);
    add_piece(&model, "\xAD", 1);
    const int fd = mkstemp(path);
    CHECK(fd >= 0 && close(fd) == 0);
    CHECK_OK(lv_file_write_atomic(path, model.data, model.n_bytes));
    const words w = open_words(path);
    unlink(path);
    lv_buffer_free(&model);
    return w;
}

static void check_plain(void) {
    words w = open_plain(' ');
    lv_grammar *wide = compile("{\"const\":\"\xC3\xA9\"}");
    CHECK_STATUS(lv_matcher_start(w.matcher, wide), LV_EUNSUPPORTED);
    lv_grammar *any = compile(NULL);
    for (int i = 0; i < 40; i++) {
        outcome o;
        CHECK(walk(&w, any, 40, &o) && lv_matcher_is_complete(w.matcher), "%s", o.text);
        CHECK(!strstr(o.text, "\xEF\xBF\xBD"), "half a character: %s", o.text);
    }
    close_words(&w);
    w = open_plain('"');
    CHECK_STATUS(lv_matcher_start(w.matcher, any), LV_EUNSUPPORTED);
    close_words(&w);
    lv_grammar_free(wide);
    lv_grammar_free(any);
}

// --- wishes -------------------------------------------------------------------------------------

static void check_wishes(const words *w) {
    lv_grammar *grammar = compile(walked[0]);
    const uint32_t *mask;
    bool is_short;
    CHECK_OK(lv_matcher_start(w->matcher, grammar));
    CHECK(lv_matcher_push_text(w->matcher, "{\"caption\":\"A dog", 17));
    CHECK_OK(lv_matcher_allowed(w->matcher, (lv_matcher_wish){.closing = true}, &mask, NULL));
    for (int32_t id = 0; id < w->n_tokens; id++) {
        if (is_allowed(mask, id)) {
            CHECK_OK(lv_matcher_start(w->matcher, grammar));
            CHECK(lv_matcher_push_text(w->matcher, "{\"caption\":\"A dog", 17));
            CHECK_OK(lv_matcher_push(w->matcher, id));
            CHECK(!lv_matcher_push_text(w->matcher, "x", 1), "token %d does not close", id);
        }
    }
    CHECK_OK(lv_matcher_start(w->matcher, grammar));
    const int shortest = lv_matcher_shortest(w->matcher);
    CHECK(shortest == (int)strlen("{\"caption\":\"\",\"tags\":[],\"count\":0,\"sure\":true}"), "%d",
          shortest);
    CHECK_OK(lv_matcher_allowed(w->matcher, (lv_matcher_wish){0}, &mask, &is_short));
    CHECK(!is_short);
    for (int n = shortest; n < shortest + 40; n++) { // ends in time, however tight
        outcome o;
        CHECK(walk(w, grammar, n, &o) && lv_matcher_is_complete(w->matcher), "%d: %s", n, o.text);
        CHECK(o.n_tokens <= n);
    }
    CHECK_STATUS(lv_matcher_push(w->matcher, -1), LV_EINVAL);
    CHECK_STATUS(lv_matcher_push(w->matcher, w->n_tokens), LV_EINVAL);
    CHECK_STATUS(lv_matcher_push(w->matcher, 2), LV_EINVAL);
    lv_grammar_free(grammar);
}

// --- schemas that are refused -------------------------------------------------------------------

static void refused(const char *schema, lv_status want, const char *naming) {
    lv_grammar *grammar = NULL;
    CHECK_STATUS(lv_grammar_compile(schema, strlen(schema), "s.json", &grammar), want);
    CHECK(!grammar && strstr(lv_error(), naming), "%s: %s, not %s", schema, lv_error(), naming);
    lv_grammar_free(grammar);
}

static void check_refused(void) {
    refused("{\"type\":", LV_EFORMAT, "s.json: not valid JSON");
    refused("[]", LV_EFORMAT, "object");
    refused("{\"type\":\"strin\"}", LV_EFORMAT, "#: type: expected string");
    refused("{\"type\":[\"string\",5]}", LV_EFORMAT, "type");
    refused("{\"properties\":{\"x\":{\"type\":\"string\",\"pattern\":\"a\"}}}", LV_EUNSUPPORTED,
            "#/properties/x: pattern");
    refused("{\"anyOf\":[{\"type\":\"null\"},{\"items\":{\"format\":\"date\"}}]}", LV_EUNSUPPORTED,
            "#/anyOf/1/items: format");
    for (const char *const *key =
             (const char *const[]){"minimum", "not", "allOf", "if", "patternProperties",
                                   "uniqueItems", "prefixItems", "dependentRequired", NULL};
         *key; key++) {
        char schema[64];
        snprintf(schema, sizeof schema, "{\"type\":\"array\",\"%s\":{}}", *key);
        refused(schema, LV_EUNSUPPORTED, *key);
    }
    refused("{\"enum\":[]}", LV_EFORMAT, "enum");
    refused("{\"enum\":[\"a\"],\"maxLength\":1}", LV_EUNSUPPORTED, "maxLength");
    refused("{\"type\":\"string\",\"const\":1}", LV_EUNSUPPORTED, "nothing matches");
    refused("{\"anyOf\":[]}", LV_EFORMAT, "anyOf");
    refused("{\"anyOf\":[{}],\"type\":\"object\"}", LV_EUNSUPPORTED, "type");
    refused("{\"properties\":{\"a\":false}}", LV_EUNSUPPORTED, "#/properties/a");
    refused("{\"properties\":{\"a\":{}},\"required\":[\"b\"]}", LV_EUNSUPPORTED, "\"b\"");
    refused("{\"properties\":{\"a\":{}},\"required\":\"a\"}", LV_EFORMAT, "required");
    refused("{\"properties\":[]}", LV_EFORMAT, "properties");
    refused("{\"minItems\":-1}", LV_EFORMAT, "minItems");
    refused("{\"minItems\":1e2}", LV_EFORMAT, "minItems");
    refused("{\"minItems\":3,\"maxItems\":2}", LV_EUNSUPPORTED, "minItems");
    refused("{\"minLength\":100001}", LV_ELIMIT, "minLength");
    refused("{\"$ref\":\"#/$defs/x\"}", LV_EUNSUPPORTED, "$ref");
    refused("{\"$ref\":\"http://x.org/s.json\"}", LV_EUNSUPPORTED, "$ref");
    refused("{\"$ref\":5}", LV_EUNSUPPORTED, "$ref");
    // Nothing between, or never an end
    refused("{\"$ref\":\"#\"}", LV_EUNSUPPORTED, "back to itself");
    refused("{\"anyOf\":[{\"type\":\"null\"},{\"$ref\":\"#\"}]}", LV_EUNSUPPORTED,
            "back to itself");
    refused("{\"$defs\":{\"a\":{\"$ref\":\"#/$defs/b\"},\"b\":{\"anyOf\":[{\"items\":{\"$ref\":"
            "\"#/$defs/a\"}},{\"$ref\":\"#/$defs/a\"}]}},\"$ref\":\"#/$defs/a\"}",
            LV_EUNSUPPORTED, "back to itself");
    refused("{\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", LV_EUNSUPPORTED,
            "nested");
    refused("{\"items\":{\"$ref\":\"#\"},\"minItems\":1}", LV_EUNSUPPORTED, "nested");
}

// Large and deep ones end in a status, whichever.
static void check_hostile(const words *w) {
    lv_buffer s = {.max_bytes = (size_t)1 << 22};
    char part[64];
    lv_grammar *grammar = NULL;
    CHECK_OK(lv_buffer_append(&s, "{\"enum\":[0", 10));
    for (int i = 0; i < 60000; i++) {
        const int n = snprintf(part, sizeof part, ",\"word %d\"", i);
        CHECK_OK(lv_buffer_append(&s, part, (size_t)n));
    }
    CHECK_OK(lv_buffer_append(&s, "]}", 2));
    CHECK_OK(lv_grammar_compile((char *)s.data, s.n_bytes, "s", &grammar)); // shares prefixes
    if (grammar) {
        CHECK(accepts_bytes(w->matcher, grammar, "\"word 12345\""));
        CHECK(!accepts_bytes(w->matcher, grammar, "\"word 60000\""));
    }
    lv_grammar_free(grammar);

    for (int kind = 0; kind < 3; kind++) {
        lv_buffer_free(&s);
        s.max_bytes = (size_t)1 << 22;
        for (int i = 0; i < 50000; i++) {
            static const char *const starts[] = {"{\"items\":", "{\"anyOf\":[", "["};
            CHECK_OK(lv_buffer_append(&s, starts[kind], strlen(starts[kind])));
        }
        CHECK_STATUS(lv_grammar_compile((char *)s.data, s.n_bytes, "s", &grammar), LV_ELIMIT);
    }

    lv_buffer_free(&s);
    s.max_bytes = (size_t)1 << 22;
    CHECK_OK(lv_buffer_append(&s, "{\"properties\":{\"x\":{}", 21));
    for (int i = 0; i < 500; i++) {
        const int n = snprintf(part, sizeof part, ",\"p%d\":{}", i);
        CHECK_OK(lv_buffer_append(&s, part, (size_t)n));
    }
    CHECK_OK(lv_buffer_append(&s, "}}", 2));
    CHECK_STATUS(lv_grammar_compile((char *)s.data, s.n_bytes, "s", &grammar), LV_ELIMIT);
    lv_buffer_free(&s);

    // Two ways for each bracket: 2^n stacks behind n of them, of which some hundred are kept.
    grammar = compile("{\"anyOf\":[{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}},{\"type\":"
                      "\"array\",\"items\":{\"$ref\":\"#\"}}]}");
    CHECK_OK(lv_matcher_start(w->matcher, grammar));
    int depth = 0;
    while (depth < 40 && lv_matcher_push_text(w->matcher, "[", 1)) {
        depth++;
    }
    CHECK(depth == 40);
    for (; depth > 0; depth--) {
        const uint32_t *mask;
        CHECK_OK(lv_matcher_allowed(w->matcher, (lv_matcher_wish){0}, &mask, NULL));
        CHECK(lv_matcher_push_text(w->matcher, "]", 1));
    }
    CHECK(lv_matcher_is_complete(w->matcher));
    lv_grammar_free(grammar);
}

int main(void) {
    words tiny = open_words(TINY);
    if (!check_n_failed) {
        check_examples(&tiny);
        check_walks(&tiny, "tiny", 40);
        check_long(&tiny);
        check_way_out(&tiny);
        check_plain();
        check_wishes(&tiny);
        check_refused();
        check_hostile(&tiny);
    }
    close_words(&tiny);
    if (access(LLAMA, R_OK) == 0) {
        words llama = open_words(LLAMA);
        check_examples(&llama);
        check_walks(&llama, "LLaMA", 4);
        close_words(&llama);
    } else {
        printf("skipped: no %s\n", LLAMA);
    }
    return check_done();
}
