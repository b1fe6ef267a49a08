// Other decoders' test pictures, good and bad: no crash, and the same verdict and size as Pillow,
// but for the files below, each with its reason.
#include "tests/unit/preprocess_util.h"

#define ROOT LV_SHARED_DIR "/data/images/"

typedef struct exception {
    const char *path;
    lv_status ours;
} exception;

static const exception exceptions[] = {
    // Valid BMPs with bit fields or header lengths that the manifest's Pillow does not know.
    {"image-rs/tests/images/bmp/images/V3_", LV_OK},
    {"image-rs/tests/images/bmp/images/lenient/pal8oversizepal.bmp", LV_OK},
    {"image-rs/tests/images/bmp/images/lenient/rgb16-880.bmp", LV_OK},
    {"image-rs/tests/images/bmp/images/lenient/rle_overflow.bmp", LV_OK},
    {"image-rs/tests/images/bmp/images/rgb16-231.bmp", LV_OK},
    {"image-rs/tests/images/bmp/images/rgb32-111110.bmp", LV_OK},
    {"image-rs/tests/images/bmp/images/rgb32bf.bmp", LV_OK},
    {"image-rs/tests/images/bmp/images/rgba16-1924.bmp", LV_OK},
    {"image-rs/tests/images/bmp/images/rgba32-61754.bmp", LV_OK},
    {"image-rs/tests/images/bmp/images/rgba32.bmp", LV_OK},
    {"pillow/images/bmp/b/badheadersize.bmp", LV_OK},
    {"pillow/images/bmp/g/rgb32bf.bmp", LV_OK},
    {"pillow/images/bmp/q/pal8oversizepal.bmp", LV_OK},
    {"pillow/images/bmp/q/rgb16-231.bmp", LV_OK},
    {"pillow/images/bmp/q/rgb32-111110.bmp", LV_OK},
    {"pillow/images/bmp/q/rgb32h52.bmp", LV_OK},
    {"pillow/images/bmp/q/rgba16-4444.bmp", LV_OK},
    {"pillow/images/bmp/q/rgba32.bmp", LV_OK},
    {"pillow/images/bmp/q/rgba32h56.bmp", LV_OK},
    // Whole pictures whose metadata or empty chunks trip Pillow's Python; pixels are not touched.
    {"wuffs/artificial-png/exif.png", LV_OK},
    {"pillow/images/truncated_exif_dpi.jpg", LV_OK},
    {"pillow/images/png_decompression_dos.png",
     LV_OK}, // 1 x 1; the bomb is in a text we do not read
    {"pillow/images/apng/chunk_no_fctl.png", LV_OK},
    {"libpng/contrib/testpngs/crashers/empty_ancillary_chunks.png", LV_OK},
    // Whole pictures cut in, or with a wrong checksum after, the data.
    {"pillow/images/truncated_end_chunk.png", LV_OK},
    {"go-fuzz/png/corpus/d3a655e91ab21a772519e68a880b9a688f918140-2", LV_OK},
    {"libpng/contrib/testpngs/crashers/badadler.png", LV_OK}, // the chunk's own checksum is right
    // Pillow checks no checksum of picture data and does not mind its chunk passing the file's end.
    {"stb/tests/pngsuite/corrupt/xcsn0g01.png", LV_EFORMAT},
    {"libpng/contrib/testpngs/crashers/badcrc.png", LV_EFORMAT},
    {"libpng/contrib/testpngs/crashers/huge_IDAT.png", LV_EFORMAT},
    {"go-fuzz/png/corpus/12c78abf392fdda9bfe61e9796fbfcc20dfe802d-1", LV_EFORMAT},
    {"go-fuzz/png/corpus/4930d001f211f78029c9deace8bb8671e27a5397-4", LV_EFORMAT},
    {"go-fuzz/png/corpus/5c3ed56ce71be1412d4d679d15d4b0c081385cfe-3", LV_EFORMAT},
    {"go-fuzz/png/corpus/902493e2a117787bf9cd4fd1115f879f7234019b-8", LV_EFORMAT},
    {"go-fuzz/png/corpus/96f6b7c6545f3057817a1723e2350007bc72479e-1", LV_EFORMAT},
    {"go-fuzz/png/corpus/d446be6373be79de3ad27234ad9e86341db65b62-2", LV_EFORMAT},
    {"go-fuzz/png/corpus/df6c8819922811197eb8b17369e379060099fce8-1", LV_EFORMAT},
    {"go-fuzz/png/corpus/f90ba0941f308d9350d75649a8a8af5891677935-3", LV_EFORMAT},
    {"go-fuzz/png/corpus/ff341f97c6db6ad42ed0c8750f072cd2e076426b-4", LV_EFORMAT},
    // Corrupt scans, of which Pillow shows noise or half a picture.
    {"pillow/images/hopper_bad_exif.jpg", LV_EFORMAT},
    {"go-fuzz/jpeg/corpus/4c4af0a531dfa9345e3f3f87b606672c1a924719-1", LV_EFORMAT},
    {"go-fuzz/jpeg/corpus/775d8954c51b5df639980865cb71f93642f71e2e-8", LV_EFORMAT},
    {"go-fuzz/jpeg/corpus/ac3cebe2394e826218ac8d863a9dae7004b1bcdb-1", LV_EFORMAT},
    {"go-fuzz/jpeg/corpus/f17baa0efdb0086b89ef92439debe0c03dc3ec90-2", LV_EFORMAT},
    // A frame of no pixels.
    {"go-fuzz/gif/corpus/7af2b40ef9dabf2f0ad4e1b54862f2213f0de1a8-1", LV_EFORMAT},
};

static const exception *find_exception(const char *path) {
    for (size_t i = 0; i < sizeof(exceptions) / sizeof(exceptions[0]); i++) {
        if (!strncmp(path, exceptions[i].path, strlen(exceptions[i].path))) {
            return &exceptions[i];
        }
    }
    return NULL;
}

// The tab-separated columns of MANIFEST.tsv.
enum { PATH, KIND, VERDICT, BYTES, WIDTH, HEIGHT, MODE, ORIENTATION, N_COLUMNS };

static void check_verdict(char *const *column, lv_status status) {
    const exception *known = find_exception(column[PATH]);
    bool good = !strcmp(column[VERDICT], "ok");
    if (!strcmp(column[KIND], "tiff")) {
        CHECK(status == LV_EUNSUPPORTED, "%s: %s", column[PATH], lv_error());
    } else if (known) {
        CHECK(status == known->ours, "%s: %s", column[PATH], lv_status_name(status));
        CHECK(good == (known->ours != LV_OK), "%s: Pillow agrees: no exception", column[PATH]);
    } else {
        CHECK((status == LV_OK) == good, "%s: Pillow says %s, here %s: %s", column[PATH],
              column[VERDICT], lv_status_name(status), status == LV_OK ? "" : lv_error());
    }
}

static void check_file(char *const *column) {
    char path[1024];
    snprintf(path, sizeof(path), ROOT "%s", column[PATH]);
    file_bytes file = read_file(path);
    lv_image image;
    lv_status status = lv_image_decode(file.data, file.n, NULL, &image);
    check_verdict(column, status);
    CHECK((status == LV_OK) == (image.rgb != NULL), "%s", path);
    if (status == LV_OK && !strcmp(column[VERDICT], "ok")) {
        bool turned = atoi(column[ORIENTATION]) >= 5;
        int width = atoi(column[turned ? HEIGHT : WIDTH]);
        int height = atoi(column[turned ? WIDTH : HEIGHT]);
        CHECK(image.width == width && image.height == height, "%s: %d x %d, Pillow %d x %d",
              column[PATH], image.width, image.height, width, height);
    }
    lv_image_free(&image);
    free(file.data);
}

int main(void) {
    FILE *manifest = fopen(ROOT "MANIFEST.tsv", "r");
    if (!manifest) {
        return check_skip("no pictures in " ROOT);
    }
    char line[1024];
    int n_files = 0;
    while (fgets(line, sizeof(line), manifest)) {
        char *column[N_COLUMNS], *rest = line;
        line[strcspn(line, "\r\n")] = 0;
        for (int i = 0; i < N_COLUMNS; i++) {
            column[i] = rest ? strsep(&rest, "\t") : line + strlen(line);
        }
        if (strcmp(column[PATH], "path")) {
            check_file(column);
            n_files++;
        }
    }
    fclose(manifest);
    CHECK(n_files > 2000, "%d files", n_files);
    return check_done();
}
