// Rotary frequencies against tests/golden/rope_tables.py, and what is refused.
#include "tests/check.h"

#include <math.h>

#include "core/files.h"
#include "llm/llm.h"

// The library's powf may differ from the rounded value by the last bit.
#define TOLERANCE 1.2e-7

static lv_text_config config_for(const char *name, int head_dim, float theta, int trained) {
    lv_text_config c = {.head_dim = head_dim, .max_position = trained};
    c.rope = (lv_rope_config){.theta = theta, .factor = 1, .original_max_position = trained};
    if (strcmp(name, "linear4") == 0) {
        c.rope.type = LV_ROPE_LINEAR;
        c.rope.factor = 4;
    } else if (strcmp(name, "dynamic2") == 0) {
        c.rope.type = LV_ROPE_DYNAMIC;
        c.rope.factor = 2;
    } else if (strcmp(name, "yarn4") == 0) {
        c.rope.type = LV_ROPE_YARN;
        c.rope.factor = 4;
        c.max_position = 4 * trained;
    } else if (strcmp(name, "llama3") == 0) {
        c.rope = (lv_rope_config){.type = LV_ROPE_LLAMA3,
                                  .theta = theta,
                                  .factor = 8,
                                  .original_max_position = 8192,
                                  .low_freq_factor = 1,
                                  .high_freq_factor = 4};
    }
    return c;
}

static void check_line(char *line) {
    const char *name = strsep(&line, "\t");
    int head_dim = atoi(strsep(&line, "\t"));
    float theta = strtof(strsep(&line, "\t"), NULL);
    int trained = atoi(strsep(&line, "\t")), limit = atoi(strsep(&line, "\t"));
    float want_scale = strtof(strsep(&line, "\t"), NULL);
    lv_text_config config = config_for(name, head_dim, theta, trained);
    const lv_rope_config yarn = {.type = LV_ROPE_YARN}; // its numbers follow from the limit
    bool by_option = strstr(name, "by option") != NULL;
    float got[256], scale;
    CHECK_OK(lv_rope_frequencies(&config, by_option ? &yarn : NULL, limit, got, &scale));
    CHECK(fabsf(scale - want_scale) < 1e-7f, "%s: factor %.8f, wanted %.8f", name, (double)scale,
          (double)want_scale);
    for (int i = 0; i < head_dim / 2; i++) {
        const char *field = strsep(&line, "\t");
        double want = field ? strtod(field, NULL) : NAN;
        CHECK(fabs(got[i] - want) <= TOLERANCE * want, "%s %d to %d, frequency %d: %a, wanted %a",
              name, trained, limit, i, (double)got[i], want);
    }
}

static void test_refusals(void) {
    lv_text_config c = config_for("plain", 128, 10000, 4096);
    float freq[64], scale;
    CHECK_STATUS(lv_rope_frequencies(&c, NULL, 0, freq, &scale), LV_EINVAL);
    c.rope.theta = 0;
    CHECK_STATUS(lv_rope_frequencies(&c, NULL, 10, freq, &scale), LV_EINVAL);
    c.rope = (lv_rope_config){.type = LV_ROPE_LLAMA3, .theta = 10000, .factor = 8};
    CHECK_STATUS(lv_rope_frequencies(&c, NULL, 10, freq, &scale), LV_EINVAL);
    c = config_for("plain", 2, 10000, 4096);
    CHECK_STATUS(lv_rope_frequencies(&c, NULL, 10, freq, &scale), LV_EINVAL);
}

int main(void) {
    lv_buffer file = {0};
    int n_lines = 0;
    CHECK_OK(lv_file_read(LV_SOURCE_DIR "/tests/data/rope_tables.tsv", 1 << 20, &file));
    char *rest = (char *)file.data, *line;
    while ((line = strsep(&rest, "\n")) && *line) {
        check_line(line);
        n_lines++;
    }
    CHECK(n_lines == 21, "%d lines", n_lines);
    lv_buffer_free(&file);
    test_refusals();
    return check_done();
}
