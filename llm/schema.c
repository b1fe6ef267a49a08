// JSON schema -> grammar nodes. What is not supported is refused by name and place, never passed
// over.
#include "llm/grammar_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_MIN 100000       // minItems, minLength
#define MAX_NAME_BYTES 256   // of properties beside additionalProperties
#define MAX_RULES 4096       // schemas that some $ref names
#define MAX_PROPERTIES 400   // a matcher keeps 512 places that an answer may have come to
#define MAX_ALTERNATIVES 100 // of anyOf, oneOf
#define MAX_PLACE_BYTES 1024 // of messages

// Where a schema stands, for messages: keys from the root on.
typedef struct place {
    const struct place *up;
    const char *key; // NULL: `index` counts
    size_t index;
} place;

// A schema that $ref names: compiled once, after what names it.
typedef struct rule {
    const json_t *schema;
    const char *pointer; // "#/$defs/x"
    int32_t node;
} rule;

typedef struct compiler {
    lv_grammar *g;
    const json_t *root;
    const char *name;
    rule rules[MAX_RULES];
    int n_rules;
} compiler;

enum { STRING = 1, NUMBER = 2, INTEGER = 4, BOOLEAN = 8, NIL = 16, OBJECT = 32, ARRAY = 64 };

static const struct {
    const char *name;
    int types;
} type_names[] = {{"string", STRING},   {"number", NUMBER}, {"integer", INTEGER}, {"null", NIL},
                  {"boolean", BOOLEAN}, {"object", OBJECT}, {"array", ARRAY}};

static const char *const object_keys[] = {"properties", "required", "additionalProperties", NULL};
static const char *const array_keys[] = {"items", "minItems", "maxItems", NULL};
static const char *const string_keys[] = {"minLength", "maxLength", NULL};

static int32_t value(compiler *c, const json_t *schema, const place *at, int32_t next);

static size_t write_place(const place *at, char *out, size_t n_bytes) {
    if (!at->up) {
        return (size_t)snprintf(out, n_bytes, "%s", at->key);
    }
    size_t n = write_place(at->up, out, n_bytes);
    if (n < n_bytes) {
        n += (size_t)(at->key ? snprintf(out + n, n_bytes - n, "/%s", at->key)
                              : snprintf(out + n, n_bytes - n, "/%zu", at->index));
    }
    return n;
}

// The first failure stays. Gives node 0, as the makers do.
static int32_t refuse(compiler *c, lv_status code, const place *at, const char *what) {
    if (c->g->status == LV_OK) {
        char text[MAX_PLACE_BYTES];
        write_place(at, text, sizeof text);
        c->g->status = lv_fail(code, "%.300s: %s: %s", c->name, text, what);
    }
    return 0;
}

static int32_t refuse_key(compiler *c, lv_status code, const place *at, const char *key,
                          const char *what) {
    char text[MAX_PLACE_BYTES];
    snprintf(text, sizeof text, "%.100s: %s", key, what);
    return refuse(c, code, at, text);
}

static bool listed(const char *const *list, const char *key) {
    while (*list && strcmp(*list, key) != 0) {
        list++;
    }
    return *list != NULL;
}

static bool has_any(const json_t *schema, const char *const *list) {
    while (*list && !json_object_get(schema, *list)) {
        list++;
    }
    return *list != NULL;
}

static bool is_note(const char *key) {
    static const char *const notes[] = {
        "title",      "description", "default",   "examples", "$schema",     "$id", "$comment",
        "deprecated", "readOnly",    "writeOnly", "$defs",    "definitions", NULL};
    return listed(notes, key);
}

// Every key beside `main` (which may be NULL) must be a note or, where `typed`, a type's own.
static bool check_keys(compiler *c, const json_t *schema, const char *main, bool typed,
                       const place *at) {
    static const char *const known[] = {"type", "enum", "const", "anyOf", "oneOf", "$ref", NULL};
    const char *key;
    json_t *unused;
    json_object_foreach((json_t *)schema, key, unused) {
        (void)unused;
        const bool is_type =
            listed(object_keys, key) || listed(array_keys, key) || listed(string_keys, key);
        if (is_note(key) || (main && !strcmp(key, main)) || (typed && is_type) ||
            (!strcmp(key, "type") && (typed || !strcmp(main, "enum") || !strcmp(main, "const")))) {
            continue;
        }
        char what[128];
        snprintf(what, sizeof what, "is not supported beside %s", main ? main : "type");
        refuse_key(c, LV_EUNSUPPORTED, at, key,
                   is_type || listed(known, key) ? what : "this keyword is not supported");
        return false;
    }
    return true;
}

// --- types --------------------------------------------------------------------------------------

static int type_by_name(const json_t *name) {
    const char *text = json_string_value(name);
    for (size_t i = 0; text && i < sizeof type_names / sizeof *type_names; i++) {
        if (!strcmp(text, type_names[i].name)) {
            return type_names[i].types;
        }
    }
    return 0;
}

// A set of types; where none is given, those that the keywords are about; 0: any, or a failure.
static int types_of(compiler *c, const json_t *schema, const place *at) {
    const json_t *type = json_object_get(schema, "type");
    int types = 0;
    for (size_t i = 0; type && i < (json_is_array(type) ? json_array_size(type) : 1); i++) {
        const int one = type_by_name(json_is_array(type) ? json_array_get(type, i) : type);
        if (!one) {
            types = 0;
            break;
        }
        types |= one;
    }
    if (type && !types) {
        refuse_key(c, LV_EFORMAT, at, "type",
                   "expected string, number, integer, boolean, null, object, array or a list of "
                   "them");
    }
    if (!type) {
        types |= has_any(schema, object_keys) ? OBJECT : 0;
        types |= has_any(schema, array_keys) ? ARRAY : 0;
        types |= has_any(schema, string_keys) ? STRING : 0;
    }
    return types;
}

static int types_of_value(const json_t *v) {
    switch (json_typeof(v)) {
    case JSON_STRING:
        return STRING;
    case JSON_INTEGER:
        return NUMBER | INTEGER;
    case JSON_REAL:
        return NUMBER;
    case JSON_TRUE:
    case JSON_FALSE:
        return BOOLEAN;
    case JSON_NULL:
        return NIL;
    case JSON_OBJECT:
        return OBJECT;
    case JSON_ARRAY:
        return ARRAY;
    }
    return 0;
}

// min and max of lengths: non-negative integers, min <= max.
static bool bounds(compiler *c, const json_t *schema, const char *min_key, const char *max_key,
                   const place *at, int32_t *out_min, int32_t *out_max) {
    const json_t *min = json_object_get(schema, min_key), *max = json_object_get(schema, max_key);
    const json_int_t low = min ? json_integer_value(min) : 0,
                     high = max ? json_integer_value(max) : LV_GRAMMAR_ENDLESS;
    if ((min && (!json_is_integer(min) || low < 0)) ||
        (max && (!json_is_integer(max) || high < 0))) {
        refuse_key(c, LV_EFORMAT, at, min && (!json_is_integer(min) || low < 0) ? min_key : max_key,
                   "expected a whole number from 0 on");
    } else if (low > high) {
        refuse_key(c, LV_EUNSUPPORTED, at, min_key, "is above its maximum: nothing matches");
    } else if (low > MAX_MIN) {
        refuse_key(c, LV_ELIMIT, at, min_key, "is above 100000");
    }
    *out_min = (int32_t)low;
    *out_max = high < LV_GRAMMAR_ENDLESS ? (int32_t)high : LV_GRAMMAR_ENDLESS;
    return c->g->status == LV_OK;
}

// --- constants ----------------------------------------------------------------------------------

// Compact JSON text of a value, which reads back as the same value. NULL without memory.
static char *dump(const json_t *v) {
    const size_t flags = JSON_COMPACT | JSON_ENCODE_ANY;
    char *text = json_dumps(v, flags | JSON_REAL_PRECISION(15));
    json_t *back = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
    const bool same = back && json_equal(back, (json_t *)v);
    json_decref(back);
    if (!same) {
        free(text);
        text = json_dumps(v, flags | JSON_REAL_PRECISION(17));
    }
    return text;
}

static void free_texts(lv_grammar_text *texts, size_t n) {
    for (size_t i = 0; i < n; i++) {
        free(texts[i].text);
    }
    free(texts);
}

// values[n]; those of other types than the schema's are left out.
static int32_t constants(compiler *c, const json_t *schema, const json_t *const *values, size_t n,
                         const place *at, int32_t next) {
    const int types = types_of(c, schema, at);
    size_t n_texts = 0;
    int32_t node = 0;
    lv_grammar_text *texts = calloc(n + 1, sizeof *texts);
    for (size_t i = 0; texts && i < n && c->g->status == LV_OK; i++) {
        if (types && !(types & types_of_value(values[i]))) {
            continue;
        }
        char *text = dump(values[i]);
        if (!text) {
            refuse(c, LV_ENOMEM, at, "out of memory");
            break;
        }
        texts[n_texts++] = (lv_grammar_text){text, strlen(text)};
    }
    if (!texts) {
        refuse(c, LV_ENOMEM, at, "out of memory");
    } else if (n_texts == 0) {
        refuse(c, LV_EUNSUPPORTED, at, "no value is of the schema's type: nothing matches");
    } else {
        node = lv_node_one_of(c->g, texts, n_texts, next);
    }
    free_texts(texts, n_texts);
    return node;
}

static int32_t one_of_list(compiler *c, const json_t *schema, const json_t *list, const place *at,
                           int32_t next) {
    const size_t n = json_array_size(list);
    const json_t **values = calloc(n + 1, sizeof *values);
    if (n == 0 || !values) {
        free(values);
        return n ? refuse(c, LV_ENOMEM, at, "out of memory")
                 : refuse_key(c, LV_EFORMAT, at, "enum", "expected a list of at least one value");
    }
    for (size_t i = 0; i < n; i++) {
        values[i] = json_array_get(list, i);
    }
    const int32_t node = constants(c, schema, values, n, at, next);
    free(values);
    return node;
}

// --- objects and arrays -------------------------------------------------------------------------

static bool is_required(const json_t *required, const char *key) {
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        if (name && !strcmp(name, key)) {
            return true;
        }
    }
    return false;
}

static bool check_required(compiler *c, const json_t *properties, const json_t *required,
                           const place *at) {
    if (required && !json_is_array(required)) {
        refuse_key(c, LV_EFORMAT, at, "required", "expected a list of names");
    }
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        if (!name) {
            refuse_key(c, LV_EFORMAT, at, "required", "expected a list of names");
        } else if (!json_object_get(properties, name)) {
            char what[256];
            snprintf(what, sizeof what, "\"%.100s\" is not among the properties", name);
            refuse_key(c, LV_EUNSUPPORTED, at, "required", what);
        }
    }
    return c->g->status == LV_OK;
}

// The listed names as they would be written plainly, for lv_node_other_name.
static int32_t other_name(compiler *c, const json_t *properties, const place *at, int32_t next) {
    lv_grammar_text *names = calloc(json_object_size(properties) + 1, sizeof *names);
    size_t n = 0;
    const char *key;
    json_t *unused;
    int32_t node = 0;
    if (!names) {
        return refuse(c, LV_ENOMEM, at, "out of memory");
    }
    json_object_foreach((json_t *)properties, key, unused) {
        (void)unused;
        names[n++] = (lv_grammar_text){(char *)key, strlen(key)};
        if (strlen(key) > MAX_NAME_BYTES) {
            refuse(c, LV_ELIMIT, at, "a name of more than 256 bytes beside additionalProperties");
        }
    }
    if (c->g->status == LV_OK) {
        node = lv_node_other_name(c->g, names, n, next);
    }
    free(names);
    return node;
}

// The rule of one member that properties does not list; 0 where there may be none.
static int32_t other_member(compiler *c, const json_t *schema, const place *at) {
    const json_t *more = json_object_get(schema, "additionalProperties");
    const json_t *properties = json_object_get(schema, "properties");
    const place inside = {at, "additionalProperties", 0};
    if (json_is_false(more) || (!more && properties)) {
        return 0;
    }
    const int32_t content = more ? value(c, more, &inside, 0) : lv_node_any_value(c->g, 0);
    const int32_t colon = lv_node_punctuation(c->g, ':', content);
    if (json_object_size(properties) == 0) {
        return lv_node_string(c->g, 0, LV_GRAMMAR_ENDLESS, colon);
    }
    return lv_node_byte(c->g, '"', '"', other_name(c, properties, at, colon));
}

// "name":value, then next.
static int32_t member(compiler *c, const char *key, const json_t *schema, const place *at,
                      int32_t next) {
    json_t *name = json_string(key);
    char *text = name ? json_dumps(name, JSON_ENCODE_ANY) : NULL;
    json_decref(name);
    if (!text) {
        return refuse(c, LV_ENOMEM, at, "out of memory");
    }
    const int32_t content = lv_node_punctuation(c->g, ':', value(c, schema, at, next));
    const int32_t node = lv_node_text(c->g, text, strlen(text), content);
    free(text);
    return node;
}

// Back to front: what may follow where no member stands before (`fresh`), and where one does.
static int32_t object(compiler *c, const json_t *schema, const place *at, int32_t next) {
    const json_t *properties = json_object_get(schema, "properties");
    const json_t *required = json_object_get(schema, "required");
    const size_t n = json_object_size(properties);
    if (properties && !json_is_object(properties)) {
        return refuse_key(c, LV_EFORMAT, at, "properties", "expected an object");
    }
    if (n > MAX_PROPERTIES) {
        return refuse_key(c, LV_ELIMIT, at, "properties", "more than 400");
    }
    if (!check_required(c, properties, required, at)) {
        return 0;
    }
    const int32_t other = other_member(c, schema, at);
    const int32_t close = lv_node_byte(c->g, '}', '}', next);
    int32_t fresh = other ? lv_node_members(c->g, other, true, close) : close;
    int32_t after = other ? lv_node_members(c->g, other, false, close) : close;
    const char **keys = calloc(n + 1, sizeof *keys);
    const char *key;
    json_t *unused;
    size_t i = 0;
    if (!keys) {
        return refuse(c, LV_ENOMEM, at, "out of memory");
    }
    json_object_foreach((json_t *)properties, key, unused) {
        (void)unused;
        keys[i++] = key;
    }
    const place list = {at, "properties", 0};
    while (i-- > 0 && c->g->status == LV_OK) {
        const place inside = {&list, keys[i], 0};
        const bool must = is_required(required, keys[i]);
        const int32_t this =
            member(c, keys[i], json_object_get(properties, keys[i]), &inside, after);
        const int32_t with_comma = lv_node_punctuation(c->g, ',', this);
        fresh = must ? this : lv_node_split(c->g, this, fresh);
        after = must ? with_comma : lv_node_split(c->g, with_comma, after);
    }
    free(keys);
    return lv_node_byte(c->g, '{', '{', fresh);
}

static int32_t array(compiler *c, const json_t *schema, const place *at, int32_t next) {
    const json_t *items = json_object_get(schema, "items");
    const place inside = {at, "items", 0};
    int32_t min, max;
    if (!bounds(c, schema, "minItems", "maxItems", at, &min, &max)) {
        return 0;
    }
    const int32_t item = items ? value(c, items, &inside, 0) : lv_node_any_value(c->g, 0);
    return lv_node_array(c->g, item, min, max, next);
}

static int32_t either(compiler *c, int32_t *all, int32_t node) {
    *all = *all ? lv_node_split(c->g, node, *all) : node;
    return *all;
}

static int32_t typed(compiler *c, const json_t *schema, const place *at, int32_t next) {
    int32_t all = 0, min, max;
    if (!check_keys(c, schema, NULL, true, at)) {
        return 0;
    }
    const int types = types_of(c, schema, at);
    if (types == 0) {
        return lv_node_any_value(c->g, next);
    }
    if ((types & STRING) && bounds(c, schema, "minLength", "maxLength", at, &min, &max)) {
        either(c, &all, lv_node_string(c->g, min, max, next));
    }
    if (types & (NUMBER | INTEGER)) {
        either(c, &all, lv_node_number(c->g, !(types & NUMBER), next));
    }
    if (types & BOOLEAN) {
        either(c, &all, lv_node_text(c->g, "true", 4, next));
        either(c, &all, lv_node_text(c->g, "false", 5, next));
    }
    if (types & NIL) {
        either(c, &all, lv_node_text(c->g, "null", 4, next));
    }
    if (types & OBJECT) {
        either(c, &all, object(c, schema, at, next));
    }
    if (types & ARRAY) {
        either(c, &all, array(c, schema, at, next));
    }
    return all;
}

// --- references and alternatives ----------------------------------------------------------------

// Follows "#/a/b" (RFC 6901, "~1" is '/', "~0" is '~') from the root; NULL where it leads nowhere.
static const json_t *follow(const json_t *root, const char *pointer) {
    const json_t *at = root;
    if (*pointer++ != '#') {
        return NULL;
    }
    while (at && *pointer == '/') {
        char key[512];
        size_t n = 0;
        for (pointer++; *pointer && *pointer != '/' && n + 1 < sizeof key; pointer++) {
            const bool escaped = *pointer == '~' && (pointer[1] == '0' || pointer[1] == '1');
            key[n++] = !escaped ? *pointer : *++pointer == '1' ? '/' : '~';
        }
        key[n] = 0;
        char *end;
        at = json_is_array(at) ? json_array_get(at, strtoul(key, &end, 10))
                               : json_object_get(at, key);
    }
    return *pointer ? NULL : at;
}

static int32_t reference(compiler *c, const char *pointer, const place *at, int32_t next) {
    const json_t *target = pointer ? follow(c->root, pointer) : NULL;
    if (!target) {
        return refuse_key(c, LV_EUNSUPPORTED, at, "$ref",
                          "leads to no schema of this file (such as #/$defs/NAME)");
    }
    int i = 0;
    while (i < c->n_rules && c->rules[i].schema != target) {
        i++;
    }
    if (i == MAX_RULES) {
        return refuse_key(c, LV_ELIMIT, at, "$ref", "more than 4096 schemas are referred to");
    }
    if (i == c->n_rules) {
        c->rules[c->n_rules++] = (rule){target, pointer, lv_node_reserve(c->g)};
    }
    return lv_node_call(c->g, c->rules[i].node, next);
}

static int32_t alternatives(compiler *c, const json_t *schema, const char *key, const place *at,
                            int32_t next) {
    const json_t *list = json_object_get(schema, key);
    const place listed_at = {at, key, 0};
    int32_t all = 0;
    if (json_array_size(list) == 0) {
        return refuse_key(c, LV_EFORMAT, at, key, "expected a list of at least one schema");
    }
    if (json_array_size(list) > MAX_ALTERNATIVES) {
        return refuse_key(c, LV_ELIMIT, at, key, "more than 100 alternatives");
    }
    for (size_t i = json_array_size(list); i-- > 0 && c->g->status == LV_OK;) {
        const place inside = {&listed_at, NULL, i};
        either(c, &all, value(c, json_array_get(list, i), &inside, next));
    }
    return all;
}

static int32_t value(compiler *c, const json_t *schema, const place *at, int32_t next) {
    if (c->g->status != LV_OK) {
        return 0;
    }
    if (json_is_true(schema)) {
        return lv_node_any_value(c->g, next);
    }
    if (!json_is_object(schema)) {
        return refuse(c, json_is_false(schema) ? LV_EUNSUPPORTED : LV_EFORMAT, at,
                      "expected a schema: an object or true");
    }
    static const char *const forms[] = {"$ref", "anyOf", "oneOf", "enum", "const"};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        const json_t *content = json_object_get(schema, forms[i]);
        if (!content) {
            continue;
        }
        if (!check_keys(c, schema, forms[i], false, at)) {
            return 0;
        }
        switch (forms[i][0]) {
        case '$':
            return reference(c, json_string_value(content), at, next);
        case 'c':
            return constants(c, schema, &content, 1, at, next);
        case 'e':
            return one_of_list(c, schema, content, at, next);
        default:
            return alternatives(c, schema, forms[i], at, next);
        }
    }
    return typed(c, schema, at, next);
}

lv_status lv_schema_compile(lv_grammar *g, const json_t *schema, const char *name) {
    compiler *c = calloc(1, sizeof *c);
    if (!c) {
        return lv_fail(LV_ENOMEM, "out of memory for a grammar");
    }
    *c = (compiler){.g = g, .root = schema, .name = name};
    const place top = {NULL, "#", 0};
    g->start = value(c, schema, &top, 0);
    for (int i = 0; i < c->n_rules; i++) { // the list grows meanwhile
        const place at = {NULL, c->rules[i].pointer, 0};
        lv_node_fill(g, c->rules[i].node, value(c, c->rules[i].schema, &at, 0));
    }
    free(c);
    return g->status;
}
