"""The two tokenizers that decide ids: the original family's and llava-hf's."""


class SlowTokenizer:
    """LlamaTokenizer as it stood (sentencepiece, legacy=False), which the original LLaVA code uses.

    Added tokens are cut out; the text's start gets one space in front, the stretches after a token
    do not.
    """

    def __init__(self, path):
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2 as pb

        model = pb.ModelProto()
        model.ParseFromString(open(path, "rb").read())
        model.normalizer_spec.add_dummy_prefix = False
        self.plain = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        self.whole = sentencepiece.SentencePieceProcessor(model_file=path)
        self.added = {"<unk>": 0, "<s>": 1, "</s>": 2}

    def section(self, text):
        # The unknown token in front keeps sentencepiece from eating spaces.
        if not text.startswith(("\u2581", " ")):
            return self.plain.encode(text)
        mark = len(self.plain.encode("<unk>"))
        return self.plain.encode("<unk>" + text)[mark:]

    def __call__(self, text):
        if not text:
            return []
        ids, rest, first = [], "\u2581" + text.replace("\u2581", " "), True
        while rest:
            at, token = min(
                (i, t) for t in [*self.added, ""] if (i := rest.find(t) if t else len(rest)) >= 0
            )
            stretch = rest[:at]
            if stretch and not (first and stretch == "\u2581" and token):
                ids += self.section(stretch)
            if token:
                ids.append(self.added[token])
            rest, first = rest[at + len(token) :], False
        return ids


class HfTokenizer:
    """A tokenizer.json through `tokenizers`: every stretch between added tokens gets a space."""

    def __init__(self, path=None, model=None):
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

        if path:
            self.tokenizer = Tokenizer.from_file(path)
            return
        vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
        merges = []
        for piece, i in vocab.items():
            splits = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
            splits = [(l, r) for l, r in splits if l in vocab and r in vocab]
            splits.sort(key=lambda p: (vocab[p[0]], vocab[p[1]]))
            merges += [(model.get_score(i), len(l), len(r), l, r) for l, r in splits]
        merges.sort(key=lambda m: m[:3], reverse=True)
        t = Tokenizer(
            models.BPE(
                vocab,
                [(l, r) for *_, l, r in merges],
                unk_token="<unk>",
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        t.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        t.decoder = decoders.Sequence(
            [
                decoders.Replace("\u2581", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        t.add_special_tokens(
            [
                AddedToken(x, normalized=False, special=True)
                for x in ("<unk>", "<s>", "</s>", "<image>", "<pad>")
            ]
        )
        self.tokenizer = t

    def __call__(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids
