// Resizing gives Pillow's bytes at every size of the golden list.
#include "tests/unit/preprocess_util.h"

static void check_line(const char *line) {
    int width, height, to_width, to_height;
    unsigned long long seed, want;
    char full[64];
    if (sscanf(line, "%d %d %d %d %llu %llx %63s", &width, &height, &to_width, &to_height, &seed,
               &want, full) != 7) {
        CHECK(line[0] == '#', "not a golden line: %s", line);
        return;
    }
    lv_image image = noise(width, height, seed), resized;
    CHECK_OK(lv_image_resize(&image, to_width, to_height, &resized));
    CHECK(resized.width == to_width && resized.height == to_height);
    CHECK(checksum(resized.rgb, rgb_bytes(&resized)) == want, "%d x %d to %d x %d, Pillow has %s",
          width, height, to_width, to_height, full);
    lv_image_free(&image);
    lv_image_free(&resized);
}

int main(void) {
    check_lines("pillow_resize.txt", 200, check_line);
    lv_image image = noise(4, 3, 0), out;
    CHECK_STATUS(lv_image_resize(&image, 0, 5, &out), LV_EINVAL);
    CHECK(!out.rgb);
    lv_image_free(&image);
    return check_done();
}
