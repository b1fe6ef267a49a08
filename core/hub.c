// Where a model named on the command line lies: a folder, or the Hugging Face cache
// (https://huggingface.co/docs/huggingface_hub/guides/manage-cache):
//   <cache>/models--org--name/refs/main             the revision
//   <cache>/models--org--name/snapshots/<revision>  the files
#include "core/hub.h"

#include "core/files.h"
#include "core/path.h"

#include <ctype.h>
#include <dirent.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define MAX_REVISION_BYTES 256

static bool is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool lv_hub_is_name(const char *text) {
    int n_slashes = 0;
    bool at_start = true;
    for (; *text; text++) {
        if (*text == '/') {
            if (at_start || ++n_slashes > 1) {
                return false;
            }
            at_start = true;
        } else if (isalnum((unsigned char)*text) || (!at_start && strchr("._-", *text))) {
            at_start = false;
        } else {
            return false;
        }
    }
    return !at_start;
}

const char *lv_hub_variable(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

lv_status lv_hub_home(char **out) {
    const char *base;
    if ((base = lv_hub_variable("HF_HOME"))) {
        return lv_text_format(out, "%s", base);
    }
    if ((base = lv_hub_variable("XDG_CACHE_HOME"))) {
        return lv_text_format(out, "%s/huggingface", base);
    }
    base = lv_hub_variable("HOME");
    return lv_text_format(out, "%s/.cache/huggingface", base ? base : "");
}

lv_status lv_hub_cache(char **out) {
    const char *base = lv_hub_variable("HF_HUB_CACHE");
    if (base) {
        return lv_text_format(out, "%s", base);
    }
    char *home;
    LV_TRY(lv_hub_home(&home));
    lv_status status = lv_path_join(home, "hub", out);
    free(home);
    return status;
}

lv_status lv_hub_folder(const char *model, char **out) {
    char *cache;
    LV_TRY(lv_hub_cache(&cache));
    const char *slash = strchr(model, '/');
    int n_org = slash ? (int)(slash - model) : 0;
    lv_status status = lv_text_format(out, "%s/models--%.*s%s%s", cache, n_org, model,
                                      slash ? "--" : "", slash ? slash + 1 : model);
    free(cache);
    return status;
}

// <folder>/snapshots/<revision of refs/main>; *out stays NULL where that does not exist.
static lv_status find_main(const char *folder, char **out) {
    char *ref = NULL;
    lv_buffer revision = {0};
    lv_status status;
    LV_TRY_DONE(lv_text_format(&ref, "%s/refs/main", folder));
    if (lv_file_read(ref, MAX_REVISION_BYTES, &revision) != LV_OK) {
        goto done;
    }
    char *name = (char *)revision.data;
    name[strcspn(name, " \t\r\n")] = 0;
    if (!lv_hub_is_name(name) || strchr(name, '/')) {
        goto done;
    }
    LV_TRY_DONE(lv_text_format(out, "%s/snapshots/%s", folder, name));
    if (!is_folder(*out)) {
        free(*out);
        *out = NULL;
    }
done:
    free(ref);
    lv_buffer_free(&revision);
    return status;
}

// The snapshot changed last; *out stays NULL where there is none.
static lv_status find_newest(const char *folder, char **out) {
    char *snapshots = NULL, *candidate = NULL;
    DIR *dir = NULL;
    time_t newest = 0;
    lv_status status;
    LV_TRY_DONE(lv_text_format(&snapshots, "%s/snapshots", folder));
    dir = opendir(snapshots);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        struct stat info;
        if (entry->d_name[0] == '.') {
            continue;
        }
        LV_TRY_DONE(lv_text_format(&candidate, "%s/%s", snapshots, entry->d_name));
        if (stat(candidate, &info) == 0 && S_ISDIR(info.st_mode) &&
            (!*out || info.st_mtime > newest)) {
            newest = info.st_mtime;
            free(*out);
            *out = candidate;
        } else {
            free(candidate);
        }
        candidate = NULL;
    }
done:
    if (dir) {
        closedir(dir);
    }
    free(snapshots);
    return status;
}

static lv_status find_in_cache(const char *model, char **out) {
    char *folder = NULL;
    lv_status status;
    LV_TRY_DONE(lv_hub_folder(model, &folder));
    LV_TRY_DONE(find_main(folder, out));
    if (!*out) {
        LV_TRY_DONE(find_newest(folder, out));
    }
    if (!*out) {
        status = lv_fail(LV_ENOTFOUND,
                         "%s: not a folder, and not in the Hugging Face cache (looked for %s); "
                         "download it with: describe --pull %s",
                         model, folder, model);
    }
done:
    free(folder);
    return status;
}

lv_status lv_model_find(const char *model, char **out_dir) {
    *out_dir = NULL;
    struct stat info;
    if (is_folder(model)) {
        return lv_text_format(out_dir, "%s", model);
    }
    if (stat(model, &info) == 0) {
        return lv_fail(LV_EINVAL, "%s: is a file; name the folder that holds config.json", model);
    }
    if (!lv_hub_is_name(model)) {
        return lv_fail(LV_ENOTFOUND, "%s: no such folder", model);
    }
    return find_in_cache(model, out_dir);
}
