extern "C" {
#include "llm/spm.h"
}

#include <sentencepiece_processor.h>

#include <cstring>
#include <new>
#include <string>
#include <vector>

#define MAX_MODEL_BYTES ((size_t)32 << 20)

struct lv_spm {
    sentencepiece::SentencePieceProcessor processor;
    int n_pieces;
};

namespace {

// A walk over a serialised protobuf message: field by field, payloads as views.
struct Message {
    const uint8_t *at, *end;

    bool varint(uint64_t *out) {
        *out = 0;
        for (int shift = 0; shift < 64 && at < end; shift += 7) {
            uint8_t byte = *at++;
            *out |= (uint64_t)(byte & 0x7F) << shift;
            if (byte < 0x80) {
                return true;
            }
        }
        return false;
    }

    // The next field; *out is empty but for length-delimited ones. False at the end or at garbage.
    bool next(uint64_t *out_number, Message *out) {
        uint64_t tag, length = 0;
        *out = Message{at, at};
        if (!varint(&tag)) {
            return false;
        }
        *out_number = (uint32_t)tag >> 3; // as protobuf reads it
        switch (tag & 7) {
        case 0:
            return varint(&length);
        case 1:
            length = 8;
            break;
        case 2:
            if (!varint(&length)) {
                return false;
            }
            break;
        case 5:
            length = 4;
            break;
        default:
            return false;
        }
        if (length > (uint64_t)(end - at)) {
            return false;
        }
        if ((tag & 7) == 2) {
            *out = Message{at, at + length};
        }
        at += length;
        return true;
    }
};

uint32_t load_u32(const uint8_t *bytes) {
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

// A normaliser's map is a byte count, a double-array trie and NUL-terminated strings. The library
// walks the trie unchecked, so each step and each string it can reach must lie inside.
bool charsmap_is_safe(const Message &map) {
    size_t n_bytes = (size_t)(map.end - map.at);
    if (n_bytes == 0) {
        return true;
    }
    size_t trie_bytes = n_bytes > 4 ? load_u32(map.at) : 0;
    if (trie_bytes == 0 || trie_bytes % 1024 != 0 || trie_bytes > n_bytes - 4) {
        return false; // whole blocks of 256 units: a step's low 8 bits cannot leave its block
    }
    const uint8_t *units = map.at + 4;
    size_t n_units = trie_bytes / 4, n_strings = n_bytes - 4 - trie_bytes;
    if (n_strings > 0 && map.end[-1] != 0) {
        return false;
    }
    for (size_t i = 0; i < n_units; i++) {
        uint32_t unit = load_u32(units + 4 * i);
        if (unit >> 31) {
            continue; // a value: reached through has_leaf below, never walked through
        }
        size_t next = i ^ ((size_t)(unit >> 10) << ((unit & 0x200) >> 6));
        if (next >= n_units) {
            return false;
        }
        bool has_leaf = unit >> 8 & 1;
        if (has_leaf && (load_u32(units + 4 * next) & 0x7FFFFFFF) >= n_strings) {
            return false;
        }
    }
    return true;
}

// ModelProto: field 3 is the normaliser, 5 the denormaliser; field 2 of each is its map. Fields
// that cannot be walked might hide one.
bool model_is_safe(const uint8_t *data, size_t n_bytes) {
    Message model{data, data + n_bytes}, spec, map;
    uint64_t number, inner;
    while (model.at < model.end) {
        if (!model.next(&number, &spec)) {
            return false;
        }
        while ((number == 3 || number == 5) && spec.at < spec.end) {
            if (!spec.next(&inner, &map) || (inner == 2 && !charsmap_is_safe(map))) {
                return false;
            }
        }
    }
    return true;
}

lv_status load(const lv_buffer &file, const char *path, bool prefix, lv_spm *spm) {
    if (!model_is_safe(file.data, file.n_bytes)) {
        return lv_fail(LV_EFORMAT, "%s: not a SentencePiece model: its fields do not add up", path);
    }
    std::string bytes((const char *)file.data, file.n_bytes);
    if (!prefix) {
        // A later copy of a field is merged over the earlier one: normalizer_spec (3) {
        // add_dummy_prefix (3): false }.
        bytes.append("\x1a\x02\x18\x00", 4);
    }
    auto status = spm->processor.LoadFromSerializedProto(bytes);
    if (!status.ok()) {
        return lv_fail(LV_EFORMAT, "%s: not a SentencePiece model: %s", path,
                       status.ToString().c_str());
    }
    spm->n_pieces = spm->processor.GetPieceSize();
    if (spm->n_pieces <= 0) {
        return lv_fail(LV_EFORMAT, "%s: the vocabulary is empty", path);
    }
    return LV_OK;
}

} // namespace

extern "C" lv_status lv_spm_open(const char *path, bool prefix, lv_spm **out) {
    lv_buffer file = {};
    lv_status status = lv_file_read(path, MAX_MODEL_BYTES, &file);
    lv_spm *spm = nullptr;
    *out = nullptr;
    try {
        if (status == LV_OK) {
            spm = new lv_spm();
            status = load(file, path, prefix, spm);
        }
    } catch (const std::bad_alloc &) {
        status = lv_fail(LV_ENOMEM, "%s: out of memory", path);
    } catch (const std::exception &error) {
        status = lv_fail(LV_EFORMAT, "%s: not a SentencePiece model: %s", path, error.what());
    }
    lv_buffer_free(&file);
    if (status != LV_OK) {
        lv_spm_free(spm);
        return status;
    }
    *out = spm;
    return LV_OK;
}

extern "C" void lv_spm_free(lv_spm *spm) {
    delete spm;
}

extern "C" int lv_spm_size(const lv_spm *spm) {
    return spm->n_pieces;
}

extern "C" const char *lv_spm_piece(const lv_spm *spm, int32_t id) {
    return spm->processor.IdToPiece(id).c_str();
}

extern "C" lv_piece_kind lv_spm_kind(const lv_spm *spm, int32_t id) {
    const auto &processor = spm->processor;
    return processor.IsByte(id)      ? LV_PIECE_BYTE
           : processor.IsControl(id) ? LV_PIECE_CONTROL
           : processor.IsUnknown(id) ? LV_PIECE_UNKNOWN
                                     : LV_PIECE_NORMAL;
}

extern "C" int32_t lv_spm_find(const lv_spm *spm, const char *piece) {
    try {
        int32_t id = spm->processor.PieceToId(piece);
        bool found = id >= 0 && id < spm->n_pieces && spm->processor.IdToPiece(id) == piece;
        return found ? id : -1;
    } catch (const std::exception &) {
        return -1;
    }
}

extern "C" lv_status lv_spm_encode(const lv_spm *spm, const char *text, size_t n_bytes,
                                   lv_ids *out) {
    try {
        std::vector<int> ids;
        auto status = spm->processor.Encode({text, n_bytes}, &ids);
        if (!status.ok()) {
            return lv_fail(LV_EFORMAT, "tokenizer: %s", status.ToString().c_str());
        }
        for (int id : ids) {
            LV_TRY(lv_ids_push(out, id));
        }
    } catch (const std::bad_alloc &) {
        return lv_fail(LV_ENOMEM, "tokenizer: out of memory for %zu bytes of text", n_bytes);
    } catch (const std::exception &error) {
        return lv_fail(LV_EFORMAT, "tokenizer: %s", error.what());
    }
    return LV_OK;
}
