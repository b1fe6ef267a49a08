#include "pipeline/llava.h"

#include <dlfcn.h>
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

// In one of these, seen from the folder of the file `path`.
static bool take_beside(const char *path) {
    // Programs are installed in PREFIX/bin, the library in PREFIX/lib or a folder of PREFIX/lib; a
    // build's programs lie in SOURCE/build/bin.
    static const char *const relative[] = {"../share/llava.c", "../../share/llava.c",
                                           "../../assets"};
    const char *slash = strrchr(path, '/');
    for (size_t i = 0; slash && i < sizeof relative / sizeof *relative; i++) {
        char folder[PATH_MAX + 32];
        snprintf(folder, sizeof folder, "%.*s/%s", (int)(slash - path), path, relative[i]);
        if (take_if_folder(folder)) {
            return true;
        }
    }
    return false;
}

static void find_assets(void) {
    const char *named = getenv("LLAVA_ASSETS");
    if (named && *named && take_if_folder(named)) {
        return;
    }
    char program[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n > 0) {
        program[n] = 0;
        if (take_beside(program)) {
            return;
        }
    }
    Dl_info library; // where this variable is: libllava, or the program again
    if (dladdr(assets_dir, &library) && take_beside(library.dli_fname)) {
        return;
    }
    if (!take_if_folder(LV_SOURCE_ASSETS)) {
        assets_dir[0] = 0;
    }
}

const char *lv_assets_dir(void) {
    pthread_once(&assets_once, find_assets);
    return assets_dir[0] ? assets_dir : NULL;
}
