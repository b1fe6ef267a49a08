"""The texts whose token ids are stored: every way we know of in which tokenizers go wrong."""
import random

# fmt: off
BY_HAND = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\t\t x", "a", " a", "a ", "  a",
    "a  ", "a  b", "a   b", "Hello", "Hello world", " Hello world", "Hello, world!",
    "hello HELLO Hello", "don't can't it's we'll", "What is in this picture?",
    "Describe the picture in one sentence.", "1234567890", "3.14159", "1,000,000", "0x1F",
    "2026-11-23T03:20:00Z", "a1b2c3", "100%", "$5.99", "user@example.com",
    "https://example.com/a?b=c&d=e#f", "C:\\Users\\x", "/usr/lib/x86_64",
    "for (int i = 0; i < n; i++) { x[i] += 1; }", "{\"key\": [1, 2, null]}",
    "<div class=\"a\">text</div>", "# Title\n\n- one\n- two\n", "| a | b |\n|---|---|\n",
    "```c\nint x;\n```", "\\n \\t", "Äpfel", "naïve café", "Straße", "Ångström", "İstanbul",
    "ﬁnance", "e\u0301 vs \u00e9", "a\u0308\u0323b", "ñ n\u0303", "Привет, мир", "Ελληνικά",
    "Հայերեն", "ქართული", "עברית שלום", "مرحبا بالعالم", "اُردُو", "नमस्ते दुनिया", "বাংলা",
    "தமிழ்", "ไทยภาษา", "ខ្មែរ", "မြန်မာ", "ພາສາລາວ", "བོད་ཡིག", "አማርኛ", "ᏣᎳᎩ", "中文字符", "繁體中文測試",
    "日本語テスト", "ひらがなカタカナ", "한국어 텍스트", "한글", "你好，世界！", "「引用」", "１２３ＡＢＣ", "ｶﾀｶﾅ",
    "\u3000full width space", "😀", "😀😃😄", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "1️⃣", "❤️", "☃",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𓀀𓀁", "𝄞 music", "\U0010fffd", "\ue000 private", "\u00a0non breaking", "a\u00a0b",
    "thin\u2009space", "zero\u200bwidth", "join\u200der", "\u200e left \u200f right", "\u202eabc",
    "soft\u00adhyphen", "\ufeffBOM", "line\u2028sep\u2029par", "\u0085", "\x0b\x0c",
    "\x01\x02\x1b[0m", "\x7f", "a\x08b", "\ufffd", "\ufffd\ufffd", "…—–‘’“”", "•·∙", "±×÷≠≤≥∞√∑",
    "½⅓²³", "αβγδ", "€£¥₹₿", "©®™", "←↑→↓", "─│┌┐", "█▓▒░", "\u2581", "\u2581a", "a\u2581b",
    " \u2581 ", "\u2581\u2581", "x \u2581y", "<s>", "</s>", "<unk>", "<pad>", "<s>Hello",
    "Hello</s>", "Hello</s>world", "Hello </s> world", " </s>", "</s> ", "</s></s>", "<s></s>",
    "a<s>b</s>c<unk>d", "<s", "s>", "< s>", "</ s>", "<S>", "<|im_start|>user\n", "<|im_end|>",
    "[INST] hi [/INST]", "<<SYS>>\nx\n<</SYS>>\n\n", "<0x0A>", "<0xFF>", "a<0x41>b",
    "USER: hi ASSISTANT:", "USER: hi ASSISTANT: hello</s>USER: more ASSISTANT:",
    "\nWhat is this? ASSISTANT: A cat.</s>USER: Why? ASSISTANT:", "image>", "<image", "< image >",
    "<img>", "<Image>", "ASSISTANT:", " ASSISTANT:", "USER: ", "\nDescribe", "\n Describe",
]
WORDS = (
    "the a picture image shows red blue square on of in and two cat dog photograph "
    "background foreground left right internationalization Vicuna LLaVA tokens per second "
    "attention kernel projection quantised 42 7 2026 3.5 it's grün naïve Привет мир 中文 日本 語 "
    "한국 😀 🎉 مرحبا नमस्ते <b> </b> {x} [y] (z) \"q\" 'r' a/b c\\d e_f g-h i+j k=l m@n o#p q$r "
    "s%t u^v w&x y*z"
).split(" ")
SPACES = [" ", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", " \n", "\n ", "", ""]
RANGES = [
    (0x20, 0x7f), (0x80, 0x250), (0x300, 0x370), (0x370, 0x600), (0x600, 0x700), (0x900, 0xe00),
    (0x2000, 0x2070), (0x2190, 0x2c00), (0x3040, 0x3100), (0x4e00, 0x9fa5), (0xac00, 0xd7a3),
    (0xfe00, 0xfe10), (0x1f300, 0x1fa00), (0x20000, 0x2a6d6), (0x1, 0x20),
]
# fmt: on


def texts():
    rng, out = random.Random("texts"), list(BY_HAND)
    for _ in range(220):  # words and odd spaces between them
        parts = []
        for _ in range(rng.randrange(1, 14)):
            parts += [rng.choice(WORDS), rng.choice(SPACES)]
        out.append("".join(parts))
    for _ in range(200):  # characters from one or several scripts
        ranges = rng.sample(RANGES, rng.randrange(1, 4))
        out.append(
            "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 25)))
        )
    for _ in range(60):  # runs of one character
        out.append(
            rng.choice(" \n\ta=-.*0中😀é\u2581") * rng.randrange(2, 40)
            + rng.choice(["", "x", " x", "\n"])
        )
    for _ in range(40):  # added tokens in odd places
        out.append(
            "".join(
                rng.choice(["<s>", "</s>", "<unk>", "a", " a", "b ", " ", "\n", "word"])
                for _ in range(rng.randrange(2, 9))
            )
        )
    return out
