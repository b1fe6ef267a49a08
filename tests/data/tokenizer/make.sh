#!/bin/sh
# Makes tiny.model from corpus.txt with Debian's spm_train, set up as LLaMA's: BPE, byte fallback,
# no normalisation, all spaces kept. "<image>" is a piece that SentencePiece finds in any text.
set -eu
cd "$(dirname "$0")"
spm_train --input=corpus.txt --model_prefix=tiny --model_type=bpe --vocab_size=560 \
    --character_coverage=1.0 --byte_fallback=true --normalization_rule_name=identity \
    --remove_extra_whitespaces=false --split_digits=true --allow_whitespace_only_pieces=true \
    --unk_id=0 --bos_id=1 --eos_id=2 --pad_id=-1 --user_defined_symbols='<image>' \
    --num_threads=1 --minloglevel=2
rm -f tiny.vocab
