// JPEG through libjpeg-turbo, as Pillow drives it: the library's default IDCT and upsampling.
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h> // after jpeglib.h: its numbers depend on the library version named there

#include "core/files.h"
#include "preprocess/internal.h"

// A progressive file may repeat scans without end at no cost in bytes: real ones have about ten.
enum { MAX_SCANS = 200 };

typedef struct reader {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr error;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf fail;
    lv_status status; // set, with its message, before a jump to `fail`
    bool ended;       // the decoder wanted more bytes than there are
    size_t n_bytes;
    uint8_t *row;
} reader;

static reader *reader_of(j_common_ptr common) {
    return common->client_data;
}

static void on_error(j_common_ptr common) {
    reader *r = reader_of(common);
    char message[JMSG_LENGTH_MAX];
    common->err->format_message(common, message);
    int code = common->err->msg_code;
    bool unsupported = code == JERR_BAD_PRECISION || code == JERR_SOF_UNSUPPORTED ||
                       code == JERR_CONVERSION_NOTIMPL;
    lv_status status = code == JERR_OUT_OF_MEMORY ? LV_ENOMEM
                       : unsupported              ? LV_EUNSUPPORTED
                                                  : LV_EFORMAT;
    r->status = lv_fail(status, "JPEG: %s", message);
    longjmp(r->fail, 1);
}

// Warnings that leave part of the picture undecoded are errors; the rest (extraneous bytes, odd
// version numbers, unused fields that should be 0) are harmless.
static void on_message(j_common_ptr common, int level) {
    if (level >= 0) {
        return;
    }
    switch (common->err->msg_code) {
    case JWRN_EXTRANEOUS_DATA:
    case JWRN_ADOBE_XFORM:
    case JWRN_JFIF_MAJOR:
    case JWRN_NOT_SEQUENTIAL:
    case JWRN_TOO_MUCH_DATA:
    case JWRN_BOGUS_ICC:
        return;
    default:
        on_error(common);
    }
}

static void on_progress(j_common_ptr common) {
    reader *r = reader_of(common);
    if (r->jpeg.input_scan_number > MAX_SCANS) {
        r->status = lv_fail(LV_ELIMIT, "JPEG: more than %d scans", MAX_SCANS);
        longjmp(r->fail, 1);
    }
}

static void no_source_action(j_decompress_ptr jpeg) {
    (void)jpeg;
}

// Past the last byte an end marker is supplied, once: the decoder looks ahead of what it needs, and
// complains by itself (JWRN_HIT_MARKER) where pixels are missing.
static boolean at_end(j_decompress_ptr jpeg) {
    static const JOCTET end_marker[] = {0xff, JPEG_EOI};
    reader *r = jpeg->client_data;
    if (r->ended) {
        r->status = lv_fail(LV_EFORMAT, "JPEG: ends too early, after %zu bytes", r->n_bytes);
        longjmp(r->fail, 1);
    }
    r->ended = true;
    jpeg->src->next_input_byte = end_marker;
    jpeg->src->bytes_in_buffer = sizeof(end_marker);
    return TRUE;
}

static void skip_bytes(j_decompress_ptr jpeg, long n) {
    reader *r = jpeg->client_data;
    if (n > 0 && (size_t)n > jpeg->src->bytes_in_buffer) {
        r->status = lv_fail(LV_EFORMAT, "JPEG: a segment passes the end, at %zu bytes", r->n_bytes);
        longjmp(r->fail, 1);
    }
    if (n > 0) {
        jpeg->src->next_input_byte += n;
        jpeg->src->bytes_in_buffer -= (size_t)n;
    }
}

static int find_orientation(const struct jpeg_decompress_struct *jpeg) {
    for (jpeg_saved_marker_ptr m = jpeg->marker_list; m; m = m->next) {
        if (m->marker == JPEG_APP0 + 1 && m->data_length >= 6 && !memcmp(m->data, "Exif\0", 5)) {
            return lv_exif_orientation((lv_bytes){m->data + 6, m->data_length - 6});
        }
    }
    return 1;
}

// Inks are stored inverted (Adobe's way, which Pillow takes for granted): 255 is no ink.
static void cmyk_to_rgb(const uint8_t *row, int width, uint8_t *rgb) {
    for (int i = 0; i < width; i++, row += 4, rgb += 3) {
        for (int c = 0; c < 3; c++) {
            rgb[c] = (uint8_t)(row[3] - lv_mul_255(255u - row[c], row[3]));
        }
    }
}

static void grey_to_rgb(const uint8_t *row, int width, uint8_t *rgb) {
    for (int i = 0; i < width; i++) {
        memset(rgb + 3 * i, row[i], 3);
    }
}

static lv_status read_rows(reader *r, lv_image *out) {
    struct jpeg_decompress_struct *jpeg = &r->jpeg;
    r->row = malloc((size_t)jpeg->output_width * (size_t)jpeg->output_components);
    if (!r->row) {
        return lv_fail(LV_ENOMEM, "JPEG: no memory for a row of %u pixels", jpeg->output_width);
    }
    while (jpeg->output_scanline < jpeg->output_height) {
        uint8_t *rgb = out->rgb + (size_t)jpeg->output_scanline * (size_t)out->width * 3;
        JSAMPROW row = jpeg->output_components == 3 ? rgb : r->row;
        jpeg_read_scanlines(jpeg, &row, 1);
        if (jpeg->output_components == 4) {
            cmyk_to_rgb(row, out->width, rgb);
        } else if (jpeg->output_components == 1) {
            grey_to_rgb(row, out->width, rgb);
        }
    }
    return LV_OK;
}

static lv_status read_file(reader *r, const lv_image_limits *limits, lv_image *out,
                           int *orientation) {
    struct jpeg_decompress_struct *jpeg = &r->jpeg;
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(jpeg, TRUE);
    LV_TRY(lv_image_check("JPEG", jpeg->image_width, jpeg->image_height, limits));
    switch (jpeg->num_components) {
    case 1:
        jpeg->out_color_space = JCS_GRAYSCALE;
        break;
    case 3:
        jpeg->out_color_space = JCS_RGB;
        break;
    case 4:
        jpeg->out_color_space = JCS_CMYK;
        break;
    default:
        return lv_fail(LV_EUNSUPPORTED, "JPEG: %d components, 1, 3 or 4 expected",
                       jpeg->num_components);
    }
    // A Huffman-coded block of 64 pixels takes a bit at least: a small file that claims a huge
    // picture costs no memory.
    uint64_t n_pixels = (uint64_t)jpeg->image_width * jpeg->image_height;
    if (!jpeg->arith_code && n_pixels / 512 > r->n_bytes) {
        return lv_fail(LV_EFORMAT, "JPEG: %zu bytes cannot hold %u x %u pixels", r->n_bytes,
                       jpeg->image_width, jpeg->image_height);
    }
    *orientation = find_orientation(jpeg);
    LV_TRY(lv_image_new((int)jpeg->image_width, (int)jpeg->image_height, out));
    jpeg_start_decompress(jpeg);
    if (r->ended && jpeg_has_multiple_scans(jpeg)) {
        return lv_fail(LV_EFORMAT, "JPEG: ends too early, scans are missing after %zu bytes",
                       r->n_bytes);
    }
    return read_rows(r, out);
}

lv_status lv_jpeg_decode(lv_bytes file, const lv_image_limits *limits, lv_image *out,
                         int *orientation) {
    reader *r = calloc(1, sizeof(*r));
    if (!r) {
        return lv_fail(LV_ENOMEM, "JPEG: no memory for the decoder");
    }
    r->n_bytes = file.n;
    r->jpeg.err = jpeg_std_error(&r->error);
    r->jpeg.client_data = r;
    r->error.error_exit = on_error;
    r->error.emit_message = on_message;
    if (setjmp(r->fail) == 0) {
        jpeg_create_decompress(&r->jpeg);
        r->source = (struct jpeg_source_mgr){.next_input_byte = file.data,
                                             .bytes_in_buffer = file.n,
                                             .init_source = no_source_action,
                                             .fill_input_buffer = at_end,
                                             .skip_input_data = skip_bytes,
                                             .resync_to_restart = jpeg_resync_to_restart,
                                             .term_source = no_source_action};
        r->progress.progress_monitor = on_progress;
        r->jpeg.src = &r->source;
        r->jpeg.progress = &r->progress;
        r->status = read_file(r, limits, out, orientation);
    }
    lv_status status = r->status;
    jpeg_destroy_decompress(&r->jpeg);
    free(r->row);
    free(r);
    return status;
}
