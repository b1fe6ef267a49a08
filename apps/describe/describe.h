// describe's own pieces: options -> inputs -> answers -> terminal.
#ifndef LV_DESCRIBE_H
#define LV_DESCRIBE_H

#include <stdbool.h>

#include "pipeline/llava.h"

enum {
    EXIT_DONE = 0,
    EXIT_SOME_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_MODEL = 3, // the model or the device cannot be used
    EXIT_INTERRUPTED = 130
};

// --- lists of text

typedef struct text_list {
    char **items; // owned, each one too
    int n, capacity;
} text_list;

void list_add(text_list *list, const char *text, size_t n_bytes); // ends the program without memory
void list_free(text_list *list);

// A set of names (folders.h).
typedef struct name_set {
    struct json_t *table;
} name_set;

// --- options

// The pictures whose place among all is `index` modulo `count`.
typedef struct lv_shard {
    int index, count;
} lv_shard;

typedef struct describe_options {
    const char *prompt, *system; // NULL: not given
    text_list inputs, stops;
    const char *files_from, *json_schema;
    const char *pull;             // a model to download
    const char *server, *api_key; // a server to ask instead of a model here
    bool nul_separated, together, chat;
    bool json, quiet, verbose, help, version;
    bool recursive, overwrite, append, prepend, fail_fast;
    const char *output, *sidecar, *prefix, *suffix, *failures;
    lv_shard shard;      // as --shard or the ranks say; {0, 1}: all pictures
    lv_rope_config rope; // of a plain type: not given
    lv_model_options model;
    lv_engine_options engine;
    lv_grammar *grammar; // of --json-schema; params borrows it
    lv_params params;
} describe_options;

// Reads the command line into a zero-initialised *out, which borrows from argv. False after saying
// on stderr what is wrong.
bool options_parse(int argc, char **argv, describe_options *out);
// Compiles --json-schema into params.grammar; false after saying what is wrong with it.
bool options_read_schema(describe_options *options);
void options_free(describe_options *options);
void options_help(void); // to standard output

// --- inputs

typedef struct describe_input {
    char *source; // as the user named it
    char *label;  // the same, data: URIs shortened
} describe_input;

typedef struct input_list {
    describe_input *items;
    int n;
    int n_refused;      // named on stderr already: missing, unreadable, a folder
    text_list refusals; // of them: "SOURCE" and "REASON" by turns
} input_list;

// The pictures of the command line, folders walked, then those of --files-from; of them this
// shard's. EXIT_DONE, or EXIT_USAGE after saying why.
int inputs_gather(const describe_options *options, input_list *out);
void inputs_free(input_list *list);
bool input_add(input_list *list, const char *source, size_t n_bytes); // false: refused

// --- terminal: standard output carries answers only, standard error all the rest

// False where standard output is closed (said on stderr).
bool terminal_setup(void);
void terminal_quiet(bool quiet); // no notes, no status
bool terminal_streams(void);     // standard output is a terminal

// Standard output. On a terminal, control characters in text of the model or of a file name are
// shown as U+FFFD. False after a failure, which is said once.
bool put_text(const char *text);
bool put_line(const char *text); // interrupts wait until it is out
bool put_failed(void);

void complain(const char *name, const char *format, ...)
    LV_PRINTF(2, 3);                                    // "describe: NAME: ..." (NAME may be NULL)
const char *last_reason(const char *name);              // lv_error() without "NAME: " in front
void note(const char *format, ...) LV_PRINTF(1, 2);     // a line, unless quiet
void progress(const char *format, ...) LV_PRINTF(1, 2); // on a terminal, replaced by what follows
void progress_end(void);
// lv_fetch_options.progress, `user` being the label
bool progress_fetch(void *user, size_t n_bytes, size_t total_bytes);

// What Ctrl-C does.
typedef enum on_interrupt {
    INTERRUPT_LEAVES, // at once, with EXIT_INTERRUPTED
    INTERRUPT_STOPS,  // the first sets interrupted(), the second leaves
    INTERRUPT_PROMPTS // a new prompt
} on_interrupt;

void interrupt_mode(on_interrupt mode); // also forgets an earlier interrupt
bool interrupted(void);

// Text with malformed UTF-8 replaced by U+FFFD. The caller frees it.
char *clean_utf8(const char *text);
char *clean_line(const char *text); // without control characters too, on one line: for terminals
// Bytes of the byte order mark that Windows' editors put before UTF-8: 3 or none.
size_t mark_length(const char *data, size_t n_bytes);

// --- answers

typedef struct describe_app {
    const describe_options *options;
    lv_model *model;
    lv_model_info info;
    lv_engine *engine;
    struct client *client; // of --server: no model, no engine
    int n_sequences;       // that the engine or the server answers at once
} describe_app;

const char *answer_prompt(const describe_options *options, int n_pictures);

// Loads one picture with its label in the progress line; NULL after complaining.
lv_picture *answer_load(const describe_app *app, const describe_input *input);

// "FILE: " before an answer, on its way with the first words.
typedef struct answer_header {
    const describe_input *inputs;
    int n; // 0: none, or out already
} answer_header;

// lv_text_callback that streams to standard output; `user` is an answer_header or NULL.
bool answer_on_text(void *user, const lv_piece *piece);

// Submits the options' question about one picture.
lv_status answer_submit(describe_app *app, lv_picture *picture, lv_text_callback on_text,
                        lv_done_callback on_done, void *user, uint64_t *out_id) LV_MUST_CHECK;
// The answer on standard output, whole where it was not streamed, and what is to say about it on
// standard error. False where standard output takes no more.
bool answer_put(const describe_app *app, const describe_input *inputs, const lv_picture_info *infos,
                int n, const lv_answer *answer, answer_header *header);

// Says the last failure of a question. EXIT_MODEL where no further one can be asked.
int answer_failed(const char *label, lv_status status);

// Asks the question about n pictures in one go and puts the answer out, under a header where
// `with_header`. An EXIT_ status.
int answer_question(describe_app *app, const describe_input *inputs, int n, bool with_header);

// Lines of -v.
void report_model(const describe_app *app);
void report_engine(const describe_app *app); // after many pictures
void report_answer(const char *label, const lv_picture_info *infos, int n, const lv_answer *answer);

// One JSON line; the caller frees it.
char *answer_json(const describe_input *inputs, const lv_picture_info *infos, int n,
                  const lv_answer *answer);

// --- models

// Downloads options->pull, and the vision tower that it names. An EXIT_ status.
int pull_run(const describe_options *options);

// --- chat

int chat_run(describe_app *app, const input_list *inputs);

#endif
