// JSON from outside: what is refused, and how the getters complain.
#include "core/json.h"
#include "core_util.h"

static lv_status parse(const char *text, json_t **out) {
    return lv_json_parse(text, strlen(text), "name", out);
}

static void test_getters(void) {
    json_t *root;
    CHECK_OK(parse("{\"i\": 7, \"f\": 2.5, \"b\": true, \"s\": \"text\", \"n\": null, \"o\": "
                   "{\"x\": 1}, \"a\": [1, 2]}",
                   &root));
    lv_json at = lv_json_at(root, "file.json"), child;
    int i = -1;
    float f = -1;
    double d = -1;
    bool b = false;
    char s[5] = "";
    CHECK_OK(lv_json_int(&at, "i", 0, 7, &i));
    CHECK(i == 7);
    CHECK_OK(lv_json_int(&at, "absent", 0, 9, &i));
    CHECK_OK(lv_json_int(&at, "n", 0, 9, &i));
    CHECK(i == 7, "an absent key and null keep what was there");
    CHECK_OK(lv_json_float(&at, "f", 0, 3, &f));
    CHECK_OK(lv_json_double(&at, "i", 0, 9, &d));
    CHECK(f == 2.5f && d == 7);
    CHECK_OK(lv_json_bool(&at, "b", &b));
    CHECK(b);
    CHECK_OK(lv_json_string(&at, "s", s, sizeof s));
    CHECK(strcmp(s, "text") == 0);
    CHECK_OK(lv_json_child(&at, "o", &child));
    CHECK(child.object && strcmp(child.where, "file.json: o") == 0, "%s", child.where);
    CHECK_OK(lv_json_int(&child, "x", 0, 9, &i));
    CHECK(i == 1);

    CHECK_STATUS(lv_json_int(&at, "i", 0, 6, &i), LV_EFORMAT);
    CHECK(error_names("file.json", "i", "0 to 6", "7", NULL), "%s", lv_error());
    CHECK_STATUS(lv_json_int(&at, "i", 8, 9, &i), LV_EFORMAT);
    CHECK_STATUS(lv_json_int(&at, "f", 0, 9, &i), LV_EFORMAT);
    CHECK_STATUS(lv_json_int(&at, "s", 0, 9, &i), LV_EFORMAT);
    CHECK_STATUS(lv_json_float(&at, "f", 0, 2, &f), LV_EFORMAT);
    CHECK_STATUS(lv_json_float(&at, "b", 0, 2, &f), LV_EFORMAT);
    CHECK_STATUS(lv_json_bool(&at, "i", &b), LV_EFORMAT);
    CHECK_STATUS(lv_json_string(&at, "s", s, 4), LV_EFORMAT);
    CHECK_STATUS(lv_json_string(&at, "i", s, sizeof s), LV_EFORMAT);
    CHECK_STATUS(lv_json_child(&at, "a", &child), LV_EFORMAT);
    CHECK(error_names("file.json", "a", "an object", "[1,2]", NULL), "%s", lv_error());
    CHECK(i == 1 && f == 2.5f && b && strcmp(s, "text") == 0, "a failure changes nothing");
    json_decref(root);

    CHECK_OK(lv_json_child(&(lv_json){0}, "o", &child));
    CHECK(!child.object && !lv_json_get(&child, "x"));
    CHECK_OK(lv_json_int(&child, "x", 0, 9, &i));
    CHECK(i == 1);
}

static void test_refused(void) {
    static const char *const bad[] = {"",
                                      "[]",
                                      "1",
                                      "null",
                                      "{",
                                      "{\"a\":1",
                                      "{\"a\":NaN}",
                                      "{\"a\":Infinity}",
                                      "{\"a\":1}x",
                                      "{'a':1}",
                                      "{\"a\":01}",
                                      "{\"a\":1,\"a\":2}",
                                      "{\"a\":99999999999999999999}",
                                      "{\"a\":\"\xff\"}",
                                      "{\"a\":1e999}",
                                      "{\"a\":\"\\u0000\"}",
                                      "}",
                                      "{\"a\\",
                                      "\""};
    json_t *root;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_STATUS(parse(bad[i], &root), LV_EFORMAT);
        CHECK(!root && error_names("name", NULL), "%s: %s", bad[i], lv_error());
    }
}

static void test_caps(void) {
    char deep[2 * LV_JSON_MAX_DEPTH + 16];
    json_t *root;
    for (int depth = LV_JSON_MAX_DEPTH - 1; depth <= LV_JSON_MAX_DEPTH; depth++) {
        size_t n = (size_t)depth;
        memcpy(deep, "{\"a\":", 5);
        memset(deep + 5, '[', n);
        memset(deep + 5 + n, ']', n);
        strcpy(deep + 5 + 2 * n, "}");
        CHECK_STATUS(parse(deep, &root), depth < LV_JSON_MAX_DEPTH ? LV_OK : LV_ELIMIT);
        json_decref(root);
    }
    // Brackets in a string are text, also behind an escaped quote.
    memcpy(deep, "{\"a\":\"\\\"", 8);
    memset(deep + 8, '[', LV_JSON_MAX_DEPTH + 1);
    strcpy(deep + 8 + LV_JSON_MAX_DEPTH + 1, "\"}");
    CHECK_OK(parse(deep, &root));
    json_decref(root);
    size_t n = 2 * LV_JSON_MAX_VALUES + 16;
    char *many = malloc(n);
    memset(many, ',', n);
    CHECK_STATUS(lv_json_parse(many, n, "name", &root), LV_ELIMIT);
    free(many);
}

static void test_load(void) {
    json_t *root;
    write_text("a.json", "{\"a\": 1}\n");
    CHECK_OK(lv_json_load(scratch("a.json"), 9, &root));
    json_decref(root);
    CHECK_STATUS(lv_json_load(scratch("a.json"), 8, &root), LV_ELIMIT);
    CHECK_STATUS(lv_json_load(scratch("b.json"), 8, &root), LV_ENOTFOUND);
    write_text("a.json", "{\n\"a\": oh}");
    CHECK_STATUS(lv_json_load(scratch("a.json"), 99, &root), LV_EFORMAT);
    CHECK(error_names("a.json", "line 2", NULL), "%s", lv_error());
}

int main(void) {
    scratch_open();
    test_getters();
    test_refused();
    test_caps();
    test_load();
    return check_done();
}
