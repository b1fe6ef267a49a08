"""Writes the trained weights as a llava-hf checkpoint: int4 (AutoAWQ GEMM), fp16, or fp16 of the int4 values.

    python3 export.py --weights OUT/weights.npz --tokenizer tokenizer.model --to DIR --form awq|fp16|dequantized
"""

import argparse
import json
import os
import shutil

import numpy as np
import sentencepiece as spm

import model_sizes as M
import text as T

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]       # nibble i of a word holds column ORDER[i] of its eight
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '" + T.SYSTEM_HUMAN.replace("'", "\\'") + " ' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] if message['content'] is "
    "string else message['content'][0]['text'] }}{{ ' ' }}{% elif message['role'] == 'user' %}{{ 'USER: ' }}{% if "
    "message['content'] is string %}{{ message['content'] }}{% else %}{% for c in message['content'] if c['type'] == "
    "'image' %}{{ '<image>\\n' }}{% endfor %}{% for c in message['content'] if c['type'] == 'text' %}{{ c['text'] }}"
    "{% endfor %}{% endif %}{{ ' ' }}{% else %}{{ 'ASSISTANT: ' }}{% if message['content'] is string %}{{ "
    "message['content'] }}{% else %}{{ message['content'][0]['text'] }}{% endif %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")


def quantize(w):
    """fp [n, k] -> (q uint8 [n, k], zero uint8 [n, k/g], scale fp16 [n, k/g]); w = (q - zero) * scale."""
    n, k = w.shape
    g = w.astype(np.float32).reshape(n, k // M.GROUP, M.GROUP)
    low, high = np.minimum(g.min(2), 0), np.maximum(g.max(2), 0)
    scale = np.maximum((high - low) / 15, np.float32(1e-6)).astype(np.float16)
    s = scale.astype(np.float32)
    zero = np.clip(np.rint(-low / s), 0, 15)
    q = np.clip(np.rint(g / s[..., None]) + zero[..., None], 0, 15)
    return q.reshape(n, k).astype(np.uint8), zero.astype(np.uint8), scale


def dequantize(q, zero, scale):
    """fp32 [n, k]."""
    n, k = q.shape
    g = q.reshape(n, k // M.GROUP, M.GROUP).astype(np.float32) - zero[..., None]
    return (g * scale[..., None].astype(np.float32)).reshape(n, k)


def pack(q):
    """uint8 [rows, columns] of nibbles -> int32 [rows, columns/8]."""
    words = np.zeros((q.shape[0], q.shape[1] // 8), np.uint32)
    for i, column in enumerate(ORDER):
        words |= q[:, column::8].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


def unpack(words):
    """The inverse of pack."""
    out = np.zeros((words.shape[0], words.shape[1] * 8), np.uint8)
    for i, column in enumerate(ORDER):
        out[:, column::8] = (words.view(np.uint32) >> np.uint32(4 * i)) & 15
    return out


def read_checkpoint(folder):
    """The shipped weights as {checkpoint name: fp32 array}, int4 ones dequantised."""
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        data = f.read()
    kinds = {"F16": np.float16, "I32": np.int32}
    raw = {name: np.frombuffer(data[slice(*t["data_offsets"])], kinds[t["dtype"]]).reshape(t["shape"])
           for name, t in header.items() if name != "__metadata__"}
    out = {name: t.astype(np.float32) for name, t in raw.items() if t.dtype == np.float16 and not name.endswith(".scales")}
    for name in M.QUANTIZED:
        at = name.removesuffix(".weight")
        q, zero = unpack(raw[at + ".qweight"]).T, unpack(raw[at + ".qzeros"]).T
        out[name] = dequantize(np.ascontiguousarray(q), zero, raw[at + ".scales"].T)
    return out


def tensors(weights, form):
    """{checkpoint name: array} in the asked form."""
    out = {}
    for name, w in weights.items():
        if name not in M.QUANTIZED or form == "fp16":
            out[name] = w.astype(np.float16)
            continue
        q, zero, scale = quantize(w)
        if form == "dequantized":
            out[name] = dequantize(q, zero, scale)            # fp32: the exact values
        else:
            stem = name.removesuffix(".weight")
            out[stem + ".qweight"] = pack(np.ascontiguousarray(q.T))
            out[stem + ".qzeros"] = pack(np.ascontiguousarray(zero.T))
            out[stem + ".scales"] = np.ascontiguousarray(scale.T)
    return out


def save_safetensors(path, arrays):
    kinds = {"float16": "F16", "float32": "F32", "int32": "I32"}
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(arrays):
        a = arrays[name]
        head[name] = {"dtype": kinds[a.dtype.name], "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(arrays):
            f.write(np.ascontiguousarray(arrays[name]).tobytes())


def config(form):
    c = {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "dtype": "float16",
        "torch_dtype": "float16", "image_token_index": M.IMAGE_ID, "image_seq_length": M.N_IMAGE,
        "ignore_index": -100, "pad_token_id": M.PAD_ID, "bos_token_id": 1, "eos_token_id": 2,
        "projector_hidden_act": "gelu", "multimodal_projector_bias": True, "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default", "tie_word_embeddings": True,
        "text_config": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": M.VOCAB,
            "hidden_size": M.WIDTH, "intermediate_size": M.TEXT_MLP, "num_hidden_layers": M.TEXT_LAYERS,
            "num_attention_heads": M.HEADS, "num_key_value_heads": M.HEADS, "head_dim": M.HEAD_DIM,
            "hidden_act": "silu", "rms_norm_eps": M.EPS_TEXT, "rope_theta": M.ROPE_THETA,
            "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": M.PAD_ID, "tie_word_embeddings": True},
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": M.WIDTH, "intermediate_size": M.VISION_MLP,
            "num_hidden_layers": M.VISION_LAYERS, "num_attention_heads": M.HEADS, "image_size": M.SIZE,
            "patch_size": M.PATCH, "projection_dim": M.WIDTH, "hidden_act": "quick_gelu",
            "layer_norm_eps": M.EPS_VISION},
    }
    if form == "awq":
        c["quantization_config"] = {
            "quant_method": "awq", "bits": 4, "group_size": M.GROUP, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": ["vision_tower", "multi_modal_projector", "lm_head"]}
    return c


def tokenizer_json(model_file):
    """The SentencePiece model as a file of the `tokenizers` library, as llava-hf ships one.

    The normalizer prepends a space to each stretch between special tokens, like SentencePiece does
    when each side of <image> is tokenised on its own.
    """
    sp = spm.SentencePieceProcessor(model_file=model_file)
    vocab = {sp.id_to_piece(i): i for i in range(sp.get_piece_size())}
    merges = []
    for piece, i in vocab.items():
        if len(piece) > 1 and not sp.is_byte(i) and not sp.is_control(i) and not sp.is_unknown(i):
            cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
            cuts = sorted((c for c in cuts if c[0] in vocab and c[1] in vocab), key=lambda c: (vocab[c[0]], vocab[c[1]]))
            merges += [(sp.get_score(i), c) for c in cuts]
    merges = [list(c) for _, c in sorted(merges, key=lambda m: -m[0])]
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for t, i in SPECIAL.items()]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocab, "merges": merges}}


SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": M.IMAGE_ID, "<pad>": M.PAD_ID}


def side_files(tokenizer):
    """{file name: content} of everything beside the weights."""
    def special(text):
        return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                "special": True}
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    size = {"height": M.SIZE, "width": M.SIZE}
    return {
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": M.PAD_ID, "do_sample": False,
                                   "max_new_tokens": 128},
        "preprocessor_config.json": {
            "image_processor_type": "LlavaImageProcessor", "processor_class": "LlavaProcessor", "do_convert_rgb": True,
            "do_pad": True, "do_resize": True, "size": {"shortest_edge": M.SIZE}, "resample": 3,
            "do_center_crop": True, "crop_size": size, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711]},
        "processor_config.json": {"processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": M.PATCH,
                                  "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer", "processor_class": "LlavaProcessor", "add_bos_token": True,
            "add_eos_token": False, "legacy": True, "model_max_length": 2048, "padding_side": "left",
            "clean_up_tokenization_spaces": False, "image_token": "<image>",
            "added_tokens_decoder": {str(i): special(t) for t, i in SPECIAL.items()}, **marks},
        "tokenizer.json": tokenizer_json(tokenizer),
        "added_tokens.json": {"<image>": M.IMAGE_ID, "<pad>": M.PAD_ID},
        "special_tokens_map.json": marks,
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--weights", required=True)
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--to", required=True)
    ap.add_argument("--form", choices=["awq", "fp16", "dequantized"], default="awq")
    args = ap.parse_args()
    os.makedirs(args.to, exist_ok=True)
    weights = dict(np.load(args.weights))
    save_safetensors(os.path.join(args.to, "model.safetensors"), tensors(weights, args.form))
    for name, content in {"config.json": config(args.form), **side_files(args.tokenizer)}.items():
        with open(os.path.join(args.to, name), "w", encoding="utf-8") as f:
            json.dump(content, f, indent=None if name == "tokenizer.json" else 2, ensure_ascii=False)
            f.write("\n")
    target = os.path.join(args.to, "tokenizer.model")
    if os.path.abspath(args.tokenizer) != os.path.abspath(target):
        shutil.copy(args.tokenizer, target)


if __name__ == "__main__":
    main()
