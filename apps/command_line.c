#include "apps/command_line.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/config.h"
#include "core/tensor.h"

// --- values

lv_status take_flag(const option_spec *spec, const char *text, void *field) {
    (void)spec, (void)text;
    *(bool *)field = true;
    return LV_OK;
}

lv_status take_text(const option_spec *spec, const char *text, void *field) {
    (void)spec;
    *(const char **)field = text;
    return LV_OK;
}

lv_status take_name(const option_spec *spec, const char *text, void *field) {
    return *text ? take_text(spec, text, field)
                 : lv_fail(LV_EINVAL, "--%s: the %s is empty", spec->name, spec->value);
}

// The units stand for powers of 1024.
static lv_status parse_number(const option_spec *spec, const char *text, bool whole,
                              const char *units, double *out) {
    char *end = NULL;
    double value = strtod(text, &end);
    const char *unit = end != text && *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    if (unit) {
        value = ldexp(value, 10 * (int)(unit - units + 1));
        end++;
    }
    if (end == text || *end || strpbrk(text, "xX \t") || !isfinite(value) || value < spec->min ||
        value > spec->max || (whole && value != floor(value))) {
        return lv_fail(LV_EINVAL, "--%s %s: expected a %snumber from %.10g to %.10g%s", spec->name,
                       text, whole ? "whole " : "", spec->min, spec->max,
                       *units ? "; K, M and G are understood, as in 500M" : "");
    }
    *out = value;
    return LV_OK;
}

lv_status take_int(const option_spec *spec, const char *text, void *field) {
    double value = 0;
    LV_TRY(parse_number(spec, text, true, "", &value));
    *(int *)field = (int)value;
    return LV_OK;
}

lv_status take_float(const option_spec *spec, const char *text, void *field) {
    double value = 0;
    LV_TRY(parse_number(spec, text, false, "", &value));
    *(float *)field = (float)value;
    return LV_OK;
}

lv_status take_double(const option_spec *spec, const char *text, void *field) {
    return parse_number(spec, text, false, "", field);
}

lv_status take_size(const option_spec *spec, const char *text, void *field) {
    double value = 0;
    LV_TRY(parse_number(spec, text, true, "KMG", &value));
    *(size_t *)field = (size_t)value;
    return LV_OK;
}

lv_status take_device(const option_spec *spec, const char *text, void *field) {
    const char *number = strncmp(text, "cuda:", 5) ? "" : text + 5;
    const size_t n_digits = strspn(number, "0123456789");
    if (strcmp(text, "auto") && strcmp(text, "cpu") && strcmp(text, "cuda") &&
        (n_digits < 1 || n_digits > 3 || number[n_digits])) {
        return lv_fail(LV_EINVAL, "--%s %s: expected auto, cpu, cuda or cuda:N", spec->name, text);
    }
    return take_text(spec, text, field);
}

// The factor that is not given is left 0, which means as the model or the session's length says.
lv_status take_rope(const option_spec *spec, const char *text, void *field) {
    static const struct {
        const char *name;
        lv_rope_type type;
    } types[] = {{"linear", LV_ROPE_LINEAR}, {"dynamic", LV_ROPE_DYNAMIC}, {"yarn", LV_ROPE_YARN}};
    const size_t n = strcspn(text, ":");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strlen(types[i].name) != n || strncmp(types[i].name, text, n) != 0) {
            continue;
        }
        char *end = NULL;
        const float factor = text[n] ? strtof(text + n + 1, &end) : 0;
        if (!text[n] || (!*end && factor >= 1 && factor <= 1024)) {
            *(lv_rope_config *)field = (lv_rope_config){.type = types[i].type, .factor = factor};
            return LV_OK;
        }
    }
    return lv_fail(LV_EINVAL,
                   "--%s %s: expected dynamic, linear or yarn, or with a factor from 1 to 1024 as "
                   "in linear:2",
                   spec->name, text);
}

// LMDeploy's numbers: how many bits a value of the KV cache has, 0 being the device's own choice.
lv_status take_quant_policy(const option_spec *spec, const char *text, void *field) {
    if (strcmp(text, "0") != 0 && strcmp(text, "8") != 0) {
        return lv_fail(LV_EINVAL, "--%s %s: expected 0 or 8", spec->name, text);
    }
    *(lv_dtype *)field = *text == '8' ? LV_I8 : LV_NONE;
    return LV_OK;
}

// --- parsing

// Edits (insert, delete, replace) that turn one name into the other.
static int distance(const char *a, const char *b) {
    enum { LONGEST = 40 };
    size_t n = strlen(b);
    int row[LONGEST + 1];
    if (n > LONGEST) {
        return LONGEST;
    }
    for (size_t j = 0; j <= n; j++) {
        row[j] = (int)j;
    }
    for (size_t i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= n; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            best = best < row[j] + 1 ? best : row[j] + 1;
            row[j] = best < row[j - 1] + 1 ? best : row[j - 1] + 1;
        }
    }
    return row[n];
}

static lv_status fail_unknown(const command_line *line, const char *name, size_t n_bytes) {
    char given[64];
    snprintf(given, sizeof given, "%.*s", (int)n_bytes, name);
    const option_spec *best = NULL;
    int best_distance = (int)strlen(given) / 3 + 2;
    for (const option_spec *spec = line->specs; spec < line->specs + line->n_specs; spec++) {
        int edits = strncmp(spec->name, given, strlen(given)) ? distance(given, spec->name) : 0;
        if (edits < best_distance) {
            best_distance = edits;
            best = spec;
        }
    }
    if (best) {
        return lv_fail(LV_EINVAL, "--%s: no such option; did you mean --%s?", given, best->name);
    }
    return lv_fail(LV_EINVAL, "--%s: no such option; %s --help lists them", given, line->program);
}

// Where the parser stands.
typedef struct command_words {
    char **next, **end;
} command_words;

static lv_status parse_long(const command_line *line, const char *name, command_words *words,
                            char *options) {
    const size_t n = strcspn(name, "=");
    for (const option_spec *spec = line->specs; spec < line->specs + line->n_specs; spec++) {
        if (strlen(spec->name) != n || strncmp(spec->name, name, n) != 0) {
            continue;
        }
        const char *value = name[n] ? name + n + 1 : NULL;
        if (!spec->value && value) {
            return lv_fail(LV_EINVAL, "--%s takes no value", spec->name);
        }
        if (spec->value && !value) {
            if (words->next == words->end) {
                return lv_fail(LV_EINVAL, "--%s wants %s after it", spec->name, spec->value);
            }
            value = *words->next++;
        }
        return spec->take(spec, value, options + spec->offset);
    }
    return fail_unknown(line, name, n);
}

static lv_status parse_short(const command_line *line, const char *letters, command_words *words,
                             char *options) {
    for (const char *at = letters; *at; at++) {
        const option_spec *spec = line->specs, *end = spec + line->n_specs;
        while (spec < end && spec->letter != *at) {
            spec++;
        }
        if (spec == end) {
            return lv_fail(LV_EINVAL, "-%c: no such option; %s --help lists them", *at,
                           line->program);
        }
        if (spec->value) {
            if (!at[1] && words->next == words->end) {
                return lv_fail(LV_EINVAL, "-%c wants %s after it", *at, spec->value);
            }
            return spec->take(spec, at[1] ? at + 1 : *words->next++, options + spec->offset);
        }
        LV_TRY(spec->take(spec, NULL, options + spec->offset));
    }
    return LV_OK;
}

lv_status command_line_parse(const command_line *line, int argc, char **argv, void *options) {
    command_words words = {argv + (argc > 0), argv + argc};
    bool only_operands = false;
    while (words.next < words.end) {
        const char *word = *words.next++;
        if (only_operands || word[0] != '-' || !word[1]) {
            if (!line->take_operand) {
                return lv_fail(LV_EINVAL, "%s: no such option; %s --help lists them", word,
                               line->program);
            }
            LV_TRY(line->take_operand(NULL, word, options));
        } else if (!strcmp(word, "--")) {
            only_operands = true;
        } else if (word[1] == '-') {
            LV_TRY(parse_long(line, word + 2, &words, options));
        } else {
            LV_TRY(parse_short(line, word + 1, &words, options));
        }
    }
    return LV_OK;
}

lv_status command_line_check(const command_line *line, const usage_rule *rules, size_t n_rules) {
    for (size_t i = 0; i < n_rules; i++) {
        if (rules[i].broken) {
            return lv_fail(LV_EINVAL, "%s; %s --help says more", rules[i].text, line->program);
        }
    }
    return LV_OK;
}

// --- help

static void print_option(const option_spec *spec) {
    enum { WIDTH = 28 };
    char names[64];
    snprintf(names, sizeof names, "%c%c%c --%s%s%s", spec->letter ? '-' : ' ',
             spec->letter ? spec->letter : ' ', spec->letter ? ',' : ' ', spec->name,
             spec->value ? " " : "", spec->value ? spec->value : "");
    const bool fits = strlen(names) <= WIDTH;
    if (!fits) {
        printf("  %s\n", names);
    }
    printf("  %-*s  ", WIDTH, fits ? names : "");
    for (const char *at = spec->help; *at; at++) {
        putchar(*at);
        if (*at == '\n') {
            printf("%*s", WIDTH + 4, "");
        }
    }
    putchar('\n');
}

void command_line_help(const command_line *line) {
    const bool bold = isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
    const char *on = bold ? "\033[1m" : "", *off = bold ? "\033[0m" : "";
    printf("%s%s%s - %s\n\n%susage:%s %s %s\n\n%s", on, line->program, off, line->purpose, on, off,
           line->program, line->usage, line->about);
    for (const option_spec *spec = line->specs; spec < line->specs + line->n_specs; spec++) {
        if (spec->group) {
            printf("\n%s%s%s\n", on, spec->group, off);
        }
        print_option(spec);
    }
    for (int i = 0; i < line->n_notes; i++) {
        printf("\n%s%s%s\n%s", on, line->notes[i].title, off, line->notes[i].text);
    }
}
