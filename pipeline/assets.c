#include "pipeline/llava.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char assets_dir[PATH_MAX];
static pthread_once_t assets_once = PTHREAD_ONCE_INIT;

static bool take_if_folder(const char *path) {
    struct stat info;
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode)) {
        return false;
    }
    return realpath(path, assets_dir) != NULL;
}

static void find_assets(void) {
    const char *named = getenv("LLAVA_ASSETS");
    if (named && *named && take_if_folder(named)) {
        return;
    }
    // Installed programs lie in PREFIX/bin, those of a build in SOURCE/build/bin.
    static const char *const relative[] = {"/../share/llava.c", "/../../assets"};
    char program[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n > 0) {
        program[n] = 0;
        char *slash = strrchr(program, '/');
        if (slash) {
            *slash = 0;
        }
        for (size_t i = 0; i < sizeof relative / sizeof *relative; i++) {
            char path[PATH_MAX + 32];
            snprintf(path, sizeof path, "%s%s", program, relative[i]);
            if (take_if_folder(path)) {
                return;
            }
        }
    }
    if (!take_if_folder(LV_SOURCE_ASSETS)) {
        assets_dir[0] = 0;
    }
}

const char *lv_assets_dir(void) {
    pthread_once(&assets_once, find_assets);
    return assets_dir[0] ? assets_dir : NULL;
}
