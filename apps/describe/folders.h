// describe's way through many pictures: which -> captioned -> recorded.
#ifndef LV_DESCRIBE_FOLDERS_H
#define LV_DESCRIBE_FOLDERS_H

#include <stddef.h>
#include <stdint.h>

#include "describe.h"

// --- names (names.c)

// Puts `name` in and says under it who came with it. NULL where it is new, else the owner of the
// first, borrowed.
const char *names_add(name_set *set, const char *name, const char *owner);
bool names_have(const name_set *set, const char *name);
int names_count(const name_set *set);
void names_free(name_set *set);

bool is_picture_name(const char *name); // by its extension

// Calls `take` for the pictures in a folder, sorted by name, and with `recursive` in the folders
// below it; hidden ones are left out, and a folder that `seen` holds already. Calls `fail` for what
// cannot be looked at or into.
typedef struct folder_visitor {
    void (*take)(void *user, const char *path);
    void (*fail)(void *user, const char *path, const char *reason);
    void *user;
} folder_visitor;
void folder_walk(const char *folder, bool recursive, name_set *seen, const folder_visitor *visitor);

// --- shards (shard.c)

// "2/3": the second of three parts. False where it is anything else.
bool shard_parse(const char *text, lv_shard *out);
// This process's part among the ranks of mpirun or srun; {0, 1} outside of them.
lv_shard shard_of_ranks(void);
// captions.jsonl -> captions.2-of-3.jsonl; a copy of the name where there is one part only.
char *shard_path(const char *path, lv_shard shard);

// --- a file of captions that only grows by whole records (table.c)

typedef struct table table;

bool is_file(int fd, const char *path); // whether the name is that of the file that is open

// Opens or creates FILE.jsonl or FILE.csv for this process alone, or this shard's own part of it,
// cuts off a last record that a killed run left torn, and reads which sources the file and the
// other parts hold (not with `overwrite`). NULL after complaining.
table *table_open(const char *path, lv_shard shard, bool overwrite);
bool table_has(const table *t, const char *source);
// Appends one record; on a failure nothing of it stays, and the reason is lv_error's.
lv_status table_put(table *t, const describe_input *input, const lv_picture_info *info,
                    const lv_answer *answer) LV_MUST_CHECK;
// With `overwrite` takes out the old records of what has a new one. Accepts NULL; false after
// complaining that not all is on the disk.
bool table_close(table *t);

// Bytes of the first record of data, 0 where it is torn; *out_source, the caller's to free, is
// NULL in a record without one, and *out_bad is set where it is no record at all.
size_t record_next(const char *data, size_t n_bytes, bool is_csv, char **out_source, bool *out_bad);
extern const char csv_header[];
// One CSV record with its line's end (RFC 4180); the caller frees it. NULL without memory.
char *csv_record(const describe_input *input, const lv_picture_info *info, const lv_answer *answer);

// --- where captions go (record.c)

typedef struct recorder {
    const describe_options *options;
    table *table;  // of --output
    int failures;  // file of --failures, -1: none
    int n_skipped; // had captions already
} recorder;

// Opens what the options name. EXIT_DONE, or EXIT_USAGE after complaining.
int recorder_open(const describe_options *options, recorder *out);
// Leaves in `inputs` those without captions.
void recorder_skip_done(recorder *r, input_list *inputs);
lv_status recorder_put(recorder *r, const describe_input *input, const lv_picture_info *info,
                       const lv_answer *answer) LV_MUST_CHECK;
bool recorder_fail(recorder *r, const char *source, const char *reason); // false after complaining
bool recorder_close(recorder *r);

// Whether captions are kept in files, and under which name the caption of `source` is: the file
// beside it or its name in --output. The caller frees it; NULL, with the reason in lv_error, where
// it cannot be kept.
bool records(const describe_options *options);
char *record_target(const describe_options *options, const char *source);

// --- the loop (batch.c)

// Captions every input. An EXIT_ status.
int batch_run(describe_app *app, recorder *keeper, const input_list *inputs);

#endif
