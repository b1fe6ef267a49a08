// stb_image, reduced to its inflate: the picture formats around it are checked more strictly here
// than stb_image does (checksums, cut files, palettes), so only the decompression is its.
#include <limits.h>

#include "preprocess/internal.h"

#define STBI_NO_STDIO
#define STBI_NO_JPEG
#define STBI_NO_PNG
#define STBI_NO_BMP
#define STBI_NO_PSD
#define STBI_NO_TGA
#define STBI_NO_GIF
#define STBI_NO_HDR
#define STBI_NO_PIC
#define STBI_NO_PNM
#define STBI_NO_LINEAR
#define STBI_SUPPORT_ZLIB
#define STBI_NO_FAILURE_STRINGS
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#pragma GCC diagnostic ignored "-Wunused-function" // most of the library is left out
#include <stb/stb_image.h>

int64_t lv_inflate(lv_bytes zlib, uint8_t *out, size_t capacity) {
    if (zlib.n > INT_MAX || capacity > INT_MAX) {
        return -1;
    }
    return stbi_zlib_decode_buffer((char *)out, (int)capacity, (const char *)zlib.data,
                                   (int)zlib.n);
}
