// WebP through libwebp: still pictures, and the first frame of animations on their canvas.
#include <stdlib.h>
#include <string.h>

#include <webp/decode.h>
#include <webp/demux.h>

#include "core/files.h"
#include "preprocess/internal.h"

static int find_orientation(const WebPDemuxer *demuxer) {
    WebPChunkIterator chunk;
    int orientation = 1;
    if (WebPDemuxGetChunk(demuxer, "EXIF", 1, &chunk)) {
        lv_bytes tiff = {chunk.chunk.bytes, chunk.chunk.size};
        if (tiff.n >= 6 &&
            memcmp(tiff.data, "Exif\0\0", 6) == 0) { // some writers keep JPEG's prefix
            tiff = (lv_bytes){tiff.data + 6, tiff.n - 6};
        }
        orientation = lv_exif_orientation(tiff);
    }
    WebPDemuxReleaseChunkIterator(&chunk);
    return orientation;
}

// The frame over the white page that `out` is; what it does not cover stays transparent: white.
static lv_status draw_frame(const WebPIterator *frame, lv_image *out) {
    WebPBitstreamFeatures features;
    if (WebPGetFeatures(frame->fragment.bytes, frame->fragment.size, &features) != VP8_STATUS_OK ||
        features.width != frame->width || features.height != frame->height || frame->x_offset < 0 ||
        frame->y_offset < 0 || frame->x_offset + frame->width > out->width ||
        frame->y_offset + frame->height > out->height) {
        return lv_fail(LV_EFORMAT, "WebP: the first frame's header is broken");
    }
    int width, height;
    uint8_t *rgba = WebPDecodeRGBA(frame->fragment.bytes, frame->fragment.size, &width, &height);
    if (!rgba) {
        return lv_fail(LV_EFORMAT, "WebP: the picture data is broken or cut");
    }
    const uint8_t *from = rgba;
    for (int y = 0; y < height; y++) {
        size_t at = (size_t)(frame->y_offset + y) * (size_t)out->width + (size_t)frame->x_offset;
        uint8_t *to = out->rgb + at * 3;
        for (int x = 0; x < width; x++, from += 4, to += 3) {
            for (int c = 0; c < 3; c++) {
                to[c] = lv_over_white(from[c], from[3]);
            }
        }
    }
    WebPFree(rgba);
    return LV_OK;
}

lv_status lv_webp_decode(lv_bytes file, const lv_image_limits *limits, lv_image *out,
                         int *orientation) {
    WebPData data = {file.data, file.n};
    WebPIterator frame;
    memset(&frame, 0, sizeof(frame));
    lv_status status;
    WebPDemuxer *demuxer = WebPDemux(&data);
    if (!demuxer) {
        return lv_fail(LV_EFORMAT, "WebP: the file's structure is broken or cut, at %zu bytes",
                       file.n);
    }
    uint32_t width = WebPDemuxGetI(demuxer, WEBP_FF_CANVAS_WIDTH);
    uint32_t height = WebPDemuxGetI(demuxer, WEBP_FF_CANVAS_HEIGHT);
    LV_TRY_DONE(lv_image_check("WebP", width, height, limits));
    if (!WebPDemuxGetFrame(demuxer, 1, &frame)) {
        status = lv_fail(LV_EFORMAT, "WebP: no picture in the file");
        goto done;
    }
    *orientation = find_orientation(demuxer);
    LV_TRY_DONE(lv_image_new((int)width, (int)height, out));
    status = draw_frame(&frame, out);
done:
    WebPDemuxReleaseIterator(&frame);
    WebPDemuxDelete(demuxer);
    return status;
}
