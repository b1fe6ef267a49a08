// Our own pictures of every kind decode to Pillow's pixels; cut, broken, foreign and oversized
// files are refused with the right status and a message.
#include "tests/unit/preprocess_util.h"

#define IMAGES LV_SOURCE_DIR "/tests/images/"

static lv_status decode(file_bytes file, lv_image *out) {
    return lv_image_decode(file.data, file.n, NULL, out);
}

static file_bytes read_image(const char *name) {
    char path[512];
    snprintf(path, sizeof(path), IMAGES "%s", name);
    file_bytes file = read_file(path);
    CHECK(file.n > 0, "cannot read %s", path);
    return file;
}

// A file cut anywhere is refused, or (formats whose last bytes carry no pixels) decodes as before.
static void check_cuts(const char *name, file_bytes file, const lv_image *whole) {
    size_t step = file.n / 200 + 1;
    for (size_t n = 0; n < file.n; n += step) {
        file_bytes cut = {malloc(n ? n : 1), n};
        memcpy(cut.data, file.data, n);
        lv_image image;
        lv_status status = decode(cut, &image);
        if (status == LV_OK) {
            bool same = image.width == whole->width && image.height == whole->height &&
                        !memcmp(image.rgb, whole->rgb, rgb_bytes(whole));
            bool last_digit = strstr(name, "plain.p") && n + 4 > file.n; // 113 cut to 11
            CHECK(same || last_digit, "%s cut to %zu of %zu bytes gives another picture", name, n,
                  file.n);
            CHECK(n * 10 >= file.n * 9 || strstr(name, "animated"),
                  "%s: %zu of %zu bytes are enough", name, n, file.n);
        } else {
            CHECK(status == LV_EFORMAT && !image.rgb && lv_error()[0], "%s cut to %zu: %s", name, n,
                  lv_error());
        }
        lv_image_free(&image);
        free(cut.data);
    }
}

static void check_limits(const char *name, file_bytes file, const lv_image *whole) {
    size_t n_pixels = (size_t)whole->width * (size_t)whole->height;
    int side = whole->width > whole->height ? whole->width : whole->height;
    const lv_image_limits limits[] = {
        {.max_bytes = file.n - 1}, {.max_pixels = n_pixels - 1}, {.max_side = side - 1}};
    const lv_image_limits enough = {.max_bytes = file.n, .max_pixels = n_pixels, .max_side = side};
    lv_image image;
    for (size_t i = 0; i < 3; i++) {
        lv_status status = lv_image_decode(file.data, file.n, &limits[i], &image);
        CHECK(status == LV_ELIMIT && !image.rgb, "%s, limit %zu: %s", name, i, lv_error());
    }
    lv_status status = lv_image_decode(file.data, file.n, &enough, &image);
    CHECK(status == LV_OK, "%s: %s", name, lv_error());
    lv_image_free(&image);
}

static void check_line(const char *line) {
    char name[64];
    int width, height;
    unsigned long long want;
    if (sscanf(line, "%63s %d %d %llx", name, &width, &height, &want) != 4) {
        CHECK(line[0] == '#', "not a golden line: %s", line);
        return;
    }
    file_bytes file = read_image(name);
    lv_image image;
    lv_status status = decode(file, &image);
    CHECK(status == LV_OK, "%s: %s", name, lv_error());
    CHECK(image.width == width && image.height == height, "%s: %d x %d, Pillow %d x %d", name,
          image.width, image.height, width, height);
    if (status == LV_OK) {
        CHECK(checksum(image.rgb, rgb_bytes(&image)) == want, "%s: Pillow has other pixels", name);
        check_cuts(name, file, &image);
        check_limits(name, file, &image);
    }
    lv_image_free(&image);
    free(file.data);
}

static void check_goldens(void) {
    check_lines("pillow_images.txt", 50, check_line);
}

// The eight orientations are one picture: all upright copies agree but for the JPEG of each.
static void check_orientations(void) {
    for (int i = 1; i <= 8; i++) {
        char name[32];
        snprintf(name, sizeof(name), "exif_%d.jpg", i);
        file_bytes file = read_image(name);
        lv_image image;
        CHECK_OK(decode(file, &image));
        bool turned = image.width == 26 && image.height == 37;
        CHECK(turned == (i >= 5), "%s: %d x %d", name, image.width, image.height);
        lv_image_free(&image);
        free(file.data);
    }
}

static void check_foreign(void) {
    static const struct {
        const char *bytes;
        size_t n;
        const char *word;
    } files[] = {{"II*\0\x08\0\0\0", 8, "TIFF"},
                 {"\0\0\0\x1c"
                  "ftypavif\0\0\0\0",
                  16, "AVIF"},
                 {"\0\0\0\x18"
                  "ftypheic\0\0\0\0",
                  16, "HEIC"},
                 {"\0\0\0\x0cJXL \r\n\x87\n", 12, "JPEG XL"},
                 {"%PDF-1.7\n", 9, "PDF"},
                 {"<?xml version=\"1.0\"?>\n<svg xmlns=\"x\"/>", 39, "SVG"},
                 {"8BPS\0\1", 6, "Photoshop"}};
    lv_image image;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        const uint8_t *bytes = (const uint8_t *)files[i].bytes;
        CHECK_STATUS(lv_image_decode(bytes, files[i].n, NULL, &image), LV_EUNSUPPORTED);
        CHECK(strstr(lv_error(), files[i].word), "%s: %s", files[i].word, lv_error());
    }
    CHECK_STATUS(lv_image_decode((const uint8_t *)"", 0, NULL, &image), LV_EFORMAT);
    CHECK(strstr(lv_error(), "empty"), "%s", lv_error());
    CHECK_STATUS(lv_image_decode((const uint8_t *)"hello, world", 12, NULL, &image), LV_EFORMAT);
    CHECK(strstr(lv_error(), "not a picture"), "%s", lv_error());
}

static void put_be32(uint8_t *to, uint32_t value) {
    for (int i = 0; i < 4; i++) {
        to[i] = (uint8_t)(value >> (24 - 8 * i));
    }
}

// Makes the checksum of the PNG chunk at `at` right.
static void mend_chunk(uint8_t *data, size_t at) {
    uint32_t n = (uint32_t)data[at + 2] << 8 | data[at + 3], c = 0xffffffffu;
    for (size_t i = 0; i < n + 4; i++) {
        c ^= data[at + 4 + i];
        for (int bit = 0; bit < 8; bit++) {
            c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        }
    }
    put_be32(data + at + 8 + n, ~c);
}

// JPEG's frame header: marker, length (2), precision, height (2), width (2).
static size_t find_frame(file_bytes file) {
    for (size_t i = 0; i + 9 < file.n; i++) {
        if (file.data[i] == 0xff && file.data[i + 1] == 0xc0) {
            return i;
        }
    }
    CHECK(0, "no frame header");
    return 0;
}

// Small files that claim `side` x `side` pixels.
static file_bytes claim(const char *name, uint32_t side) {
    file_bytes file = read_image(name);
    uint8_t little[4] = {(uint8_t)side, (uint8_t)(side >> 8), 0, 0}, big[4];
    put_be32(big, side);
    if (strstr(name, ".png")) {
        memcpy(file.data + 16, big, 4);
        memcpy(file.data + 20, big, 4);
        mend_chunk(file.data, 8);
    } else if (strstr(name, ".gif")) {
        memcpy(file.data + 6, little, 2);
        memcpy(file.data + 8, little, 2);
    } else if (strstr(name, ".bmp")) {
        memcpy(file.data + 18, little, 4);
        memcpy(file.data + 22, little, 4);
    } else {
        size_t frame = find_frame(file);
        memcpy(file.data + frame + 5, big + 2, 2);
        memcpy(file.data + frame + 7, big + 2, 2);
    }
    return file;
}

// Appends the n bits of a Huffman code, first bit highest.
static void put_code(uint8_t *data, size_t *bit, uint32_t code, int n) {
    for (int i = n; i-- > 0; ++*bit) {
        data[*bit / 8] |= (uint8_t)((code >> i & 1) << *bit % 8);
    }
}

// A PNG of one grey pixel whose data inflate to 1 + 258 * n_runs zeros.
static file_bytes inflating(int n_runs) {
    static const uint8_t header[] =
        "\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\1\0\0\0\1\x08\0\0\0\0\0\0\0";
    const size_t idat = sizeof(header), data = idat + 8;
    file_bytes file = {calloc(1, 20000), 20000};
    size_t bit = (data + 2) * 8;
    memcpy(file.data, header, sizeof(header));
    memcpy(file.data + idat + 4, "IDAT\x78\x9c", 6);
    put_code(file.data, &bit, 6, 3);    // last block, fixed codes
    put_code(file.data, &bit, 0x30, 8); // a zero
    for (int i = 0; i < n_runs; i++) {
        put_code(file.data, &bit, 0xc5 << 5, 13); // 258 bytes as the byte before
    }
    size_t n = bit / 8 + 1 + 8 - data; // the end's seven zeros, and what checksum there may be
    file.data[idat + 2] = (uint8_t)(n >> 8);
    file.data[idat + 3] = (uint8_t)n;
    file.n = data + n + 4;
    mend_chunk(file.data, 8);
    mend_chunk(file.data, idat);
    return file;
}

static void check_growth(void) {
    lv_image image;
    file_bytes some = inflating(1), much = inflating(8000);
    CHECK_OK(decode(some, &image));
    lv_image_free(&image);
    CHECK_STATUS(decode(much, &image), LV_EFORMAT);
    CHECK(strstr(lv_error(), "broken"), "%s", lv_error());
    free(some.data);
    free(much.data);
}

static void check_bombs(void) {
    static const char *const names[] = {"rgb.png", "palette.gif", "rgb.bmp", "baseline.jpg"};
    lv_image image;
    for (size_t i = 0; i < 4; i++) {
        file_bytes file = claim(names[i], 30000); // more than a picture may have
        lv_status status = decode(file, &image);
        CHECK(status == LV_ELIMIT && strstr(lv_error(), "30000"), "%s: %s", names[i], lv_error());
        free(file.data);
        if (i != 1) { // a GIF's frame may be smaller than its screen
            file = claim(names[i], 13000);
            status = decode(file, &image);
            CHECK(status == LV_EFORMAT && !strstr(lv_error(), "broken"), "%s: %s", names[i],
                  lv_error()); // refused before anything was decoded
            free(file.data);
        }
    }
    char text[64];
    int n = snprintf(text, sizeof(text), "P6 12000 12000 255\n");
    CHECK_STATUS(lv_image_decode((uint8_t *)text, (size_t)n, NULL, &image), LV_EFORMAT);
    n = snprintf(text, sizeof(text), "P6 99999 2 255\n");
    CHECK_STATUS(lv_image_decode((uint8_t *)text, (size_t)n, NULL, &image), LV_ELIMIT);
    CHECK(strstr(lv_error(), "99999") && strstr(lv_error(), "65535"), "%s", lv_error());
}

// Random bytes behind every magic number, and single flipped bytes, never crash.
static void check_random(void) {
    static const char *const magics[] = {"\xff\xd8\xff",
                                         "\x89PNG\r\n\x1a\n",
                                         "GIF89a",
                                         "BM",
                                         "RIFF\x40\0\0\0WEBP",
                                         "P6 ",
                                         "P3\n",
                                         ""};
    static const size_t sizes[] = {3, 8, 6, 2, 12, 3, 3, 0};
    for (uint64_t seed = 0; seed < 4000; seed++) {
        size_t kind = seed % 8, n = sizes[kind] + splitmix64(seed) % 400;
        uint8_t *bytes = malloc(n ? n : 1);
        for (size_t i = 0; i < n; i++) {
            bytes[i] = (uint8_t)splitmix64(seed << 20 | i);
        }
        memcpy(bytes, magics[kind], sizes[kind]);
        lv_image image;
        if (lv_image_decode(bytes, n, NULL, &image) == LV_OK) {
            CHECK(image.rgb && image.width > 0 && image.height > 0);
        } else {
            CHECK(!image.rgb && lv_error()[0]);
        }
        lv_image_free(&image);
        free(bytes);
    }
}

// PNG chunks with a wrong checksum, and JPEG scans with their middle cut out, are errors.
static void check_corrupt(void) {
    file_bytes png = read_image("rgb.png"), jpeg = read_image("baseline.jpg");
    lv_image image;
    png.data[png.n / 2] ^= 1;
    CHECK_STATUS(decode(png, &image), LV_EFORMAT);
    CHECK(strstr(lv_error(), "checksum"), "%s", lv_error());
    memmove(jpeg.data + jpeg.n / 2, jpeg.data + jpeg.n - 2,
            2); // half the scan, then the end marker
    jpeg.n = jpeg.n / 2 + 2;
    CHECK_STATUS(decode(jpeg, &image), LV_EFORMAT);
    free(png.data);
    free(jpeg.data);
    jpeg = read_image("baseline.jpg");
    size_t frame = find_frame(jpeg);
    jpeg.data[frame + 4] = 12; // bits a sample
    CHECK_STATUS(decode(jpeg, &image), LV_EUNSUPPORTED);
    jpeg.data[frame + 4] = 8;
    jpeg.data[frame + 1] = 0xc7; // differential lossless
    CHECK_STATUS(decode(jpeg, &image), LV_EUNSUPPORTED);
    free(jpeg.data);
}

int main(void) {
    check_goldens();
    check_orientations();
    check_foreign();
    check_bombs();
    check_growth();
    check_random();
    check_corrupt();
    return check_done();
}
