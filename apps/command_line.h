// The command line of a program: one table says what every option is called, means and takes.
#ifndef LV_APPS_COMMAND_LINE_H
#define LV_APPS_COMMAND_LINE_H

#include <stdbool.h>
#include <stddef.h>

#include "core/status.h"

typedef struct option_spec option_spec;

// Stores `text`, NULL for a flag, in the option's field; LV_EINVAL, naming option, text and what
// was expected, where it cannot.
typedef lv_status option_take(const option_spec *spec, const char *text, void *field);

struct option_spec {
    const char *group; // opens a group in the help
    char letter;       // 0: none
    const char *name;
    const char *value; // what it takes, NULL for a flag
    option_take *take;
    size_t offset; // of its field in the program's options
    double min, max;
    const char *help; // further lines after \n
};

typedef struct help_note {
    const char *title, *text;
} help_note;

typedef struct command_line {
    const char *program, *purpose;
    const char *usage; // what follows the program's name
    const char *about; // whole lines, as the notes' texts
    const option_spec *specs;
    int n_specs;
    option_take *take_operand; // takes what is no option, into the options; NULL: there is none
    const help_note *notes;    // behind the options in the help
    int n_notes;
} command_line;

// "--name value", "--name=value", "-n value", "-nvalue", flags in a row ("-qv"), operands in
// between and after "--". *options borrows from argv. LV_EINVAL says what is wrong.
lv_status command_line_parse(const command_line *line, int argc, char **argv,
                             void *options) LV_MUST_CHECK;
void command_line_help(const command_line *line); // to standard output

// What no option alone can see.
typedef struct usage_rule {
    bool broken;
    const char *text;
} usage_rule;

// LV_EINVAL says the first broken rule.
lv_status command_line_check(const command_line *line, const usage_rule *rules,
                             size_t n_rules) LV_MUST_CHECK;

// --- what options take, and the type of their fields

option_take take_flag;         // bool
option_take take_text;         // const char *, borrowed
option_take take_name;         // const char *, not empty
option_take take_int;          // int in [min, max]
option_take take_float;        // float in [min, max]
option_take take_double;       // double in [min, max]
option_take take_size;         // size_t in [min, max], also as 500M or 8G
option_take take_device;       // const char *: auto, cpu, cuda, cuda:N
option_take take_rope;         // lv_rope_config: dynamic, linear:2, yarn:4
option_take take_quant_policy; // lv_dtype of keys and values

#define OPTION_SIZE_TOP 1e15 // more than any machine has

// --- rows that programs share, for the fields of their struct `type`

#define OPTION_ROW(...)                                                                            \
    { __VA_ARGS__ }

// member: has device, tp and n_threads
#define DEVICE_OPTIONS(type, member)                                                               \
    OPTION_ROW(NULL, 0, "device", "DEVICE", take_device, offsetof(type, member.device), 0, 0,      \
               "auto, cpu, cuda or cuda:N"),                                                       \
        OPTION_ROW(NULL, 0, "tp", "N", take_int, offsetof(type, member.tp), 1, 8,                  \
                   "tensor parallelism: N GPUs from that one on hold the model together"),         \
        OPTION_ROW(NULL, 0, "threads", "N", take_int, offsetof(type, member.n_threads), 1, 1024,   \
                   "CPU threads (default: all)")

// member: has int4_weights and int8_head
#define WEIGHT_OPTIONS(type, member)                                                               \
    OPTION_ROW(NULL, 0, "quantize-weights", NULL, take_flag, offsetof(type, member.int4_weights),  \
               0, 0, "round the decoder's weights to int4 while loading"),                         \
        OPTION_ROW(NULL, 0, "int8-head", NULL, take_flag, offsetof(type, member.int8_head), 0, 0,  \
                   "keep the decoder's last linear in int8")

// type: has lv_model_options model, lv_rope_config rope, lv_engine_options engine
#define MODEL_OPTIONS(type)                                                                        \
    OPTION_ROW(NULL, 0, "vision-model", "DIR|ORG/NAME", take_name,                                 \
               offsetof(type, model.vision_model), 0, 0,                                           \
               "CLIP, where the model comes without it"),                                          \
        OPTION_ROW(NULL, 0, "template", "NAME", take_name, offsetof(type, model.template_name), 0, \
                   0, "prompt template (default: by the model)"),                                  \
        DEVICE_OPTIONS(type, model),                                                               \
        OPTION_ROW(NULL, 0, "session-len", "N", take_int, offsetof(type, model.session_len), 16,   \
                   4194304, "tokens a conversation may hold (default: as trained)"),               \
        OPTION_ROW(NULL, 0, "rope-scaling", "TYPE[:FACTOR]", take_rope, offsetof(type, rope), 0,   \
                   0, "beyond the trained length: dynamic, linear or yarn (yarn:4)"),              \
        OPTION_ROW(NULL, 0, "quant-policy", "0|8", take_quant_policy,                              \
                   offsetof(type, engine.kv_dtype), 0, 0,                                          \
                   "8 keeps keys and values in int8, in less memory (default 0)"),                 \
        OPTION_ROW(NULL, 0, "cache-max-entry-count", "SHARE", take_double,                         \
                   offsetof(type, engine.cache_max_entry_count), 0.001, 0.99,                      \
                   "share of the free memory for keys and values (default 0.8, CPU 0.2)")

#endif
