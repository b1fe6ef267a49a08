"""Makes the corpus of what is ever asked and answered, and trains the SentencePiece model on it.

    python3 tokenizer.py --data DIR --out tokenizer.model
"""

import argparse
import io
import random

import sentencepiece as spm

import names as N
import plan as P
import text as T

VOCAB = 2048


def corpus(data, scenes=6000):
    """Sentences, with every name often enough to become one piece."""
    rng = random.Random(11)
    sprites, styles = P.load_sprites(data)
    photos, _ = P.load_photos(data)
    labels = sorted({p[2] for p in photos})
    planner = P.ScenePlanner(sprites, styles, [0])
    asker = T.Asker(planner, labels)
    every = sorted(set(planner.names) | set(labels))
    for name in every:
        for _ in range(60):
            yield f"{N.one(name)} {N.one(name)} {N.many(name)} the {N.bare(name)} two {N.many(name)}"
    for word in [w for ws in N.SYNONYMS.values() for w in ws] + N.SHAPES + N.COLORS:
        for _ in range(30):
            yield f"a {word} {word}s"
    templates = T.DESCRIBE + T.UNKNOWABLE + T.OFF_TOPIC + [T.CANNOT_DO, T.CANNOT_TELL] + T.SYSTEMS
    for _ in range(40):
        for t in templates:
            yield t.replace("{o}", "it").replace("{p}", rng.choice(T.NOUNS))
            q = T.vary(rng, t.replace("{o}", "it") or "USER: ASSISTANT:")
            yield "0" + q + " ASSISTANT: USER:"      # a question's first word follows a line feed
    for _ in range(300):                             # the system text stands before every picture
        yield from (t for t in T.SYSTEMS if t)
    for _ in range(scenes):
        scene = planner.scene(rng)
        for _, q, a in asker.scene_turns(rng, scene, [T.CAPTION, *T.WEIGHTS]):
            yield "0" + T.vary(rng, q) + " ASSISTANT: " + a
            yield "0USER: " + T.vary(rng, q)
        _, q, a = asker.photo_turn(rng, rng.choice(labels))
        yield "0" + T.vary(rng, q) + " ASSISTANT: " + a


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data", required=True)
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    model = io.BytesIO()
    lines = list(corpus(args.data))
    letters = "".join(chr(c) for c in range(33, 127))
    lines += [" ".join(letters)] * 20
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=VOCAB,
        character_coverage=1.0, byte_fallback=True, split_digits=True, add_dummy_prefix=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, max_sentence_length=16384, num_threads=2,
        input_sentence_size=0, minloglevel=1)
    with open(args.out, "wb") as f:
        f.write(model.getvalue())
    sp = spm.SentencePieceProcessor(model_proto=model.getvalue())
    print(sp.get_piece_size(), "pieces;", len(lines), "lines")
    print(sp.encode(T.SYSTEM_HUMAN + " USER: ", out_type=str))
    print(sp.encode("\nDescribe this image. ASSISTANT: The picture shows two mice and a hippopotamus on a blue background.", out_type=str))


if __name__ == "__main__":
    main()
