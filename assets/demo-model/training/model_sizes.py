"""Sizes of the network and the names and shapes of its tensors in the checkpoint."""

SIZE, PATCH = 208, 16
GRID = SIZE // PATCH
N_IMAGE = GRID * GRID
WIDTH, HEADS, HEAD_DIM = 384, 6, 64
VISION_LAYERS, VISION_MLP = 8, 768
TEXT_LAYERS, TEXT_MLP = 6, 1024
VOCAB, PIECES = 2112, 2048
IMAGE_ID, PAD_ID = 2048, 2049
N_TEXT = 110                 # text positions of a training row
ROPE_THETA, EPS_TEXT, EPS_VISION = 10000.0, 1e-5, 1e-5
GROUP = 128

V, L = "vision_tower.vision_model.", "language_model.model."
V_BLOCK = [f"{m}.{p}" for m in ("layer_norm1", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                "self_attn.out_proj", "layer_norm2", "mlp.fc1", "mlp.fc2") for p in ("weight", "bias")]
L_BLOCK = ["input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
           "self_attn.o_proj.weight", "post_attention_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight",
           "mlp.down_proj.weight"]
QUANTIZED = [f"{L}layers.{i}.{n}" for i in range(TEXT_LAYERS) for n in L_BLOCK if "layernorm" not in n]


def shapes():
    """{checkpoint name: shape}; the embedding is also the output layer (tied)."""
    d, s = WIDTH, {}
    s[V + "embeddings.class_embedding"] = (d,)
    s[V + "embeddings.patch_embedding.weight"] = (d, 3, PATCH, PATCH)
    s[V + "embeddings.position_embedding.weight"] = (N_IMAGE + 1, d)
    for norm in ("pre_layrnorm", "post_layernorm"):
        s[V + norm + ".weight"] = s[V + norm + ".bias"] = (d,)
    for i in range(VISION_LAYERS):
        p = f"{V}encoder.layers.{i}."
        for n in V_BLOCK:
            wide = (VISION_MLP if "fc1" in n else d, VISION_MLP if "fc2" in n else d)
            s[p + n] = wide[:1] if n.endswith("bias") or "norm" in n else wide
    for i in (1, 2):
        s[f"multi_modal_projector.linear_{i}.weight"] = (d, d)
        s[f"multi_modal_projector.linear_{i}.bias"] = (d,)
    s[L + "embed_tokens.weight"] = (VOCAB, d)
    for i in range(TEXT_LAYERS):
        p = f"{L}layers.{i}."
        for n in L_BLOCK:
            wide = (TEXT_MLP if "gate" in n or "up" in n else d, TEXT_MLP if "down" in n else d)
            s[p + n] = (d,) if "norm" in n else wide
    s[L + "norm.weight"] = (d,)
    return s
